"""The blob of a layer: its tar, compressed, and what that unpacks to, in one pass."""

from __future__ import annotations

import hashlib
import sys
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Protocol

from layermanager.amounts import Amount
from layermanager.errors import PackError
from layermanager.model import Digest, Limits
from layermanager.pack.layer_tar import Compression
from layermanager.unpack.compression import decompressed
from layermanager.unpack.fields import OPAQUE_MARKER
from layermanager.unpack.streams import ByteReader, HashedChunks
from layermanager.unpack.tar import EntryKind, TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.pack.layer_tar import LayerTar

ALGORITHM: Final = "sha256"
_GZIP_LEVEL: Final = 9
_ZSTD_LEVEL: Final = 19  # the highest that asks no more than 8 MiB of who decompresses


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A blob that was written.

    Attributes:
        compression: how it is compressed.
        digest: of the blob.
        size: of the blob, in bytes.
        diff_id: the digest of the tar.
        content: the content and inodes that it unpacks to. An entry that occurs twice counts twice,
            but for directories.
    """

    compression: Compression
    digest: Digest
    size: int
    diff_id: Digest
    content: Amount


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def write_layer(layer: LayerTar, compression: Compression, file: IO[bytes]) -> LayerBlob:
    """Write the blob of *layer* to *file*; what is compressed already is taken as it is.

    Memory grows with the number of directories.

    Raises:
        ArchiveError, LimitExceededError: it is not a layer.
        PackError: the compression is not available; or the source cannot be read.
    """
    blob = _Blob(file)
    limits = Limits()
    if layer.compression is Compression.NONE and compression is not Compression.NONE:
        chunks = _compressing(layer.chunks, _compressor(compression), blob)
    else:
        compression = layer.compression
        copied = _copying(layer.chunks, blob)
        chunks = decompressed(copied, zstd_window_bytes=limits.zstd_window_bytes)
    plain = HashedChunks(chunks, ALGORITHM)
    content = _measured(iter(plain), limits)
    return LayerBlob(compression, blob.digest, blob.size, Digest(plain.digest), content)


class _Blob:
    """A file whose bytes are counted, and have a digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.new(ALGORITHM)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)

    @property
    def digest(self) -> Digest:
        return Digest(f"{ALGORITHM}:{self._hash.hexdigest()}")


def _copying(chunks: Iterator[bytes], blob: _Blob) -> Iterator[bytes]:
    for chunk in chunks:
        blob.write(chunk)
        yield chunk


def _compressing(chunks: Iterator[bytes], compressor: _Compressor, blob: _Blob) -> Iterator[bytes]:
    for chunk in chunks:
        blob.write(compressor.compress(chunk))
        yield chunk
    blob.write(compressor.flush())


def _compressor(compression: Compression) -> _Compressor:
    if compression is Compression.ZSTD:
        return _zstd_compressor()
    # By default zlib names no file and no time in the header.
    return zlib.compressobj(_GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)


def _zstd_compressor() -> _Compressor:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - only who wants zstd needs it
        else:
            from backports import zstd  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise PackError(
            "zstd is not available: install the package backports.zstd, or choose gzip"
        ) from error
    return zstd.ZstdCompressor(_ZSTD_LEVEL)


def _measured(chunks: Iterator[bytes], limits: Limits) -> Amount:
    """Read the tar in *chunks* to its end; return what it unpacks to."""
    reader = ByteReader(chunks)
    directories: set[bytes] = set()
    content = files = 0
    for entry in TarReader(reader, limits):
        *parents, name = _names(entry.path) or (b"",)
        directories.update(_with_ancestors(parents))
        if entry.kind is EntryKind.DIRECTORY:
            directories.update(_with_ancestors([*parents, name]))
        elif entry.kind is not EntryKind.HARD_LINK and name != OPAQUE_MARKER:
            files += 1
            content += entry.size
    for _ in reader.rest():
        pass
    directories.discard(b"")
    return Amount(content, files + len(directories))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _with_ancestors(names: list[bytes]) -> Iterator[bytes]:
    for depth in range(len(names), 0, -1):
        yield b"/".join(names[:depth])
