"""Values as people read them, at a terminal, in a log or in a browser. All pure.

Text from outside is kept as it came and escaped where it leaves: every sink calls ``escaped``, so
no other code has to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SHORT_DIGITS: Final = 12


def escaped(text: str) -> str:
    """Return *text* as one line without anything that a terminal or a log reader obeys.

    Printable characters stay. All others are written as escape sequences, as Python writes them:
    control characters, line separators, marks that change the direction of text, surrogates.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def escaped_lines(text: str) -> str:
    """Return *text* with each of its lines escaped; only line feeds end a line."""
    return "\n".join(map(escaped, text.split("\n")))


def size_text(size: int) -> str:
    """A number of bytes with three significant digits: ``1.23 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{size} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def age_text(age: timedelta) -> str:
    """A duration in its largest unit: ``3 d``, ``5 h``, ``12 min``, ``40 s``."""
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def short_digest(digest: str) -> str:
    """The algorithm and the first digits, which name a layer on one node well enough."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:_SHORT_DIGITS]}"
