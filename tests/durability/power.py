"""Power cuts without pulling a plug: what a disk holds when its power fails, at any moment.

A file system is mounted from a disk that records all that it is told (``disk``). What the disk held
at a moment is then made from the record: an image, which is mounted as after a power cut, so that
its journal is replayed. Nothing is in it that was in the machine's memory only.

Two memories lose what they hold in a power cut. One is the kernel's: dirty pages, and the journal's
transaction that is still open. Of these the record knows nothing, since the disk was never told.
The other is the disk's own cache. A disk answers a write when it is there, and may keep it there,
and write in any order, until it is told to flush. So an image has all writes up to the last flush,
and of those after it (``Loss``) all, none, or a random choice of sectors: of one write some may be
lost and others not. A sector, of 4096 bytes as the disk says, is written wholly or not at all.

A reflink of a loop device's backing file, as another way to have the disk of one moment, is the
case that the disk's cache loses nothing; but then it would not show a flush that was forgotten, and
it can be taken only at moments when somebody takes it, not between any two writes.
dm-log-writes does the same as this recording disk, where the kernel has a device mapper.

A write that was answered before a flush was recorded counts as flushed. A disk could still lose it
if the flush had been sent before the write was answered; that case is left out, in favour of the
file system.

The second kind of cut, ``shut_down``, has ext4 or xfs itself end at once without writing its log.
"""

from __future__ import annotations

import enum
import fcntl
import os
import random
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from durability.disk import Entry, Kind, served, write_zeroes
from layermanager import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Result = TypeVar("Result")

_SECTOR_BYTES: Final = 4096
_DISK_BYTES: Final = 512 * 1024 * 1024

# XFS_IOC_GOINGDOWN, or EXT4_IOC_SHUTDOWN, and its flag *_GOING_FLAGS_NOLOGFLUSH.
_SHUT_DOWN: Final = 0x8004587D
_WITHOUT_LOG: Final = struct.pack("=I", 2)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A kind of file system.

    Attributes:
        name: as mount(8) calls it.
        make: the command that makes one in an image.
        check: the command that looks for damage in an image and mends nothing.
    """

    name: str
    make: tuple[str, ...]
    check: tuple[str, ...]


EXT4: Final = FileSystem(
    "ext4",
    # All is initialised now, not by the kernel while it is recorded.
    ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    ("e2fsck", "-f", "-n"),
)
XFS: Final = FileSystem("xfs", ("mkfs.xfs", "-q", "-s", "size=4096"), ("xfs_repair", "-n"))
BTRFS: Final = FileSystem("btrfs", ("mkfs.btrfs", "-q"), ("btrfs", "check", "--readonly"))


class Loss(enum.Enum):
    """What the disk's cache loses of the writes since the last flush."""

    NOTHING = "nothing"
    SECTORS = "some sectors"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut.

    Attributes:
        position: when, as a position in the record of the disk.
        loss: what the disk's cache lost.
        seed: of the choice of the sectors that were lost.
    """

    position: int
    loss: Loss
    seed: int


def any_cut(generator: random.Random, positions: Sequence[int]) -> Cut:
    """A cut at one of *positions*."""
    return Cut(generator.choice(positions), generator.choice(list(Loss)), generator.getrandbits(32))


@dataclass(frozen=True, slots=True)
class Recording:
    """What a disk was told.

    Attributes:
        base: the image with which it began.
        entries: what it was told then, in order.
    """

    base: Path
    entries: Sequence[Entry]

    def write_image(self, target: Path, cut: Cut) -> None:
        """Make *target* the disk after the power *cut*."""
        generator = random.Random(cut.seed)  # noqa: S311 - no secret
        told = [entry for entry in self.entries if entry.end <= cut.position]
        flushes = [number for number, entry in enumerate(told) if entry.kind is Kind.FLUSH]
        flushed = flushes[-1] if flushes else 0
        _copy_image(self.base, target)
        with target.open("r+b", buffering=0) as disk:
            for entry in told[:flushed]:
                _write(disk.fileno(), entry, 0, entry.length)
            for entry in told[flushed:]:
                for start in range(0, entry.length, _SECTOR_BYTES):
                    if _survives(cut.loss, generator):
                        _write(disk.fileno(), entry, start, _SECTOR_BYTES)


def with_own_mounts(do: Callable[[], Result]) -> Result:
    """Call *do* in a thread of which all mounts are its own, and those of processes it starts.

    Else a process that makes a mount namespace at that moment, such as the jail of another test,
    gets a copy of the mount, and the file system stays mounted as long as that one lives.
    """

    def do_apart() -> Result:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(b"none", b"/", linux.MS_REC | linux.MS_PRIVATE)
        return do()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(do_apart).result()


class Machine:
    """A machine with one file system, which is always mounted at the same place.

    Args:
        directory: where it is made, in memory best: images are copied there again and again.
        file_system: which kind.

    It mounts and unmounts in the thread that calls: within ``with_own_mounts``.

    Attributes:
        mount_point: where it is mounted.

    Raises:
        OSError, subprocess.CalledProcessError: this is not to be had here; from every method.
    """

    def __init__(self, directory: Path, file_system: FileSystem) -> None:
        self.mount_point = directory / "mounted"
        self.file_system = file_system
        self._directory = directory
        self._disk = directory / "disk"
        self.mount_point.mkdir()
        self._disk.touch()

    def new_image(self, name: str) -> Path:
        """A disk with an empty file system."""
        image = self._directory / name
        with image.open("xb") as file:
            file.truncate(_DISK_BYTES)
        subprocess.run([*self.file_system.make, image], check=True, capture_output=True)
        return image

    @contextmanager
    def mounted(self, image: Path) -> Iterator[None]:
        """Mount *image*, which has been unmounted, or shut down, or is of a power cut."""
        with self._mounted(image):
            yield

    @contextmanager
    def recorded(self, image: Path, record: Path) -> Iterator[None]:
        """Mount a disk that begins as *image*, and write down in *record* what it is told."""
        live = image.with_suffix(".live")
        _copy_image(image, live)
        with served(live, record, self._disk), self._mounted(self._disk):
            yield
        live.unlink()

    def faults(self, image: Path) -> str:
        """What the file system's own check finds wrong in *image*; nothing if it is clean."""
        checked = subprocess.run(
            [*self.file_system.check, image], check=False, capture_output=True, text=True
        )
        return "" if checked.returncode == 0 else checked.stdout + checked.stderr

    @contextmanager
    def _mounted(self, backing: Path) -> Iterator[None]:
        attach = ["losetup", "--find", "--show", "--sector-size", str(_SECTOR_BYTES)]
        device = subprocess.run(
            [*attach, backing], check=True, capture_output=True, text=True
        ).stdout.strip()
        mount = ["mount", "-t", self.file_system.name]
        try:
            subprocess.run([*mount, device, self.mount_point], check=True, capture_output=True)
            try:
                yield
            finally:
                subprocess.run(["umount", self.mount_point], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


def shut_down(directory: Path) -> None:
    """End the ext4 or xfs of *directory* at once: its log is not written, all calls fail.

    What its memory alone held is lost when it is unmounted and mounted again.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUT_DOWN, _WITHOUT_LOG)
    finally:
        os.close(descriptor)


def _survives(loss: Loss, generator: random.Random) -> bool:
    match loss:
        case Loss.NOTHING:
            return True
        case Loss.EVERYTHING:
            return False
        case Loss.SECTORS:
            return generator.random() < 0.5


def _write(disk: int, entry: Entry, start: int, length: int) -> None:
    """Do to *disk* what *entry* says of *length* bytes from *start* on, if there are so many."""
    if entry.kind is Kind.WRITE:
        os.pwrite(disk, entry.data[start : start + length], entry.offset + start)
    elif entry.kind is Kind.ZEROES:
        write_zeroes(disk, entry.offset + start, min(length, entry.length - start))


def _copy_image(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
