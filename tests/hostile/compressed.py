"""Compression: bombs, windows, members without end, and what is no compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from typing import Final

from hostile.cases import Case, Refusal, layer, raw_entry
from layermanager.errors import ArchiveError, LimitExceededError, NotEnoughSpaceError
from layermanager.model import Limits
from layermanager.testing.layers import END_OF_ARCHIVE, compress, header_block

_FILE: Final = layer().file("a", b"x").tar()
_UNPACKED: Final = {"a": "file x"}
_GZIP_DAMAGED: Final = Refusal(ArchiveError, "damaged gzip data")
_GZIP_TRUNCATED: Final = Refusal(ArchiveError, "truncated gzip data")
_GZIP_FOLLOWED: Final = Refusal(ArchiveError, "something else follows the gzip data")
_ZSTD_DAMAGED: Final = Refusal(ArchiveError, "damaged zstd data")
_ZSTD_TRUNCATED: Final = Refusal(ArchiveError, "truncated zstd data")
_ZSTD_FOLLOWED: Final = Refusal(ArchiveError, "something else follows the zstd data")
_BOMB: Final = Refusal(LimitExceededError, "compressionRatio")
_MIB: Final = 1024 * 1024
_EMPTY_GZIP: Final = compress(b"", "gzip")
_EMPTY_ZSTD: Final = compress(b"", "zstd")
_SMALL_RATIO: Final = Limits(compression_ratio=2)


def _gzip() -> bytes:
    return compress(_FILE, "gzip")


def _zstd() -> bytes:
    return compress(_FILE, "zstd")


def _skippable(size: int) -> bytes:
    return struct.pack("<II", 0x184D2A50, size) + bytes(size)


def _zeros(mebibytes: int) -> bytes:
    """A gzip member of that many zeros."""
    deflate = zlib.compressobj(9, wbits=31)
    return b"".join(deflate.compress(bytes(_MIB)) for _ in range(mebibytes)) + deflate.flush()


def _zstd_with_window(log: int) -> bytes:
    """A frame of one raw block that asks for a window of 2^log bytes."""
    header = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(log - 10) << 3])
    block = struct.pack("<I", (len(_FILE) << 3) | 1)[:3] + _FILE
    return header + block


def _nested(times: int) -> bytes:
    data = _FILE
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


def _with_optional_fields() -> bytes:
    """A gzip member with an extra field, a name, a comment and a checksum of its header."""
    plain = _gzip()
    header = b"\x1f\x8b\x08\x1e" + plain[4:10] + b"\x05\x00extra" + b"name\0" + b"comment\0"
    return header + struct.pack("<H", zlib.crc32(header) & 0xFFFF) + plain[10:]


_GZIP: Final = (
    Case(
        "gzip in two members",
        lambda: compress(_FILE[:700], "gzip") + compress(_FILE[700:], "gzip"),
        _UNPACKED,
    ),
    Case("gzip with empty members", lambda: _EMPTY_GZIP * 3 + _gzip() + _EMPTY_GZIP * 3, _UNPACKED),
    Case("gzip of nothing but empty members", lambda: _EMPTY_GZIP * 20_000, {}),
    Case("gzip cut in its header", lambda: _gzip()[:5], _GZIP_TRUNCATED),
    Case("gzip cut in its data", lambda: _gzip()[:-20], _GZIP_TRUNCATED),
    Case("gzip cut in its checksum", lambda: _gzip()[:-6], _GZIP_TRUNCATED),
    Case("gzip cut by a byte", lambda: _gzip()[:-1], _GZIP_TRUNCATED),
    Case("second member cut", lambda: _gzip() + _EMPTY_GZIP[:-1], _GZIP_TRUNCATED),
    Case(
        "wrong checksum of gzip", lambda: _gzip()[:-8] + b"\0\0\0\0" + _gzip()[-4:], _GZIP_DAMAGED
    ),
    Case("wrong length of gzip", lambda: _gzip()[:-4] + b"\0\0\0\0", _GZIP_DAMAGED),
    Case("unknown method", lambda: b"\x1f\x8b\x07" + _gzip()[3:], _GZIP_DAMAGED),
    Case("damaged data", lambda: _gzip()[:10] + b"\xff" * 50 + _gzip()[60:], _GZIP_DAMAGED),
    Case("zeros after gzip", lambda: _gzip() + bytes(5000), _UNPACKED),
    Case("one zero after gzip", lambda: _gzip() + b"\0", _UNPACKED),
    Case("garbage after gzip", lambda: _gzip() + b"garbage", _GZIP_FOLLOWED),
    Case("garbage after zeros after gzip", lambda: _gzip() + bytes(500) + b"x", _GZIP_FOLLOWED),
    Case("gzip member after zeros", lambda: _gzip() + bytes(16) + _gzip(), _GZIP_FOLLOWED),
    Case("zstd after gzip", lambda: _gzip() + _zstd(), _GZIP_FOLLOWED),
    Case("half a magic after gzip", lambda: _gzip() + b"\x1f", _GZIP_FOLLOWED),
    Case(
        "gzip with a name without end",
        lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 3_000_000,
        _GZIP_TRUNCATED,
    ),
    Case(
        "gzip with all optional fields",
        _with_optional_fields,
        _UNPACKED,
    ),
)

_ZSTD: Final = (
    Case(
        "zstd in two frames",
        lambda: compress(_FILE[:700], "zstd") + compress(_FILE[700:], "zstd"),
        _UNPACKED,
    ),
    Case(
        "zstd between skippable frames", lambda: _skippable(50) + _zstd() + _skippable(0), _UNPACKED
    ),
    Case("nothing but skippable frames", lambda: _skippable(0) * 20_000, {}),
    Case("nothing but empty frames", lambda: _EMPTY_ZSTD * 5_000, {}),
    Case("skippable frame that is cut", lambda: _skippable(1000)[:-1], _ZSTD_TRUNCATED),
    Case(
        "skippable frame of 4 GiB",
        lambda: struct.pack("<II", 0x184D2A5F, 2**32 - 1) + _zstd(),
        _ZSTD_TRUNCATED,
    ),
    Case("zstd cut in its header", lambda: _zstd()[:5], _ZSTD_TRUNCATED),
    Case("zstd cut by a byte", lambda: _zstd()[:-1], _ZSTD_TRUNCATED),
    Case("damaged zstd", lambda: _zstd()[:8] + b"\xff" * 8 + _zstd()[16:], _ZSTD_DAMAGED),
    Case("zeros after zstd", lambda: _zstd() + bytes(5000), _UNPACKED),
    Case("garbage after zstd", lambda: _zstd() + b"garbage", _ZSTD_FOLLOWED),
    Case("gzip after zstd", lambda: _zstd() + _gzip(), _ZSTD_FOLLOWED),
    Case("window within the limit", lambda: _zstd_with_window(27), _UNPACKED),
    Case("window beyond the limit", lambda: _zstd_with_window(28), _ZSTD_DAMAGED),
    Case("window of 2 TiB", lambda: _zstd_with_window(41), _ZSTD_DAMAGED),
    Case(
        "window beyond a smaller limit",
        lambda: _zstd_with_window(21),
        _ZSTD_DAMAGED,
        limits=Limits(zstd_window_bytes=_MIB),
    ),
)

_BOMBS: Final = (
    Case(
        "bomb of gzip in a file",
        lambda: compress(header_block(b"a", size=b"%011o\0" % (100 * _MIB)), "gzip") + _zeros(100),
        Refusal(NotEnoughSpaceError, "not enough space"),
    ),
    Case(
        "bomb of gzip in a file that exceeds the limits",
        lambda: compress(header_block(b"a", size=b"%011o\0" % (100 * _MIB)), "gzip") + _zeros(100),
        Refusal(LimitExceededError, "unpackedBytes"),
        limits=Limits(unpacked_bytes=_MIB),
    ),
    Case(
        "bomb of gzip after the end",
        lambda: compress(_FILE, "gzip") + _zeros(100),
        _BOMB,
        limits=_SMALL_RATIO,
    ),
    Case(
        "bomb of zstd after the end",
        lambda: compress(_FILE + bytes(100 * _MIB), "zstd"),
        _BOMB,
        limits=_SMALL_RATIO,
    ),
    Case(
        "bomb in a file of no name",
        lambda: compress(header_block(b"", size=b"%011o\0" % (100 * _MIB)), "gzip") + _zeros(100),
        Refusal(ArchiveError, "root is a file"),
    ),
    Case(
        "bomb in the content of a marker",
        lambda: (
            compress(header_block(b".wh.a", size=b"%011o\0" % (100 * _MIB)), "gzip") + _zeros(100)
        ),
        _BOMB,
        limits=_SMALL_RATIO,
    ),
    Case(
        "bomb of entries",
        lambda: compress(raw_entry(b"a") * 50_000, "gzip"),
        Refusal(LimitExceededError, "more than 1000 entries"),
        limits=Limits(entries=1000),
    ),
    Case(
        "bomb of directories",
        lambda: compress(b"".join(raw_entry(b"%d" % n, b"", b"5") for n in range(2100)), "gzip"),
        Refusal(NotEnoughSpaceError, "not enough space"),
    ),
    Case("gzip in gzip", lambda: _nested(2), Refusal(ArchiveError, "the tar ends within a header")),
    Case(
        "gzip in gzip in gzip",
        lambda: _nested(3),
        Refusal(ArchiveError, "the tar ends within a header"),
    ),
)

_OTHERS: Final = (
    Case("bzip2", lambda: bz2.compress(_FILE), Refusal(ArchiveError, "compressed with bzip2")),
    Case("xz", lambda: lzma.compress(_FILE), Refusal(ArchiveError, "compressed with xz")),
    Case(
        "lzma",
        lambda: lzma.compress(_FILE, lzma.FORMAT_ALONE),
        Refusal(ArchiveError, "compressed with lzma"),
    ),
    Case("lz4", lambda: b"\x04\x22\x4d\x18" + bytes(600), Refusal(ArchiveError, "with lz4")),
    Case("zip", lambda: b"PK\x03\x04" + bytes(600), Refusal(ArchiveError, "checksum")),
    Case(
        "zlib",
        lambda: zlib.compress(_FILE * 20),
        Refusal(ArchiveError, "the tar ends within a header"),
    ),
    Case(
        "file whose name is a magic",
        lambda: header_block(b"\x1f\x8b", size=b"%011o\0" % 0) + END_OF_ARCHIVE,
        _GZIP_DAMAGED,
    ),
)


CASES: Final = (*_GZIP, *_ZSTD, *_BOMBS, *_OTHERS)
