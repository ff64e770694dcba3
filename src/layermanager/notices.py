"""Warnings about conditions that last: each is logged when it begins, not whenever it is met.

An operation may meet the same leftover several times, and so does each later operation.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


class Notices:
    """The conditions that were met in this round and the last one; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: set[str] = set()
        self._now: set[str] = set()

    def begin_round(self) -> None:
        """Forget the conditions that were not met in the round that ends."""
        with self._lock:
            self._before, self._now = self._now, set()

    def warn(self, logger: logging.Logger, message: str) -> None:
        """Log *message*, unless it was logged in this round or has lasted since the last one."""
        with self._lock:
            is_known = message in self._before or message in self._now
            self._now.add(message)
        if not is_known:
            logger.warning("%s", message)
