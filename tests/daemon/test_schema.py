from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.daemon.resources import ENDPOINTS, openapi_document
from layermanager.daemon.schema import Violation, reference, violations
from layermanager.daemon.schemas import COMPONENTS

if TYPE_CHECKING:
    from layermanager.daemon.schema import Schema

SCHEMAS: list[Schema] = [
    {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]*$"},
    {"type": "string", "enum": ["a", "b"]},
    {"type": ["integer", "null"], "minimum": -3, "maximum": 7},
    {"type": "number", "minimum": 0.5},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {}}},
        "required": ["a"],
        "additionalProperties": False,
    },
    {},
]
BODIES = {endpoint.name: endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None}

scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.25, 0.75])
texts = st.text("ab\0/~", max_size=3)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
layers = st.fixed_dictionaries(
    {},
    optional={
        "digest": st.sampled_from(["sha256:" + "0" * 64, "sha256:0"]) | values,
        "url": values,
        "size": values,
        "mirrors": values,
        "sha256": st.sampled_from(["a" * 64, "A" * 43 + "=", "A" * 42 + "="]) | values,
        "layerId": values,
    },
)


def found(value: object, schema: Schema) -> list[Violation]:
    return list(violations(value, schema, COMPONENTS))


def is_valid(value: object, schema: Schema) -> bool:
    """What a library says that knows all of JSON Schema."""
    components = {"components": {"schemas": dict(COMPONENTS)}}
    return bool(jsonschema.Draft202012Validator({**components, **schema}).is_valid(value))


@given(values, st.sampled_from(SCHEMAS))
def test_it_agrees_with_a_library(value: object, schema: Schema) -> None:
    assert (not found(value, schema)) == is_valid(value, schema)


@given(st.lists(layers | values, max_size=2) | values)
def test_it_agrees_with_a_library_on_bodies(value: object) -> None:
    for schema in BODIES.values():
        assert (not found(value, schema)) == is_valid(value, schema)


@pytest.mark.parametrize(
    ("value", "schema", "place", "words"),
    [
        (1, {"type": "string"}, "#", "expected string, found integer"),
        (True, {"type": "integer"}, "#", "expected integer, found boolean"),
        # JSON Schema takes it as an integer; nothing here counts that far.
        (1e30, {"type": "integer"}, "#", "expected integer, found number"),
        ([1, "a"], SCHEMAS[5], "#/1", "expected integer, found string"),
        ([1, 2, 3], SCHEMAS[5], "#", "must have at most 2 elements"),
        ({}, SCHEMAS[6], "#/a", "is missing"),
        ({"a": "", "b/~": 1}, SCHEMAS[6], "#/b~1~0", "unknown key; known: a, b"),
        ("c", SCHEMAS[1], "#", "must be one of a, b"),
        ("", SCHEMAS[0], "#", "must not be empty"),
        (8, SCHEMAS[2], "#", "must be at most 7"),
        (-4, SCHEMAS[2], "#", "must be at least -3"),
        ("x\n", {"type": "string", "pattern": "^x$"}, "#", "must match ^x$"),
    ],
)
def test_it_names_the_place(value: object, schema: Schema, place: str, words: str) -> None:
    assert found(value, schema) == [Violation(place, words)]


def test_what_it_does_not_know_it_does_not_pass_over() -> None:
    with pytest.raises(ValueError, match="multipleOf"):
        found(1, {"multipleOf": 2})


def test_all_references_lead_somewhere() -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            inner = [one for value in node.values() for one in references(value)]
            return [*inner, node["$ref"]] if "$ref" in node else inner
        return (
            [one for value in node for one in references(value)] if isinstance(node, list) else []
        )

    named = set(references(openapi_document()))
    assert {name for name in named if name.startswith("#/components/schemas/")} <= {
        reference(name)["$ref"] for name in COMPONENTS
    }
    assert named
