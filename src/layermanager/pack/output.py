"""Files that appear under their names when they are complete and on disk, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        checksum: the digest of all bytes, by the algorithm that was asked for.
        size: how many bytes.
    """

    checksum: bytes
    size: int


def write(chunks: Iterable[bytes], file: IO[bytes], algorithm: str) -> Written:
    """Write *chunks* to *file*."""
    checksum = hashlib.new(algorithm)
    size = 0
    for chunk in chunks:
        checksum.update(chunk)
        file.write(chunk)
        size += len(chunk)
    return Written(checksum.digest(), size)


@dataclass(slots=True)
class NewFile:
    """A file that has no name yet.

    Attributes:
        file: what is written to.
        name: what it is called once it is complete; to be set by then.
    """

    file: IO[bytes]
    name: str = ""


@contextmanager
def new_file(directory: Path) -> Iterator[NewFile]:
    """A file that gets its name in *directory* at the end of the context, when it is on disk.

    Another file of that name is replaced.
    """
    temporary = directory / f".layermanager-pack-{secrets.token_hex(8)}"
    new = NewFile(temporary.open("xb"))
    try:
        with new.file:
            yield new
            new.file.flush()
            os.fsync(new.file.fileno())
        temporary.replace(directory / new.name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(output: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of *output* once it is complete and on disk."""
    with new_file(output.parent) as new:
        new.name = output.name
        yield new.file
