"""Layers from web servers: ``http://`` and ``https://`` URLs.

A layer is asked for by a single GET. The Go client asks by HEAD first and goes on whatever the
answer is; the answer to GET begins with the same headers, so nothing is lost without HEAD, and a
server that knows only GET will do.

What arrives is passed on as it is: no Content-Encoding is asked for, none is undone. Redirects
are followed here rather than by urllib3, which would also go from https to http.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import traceback
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import PoolManager, ProxyManager, Timeout
from urllib3.exceptions import HTTPError, ProxyError

from layermanager import __version__
from layermanager.errors import SourceError, SourceTimeoutError
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from urllib3 import BaseHTTPResponse

MAX_REDIRECTS: Final = 10
"""How many redirects are followed, one after the other, before a loop is suspected."""

_HEADERS: Final = {"User-Agent": f"layermanager/{__version__}", "Accept-Encoding": "identity"}
_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,18}")

# What urllib3, and http.client, ssl and socket below it, raise on purpose. ValueError is for
# addresses that cannot be parsed, and ssl's word for a socket that was shut down before a read.
_FAILURES: Final = (HTTPError, HTTPException, OSError, ValueError)


class HttpSource:
    """Fetches over HTTP and TLS; may be used by several threads at once.

    Proxies are taken from the environment, as ``urllib.request`` understands it: ``http_proxy``,
    ``https_proxy``, ``no_proxy``. Connections are kept for the next transfer from their server.

    Args:
        connect_timeout: how long a server may take to accept a connection.
        read_timeout: how long it may send nothing while something is expected of it.
        ca_bundle: the certificates to trust, a PEM file; None for those that the system trusts.
        idle_connections: how many connections to one server are kept.
    """

    def __init__(
        self,
        *,
        connect_timeout: timedelta,
        read_timeout: timedelta,
        ca_bundle: Path | None,
        idle_connections: int = 8,
    ) -> None:
        self._timeout = Timeout(
            connect=connect_timeout.total_seconds(), read=read_timeout.total_seconds()
        )
        self._ca_bundle = ca_bundle
        self._idle_connections = idle_connections
        self._managers: dict[str | None, PoolManager] = {}
        self._lock = threading.Lock()

    def open(self, url: str) -> HttpStream:
        """Ask for *url*, follow its redirects, and return when the headers of the answer are there.

        Raises:
            SourceError: the answer is not a layer as it is, or there is none.
            SourceTimeoutError: there is none in time.
        """
        place = _Place(asked=without_credentials(url), current=without_credentials(url))
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(place)
            location = response.get_redirect_location()
            if not location:
                return _accept(response, place)
            response.close()  # with its connection: the body may be endless
            place = place.redirected(location)
        raise place.error(f"more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close the idle connections; those of transfers under way close with their streams."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()

    def _get(self, place: _Place) -> BaseHTTPResponse:
        try:
            return self._manager(_proxy_for(place.current)).request(
                "GET",
                place.current,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except _FAILURES as error:
            # Where a header is malformed, urllib3 leaves the answer open in its frames, and the
            # error may be kept for long.
            traceback.clear_frames(error.__traceback__)
            raise place.failure("no answer", error) from error

    def _manager(self, proxy: str | None) -> PoolManager:
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = self._new_manager(proxy)
            return self._managers[proxy]

    def _new_manager(self, proxy: str | None) -> PoolManager:
        trust = _trust(self._ca_bundle)
        if proxy is None:
            return PoolManager(
                headers=_HEADERS,
                timeout=self._timeout,
                maxsize=self._idle_connections,
                ssl_context=trust,
            )
        return ProxyManager(
            proxy,
            headers=_HEADERS,
            timeout=self._timeout,
            maxsize=self._idle_connections,
            ssl_context=trust,
            proxy_ssl_context=trust,
        )


class HttpStream:
    """The body of one answer."""

    def __init__(self, response: BaseHTTPResponse, size: int | None, place: _Place) -> None:
        self._response = response
        self._size = size
        self._place = place
        self._received = 0
        self._aborted = False
        self._ending = threading.Lock()  # urllib3's shutdown and close must not meet

    @property
    def size(self) -> int | None:
        """The length of the body, where the server told it."""
        return self._size

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, as soon as some are there; empty at the end of the body.

        Raises:
            SourceError: the connection broke, or was closed before the end of the body; or
                ``abort`` was called.
            SourceTimeoutError: nothing arrived for too long.
        """
        try:
            # read1 is one recv into the bytes that are returned; read would wait for all of size.
            data = self._response.read1(size)
        except _FAILURES as error:
            if self._aborted:
                raise self._place.error("the transfer was aborted") from error
            raise self._place.failure(f"broken off after {self._progress}", error) from error
        if self._aborted:  # after the read: a socket that was shut down looks like a body's end
            raise self._place.error("the transfer was aborted")
        self._received += len(data)
        return data

    def abort(self) -> None:
        """Make a ``read`` in another thread, and every later one, fail at once."""
        self._aborted = True
        # It raises when nothing can hang any more: the body ended (RuntimeError), the stream was
        # closed (ValueError), or the connection is already gone (OSError).
        with self._ending, contextlib.suppress(RuntimeError, ValueError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; may be repeated."""
        with self._ending:
            self._response.close()

    @property
    def _progress(self) -> str:
        if self._size is None:
            return f"{self._received} bytes"
        return f"{self._received} of {self._size} bytes"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a transfer is, in URLs without credentials.

    Attributes:
        asked: what the caller asked for.
        current: where the redirects led from there.
    """

    asked: str
    current: str

    def redirected(self, location: str) -> _Place:
        """Follow a redirect to *location*, which may be relative.

        Raises:
            SourceError: it leads to where a layer must not come from.
        """
        shown = f"{without_credentials(location):.1000}"
        try:
            target = urljoin(self.current, location)
            scheme = urlsplit(target).scheme
        except ValueError as error:
            raise self.error(f"redirected to what is no URL: {shown}") from error
        if scheme not in {"http", "https"}:
            raise self.error(f"redirected to another scheme than http and https: {shown}")
        if scheme == "http" and urlsplit(self.current).scheme == "https":
            raise self.error(f"redirected from https to http, which is not safe: {shown}")
        return _Place(asked=self.asked, current=without_credentials(target))

    def error(self, message: str) -> SourceError:
        """The error that *message* describes."""
        return SourceError(f"{message}{self._detour}", url=self.asked)

    def failure(self, what: str, error: Exception) -> SourceError:
        """The error of the package for *error* of urllib3 or below it."""
        cause = _cause(error)
        what = f"{what} from the proxy" if isinstance(error, ProxyError) else what
        if isinstance(cause, TimeoutError):
            return SourceTimeoutError(f"{what}: timed out{self._detour}", url=self.asked)
        return self.error(f"{what}: {_words(cause)}")

    @property
    def _detour(self) -> str:
        return "" if self.current == self.asked else f" (redirected to {self.current})"


def _accept(response: BaseHTTPResponse, place: _Place) -> HttpStream:
    """Take the answer as the layer's bytes, or close it and raise what speaks against that."""
    try:
        if response.status != 200:
            raise place.error(f"{response.status} {response.reason or ''}".rstrip())
        return HttpStream(response, _body_size(response, place), place)
    except SourceError:
        response.close()
        raise


def _body_size(response: BaseHTTPResponse, place: _Place) -> int | None:
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise place.error(
            f"the server sends the file with Content-Encoding {encoding!r:.80}: "
            "it must send it as it is"
        )
    transfer = headers.get("Transfer-Encoding")
    if transfer is not None:
        if transfer.strip().lower() != "chunked":
            raise place.error(f"Transfer-Encoding {transfer!r:.80} is not supported")
        return None  # a Content-Length besides it does not count (RFC 9112, 6.3)
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not _CONTENT_LENGTH.fullmatch(length):
        raise place.error(f"the server's Content-Length is no number of bytes: {length!r:.80}")
    return int(length)


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _trust(ca_bundle: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise OSError(f"cannot use the CA bundle {ca_bundle}: {error.strerror}") from error


def _cause(error: BaseException) -> BaseException:
    """What lies below the errors that urllib3 wraps around it.

    urllib3 keeps it as the cause or, where it forgets to, as the last argument.
    """
    while isinstance(error, HTTPError):
        below = error.__cause__ or (error.args[-1] if error.args else None)
        if not isinstance(below, BaseException):
            break
        error = below
    return error


def _words(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted: {cause.verify_message}"
        case OSError():
            return cause.strerror or str(cause)
        case IncompleteRead():
            return "the connection was closed"
        case _:
            return str(cause) or type(cause).__name__
