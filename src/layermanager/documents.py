"""Reading JSON documents that somebody else wrote, with errors that name the place.

One small reader serves every document: the configuration, the desired layers, the package's
descriptor. The standard library parses; a validating library would cost every start more time
and memory than these few keys are worth (docs/dependencies.md).
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Never, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Default = TypeVar("Default")

_UNUSABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


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
        self, key: str, default: Default, *, minimum: int = 0, maximum: int | None = None
    ) -> int | Default:
        """The integer at *key*, within its bounds, or *default*."""
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "an integer", value)
        if value < minimum or (maximum is not None and value > maximum):
            bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
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
        DocumentError: *document* is not JSON.
    """
    try:
        if isinstance(document, bytes):
            # Only UTF-8 (RFC 8259). Left to itself, json would guess, and import other codecs,
            # which nobody can in the unpacker's jail.
            document = document.removeprefix(codecs.BOM_UTF8).decode()
        return json.loads(
            document, parse_constant=_refuse_constant, object_pairs_hook=_unique_members
        )
    except RecursionError:
        raise DocumentError("not JSON that can be read: nested too deeply") from None
    except DocumentError:
        raise
    except ValueError as error:  # JSONDecodeError, or bytes that are no UTF-8
        raise DocumentError(f"not JSON: {error}") from error


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
        keys = [key for key, _ in pairs]
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise DocumentError(f"key {doubled!r:.80} occurs twice in one object")
    return members


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
