"""How long the manager waits for a worker (no I/O)."""

from __future__ import annotations

from typing import Final

_LOWEST_RATE: Final = 32 * 1024
"""Bytes of input a second; a worker on the slowest flash takes in more."""
_LOWEST_GROWTH: Final = 4 * 1024 * 1024
"""Bytes on the disk a second that the input does not account for.

A few bytes of input may be granted thousands of times their size. At the rate of the input they
would hold an operation for days.
"""


class Deadline:
    """The time that one worker may still take.

    Only progress that the manager sees extends it: bytes that the worker took from its pipe, and
    bytes that appeared on the disk. Messages do not. Two bounds hold: without any progress a
    worker ends after *timeout*; with it, the whole layer may take *timeout* and the time that all
    progress takes at the lowest acceptable rates. Time in which the manager waits for something
    else, such as the network, does not count.

    Args:
        timeout: in seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waited = 0.0
        self._stalled = 0.0
        self._allowed = timeout

    @property
    def left(self) -> float:
        """Seconds until the worker is given up; zero or less: it is."""
        return min(self._timeout - self._stalled, self._allowed - self._waited)

    def wait(self, seconds: float) -> None:
        """Count *seconds* in which the manager waited for the worker."""
        self._waited += seconds
        self._stalled += seconds

    def note_taken(self, size: int) -> None:
        """Count *size* bytes that the worker took in."""
        self._advance(size, _LOWEST_RATE)

    def note_growth(self, size: int) -> None:
        """Count *size* bytes that appeared on the disk."""
        self._advance(size, _LOWEST_GROWTH)

    def _advance(self, size: int, lowest_rate: int) -> None:
        if size > 0:
            self._allowed += size / lowest_rate
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
