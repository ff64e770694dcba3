"""Sparse files: maps that lie in each of GNU tar's four spellings, and sizes without content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from hostile.cases import Case, Refusal, base256, padded, pax, pax_record, raw_entry
from layermanager.errors import ArchiveError, LimitExceededError, NotEnoughSpaceError
from layermanager.model import Limits
from layermanager.testing.layers import END_OF_ARCHIVE, header_block

if TYPE_CHECKING:
    from pathlib import Path

    from hostile.cases import Check

_ORDER: Final = Refusal(ArchiveError, "segments overlap or are out of order")
_BEYOND: Final = Refusal(ArchiveError, "beyond the file's size")
_DIFFER: Final = Refusal(ArchiveError, "sparse map and content differ in size")
_NO_DECIMAL: Final = Refusal(ArchiveError, "a header record is no decimal number")
_TOO_MUCH: Final = Refusal(LimitExceededError, "unpackedBytes")
_NO_NUMBER: Final = Refusal(ArchiveError, "sparse map: no number")
_MAP_TOO_LARGE: Final = Refusal(LimitExceededError, "sparse file takes more than headerBytes")


def _octal(number: int) -> bytes:
    return b"%011o\0" % number


def _old_map(*segments: tuple[bytes, bytes]) -> bytes:
    return b"".join(offset + size for offset, size in segments)


def _old(
    *segments: tuple[int, int],
    file_size: int,
    content: bytes = b"",
    is_extended: bool = False,
    after: bytes = b"",
) -> bytes:
    """A layer of one file in the old GNU format; *after* comes between header and content."""
    segment_map = _old_map(*((_octal(offset), _octal(size)) for offset, size in segments))
    return _old_raw(segment_map, _octal(file_size), content, bytes([is_extended]), after)


def _old_raw(
    segment_map: bytes,
    file_size: bytes,
    content: bytes,
    is_extended: bytes = b"\0",
    after: bytes = b"",
) -> bytes:
    rest = bytes(41) + segment_map.ljust(96, b"\0") + is_extended + file_size
    header = header_block(b"a", b"S", size=_octal(len(content)), magic=b"ustar  \0", rest=rest)
    return header + after + padded(content) + END_OF_ARCHIVE


def _extension(*segments: tuple[int, int], is_extended: bool = False) -> bytes:
    """A block that goes on with the map of an old GNU header."""
    segment_map = _old_map(*((_octal(offset), _octal(size)) for offset, size in segments))
    return segment_map.ljust(504, b"\0") + bytes([is_extended]) + bytes(7)


def _sparse_0_1(segment_map: bytes, size: bytes, content: bytes = b"") -> bytes:
    records = ((b"GNU.sparse.map", segment_map), (b"GNU.sparse.size", size))
    header = pax(*(pax_record(key, value) for key, value in records if value))
    return header + raw_entry(b"a", content) + END_OF_ARCHIVE


def _sparse_0_0(*records: tuple[bytes, bytes], content: bytes = b"") -> bytes:
    header = pax(*(pax_record(b"GNU.sparse." + key, value) for key, value in records))
    return header + raw_entry(b"a", content) + END_OF_ARCHIVE


def _sparse_1_0(segment_map: bytes, size: bytes, content: bytes = b"") -> bytes:
    records = (
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", size),
    )
    header = pax(*(pax_record(key, value) for key, value in records if value))
    return header + raw_entry(b"a", padded(segment_map) + content) + END_OF_ARCHIVE


def _content_is(content: bytes) -> Check:
    def check(place: Path) -> None:
        path = place / "a"
        assert path.read_bytes() == content
        assert path.stat().st_blocks * 512 <= 64 * 1024, "holes were filled"

    return check


_HOLES: Final = (
    Case(
        "old map",
        lambda: _old((100_000, 5), (200_000, 0), file_size=200_000, content=b"hello"),
        {"a": "file of 200000 bytes"},
        also=(_content_is(bytes(100_000) + b"hello" + bytes(99_995)),),
    ),
    Case(
        "old map that goes on",
        lambda: _old(
            *((number * 1000, 1) for number in range(4)),
            file_size=100_000,
            content=b"abcdef",
            is_extended=True,
            after=_extension((50_000, 1), is_extended=True) + _extension((60_000, 1)),
        ),
        {"a": "file of 100000 bytes"},
        also=(
            _content_is(
                b"a"
                + bytes(999)
                + b"b"
                + bytes(999)
                + b"c"
                + bytes(999)
                + b"d"
                + bytes(46_999)
                + b"e"
                + bytes(9_999)
                + b"f"
                + bytes(39_999)
            ),
        ),
    ),
    Case(
        "map in one record",
        lambda: _sparse_0_1(b"100000,5,200000,0", b"200000", b"hello"),
        {"a": "file of 200000 bytes"},
        also=(_content_is(bytes(100_000) + b"hello" + bytes(99_995)),),
    ),
    Case(
        "map at the head of the content",
        lambda: _sparse_1_0(b"1\n100000\n5\n", b"200000", b"hello"),
        {"a": "file of 200000 bytes"},
        also=(_content_is(bytes(100_000) + b"hello" + bytes(99_995)),),
    ),
    Case(
        "only a hole",
        lambda: _sparse_0_1(b"1000000,0", b"1000000"),
        {"a": "file of 1000000 bytes"},
        also=(_content_is(bytes(1_000_000)),),
    ),
    Case(
        "touching segments",
        lambda: _sparse_0_1(b"0,2,2,3", b"5", b"hello"),
        {"a": "file hello"},
    ),
)

_OLD: Final = (
    Case(
        "old map that overlaps",
        lambda: _old((0, 4), (3, 2), file_size=100, content=b"abcdef"),
        _ORDER,
    ),
    Case(
        "old map out of order",
        lambda: _old((50, 2), (0, 2), file_size=100, content=b"abcd"),
        _ORDER,
    ),
    Case(
        "old map with a negative offset",
        lambda: _old_raw(b"\xff" * 12 + _octal(1), _octal(100), b"a"),
        _ORDER,
    ),
    Case(
        "old map with a negative size",
        lambda: _old_raw(_octal(1) + b"\xff" * 12, _octal(100), b""),
        _ORDER,
    ),
    Case(
        "old map with an enormous offset",
        lambda: _old_raw(base256(2**90, 12) + _octal(1), _octal(100), b"a"),
        _BEYOND,
    ),
    Case(
        "old map beyond the file's size",
        lambda: _old((99, 2), file_size=100, content=b"ab"),
        _BEYOND,
    ),
    Case(
        "old map of more than the content",
        lambda: _old((0, 3), file_size=100, content=b"ab"),
        _DIFFER,
    ),
    Case(
        "old map of less than the content",
        lambda: _old((0, 1), file_size=100, content=b"ab"),
        _DIFFER,
    ),
    Case(
        "old file of a negative size",
        lambda: _old_raw(b"", b"\xff" * 12, b""),
        Refusal(ArchiveError, "the file's size is negative"),
    ),
    Case(
        "old map of letters",
        lambda: _old_raw(b"letters     " + _octal(1), _octal(100), b"a"),
        Refusal(ArchiveError, "a header field is no number"),
    ),
    Case(
        "old map that never ends",
        lambda: _old(file_size=100, is_extended=True, after=_extension(is_extended=True) * 3000),
        _MAP_TOO_LARGE,
    ),
    Case(
        "old map that is cut",
        lambda: _old(file_size=100, is_extended=True)[:512],
        Refusal(ArchiveError, "the tar ends within a sparse map"),
    ),
    Case("old hole of terabytes", lambda: _old_raw(b"", base256(2**50, 12), b""), _TOO_MUCH),
    Case("old hole of 2^90 bytes", lambda: _old_raw(b"", base256(2**90, 12), b""), _TOO_MUCH),
)

_PAX: Final = (
    Case("map that overlaps", lambda: _sparse_0_1(b"0,4,3,2", b"100", b"abcdef"), _ORDER),
    Case("map out of order", lambda: _sparse_0_1(b"50,2,0,2", b"100", b"abcd"), _ORDER),
    Case("map with the same segment twice", lambda: _sparse_0_1(b"0,1,0,1", b"9", b"ab"), _ORDER),
    Case("map beyond the file's size", lambda: _sparse_0_1(b"99,2", b"100", b"ab"), _BEYOND),
    Case("map of 2^64", lambda: _sparse_0_1(b"18446744073709551615,1", b"9", b"a"), _BEYOND),
    Case("map with a negative offset", lambda: _sparse_0_1(b"-1,1", b"100", b"a"), _NO_DECIMAL),
    Case("map with a blank", lambda: _sparse_0_1(b"0, 1", b"100", b"a"), _NO_DECIMAL),
    Case("map with a comma at its end", lambda: _sparse_0_1(b"0,1,", b"9", b"a"), _NO_DECIMAL),
    Case("map in hexadecimal", lambda: _sparse_0_1(b"0x0,0x1", b"100", b"a"), _NO_DECIMAL),
    Case(
        "map of an odd count",
        lambda: _sparse_0_1(b"0,1,2", b"100", b"a"),
        Refusal(ArchiveError, "an offset without a size"),
    ),
    Case("map of more than the content", lambda: _sparse_0_1(b"0,3", b"9", b"ab"), _DIFFER),
    Case("map of less than the content", lambda: _sparse_0_1(b"0,1", b"9", b"ab"), _DIFFER),
    Case("map without the file's size", lambda: _sparse_0_1(b"0,1", b"", b"a"), _NO_DECIMAL),
    Case("hole of terabytes", lambda: _sparse_0_1(b"0,0", b"%d" % 2**50), _TOO_MUCH),
    Case("hole of 2^63 bytes", lambda: _sparse_0_1(b"0,0", b"%d" % 2**63), _TOO_MUCH),
    Case(
        "holes that together are more than allowed",
        lambda: _sparse_0_1(b"0,0", b"6000000")[:-1024] + _sparse_0_1(b"0,0", b"6000000"),
        Refusal(LimitExceededError, "unpackedBytes: 10000000"),
        limits=Limits(unpacked_bytes=10_000_000),
    ),
    Case(
        "content at the end of gigabytes that is not there",
        lambda: _sparse_0_1(b"0,%d" % 2**33, b"%d" % 2**33),
        _DIFFER,
    ),
    Case(
        "offsets without sizes",
        lambda: _sparse_0_0((b"size", b"9"), (b"offset", b"0"), (b"offset", b"1")),
        Refusal(ArchiveError, "do not alternate"),
    ),
    Case(
        "sizes before offsets",
        lambda: _sparse_0_0((b"size", b"9"), (b"numbytes", b"1"), (b"offset", b"0")),
        Refusal(ArchiveError, "do not alternate"),
    ),
    Case(
        "last offset without its size",
        lambda: _sparse_0_0((b"size", b"9"), (b"offset", b"0")),
        Refusal(ArchiveError, "an offset without a size"),
    ),
    Case(
        "unknown format",
        lambda: _sparse_0_0((b"major", b"2"), (b"minor", b"0"), (b"realsize", b"9")),
        Refusal(ArchiveError, "unknown format of a sparse file"),
    ),
    Case(
        "format without its minor number",
        lambda: _sparse_0_0((b"major", b"1"), (b"realsize", b"9")),
        Refusal(ArchiveError, "unknown format of a sparse file"),
    ),
)

_IN_CONTENT: Final = (
    Case(
        "map in the content that overlaps",
        lambda: _sparse_1_0(b"2\n0\n4\n3\n2\n", b"9", b"abcdef"),
        _ORDER,
    ),
    Case(
        "map in the content with a sign",
        lambda: _sparse_1_0(b"+1\n0\n1\n", b"9", b"a"),
        _NO_DECIMAL,
    ),
    Case("map in the content of letters", lambda: _sparse_1_0(b"one\n", b"9"), _NO_DECIMAL),
    Case("empty line in the map", lambda: _sparse_1_0(b"\n0\n1\n", b"9", b"a"), _NO_DECIMAL),
    Case(
        "count of more than there are",
        lambda: _sparse_1_0(b"9\n0\n1\n", b"9", b"a"),
        Refusal(ArchiveError, "sparse map: longer than the entry"),
    ),
    Case(
        "count of 10^29",
        lambda: _sparse_1_0(b"1" + b"0" * 29 + b"\n", b"9", bytes(2_000_000)),
        _NO_NUMBER,
    ),
    Case(
        "map without a line's end",
        lambda: _sparse_1_0(b"1" * 2_000_000, b"9"),
        _NO_NUMBER,
    ),
    Case(
        "map in an empty entry",
        lambda: _sparse_1_0(b"", b"9"),
        Refusal(ArchiveError, "sparse map: longer than the entry"),
    ),
    Case(
        "map in the content without the file's size", lambda: _sparse_1_0(b"0\n", b""), _NO_DECIMAL
    ),
    Case(
        "map in the content that is cut",
        lambda: _sparse_1_0(b"1\n0\n1\n", b"9", b"a")[: 512 * 3 + 100],
        Refusal(ArchiveError, "the tar ends within a sparse map"),
    ),
    Case(
        "segments that are cut",
        lambda: _sparse_1_0(b"1\n0\n1000000\n", b"1000000", bytes(1_000_000))[:200_000],
        Refusal(ArchiveError, "the tar ends within this entry"),
    ),
    Case(
        "segments that take more than the space",
        lambda: _sparse_1_0(b"1\n0\n40000000\n", b"40000000", bytes(40_000_000)),
        Refusal(NotEnoughSpaceError, "not enough space"),
    ),
    Case(
        "many tiny segments",
        lambda: _sparse_1_0(
            b"20000\n" + b"".join(b"%d\n1\n" % (number * 2) for number in range(20_000)),
            b"40000",
            b"x" * 20_000,
        ),
        {"a": "file of 40000 bytes"},
        also=(lambda place: _assert_digest(place / "a", b"x\0" * 20_000),),
    ),
)


def _assert_digest(path: Path, content: bytes) -> None:
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()


CASES: Final = (*_HOLES, *_OLD, *_PAX, *_IN_CONTENT)
