"""Reading tar as it occurs in layers: ustar, GNU and PAX, from a stream, in one pass.

The rules are those of POSIX (``pax``, "ustar Interchange Format") and of GNU tar's manual ("Basic
Tar Format"); where readers differ, this one sides with Go's ``archive/tar``, by which container
engines read layers. Names stay bytes and numbers integers: text would lose names that are not
UTF-8, floats would lose nanoseconds.
"""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.unpack import sparse
from layermanager.unpack.fields import (
    decimal,
    number,
    repeated_number,
    shown,
    signed_decimal,
    text,
    time_ns,
)
from layermanager.unpack.streams import EndOfStreamError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layermanager.model import Limits
    from layermanager.unpack.sparse import Segment
    from layermanager.unpack.streams import Reader

BLOCK_BYTES: Final = 512
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_XATTR_PREFIX: Final = b"SCHILY.xattr."
_NOTHING: Final[Mapping[bytes, bytes]] = {}
_LARGEST_ID: Final = 2**32 - 2  # 2**32 - 1 means "leave it as it is" to chown(2)
# Each entry pays for all of them; git writes one.
_GLOBAL_RECORDS: Final = 100
_GLOBAL_BYTES: Final = 4096
_LARGEST_SIZE: Final = 2**63 - 1
_LARGEST_TIME_NS: Final = 2**62 * 1_000_000_000


class EntryKind(enum.Enum):
    """What an entry becomes on disk."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symlink"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_VOLUME_LABEL: Final = ord("V")  # GNU
_DUMP_DIRECTORY: Final = ord("D")  # its content is a list of the files in it
_KINDS: Final = {
    ord("0"): EntryKind.FILE,
    0: EntryKind.FILE,  # before POSIX
    ord("7"): EntryKind.FILE,  # "contiguous"
    ord("S"): EntryKind.FILE,  # GNU, sparse
    ord("1"): EntryKind.HARD_LINK,
    ord("2"): EntryKind.SYMLINK,
    ord("3"): EntryKind.CHARACTER_DEVICE,
    ord("4"): EntryKind.BLOCK_DEVICE,
    ord("5"): EntryKind.DIRECTORY,
    _DUMP_DIRECTORY: EntryKind.DIRECTORY,  # GNU, incremental
    ord("6"): EntryKind.FIFO,
}


class Entry(NamedTuple):
    """One member of a tar.

    Attributes:
        path: the name as it stands in the archive; nothing about it was checked.
        kind: what it is.
        mode: permission bits with setuid, setgid and sticky.
        uid: the owner.
        gid: the group.
        size: bytes of content in the archive; 0 for all but files, and directories of incremental
            archives of GNU tar, where it means nothing here.
        mtime_ns: modification time, nanoseconds since 1970.
        link: the target of a symlink, or the path that a hard link names.
        device: major and minor number of a device.
        xattrs: extended attributes, from PAX records ``SCHILY.xattr.*``.
        segments: where the pieces of content belong, when the file has holes.
        file_size: the size of the file on disk; more than ``size`` when it has holes.
    """

    path: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    device: tuple[int, int]
    xattrs: Mapping[bytes, bytes]
    segments: tuple[Segment, ...] | None
    file_size: int


_DEVICES: Final = (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)


class _Content(NamedTuple):
    """How much content an entry has, and where it belongs (see ``Entry``)."""

    size: int
    segments: tuple[Segment, ...] | None
    file_size: int


@dataclass(slots=True)
class _Extensions:
    """What the headers before an entry's own said of it."""

    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    path: bytes = b""
    link: bytes = b""
    size: int = 0


class TarReader:
    """Iterates over the entries of a tar; each one's content is read before the next is asked for.

    Content that is not read is passed over. Iterating raises ``ArchiveError`` where the tar is
    malformed or truncated, and ``LimitExceededError`` where it exceeds *limits*.
    """

    def __init__(self, reader: Reader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._global_records: dict[bytes, bytes] = {}
        self._unread = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        entries = 0
        while (entry := self._next_entry()) is not None:
            entries += 1
            if entries > self._limits.entries:
                raise LimitExceededError(f"more than {self._limits.entries} entries")
            self._unread = entry.size
            self._padding = -entry.size % BLOCK_BYTES
            yield entry
            try:
                self._reader.skip(self._unread + self._padding)
            except EndOfStreamError:
                raise _truncated(entry) from None

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """The content of *entry*, the current one, in pieces."""
        self._unread -= entry.size
        try:
            yield from self._reader.pieces(entry.size)
        except EndOfStreamError:
            raise _truncated(entry) from None

    def whole_content(self, entry: Entry) -> bytes:
        """The content of *entry*, the current one, when it is small enough to be held."""
        self._unread -= entry.size
        try:
            return self._reader.take(entry.size)
        except EndOfStreamError:
            raise _truncated(entry) from None

    def _next_entry(self) -> Entry | None:
        """Read headers up to and including the next entry's own; None at the end of the archive."""
        extensions: _Extensions | None = None
        while (header := self._next_header()) is not None:
            kind = _KINDS.get(header[156])
            if kind is not None:
                is_plain = header[156] == ord("0") and not (extensions or self._global_records)
                entry = _plain_file(header) if is_plain else None
                return entry or self._entry(header, kind, extensions)
            if header[156] == _VOLUME_LABEL:
                self._skip_volume_label(header)
                extensions = None  # they were about the label
                continue
            extensions = extensions or _Extensions()
            self._read_extension(header, extensions)
        if extensions is not None and (extensions.records or extensions.path or extensions.link):
            raise ArchiveError("the tar ends after an extended header, before its entry")
        return None

    def _next_header(self) -> bytes | None:
        if self._reader.at_end():
            return None
        try:
            block = self._reader.take(BLOCK_BYTES)
            if block != _ZERO_BLOCK:
                _require_checksum(block)
                return block
            if self._reader.at_end() or self._reader.take(BLOCK_BYTES) == _ZERO_BLOCK:
                return None
        except EndOfStreamError:
            raise ArchiveError("the tar ends within a header") from None
        raise ArchiveError("a lone zero block amid the tar")

    def _read_extension(self, header: bytes, extensions: _Extensions) -> None:
        """Read a header that says something of the entry after it, or of all entries."""
        match header[156:157]:
            case b"x":
                extensions.records += self._read_records(header, extensions)
            case b"g":
                self._global_records.update(self._read_records(header, extensions))
                self._require_few_global_records()
            case b"L":
                extensions.path = text(self._read_extension_data(header, extensions))
            case b"K":
                extensions.link = text(self._read_extension_data(header, extensions))
            case b"M":
                raise ArchiveError(
                    f"{shown(text(header[:100]))}: the continuation of a file in another volume: "
                    "archives of several volumes are not read; join them first"
                )
            case typeflag:
                raise ArchiveError(
                    f"{shown(text(header[:100]))}: unknown kind of tar entry {typeflag!r}"
                )

    def _require_few_global_records(self) -> None:
        if len(self._global_records) > _GLOBAL_RECORDS:
            raise LimitExceededError(f"more than {_GLOBAL_RECORDS} records in global headers")
        size = sum(len(key) + len(value) for key, value in self._global_records.items())
        if size > _GLOBAL_BYTES:
            raise LimitExceededError(f"global headers of more than {_GLOBAL_BYTES} bytes")

    def _skip_volume_label(self, header: bytes) -> None:
        size = number(header[124:136])
        if not 0 <= size <= _LARGEST_SIZE:
            raise ArchiveError(f"volume label of an impossible size {size}")
        try:
            self._reader.skip(size + -size % BLOCK_BYTES)
        except EndOfStreamError:
            raise ArchiveError("the tar ends within a volume label") from None

    def _read_extension_data(self, header: bytes, extensions: _Extensions) -> bytes:
        size = number(header[124:136])
        if size < 0:
            raise ArchiveError(f"extended header of an impossible size {size}")
        extensions.size += BLOCK_BYTES + size
        if extensions.size > self._limits.header_bytes:
            raise LimitExceededError(
                f"extended headers of one entry exceed headerBytes: {self._limits.header_bytes}"
            )
        try:
            data = self._reader.take(size)
            self._reader.skip(-size % BLOCK_BYTES)
        except EndOfStreamError:
            raise ArchiveError("the tar ends within an extended header") from None
        return data

    def _read_records(self, header: bytes, extensions: _Extensions) -> list[tuple[bytes, bytes]]:
        return list(_records(self._read_extension_data(header, extensions)))

    def _entry(self, header: bytes, kind: EntryKind, extensions: _Extensions | None) -> Entry:
        records: list[tuple[bytes, bytes]] = []
        said: Mapping[bytes, bytes] = _NOTHING
        if extensions is not None or self._global_records:
            extensions = extensions or _Extensions()
            records = [*self._global_records.items(), *extensions.records]
            # An empty value takes back what an earlier record, or a global one, said (POSIX).
            said = {key: value for key, value in dict(records).items() if value}
        path = said.get(b"GNU.sparse.name") or said.get(b"path") or _ustar_path(header)
        link = said.get(b"linkpath") or text(header[157:257])
        if extensions is not None:
            path = extensions.path or path
            link = extensions.link or link
        if header[156] == 0 and path.endswith(b"/"):
            kind = EntryKind.DIRECTORY
        content = _Content(0, None, 0)
        # Go reads none after other kinds, whatever their headers say; but it does not know GNU's.
        if kind is EntryKind.FILE or header[156] == _DUMP_DIRECTORY:
            content = self._content(header, records, said, path)
        return Entry(
            path=path,
            kind=kind,
            mode=repeated_number(header[100:108]) & 0o7777,
            uid=_owner(said.get(b"uid"), header[108:116], path),
            gid=_owner(said.get(b"gid"), header[116:124], path),
            size=content.size,
            mtime_ns=_mtime_ns(said.get(b"mtime"), header[136:148]),
            link=link,
            device=_device(header, path) if kind in _DEVICES else (0, 0),
            xattrs=self._xattrs(records, path) if records else _NOTHING,
            segments=content.segments,
            file_size=content.file_size,
        )

    def _content(
        self,
        header: bytes,
        records: list[tuple[bytes, bytes]],
        said: Mapping[bytes, bytes],
        path: bytes,
    ) -> _Content:
        size = decimal(said[b"size"]) if b"size" in said else number(header[124:136])
        if not 0 <= size <= _LARGEST_SIZE:
            raise ArchiveError(f"{shown(path)}: impossible size {size}")
        limit = self._limits.header_bytes
        layout = None
        try:
            if header[156] == ord("S"):
                layout = sparse.read_old_gnu(header, self._reader, limit=limit)
            elif records:
                layout = sparse.read_pax(records, self._reader, size, limit=limit)
        except EndOfStreamError:
            raise ArchiveError(f"{shown(path)}: the tar ends within a sparse map") from None
        if layout is None:
            return _Content(size, None, size)
        size -= layout.map_bytes
        if sum(segment.size for segment in layout.segments) != size:
            raise ArchiveError(f"{shown(path)}: sparse map and content differ in size")
        return _Content(size, layout.segments, layout.file_size)

    def _xattrs(self, records: list[tuple[bytes, bytes]], path: bytes) -> Mapping[bytes, bytes]:
        xattrs = {
            key.removeprefix(_XATTR_PREFIX): value
            for key, value in records
            if key.startswith(_XATTR_PREFIX)
        }
        if sum(len(name) + len(value) for name, value in xattrs.items()) > self._limits.xattr_bytes:
            raise LimitExceededError(
                f"{shown(path)}: extended attributes exceed xattrBytes: {self._limits.xattr_bytes}"
            )
        return xattrs


def _plain_file(header: bytes) -> Entry | None:
    """A file of which its own header says everything, quickly; None where that is odd.

    Most entries of most layers are such files.
    """
    mode, uid, gid = _permissions(header[100:124])
    size = number(header[124:136])
    mtime_ns = number(header[136:148]) * 1_000_000_000
    if not (
        0 <= uid <= _LARGEST_ID
        and 0 <= gid <= _LARGEST_ID
        and 0 <= size <= _LARGEST_SIZE
        and -_LARGEST_TIME_NS < mtime_ns < _LARGEST_TIME_NS
    ):
        return None
    return Entry(
        path=_ustar_path(header),
        kind=EntryKind.FILE,
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime_ns=mtime_ns,
        link=b"",
        device=(0, 0),
        xattrs=_NOTHING,
        segments=None,
        file_size=size,
    )


@lru_cache(maxsize=256)
def _permissions(fields: bytes) -> tuple[int, int, int]:
    """Mode, owner and group, which many entries have in common."""
    return number(fields[:8]) & 0o7777, number(fields[8:16]), number(fields[16:])


def _ustar_path(header: bytes) -> bytes:
    if not header[345] or header[257:263] != b"ustar\0":
        return text(header[:100])
    # star, which marks itself at the header's end, has a shorter prefix and times after it.
    prefix = header[345:476] if header[508:512] == b"tar\0" else header[345:500]
    return text(prefix) + b"/" + text(header[:100])


def _owner(record: bytes | None, header_field: bytes, path: bytes) -> int:
    owner = repeated_number(header_field) if record is None else signed_decimal(record)
    if -(2**31) <= owner < -1:  # what a user ID is to C programs that take it for a signed number
        owner += 2**32
    if not 0 <= owner <= _LARGEST_ID:
        raise ArchiveError(f"{shown(path)}: impossible owner {owner}")
    return owner


def _mtime_ns(record: bytes | None, header_field: bytes) -> int:
    """Return the time, or the nearest one that a system call takes; no disk holds such times."""
    mtime_ns = number(header_field) * 1_000_000_000 if record is None else time_ns(record)
    return min(max(mtime_ns, -_LARGEST_TIME_NS), _LARGEST_TIME_NS)


def _device(header: bytes, path: bytes) -> tuple[int, int]:
    major, minor = number(header[329:337]), number(header[337:345])
    if not (0 <= major < 2**12 and 0 <= minor < 2**20):  # Linux's dev_t
        raise ArchiveError(f"{shown(path)}: impossible device {major}:{minor}")
    return major, minor


def _truncated(entry: Entry) -> ArchiveError:
    return ArchiveError(f"{shown(entry.path)}: the tar ends within this entry")


def _require_checksum(header: bytes) -> None:
    stored = number(header[148:156])
    blank = 8 * ord(" ") - sum(header[148:156])
    # Adler-32's low half is 1 plus the sum of the bytes, modulo 65521, and costs a fiftieth of
    # sum(). What it cannot tell apart differs by a multiple of 65521: the digest of the layer,
    # not this sum, is what protects the content.
    if ((zlib.adler32(header) & 0xFFFF) - 1 + blank - stored) % 65521 == 0:
        return
    unsigned = sum(header) + blank
    signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if stored not in (unsigned, signed):  # signed: Sun's tar
        raise ArchiveError(
            f"{shown(text(header[:100]))}: wrong header checksum: no tar, or damaged"
        )


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a PAX header: length, blank, key=value, newline; the length counts all."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        end = at + decimal(data[at:space] if space > 0 else b"")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not (space < end <= len(data)) or data[end - 1] != ord("\n") or not key or not equals:
            raise ArchiveError(f"malformed PAX record: {data[at : at + 80]!r}")
        if b"\0" in key or (b"\0" in value and key in (b"path", b"linkpath", b"GNU.sparse.name")):
            raise ArchiveError(f"a NUL byte in a PAX record: {data[at : at + 80]!r}")
        yield key, value
        at = end
