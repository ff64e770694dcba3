"""An alarm clock: it calls a function at a time which may still change.

The time that the machine sleeps counts.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager.ages import elapsed
from layermanager.boundary import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from layermanager.living import LivingThreads
    from layermanager.protocols import Clock

_SECONDS_AFTER_FAILURE: Final = 60.0


class Alarm:
    """Calls a function, in a thread of its own, when it is time; safe from any thread.

    A call that raises is noted, and the function is called again a minute later unless the alarm
    was set to an earlier time: whatever happens, an alarm that was needed does not fall silent.

    Args:
        name: of the thread.
        call: what to call; it may set the alarm again.
        clock: the time.
        threads: watches the thread.
        longest: how long a call may take at most.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], None],
        clock: Clock,
        threads: LivingThreads,
        *,
        longest: timedelta,
    ) -> None:
        self._call = call
        self._clock = clock
        self._due: float | None = None
        self._is_closed = False
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._guard = threads.guard
        self._thread = threads.thread(name, self._run, longest=longest)

    def start(self) -> None:
        """Begin to look at the time."""
        self._thread.start()

    def set(self, seconds: float) -> None:
        """Call in so many *seconds*, or earlier if that was set before."""
        with self._lock:
            due = elapsed(self._clock) + seconds
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
        return self._clock.now() + timedelta(seconds=max(0.0, due - elapsed(self._clock)))

    def close(self) -> None:
        """Call nothing any more, and return when a call that is under way has ended."""
        self._is_closed = True
        self._changed.set()
        self._thread.close()

    def _run(self) -> None:
        while True:
            self._changed.clear()  # before the look: what is set after it sets this again
            if self._is_closed:
                return
            if self._is_due():
                self._call_once()
                continue
            with self._lock:
                due = self._due
            wait = threading.TIMEOUT_MAX if due is None else due - elapsed(self._clock)
            self._clock.wait(self._changed, max(0.0, wait))

    def _call_once(self) -> None:
        with (
            self._thread.working(),
            self._guard.containing(Boundary.THREAD, f"thread {self._thread.name}"),
        ):
            self._call()
            return
        self.set(_SECONDS_AFTER_FAILURE)

    def _is_due(self) -> bool:
        """Whether to call now; the time is then used up."""
        with self._lock:
            if self._due is None or elapsed(self._clock) < self._due:
                return False
            self._due = None
            return True
