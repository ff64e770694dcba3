"""The index of a layer: what every path in it is, by which it can be verified later.

It is an mtree(5) manifest, compressed by gzip: a text that people can read and that bsdtar, mtree
and gomtree understand. One line a path::

    ./etc/passwd type=file mode=0644 uid=0 gid=0 time=1700000000.000000000 size=12 sha256digest=…

Names are written as mtree writes them, with octal escapes for all but printable ASCII. Two things
are ours: a hard link has ``hardlink=PATH``, the path that it shares its file with, in place of its
attributes; and the first line names the version of this format. Whiteouts are the character
devices that they are on disk. mtree's keyword ``optional`` marks an implied directory: the archive
does not list it, so that its attributes are those of the layers below, if these have it. An index
of an earlier version has no such mark.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from layermanager.errors import LimitExceededError, StoreError
from layermanager.model import Limits
from layermanager.unpack.compression import decompressed, new_gzip_compressor
from layermanager.unpack.streams import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import BinaryIO, Self

Parsed = TypeVar("Parsed")

_HEADER: Final = b"#mtree v2.0, layermanager index 1\n"
_BUFFERED_LINES: Final = 512
_REMOVAL: Final = b"-"
_ROOT: Final = b"."
_HARD_LINK: Final = b"type=file hardlink="
_DIRECTORY: Final = b"type=dir "
_CHARACTER_DEVICE: Final = b"type=char "
_NANOSECONDS: Final = 1_000_000_000
_USUAL_LIMITS: Final = Limits()
_NAME_BYTES: Final = 255
_LINK_BYTES: Final = 4096
_LINE_BYTES: Final = 4 * 1024 * 1024  # all the attributes of a file, which may be large
_MEAN_LINE_BYTES: Final = 1024
_SHOWN_BYTES: Final = 80
_GZIP_FORMAT: Final = 16  # added to zlib's window bits
_COMPRESSED_BYTES: Final = 16 * 1024
_SURPLUS_BYTES: Final = 64 * _COMPRESSED_BYTES
_LARGEST_ID: Final = 2**32 - 1
_LARGEST_SIZE: Final = 2**63 - 1
_LARGEST_SECONDS: Final = 2**62  # as the tar reader takes them
_LARGEST_MAJOR: Final = 2**12 - 1
_LARGEST_MINOR: Final = 2**20 - 1
_TO_BE_ESCAPED: Final = re.compile(rb"[^!-~]|[\\#=*?\[]")
_PLAIN: Final = bytes(byte for byte in range(256) if not _TO_BE_ESCAPED.match(bytes([byte])))
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
_ATTRIBUTES_ELSEWHERE: Final = (b"file", b"0", b"0", b"0", b"0", b"0")  # of a hard link
_NO_PATH: Final = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)|\0")  # names that are empty, "." or ".."
# What the writer writes, and nothing else; each repetition can end in one way only.
_NAME: Final = rb"[!\"$-)+-<>@-Z\]-~]*(?:\\[0-3][0-7]{2}[!\"$-)+-<>@-Z\]-~]*)*"
_LINE: Final = re.compile(
    rb"\./(%(name)b) type=(?:file hardlink=\./(%(name)b)|"
    rb"(file|dir|link|char|block|fifo) mode=([0-7]{4}) uid=([0-9]{1,10}) gid=([0-9]{1,10}) "
    rb"time=(-?[0-9]{1,19})\.([0-9]{9})"
    rb"(?: size=([0-9]{1,19}) sha256digest=([0-9a-f]{64})"
    rb"| link=(%(name)b)"
    rb"| device=native,([0-9]{1,4}),([0-9]{1,7})"
    rb"| (optional))?"
    rb"((?: xattr\.%(name)b=[A-Za-z0-9+/]*={0,2})*))" % {b"name": _NAME}
)
# Whether lines of a type have size and digest, a link, or a device.
_HAS: Final = {
    b"file": (True, False, False),
    b"dir": (False, False, False),
    b"link": (False, True, False),
    b"char": (False, False, True),
    b"block": (False, False, True),
    b"fifo": (False, False, False),
}


class IndexEntry(NamedTuple):
    """What one path of a layer is.

    Attributes:
        path: relative to the layer's root, which is ``.``.
        kind: ``file``, ``dir``, ``link`` (a symlink), ``char``, ``block`` or ``fifo``, as in mtree.
        mode: permission bits with setuid, setgid and sticky.
        owner: user and group.
        mtime_ns: modification time, nanoseconds since 1970.
        size: bytes of a file.
        sha256: digest of a file's content, in hex.
        link: the target of a symlink.
        hard_link: the path whose file this one is, too; all else is said there.
        device: major and minor number of a device.
        xattrs: extended attributes.
        is_implied: whether it is a directory that the archive does not list.
    """

    path: bytes
    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    sha256: str
    link: bytes
    hard_link: bytes
    device: tuple[int, int]
    xattrs: Mapping[bytes, bytes]
    is_implied: bool = False


class Occurrence(NamedTuple):
    """A path that a layer has, in little more than the time that it takes to find that out.

    Attributes:
        path: relative to the layer's root, which is ``.``.
        directory: what it is, if it is a directory. All else hides the directories of that name in
            the layers below.
        is_whiteout: whether it does nothing but that.
    """

    path: bytes
    directory: IndexEntry | None
    is_whiteout: bool = False


class Attributes(NamedTuple):
    """What all kinds of files have; see ``IndexEntry``."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


class _Bounds(NamedTuple):
    """How large an index may be; the writer keeps to what the reader accepts.

    Attributes:
        path_bytes: of one path.
        lines: in all, the header included.
        total_bytes: of the text.
    """

    path_bytes: int
    lines: int
    total_bytes: int

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """The bounds for layers within *limits*, or within those that are usual."""
        usual = Limits()
        entries = max(limits.entries, usual.entries)
        # An entry has one line, and a directory that no entry lists has one.
        lines = 2 * entries + max(limits.path_depth, usual.path_depth) + 2
        path_bytes = max(limits.path_bytes, usual.path_bytes) + _NAME_BYTES
        return cls(path_bytes, lines, lines * _MEAN_LINE_BYTES)


class IndexWriter:
    """Writes the index of one layer to *file*, a file descriptor that can be read as well.

    All methods raise ``LimitExceededError`` where the index would become larger than its reader
    accepts.
    """

    def __init__(self, file: int, limits: Limits = _USUAL_LIMITS) -> None:
        self._file = file
        self._lines = [_HEADER]
        self._compressor = new_gzip_compressor()  # half of it is digests, which stay large anyhow
        self._has_removals = False
        self._bounds = _Bounds.of(limits)
        self._size = len(_HEADER)

    def add(self, path: bytes, kind: bytes, attributes: Attributes, keywords: bytes = b"") -> None:
        """Note what *path* is; *keywords* are further ones, each after a blank."""
        if len(path) > self._bounds.path_bytes:
            raise LimitExceededError(f"path longer than {self._bounds.path_bytes} bytes")
        seconds, nanoseconds = divmod(attributes.mtime_ns, _NANOSECONDS)
        line = b"./%b type=%b mode=%04o uid=%d gid=%d time=%d.%09d%b" % (
            escaped(path),
            kind,
            attributes.mode,
            *attributes.owner,
            seconds,
            nanoseconds,
            keywords,
        )
        for name, value in attributes.xattrs.items():
            line += b" xattr.%b=%b" % (escaped(name), base64.b64encode(value))
        self._add_line(line)

    def add_hard_link(self, path: bytes, other: bytes) -> None:
        """Note that *path* is the same file as *other*."""
        self._add_line(b"./%b %b./%b" % (escaped(path), _HARD_LINK, escaped(other)))

    def remove(self, path: bytes) -> None:
        """Take back what was noted of *path* and of all below it: a later entry replaced it."""
        self._has_removals = True
        self._add_line(_REMOVAL + b"./" + escaped(path))

    def finish(self) -> None:
        """Complete the index."""
        self._flush()
        _write_all(self._file, self._compressor.flush())
        if self._has_removals:
            self._leave_out_removed()

    def _add_line(self, line: bytes) -> None:
        self._size += len(line) + 1
        if len(line) > _LINE_BYTES or self._size > self._bounds.total_bytes:
            raise LimitExceededError("the index of the layer would be too large")
        self._lines.append(line + b"\n")
        if len(self._lines) == _BUFFERED_LINES:
            self._flush()

    def _flush(self) -> None:
        _write_all(self._file, self._compressor.compress(b"".join(self._lines)))
        self._lines.clear()

    def _leave_out_removed(self) -> None:
        """Write the index again without what was removed; only odd layers replace their own files.

        The new one grows behind the old one in the same file, since a worker has no other, and is
        then moved to the beginning. Neither is held in memory.
        """
        end = os.lseek(self._file, 0, os.SEEK_END)
        removals = _Removals(self._draft(end))
        compressor = new_gzip_compressor()
        self._append(compressor.compress(_HEADER))
        buffered: list[bytes] = []
        for line in removals.left_of(self._draft(end)):
            buffered += (line, b"\n")
            if len(buffered) == 2 * _BUFFERED_LINES:
                self._append(compressor.compress(b"".join(buffered)))
                buffered.clear()
        self._append(compressor.compress(b"".join(buffered)) + compressor.flush())
        self._move_to_beginning(end)

    def _draft(self, end: int) -> Iterator[bytes]:
        """The lines that were written so far, up to the byte *end*, without the header."""
        chunks = decompressed(self._read_up_to(end), zstd_window_bytes=0)
        # A removal has a line, too, as long as the draft lasts.
        lines = _lines(chunks, self._bounds._replace(lines=2 * self._bounds.lines))
        next(lines)
        yield from lines

    def _read_up_to(self, end: int) -> Iterator[bytes]:
        at = 0
        while at < end:
            os.lseek(self._file, at, os.SEEK_SET)  # who reads here may write elsewhere meanwhile
            chunk = os.read(self._file, min(CHUNK_BYTES, end - at))
            at += len(chunk)
            yield chunk

    def _append(self, data: bytes) -> None:
        os.lseek(self._file, 0, os.SEEK_END)
        _write_all(self._file, data)

    def _move_to_beginning(self, start: int) -> None:
        """Move what is in the file from *start* on to its beginning, and cut off the rest."""
        to = 0
        while True:
            os.lseek(self._file, start + to, os.SEEK_SET)
            chunk = os.read(self._file, CHUNK_BYTES)
            if not chunk:
                break
            os.lseek(self._file, to, os.SEEK_SET)
            _write_all(self._file, chunk)
            to += len(chunk)
        os.ftruncate(self._file, to)


class _Removals:
    """Which lines of a draft were taken back by later ones.

    A hard link outlives the path that it was made of: it then gets that one's attributes.

    Args:
        lines: of the draft, without the header.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._removed: dict[bytes, int] = {}  # by paths: the number of the last removal
        links: list[tuple[int, bytes, bytes]] = []
        for number, line in enumerate(lines):
            path, keywords = _split(line)
            if path.startswith(_REMOVAL):
                self._removed[path.removeprefix(_REMOVAL)] = number
            elif target := _target_of(keywords):
                links.append((number, path, target))
        self._needed: set[bytes] = set()  # paths whose attributes a hard link may get
        for number, path, target in reversed(links):
            if path in self._needed or self._is_removed(target, number):
                self._needed.add(target)

    def left_of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines of the same draft that are left, with the attributes that they got."""
        keywords_of: dict[bytes, bytes] = {}
        for number, line in enumerate(lines):
            path, keywords = _split(line)
            if path.startswith(_REMOVAL):
                continue
            target = _target_of(keywords)
            inherited = keywords_of.get(target, keywords)
            if path in self._needed:
                keywords_of[path] = inherited
            if not self._is_removed(path, number):
                is_alone = target and self._is_removed(target, number)
                yield path + b" " + (inherited if is_alone else keywords)

    def _is_removed(self, path: bytes, number: int) -> bool:
        """Whether *path*, or a directory that it is in, was removed after the line *number*."""
        removed = self._removed
        return any(removed.get(one, -1) > number for one in _with_parents(path))


def _split(line: bytes) -> tuple[bytes, bytes]:
    path, _, keywords = line.partition(b" ")
    return path, keywords


def _target_of(keywords: bytes) -> bytes:
    """The path that a hard link shares its file with; nothing for all else."""
    return keywords.removeprefix(_HARD_LINK) if keywords.startswith(_HARD_LINK) else b""


def file_keywords(size: int, sha256: str) -> bytes:
    """What the index says of a file besides its attributes."""
    return b" size=%d sha256digest=%b" % (size, sha256.encode())


def link_keywords(target: bytes) -> bytes:
    """What the index says of a symlink besides its attributes."""
    return b" link=" + escaped(target)


def device_keywords(device: tuple[int, int]) -> bytes:
    """What the index says of a device besides its attributes."""
    return b" device=native,%d,%d" % device


IMPLIED: Final = b" optional"
"""What the index says of a directory that the archive does not list."""


def read_index(file: BinaryIO, name: str, limits: Limits = _USUAL_LIMITS) -> Iterator[IndexEntry]:
    """Read the index in *file*; *name* is what errors call it.

    The unpacker that wrote it may have been taken over by the layer's archive: nothing in it is
    believed. Paths stay in the layer, numbers are in the ranges of Linux, and neither a line nor
    the whole is larger than a layer within *limits* needs. A path may occur more than once.

    Raises:
        StoreError: it is damaged, or of a version that is not known.
    """
    yield from _read(file, name, limits, _entry)


def read_outline(file: BinaryIO, name: str, limits: Limits = _USUAL_LIMITS) -> Iterator[Occurrence]:
    """Read only the directories, and the paths of all else, of the index in *file*.

    Directories come after those that they are in. Otherwise as ``read_index``.

    Raises:
        StoreError: it is damaged, or of a version that is not known.
    """
    yield from _read(file, name, limits, _occurrence)


def _read(
    file: BinaryIO, name: str, limits: Limits, parse: Callable[[bytes, _Bounds], Parsed]
) -> Iterator[Parsed]:
    bounds = _Bounds.of(limits)
    count = 1
    try:
        lines = _lines(_decompressed(file), bounds)
        if next(lines, b"") + b"\n" != _HEADER:
            raise StoreError(f"{name}: not an index of a version that is known")
        for line in lines:
            count += 1
            yield parse(line, bounds)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise StoreError(f"{name}: the index is damaged in line {count}: {error}") from error


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of the one gzip member that *file* is, piece by piece.

    ``gzip.GzipFile`` reads any number of members and of padding bytes without returning. Data that
    yields less than it takes is refused, so that no reader works for long without a line.
    """
    # By zlib: what is decompressed here is not in the unpacker's jail.
    stream = zlib.decompressobj(zlib.MAX_WBITS | _GZIP_FORMAT)
    surplus = 0
    while not stream.eof:
        data = stream.unconsumed_tail
        if not data:
            data = file.read(_COMPRESSED_BYTES)
            surplus += len(data)
        if not data:
            raise EOFError("it ends within the compressed data")
        piece = stream.decompress(data, CHUNK_BYTES)
        surplus -= len(piece)
        if surplus > _SURPLUS_BYTES:
            raise ValueError("its compressed form is larger than its content")
        yield piece
    if stream.unused_data or file.read(1):
        raise ValueError("something follows its end")


def _lines(chunks: Iterable[bytes], bounds: _Bounds) -> Iterator[bytes]:
    """The lines of *chunks*, each of which is smaller than a line may be."""
    total = count = begun_bytes = 0
    begun: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        total += len(chunk)
        count += len(complete)
        if total > bounds.total_bytes or count > bounds.lines:
            raise ValueError("it is larger than that of a layer within the limits")
        if complete:
            complete[0] = b"".join((*begun, complete[0]))
            yield from complete
            begun_bytes = 0
            begun.clear()
        begun.append(rest)
        begun_bytes += len(rest)
        if begun_bytes > _LINE_BYTES:
            raise ValueError(f"a line is longer than {_LINE_BYTES} bytes")
    if begun_bytes:
        raise ValueError("it ends within a line")


def _occurrence(line: bytes, bounds: _Bounds) -> Occurrence:
    path, keywords = _split(line)
    if keywords.startswith(_DIRECTORY):
        entry = _entry(line, bounds)
        return Occurrence(entry.path, entry)
    is_whiteout = keywords.startswith(_CHARACTER_DEVICE) and _entry(line, bounds).device == (0, 0)
    return Occurrence(_unescaped(path.removeprefix(b"./")), None, is_whiteout)


def _entry(line: bytes, bounds: _Bounds) -> IndexEntry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"malformed: {line[:_SHOWN_BYTES]!r}")
    (path, hard_link, kind, mode, uid, gid, seconds, nanoseconds, size, sha256, link, major, minor,
     implied, xattrs) = match.groups()  # fmt: skip
    if hard_link is not None:
        kind, mode, uid, gid, seconds, nanoseconds = _ATTRIBUTES_ELSEWHERE
    elif (size is not None, link is not None, major is not None) != _HAS[kind] or (
        implied is not None and kind != b"dir"
    ):
        raise ValueError(f"not the keywords of its type: {line[:_SHOWN_BYTES]!r}")
    return IndexEntry(
        path=_checked_path(path, bounds),
        kind=kind.decode("ascii"),
        mode=int(mode, 8),
        owner=(_number(uid, _LARGEST_ID), _number(gid, _LARGEST_ID)),
        mtime_ns=_checked_seconds(seconds) * _NANOSECONDS + int(nanoseconds),
        size=_number(size, _LARGEST_SIZE) if size is not None else 0,
        sha256=(sha256 or b"").decode("ascii"),
        link=_checked_link(link) if link is not None else b"",
        hard_link=_checked_path(hard_link, bounds) if hard_link is not None else b"",
        device=_device(major, minor) if major is not None else (0, 0),
        xattrs=_xattrs(xattrs) if xattrs else {},
        is_implied=implied is not None,
    )


def _device(major: bytes, minor: bytes) -> tuple[int, int]:
    return _number(major, _LARGEST_MAJOR), _number(minor, _LARGEST_MINOR)


def _number(digits: bytes, largest: int) -> int:
    value = int(digits)
    if value > largest:
        raise ValueError(f"a number is larger than {largest}: {value}")
    return value


def _checked_seconds(text: bytes) -> int:
    seconds = int(text)
    if abs(seconds) > _LARGEST_SECONDS:
        raise ValueError(f"an impossible time: {seconds}")
    return seconds


def _checked_path(name: bytes, bounds: _Bounds) -> bytes:
    """The path *name*, which leads to something below the layer's root, or is the root itself."""
    path = _unescaped(name)
    if path == _ROOT:
        return path
    if _NO_PATH.search(path) or len(path) > bounds.path_bytes:
        raise ValueError(f"no path in a layer: {path[:_SHOWN_BYTES]!r}")
    return path


def _checked_link(name: bytes) -> bytes:
    link = _unescaped(name)
    if not link or b"\0" in link or len(link) > _LINK_BYTES:
        raise ValueError(f"no target of a symlink: {link[:_SHOWN_BYTES]!r}")
    return link


def _xattrs(keywords: bytes) -> dict[bytes, bytes]:
    xattrs = {}
    for keyword in keywords.split():
        escaped_name, _, value = keyword.partition(b"=")
        name = _unescaped(escaped_name.removeprefix(b"xattr."))
        if not name or name in xattrs or b"\0" in name or len(name) > _NAME_BYTES:
            raise ValueError(
                f"no name of an attribute, or one given twice: {name[:_SHOWN_BYTES]!r}"
            )
        xattrs[name] = binascii.a2b_base64(value, strict_mode=True)
    return xattrs


def escaped(name: bytes) -> bytes:
    """*name* as mtree writes it."""
    if not name.translate(None, _PLAIN):  # by far the most frequent
        return name
    return _TO_BE_ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], name)


def _unescaped(name: bytes) -> bytes:
    if b"\\" not in name:
        return name
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), name)


def _with_parents(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _write_all(file: int, content: bytes) -> None:
    written = os.write(file, content)
    while written < len(content):
        written += os.write(file, content[written:])
