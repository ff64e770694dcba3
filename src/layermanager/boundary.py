"""Boundaries: where an unexpected exception stops, and what it becomes there.

Every error that is foreseen is a ``LayerManagerError``. Whatever else is raised is a bug, of this
package or of an implementation that it was given, or the process ran out of something. At a
boundary such an exception is logged once with its traceback and counted. Then it either becomes the
failure of the smallest thing that it concerns (``Guard.failing``), or, where the caller's interest
is not the operation's, it ends there (``Guard.containing``). ``KeyboardInterrupt`` and the like
pass: they are no ``Exception``.
"""

from __future__ import annotations

import enum
import errno
import logging
from typing import TYPE_CHECKING, Final, ParamSpec

from layermanager.errors import ExhaustedError, LayerManagerError, UnexpectedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    OnUnexpected = Callable[["Boundary"], None]
    Convert = Callable[[LayerManagerError], LayerManagerError]

Arguments = ParamSpec("Arguments")

_LOGGER: Final = logging.getLogger(__name__)

_MOST_KINDS: Final = 1000
_EXHAUSTED: Final = {
    errno.EMFILE: "file descriptors of this process",
    errno.ENFILE: "file descriptors of this machine",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory of the network",
    errno.ENOLCK: "file locks",
}
_NO_THREAD: Final = "can't start new thread"


class Boundary(enum.StrEnum):
    """The kinds of boundaries, as they are counted."""

    OPERATION = "operation"
    LAYER = "layer"
    IMAGE = "image"
    SOURCE = "source"
    SPACE_PROVIDER = "space-provider"
    REMOVER = "remover"
    ACCOUNTING = "accounting"
    PROGRESS = "on-progress"
    STEP = "on-step"
    OBSERVER = "observer"
    THREAD = "thread"
    POLL = "poll"
    REQUEST = "request"
    CONNECTION = "connection"
    STREAM = "stream"


class Guard:
    """Stops unexpected exceptions; safe from any thread.

    Args:
        on_unexpected: counts them, by boundary; what it raises is logged and goes no further.
    """

    def __init__(self, on_unexpected: OnUnexpected = lambda _: None) -> None:
        self._on_unexpected = on_unexpected
        self._logged: set[object] = set()

    def failing(
        self,
        boundary: Boundary,
        what: str,
        convert: Convert = lambda error: error,
        *,
        passing: tuple[type[Exception], ...] = (),
    ) -> _Failing:
        """Return a context in which an unexpected exception becomes a failure of *what*.

        It is logged, counted and raised as an ``UnexpectedError`` or ``ExhaustedError``. A
        ``LayerManagerError`` passes as it is.

        Args:
            boundary: the kind of place.
            what: names it in the log and in the error.
            convert: may replace the error by one of another kind.
            passing: further exceptions that mean something to who calls, and are raised on.
        """
        return _Failing(self, boundary, what, convert, (LayerManagerError, *passing))

    def containing(
        self, boundary: Boundary, what: str, *, passing: tuple[type[Exception], ...] = ()
    ) -> _Containing:
        """Return a context in which any exception ends: it is logged and counted.

        The same at the same place is logged once, since a callback may fail for each piece of a
        layer.

        Args:
            boundary: the kind of place.
            what: names it in the log.
            passing: exceptions that mean something to who calls, and are raised on.
        """
        return _Containing(self, boundary, what, passing)

    def callback(
        self,
        boundary: Boundary,
        function: Callable[Arguments, None],
        *,
        passing: tuple[type[Exception], ...] = (),
    ) -> Callable[Arguments, None]:
        """Return *function*, of which an exception ends where it is called.

        The other arguments are those of ``containing``.
        """
        containing = self.containing(boundary, f"{boundary} of the caller", passing=passing)

        def guarded(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> None:
            with containing:
                function(*arguments, **keywords)

        return guarded

    def note(self, boundary: Boundary, what: str, error: Exception) -> LayerManagerError:
        """Log and count *error*, and return what it is to the callers of *what*."""
        _LOGGER.error("%s: unexpected %s", what, type(error).__name__, exc_info=error)
        self._count(boundary)
        return _meaning(what, error)

    def note_contained(self, boundary: Boundary, what: str, error: Exception) -> None:
        """Count *error*, and log the first one of its kind at its place."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        line = None if place is None else (place.tb_frame.f_code, place.tb_lineno)
        kind = (boundary, type(error), line)
        if kind not in self._logged:
            if len(self._logged) < _MOST_KINDS:
                self._logged.add(kind)
            _LOGGER.error(
                "%s: unexpected %s; further ones of this kind are only counted",
                what,
                type(error).__name__,
                exc_info=error,
            )
        self._count(boundary)

    def _count(self, boundary: Boundary) -> None:
        with _Logging("what counts unexpected errors"):
            self._on_unexpected(boundary)


def _meaning(what: str, error: Exception) -> LayerManagerError:
    """What *error* is to who asked for *what*; its own text may hold secrets, or not be had."""
    exhausted = _exhausted(error)
    if exhausted:
        return ExhaustedError(f"{what}: out of {exhausted}")
    return UnexpectedError(f"{what}: unexpected {type(error).__name__}")


def _exhausted(error: Exception) -> str:
    """Of what the process, or the machine, has no more; empty where it is not that."""
    match error:
        case MemoryError():
            return "memory"
        case OSError() if error.errno in _EXHAUSTED:
            return _EXHAUSTED[error.errno]
        case RuntimeError() if error.args == (_NO_THREAD,):
            return "threads"
        case _:
            return ""


class _Failing:
    """The context of ``Guard.failing``; it may be entered again and by several threads."""

    __slots__ = ("_boundary", "_convert", "_guard", "_passing", "_what")

    def __init__(
        self,
        guard: Guard,
        boundary: Boundary,
        what: str,
        convert: Convert,
        passing: tuple[type[Exception], ...],
    ) -> None:
        self._guard = guard
        self._boundary = boundary
        self._what = what
        self._convert = convert
        self._passing = passing

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc, Exception) and not isinstance(exc, self._passing):
            raise self._convert(self._guard.note(self._boundary, self._what, exc)) from exc


class _Containing:
    """The context of ``Guard.containing``; it may be entered again and by several threads."""

    __slots__ = ("_boundary", "_guard", "_passing", "_what")

    def __init__(
        self, guard: Guard, boundary: Boundary, what: str, passing: tuple[type[Exception], ...]
    ) -> None:
        self._guard = guard
        self._boundary = boundary
        self._what = what
        self._passing = passing

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(exc, Exception) or isinstance(exc, self._passing):
            return False
        self._guard.note_contained(self._boundary, self._what, exc)
        return True


class _Logging:
    """A context in which any exception ends in the log: the last resort of a guard."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        _LOGGER.error("%s: unexpected %s", self._what, type(exc).__name__, exc_info=exc)
        return True
