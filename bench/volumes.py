"""Places to write to that nothing was removed from.

Ext4 creates files many times slower for a while after many were removed: it does not reuse an
inode at once whose removal is not on disk yet, and looks at each of them every time. So nothing
is removed between two measurements; each has a file system of its own where that is possible.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_IMAGE_BYTES: Final = 3 * 1024**3
_SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Volume:
    """An empty directory, and the device that it is on if it is there for this one alone.

    Attributes:
        path: the directory.
        device: the block device below it that nobody else uses, or None.
    """

    path: Path
    device: Path | None

    def sync(self) -> None:
        """Write to disk what is still in memory."""
        subprocess.run(["sync", "--file-system", self.path], check=True)

    def device_bytes(self) -> int | None:
        """How many bytes the device was made to write so far, metadata and journal included."""
        if self.device is None:
            return None
        fields = Path(f"/sys/block/{self.device.name}/stat").read_text().split()
        return int(fields[6]) * _SECTOR_BYTES


class Volumes(Protocol):
    """Makes volumes.

    Attributes:
        description: what they are, for the facts above the table.
    """

    description: str

    def fresh(self) -> AbstractContextManager[Volume]:
        """An empty volume, which is gone at the end of the context, or is never used again."""


class LoopVolumes:
    """A new ext4 for each measurement, on a loop device over a sparse file; needs root."""

    description = "a new ext4 for each measurement, on a loop device"

    def __init__(self, scratch: Path) -> None:
        self._image = scratch / "volume.img"
        self._mount_point = scratch / "volume"
        self._mount_point.mkdir()

    @contextmanager
    def fresh(self) -> Iterator[Volume]:
        """Make a file system, and mount it for as long as the context lasts."""
        with self._image.open("xb") as image:
            image.truncate(_IMAGE_BYTES)
        try:
            # All is initialised now, not by the kernel in the midst of a measurement.
            options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            _run("mkfs.ext4", "-q", "-F", "-E", options, self._image)
            with self._attached() as device, self._mounted(device):
                path = self._mount_point / "work"
                path.mkdir()
                volume = Volume(path, device)
                volume.sync()
                yield volume
        finally:
            self._image.unlink()

    @contextmanager
    def _attached(self) -> Iterator[Path]:
        device = Path(_run("losetup", "--find", "--show", self._image))
        try:
            yield device
        finally:
            _run("losetup", "--detach", device)

    @contextmanager
    def _mounted(self, device: Path) -> Iterator[None]:
        _run("mount", "-t", "ext4", device, self._mount_point)
        try:
            yield
        finally:
            _run("umount", self._mount_point)


class DirectoryVolumes:
    """A new directory for each measurement, all of one file system; needs no rights."""

    description = "a new directory for each measurement, in the scratch directory"

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._made = 0

    @contextmanager
    def fresh(self) -> Iterator[Volume]:
        """Make a directory; it stays until the scratch directory is removed."""
        path = self._scratch / f"volume-{self._made}"
        path.mkdir()
        self._made += 1
        volume = Volume(path, device=None)
        volume.sync()  # what the last measurement left in memory is not this one's to write
        yield volume


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
