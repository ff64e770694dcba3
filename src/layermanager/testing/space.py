"""A disk that is as large and as full as a test wants."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from layermanager.space import DiskUsage

if TYPE_CHECKING:
    from pathlib import Path


class SimulatedDisk:
    """A partition in memory: ``Partitions(disk.usage)`` allocates its space.

    Like a real one it refuses what does not fit, so that a test fails where space was promised
    that is not there. Safe from any thread.

    Attributes:
        free_inodes: how many files it says can still be made.
    """

    def __init__(self, total: int, *, device: int = 1) -> None:
        self._total = total
        self._device = device
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self.free_inodes: int | None = None

    def usage(self, path: Path) -> DiskUsage:  # noqa: ARG002 - every path is on this disk
        """Tell how full the disk is, as ``layermanager.space.disk_usage`` does."""
        with self._lock:
            free = self._total - sum(self._files.values())
            return DiskUsage(self._device, self._total, free, self.free_inodes)

    def write(self, name: str, size: int) -> None:
        """Add *size* bytes to the file *name*.

        Raises:
            OSError: the disk is full.
        """
        with self._lock:
            if sum(self._files.values()) + size > self._total:
                raise OSError(errno.ENOSPC, "the simulated disk is full", name)
            self._files[name] = self._files.get(name, 0) + size

    def remove(self, name: str) -> None:
        """Remove the file *name*; one that is not there is no error."""
        with self._lock:
            self._files.pop(name, None)

    @property
    def files(self) -> dict[str, int]:
        """The files and their sizes."""
        with self._lock:
            return dict(self._files)
