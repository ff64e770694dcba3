"""The tables of mounts of all mount namespaces, and what is open on mounts that are in none.

A namespace shows in the ``mountinfo`` of each process in it; one of them will do, but for those
with a root directory of their own: they see what is below it only. A namespace without a process
lasts as long as its file is mounted somewhere; it is entered to look.

Processes come and go meanwhile. One that has gone has no mounts; what it mounted for others is in
their namespaces.

Other users mount file systems that never answer. So only text of ``/proc`` is read here: no path of
another process is followed, but for the files of namespaces, which the caller has followed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager import linux
from layermanager.errors import StoreError
from layermanager.presence import is_directory
from layermanager.use.first_reports import FirstReports
from layermanager.use.layer_places import layer_below, layers_in
from layermanager.use.mountinfo import (
    OVERLAY,
    Mount,
    MountLines,
    TableExcerpt,
    excerpt,
    parse_table,
)
from layermanager.use.overlay import with_own_directory

# There is much to look at, again and again: paths are texts here, which takes a tenth of the time.
# ruff: noqa: PTH115, PTH116, PTH208

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    IsNeeded: TypeAlias = Callable[[Mount], bool]
    TableInside: TypeAlias = Callable[[str, int], TableExcerpt]

_LOGGER: Final = logging.getLogger(__name__)
_LOGGER.addFilter(FirstReports())

_PROC: Final = Path("/proc")
_PROCESS: Final = re.compile(r"[0-9]{1,10}")
_MOUNT_NUMBER: Final = re.compile(rb"mnt_id:\s*([0-9]{1,19})")
_INFORMATION_BYTES: Final = 512  # it comes before what may be long
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EINVAL)
"""It has ended; ``EINVAL``: just now, or what was a namespace's file is a plain one again."""
_NAMESPACE_FILES: Final = b"nsfs"
_MOUNT_NAMESPACE: Final = b"mnt:["
_NS_GET_USERNS: Final = 0xB701
_NS_GET_PARENT: Final = 0xB702
_NS_GET_OWNER_UID: Final = 0xB704
UNKNOWN_OWNER: Final = -1
_NETWORK_KINDS: Final = (b"nfs", b"nfs4", b"9p", b"afs", b"ceph", b"lustre")
"""Their servers are asked whenever an open directory is opened again."""
_LOGGED_BYTES: Final = 160
_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class MountTable:
    """The mounts of a namespace, as one process sees them.

    Attributes:
        process: the process.
        root: its root directory, by a path of ours; None where that cannot be entered.
        mounts: the mounts that are needed, in the order of the table.
        unreadable: lines of the table that cannot be read.
        failure: why the whole table cannot be read; empty if it can.
        is_foreign: whether a user namespace other than ours made the mounts, so that a user
            without any rights may have.
        others: the numbers of the mounts that are not needed.
        owner: the user that made them, by number, if they are foreign.
    """

    process: int
    root: Path | None
    mounts: tuple[Mount, ...] = ()
    unreadable: tuple[bytes, ...] = ()
    failure: str = ""
    is_foreign: bool = True
    others: frozenset[int] = frozenset()
    owner: int = UNKNOWN_OWNER

    @property
    def numbers(self) -> set[int]:
        """The numbers of all mounts."""
        return {mount.number for mount in self.mounts} | self.others


@dataclass(frozen=True, slots=True)
class DetachedFile:
    """A file or directory that is open on a mount that is in no table.

    Attributes:
        mount: the number of the mount.
        process: a process that has it open.
        path: a path of ours to it, below the process in ``/proc``.
        is_foreign: whether the process is another user's.
        owner: that user, by number.
    """

    mount: int
    process: int
    path: str
    is_foreign: bool
    owner: int = UNKNOWN_OWNER


@dataclass(frozen=True, slots=True)
class BoundLayers:
    """Tells which layers a bind mount shows.

    Attributes:
        location: on which device the layers' directory is, and where on it; None if no table tells.
    """

    location: tuple[str, bytes] | None = None

    @classmethod
    def below(cls, layers_dir: Path) -> BoundLayers:
        """Return what tells it of the layers in *layers_dir*.

        Raises:
            OSError: the directory cannot be opened.
            StoreError: it is not known what is mounted.
        """
        try:
            descriptor = os.open(layers_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return cls()
        try:
            number = mount_of(descriptor)
        finally:
            os.close(descriptor)
        path = os.fsencode(os.path.realpath(layers_dir))
        for mount in mounts_seen_by(os.getpid()):
            above = mount.mount_point.rstrip(b"/")
            if mount.number == number and path.startswith(above + b"/"):
                return cls((mount.device, mount.root.rstrip(b"/") + path.removeprefix(above)))
        return cls()

    def names(self, mount: Mount) -> tuple[str, ...]:
        """Return the layers that a bind mount shows, or shows a part of."""
        if self.location is None:
            return tuple(layers_in(mount.root))
        device, above = self.location
        if mount.device != device or not mount.root.startswith(above + b"/"):
            return ()
        return layer_below(mount.root.removeprefix(above + b"/"))


def table_inside(file: str, bound: BoundLayers | None) -> TableExcerpt:
    """Enter the mount namespace of *file*, with a thread that ends there, and read its table.

    The thread may wait for file systems of other users on its way to *file*, for ever.

    Args:
        file: the file.
        bound: tells which bind mounts are needed; None if none are.

    Raises:
        OSError: it cannot be entered.
    """

    def look() -> TableExcerpt:
        with ExitStack() as stack:
            namespace = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
            # There need be no /proc inside.
            thread = os.open("/proc/thread-self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, thread)
            linux.enter_namespace(namespace, linux.CLONE_NEWNS)
            table = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=thread)
            stack.callback(os.close, table)
            return excerpt(_pieces(table), partial(_is_needed, bound))

    return with_own_directory(look)


def mount_tables(
    read_inside: TableInside | None = None,
    bound: BoundLayers | None = None,
) -> list[MountTable]:
    """Return the tables of all mount namespaces, as far as this user may see them.

    They have overlays, bind mounts of layers and what else needs a look. Of other mounts, which
    other users make by the thousand, they have the numbers.

    Args:
        read_inside: as ``table_inside``, but may give up with an ``OSError``; it is also told which
            user owns the namespace in which the file is.
        bound: tells which bind mounts are needed; None if none are.

    Raises:
        StoreError: there is no list of processes, so that it is not known what is mounted.
    """
    tables: list[MountTable] = []
    failed: dict[object, tuple[int, OSError]] = {}
    seen: set[object] = set()
    is_needed = partial(_is_needed, bound)
    for process in _processes():
        view = _view(process)
        if view is not None and view in seen:
            continue
        try:
            read, digest = _read_table(process, is_needed)
        except OSError as error:  # another process of the namespace may be read
            if not _is_gone(error):
                failed.setdefault(view or process, (process, error))
            continue
        # Another user's namespaces cannot be told apart by an ordinary user; their tables can.
        key = view or digest
        if (read.text or read.others) and key not in seen:
            seen.add(key)
            tables.append(_table(process, read, has_view=view is not None))
    unread = [failure for view, failure in failed.items() if view not in seen]
    read_inside = read_inside or (lambda file, _: table_inside(file, bound))
    return [*tables, *_unreadable(unread), *_tables_without_processes(tables, read_inside)]


def _is_needed(bound: BoundLayers | None, mount: Mount) -> bool:
    if mount.kind == OVERLAY or mount.kind in _NETWORK_KINDS:
        return True
    if mount.kind == _NAMESPACE_FILES:
        return mount.root.startswith(_MOUNT_NAMESPACE)
    return bound is not None and bool(bound.names(mount))


def mounts_seen_by(process: int) -> tuple[Mount, ...]:
    """Return the mounts that *process* sees, in the order of the table; none if it has ended.

    Raises:
        StoreError: they cannot be read.
    """
    try:
        read, _ = _read_table(process, lambda _: True)
        return _parsed(read.text).mounts
    except OSError as error:
        if _is_gone(error):
            return ()
        raise StoreError(f"cannot tell what is mounted: {error}") from error


def are_processes_shown() -> bool:
    """Return whether ``/proc`` shows this process, and so the mounts of its namespace.

    It does not where it is not mounted, as in a root directory that is being built.
    """
    return is_directory(_PROC / "self/ns")


def mount_of(descriptor: int) -> int:
    """Return the number of the mount that an open file is on.

    Raises:
        OSError: the kernel does not tell.
    """
    return _mount_number(f"{_PROC}/self/fdinfo/{descriptor}")


def detached_files(tables: Collection[MountTable]) -> list[DetachedFile]:
    """Return what is open on mounts that are in none of *tables*, as far as this user may see.

    Such a mount was unmounted lazily, or was never put at a place.
    """
    mounts = [mount for table in tables for mount in table.mounts]
    known = _numbers_of_the_kernel().union(*(table.numbers for table in tables))
    avoided = tuple({mount.mount_point for mount in mounts if mount.kind in _NETWORK_KINDS})
    found: list[DetachedFile] = []
    for process in _processes():
        opened = []
        for number, path in _open_mounts(process, avoided):
            if number in known:
                continue
            if _is_of_the_kernel(path):
                known.add(number)
            else:
                opened.append((number, path))
        if opened:
            is_foreign = _is_of_another_user(process)
            owner = _owner_of_process(process) if is_foreign else UNKNOWN_OWNER
            found += [
                DetachedFile(number, process, path, is_foreign, owner) for number, path in opened
            ]
    return found


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if _PROCESS.fullmatch(name)]
    except OSError as error:
        raise StoreError(f"cannot tell what is mounted: {error}") from error


def _view(process: int) -> tuple[int, str] | None:
    """Return what the process sees: its namespace and root directory; None if that is hidden.

    The root directory is told by its name: to look at itself may wait for its file system.
    """
    try:
        namespace = os.stat(f"{_PROC}/{process}/ns/mnt")
        root = os.readlink(f"{_PROC}/{process}/root")
    except OSError:
        return None
    return namespace.st_ino, root


def _read_table(process: int, is_needed: IsNeeded) -> tuple[TableExcerpt, bytes]:
    """Return what is needed of the table of a process, and a digest of the whole table.

    Raises:
        OSError: it cannot be read, as when the process is gone or is hidden from ordinary users.
    """
    digest = hashlib.sha256()

    def hashed(pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            digest.update(piece)
            yield piece

    table = os.open(f"{_PROC}/{process}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return excerpt(hashed(_pieces(table)), is_needed), digest.digest()
    finally:
        os.close(table)


def _pieces(table: int) -> Iterator[bytes]:
    while piece := os.read(table, _READ_BYTES):
        yield piece


def _unreadable(failures: Collection[tuple[int, OSError]]) -> Iterator[MountTable]:
    """Return one table in place of those that cannot be read."""
    for process, error in failures:
        reason = error.strerror or str(error)
        if len(failures) > 1:
            reason = f"{reason}; and of {len(failures) - 1} more processes"
        _LOGGER.warning("cannot read the mounts of process %d: %s", process, reason)
        yield MountTable(process, None, failure=reason)
        return


def _table(process: int, read: TableExcerpt, *, has_view: bool) -> MountTable:
    lines = _parsed(read.text)
    owner = _foreign_owner(f"{_PROC}/{process}/ns/mnt", _NS_GET_USERNS)
    directory = _PROC / str(process)
    return MountTable(
        process=process,
        root=directory / "root" if has_view else None,
        mounts=lines.mounts,
        unreadable=lines.unreadable,
        is_foreign=owner is not None,
        others=read.others,
        owner=UNKNOWN_OWNER if owner is None else owner,
    )


def _parsed(text: bytes) -> MountLines:
    lines = parse_table(text)
    for line in lines.unreadable:
        _LOGGER.warning("cannot read a line of a table of mounts: %r", line[:_LOGGED_BYTES])
    return lines


def _foreign_owner(file: str, *steps: int) -> int | None:
    """Return who made the user namespace that *steps* from *file* lead to; None if it is ours.

    A user with subordinate users can make namespaces by each of these, but only within one that
    this user made: that one counts. Those that root makes, as for containers, may each hold another
    user: in place of root it is the namespace, as a negative number.
    """
    with ExitStack() as stack:
        try:
            namespace = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
            for step in steps:
                namespace = fcntl.ioctl(namespace, step)
                stack.callback(os.close, namespace)
            ours = os.stat("/proc/self/ns/user").st_ino
            if os.fstat(namespace).st_ino == ours:
                return None
            while True:
                parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
                stack.callback(os.close, parent)
                if os.fstat(parent).st_ino == ours:
                    owner = fcntl.ioctl(namespace, _NS_GET_OWNER_UID, bytes(4))
                    user = int.from_bytes(owner, sys.byteorder)
                    return user or -os.fstat(namespace).st_ino
                namespace = parent
        except OSError:
            return UNKNOWN_OWNER


def _owner_of_process(process: int) -> int:
    """Return the user that answers for a process of another user."""
    owner = _foreign_owner(f"{_PROC}/{process}/ns/user")
    if owner is not None:
        return owner
    try:
        return os.stat(f"{_PROC}/{process}").st_uid
    except OSError:
        return UNKNOWN_OWNER


def _is_of_another_user(process: int) -> bool:
    try:
        return os.stat(f"{_PROC}/{process}").st_uid != os.geteuid()
    except OSError:
        return True


def _tables_without_processes(
    tables: Collection[MountTable], read_inside: TableInside
) -> Iterator[MountTable]:
    """Return the tables of namespaces that no process is in, and that are mounted as files."""
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
            file = str(table.root) + os.fsdecode(mount.mount_point)
            try:
                read = read_inside(file, table.owner)
            except OSError as error:
                if not _is_gone(error):
                    reason = error.strerror or str(error)
                    _LOGGER.warning("cannot read the mounts of namespace %r: %s", file, reason)
                    if not table.is_foreign:
                        yield MountTable(table.process, None, failure=reason)
                continue
            lines = _parsed(read.text)
            yield MountTable(
                table.process, None, lines.mounts, lines.unreadable, others=read.others
            )


def _is_gone(error: OSError) -> bool:
    return error.errno in _GONE or (isinstance(error, PermissionError) and os.geteuid() != 0)


def _namespace_name(path: Path) -> bytes:
    try:
        return os.fsencode(path.readlink())
    except OSError:
        return b""


def _open_mounts(process: int, avoided: tuple[bytes, ...]) -> Iterator[tuple[int, str]]:
    """Return the mounts, by number, of what a process has open, and a path of each such thing.

    Args:
        process: the process.
        avoided: mount points that are in a table, and whose file systems are not to be asked.
    """
    directory = f"{_PROC}/{process}"
    with suppress(OSError):  # it has ended, or is another user's
        for name in os.listdir(f"{directory}/fdinfo"):
            with suppress(OSError):
                yield _mount_number(f"{directory}/fdinfo/{name}"), f"{directory}/fd/{name}"
    for name in ("cwd", "root", "exe"):
        path = f"{directory}/{name}"
        with suppress(OSError):
            if avoided and _is_below(os.fsencode(os.readlink(path)), avoided):
                continue
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                yield mount_of(descriptor), path
            finally:
                os.close(descriptor)


def _is_below(path: bytes, directories: tuple[bytes, ...]) -> bool:
    return any(path == one or path.startswith(one.rstrip(b"/") + b"/") for one in directories)


def _is_of_the_kernel(path: str) -> bool:
    """Return whether *path* leads to a pipe, a socket or the like, which no mount shows."""
    try:
        return not os.readlink(path).startswith("/")
    except OSError:
        return False


def _numbers_of_the_kernel() -> set[int]:
    """Return the numbers of the mounts of files in memory, which have names like others."""
    try:
        descriptor = os.memfd_create("mount", os.MFD_CLOEXEC)
    except OSError:
        return set()
    try:
        return {mount_of(descriptor)}
    finally:
        os.close(descriptor)


def _mount_number(information: str) -> int:
    descriptor = os.open(information, os.O_RDONLY | os.O_CLOEXEC)
    try:
        match = _MOUNT_NUMBER.search(os.read(descriptor, _INFORMATION_BYTES))
    finally:
        os.close(descriptor)
    if match is None:
        raise OSError(errno.ENODATA, "the kernel does not tell the mounts of open files")
    return int(match[1])
