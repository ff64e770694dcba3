"""Values as people read them at a terminal: tables, sizes. All pure, all within 80 columns."""

from __future__ import annotations

import re
import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager.readable import age_text, escaped, short_digest, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "age_text",
    "columns_of",
    "cut",
    "escaped",
    "padded",
    "parse_duration",
    "parse_size",
    "short_digest",
    "size_text",
    "table",
]

_SIZE: Final = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGTPE])i?)?B?\s*", re.IGNORECASE | re.ASCII
)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,18})\s*(s|min|h|d)?", re.ASCII)
_LONGEST_SECONDS: Final = 1000 * 365 * 86400  # beyond which dates have no name
_GAP: Final = "  "


def parse_size(text: str) -> int:
    """The number of bytes that *text* names: ``500M``, ``1.5 GiB``, ``4096``; units are binary.

    Raises:
        ValueError: it names none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r}; write for example 500M, 2G or 1.5GiB")
    number, prefix = match.groups()
    power = " KMGTPE".index(prefix.upper()) if prefix else 0
    whole, _, fraction = number.partition(".")
    factor = 1 << 10 * power
    return int(whole) * factor + int(fraction or 0) * factor // int(10 ** len(fraction))


def parse_duration(text: str) -> timedelta:
    """The duration that *text* names: ``90`` or ``90s``, ``15min``, ``12h``, ``30d``.

    Raises:
        ValueError: it names none, or more than there can be.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a duration: {text!r}; write for example 90s, 15min, 12h or 30d")
    number, unit = match.groups()
    return timedelta(seconds=min(int(number) * _SECONDS[unit or "s"], _LONGEST_SECONDS))


def columns_of(text: str) -> int:
    """How many columns of a terminal the printable *text* takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(char) for char in text)


def _columns_of(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:  # accents upon the character before
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def cut(text: str, width: int) -> str:
    """*text*, or as much of its beginning as fits into *width* columns, with an ellipsis."""
    if columns_of(text) <= width:
        return text
    taken = 1
    for position, char in enumerate(text):
        taken += _columns_of(char)
        if taken > width:
            return text[:position] + "…"
    return text


def padded(text: str, width: int) -> str:
    """*text* with blanks after it up to *width* columns."""
    return text + " " * (width - columns_of(text))


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, right: frozenset[int]
) -> Iterator[str]:
    """Lines of a table that is at most *width* columns wide, if that can be.

    Where it would be wider, the widest columns of text lose the ends of their cells, down to the
    width of their heads; those in *right*, which are set to the right, and the first one stay
    whole.
    """
    lines = [list(head), *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(columns_of(line[column]) for line in lines) for column in range(len(head))]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for _ in range(excess):
        flexible = [
            column
            for column in range(1, len(head))
            if column not in right and widths[column] > columns_of(head[column])
        ]
        if not flexible:
            break
        widths[max(flexible, key=lambda column: widths[column])] -= 1
    for line in lines:
        cells = [
            _fitted(cell, widths[column], to_the_right=column in right)
            for column, cell in enumerate(line)
        ]
        yield _GAP.join(cells).rstrip()


def _fitted(cell: str, width: int, *, to_the_right: bool) -> str:
    cell = cut(cell, width)
    if to_the_right:
        return " " * (width - columns_of(cell)) + cell
    return padded(cell, width)
