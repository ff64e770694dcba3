"""Bytes on their way through the worker: iterators of chunks, and readers of exact sizes."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

CHUNK_BYTES: Final = 512 * 1024
"""How much is read, inflated or handed on at once: large against what it costs to wake a thread
that waits for the interpreter's lock, small against the memory of a device."""

_PREFETCHED_CHUNKS: Final = 3


class EndOfStreamError(Exception):
    """The stream ended before the bytes that were asked for."""


def chunks_of_file(file_descriptor: int) -> Iterator[bytes]:
    """Read a pipe or file to its end."""
    while chunk := os.read(file_descriptor, CHUNK_BYTES):
        yield chunk


class CountedChunks:
    """Passes chunks on while counting their bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            yield chunk


class HashedChunks:
    """Passes chunks on while computing their digest and counting them."""

    def __init__(self, chunks: Iterator[bytes], algorithm: str) -> None:
        self._chunks = chunks
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        update = self._hash.update
        for chunk in self._chunks:
            update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        """The digest, in OCI's form, of what has passed so far."""
        return f"{self._hash.name}:{self._hash.hexdigest()}"


class Reader(Protocol):
    """What ``TarReader`` needs of a reader of exact numbers of bytes; see ``ByteReader``."""

    def take(self, size: int) -> bytes:
        """The next *size* bytes."""

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next *size* bytes in pieces."""

    def skip(self, size: int) -> None:
        """Pass over the next *size* bytes."""

    def at_end(self) -> bool:
        """Whether no byte is left."""


class ByteReader:
    """Reads exact numbers of bytes from an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next *size* bytes.

        Raises:
            EndOfStreamError: there are fewer.
        """
        start = self._at
        end = start + size
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[start:end]
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next *size* bytes in pieces, without copying them; to be read to the end.

        Raises:
            EndOfStreamError: there are fewer.
        """
        while size > 0:
            if self._at == len(self._chunk) and not self._next_chunk():
                raise EndOfStreamError
            piece = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over the next *size* bytes.

        Raises:
            EndOfStreamError: there are fewer.
        """
        if self._at + size <= len(self._chunk):
            self._at += size
            return
        for _ in self.pieces(size):
            pass

    def at_end(self) -> bool:
        """Whether no byte is left; this may wait for the next chunk."""
        return self._at == len(self._chunk) and not self._next_chunk()

    def peek(self, size: int) -> bytes:
        """The next bytes, at most *size*, without taking them; fewer at the end."""
        while len(self._chunk) - self._at < size:
            rest = self._chunk[self._at :]
            if not self._next_chunk():
                self._chunk, self._at = rest, 0
                break
            self._chunk = rest + self._chunk
        return self._chunk[self._at : self._at + size]

    def some(self, limit: int) -> bytes:
        """The next bytes, at least one and at most *limit*; empty at the end."""
        if self.at_end():
            return b""
        start = self._at
        self._at = min(start + limit, len(self._chunk))
        return self._chunk[start : self._at]

    def put_back(self, size: int) -> None:
        """Let the last *size* bytes of what ``some`` returned be what comes next."""
        self._at -= size

    def rest(self) -> Iterator[bytes]:
        """All that is left, in chunks."""
        if self._at < len(self._chunk):
            yield self._chunk[self._at :]
        self._chunk, self._at = b"", 0
        yield from self._chunks

    def _next_chunk(self) -> bool:
        """Go on to the next chunk that is not empty; False at the end."""
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._at = chunk, 0
                return True
        self._chunk, self._at = b"", 0
        return False


class PrefetchedChunks:
    """Runs an iterator of chunks in a thread, so that it works ahead of its consumer.

    What the iterator does - reading a pipe, inflating, hashing - releases the interpreter lock,
    so that the consumer's system calls run beside it on another core. An error of the iterator is
    raised in the consumer, after the chunks before it.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_PREFETCHED_CHUNKS)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)

    def __enter__(self) -> Iterator[bytes]:
        try:
            self._thread.start()
        except RuntimeError as error:  # which says no more than that it cannot
            raise OSError(errno.EAGAIN, "cannot start a thread") from error
        return self._consume()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A producer that waits for room in the queue sees the flag once it has some.
        self._abandoned.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def _produce(self) -> None:
        try:
            for chunk in self._chunks:
                self._queue.put(chunk)
                if self._abandoned.is_set():
                    return
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._queue.put(error)

    def _consume(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
