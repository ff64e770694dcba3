"""How long the manager waits for a worker (no I/O)."""

from __future__ import annotations

from typing import Final

_LOWEST_RATE: Final = 32 * 1024
"""Bytes a second, of input and of output together; the slowest flash writes more."""


class Deadline:
    """The time that one worker may still take.

    Only progress that the manager sees extends it: bytes that the worker took from its pipe, and
    bytes that appeared on the disk. Messages do not. Two bounds hold: without any progress a
    worker ends after *timeout*; with it, the whole layer may take *timeout* and the time that all
    progress takes at the lowest acceptable rate. Time in which the manager waits for something
    else, such as the network, does not count.

    Args:
        timeout: in seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waited = 0.0
        self._stalled = 0.0
        self._progress = 0

    @property
    def left(self) -> float:
        """Seconds until the worker is given up; zero or less: it is."""
        whole = self._timeout + self._progress / _LOWEST_RATE
        return min(self._timeout - self._stalled, whole - self._waited)

    def wait(self, seconds: float) -> None:
        """Count *seconds* in which the manager waited for the worker."""
        self._waited += seconds
        self._stalled += seconds

    def advance(self, size: int) -> None:
        """Count *size* bytes of progress."""
        if size > 0:
            self._progress += size
            self._stalled = 0.0


class DiskGrowth:
    """What a worker has added to its disk, as far as the free space tells.

    Others write to the disk and remove from it, too. So only the drops of the free space count,
    and no more of them than the worker was granted: it cannot gain time by writing and removing
    the same file over and over.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._counted = 0

    def grown_to(self, free: int, granted: int) -> int:
        """Return the bytes of progress since the last call, when *free* bytes are free now."""
        drop = max(0, self._free - free)
        self._free = free
        counted = min(drop, max(0, granted - self._counted))
        self._counted += counted
        return counted
