"""The tables of mounts of all mount namespaces of the machine, and overlays that are in none.

A namespace shows in the ``mountinfo`` of each process in it; one of them will do, but for those
with a root directory of their own: they see what is below it only. A namespace without a process
lasts as long as its file is mounted somewhere; it is entered to look.

Processes come and go meanwhile. One that has gone has no mounts; what it mounted for others is in
their namespaces.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.errors import StoreError
from layermanager.use.mountinfo import Mount, parse_line
from layermanager.use.overlay import device_text, with_own_directory

# There is much to look at, again and again: paths are texts here, which takes a tenth of the time.
# ruff: noqa: PTH112, PTH116, PTH208

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PROC: Final = Path("/proc")
_MOUNT_NUMBER: Final = re.compile(rb"mnt_id:\s*(\d+)")
_INFORMATION_BYTES: Final = 512  # it comes before what may be long
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EINVAL)
"""It has ended; ``EINVAL``: just now, or what was a namespace's file is a plain one again."""
_NAMESPACE_FILES: Final = b"nsfs"
_MOUNT_NAMESPACE: Final = b"mnt:["


@dataclass(frozen=True, slots=True)
class MountTable:
    """The mounts of a namespace, as one process sees them.

    Attributes:
        process: the process.
        root: its root directory, by a path of ours; None where that cannot be entered.
        mounts: the mounts, in the order of the table.
    """

    process: int
    root: Path | None
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class DetachedOverlay:
    """An overlay that is in no table of mounts.

    Attributes:
        device: its ``st_dev``, as ``major:minor``.
        process: one that uses it.
        directory: a path of ours to one of its directories; None if that process only has a file
            of it open, which leads to nothing else.
    """

    device: str
    process: int
    directory: str | None


def mount_tables() -> list[MountTable]:
    """The tables of all mount namespaces, as far as this user may see them.

    Raises:
        StoreError: one cannot be read, so that it is not known what is mounted.
    """
    tables = []
    seen: set[object] = set()
    for process in _processes():
        view = _view(process)
        if view is not None and view in seen:
            continue
        text = _read_table(process)
        # Another user's namespaces cannot be told apart by an ordinary user; their tables can.
        key = view or text
        if text and key not in seen:
            seen.add(key)
            root = _PROC / str(process) / "root" if view else None
            tables.append(MountTable(process, root, _parsed(text)))
    tables += _tables_without_processes(tables)
    return tables


def mounts_seen_by(process: int) -> tuple[Mount, ...]:
    """The mounts that *process* sees now, in the order of the table; none if it has ended.

    Raises:
        StoreError: they cannot be read.
    """
    return _parsed(_read_table(process))


def detached_overlays(tables: Collection[MountTable]) -> list[DetachedOverlay]:
    """The overlays that are in no table, but in use, as far as this user may see that.

    They were unmounted lazily, or were never put at a place, and a process has a file or directory
    of them open.
    """
    numbers = {mount.number for table in tables for mount in table.mounts}
    devices = {mount.device for table in tables for mount in table.mounts}
    device_of: dict[int, str | None] = {}
    found: dict[str, DetachedOverlay] = {}
    for process in _processes():
        for number, path in _open_mounts(process):
            if number in numbers:
                continue
            if number not in device_of:
                device_of[number] = _overlay_device(path)
            device = device_of[number]
            if device is None or device in devices:
                continue
            if device not in found or found[device].directory is None:
                directory = path if os.path.isdir(path) else None
                found[device] = DetachedOverlay(device, process, directory)
    return list(found.values())


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    except OSError as error:
        raise StoreError(f"cannot tell what is mounted: {error}") from error


def _view(process: int) -> tuple[int, int, int] | None:
    """What the process sees: its namespace and root directory; None if that is another's secret."""
    try:
        namespace = os.stat(f"{_PROC}/{process}/ns/mnt")
        root = os.stat(f"{_PROC}/{process}/root")
    except OSError:
        return None
    return namespace.st_ino, root.st_dev, root.st_ino


def _read_table(process: int) -> bytes:
    """The table as text, empty if the process is gone or is hidden from ordinary users."""
    try:
        return (_PROC / str(process) / "mountinfo").read_bytes()
    except OSError as error:
        if error.errno in _GONE or (isinstance(error, PermissionError) and os.geteuid() != 0):
            return b""
        raise StoreError(f"cannot tell what is mounted: {error}") from error


def _parsed(text: bytes) -> tuple[Mount, ...]:
    try:
        return tuple(parse_line(line) for line in text.splitlines())
    except ValueError as error:
        raise StoreError(f"cannot tell what is mounted: {error}") from error


def _tables_without_processes(tables: Collection[MountTable]) -> Iterator[MountTable]:
    """The tables of namespaces that no process is in, and that are mounted as files."""
    known = {
        _namespace_name(Path(f"/proc/{table.process}/ns/mnt")) for table in tables if table.root
    }
    for table in tables:
        for mount in table.mounts:
            if (
                table.root is None
                or mount.kind != _NAMESPACE_FILES
                or not mount.root.startswith(_MOUNT_NAMESPACE)
                or mount.root in known
            ):
                continue
            known.add(mount.root)
            file = table.root / os.fsdecode(mount.mount_point).lstrip("/")
            yield MountTable(table.process, None, _parsed(_table_inside(file)))


def _namespace_name(path: Path) -> bytes:
    try:
        return os.fsencode(path.readlink())
    except OSError:
        return b""


def _table_inside(file: Path) -> bytes:
    """Enter the namespace of *file* with a thread that ends there, and read its table."""

    def look() -> bytes:
        with ExitStack() as stack:
            namespace = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
            # There need be no /proc inside.
            thread = os.open("/proc/thread-self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, thread)
            linux.enter_namespace(namespace, linux.CLONE_NEWNS)
            table = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=thread)
            with os.fdopen(table, "rb") as opened:
                return opened.read()

    try:
        return with_own_directory(look)
    except OSError as error:
        if error.errno in _GONE or (isinstance(error, PermissionError) and os.geteuid() != 0):
            return b""
        raise StoreError(f"cannot tell what is mounted in {file}: {error}") from error


def _open_mounts(process: int) -> Iterator[tuple[int, str]]:
    """The mounts, by number, of what a process has open, and a path of each such thing."""
    directory = f"{_PROC}/{process}"
    with suppress(OSError):  # it has ended, or is another user's
        for name in os.listdir(f"{directory}/fdinfo"):
            with suppress(OSError):
                yield _mount_number(f"{directory}/fdinfo/{name}"), f"{directory}/fd/{name}"
    for name in ("cwd", "root", "exe"):
        with suppress(OSError):
            descriptor = os.open(f"{directory}/{name}", os.O_PATH | os.O_CLOEXEC)
            try:
                yield _mount_number(f"{_PROC}/self/fdinfo/{descriptor}"), f"{directory}/{name}"
            finally:
                os.close(descriptor)


def _mount_number(information: str) -> int:
    descriptor = os.open(information, os.O_RDONLY | os.O_CLOEXEC)
    try:
        match = _MOUNT_NUMBER.search(os.read(descriptor, _INFORMATION_BYTES))
    finally:
        os.close(descriptor)
    if match is None:
        raise StoreError("the kernel does not tell the mounts of open files")
    return int(match[1])


def _overlay_device(path: str) -> str | None:
    try:
        if linux.file_system_magic(os.fsencode(path)) != linux.OVERLAYFS_MAGIC:
            return None
        return device_text(os.stat(path).st_dev)
    except OSError:
        return None  # it has been closed in the meantime
