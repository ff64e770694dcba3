"""An observer that remembers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layermanager.model import LayerInfo
    from layermanager.observer import Removal


@dataclass(slots=True)
class RecordingObserver:
    """An ``Observer`` that adds up what it is told.

    Attributes:
        fetched_bytes: what came from sources.
        written_bytes: what was written for layers.
        retries: how often was asked anew.
        removals: the layers that are gone, and why, in their order.
    """

    fetched_bytes: int = 0
    written_bytes: int = 0
    retries: int = 0
    removals: list[tuple[LayerInfo, Removal]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def fetched(self, size: int) -> None:
        """Add *size* to the bytes that came."""
        with self._lock:
            self.fetched_bytes += size

    def written(self, size: int) -> None:
        """Add *size* to the bytes that were written."""
        with self._lock:
            self.written_bytes += size

    def retried(self) -> None:
        """Count it."""
        with self._lock:
            self.retries += 1

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """Note which layer is gone, and why."""
        with self._lock:
            self.removals.append((layer, why))
