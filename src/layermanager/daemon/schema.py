"""Comparing a JSON value with its description.

A description is a schema of JSON Schema 2020-12, as OpenAPI 3.1 has it, of which only the keywords
are known that the API needs; one that is not known is an error of the program. So what requests are
checked by is, word for word, what the OpenAPI document says of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Schema: TypeAlias = Mapping[str, Any]

_REFERENCE_PREFIX: Final = "#/components/schemas/"
_ANNOTATIONS: Final = frozenset({"description", "default", "format", "title", "examples"})
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
MAX_VIOLATIONS: Final = 20
"""How many are told of one request; who sends a hundred thousand wrong layers learns no more."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One place in a value that is not as described.

    Attributes:
        place: a JSON pointer (RFC 6901) as a fragment, ``#/0/url``; or the name of a parameter.
        detail: what is wrong there.
    """

    place: str
    detail: str


def reference(name: str) -> Schema:
    """The schema that is the component *name*."""
    return {"$ref": _REFERENCE_PREFIX + name}


def violations(
    value: object, schema: Schema, components: Mapping[str, Schema], place: str = "#"
) -> Iterator[Violation]:
    """What of *value* is not as *schema* says.

    Args:
        value: as ``json`` reads it.
        schema: the description.
        components: the schemas that it may refer to, by their names.
        place: where the value is.
    """
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE_PREFIX)
        yield from violations(value, components[name], components, place)
        return
    _refuse_unknown_keywords(schema)
    if (expected := schema.get("type")) and not _is_of(value, expected):
        names = expected if isinstance(expected, str) else " or ".join(expected)
        yield Violation(place, f"expected {names}, found {_type_of(value)}")
        return
    if "anyOf" in schema:
        yield from _any_of_violations(value, schema["anyOf"], components, place)
        return
    if "enum" in schema and value not in schema["enum"]:
        yield Violation(place, "must be one of " + ", ".join(map(str, schema["enum"])))
    match value:
        case str():
            yield from _text_violations(value, schema, place)
        case int() | float() if not isinstance(value, bool):
            yield from _number_violations(value, schema, place)
        case list():
            yield from _array_violations(value, schema, components, place)
        case dict():
            yield from _object_violations(value, schema, components, place)


_KNOWN_KEYWORDS: Final = _ANNOTATIONS | {
    "type",
    "anyOf",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "items",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
}


def _refuse_unknown_keywords(schema: Schema) -> None:
    if unknown := schema.keys() - _KNOWN_KEYWORDS:
        raise ValueError(f"keywords that are not checked: {', '.join(sorted(unknown))}")


def _is_of(value: object, expected: str | list[str]) -> bool:
    if isinstance(expected, list):
        return any(_is_of(value, one) for one in expected)
    if isinstance(value, bool) and expected != "boolean":
        return False
    return isinstance(value, _TYPES[expected])


def _type_of(value: object) -> str:
    return next(name for name in _TYPES if _is_of(value, name))


def _any_of_violations(
    value: object, schemas: list[Schema], components: Mapping[str, Schema], place: str
) -> Iterator[Violation]:
    """What is wrong by the schema that is meant: the first one that is for this type of value."""
    found = [list(violations(value, schema, components, place)) for schema in schemas]
    if all(found):
        meant = [
            wrong
            for wrong, schema in zip(found, schemas, strict=True)
            if _is_of(value, schema["type"])
        ]
        yield from meant[0] if meant else found[0]


def _text_violations(value: str, schema: Schema, place: str) -> Iterator[Violation]:
    if len(value) < schema.get("minLength", 0):
        yield Violation(place, "must not be empty")
    elif len(value) > schema.get("maxLength", len(value)):
        yield Violation(place, f"must have at most {schema['maxLength']} characters")
    elif "pattern" in schema and not _compiled(schema["pattern"]).search(value):
        yield Violation(place, f"must match {schema['pattern']}")


def _number_violations(value: float, schema: Schema, place: str) -> Iterator[Violation]:
    if value < schema.get("minimum", value):
        yield Violation(place, f"must be at least {schema['minimum']}")
    if value > schema.get("maximum", value):
        yield Violation(place, f"must be at most {schema['maximum']}")


def _array_violations(
    value: list[object], schema: Schema, components: Mapping[str, Schema], place: str
) -> Iterator[Violation]:
    if len(value) > schema.get("maxItems", len(value)):
        yield Violation(place, f"must have at most {schema['maxItems']} elements")
        return
    if "items" in schema:
        for index, element in enumerate(value):
            yield from violations(element, schema["items"], components, f"{place}/{index}")


def _object_violations(
    value: dict[str, object], schema: Schema, components: Mapping[str, Schema], place: str
) -> Iterator[Violation]:
    properties = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield Violation(f"{place}/{_escaped(key)}", "is missing")
    for key, member in value.items():
        at = f"{place}/{_escaped(key)}"
        if key in properties:
            yield from violations(member, properties[key], components, at)
        elif not schema.get("additionalProperties", True):
            known = ", ".join(sorted(properties))
            yield Violation(at, f"unknown key; known: {known}" if known else "unknown key")


def _escaped(key: str) -> str:
    return key[:80].replace("~", "~0").replace("/", "~1")


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    """As JSON Schema means it: ``$`` is the end of the text, not also the line's end before it."""
    return re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern)
