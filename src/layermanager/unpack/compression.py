"""Layers are compressed or not; their first bytes say how, whatever their names promise."""

from __future__ import annotations

import functools
import importlib
import sys
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.unpack.streams import CHUNK_BYTES, ByteReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from layermanager.model import Limits
    from layermanager.unpack.streams import CountedChunks, HashedChunks


def _module_if_installed(name: str) -> ModuleType | None:
    """Wheels of the fast libraries do not exist for every machine: docs/dependencies.md."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ISA-L inflates at twice the speed of zlib.
_isal: Final = _module_if_installed("isal.igzip_lib")
_isal_zlib: Final = _module_if_installed("isal.isal_zlib")
_zstd: Final = _module_if_installed(
    "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
)
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_FLAGS: Final = 3
_GZIP_SIMPLE_FLAGS: Final = (0, 1 << 2, 1 << 3, 1 << 4)  # nothing, or one field, in the header
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # after one byte of 0x50 to 0x5f
_UNSUPPORTED: Final = (
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x5d\x00\x00", "lzma"),
)
_ALWAYS_ALLOWED_BYTES: Final = 64 * 1024 * 1024  # so that the size of a tiny layer does not matter
_MAGIC_BYTES: Final = 6
_FIRST_INPUT_BYTES: Final = 4096


class _Decompressor(Protocol):
    """Decompresses one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Compressor(Protocol):
    """Compresses what it is given, bit by bit."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Codec(NamedTuple):
    """A kind of compression: how it begins, and what decompresses a member that begins so."""

    name: str
    starts: Callable[[bytes], bool]
    new_decompressor: Callable[[bytes], _Decompressor]
    errors: tuple[type[Exception], ...]


def decompressed(chunks: Iterator[bytes], *, zstd_window_bytes: int) -> Iterator[bytes]:
    """Decompress gzip or zstd; pass anything else on as it is.

    Several gzip members or zstd frames may follow one another, as RFC 1952 and RFC 8878 allow,
    and zero bytes may pad the end, as GNU gzip allows. However well they were compressed, no more
    than ``CHUNK_BYTES`` come at once.

    Raises:
        ArchiveError: the compressed data is damaged or truncated, is followed by something else,
            is of a kind that OCI does not know, or needs more memory than *zstd_window_bytes*.
    """
    reader = ByteReader(chunks)
    magic = reader.peek(_MAGIC_BYTES)
    if _starts_gzip(magic):
        yield from _members(reader, _gzip())
    elif _starts_zstd(magic):
        yield from _members(reader, _zstandard(zstd_window_bytes))
    else:
        for unsupported, name in _UNSUPPORTED:
            if magic.startswith(unsupported):
                raise ArchiveError(f"compressed with {name}, which OCI layers may not be")
        yield from reader.rest()


def no_bomb(
    plain: Iterator[bytes], compressed: HashedChunks | CountedChunks, limits: Limits
) -> Iterator[bytes]:
    """Pass on what *compressed* was decompressed to, as long as it is not absurdly larger.

    Raises:
        LimitExceededError: it is.
    """
    size = 0
    for chunk in plain:
        size += len(chunk)
        if size > most_plain_bytes(compressed.size, limits):
            raise LimitExceededError(
                f"decompressed to more than compressionRatio times its size: "
                f"{limits.compression_ratio}"
            )
        yield chunk


def most_plain_bytes(compressed: int, limits: Limits) -> int:
    """Return to how many bytes *compressed* bytes may decompress."""
    return _ALWAYS_ALLOWED_BYTES + limits.compression_ratio * compressed


def new_gzip_compressor() -> _Compressor:
    """A compressor that is as quick as can be; how well it compresses comes second."""
    compressor: _Compressor = (_isal_zlib or zlib).compressobj(1, wbits=16 + zlib.MAX_WBITS)
    return compressor


def _starts_gzip(magic: bytes) -> bool:
    return magic.startswith(_GZIP_MAGIC)


def _starts_zstd(magic: bytes) -> bool:
    return magic.startswith(_ZSTD_MAGIC) or (
        magic[1:4] == _ZSTD_SKIPPABLE_MAGIC and magic[0] & 0xF0 == 0x50
    )


def _gzip() -> _Codec:
    errors = (zlib.error,) if _isal is None else (zlib.error, _isal.error)
    return _Codec("gzip", _starts_gzip, _new_inflate, errors)


def _new_inflate(magic: bytes) -> _Decompressor:
    # ISA-L goes astray where a header of several optional fields is cut in two by its inputs.
    is_simple = len(magic) > _GZIP_FLAGS and magic[_GZIP_FLAGS] in _GZIP_SIMPLE_FLAGS
    if _isal is None or not is_simple:
        return _ZlibDecompressor()
    inflate: _Decompressor = _isal.IgzipDecompressor(flag=_isal.DECOMP_GZIP)
    return inflate


def _zstandard(window_bytes: int) -> _Codec:
    if _zstd is None:
        raise ArchiveError("the layer is compressed with zstd: install the package backports.zstd")
    smallest, largest = _zstd.DecompressionParameter.window_log_max.bounds()
    window_log = min(max(window_bytes.bit_length() - 1, smallest), largest)
    options = {_zstd.DecompressionParameter.window_log_max: window_log}
    new = functools.partial(_zstd.ZstdDecompressor, options=options)
    return _Codec("zstd", _starts_zstd, lambda _: new(), (_zstd.ZstdError,))


def _members(reader: ByteReader, codec: _Codec) -> Iterator[bytes]:
    """Decompress one member after the other, to the end."""
    while magic := reader.peek(_MAGIC_BYTES):
        if not codec.starts(magic):
            _require_padding(reader, codec.name)
            return
        member = codec.new_decompressor(magic)
        # A member copies what it leaves unused. A small first input keeps that cheap where members
        # are as small as single files (eStargz) or smaller still (an attack).
        wanted = _FIRST_INPUT_BYTES
        while not member.eof:
            data = reader.some(wanted) if member.needs_input else b""
            if member.needs_input and not data:
                raise ArchiveError(f"truncated {codec.name} data")
            try:
                plain = member.decompress(data, CHUNK_BYTES)
            except codec.errors as error:
                raise ArchiveError(f"damaged {codec.name} data: {error}") from error
            if plain:
                yield plain
            wanted = CHUNK_BYTES
        reader.put_back(len(member.unused_data))


def _require_padding(reader: ByteReader, kind: str) -> None:
    for chunk in reader.rest():
        if chunk.count(0) != len(chunk):
            raise ArchiveError(f"something else follows the {kind} data")


class _ZlibDecompressor:
    """The standard library's inflate behind the interface of the others."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._output_full = False

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not (self._output_full or self._inflate.unconsumed_tail)

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        plain = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self._output_full = len(plain) == max_length
        return plain
