"""Named files, be they in a directory or in a tar, of which pieces are read.

A directory is entered name by name and no symbolic link is followed: what a stranger put into it
leads to nothing outside. Of a tar only the headers are read, once, by the reader that reads layers;
names of members are compared and never used as paths, and no member is extracted.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from layermanager.errors import ArchiveError, LimitExceededError, SourceError
from layermanager.model import Limits
from layermanager.unpack.streams import CHUNK_BYTES, EndOfStreamError
from layermanager.unpack.tar import EntryKind, TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OPEN_FILE: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"\xfd7": "xz", b"BZ": "bzip2"}
_LIMITS: Final = Limits(entries=100_000)
_MOST_LINKS: Final = 8


class Region:
    """The bytes of one file or member: a ``ByteStream``.

    Args:
        descriptor: of the file; the region closes it.
        start: where in the file the bytes begin.
        size: how many there are.
        url: what errors call them.
        offset: how many of them to pass over, unless *validator* is that of another file.
        validator: of the region that broke off there; empty if that had none.
    """

    is_local: Final = True

    def __init__(
        self,
        descriptor: int,
        start: int,
        size: int,
        *,
        url: str,
        offset: int = 0,
        validator: str = "",
    ) -> None:
        self._descriptor: int | None = descriptor
        self._start = start
        self._size = size
        self._url = url
        self._validator = _identity(descriptor)
        is_the_same = validator in {"", self._validator} and offset <= size
        self._offset = offset if is_the_same else 0
        self._at = self._offset
        self._aborted = False

    @property
    def size(self) -> int:
        """How many bytes there are, those passed over included."""
        return self._size

    @property
    def offset(self) -> int:
        """Which of them comes first."""
        return self._offset

    @property
    def validator(self) -> str:
        """What tells this version of the file from another one."""
        return self._validator

    def read(self, size: int) -> bytes:
        """Up to *size* bytes; empty at the end.

        Raises:
            SourceError: the file became shorter, cannot be read, or ``abort`` was called.
        """
        if self._aborted or self._descriptor is None:
            raise SourceError("the transfer was aborted", url=self._url)
        wanted = min(size, self._size - self._at)
        try:
            data = os.pread(self._descriptor, wanted, self._start + self._at)
        except OSError as error:
            raise SourceError(f"cannot read on: {error.strerror}", url=self._url) from error
        if wanted and not data:
            raise SourceError("the file became shorter while it was read", url=self._url)
        self._at += len(data)
        return data

    def first(self, limit: int) -> bytes:
        """What comes next, *limit* bytes at the most."""
        pieces: list[bytes] = []
        while limit > 0 and (piece := self.read(min(limit, CHUNK_BYTES))):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)

    def abort(self) -> None:
        """Make the next ``read`` fail."""
        self._aborted = True

    def close(self) -> None:
        """Close the file; may be repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Files(Protocol):
    """Named files in one place; may be used by any thread."""

    def open(self, name: str, *, url: str, offset: int = 0, validator: str = "") -> Region:
        """Open the plain file *name*, a path below the place.

        The other arguments are those of ``Region``.

        Raises:
            SourceError: it is not there, is a link or no plain file, or cannot be read.
        """


class DirectoryFiles:
    """The files below the directory *path*."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, name: str, *, url: str, offset: int = 0, validator: str = "") -> Region:
        """Open a plain file; no symbolic link below the directory is followed.

        Raises:
            SourceError: it is not there, or no plain file, or cannot be read.
        """
        with ExitStack() as undo:
            try:
                descriptor = self._descend(name)
                undo.callback(os.close, descriptor)
                status = os.fstat(descriptor)
            except OSError as error:
                raise SourceError(
                    f"cannot open {name} in {self._path}, where no symbolic link is followed: "
                    f"{error.strerror}",
                    url=url,
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{name} in {self._path} is no plain file", url=url)
            undo.pop_all()
        return Region(descriptor, 0, status.st_size, url=url, offset=offset, validator=validator)

    def _descend(self, name: str) -> int:
        *directories, last = name.split("/")
        with ExitStack() as stack:
            current = os.open(self._path, _OPEN_DIRECTORY)
            stack.callback(os.close, current)
            for directory in directories:
                current = os.open(directory, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                stack.callback(os.close, current)
            return os.open(last, _OPEN_FILE | os.O_NOFOLLOW, dir_fd=current)


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a tar: where its content is, or where it leads as a symbolic link."""

    start: int
    size: int
    link: str = ""


class TarFiles:
    """The members of the tar *path*, whose headers are read when the first one is opened.

    Args:
        path: the tar; it is read anew when it is another one.
        follows_links: whether a symbolic link leads to another member, or is refused.
    """

    def __init__(self, path: str, *, follows_links: bool = False) -> None:
        self._path = path
        self._follows_links = follows_links
        self._lock = threading.Lock()
        self._identity = ""
        self._members: Mapping[str, _Member] = {}

    def open(self, name: str, *, url: str, offset: int = 0, validator: str = "") -> Region:
        """Open a member that is a plain file, or leads to one.

        Raises:
            SourceError: it is not there, or no plain file; or the tar cannot be read, is damaged,
                or compressed as a whole.
        """
        with ExitStack() as undo:
            try:
                descriptor = os.open(self._path, _OPEN_FILE)
                undo.callback(os.close, descriptor)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SourceError(f"{self._path} is no plain file", url=url)
                member = self._find(self._indexed(descriptor), name)
            except OSError as error:
                raise SourceError(f"cannot read {self._path}: {error.strerror}", url=url) from error
            except (ArchiveError, LimitExceededError) as error:
                raise SourceError(f"{self._path}: {error}", url=url) from error
            undo.pop_all()
        return Region(
            descriptor, member.start, member.size, url=url, offset=offset, validator=validator
        )

    def _indexed(self, descriptor: int) -> Mapping[str, _Member]:
        """The members; the headers are read unless the file is the one that was read."""
        identity = _identity(descriptor)
        with self._lock:
            if identity != self._identity:
                _refuse_compressed(descriptor)
                self._members = _members(descriptor)
                self._identity = identity
            return self._members

    def _find(self, members: Mapping[str, _Member], name: str) -> _Member:
        wanted = name
        for _ in range(_MOST_LINKS):
            member = members.get(wanted)
            if member is None:
                raise ArchiveError(f"it holds no {name!r:.200}")
            if not member.link:
                return member
            if not self._follows_links:
                raise ArchiveError(f"{name!r:.200} in it is a symbolic link")
            wanted = _joined(wanted.rpartition("/")[0], member.link)
        raise ArchiveError(f"{name!r:.200} in it leads from one symbolic link to the next")


def _identity(descriptor: int) -> str:
    """What changes with the content of a file that nobody disguises."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _refuse_compressed(descriptor: int) -> None:
    kind = _COMPRESSED.get(os.pread(descriptor, 2, 0))
    if kind is not None:
        raise ArchiveError(
            f"it is compressed as a whole with {kind}: nothing in it can be found before it is "
            "decompressed"
        )


def _members(descriptor: int) -> Mapping[str, _Member]:
    """Return the plain files and links of a tar, by name.

    A hard link is the member that its target names where it stands, as when it is extracted.
    """
    reader = _SeekingReader(descriptor)
    members: dict[str, _Member] = {}
    for entry in TarReader(reader, _LIMITS):
        name = _joined("", os.fsdecode(entry.path))
        match entry.kind:
            case EntryKind.FILE if entry.segments is None:
                members[name] = _Member(reader.position, entry.size)
            case EntryKind.SYMLINK:
                members[name] = _Member(0, 0, os.fsdecode(entry.link))
            case EntryKind.HARD_LINK:
                target = members.get(_joined("", os.fsdecode(entry.link)))
                if target is None:
                    raise ArchiveError(f"a hard link leads to no member before it: {name!r:.200}")
                members[name] = target
            case EntryKind.DIRECTORY:
                continue
            case kind:
                what = "sparse file" if kind is EntryKind.FILE else kind.value
                raise ArchiveError(f"a {what} is among its members: {name!r:.200}")
    return members


def _joined(directory: str, name: str) -> str:
    """The name of the member that *name* means within *directory*."""
    parts: list[str] = []
    for part in (*directory.split("/"), *name.split("/")):
        if part == "..":
            if not parts:
                raise ArchiveError(f"a name leads out of it: {name!r:.200}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class _SeekingReader:
    """Reads a file from its beginning; what is skipped is not read.

    Attributes:
        position: how many bytes were read or skipped.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self.position = 0

    def take(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            piece = os.pread(self._descriptor, min(size, CHUNK_BYTES), self.position)
            if not piece:
                raise EndOfStreamError
            self.position += len(piece)
            size -= len(piece)
            yield memoryview(piece)

    def skip(self, size: int) -> None:
        if self.position + size > self._size:
            raise EndOfStreamError
        self.position += size

    def at_end(self) -> bool:
        return self.position >= self._size
