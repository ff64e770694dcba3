"""Walking over the steps by which the manager changes the disk, and failing at one of them."""

from __future__ import annotations

import enum
import errno
import os
import signal
import sqlite3
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import LayerManagerError
from layermanager.model import Phase
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.model import LayerProgress
    from layermanager.steps import OnStep

_IN_SQLITE: Final = {
    Step.OPEN_DATABASE,
    Step.MIGRATE_DATABASE,
    Step.WRITE_ROW,
    Step.COMMIT_ROWS,
    Step.CLOSE_DATABASE,
}
"""What SQLite does; the rest are system calls of our own."""


class Kind(enum.StrEnum):
    """What happens at a step."""

    SIGKILL = "SIGKILL"
    ENOSPC = "ENOSPC"
    EIO = "EIO"
    EDQUOT = "EDQUOT"
    EROFS = "EROFS"
    EINTR = "EINTR"
    EIO_AND_AGAIN = "EIO and the same manager again"
    READ_ONLY_FROM_THEN_ON = "EROFS from then on"
    FULL_FROM_THEN_ON = "ENOSPC from then on"

    @property
    def lasts(self) -> bool:
        """Whether every later step fails too."""
        return self in {Kind.READ_ONLY_FROM_THEN_ON, Kind.FULL_FROM_THEN_ON}

    @property
    def is_followed_by_another_try(self) -> bool:
        """Whether the manager that met it does the same again."""
        return self is Kind.EIO_AND_AGAIN

    def error(self, step: Step) -> Exception:
        """What the call that *step* announces would raise."""
        number = getattr(errno, self.partition(" ")[0])
        if step in _IN_SQLITE:
            return _sqlite_error(number, step)
        return OSError(number, os.strerror(number), f"at the step {step!r}")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at one announcement of a step.

    Attributes:
        kind: what happens.
        step: at which step.
        occurrence: at which announcement of that step, counted from 1.
    """

    kind: Kind
    step: Step
    occurrence: int

    def __str__(self) -> str:
        return f"{self.kind} at `{self.step}` #{self.occurrence}"


class Walk:
    """An ``OnStep`` that notes the steps it is told of, and has *fault* happen at one of them.

    It takes notice only within ``watching``.

    Args:
        fault: what is to happen.
        mark: is told of every step.

    Attributes:
        steps: the steps so far.
        was_met: whether the fault has happened.
        is_watching: whether it takes notice.
    """

    def __init__(self, fault: Fault | None = None, mark: OnStep = unannounced) -> None:
        self.steps: list[Step] = []
        self.was_met = False
        self._fault = fault
        self._mark = mark
        self.is_watching = False
        self._lock = threading.Lock()
        self._met_callbacks: list[Callable[[], None]] = []

    def __call__(self, step: Step) -> None:
        self._mark(step)
        with self._lock:
            if not self.is_watching:
                return
            self.steps.append(step)
            fault = self._fault
            if fault is None or not self._is_due(fault, step):
                return
            self.was_met = True
        say("met")
        if fault.kind is Kind.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        for callback in self._met_callbacks:
            callback()
        raise fault.kind.error(step)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take notice of the steps within the context."""
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False

    def do(self, operation: Callable[[], object]) -> None:
        """Do *operation* and watch it; where the fault is of that kind, do it once more after."""
        try:
            with self.watching():
                operation()
        except LayerManagerError:
            if self._fault is not None and self._fault.kind.is_followed_by_another_try:
                operation()
                say("done")
            raise

    def when_met(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the fault happens, if the process lives on."""
        self._met_callbacks.append(callback)

    def on_progress(self, progress: LayerProgress) -> None:
        """Say at once, to whoever reads the standard output, what is reported as installed."""
        if progress.phase is Phase.INSTALLED:
            say(f"installed {progress.desired.digest}")

    def _is_due(self, fault: Fault, step: Step) -> bool:
        if self.was_met:
            return fault.kind.lasts
        return step == fault.step and Counter(self.steps)[step] == fault.occurrence


def say(line: str) -> None:
    """Write a line to standard output at once and as a whole, whatever other threads write."""
    os.write(1, f"{line}\n".encode())


def _sqlite_error(number: int, step: Step) -> sqlite3.OperationalError:
    """What SQLite makes of *number*; an interrupted call it repeats until it fails otherwise."""
    if number == errno.ENOSPC:
        code, message = sqlite3.SQLITE_FULL, "database or disk is full"
    elif number == errno.EROFS and step is Step.OPEN_DATABASE:
        code, message = sqlite3.SQLITE_CANTOPEN, "unable to open database file"
    elif number == errno.EROFS:
        code, message = sqlite3.SQLITE_READONLY, "attempt to write a readonly database"
    else:
        code, message = sqlite3.SQLITE_IOERR, "disk I/O error"
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error
