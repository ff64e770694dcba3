"""The fields of tar headers: numbers, times and names, as they are written in bytes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from layermanager.errors import ArchiveError
from layermanager.readable import escaped

# OCI image specification, layer.md, "Whiteouts": names that mean what is removed.
WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_MARKER: Final = b".wh..wh..opq"

_DECIMAL: Final = re.compile(rb"[0-9]{1,30}")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?")
_NANOSECONDS: Final = 1_000_000_000


def number(field: bytes) -> int:
    """A number of a header block: octal digits, or two's complement if the high bit is set.

    An empty field is 0. The binary form is GNU tar's and star's "base-256".

    Raises:
        ArchiveError: it is something else.
    """
    digits = field.strip(b"\0 ")
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    if not digits.isdigit():
        # What follows a NUL is left over from the writer's buffer: old tars do that.
        digits = field.partition(b"\0")[0].strip(b" ")
    if digits and not digits.isdigit():  # int() would also take signs, underscores and "0o"
        raise _no_number(field)
    try:
        return int(digits or b"0", 8)
    except ValueError:  # an 8 or a 9
        raise _no_number(field) from None


repeated_number: Final = lru_cache(maxsize=256)(number)
"""``number`` for fields that are the same in most headers: mode, owner and group."""


def _no_number(field: bytes) -> ArchiveError:
    return ArchiveError(f"a header field is no number: {field!r}")


def decimal(text: bytes) -> int:
    """A number of a PAX record.

    Raises:
        ArchiveError: it is not made of decimal digits.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ArchiveError(f"a header record is no decimal number: {text[:80]!r}")
    return int(text)


def signed_decimal(text: bytes) -> int:
    """Return a number of a PAX record that may be negative.

    Raises:
        ArchiveError: it is not made of decimal digits after an optional minus sign.
    """
    return -decimal(text[1:]) if text.startswith(b"-") else decimal(text)


def time_ns(text: bytes) -> int:
    """A time of a PAX record in nanoseconds; finer fractions are cut.

    Raises:
        ArchiveError: it is no decimal number of seconds.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ArchiveError(f"a header record is no time: {text[:80]!r}")
    sign, seconds, fraction = match.groups()
    value = int(seconds) * _NANOSECONDS + int((fraction or b"")[:9].ljust(9, b"0"))
    return -value if sign else value


def text(field: bytes) -> bytes:
    """A name of a header block: it ends at the first NUL, or fills the field."""
    return field.partition(b"\0")[0]


def shown(name: bytes) -> str:
    """A name as a person may see it: readable, on one line, with nothing hidden in it."""
    decoded = escaped(name.decode("utf-8", "backslashreplace"))
    return decoded if len(decoded) <= 300 else decoded[:150] + "…" + decoded[-150:]
