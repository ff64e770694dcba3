"""HTTP/1.1 over sockets that listen already: a thread a connection, every wait with an end.

h11 reads and writes the protocol, strictly; this module has the sockets, the threads and the time.
A thread costs some 30 KiB where it waits, and lets a handler use the library as any program does.
"""

from __future__ import annotations

import logging
import select
import selectors
import socket
import struct
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

import h11

from layermanager.boundary import Boundary
from layermanager.daemon.http import Answer, Request, phrase
from layermanager.daemon.problems import RefusedError, failure, refusal
from layermanager.daemon.writer import SteadyWriter, unsent_bytes
from layermanager.errors import ExhaustedError, LayerManagerError, UnexpectedError
from layermanager.header_numbers import read_count

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Mapping, Sequence

    from layermanager.boundary import Guard
    from layermanager.living import LivingThreads

    Admit: TypeAlias = Callable[[Mapping[str, str]], None]

_LOGGER: Final = logging.getLogger(__name__)

_RECEIVE_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 16 * 1024
_VERSIONS: Final = frozenset({b"1.0", b"1.1"})
_LINGER_SECONDS: Final = 1.0
_PAUSE_MILLISECONDS: Final = 100
_LONGEST_ACCEPT: Final = timedelta(minutes=1)
_FORESEEN: Final = (RefusedError, h11.ProtocolError, OSError)
_PEER_CREDENTIALS: Final = struct.Struct("3i")
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
    b"Retry-After: 5\r\nConnection: close\r\nContent-Length: 117\r\n\r\n"
    b'{"type":"about:blank","title":"Service Unavailable","status":503,'
    b'"detail":"too many connections; see maxConnections"}'
)


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, and whom it lets in.

    Attributes:
        socket: bound and listening.
        admit: looks at the headers of a request and raises ``RefusedError`` unless it is welcome.
        tls: the context to speak TLS by; None: it is not spoken.
    """

    socket: socket.socket
    admit: Admit
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one client may ask of the server.

    Attributes:
        connections: how many there may be at once; who comes then is sent away.
        body_bytes: the largest body of a request.
        request_timeout: how long a request may take to arrive from its first byte on, and how long
            a client may take for each 16 KiB of an answer.
        idle_timeout: how long a connection may wait for its next request.
    """

    connections: int = 256
    body_bytes: int = 1024 * 1024
    request_timeout: timedelta = timedelta(seconds=30)
    idle_timeout: timedelta = timedelta(seconds=75)


class Server:
    """Answers the requests of all *listeners*, whose sockets it closes in the end.

    Args:
        listeners: where to accept connections.
        answer: gives the answer to a request, in the thread of its connection.
        limits: what a client may ask.
        threads: watches the thread that accepts connections.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        answer: Callable[[Request], Answer],
        limits: ServerLimits,
        threads: LivingThreads,
    ) -> None:
        self._guard = threads.guard
        self._listeners = tuple(listeners)
        self._answer = answer
        self._limits = limits
        self._free = threading.BoundedSemaphore(limits.connections)
        self._lock = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._waker, self._wake = socket.socketpair()
        self._acceptor = threads.thread("accept", self._accept_all, longest=_LONGEST_ACCEPT)
        self._is_short = False

    @property
    def connections(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._connections)

    def start(self) -> None:
        """Accept connections from now on."""
        self._acceptor.start()

    def close(self, grace: timedelta) -> None:
        """Accept no more, let the answers that are being given come to their end, and return.

        Args:
            grace: how long these may take; then they are broken off.
        """
        self._wake.close()
        self._acceptor.close()
        self._waker.close()
        for listener in self._listeners:
            listener.socket.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            connection.hang_up(socket.SHUT_RD)
        deadline = time.monotonic() + grace.total_seconds()
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection, thread in connections.items():
            if thread.is_alive():
                connection.hang_up(socket.SHUT_RDWR)
                # What its handler waits for nobody can end but the end of the process.
                thread.join(_LINGER_SECONDS)

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ, None)
            for listener in self._listeners:
                listener.socket.settimeout(0)
                selector.register(listener.socket, selectors.EVENT_READ, listener)
            while True:
                ready = [key.data for key, _ in selector.select()]
                if None in ready:
                    return
                with self._acceptor.working():
                    for listener in ready:
                        self._accept(listener)

    def _accept(self, listener: Listener) -> None:
        """Take one connection; where that fails, wait a little: what is missing comes back."""
        try:
            client, _ = listener.socket.accept()
        except BlockingIOError:
            return  # the client was gone before
        except OSError as error:
            # Out of descriptors, most likely: which go with the connections that there are.
            if not self._is_short:
                _LOGGER.warning("cannot accept connections: %s; trying on", error.strerror)
            self._is_short = True
            self._pause()
            return
        self._is_short = False
        if not self._free.acquire(blocking=False):
            _send_away(client, listener)
            return
        with self._guard.containing(Boundary.CONNECTION, "beginning a connection"):
            self._begin(client, listener)
            return
        self._pause()

    def _begin(self, client: socket.socket, listener: Listener) -> None:
        """Serve *client* in a thread of its own."""
        with ExitStack() as undo:
            undo.callback(self._free.release)
            undo.enter_context(client)
            client.settimeout(self._limits.request_timeout.total_seconds())
            connection = _Connection(client, listener, self._answer, self._limits, self._guard)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="connection", daemon=True
            )
            with self._lock:
                self._connections[connection] = thread
            undo.callback(self._forget, connection)
            thread.start()
            undo.pop_all()

    def _pause(self) -> None:
        """Wait a little, unless the server is closed."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        poll.poll(_PAUSE_MILLISECONDS)

    def _serve(self, connection: _Connection) -> None:
        try:
            with self._guard.containing(Boundary.CONNECTION, "a connection"):
                connection.serve()
        finally:
            self._forget(connection)
            self._free.release()

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            del self._connections[connection]


def _send_away(client: socket.socket, listener: Listener) -> None:
    with client, suppress(OSError):
        client.settimeout(0)
        if listener.tls is None:
            client.send(_FULL)


class _Connection:
    """The requests of one client, one after the other."""

    def __init__(
        self,
        client: socket.socket,
        listener: Listener,
        answer: Callable[[Request], Answer],
        limits: ServerLimits,
        guard: Guard,
    ) -> None:
        self._socket = client
        self._listener = listener
        self._answer = answer
        self._limits = limits
        self._guard = guard
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._is_ending = False

    def hang_up(self, how: int) -> None:
        """End its reads, or its writes too; for another thread."""
        self._is_ending = True
        with suppress(OSError):  # the client was faster
            # Not SSLSocket's own, which also takes the TLS state from under its thread.
            socket.socket.shutdown(self._socket, how)

    def serve(self) -> None:
        """Answer all requests, and close the connection."""
        try:
            try:
                self._begin_tls()
                while self._exchange():
                    self._http.start_next_cycle()
            finally:
                self._socket.close()
        except (OSError, h11.ProtocolError) as error:
            _LOGGER.debug("a connection ended early: %s", error)
        except (UnexpectedError, ExhaustedError):
            return  # in the middle of an answer; it is in the log, with its traceback
        except LayerManagerError as error:
            _LOGGER.warning("an answer was broken off: %s", error)

    def _begin_tls(self) -> None:
        """Shake hands, here and not where connections are accepted: a client may take its time."""
        if self._listener.tls is not None:
            wrapped = self._listener.tls.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
            self._socket = wrapped
            wrapped.do_handshake()

    def _exchange(self) -> bool:
        """Read one request and answer it; return whether another one may follow."""
        method = ""
        try:
            with self._guard.failing(Boundary.REQUEST, "reading a request", passing=_FORESEEN):
                request = self._read_request()
            if request is None:
                return False
            method = request.method
            with self._guard.failing(Boundary.REQUEST, "a request", passing=(RefusedError,)):
                answer = self._answer(request)
        except RefusedError as error:
            answer = refusal(error)
        except LayerManagerError as error:
            answer = failure(error)
        except h11.RemoteProtocolError as error:
            answer = refusal(_refusal_of(error))
        self._send(answer, method)
        if self._http.their_state is not h11.DONE:
            self._linger()
            return False
        return self._http.our_state is h11.DONE and not self._is_ending

    # Reading

    def _read_request(self) -> Request | None:
        """The next request; None if none comes, which is no error."""
        head = self._read_head()
        if head is None:
            return None
        if head.http_version not in _VERSIONS:
            raise RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        self._listener.admit(headers)
        return Request(
            method=head.method.decode("ascii"),
            target=head.target.decode("ascii"),
            headers=headers,
            body=self._read_body(headers),
            peer=_peer_of(self._socket),
        )

    def _read_head(self) -> h11.Request | None:
        deadline = time.monotonic() + self._limits.idle_timeout.total_seconds()
        has_begun = False
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.trailing_data[0] and not has_begun:
                deadline = self._deadline()
                has_begun = True
            try:
                self._receive(deadline)
            except TimeoutError:
                if not has_begun:
                    return None
                raise _too_slow() from None
        return event if isinstance(event, h11.Request) else None

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        limit = self._limits.body_bytes
        if read_count(headers.get("content-length", "0"), at_most=limit) is None:
            raise _too_large(limit)
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
            self._socket.sendall(self._http.send(go_on))
        deadline = self._deadline()
        body = bytearray()
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    try:
                        self._receive(deadline)
                    except TimeoutError:
                        raise _too_slow() from None
                case h11.Data(data=data):
                    body += data
                    if len(body) > limit:
                        raise _too_large(limit)
                case _:
                    return bytes(body)

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.request_timeout.total_seconds()

    def _receive(self, deadline: float) -> None:
        """Take in what has come, or wait for more.

        Raises:
            TimeoutError: nothing came until *deadline*.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        self._http.receive_data(self._socket.recv(_RECEIVE_BYTES))

    # Writing

    def _send(self, answer: Answer, method: str) -> None:
        with ExitStack() as stack:
            if not isinstance(answer.body, bytes):
                stack.enter_context(closing(answer.body))
            head = self._head(answer)
            writer = SteadyWriter(
                self._socket,
                self._limits.request_timeout.total_seconds(),
                time.monotonic,
                unsent_bytes,
            )
            if isinstance(answer.body, bytes):
                body = answer.body if method != "HEAD" else b""
                writer.write(head + self._http.send(h11.Data(data=body)) + self._end())
                return
            writer.write(head)
            while method != "HEAD" and (piece := self._next_piece(answer.body)) is not None:
                writer.write(self._http.send(h11.Data(data=piece)))
            writer.write(self._end())

    def _head(self, answer: Answer) -> bytes:
        headers = {
            "Content-Type": answer.content_type,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **answer.headers,
        }
        if isinstance(answer.body, bytes):
            headers["Content-Length"] = str(len(answer.body))
        if self._is_ending or self._http.their_state is not h11.DONE:
            headers["Connection"] = "close"
        return self._http.send(
            h11.Response(
                status_code=answer.status,
                reason=phrase(answer.status).encode("ascii"),
                headers=list(headers.items()),
            )
        )

    def _next_piece(self, body: Generator[bytes]) -> bytes | None:
        """The next piece of a streamed answer; None at its end.

        Raises:
            LayerManagerError: there is none, so that the client must not take it for the whole.
        """
        with self._guard.failing(Boundary.STREAM, "a streamed answer"):
            return next(body, None)

    def _end(self) -> bytes:
        return self._http.send(h11.EndOfMessage())

    def _linger(self) -> None:
        """Take in what a refused client is still sending.

        Closed with unread bytes, the connection would be reset, and the answer with it.
        """
        deadline = time.monotonic() + _LINGER_SECONDS
        self._socket.settimeout(_LINGER_SECONDS)
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while time.monotonic() < deadline and self._socket.recv(_RECEIVE_BYTES):
                pass


def _peer_of(client: socket.socket) -> str:
    """Who is at the other end, for the log."""
    if client.family != socket.AF_UNIX:
        return str(client.getpeername()[0])
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    process, user, _ = _PEER_CREDENTIALS.unpack(raw)
    return f"user {user}, process {process}"


def _refusal_of(error: h11.RemoteProtocolError) -> RefusedError:
    status = HTTPStatus(error.error_status_hint)
    return RefusedError(status, f"not HTTP as it should be: {error}")


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than maxBodyBytes: {limit}"
    )


def _too_slow() -> RefusedError:
    return RefusedError(
        HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive within requestTimeoutSeconds"
    )
