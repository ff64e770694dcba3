"""Where the bytes of layers come from: one module a kind of source, each behind ``Source``.

A source only yields bytes and names what went wrong; what the bytes mean is proved elsewhere.
The modules here import the errors, the seams and the configuration, and the library that speaks
their protocol, but nothing of the manager and nothing of each other.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from layermanager.errors import SourceError
from layermanager.sources.file import FileSource
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.config import Config
    from layermanager.protocols import ByteStream, Source


def open_stream(sources: Mapping[str, Source], url: str) -> ByteStream:
    """Start to fetch *url* from the one of the *sources* that knows its scheme.

    Raises:
        SourceError: none of them knows it, or the one that does cannot fetch *url*.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in sources:
        known = ", ".join(sorted(sources))
        raise SourceError(
            f"the address does not begin with a known scheme ({known})",
            url=without_credentials(url),
        )
    return sources[scheme].open(url)


def default_sources(config: Config) -> Mapping[str, Source]:
    """The sources of this package by the schemes that they know."""

    def http_source() -> Source:
        # Here and not above: urllib3 takes longer to load than many a command to run.
        from layermanager.sources.http import HttpSource  # noqa: PLC0415

        return HttpSource(
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            ca_bundle=config.ca_bundle,
        )

    http = _DeferredSource(http_source)
    return {"file": FileSource(), "http": http, "https": http}


class _DeferredSource:
    """A source that is made when it is first needed, as what it imports is expensive."""

    def __init__(self, make: Callable[[], Source]) -> None:
        self._make = make
        self._made: Source | None = None
        self._lock = threading.Lock()

    def open(self, url: str) -> ByteStream:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            source = self._made
        return source.open(url)

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
