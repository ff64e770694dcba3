"""Reader of JSON documents from outside, with errors that name the place.

One small reader serves every document: the configuration, the desired layers, the package's
descriptor. The standard library parses; a validating library would cost every start more time
and memory than these few keys are worth (docs/dependencies.md).

The size of a document, its nesting and its numbers are bounded before they are converted. Nothing
here takes more than linear time, and no limit depends on the interpreter: signals are not handled
while the parser runs, so it must not run for long.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Never, Self, TypeVar

from layermanager.header_numbers import MAX_INTEGER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Default = TypeVar("Default")

MAX_BYTES: Final = 64 * 1024 * 1024
"""The largest document that is parsed: a desired state of some 200,000 layers."""

MAX_DEPTH: Final = 64
"""How many arrays and objects may be within one another."""

_MOST_DIGITS: Final = 20  # of an unsigned integer of 64 bits, which Go may write
_MOST_FLOAT_CHARACTERS: Final = 100
_UNUSABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
_SHOWN_KEY_CHARACTERS: Final = 200

# What decides about nesting: brackets, and the quotes between which they mean nothing.
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"')
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_OTHERS: Final = bytes(set(range(256)) - set(b'{}[]"'))


class DocumentError(ValueError):
    """A JSON document is not what it should be; the message names the place in it.

    Whoever read the document turns this into the error of its kind, with the document's name.
    """


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object that knows its place in the document.

    A member that is ``null`` counts as absent, as Go's ``encoding/json`` has it. Every method
    raises ``DocumentError`` when a member has another type than the one asked for.
    """

    members: Mapping[str, object]
    place: str

    @classmethod
    def of(cls, value: object, place: str) -> Self:
        """Take *value*, found at *place*, as an object."""
        if not isinstance(value, dict):
            raise DocumentError(
                f"{place or 'the document'}: expected an object, found {_kind(value)}"
            )
        return cls(value, place)

    def text(self, key: str, default: Default) -> str | Default:
        """The text at *key*, or *default*.

        A NUL or half a surrogate pair is refused: no file name, database or terminal takes it.
        """
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a text", value)
        if found := _UNUSABLE.search(value):  # the text itself may be a secret
            raise DocumentError(
                f"{self.at(key)}: holds U+{ord(found[0]):04X}, which is no character"
            )
        return value

    def required_text(self, key: str) -> str:
        """The text at *key*, which must be there and not be empty."""
        value = self.text(key, None)
        if not value:
            raise DocumentError(f"{self.at(key)}: is missing or empty")
        return value

    def integer(
        self, key: str, default: Default, *, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int | Default:
        """The integer at *key*, within its bounds, or *default*."""
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "an integer", value)
        if not minimum <= value <= maximum:
            is_open = maximum == MAX_INTEGER and value < minimum
            bounds = f"at least {minimum}" if is_open else f"{minimum} to {maximum}"
            raise DocumentError(f"{self.at(key)}: must be {bounds}, not {value}")
        return value

    def required_integer(self, key: str) -> int:
        """The integer at *key*, which must be there and not be negative."""
        value = self.integer(key, None)
        if value is None:
            raise DocumentError(f"{self.at(key)}: is missing")
        return value

    def number(
        self, key: str, default: Default, *, minimum: float, maximum: float
    ) -> float | Default:
        """The number at *key*, within its bounds, or *default*."""
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, "a number", value)
        if not minimum <= value <= maximum:
            raise DocumentError(f"{self.at(key)}: must be {minimum} to {maximum}, not {value}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:  # noqa: FBT001 - a value, not a switch
        """The truth value at *key*, or *default*."""
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def child(self, key: str) -> Self:
        """The object at *key*; where there is none, an empty one."""
        value = self.members.get(key)
        return self.of({} if value is None else value, self.at(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the array at *key*; none where there is no such key."""
        elements = self._array(key, "an array of texts")
        texts = JsonObject({f"{self.at(key)}[{i}]": text for i, text in enumerate(elements)}, "")
        return tuple(texts.present_text(place) for place in texts.members)

    def texts_by_key(self) -> Mapping[str, str]:
        """All members, which must be texts."""
        return {key: self.present_text(key) for key in self.members}

    def present_text(self, key: str) -> str:
        """The text at *key*, which must be there and may be empty."""
        value = self.text(key, None)
        if value is None:
            raise self._wrong(key, "a text", None)
        return value

    def objects(self, key: str, *, at_most: int | None = None) -> Iterator[Self]:
        """The objects of the array at *key*, of which there may be so many; none without it."""
        elements = self._array(key, "an array of objects")
        if at_most is not None and len(elements) > at_most:
            raise DocumentError(f"{self.at(key)}: more than {at_most} elements")
        for position, element in enumerate(elements):
            yield self.of(element, f"{self.at(key)}[{position}]")

    def refuse_others(self, known: frozenset[str]) -> None:
        """Raise if there is a key that is not *known*: most often it is misspelt."""
        for key in self.members:
            if key not in known:
                raise DocumentError(
                    f"{self.at(key)}: unknown key; known: {', '.join(sorted(known))}"
                )

    def at(self, key: str) -> str:
        """The place of *key*, such as ``[2].url``."""
        key = key[:_SHOWN_KEY_CHARACTERS]
        return f"{self.place}.{key}" if self.place else key

    def _array(self, key: str, expected: str) -> list[object]:
        value = self.members.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, expected, value)
        return value

    def _wrong(self, key: str, expected: str, found: object) -> DocumentError:
        return DocumentError(f"{self.at(key)}: expected {expected}, found {_kind(found)}")


def parse(document: bytes | str) -> object:
    """Parse one JSON document; a key that occurs twice in an object is an error.

    Raises:
        DocumentError: *document* is not JSON, or beyond ``MAX_BYTES``, ``MAX_DEPTH`` or the numbers
            that 64 bits hold.
    """
    if len(document) > MAX_BYTES:
        raise DocumentError(f"too large: more than {MAX_BYTES} bytes")
    try:
        if isinstance(document, str):
            encoded = document.encode(errors="surrogatepass")
        else:
            # Only UTF-8 (RFC 8259). Left to itself, json would guess, and import other codecs,
            # which is not possible in the unpacker's jail.
            encoded = document.removeprefix(codecs.BOM_UTF8)
            document = encoded.decode()
        _refuse_deep(encoded)
        return json.loads(
            document,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_members,
        )
    except DocumentError:
        raise
    except ValueError as error:  # JSONDecodeError, or bytes that are no UTF-8
        raise DocumentError(f"not JSON: {error}") from error


def _refuse_deep(document: bytes) -> None:
    """Raise if arrays and objects are nested more than ``MAX_DEPTH`` deep, whatever else is wrong.

    Everything but brackets outside of strings is taken away, and then, level by level, the
    innermost pairs. What is left then is not balanced, which the parser tells better.
    """
    if b"\\" in document:
        document = _ESCAPE.sub(b"", document)
    # Two quotes with nothing in between are a string without brackets, or two ends of strings
    # with brackets: without them a bracket is within a string as before.
    brackets = document.translate(_ONE_KIND, _OTHERS).replace(b'""', b"")
    if b'"' in brackets:
        brackets = _STRING.sub(b"", brackets)
    for _ in range(MAX_DEPTH):
        outer = brackets.replace(b"[]", b"")
        if len(outer) == len(brackets):
            break
        brackets = outer
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise DocumentError(f"nested too deeply: more than {MAX_DEPTH} arrays and objects")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS and len(text.lstrip("-")) > _MOST_DIGITS:
        raise DocumentError(f"a number of {len(text)} digits: an integer has at most 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= _MOST_FLOAT_CHARACTERS else math.inf
    if math.isinf(value):
        raise DocumentError(f"a number that is out of range: {text:.40}")
    return value


def objects(value: object, place: str) -> Iterator[JsonObject]:
    """Take *value*, found at *place*, as an array of objects."""
    if not isinstance(value, list):
        raise DocumentError(f"{place or 'the document'}: expected an array, found {_kind(value)}")
    for index, element in enumerate(value):
        yield JsonObject.of(element, f"{place}[{index}]")


def _refuse_constant(name: str) -> Never:
    raise DocumentError(f"not JSON: {name} is no JSON number")


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DocumentError(f"key {_first_doubled(pairs)!r:.80} occurs twice in one object")
    return members


def _first_doubled(pairs: list[tuple[str, object]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no key is doubled")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "an array"
        case _:
            return "an object"
