"""Something that is done at a time which may still change."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from layermanager.protocols import Clock


class Alarm:
    """Calls a function, in a thread of its own, when it is time; safe from any thread.

    Args:
        name: of the thread.
        call: what to call; it may set the alarm anew.
        clock: the time.
    """

    def __init__(self, name: str, call: Callable[[], None], clock: Clock) -> None:
        self._call = call
        self._clock = clock
        self._due: float | None = None
        self._is_closed = False
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        """Begin to look at the time."""
        self._thread.start()

    def set(self, seconds: float) -> None:
        """Call in so many *seconds*, or earlier if that was set before."""
        with self._lock:
            due = self._clock.monotonic() + seconds
            self._due = due if self._due is None else min(due, self._due)
        self._changed.set()

    def clear(self) -> None:
        """Call at no time, until it is set again."""
        with self._lock:
            self._due = None

    @property
    def time(self) -> datetime | None:
        """When it will call, UTC; None if it will not."""
        with self._lock:
            due = self._due
        if due is None:
            return None
        return self._clock.now() + timedelta(seconds=max(0.0, due - self._clock.monotonic()))

    def close(self) -> None:
        """Call nothing any more, and return when a call that is under way has ended."""
        self._is_closed = True
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._changed.clear()  # before the look: what is set after it sets this again
            if self._is_closed:
                return
            if self._is_due():
                self._call()
                continue
            with self._lock:
                due = self._due
            wait = threading.TIMEOUT_MAX if due is None else due - self._clock.monotonic()
            self._clock.wait(self._changed, max(0.0, wait))

    def _is_due(self) -> bool:
        """Whether to call now; the time is then used up."""
        with self._lock:
            if self._due is None or self._clock.monotonic() < self._due:
                return False
            self._due = None
            return True
