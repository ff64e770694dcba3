"""How fast bytes may come, and how fast they must."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final, Self

from layermanager.cancellation import Cancellation
from layermanager.errors import CancelledError, SourceError, SourceTimeoutError
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from types import TracebackType

    from layermanager.config import Network
    from layermanager.protocols import ByteStream, Clock

_PIECES_A_SECOND: Final = 16
_CREDIT_SECONDS: Final = 1 / _PIECES_A_SECOND
_SMALLEST_PIECE: Final = 1024
_LARGEST_PIECE: Final = 64 * 1024
_LOOKS_A_PERIOD: Final = 4


class RateLimit:
    """Bounds what all transfers together take from the network.

    Each waits for its bytes after it has read them; the kernel then holds the sender back. Turns
    come in the order in which bytes were read, so that all transfers get the same. What a transfer
    is late by, as it was busy with the bytes before, is made good, but not more than a moment.

    Args:
        bytes_a_second: the bound; 0 for none.
        clock: the time.
    """

    def __init__(self, bytes_a_second: int, clock: Clock) -> None:
        self._rate = bytes_a_second
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = float("-inf")

    def piece(self, size: int) -> int:
        """How many bytes to read at once, where up to *size* are wanted.

        As turns are the same for all, so must be what is taken at each: no more than the kernel
        has ready of any connection, of which it may keep ten times as much for one as for another.
        """
        if not self._rate:
            return size
        piece = min(_LARGEST_PIECE, self._rate // _PIECES_A_SECOND)
        return min(size, max(_SMALLEST_PIECE, piece))

    def spend(self, size: int, cancellation: Cancellation) -> None:
        """Wait until *size* bytes more are within the bound.

        Raises:
            CancelledError: the transfer was cancelled.
        """
        if not self._rate:
            return
        with self._lock:
            now = self._clock.monotonic()
            begin = max(now - _CREDIT_SECONDS, self._paid_until)
            self._paid_until = begin + size / self._rate
            wait = max(0.0, self._paid_until - now)
        self._clock.wait(cancellation.requested, wait)
        cancellation.check()


class TimedStream:
    """A stream that has to bring bytes at a least rate, and to end in time.

    A thread looks at it and aborts it where it does not; so no server can keep a ``read`` from
    ending, by whatever it sends. What counts is the time that is spent in ``read``: a reader who is
    busy elsewhere makes no stream slow. A context manager; who opened the stream closes it.

    Args:
        stream: where the bytes come from.
        clock: the time.
        least_rate: bytes a second; a stream that brings nothing is too slow in any case.
        period: over how much time the rate is looked at.
        deadline: when the stream has to have ended, by the monotonic clock.
        url: the address that errors tell.
    """

    def __init__(
        self,
        stream: ByteStream,
        clock: Clock,
        *,
        least_rate: int,
        period: timedelta,
        deadline: float,
        url: str,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._period = period
        self._least_bytes = max(1.0, least_rate * period.total_seconds())
        self._deadline = deadline
        self._url = url
        self._received = 0
        self._waited = 0.0
        self._waits_since: float | None = None
        self._failure: SourceTimeoutError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="transfer-watch", daemon=True)

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, as soon as some are there; empty at the end.

        Raises:
            SourceTimeoutError: they come too slowly, or did not all come in time.
            SourceError: the source failed.
        """
        with self._lock:
            self._waits_since = self._clock.monotonic()
        try:
            data = self._stream.read(size)
        except SourceError as error:
            if self._failure is not None:
                raise self._failure from error
            raise
        finally:
            with self._lock:
                self._waited += self._clock.monotonic() - self._waits_since
                self._waits_since = None
        self._received += len(data)
        return data

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        period = self._period.total_seconds()
        received, waited = 0, 0.0
        while not self._clock.wait(self._ended, self._until_next_look()):
            if self._clock.monotonic() >= self._deadline:
                self._give_up("not there within transferTimeoutSeconds")
                return
            all_received, all_waited = self._received, self._waited_until_now()
            if all_waited - waited < period:
                continue
            if all_received - received < self._least_bytes:
                self._give_up(f"only {all_received - received} bytes in {period:g} seconds")
                return
            received, waited = all_received, all_waited

    def _until_next_look(self) -> float:
        left = max(0.0, self._deadline - self._clock.monotonic())
        return min(left, self._period.total_seconds() / _LOOKS_A_PERIOD)

    def _waited_until_now(self) -> float:
        with self._lock:
            if self._waits_since is None:
                return self._waited
            return self._waited + self._clock.monotonic() - self._waits_since

    def _give_up(self, why: str) -> None:
        self._failure = SourceTimeoutError(why, url=self._url, is_transient=True)
        self._stream.abort()


@contextmanager
def document_deadline(
    url: str, *, network: Network, clock: Clock, cancellation: Cancellation
) -> Iterator[Cancellation]:
    """Bound the time in which one document is fetched: all requests for it, and its bytes.

    Yields:
        What to cancel those by: it comes with *cancellation*, or when the time is over.

    Raises:
        SourceTimeoutError: the time was over.
        CancelledError: it was cancelled.
    """
    limited = Cancellation()
    ended = threading.Event()
    is_late = threading.Event()

    def watch() -> None:
        if not clock.wait(ended, network.document_timeout.total_seconds()):
            is_late.set()
            limited.cancel()

    thread = threading.Thread(target=watch, name="document-watch", daemon=True)
    with cancellation.interrupting(limited.cancel):
        thread.start()
        try:
            yield limited
        except CancelledError as error:
            cancellation.check()
            if not is_late.is_set():
                raise
            raise SourceTimeoutError(
                "not there within documentTimeoutSeconds", url=shown(url), is_transient=True
            ) from error
        finally:
            ended.set()
            thread.join()


def read_first(
    stream: ByteStream,
    size: int,
    *,
    url: str,
    network: Network,
    clock: Clock,
    cancellation: Cancellation,
) -> bytes:
    """The first *size* bytes of *stream*, or all if there are fewer; it is closed.

    Raises:
        SourceError: they cannot be had, or not in time.
        CancelledError: it was cancelled.
    """
    timed = TimedStream(
        stream,
        clock,
        least_rate=network.minimum_rate,
        period=network.read_timeout,
        deadline=clock.monotonic() + network.transfer_timeout.total_seconds(),
        url=shown(url),
    )
    whole = bytearray()
    with closing(stream), cancellation.interrupting(stream.abort), timed:
        while len(whole) < size and (data := timed.read(size - len(whole))):
            whole += data
    return bytes(whole)
