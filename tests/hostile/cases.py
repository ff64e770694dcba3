"""What a hostile case is, and what can come of one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager.model import Digest, Limits
from layermanager.testing.layers import LayerBuilder, header_block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from layermanager.errors import LayerError

OUTSIDE: Final = f"{tempfile.gettempdir()}/layermanager-canary-{os.getpid()}"
"""Where the files are that no case may touch: an absolute path, for archives that name one.

The layer is unpacked to a directory two levels below, so that ``../../secret`` names the same file
as ``OUTSIDE/secret`` does.
"""

SECRET: Final = f"{OUTSIDE}/secret"

SOME_DIGEST: Final = Digest("sha256:" + "5" * 64)
"""The digest that is desired where a case does not care."""


@dataclass(frozen=True)
class Refusal:
    """The layer is refused with just this class of error, and with these words in its message."""

    error: type[LayerError]
    words: str


Files: TypeAlias = "Mapping[str, str]"
"""Every path below the layer's root with what it is, in the words of ``world.described``."""

Check: TypeAlias = "Callable[[Path], None]"
"""Asserts something about the layer in a directory that the description does not say."""


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: says what is tried.
        data: builds the bytes of the blob or package.
        expected: what comes of it.
        limits: under which limits.
        package_of: the desired digest, when *data* is a package.
        also: checks of what unpacked well.
        needs_root: whether an ordinary user would see something else, such as devices left out.
    """

    name: str
    data: Callable[[], bytes]
    expected: Refusal | Files
    limits: Limits = field(default_factory=Limits)
    package_of: Digest | None = None
    also: tuple[Check, ...] = ()
    needs_root: bool = False


def layer() -> LayerBuilder:
    """An empty layer to add to."""
    return LayerBuilder()


def raw_entry(name: bytes, content: bytes = b"", typeflag: bytes = b"0", **fields: bytes) -> bytes:
    """A member with a header made by hand, whose size is that of *content* unless given."""
    size = {"size": b"%011o\0" % len(content)} | fields
    return header_block(name, typeflag, **size) + padded(content)


def padded(content: bytes) -> bytes:
    """*content* filled up to whole blocks."""
    return content + bytes(-len(content) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One record of a PAX header."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) > len(str(len(rest))):
        length += 1
    return b"%d" % length + rest


def pax(*records: bytes, typeflag: bytes = b"x") -> bytes:
    """A PAX header with *records* as they are; a global one with the typeflag ``g``."""
    return raw_entry(b"PaxHeaders/0", b"".join(records), typeflag)


def base256(value: int, size: int) -> bytes:
    """*value* in GNU tar's binary form, in a field of *size* bytes."""
    encoded = bytearray((value % (1 << (8 * size - 1))).to_bytes(size, "big"))
    encoded[0] |= 0x80
    return bytes(encoded)
