"""A disk in user space, which records each write and each flush in the order in which they came.

It is a file system of one file: this program serves it to the kernel by the protocol of FUSE, and
a loop device over that file is the disk. The file is opened for direct I/O, so that nothing is
cached on the way: a write of the file system above is recorded and done before it is answered, and
what is still in that file system's memory has not been seen here. The loop device says that it has
a volatile cache, so that the file systems flush it as they would a real disk's; each of these
flushes arrives as an ``fsync``, and is recorded too.

The record is a file of entries, each a header and, for a write, its data. Its size at a moment is
a *position*: the entries that end before it had been answered then, or were on their way.

A process of its own serves the disk. A thread of the one that uses the file system could not:
it would have to run while another thread waits, with the interpreter's lock, for a page.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE_SECONDS: Final = 30

_ENTRY: Final = struct.Struct("=B7xQQ")  # kind, offset, length

# From here on: linux/fuse.h, of which version 7.31 (Linux 5.4) is spoken.
_VERSION: Final = (7, 31)
_BIG_WRITES: Final = 1 << 5
_ASYNC_DIRECT_IO: Final = 1 << 15
_MAX_PAGES: Final = 1 << 22
_FOPEN_DIRECT_IO: Final = 1
_LARGEST_WRITE: Final = 1024 * 1024
_PAGE_BYTES: Final = 4096
_CACHED_SECONDS: Final = 3600
_NODE: Final = 1

_REQUEST: Final = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, …
_ANSWER: Final = struct.Struct("=IiQ")  # length, error, unique
_INIT_ANSWER: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES: Final = struct.Struct("=QI4x6Q10I")
_OPEN_ANSWER: Final = struct.Struct("=QIi")
_READ: Final = struct.Struct("=QQIIQII")  # handle, offset, size, …
_WRITE: Final = struct.Struct("=QQIIQII")  # likewise
_WRITE_ANSWER: Final = struct.Struct("=II")
_FALLOCATE: Final = struct.Struct("=QQQII")  # handle, offset, length, mode
_STATFS_ANSWER: Final = struct.Struct("=5Q4I24x")


class _Opcode(enum.IntEnum):
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    FALLOCATE = 43
    BATCH_FORGET = 42


_UNANSWERED: Final = frozenset({_Opcode.FORGET, _Opcode.INTERRUPT, _Opcode.BATCH_FORGET})


class Kind(enum.IntEnum):
    """What the disk was told."""

    WRITE = 1
    ZEROES = 2
    """A write of nothing but zeroes, or a discard, which this disk takes for the same."""
    FLUSH = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """What the disk was told once.

    Attributes:
        kind: which command it was.
        offset: where on the disk, in bytes.
        length: how much, in bytes.
        data: what was written; empty but for a write.
        end: the position behind it.
    """

    kind: Kind
    offset: int
    length: int
    data: bytes
    end: int


def read_record(path: Path) -> list[Entry]:
    """The entries of the record *path*, which is complete."""
    entries = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as record:
        position = 0
        while position < len(record):
            kind, offset, length = _ENTRY.unpack_from(record, position)
            position += _ENTRY.size
            data = record[position : position + length] if kind == Kind.WRITE else b""
            position += len(data)
            entries.append(Entry(Kind(kind), offset, length, data, position))
    return entries


@contextmanager
def served(image: Path, record: Path, mount_point: Path) -> Iterator[None]:
    """Show *image* at the file *mount_point*, and write down in *record* what is done to it.

    Raises:
        OSError, subprocess.CalledProcessError: the kernel has no FUSE, or may not be asked.
    """
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
        subprocess.run(
            ["mount", "-i", "-t", "fuse", "-o", options, "recording-disk", mount_point],
            check=True,
            capture_output=True,
            pass_fds=(fuse,),
        )
        server = subprocess.Popen(
            [sys.executable, __file__, str(fuse), image, record], pass_fds=(fuse,)
        )
    finally:
        os.close(fuse)
    try:
        yield
    finally:
        # Whoever still has the file open keeps the server, which ends with the last of them.
        subprocess.run(["umount", "--lazy", mount_point], check=True)
        server.wait(_PATIENCE_SECONDS)
    if server.returncode != 0:
        raise subprocess.CalledProcessError(server.returncode, server.args)


def write_zeroes(descriptor: int, offset: int, length: int) -> None:
    """Make a part of a file zeroes; where it has holes it has them already, and they stay."""
    end = offset + length
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # there are but holes from here on
            raise
        offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        if start < end:
            os.pwrite(descriptor, bytes(offset - start), start)


class _Server:
    """Answers the kernel's requests on the descriptor *fuse*, one after the other."""

    def __init__(self, fuse: int, image: Path, record: Path) -> None:
        self._fuse = fuse
        self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._image).st_size
        self._handlers: dict[int, Callable[[memoryview], bytes]] = {
            _Opcode.INIT: self._init,
            _Opcode.GETATTR: self._getattr,
            _Opcode.OPEN: self._open,
            _Opcode.READ: self._read,
            _Opcode.WRITE: self._write,
            _Opcode.FSYNC: self._flush,
            _Opcode.FALLOCATE: self._fallocate,
            _Opcode.STATFS: self._statfs,
            _Opcode.FLUSH: lambda _: b"",  # of a descriptor that is closed: nothing to do
            _Opcode.RELEASE: lambda _: b"",
        }

    def serve(self) -> None:
        """Answer until the file system is unmounted and nobody has its file open."""
        buffer = memoryview(bytearray(_LARGEST_WRITE + _PAGE_BYTES))
        while True:
            try:
                length = os.readv(self._fuse, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was taken back
                raise
            _, opcode, unique, *_ = _REQUEST.unpack_from(buffer)
            if opcode in _UNANSWERED:
                continue
            self._answer(unique, opcode, buffer[_REQUEST.size : length])

    def _answer(self, unique: int, opcode: int, arguments: memoryview) -> None:
        handler = self._handlers.get(opcode)
        if handler is None:
            os.write(self._fuse, _ANSWER.pack(_ANSWER.size, -errno.ENOSYS, unique))
            return
        body = handler(arguments)
        os.writev(self._fuse, [_ANSWER.pack(_ANSWER.size + len(body), 0, unique), body])

    def _note(self, kind: Kind, offset: int, length: int, data: memoryview | bytes = b"") -> None:
        os.writev(self._record, [_ENTRY.pack(kind, offset, length), data])

    def _init(self, _: memoryview) -> bytes:
        flags = _BIG_WRITES | _ASYNC_DIRECT_IO | _MAX_PAGES
        pages = _LARGEST_WRITE // _PAGE_BYTES
        return _INIT_ANSWER.pack(*_VERSION, 0, flags, 0, 0, _LARGEST_WRITE, 1, pages, 0, 0)

    def _getattr(self, _: memoryview) -> bytes:
        return _ATTRIBUTES.pack(
            *(_CACHED_SECONDS, 0),
            *(_NODE, self._size, self._size // 512, 0, 0, 0),
            *(0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, _PAGE_BYTES, 0),
        )

    def _open(self, _: memoryview) -> bytes:
        return _OPEN_ANSWER.pack(0, _FOPEN_DIRECT_IO, 0)

    def _read(self, arguments: memoryview) -> bytes:
        _, offset, size, *_ = _READ.unpack_from(arguments)
        return os.pread(self._image, size, offset)

    def _write(self, arguments: memoryview) -> bytes:
        _, offset, size, *_ = _WRITE.unpack_from(arguments)
        data = arguments[_WRITE.size : _WRITE.size + size]
        self._note(Kind.WRITE, offset, size, data)
        os.pwrite(self._image, data, offset)
        return _WRITE_ANSWER.pack(size, 0)

    def _fallocate(self, arguments: memoryview) -> bytes:
        """Make a part of the disk zeroes: a loop device asks for nothing else."""
        _, offset, length, *_ = _FALLOCATE.unpack_from(arguments)
        self._note(Kind.ZEROES, offset, length)
        write_zeroes(self._image, offset, length)
        return b""

    def _flush(self, _: memoryview) -> bytes:
        self._note(Kind.FLUSH, 0, 0)
        return b""

    def _statfs(self, _: memoryview) -> bytes:
        return _STATFS_ANSWER.pack(0, 0, 0, 1, 0, _PAGE_BYTES, 255, _PAGE_BYTES, 0)


if __name__ == "__main__":
    _Server(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])).serve()
