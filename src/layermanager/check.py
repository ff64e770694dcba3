"""Whether a layer is what it was when it was unpacked: its files compared with its index.

Neither is trusted. Others may change the tree meanwhile, so it is walked by ``directories``; and
a path of the index that leads out of the layer is a difference, and is not looked at.

Attributes are compared by the thread that reads the index. Contents are hashed by several threads,
in batches, so that small files do not cost a change of threads each.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import os
import stat
from collections import defaultdict, deque
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.directories import Directories, Place, is_plain, kind_of
from layermanager.xattrs import SELINUX_LABEL, SET_BY_KERNEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Executor, Future

    from layermanager.cancellation import Cancellation
    from layermanager.model import LayerInfo
    from layermanager.unpack.index import IndexEntry

MAX_DIFFERENCES: Final = 1000
"""How many differences of one layer are kept; a wholly destroyed one has as many as files."""

_BATCH_FILES: Final = 32
_BATCH_BYTES: Final = 4 * 1024 * 1024
_PENDING_BATCHES: Final = 8
_READ_BYTES: Final = 1024 * 1024


class Problem(enum.StrEnum):
    """In what a path is not what the index says."""

    INDEX = "index"
    MISSING = "missing"
    ADDED = "added"
    KIND = "kind"
    MODE = "mode"
    OWNER = "owner"
    TIME = "time"
    SIZE = "size"
    CONTENT = "content"
    LINK = "link"
    HARD_LINK = "hard link"
    DEVICE = "device"
    XATTRS = "xattrs"
    UNREADABLE = "unreadable"


class Depth(enum.StrEnum):
    """How much is compared."""

    ATTRIBUTES = "attributes"
    CONTENT = "content"


class Status(enum.StrEnum):
    """What came of checking a layer."""

    INTACT = "intact"
    DAMAGED = "damaged"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not as it was.

    Attributes:
        path: relative to the layer's root, which is ``.``. A directory that is gone, or was added,
            stands for all below it.
        problem: what is wrong.
        expected: what the index says, as text.
        found: what is there, as text.
    """

    path: bytes
    problem: Problem
    expected: str = ""
    found: str = ""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What came of checking one layer.

    Attributes:
        layer: the layer.
        differences: the first of the differences, at most ``MAX_DIFFERENCES``.
        count: how many there are in all.
        has_index: whether there is an index to compare with; there is none of what another
            program has installed.
    """

    layer: LayerInfo
    differences: tuple[Difference, ...] = ()
    count: int = 0
    has_index: bool = True

    @property
    def status(self) -> Status:
        """Intact, damaged, or not verified for want of an index.

        What this user may not read is no damage.
        """
        if any(one.problem is not Problem.UNREADABLE for one in self.differences):
            return Status.DAMAGED
        return Status.INTACT if self.has_index else Status.UNVERIFIED


def compare(
    root: int,
    entries: Iterable[IndexEntry],
    depth: Depth,
    *,
    threads: Executor,
    cancellation: Cancellation,
    on_bytes: Callable[[int], None],
) -> Iterator[Difference]:
    """Compare the directory *root* with the *entries* of its index.

    Args:
        root: a descriptor of the layer's directory.
        entries: all paths that there should be, the root among them.
        depth: whether contents are compared, too.
        threads: hash contents.
        cancellation: ends it early.
        on_bytes: is told how many bytes of content were read, from any thread.

    Raises:
        CancelledError: the cancellation was called.
        OSError: the disk cannot be read, beyond a single file.
    """
    names: defaultdict[bytes, set[bytes]] = defaultdict(set)
    with closing(Directories(root)) as directories:
        contents = _Contents(threads, cancellation, on_bytes)
        try:
            for entry in entries:
                cancellation.check()
                if not is_plain(entry.path) or (entry.hard_link and not is_plain(entry.hard_link)):
                    yield _outside(entry)
                    continue
                if entry.path != b".":
                    parent, _, name = entry.path.rpartition(b"/")
                    names[parent].add(name)
                if entry.kind == "dir":
                    names[b"" if entry.path == b"." else entry.path]
                yield from _compare_entry(directories, entry, depth, contents)
                yield from contents.found()
            yield from contents.rest()
        finally:
            contents.close()
        for directory, expected in names.items():
            cancellation.check()
            yield from _added(directories, directory, expected)


def _outside(entry: IndexEntry) -> Difference:
    """Tell of an entry that names a file outside of the layer, itself or as its hard link."""
    found = entry.hard_link if is_plain(entry.path) else entry.path
    return Difference(entry.path, Problem.INDEX, "a path inside the layer", _text(found))


def _compare_entry(
    directories: Directories, entry: IndexEntry, depth: Depth, contents: _Contents
) -> Iterator[Difference]:
    try:
        yield from _compare_readable_entry(directories, entry, depth, contents)
    except OSError as error:
        yield _unreadable(entry.path, error)


def _compare_readable_entry(
    directories: Directories, entry: IndexEntry, depth: Depth, contents: _Contents
) -> Iterator[Difference]:
    place = directories.place_of(entry.path)
    if place is None:
        return  # its directory is gone, which is told of that
    state = place.state()
    if state is None:
        yield Difference(entry.path, Problem.MISSING, entry.kind, "nothing")
        return
    if entry.hard_link:
        yield from _compare_hard_link(directories, entry, state)
        return
    kind = kind_of(state)
    if kind != entry.kind:
        yield Difference(entry.path, Problem.KIND, entry.kind, kind)
        return
    yield from _differing_attributes(entry, state)
    expected_xattrs, found_xattrs = _comparable_xattrs(entry, place)
    if expected_xattrs != found_xattrs:
        yield Difference(entry.path, Problem.XATTRS, _names(expected_xattrs), _names(found_xattrs))
    if kind == "link" and (target := place.link()) != entry.link:
        yield Difference(entry.path, Problem.LINK, _text(entry.link), _text(target))
    if kind == "file" and depth is Depth.CONTENT and state.st_size == entry.size:
        contents.add(place, entry)


def _differing_attributes(entry: IndexEntry, state: os.stat_result) -> Iterator[Difference]:
    path = entry.path
    mode = stat.S_IMODE(state.st_mode)
    if mode != entry.mode:
        yield Difference(path, Problem.MODE, f"{entry.mode:04o}", f"{mode:04o}")
    owner = state.st_uid, state.st_gid
    if owner != entry.owner:
        yield Difference(path, Problem.OWNER, _pair(entry.owner), _pair(owner))
    # Overlayfs hides a whiteout, so its time is never visible.
    is_whiteout = entry.kind == "char" and entry.device == (0, 0)
    if state.st_mtime_ns != entry.mtime_ns and not is_whiteout:
        yield Difference(path, Problem.TIME, _time(entry.mtime_ns), _time(state.st_mtime_ns))
    if entry.kind == "file" and state.st_size != entry.size:
        yield Difference(path, Problem.SIZE, str(entry.size), str(state.st_size))
    if entry.kind in {"char", "block"}:
        device = os.major(state.st_rdev), os.minor(state.st_rdev)
        if device != entry.device:
            yield Difference(path, Problem.DEVICE, _pair(entry.device), _pair(device))


def _comparable_xattrs(
    entry: IndexEntry, place: Place
) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Return the extended attributes that should be there and those that are.

    Labels of SELinux are the host's, also where an older version took them from a layer. What else
    the kernel sets by itself counts where the layer brought it.
    """
    on_disk = place.xattrs()
    if not entry.xattrs and not on_disk:  # as for most files
        return {}, {}
    expected = {name: value for name, value in entry.xattrs.items() if name != SELINUX_LABEL}
    found = {
        name: value
        for name, value in on_disk.items()
        if name in expected or name not in SET_BY_KERNEL
    }
    return expected, found


def _names(xattrs: Mapping[bytes, bytes]) -> str:
    return ", ".join(sorted(map(os.fsdecode, xattrs))) or "none"


def _compare_hard_link(
    directories: Directories, entry: IndexEntry, state: os.stat_result
) -> Iterator[Difference]:
    other = directories.place_of(entry.hard_link)
    other_state = other.state() if other else None
    if other_state is None or (other_state.st_dev, other_state.st_ino) != (
        state.st_dev,
        state.st_ino,
    ):
        yield Difference(entry.path, Problem.HARD_LINK, _text(entry.hard_link), "another file")


def _added(
    directories: Directories, directory: bytes, expected: set[bytes]
) -> Iterator[Difference]:
    try:
        names = directories.names(directory)
        if names is None:
            return  # missing, or something else by now: that was told already
    except OSError as error:
        yield _unreadable(directory or b".", error)
        return
    for name in sorted(set(names) - expected):
        path = directory + b"/" + name if directory else name
        yield Difference(path, Problem.ADDED, "nothing", "")


class _Contents:
    """Has the contents of files hashed by several threads, and collects what is wrong.

    The files of a batch are open when it is handed over.
    """

    def __init__(
        self, threads: Executor, cancellation: Cancellation, on_bytes: Callable[[int], None]
    ) -> None:
        self._threads = threads
        self._cancellation = cancellation
        self._on_bytes = on_bytes
        self._batch: list[tuple[int, IndexEntry]] = []
        self._batch_bytes = 0
        self._pending: deque[Future[list[Difference]]] = deque()

    def add(self, place: Place, entry: IndexEntry) -> None:
        """Have the file at *place* hashed soon.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = place.open()  # a regular file, whatever has come into its place
        self._batch.append((descriptor, entry))
        self._batch_bytes += entry.size
        if len(self._batch) == _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
            self._hand_over()

    def found(self) -> Iterator[Difference]:
        """What is wrong with the files that are done; waits where too many are not."""
        while self._pending and (self._pending[0].done() or len(self._pending) > _PENDING_BATCHES):
            yield from self._pending.popleft().result()

    def rest(self) -> Iterator[Difference]:
        """What is wrong with all the other files."""
        self._hand_over()
        while self._pending:
            yield from self._pending.popleft().result()

    def close(self) -> None:
        """Close what was opened for nothing, and wait for the threads."""
        for descriptor, _ in self._batch:
            os.close(descriptor)
        for future in self._pending:
            future.exception()

    def _hand_over(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            self._pending.append(self._threads.submit(self._hash_batch, batch))

    def _hash_batch(self, batch: list[tuple[int, IndexEntry]]) -> list[Difference]:
        differences = []
        for descriptor, entry in batch:
            try:
                found = self._hash(descriptor, entry.size)
            except OSError as error:
                found = _words(error)
            finally:
                os.close(descriptor)
            if found != entry.sha256 and not self._cancellation.requested.is_set():
                differences.append(Difference(entry.path, Problem.CONTENT, entry.sha256, found))
        return differences

    def _hash(self, descriptor: int, size: int) -> str:
        """Hash a file that should have *size* bytes, and one byte beyond if it has grown."""
        digest = hashlib.sha256()
        left = size + 1  # others may write to it for ever
        while left and not self._cancellation.requested.is_set():
            chunk = os.read(descriptor, min(left, _READ_BYTES))
            if not chunk:
                break
            digest.update(chunk)
            left -= len(chunk)
            self._on_bytes(len(chunk))
        return digest.hexdigest()


def _unreadable(path: bytes, error: OSError) -> Difference:
    """Tell what was not looked at; an error of the disk is damage."""
    if error.errno == errno.EXDEV:
        return Difference(path, Problem.UNREADABLE, "", "hidden by a mounted file system")
    if isinstance(error, PermissionError):
        return Difference(path, Problem.UNREADABLE, "", _words(error))
    return Difference(path, Problem.CONTENT, "", _words(error))


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _time(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return f"{seconds}.{fraction:09d}"


def _pair(numbers: tuple[int, int]) -> str:
    return "{}:{}".format(*numbers)


def _text(name: bytes) -> str:
    return os.fsdecode(name)
