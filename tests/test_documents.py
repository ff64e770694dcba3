from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import assert_linear
from layermanager import documents
from layermanager.documents import MAX_BYTES, MAX_DEPTH, DocumentError, JsonObject, objects, parse
from layermanager.header_numbers import MAX_INTEGER

if TYPE_CHECKING:
    from collections.abc import Callable

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def document(**members: object) -> JsonObject:
    return JsonObject.of(members, "")


@given(json_values)
def test_every_json_document_is_read(value: object) -> None:
    assert parse(json.dumps(value)) == value
    assert parse(json.dumps(value, ensure_ascii=True).encode()) == value


@given(st.one_of(st.text(), st.binary(), st.text('[]{}":,0123456789eE+-.tfn \\u')))
def test_anything_is_read_or_is_a_document_error(text: str | bytes) -> None:
    try:
        value = parse(text)
    except DocumentError:
        return
    assert parse(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ("[" * 1_000_000, "nested too deeply"),
        ("9" * 100_000, "a number of 100000 digits: an integer has at most 64 bits"),
        ("-" + "9" * 21, "a number of 22 digits"),
        ('{"a": 1e999}', "a number that is out of range: 1e999"),
        ("[-1e999]", "a number that is out of range: -1e999"),
        ("0." + "1" * 5000, "a number that is out of range"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
        ('[{"x": {"a": 1, "a": 1}}]', "key 'a' occurs twice"),
    ],
)
def test_what_is_not_json_is_an_error(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        parse(text)


def test_a_mark_of_byte_order_does_no_harm() -> None:
    assert parse(b"\xef\xbb\xbf{}") == {}


def test_a_member_that_is_null_is_absent() -> None:
    empty = document(text=None, integer=None, number=None, child=None)
    assert empty.text("text", "default") == "default"
    assert empty.integer("integer", 7) == 7
    assert empty.number("number", 1.5, minimum=0, maximum=9) == 1.5
    assert empty.child("child").members == {}
    with pytest.raises(DocumentError, match="text: is missing or empty"):
        empty.required_text("text")


def test_members_are_read() -> None:
    whole = document(text="a", integer=3, number=2, fraction=0.5, child={"x": "y"})
    assert whole.text("text", None) == "a"
    assert whole.required_text("text") == "a"
    assert whole.integer("integer", None) == 3
    assert whole.number("number", 0.0, minimum=0, maximum=9) == 2.0
    assert whole.number("fraction", 0.0, minimum=0, maximum=9) == 0.5
    assert whole.child("child").text("x", None) == "y"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "a boolean"),
        (1, "a number"),
        (1.5, "a number"),
        ([], "an array"),
        ({}, "an object"),
        ("", "a text"),
    ],
)
def test_a_wrong_type_names_the_place_and_both_types(value: object, kind: str) -> None:
    outer = document(outer={"key": value}).child("outer")
    if not isinstance(value, str):
        with pytest.raises(DocumentError, match=f"^outer.key: expected a text, found {kind}$"):
            outer.text("key", "")
    if not isinstance(value, int) or isinstance(value, bool):
        with pytest.raises(DocumentError, match=f"^outer.key: expected an integer, found {kind}$"):
            outer.integer("key", 0)
    if not isinstance(value, int | float) or isinstance(value, bool):
        with pytest.raises(DocumentError, match=f"^outer.key: expected a number, found {kind}$"):
            outer.number("key", 0.0, minimum=0, maximum=1)
    if not isinstance(value, dict):
        with pytest.raises(DocumentError, match=f"^outer.key: expected an object, found {kind}$"):
            outer.child("key")
        with pytest.raises(DocumentError, match=f"^the document: expected an object, found {kind}"):
            JsonObject.of(value, "")


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "x\udfff"])
def test_a_text_that_no_file_name_can_hold_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match=r"^key: holds U\+[0-9A-F]{4}, which is no character"):
        document(key=text).text("key", "")


def test_a_whole_surrogate_pair_is_a_character() -> None:
    value = parse(r'{"key": "\ud83d\ude00"}')
    assert JsonObject.of(value, "").text("key", "") == "😀"


def test_bounds_are_kept() -> None:
    some = document(low=-1, high=101, huge=10**400, infinite=float("inf"))
    with pytest.raises(DocumentError, match=r"^low: must be at least 0, not -1$"):
        some.integer("low", 0)
    with pytest.raises(DocumentError, match=r"^high: must be 0 to 100, not 101$"):
        some.integer("high", 0, maximum=100)
    assert some.integer("high", 0, minimum=101, maximum=101) == 101
    for key in ("low", "high", "huge", "infinite"):
        with pytest.raises(DocumentError, match=f"^{key}: must be 0 to 100, not "):
            some.number(key, 0.0, minimum=0, maximum=100)


def test_unknown_keys_are_refused_by_name() -> None:
    known = frozenset({"one", "two"})
    document(one=1).refuse_others(known)
    with pytest.raises(DocumentError, match=r"^a.tow: unknown key; known: one, two$"):
        document(a={"one": 1, "tow": 2}).child("a").refuse_others(known)


def test_the_objects_of_an_array_know_their_place() -> None:
    first, second = objects([{"a": 1}, {"b": 2}], "list")
    assert (first.at("a"), second.at("b")) == ("list[0].a", "list[1].b")
    with pytest.raises(DocumentError, match=r"^\[1\]: expected an object, found null$"):
        list(objects([{}, None], ""))
    with pytest.raises(DocumentError, match=r"^the document: expected an array, found an object$"):
        list(objects({}, ""))


def test_arrays_are_read() -> None:
    outer = document(outer={"texts": ["a", ""], "objects": [{"x": "y"}], "none": None})
    inner = outer.child("outer")
    assert inner.texts("texts") == ("a", "")
    assert [one.text("x", "") for one in inner.objects("objects")] == ["y"]
    assert [one.at("x") for one in inner.objects("objects")] == ["outer.objects[0].x"]
    assert inner.texts("none") == ()
    assert list(inner.objects("missing")) == []


def test_what_is_wrong_in_an_array_is_named() -> None:
    inner = document(outer={"list": ["a", 5, None], "text": "a"}).child("outer")
    with pytest.raises(DocumentError, match=r"^outer.list\[1\]: expected a text, found a number$"):
        inner.texts("list")
    with pytest.raises(DocumentError, match=r"^outer.list\[0\]: expected an object, found a text$"):
        list(inner.objects("list"))
    with pytest.raises(DocumentError, match=r"^outer.text: expected an array of texts, found a"):
        inner.texts("text")
    with pytest.raises(DocumentError, match=r"^outer.list: more than 2 elements$"):
        list(inner.objects("list", at_most=2))


def test_all_members_may_have_to_be_texts() -> None:
    assert document(a="1", b="").texts_by_key() == {"a": "1", "b": ""}
    with pytest.raises(DocumentError, match=r"^b: expected a text, found null$"):
        document(a="1", b=None).texts_by_key()


def nested(depth: int) -> str:
    """Arrays and objects in turn, so many within one another."""
    opening = "".join("[" if level % 2 else '{"a": ' for level in range(depth))
    closing = "".join("]" if level % 2 else "}" for level in reversed(range(depth)))
    return opening + "0" + closing


def test_the_depth_of_nesting_has_a_limit_of_its_own() -> None:
    assert parse(nested(MAX_DEPTH)) is not None
    for text in (nested(MAX_DEPTH + 1), nested(5_000), "[" * (MAX_DEPTH + 1)):
        with pytest.raises(DocumentError, match=f"nested too deeply: more than {MAX_DEPTH}"):
            parse(text)


def test_what_is_nested_at_many_places_is_not_deep() -> None:
    wide = "[" + ",".join([nested(MAX_DEPTH - 1)] * 50) + "]"
    assert parse(wide) is not None


@pytest.mark.parametrize(
    "text", ["[" * 1000, "]{" * 1000, '"[', '\\"[', '[\\"', '""[""', '\\\\"', "\\"]
)
def test_brackets_within_texts_do_not_count(text: str) -> None:
    for value in ([text, text], {text: [text]}, [text, [text, {"a": text}]]):
        assert parse(json.dumps(value)) == value


@given(json_values)
def test_the_limit_is_where_the_document_is_too_deep(value: object) -> None:
    """Whatever the texts are, what counts is how deep the value is."""
    inner = json.dumps(value)
    spare = MAX_DEPTH - depth_of(value)
    assert parse("[" * spare + inner + "]" * spare) is not None
    with pytest.raises(DocumentError, match="nested too deeply"):
        parse("[" * (spare + 1) + inner + "]" * (spare + 1))


def depth_of(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case _:
            return 0


def test_a_document_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(DocumentError, match=f"more than {MAX_BYTES} bytes"):
        parse(b" " * (MAX_BYTES + 1))


def test_an_integer_beyond_64_bits_is_named() -> None:
    members = JsonObject.of(parse(f'{{"size": {MAX_INTEGER + 1}, "last": {MAX_INTEGER}}}'), "[3]")
    assert members.integer("last", None) == MAX_INTEGER
    with pytest.raises(DocumentError, match=r"\[3\]\.size: must be 0 to 9223372036854775807, not"):
        members.integer("size", None)


def test_a_key_of_any_length_makes_no_long_message() -> None:
    with pytest.raises(DocumentError) as raised:
        JsonObject.of(parse(json.dumps({"k" * 100_000: 1})), "").refuse_others(frozenset())
    assert len(str(raised.value)) < 1000


class Key(str):
    """A key that counts how often keys are compared or hashed."""

    __slots__ = ()
    looks = 0

    def __eq__(self, other: object) -> bool:
        Key.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Key.looks += 1
        return str.__hash__(self)


def test_finding_the_doubled_key_looks_at_each_key_a_few_times() -> None:
    def looks(count: int) -> int:
        pairs: list[tuple[str, object]] = [(Key(number), None) for number in range(count)]
        Key.looks = 0
        with pytest.raises(DocumentError, match="occurs twice"):
            documents._unique_members([*pairs, pairs[-1]])
        return Key.looks

    assert looks(4000) <= 4.5 * looks(1000)


@pytest.mark.parametrize(
    "element",
    ['{"a": [1, 2.5, "x"]}', '{"k%d": 1}', "-12", "1e3"],
)
def test_the_cost_of_a_document_is_linear(element: str) -> None:
    def prepare(size: int) -> Callable[[], object]:
        text = "[" + ",".join(element.replace("%d", str(one)) for one in range(size)) + "]"
        return lambda: parse(text)  # the parser is C: what it calls is counted

    assert_linear(prepare, 500)
