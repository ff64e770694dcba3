"""The index of a layer: what every path in it is, by which it can be verified later.

It is an mtree(5) manifest, compressed by gzip: a text that people can read and that bsdtar, mtree
and gomtree understand. One line a path::

    ./etc/passwd type=file mode=0644 uid=0 gid=0 time=1700000000.000000000 size=12 sha256digest=…

Names are written as mtree writes them, with octal escapes for all but printable ASCII. Two things
are ours: a hard link has ``hardlink=PATH``, the path that it shares its file with, in place of its
attributes; and the first line names the version of this format. Whiteouts are the character
devices that they are on disk.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import os
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.errors import StoreError
from layermanager.unpack.compression import new_gzip_compressor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

_HEADER: Final = b"#mtree v2.0, layermanager index 1\n"
_BUFFERED_LINES: Final = 512
_REMOVAL: Final = b"-"
_HARD_LINK: Final = b" hardlink="
_NANOSECONDS: Final = 1_000_000_000
_TO_BE_ESCAPED: Final = re.compile(rb"[^!-~]|[\\#=*?\[]")
_PLAIN: Final = bytes(byte for byte in range(256) if not _TO_BE_ESCAPED.match(bytes([byte])))
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class IndexEntry:
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


class Attributes(NamedTuple):
    """What all kinds of files have; see ``IndexEntry``."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


class IndexWriter:
    """Writes the index of one layer to *file*, a file descriptor that can be read as well."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lines = [_HEADER]
        self._compressor = new_gzip_compressor()  # half of it is digests, which stay large anyhow
        self._has_removals = False

    def add(self, path: bytes, kind: bytes, attributes: Attributes, keywords: bytes = b"") -> None:
        """Note what *path* is; *keywords* are further ones, each after a blank."""
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
        self._add_line(b"./%b type=file%b./%b" % (escaped(path), _HARD_LINK, escaped(other)))

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
        self._lines.append(line + b"\n")
        if len(self._lines) == _BUFFERED_LINES:
            self._flush()

    def _flush(self) -> None:
        _write_all(self._file, self._compressor.compress(b"".join(self._lines)))
        self._lines.clear()

    def _leave_out_removed(self) -> None:
        """Write the index anew without what was removed; only odd layers replace their own files.

        From the end to the beginning, a removal concerns all the lines that are still to come. A
        hard link outlives the path that it was made of: it then gets that one's attributes.
        """
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            header, *lines = gzip.decompress(file.read()).splitlines()
        removed: set[bytes] = set()
        kept = []
        for path, keywords, resolved in reversed(list(_with_resolved_hard_links(lines))):
            if path.startswith(_REMOVAL):
                removed.add(path.removeprefix(_REMOVAL))
            elif removed.isdisjoint(_with_parents(path)):
                target = (b" " + keywords).partition(_HARD_LINK)[2]
                is_alone = not removed.isdisjoint(_with_parents(target))
                kept.append(path + b" " + (resolved if is_alone else keywords))
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)
        content = b"\n".join([header, *reversed(kept), b""])
        compressor = new_gzip_compressor()
        _write_all(self._file, compressor.compress(content) + compressor.flush())


def _with_resolved_hard_links(lines: list[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Path and keywords of each line, and the keywords of the file that a hard link leads to."""
    keywords_of: dict[bytes, bytes] = {}
    for line in lines:
        path, _, keywords = line.partition(b" ")
        target = (b" " + keywords).partition(_HARD_LINK)[2]
        resolved = keywords_of.get(target, keywords)
        keywords_of[path] = resolved
        yield path, keywords, resolved


def file_keywords(size: int, sha256: str) -> bytes:
    """What the index says of a file besides its attributes."""
    return b" size=%d sha256digest=%b" % (size, sha256.encode())


def link_keywords(target: bytes) -> bytes:
    """What the index says of a symlink besides its attributes."""
    return b" link=" + escaped(target)


def device_keywords(device: tuple[int, int]) -> bytes:
    """What the index says of a device besides its attributes."""
    return b" device=native,%d,%d" % device


def read_index(file: BinaryIO, name: str) -> Iterator[IndexEntry]:
    """Read the index in *file*; *name* is what errors call it.

    Raises:
        StoreError: it is damaged, or of a version that is not known.
    """
    try:
        with gzip.open(file) as lines:
            if lines.readline() != _HEADER:
                raise StoreError(f"{name}: not an index of a version that is known")
            for line in lines:
                yield _entry(line)
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        raise StoreError(f"{name}: the index is damaged: {error}") from error


def _entry(line: bytes) -> IndexEntry:
    path, *keywords = line.split()
    values = dict(keyword.split(b"=", 1) for keyword in keywords)
    seconds, _, nanoseconds = values.get(b"time", b"0.0").partition(b".")
    _, major, minor = values.get(b"device", b"native,0,0").split(b",")
    return IndexEntry(
        path=_unescaped(path.removeprefix(b"./")),
        kind=values[b"type"].decode("ascii"),
        mode=int(values.get(b"mode", b"0"), 8),
        owner=(int(values.get(b"uid", b"0")), int(values.get(b"gid", b"0"))),
        mtime_ns=int(seconds) * _NANOSECONDS + int(nanoseconds),
        size=int(values.get(b"size", b"0")),
        sha256=values.get(b"sha256digest", b"").decode("ascii"),
        link=_unescaped(values.get(b"link", b"")),
        hard_link=_unescaped(values.get(b"hardlink", b"").removeprefix(b"./")),
        device=(int(major), int(minor)),
        xattrs={
            _unescaped(key.removeprefix(b"xattr.")): binascii.a2b_base64(value, strict_mode=True)
            for key, value in values.items()
            if key.startswith(b"xattr.")
        },
    )


def escaped(name: bytes) -> bytes:
    """*name* as mtree writes it."""
    if not name.translate(None, _PLAIN):  # by far the most frequent
        return name
    return _TO_BE_ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], name)


def _unescaped(name: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), name)


def _with_parents(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _write_all(file: int, content: bytes) -> None:
    written = os.write(file, content)
    while written < len(content):
        written += os.write(file, content[written:])
