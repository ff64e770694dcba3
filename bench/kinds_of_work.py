"""The program that is measured: one kind of the work that a layer takes, and nothing else.

Arguments: the kind, the blob, and an empty directory. It prints the CPU time of that work in
seconds; starting Python and making ready what the work begins with are not in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.model import Limits
from layermanager.unpack.compression import decompressed
from layermanager.unpack.index import Attributes, IndexWriter
from layermanager.unpack.streams import CHUNK_BYTES, ByteReader, chunks_of_file
from layermanager.unpack.tar import TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LIMITS: Final = Limits()
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class _File(NamedTuple):
    """A file, in the directory of a number, or a directory, which has no content."""

    directory: int
    name: str
    path: str
    times: tuple[int, int]
    content: bytes | None


def _inflate(blob: Path, _directory: Path) -> float:
    compressed = io.BytesIO(blob.read_bytes())
    start = time.process_time()
    for _ in _decompressed(iter(lambda: compressed.read(CHUNK_BYTES), b"")):
        pass
    return time.process_time() - start


def _digests(blob: Path, _directory: Path) -> float:
    contents = [blob.read_bytes(), *(file.content for file in _files(blob) if file.content)]
    start = time.process_time()
    for content in contents:
        hashlib.sha256(content)
    return time.process_time() - start


def _system_calls(blob: Path, directory: Path) -> float:
    """Make the files and directories of a layer with as few calls as can be, knowing them all."""
    files = list(_files(blob))
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    opened = -1, root
    start = time.process_time()
    for number, name, path, times, content in files:
        if content is None:
            os.mkdir(path, 0o755, dir_fd=root)
            continue
        if number != opened[0]:
            parent = os.path.dirname(path)  # noqa: PTH120 - Path would be slower than the calls
            opened = number, os.open(parent, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        file = os.open(name, _CREATE, 0o644, dir_fd=opened[1])
        os.write(file, content)
        os.utime(file, ns=times)
        os.close(file)
    for _, _, path, times, content in files:
        if content is None:
            os.utime(path, ns=times, dir_fd=root)
    return time.process_time() - start


def _tar(blob: Path, _directory: Path) -> float:
    """Read the headers; the content is passed over."""
    chunks = list(_plain(blob))
    start = time.process_time()
    for _ in TarReader(ByteReader(iter(chunks)), _LIMITS):
        pass
    return time.process_time() - start


def _index(blob: Path, directory: Path) -> float:
    files = [(file, hashlib.sha256(file.content or b"").hexdigest()) for file in _files(blob)]
    with (directory / "index").open("xb+") as output:
        start = time.process_time()
        index = IndexWriter(output.fileno())
        for file, digest in files:
            attributes = Attributes(0o644, (0, 0), file.times[0], {})
            index.add(
                file.path.encode(),
                b"file",
                attributes,
                b" size=%d sha256digest=%b" % (len(file.content or b""), digest.encode()),
            )
        index.finish()
        return time.process_time() - start


def _files(blob: Path) -> Iterator[_File]:
    numbers: dict[str, int] = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(_plain(blob)))) as tar:
        for member in tar:
            parent, _, name = member.name.rpartition("/")
            content = tar.extractfile(member)
            times = (int(member.mtime) * 1_000_000_000,) * 2
            number = numbers.setdefault(parent, len(numbers))
            yield _File(number, name, member.name, times, content.read() if content else None)


def _plain(blob: Path) -> Iterator[bytes]:
    with blob.open("rb") as file:
        yield from _decompressed(chunks_of_file(file.fileno()))


def _decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    return decompressed(chunks, zstd_window_bytes=_LIMITS.zstd_window_bytes)


_KINDS: Final[dict[str, Callable[[Path, Path], float]]] = {
    "inflate": _inflate,
    "digests": _digests,
    "system-calls": _system_calls,
    "tar": _tar,
    "index": _index,
}


def main() -> None:
    """Do the work that the arguments name."""
    _, kind, blob, directory = sys.argv
    print(_KINDS[kind](Path(blob), Path(directory)))


if __name__ == "__main__":
    main()
