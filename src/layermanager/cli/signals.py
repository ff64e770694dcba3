"""Signals as something to wait for."""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_MOST_BYTES: Final = 4096


class Signals:
    """Hears signals within its context, whichever thread takes them; for the main thread.

    A handler could interrupt anything, and a signal that comes between the look for one and the
    wait would not end the wait. So all that is done at once is that the number is written to a
    pipe (``signal.set_wakeup_fd``).

    Args:
        numbers: which.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._stack = ExitStack()
        self._reader = -1

    def __enter__(self) -> Self:
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, self._reader)
        self._stack.callback(os.close, writer)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._stack.callback(signal.set_wakeup_fd, before)
        for number in self._numbers:
            # Not SIG_IGN: that would be inherited by children, and nothing would be written.
            self._stack.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> frozenset[signal.Signals]:
        """Those that came since the last time, or come within *seconds*; none if none does."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return frozenset()
        heard = {signal.Signals(number) for number in os.read(self._reader, _MOST_BYTES)}
        return frozenset(heard & set(self._numbers))

    def end_at_the_next(self, numbers: Iterable[signal.Signals]) -> None:
        """Have another one of *numbers* end the process at once."""
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
