"""File systems as small and as full as a test wants, mounted for the time of a context."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.linux import sync_file_system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAKE: Final = {
    # No reserve for root: what is full is full.
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_LARGEST_PIECE: Final = 1 << 30


@contextmanager
def tmpfs(mount_point: Path, size: int, *, inodes: int = 0) -> Iterator[Path]:
    """Mount a tmpfs of *size* bytes and as many *inodes*; 0 for enough."""
    mount_point.mkdir()
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", mount_point)
    try:
        yield mount_point
    finally:
        _run("umount", mount_point)


@contextmanager
def disk(mount_point: Path, kind: str, size: int, *options: str) -> Iterator[Path]:
    """Mount a new file system of *size* bytes on a loop device, made with *options*."""
    image = mount_point.with_suffix(".img")
    with image.open("xb") as file:
        file.truncate(size)
    mount_point.mkdir()
    _run(*_MAKE[kind], *options, image)
    _run("mount", "-o", "loop", image, mount_point)
    try:
        yield mount_point
    finally:
        _run("umount", mount_point)
        image.unlink()


@contextmanager
def full(directory: Path, *, free: int) -> Iterator[None]:
    """Have other files of the file system take all but *free* bytes of it."""
    ballast = directory / "ballast"
    settle(directory)
    try:
        with ballast.open("xb") as file:
            piece = _LARGEST_PIECE
            while piece and (surplus := free_bytes(directory) - free) > 0:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, 2), min(piece, surplus))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2
        yield
    finally:
        ballast.unlink()
        settle(directory)


def free_bytes(directory: Path) -> int:
    """What anybody may still write there."""
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def settle(directory: Path) -> None:
    """Wait until what was removed has been given back."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
