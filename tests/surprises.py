"""Exceptions that no code foresees, for tests of what stops them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class UnspeakableError(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("this has no text")

    __repr__ = __str__


SURPRISES: Final[dict[str, Callable[[], Exception]]] = {
    "RuntimeError": lambda: RuntimeError("a bug"),
    "MemoryError": MemoryError,
    "OSError": lambda: OSError(errno.ENOTTY, "of a kind that is not declared"),
    "unspeakable": lambda: UnspeakableError("x"),
}
"""What makes each, by its name."""

EXHAUSTED: Final = frozenset({"MemoryError"})
"""The names of those that say that something ran out."""


def made(name: str) -> Exception:
    """The surprise of that *name*."""
    return SURPRISES[name]()
