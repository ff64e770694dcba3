"""Values as people read them, at a terminal or in a browser: sizes, ages, digests. All pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SHORT_DIGITS: Final = 12


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
