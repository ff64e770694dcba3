"""Threads that must live: each is started again when it fails, and can be asked how it is."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.boundary import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from layermanager.boundary import Guard
    from layermanager.protocols import Clock

_FIRST_DELAY_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 60.0


class LivingThreads:
    """Registry of the threads that must live; safe from any thread.

    Args:
        guard: notes what ends a loop that must not end.
        clock: the time.

    Attributes:
        guard: that guard.
    """

    def __init__(self, guard: Guard, clock: Clock) -> None:
        self.guard = guard
        self._clock = clock
        self._lock = threading.Lock()
        self._threads: list[LivingThread] = []

    def thread(
        self, name: str, loop: Callable[[], None], *, longest: timedelta | None = None
    ) -> LivingThread:
        """Return a thread, not yet started, that calls *loop* until that returns.

        Args:
            name: what it is called, in the log and by ``troubles``.
            loop: is called again, after a wait that grows, whenever it raises an ``Exception``.
            longest: how long one piece of its work may take at most; None where nothing is known
                of that.
        """
        return LivingThread(name, loop, self, longest)

    def troubles(self) -> tuple[str, ...]:
        """Return the threads that are dead, failing or stuck, each with what is wrong with it."""
        with self._lock:
            threads = tuple(self._threads)
        return tuple(f"{one.name} {trouble}" for one in threads if (trouble := one.trouble))

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Wait until *event* is set, at most *seconds*."""
        self._clock.wait(event, seconds)

    def monotonic(self) -> float:
        """Return the seconds of the clock."""
        return self._clock.monotonic()

    def add(self, thread: LivingThread) -> None:
        """Watch *thread* from now on."""
        with self._lock:
            self._threads.append(thread)

    def remove(self, thread: LivingThread) -> None:
        """Watch *thread* no more; one that is not watched is no error."""
        with self._lock:
            if thread in self._threads:
                self._threads.remove(thread)


class LivingThread:
    """A thread that must live until its loop returns; ``LivingThreads.thread`` makes it.

    Attributes:
        name: what it is called.
    """

    def __init__(
        self,
        name: str,
        loop: Callable[[], None],
        registry: LivingThreads,
        longest: timedelta | None,
    ) -> None:
        self.name = name
        self._loop = loop
        self._registry = registry
        self._longest = longest
        self._busy_since: float | None = None
        self._is_failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start it.

        Raises:
            ExhaustedError: there are no more threads.
        """
        with self._registry.guard.failing(Boundary.THREAD, f"thread {self.name}"):
            self._thread.start()
        self._registry.add(self)

    def close(self) -> None:
        """Return when the loop, which was told to end, has returned; it is not called again."""
        self._registry.remove(self)
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time within the context as one piece of the loop's work."""
        self._busy_since = self._registry.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    @property
    def trouble(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if not self._thread.is_alive():
            return "is dead"
        if self._is_failing:
            return "fails, and is started again"
        since = self._busy_since
        if since is None or self._longest is None:
            return ""
        longest = self._longest.total_seconds()
        return f"is stuck for more than {longest:g} s" if self._age(since) > longest else ""

    def _age(self, since: float) -> float:
        return self._registry.monotonic() - since

    def _run(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while not self._closing.is_set():
            began = self._registry.monotonic()
            self._is_failing = False
            with self._registry.guard.containing(Boundary.THREAD, f"thread {self.name}"):
                self._loop()
                self._registry.remove(self)  # it was told to end
                return
            self._is_failing = True
            if self._age(began) > _LONGEST_DELAY_SECONDS:
                delay = _FIRST_DELAY_SECONDS  # it went well for a while
            self._registry.wait(self._closing, delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
