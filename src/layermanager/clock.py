"""The time of the machine."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


class SystemClock:
    """The ``Clock`` of real life."""

    def now(self) -> datetime:
        """The current time, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some moment; setting the date does not change them."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set, at most *seconds*; return whether it is set.

        The time that passes is that of the monotonic clock: setting the machine's date neither
        shortens nor prolongs it. What is longer than the platform can wait, some centuries, is
        waited for as long as it can.
        """
        return event.wait(min(seconds, threading.TIMEOUT_MAX))
