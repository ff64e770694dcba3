"""Where the bytes of layers come from: one module a kind of source, each behind ``Source``.

A source only yields bytes and names what went wrong; what the bytes mean is proved elsewhere.
The modules here import the errors, the seams and the configuration, and the library that speaks
their protocol, but nothing of the manager; files and HTTP know nothing of each other.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Protocol

from layermanager.boundary import Boundary, Guard
from layermanager.errors import ExhaustedError, SourceError, UnexpectedSourceError
from layermanager.sources.file import FileSource
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.errors import LayerManagerError
    from layermanager.protocols import ByteStream, Clock, Source


class OpenStream(Protocol):
    """Asks whichever source knows an address; the arguments are those of ``Source.open``."""

    def __call__(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> ByteStream:
        """Start to fetch *url*."""


def opener(sources: Mapping[str, Source], guard: Guard | None = None) -> OpenStream:
    """Return what fetches from the *sources*, which are given by the schemes that they know.

    What a source raises that it may not fails that address and no other; *guard* notes it.
    """
    return partial(_open_guarded, sources, guard or Guard())


def _open_guarded(
    sources: Mapping[str, Source],
    guard: Guard,
    url: str,
    cancellation: Cancellation,
    *,
    offset: int = 0,
    validator: str = "",
) -> ByteStream:
    failing = guard.failing(
        Boundary.SOURCE, "the source", lambda error: _failure_of_source(error, url)
    )
    with failing:
        stream = open_stream(sources, url, cancellation, offset=offset, validator=validator)
        return _GuardedStream(stream, guard, failing)


def _failure_of_source(error: LayerManagerError, url: str) -> SourceError:
    if isinstance(error, ExhaustedError):
        return SourceError(str(error), url=shown(url), is_transient=True)
    return UnexpectedSourceError(str(error), url=shown(url))


class _GuardedStream:
    """A stream whose source is not trusted to keep to its contract."""

    def __init__(
        self, stream: ByteStream, guard: Guard, failing: AbstractContextManager[None]
    ) -> None:
        self.is_local = stream.is_local
        self.size = stream.size
        self.offset = stream.offset
        self.validator = stream.validator
        self._stream = stream
        self._failing = failing
        self._containing = guard.containing(Boundary.SOURCE, "the end of a stream")

    def read(self, size: int) -> bytes:
        with self._failing:
            return self._stream.read(size)

    def abort(self) -> None:
        with self._containing:
            self._stream.abort()

    def close(self) -> None:
        with self._containing:
            self._stream.close()


def open_stream(
    sources: Mapping[str, Source],
    url: str,
    cancellation: Cancellation,
    *,
    offset: int = 0,
    validator: str = "",
) -> ByteStream:
    """Start to fetch *url* from the one of the *sources* that knows its scheme.

    The other arguments are those of ``Source.open``.

    Raises:
        SourceError: none of them knows it, or the one that does cannot fetch *url*.
        CancelledError: the transfer was cancelled.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in sources:
        known = ", ".join(sorted(sources))
        raise SourceError(
            f"the address does not begin with a known scheme ({known})",
            url=shown(url),
        )
    return sources[scheme].open(url, cancellation, offset=offset, validator=validator)


def default_sources(network: Network, clock: Clock) -> Mapping[str, Source]:
    """The sources of this package by the schemes that they know."""

    def http_source() -> Source:
        # Here and not above: urllib3 takes longer to load than many a command to run.
        from layermanager.sources.client import HttpClient  # noqa: PLC0415
        from layermanager.sources.credentials import Credentials  # noqa: PLC0415
        from layermanager.sources.http import HttpSource  # noqa: PLC0415

        credentials = Credentials(network.credentials_file, network.netrc_file)
        return HttpSource(HttpClient(network, credentials), clock)

    http = _DeferredSource(http_source)
    return {"file": FileSource(), "http": http, "https": http}


class _DeferredSource:
    """A source that is made when it is first needed, as what it imports is expensive."""

    def __init__(self, make: Callable[[], Source]) -> None:
        self._make = make
        self._made: Source | None = None
        self._lock = threading.Lock()

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> ByteStream:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            source = self._made
        return source.open(url, cancellation, offset=offset, validator=validator)

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
