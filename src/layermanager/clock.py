"""The time of the machine."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.model import ClockReading

if TYPE_CHECKING:
    from collections.abc import Callable

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_SLICE_SECONDS: Final = 60.0


class SystemClock:
    """The ``MachineClock`` of real life."""

    def now(self) -> datetime:
        """The current time, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some moment; setting the date does not change them, sleep stops them."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set, at most *seconds*; return whether it is set.

        Setting the machine's date neither shortens nor prolongs it, and the time that the machine
        sleeps counts. What is longer than the platform can wait, some centuries, is waited for as
        long as it can.
        """
        if seconds >= threading.TIMEOUT_MAX:
            return event.wait(threading.TIMEOUT_MAX)
        return wait_in_slices(event, seconds, _seconds_since_boot)

    def reading(self) -> ClockReading:
        """Return what the clocks show now; what the kernel does not tell counts as unknown."""
        return ClockReading(
            calendar=self.now(),
            boot=_boot_id(),
            since_boot=timedelta(seconds=_seconds_since_boot()),
            is_synchronised=_is_synchronised(),
        )


def wait_in_slices(
    event: threading.Event, seconds: float, seconds_since_boot: Callable[[], float]
) -> bool:
    """Wait until *event* is set, at most *seconds*; return whether it is set.

    No wait of Python notices that the machine slept. So it is cut in slices of a minute, and ends
    so much late at most.

    Args:
        event: the event.
        seconds: the time, counted by *seconds_since_boot*.
        seconds_since_boot: a clock that goes on while the machine sleeps.
    """
    end = seconds_since_boot() + seconds
    while (left := end - seconds_since_boot()) > 0:
        if event.wait(min(left, _LONGEST_SLICE_SECONDS)):
            return True
    return event.is_set()


def _seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # a root directory without /proc
        return ""


def _is_synchronised() -> bool:
    try:
        return linux.is_clock_synchronised()
    except OSError:  # a filter of system calls
        return False
