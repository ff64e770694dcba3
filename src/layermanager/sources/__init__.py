"""Where the bytes of layers come from: one module a kind of source, each behind ``Source``.

A source only yields bytes and names what went wrong; what the bytes mean is proved elsewhere.
The modules here import the errors, the seams and the configuration, and the library that speaks
their protocol, but nothing of the manager; files and HTTP know nothing of each other.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Protocol

from layermanager.errors import SourceError
from layermanager.sources.file import FileSource
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.protocols import ByteStream, Clock, Source


class OpenStream(Protocol):
    """Asks whichever source knows an address; the arguments are those of ``Source.open``."""

    def __call__(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> ByteStream:
        """Start to fetch *url*."""


def opener(sources: Mapping[str, Source]) -> OpenStream:
    """What fetches from the *sources*, which are given by the schemes that they know."""
    return partial(open_stream, sources)


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
