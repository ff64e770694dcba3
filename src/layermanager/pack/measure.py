"""What a finished layer blob unpacks to, for the annotations that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layermanager.amounts import Amount
from layermanager.model import Digest, Limits
from layermanager.unpack.compression import decompressed
from layermanager.unpack.fields import OPAQUE_MARKER
from layermanager.unpack.streams import ByteReader, HashedChunks, chunks_of_file
from layermanager.unpack.tar import EntryKind, TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator


def measure(blob: int) -> tuple[Digest, Amount]:
    """Return the diff ID of the layer in *blob*, and its content and inodes.

    An entry that occurs twice counts twice, but for directories. Memory grows with the number of
    directories.

    Args:
        blob: a descriptor of the blob, at its beginning.

    Raises:
        ArchiveError, LimitExceededError: the blob is not a layer.
    """
    limits = Limits()
    plain = HashedChunks(
        decompressed(chunks_of_file(blob), zstd_window_bytes=limits.zstd_window_bytes), "sha256"
    )
    reader = ByteReader(iter(plain))
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
    return Digest(plain.digest), Amount(content, files + len(directories))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _with_ancestors(names: list[bytes]) -> Iterator[bytes]:
    for depth in range(len(names), 0, -1):
        yield b"/".join(names[:depth])
