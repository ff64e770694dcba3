"""Layer blobs to measure with: how they are compressed, and what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.setting import require_program
from layermanager import DesiredLayer, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

_PAGE_BYTES: Final = 4096
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Compression:
    """How a blob is compressed.

    Attributes:
        name: for people.
        suffix: of the blob's file name.
        command: compresses standard input to standard output.
        tar_option: by which GNU tar unpacks it.
    """

    name: str
    suffix: str
    command: tuple[str, ...]
    tar_option: str


GZIP: Final = Compression("gzip", ".gz", ("gzip", "--no-name", "-6"), "--gzip")
QUICK_GZIP: Final = dataclasses.replace(GZIP, command=("gzip", "--no-name", "-1"))
ZSTD: Final = Compression("zstd", ".zst", ("zstd", "--quiet", "-3"), "--zstd")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer blob.

    Attributes:
        blob: the file: a compressed tar.
        digest: its digest.
        compression: how it is compressed.
        files: how many there are in it.
        content_bytes: the content of them.
        payload_bytes: the same, each in whole pages: what unpacking must write.
    """

    blob: Path
    digest: str
    compression: Compression
    files: int
    content_bytes: int
    payload_bytes: int

    @property
    def description(self) -> str:
        """What is in it, and how large it is."""
        compressed = self.blob.stat().st_size
        return (
            f"{self.files:,} files, {self.content_bytes / _MEGABYTE:,.0f} MB, "
            f"{compressed / _MEGABYTE:,.0f} MB by {self.compression.name}"
        )

    @property
    def tar(self) -> str:
        """The peer: how a person would unpack it."""
        return f"tar -x {self.compression.tar_option}"

    def desired(self, url: str) -> DesiredLayer:
        """The same as it is desired, where it is at *url*."""
        size = self.blob.stat().st_size
        return DesiredLayer(Digest(self.digest), url, self.blob.stem, "1.0.0", size=size)


@contextmanager
def compressing(blob: Path, compression: Compression) -> Iterator[IO[bytes]]:
    """Write into a new compressed file.

    Raises:
        UnavailableError: there is no program for that.
    """
    require_program(compression.command[0])
    with (
        blob.open("xb") as target,
        subprocess.Popen(compression.command, stdin=subprocess.PIPE, stdout=target) as process,
    ):
        assert process.stdin is not None
        yield process.stdin
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, list(compression.command))


def read_layer(blob: Path, compression: Compression) -> Layer:
    """See what is in the gzipped *blob*."""
    files = content = payload = 0
    with tarfile.open(blob, "r|gz") as tar:
        for member in tar:
            if member.isreg():
                files += 1
                content += member.size
                payload += -(-member.size // _PAGE_BYTES) * _PAGE_BYTES
    return Layer(blob, _digest(blob), compression, files, content, payload)


def in_zstd(layer: Layer, scratch: Path) -> Layer:
    """The same layer, compressed by zstd.

    Raises:
        UnavailableError: there is no program zstd.
    """
    blob = scratch / f"{layer.blob.stem}{ZSTD.suffix}"
    with (
        subprocess.Popen(("gzip", "-dc", layer.blob), stdout=subprocess.PIPE) as plain,
        compressing(blob, ZSTD) as compressed,
    ):
        assert plain.stdout is not None
        while chunk := plain.stdout.read(_MEGABYTE):
            compressed.write(chunk)
    if plain.returncode != 0:
        raise subprocess.CalledProcessError(plain.returncode, "gzip -dc")
    return dataclasses.replace(layer, blob=blob, digest=_digest(blob), compression=ZSTD)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
