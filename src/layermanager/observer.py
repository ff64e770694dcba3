"""Being told what an operation does besides how far it is, as for metrics."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from layermanager.boundary import Boundary, Guard

if TYPE_CHECKING:
    from layermanager.model import LayerInfo


class Removal(enum.StrEnum):
    """Why a cached layer was removed."""

    EVICTED = "evicted"
    """Its space was needed."""
    EXPIRED = "expired"
    """Its time to live was over."""
    REQUESTED = "requested"
    """Somebody wanted space to be free."""


class Observer(Protocol):
    """Is told, from any thread, in the middle of what goes on: it must neither block nor raise."""

    def fetched(self, size: int) -> None:
        """*size* bytes came from a source, be they of use or not."""

    def written(self, size: int) -> None:
        """A layer takes *size* bytes more on disk, whether it will be complete or not.

        Of one that fails, what it wrote after it asked for space for the last time is not known.
        """

    def retried(self) -> None:
        """A source failed and is, or another one is, asked again; or a layer is begun anew."""

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """A cached layer is gone."""


@runtime_checkable
class UnexpectedErrorObserver(Protocol):
    """Optional part of an observer: it counts unexpected errors, too."""

    def unexpected(self, boundary: Boundary) -> None:
        """Count an exception that was not foreseen, and stopped at that kind of *boundary*.

        Its traceback is in the log.
        """


def guard_for(observer: Observer) -> Guard:
    """Return a guard that counts with *observer*, if that wants to know."""
    if isinstance(observer, UnexpectedErrorObserver):
        return Guard(observer.unexpected)
    return Guard()


def guarded(observer: Observer, guard: Guard) -> Observer:
    """Return *observer*, of which an exception fails nothing: *guard* notes it."""
    return observer if observer is UNOBSERVED else _GuardedObserver(observer, guard)


class _GuardedObserver:
    def __init__(self, observer: Observer, guard: Guard) -> None:
        self._observer = observer
        self._containing = guard.containing(Boundary.OBSERVER, "the observer")

    def fetched(self, size: int) -> None:
        with self._containing:
            self._observer.fetched(size)

    def written(self, size: int) -> None:
        with self._containing:
            self._observer.written(size)

    def retried(self) -> None:
        with self._containing:
            self._observer.retried()

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        with self._containing:
            self._observer.removed(layer, why)


class _Unobserved:
    def fetched(self, size: int) -> None:
        """Tell nobody."""

    def written(self, size: int) -> None:
        """Tell nobody."""

    def retried(self) -> None:
        """Tell nobody."""

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """Tell nobody."""


UNOBSERVED: Final[Observer] = _Unobserved()
"""The observer where nobody wants to know."""
