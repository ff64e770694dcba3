"""Sparse files in tar: where the pieces of content belong, in each of GNU tar's four spellings.

GNU tar's manual, "Storing Sparse Files": the old GNU header (typeflag ``S``), and in PAX headers
the formats 0.0 (repeated records), 0.1 (one record) and 1.0 (at the head of the content).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.unpack.fields import decimal, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from layermanager.unpack.streams import Reader

_BLOCK_BYTES: Final = 512
_FIELD_BYTES: Final = 12
_LONGEST_NUMBER: Final = 30
_OLD_GNU_MAP: Final = slice(386, 386 + 4 * 2 * _FIELD_BYTES)
_OLD_GNU_IS_EXTENDED: Final = 482
_OLD_GNU_REAL_SIZE: Final = slice(483, 483 + _FIELD_BYTES)
_EXTENSION_MAP: Final = slice(0, 21 * 2 * _FIELD_BYTES)
_EXTENSION_IS_EXTENDED: Final = 504


class Segment(NamedTuple):
    """A piece of content and its place in the file; what lies between segments is a hole."""

    offset: int
    size: int


class SparseMap(NamedTuple):
    """The layout of a sparse file, checked.

    Attributes:
        segments: the pieces of content, in the order of their offsets.
        file_size: the size of the file with its holes.
        map_bytes: how much of the entry's content the map itself took (format 1.0).
    """

    segments: tuple[Segment, ...]
    file_size: int
    map_bytes: int = 0


def read_old_gnu(header: bytes, reader: Reader, *, limit: int) -> SparseMap:
    """Read the map in a header of typeflag ``S`` and in the blocks that extend it."""
    segments = list(_old_gnu_segments(header[_OLD_GNU_MAP]))
    is_extended = header[_OLD_GNU_IS_EXTENDED]
    read = 0
    while is_extended:
        read += _BLOCK_BYTES
        _require_within(read, limit)
        block = reader.take(_BLOCK_BYTES)
        segments += _old_gnu_segments(block[_EXTENSION_MAP])
        is_extended = block[_EXTENSION_IS_EXTENDED]
    return _checked(segments, number(header[_OLD_GNU_REAL_SIZE]))


def read_pax(
    records: Sequence[tuple[bytes, bytes]], reader: Reader, content_size: int, *, limit: int
) -> SparseMap | None:
    """Read the map that the PAX *records* of an entry describe; None when they describe none."""
    values = dict(records)
    version = (values.get(b"GNU.sparse.major"), values.get(b"GNU.sparse.minor"))
    if version == (b"1", b"0"):
        return _read_format_1_0(
            reader, decimal(values.get(b"GNU.sparse.realsize", b"")), content_size, limit=limit
        )
    if version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise ArchiveError(f"unknown format of a sparse file: {version}")
    if (map_text := values.get(b"GNU.sparse.map")) is not None:
        numbers = [decimal(text) for text in map_text.split(b",")] if map_text else []
    else:
        keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        map_records = [record for record in records if record[0] in keys]
        if not map_records:
            return None
        if any(key != keys[index % 2] for index, (key, _) in enumerate(map_records)):
            raise ArchiveError("sparse map: offsets and sizes do not alternate")
        numbers = [decimal(value) for _, value in map_records]
    return _checked(_pairs(numbers), decimal(values.get(b"GNU.sparse.size", b"")))


def _read_format_1_0(reader: Reader, file_size: int, content_size: int, *, limit: int) -> SparseMap:
    """Read lines of decimal numbers, padded to a block: the count of segments, then these."""
    text = b""
    wanted = 1
    lines: list[bytes] = []
    map_bytes = 0
    while len(lines) < wanted:
        map_bytes += _BLOCK_BYTES
        _require_within(map_bytes, limit)
        if map_bytes > content_size:
            raise ArchiveError("sparse map: longer than the entry")
        *complete, text = (text + reader.take(_BLOCK_BYTES)).split(b"\n")
        lines += complete
        if len(text) > _LONGEST_NUMBER and len(lines) < wanted:
            raise ArchiveError(f"sparse map: no number: {text[:80]!r}")
        if lines:
            wanted = 1 + 2 * decimal(lines[0])
    numbers = [decimal(line) for line in lines[1:wanted]]
    return _checked(_pairs(numbers), file_size, map_bytes)


def _old_gnu_segments(fields: bytes) -> Iterator[Segment]:
    for at in range(0, len(fields), 2 * _FIELD_BYTES):
        offset = fields[at : at + _FIELD_BYTES]
        if not offset.strip(b"\0 "):
            return
        yield Segment(number(offset), number(fields[at + _FIELD_BYTES : at + 2 * _FIELD_BYTES]))


def _pairs(numbers: Sequence[int]) -> list[Segment]:
    if len(numbers) % 2:
        raise ArchiveError("sparse map: an offset without a size")
    return [Segment(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def _checked(segments: Iterable[Segment], file_size: int, map_bytes: int = 0) -> SparseMap:
    end = 0
    segments = tuple(segments)
    if file_size < 0:
        raise ArchiveError(f"sparse map: the file's size is negative: {file_size}")
    for segment in segments:
        if segment.offset < end or segment.size < 0:
            raise ArchiveError(f"sparse map: segments overlap or are out of order: {segment}")
        end = segment.offset + segment.size
    if end > file_size:
        raise ArchiveError(f"sparse map: it ends at {end}, beyond the file's size of {file_size}")
    return SparseMap(segments, file_size, map_bytes)


def _require_within(size: int, limit: int) -> None:
    if size > limit:
        raise LimitExceededError(f"the map of a sparse file takes more than headerBytes: {limit}")
