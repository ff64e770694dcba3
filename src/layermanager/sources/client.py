"""HTTP and TLS, on top of urllib3: what layers, and registries, are asked for by.

Redirects are followed here rather than by urllib3, which would also go from https to http, and
from anywhere to the services of this node. Each request is sent, and waited for, by a thread of its
own: so neither a name server, nor one that accepts and stays silent, nor one that sends headers for
ever keeps anybody waiting longer than allowed, and a cancellation ends the waiting at once.

Proxies are taken from the environment (``proxies``). Connections are kept for the next request to
their server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import traceback
from concurrent.futures import Future, InvalidStateError, wait
from contextvars import ContextVar
from dataclasses import dataclass, replace
from http.client import HTTPException, IncompleteRead, InvalidURL
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError, ProxyError
from urllib3.util import make_headers

from layermanager import __version__
from layermanager.config import TlsVersion
from layermanager.errors import ConfigError, SourceError, SourceTimeoutError
from layermanager.secret_files import check_secret
from layermanager.sources.credentials import Credentials, from_userinfo
from layermanager.sources.proxies import proxy_for
from layermanager.sources.scopes import scope_of, scope_of_name
from layermanager.sources.tls import EagerSocket
from layermanager.urls import shown, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from ipaddress import IPv6Network

    from urllib3 import BaseHTTPResponse

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.sources.scopes import Scope

MAX_REDIRECTS: Final = 10
"""How many redirects are followed, one after the other, before a loop is suspected."""

_IDLE_CONNECTIONS: Final = 8
_PIECE_BYTES: Final = 64 * 1024
_HEADERS: Final = {"User-Agent": f"layermanager/{__version__}", "Accept-Encoding": "identity"}
_TLS_VERSIONS: Final = {
    TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2,
    TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3,
}

# What urllib3, and http.client, ssl and socket below it, raise on purpose. ValueError is for
# addresses that cannot be parsed, and ssl's word for a socket that was shut down before a read.
_FAILURES: Final = (HTTPError, HTTPException, OSError, ValueError)


class HttpClient:
    """Sends requests; may be used by several threads at once.

    Args:
        network: time-outs, and whom to trust.
        credentials: who this node is to whom.
        environment: names the proxies; it is read for each request.
    """

    def __init__(
        self,
        network: Network,
        credentials: Credentials,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._environment = environment
        self._network = network
        self._credentials = credentials
        self._managers: dict[object, PoolManager] = {}
        self._lock = threading.Lock()

    def get(self, place: Place, headers: Mapping[str, str], cancellation: Cancellation) -> Answer:
        """Ask at *place*, follow redirects, and return when the headers of the answer are there.

        Raises:
            SourceError: there is no answer, or a redirect leads where it may not.
            SourceTimeoutError: there is none in time.
            CancelledError: the request was cancelled.
        """
        for _ in range(MAX_REDIRECTS + 1):
            answer = self.send("GET", place, headers, cancellation)
            location = answer.redirect_location
            if location is None:
                return answer
            answer.close()  # with its connection: the body may be endless
            place = answer.place.redirected(location)
        raise place.error(f"more than {MAX_REDIRECTS} redirects")

    def send(
        self,
        method: str,
        place: Place,
        headers: Mapping[str, str],
        cancellation: Cancellation,
        body: bytes | Upload | None = None,
    ) -> Answer:
        """Send one request, and return when the headers of its answer are there.

        A body may take as long as it likes as long as it is taken.

        Raises:
            SourceError: there is no answer.
            SourceTimeoutError: there is none in time.
            CancelledError: the request was cancelled.
        """
        try:
            proxy = proxy_for(place.current, self._environment)
            authorization = place.authorization or self._credentials.authorization(place.current)
            if authorization is not None:
                headers = {"Authorization": authorization, **headers}
            manager = self._manager(place.current, proxy)
        except (ConfigError, OSError, ValueError) as error:
            raise place.failure("not asked", error) from error
        if body is None or isinstance(body, bytes):
            outgoing = None
            content: bytes | _Outgoing | None = body
        else:
            content = outgoing = _Outgoing(body)
            headers = {"Content-Length": str(body.size), **headers}
        exchange = _Exchange(place, outgoing, self._network.nat64_prefixes, is_direct=proxy is None)

        def ask() -> BaseHTTPResponse:
            return manager.request(
                method,
                place.current,
                headers={**_HEADERS, **headers},
                body=content,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )

        with cancellation.interrupting(exchange.abort):
            response = exchange.run(ask, self._network.connect_timeout + self._network.read_timeout)
        return Answer(response, exchange.place)

    def close(self) -> None:
        """Close the idle connections; those of answers that are being read close with them."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()

    def _manager(self, url: str, proxy: str | None) -> PoolManager:
        """The pools for what goes by *proxy*; new ones when a certificate was replaced.

        To read all certificates that are trusted takes longer than many a request: plain http does
        without.
        """
        network = self._network
        is_tls = "https" in (urlsplit(url).scheme, urlsplit(proxy or "").scheme)
        key = (proxy, _state_of_files(network) if is_tls else None)
        with self._lock:
            if key not in self._managers:
                trust = _trust(network) if is_tls else None
                self._managers[key] = _new_manager(network, proxy, trust)
            return self._managers[key]


class Upload(Protocol):
    """What is sent as the body of a request, piece by piece."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, size: int) -> bytes:
        """Up to *size* bytes; empty at the end.

        Raises:
            LayerManagerError: they cannot be had; the request is given up, and raises the same.
        """


class _Outgoing:
    """An upload on its way.

    Attributes:
        position: how much was taken; read by another thread.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.position = 0

    def __iter__(self) -> Iterator[bytes]:
        while data := self._upload.read(_PIECE_BYTES):
            self.position += len(data)
            yield data


class Answer:
    """The answer to one request: its headers, and its body as it arrives.

    Attributes:
        place: what was asked, for errors.
    """

    def __init__(self, response: BaseHTTPResponse, place: Place) -> None:
        self._response = response
        self.place = place
        self._aborted = False
        self._ending = threading.Lock()  # urllib3's shutdown and close must not meet

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status

    @property
    def reason(self) -> str:
        """The status in words, with its code."""
        return f"{self.status} {self._response.reason or ''}".rstrip()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; their names are looked up in any case."""
        return self._response.headers

    @property
    def redirect_location(self) -> str | None:
        """Where the server sends its client, if it does."""
        return self._response.get_redirect_location() or None

    def read(self, size: int, progress: str) -> bytes:
        """Up to *size* bytes, as soon as some are there; empty at the end of the body.

        Args:
            size: how many.
            progress: how far the reader was, in words for an error.

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
                raise self.place.error("the transfer was aborted") from error
            raise self.place.failure(f"broken off after {progress}", error) from error
        if self._aborted:  # after the read: a socket that was shut down looks like a body's end
            raise self.place.error("the transfer was aborted")
        return data

    def abort(self) -> None:
        """Make a ``read`` in another thread, and every later one, fail at once."""
        self._aborted = True
        # It raises when nothing can hang any more: the body ended (RuntimeError), the answer was
        # closed (ValueError), or the connection is already gone (OSError).
        with self._ending, contextlib.suppress(RuntimeError, ValueError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; may be repeated.

        Where there is none, as after HEAD, its end is reached now.
        """
        with self._ending:
            if self._response.length_remaining == 0:
                with contextlib.suppress(*_FAILURES):  # there is nothing that could be lost
                    self._response.read1(1)
            self._response.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes, and how it came there.

    Attributes:
        asked: what the caller asked for, without credentials.
        current: where the redirects led from there, without credentials.
        authorization: a header that goes to the server of *current* only, such as that for the
            credentials in the address.
        narrowest: how far in the next server may be; None where anything goes.
        way: how it came from *asked* to *current*, in a word.
    """

    asked: str
    current: str
    authorization: str | None = None
    narrowest: Scope | None = None
    way: str = "redirected"

    @classmethod
    def of(cls, url: str) -> Place:
        """The place that *url* names.

        Raises:
            SourceError: it is no URL.
        """
        bare = without_credentials(url)
        try:
            return cls(asked=bare, current=bare, authorization=from_userinfo(url))
        except ValueError as error:
            raise SourceError(f"not asked: {error}", url=shown(bare)) from error

    def redirected(self, location: str) -> Place:
        """Follow a redirect to *location*, which may be relative.

        Raises:
            SourceError: it leads to where a layer must not come from.
        """
        return self.sent_on(location, "redirected")

    def sent_on(self, location: str, way: str) -> Place:
        """Go where an answer says, by a redirect or in another *way*.

        Raises:
            SourceError: *location*, which may be relative, leads where no server may send anybody.
        """
        told = f"{shown(location):.1000}"
        try:
            target = urljoin(self.current, location)
            parts, before = urlsplit(target), urlsplit(self.current)
        except ValueError as error:
            raise self.error(f"{way} to what is no URL: {told}") from error
        if parts.scheme not in {"http", "https"}:
            raise self.error(f"{way} to another scheme than http and https: {told}")
        if parts.scheme == "http" and before.scheme == "https":
            raise self.error(f"{way} from https to http, which is not safe: {told}")
        is_same = (parts.scheme, parts.hostname) == (before.scheme, before.hostname) and (
            parts.netloc.rpartition("@")[2] == before.netloc
        )
        return Place(
            asked=self.asked,
            current=without_credentials(target),
            authorization=self.authorization if is_same else None,
            narrowest=self.narrowest,
            way=way,
        )

    def with_query(self, query: str) -> Place:
        """Return the same place with *query* behind the one that it has, and without a fragment."""
        parts = urlsplit(self.current)
        query = f"{parts.query}&{query}" if parts.query else query
        return replace(self, current=parts._replace(query=query, fragment="").geturl())

    def seen_at(self, scope: Scope) -> Place:
        """The same, now that its server is known to be at *scope*.

        Raises:
            SourceError: that is further in than the server that redirected here.
        """
        if self.narrowest is not None and scope < self.narrowest:
            raise self.error(
                f"{self.way} from a {self.narrowest.words} address to a {scope.words} one, "
                "which is not safe"
            )
        return replace(self, narrowest=scope)

    def error(
        self, message: str, *, is_transient: bool = False, retry_after: timedelta | None = None
    ) -> SourceError:
        """The error that *message* describes."""
        return SourceError(
            f"{message}{self._detour}",
            url=shown(self.asked),
            is_transient=is_transient,
            retry_after=retry_after,
        )

    def failure(self, what: str, error: Exception) -> SourceError:
        """The error of the package for *error* of urllib3 or below it."""
        cause = _cause(error)
        what = f"{what} from the proxy" if isinstance(error, ProxyError) else what
        if isinstance(cause, TimeoutError):
            return SourceTimeoutError(
                f"{what}: timed out{self._detour}", url=shown(self.asked), is_transient=True
            )
        return self.error(f"{what}: {_words(cause)}", is_transient=_is_transient(cause))

    @property
    def _detour(self) -> str:
        return "" if self.current == self.asked else f" ({self.way} to {shown(self.current)})"


class _Exchange:
    """One request until the headers of its answer are there.

    Attributes:
        place: where it goes; since it was connected, with the scope of that server.
    """

    def __init__(
        self,
        place: Place,
        outgoing: _Outgoing | None,
        nat64_prefixes: Sequence[IPv6Network],
        *,
        is_direct: bool,
    ) -> None:
        self.place = place
        self._outgoing = outgoing
        self._nat64_prefixes = nat64_prefixes
        self._is_direct = is_direct
        self._answer: Future[BaseHTTPResponse] = Future()
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def run(self, ask: Callable[[], BaseHTTPResponse], longest: timedelta) -> BaseHTTPResponse:
        """Call *ask* in a thread, and return what it returns unless that takes too long.

        What counts is the time since anything of the body was taken.
        """
        if not self._is_direct:
            host = urlsplit(self.place.current).hostname or ""
            scope = scope_of_name(host, self._nat64_prefixes)
            self.place = self.place if scope is None else self.place.seen_at(scope)
        threading.Thread(target=self._ask, args=(ask,), name="http-request", daemon=True).start()
        try:
            taken = 0
            while not wait([self._answer], longest.total_seconds()).done:
                position = 0 if self._outgoing is None else self._outgoing.position
                if position == taken:
                    break
                taken = position
            return self._answer.result(0)
        except _FAILURES as error:
            self.abort()
            # Where a header is malformed, urllib3 leaves the answer open in its frames, and the
            # error may be kept for long.
            traceback.clear_frames(error.__traceback__)
            raise self.place.failure("no answer", error) from error

    def abort(self) -> None:
        """End the waiting, and the connection if there is one; safe from any thread."""
        with contextlib.suppress(InvalidStateError):
            self._answer.set_exception(TimeoutError())
        with self._lock, contextlib.suppress(OSError):  # it may be gone already
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)

    def uses(self, connection: socket.socket) -> None:
        """Note what the request is sent by.

        Raises:
            SourceError: it leads where a redirect must not lead.
        """
        # A descriptor of our own: ssl takes the socket apart, and must not be called from two
        # threads; and a descriptor that was closed may be another connection's by now.
        own = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._forget_connection()
            self._connection = own
        if not self._is_direct:
            return
        with contextlib.suppress(OSError):  # it was reset just now, which is noticed next
            self.place = self.place.seen_at(scope_of(own.getpeername()[0], self._nat64_prefixes))

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, ask: Callable[[], BaseHTTPResponse]) -> None:
        _EXCHANGE.set(self)
        try:
            response = ask()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                self._answer.set_exception(error)
        else:
            try:
                self._answer.set_result(response)
            except InvalidStateError:
                response.close()
        finally:
            with self._lock:
                self._forget_connection()


_EXCHANGE: Final[ContextVar[_Exchange]] = ContextVar("_EXCHANGE")
"""What a connection is being used for: urllib3 makes connections, and passes nothing on to them."""


class _PlainConnection(HTTPConnection):
    """A connection that tells the exchange that it is used for what it is."""

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        try:
            _EXCHANGE.get().uses(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def request(self, *args: Any, **keywords: Any) -> None:
        if self.sock is not None:  # from an earlier request
            _EXCHANGE.get().uses(self.sock)
        super().request(*args, **keywords)


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """The same over TLS."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _new_manager(network: Network, proxy: str | None, trust: ssl.SSLContext | None) -> PoolManager:
    timeout = Timeout(
        connect=network.connect_timeout.total_seconds(), read=network.read_timeout.total_seconds()
    )
    if proxy is None:
        manager = PoolManager(timeout=timeout, maxsize=_IDLE_CONNECTIONS, ssl_context=trust)
    else:
        userinfo = urlsplit(proxy).netloc.rpartition("@")[0]
        manager = ProxyManager(
            without_credentials(proxy),
            proxy_headers=make_headers(proxy_basic_auth=unquote(userinfo)) if userinfo else None,
            timeout=timeout,
            maxsize=_IDLE_CONNECTIONS,
            ssl_context=trust,
            proxy_ssl_context=trust,
        )
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
    return manager


def _trust(network: Network) -> ssl.SSLContext:
    """Whom to trust, and who this node is.

    Raises:
        ConfigError: a file of the configuration cannot be used for that.
    """
    try:
        context = ssl.create_default_context(cafile=network.ca_bundle)
    except OSError as error:
        raise ConfigError(
            f"cannot use the CA bundle {network.ca_bundle}: {error.strerror}"
        ) from error
    context.minimum_version = _TLS_VERSIONS[network.minimum_tls_version]
    context.sslsocket_class = EagerSocket
    certificate, key = network.client_certificate, network.client_key
    if certificate is None:
        return context
    check_secret(key or certificate)
    try:
        # The password is for encrypted keys: asking the terminal for one would wait for ever.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else "is encrypted"
        raise ConfigError(
            f"cannot use the client certificate {certificate} with its key: {words}"
        ) from error
    return context


def _state_of_files(network: Network) -> tuple[object, ...]:
    """What changes when a file that TLS needs is replaced."""
    states: list[object] = []
    for path in (network.ca_bundle, network.client_certificate, network.client_key):
        with contextlib.suppress(OSError):  # who needs it will say so
            status = path.stat() if path else None
            states.append(status and (status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(states)


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


def _is_transient(cause: BaseException) -> bool:
    """Whether what failed for *cause* may work later: the network, not what was asked of it."""
    match cause:
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return True
        case ssl.SSLError():
            # Certificates and versions do not mend themselves; bytes damaged on the way do.
            return "RECORD" in (cause.reason or "") or "DECRYPTION" in (cause.reason or "")
        case LocationValueError() | InvalidURL():
            return False
        case OSError() | HTTPException() | HTTPError():
            return True  # an answer that is no HTTP is most often one that was cut or mixed up
        case _:
            return False


def _words(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted: {cause.verify_message}"
        case ssl.SSLError() if cause.reason == "WRONG_VERSION_NUMBER":
            return "the server speaks no TLS: is it one of http? (not an SSL record)"
        case OSError():
            return cause.strerror or str(cause)
        case IncompleteRead():
            return "the connection was closed"
        case _:
            return str(cause) or type(cause).__name__
