"""A web server on loopback that is right, except for the faults of its script.

::

    with FaultServer([Reset(after=1000), Status(503, retry_after=1)]) as server:
        url = server.add("/a.tar", data)
        ...  # the third request for it succeeds
    assert server.sent <= len(data) + BUFFER_BYTES
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeAlias

from layermanager.testing.backlog import unread_bytes
from layermanager.testing.connections import Connection, Connections, Request
from layermanager.testing.distortion import reply_under
from layermanager.testing.faults import (
    CloseBeforeAnswer,
    Drip,
    EndlessBody,
    EndlessContinue,
    EndlessHeaders,
    EndlessTrailers,
    FailTls,
    Fault,
    LyingLength,
    Refuse,
    Reset,
    Stall,
    Truncate,
)
from layermanager.testing.ranges import ByteRange, File, Reply

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import timedelta
    from types import TracebackType

    from layermanager.testing.connections import Address

    Bytes: TypeAlias = bytes | memoryview

BUFFER_BYTES: Final = 64 * 1024
"""How far ``FaultServer.sent`` can be ahead of what a client read from one connection, by default.

Before each piece the server asks the kernel how many bytes the client has yet to read, and waits
as long as they and the piece are more than this. The buffers of the kernel have other limits: that
of the client grows to megabytes when it reads fast.
"""

_PIECE: Final = 16 * 1024
_POLL_MILLISECONDS: Final = 1  # the kernel does not tell when a client has read


@dataclass(frozen=True, slots=True)
class Exchange:
    """A GET, and what came of it.

    Attributes:
        request: what was asked.
        range: the part of the file that it asked for; None for all of it.
        fault: what it met; None if all was well.
        sent: the bytes of the body that the kernel took; at most ``BUFFER_BYTES`` of them were not
            read by the client.
    """

    request: Request
    range: ByteRange | None
    fault: Fault | None
    sent: int


class FaultServer:
    """Serves files on 127.0.0.1 while its context lasts; the n-th request meets the n-th fault.

    ``Refuse`` and ``FailTls`` happen to the next connection, before there is a request; if the
    client asks on a connection that it has, that is closed without an answer. When the script is
    at its end, all is well. A path without a file is 404; a method other than GET is 501, and
    meets no fault. At the end of the context all connections are closed and all threads have
    ended; what went wrong in them, other than a client that went away, is raised.

    Clients must be in the network namespace of the server, and the kernel must have ``inet_diag``;
    else answers break off.

    Args:
        faults: the script.
        tls: a server-side context with its certificate, to speak https instead of http.
        ahead: how far ``sent`` can be ahead of what a client read from one connection, in bytes.
            With little the server is slow: it waits again and again for what nobody tells.
    """

    def __init__(
        self,
        faults: Iterable[Fault] = (),
        *,
        tls: ssl.SSLContext | None = None,
        ahead: int = BUFFER_BYTES,
    ) -> None:
        self._script = _Script(faults)
        self._connections = Connections(partial(_Connection, self._script, ahead), tls)

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return self._connections.url

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that the kernel chose."""
        return self._connections.port

    @property
    def connections(self) -> int:
        """How many connections were accepted until now."""
        return self._connections.accepted

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Every GET until now, in order."""
        return self._script.exchanges

    @property
    def sent(self) -> int:
        """The bytes of all bodies until now."""
        return sum(exchange.sent for exchange in self.exchanges)

    @property
    def pending(self) -> tuple[Fault, ...]:
        """The faults that nobody has met yet."""
        return self._script.pending

    @property
    def stalled(self) -> threading.Event:
        """Set when the first ``Stall`` begins."""
        return self._script.stalled

    def add(self, target: str, file: bytes | File) -> str:
        """Serve *file* at the path *target* from now on, and return its URL.

        Args:
            target: the path, with the query.
            file: the bytes suffice: see ``File.of``.
        """
        self._script.add(target, File.of(file) if isinstance(file, bytes) else file)
        return f"{self.url}{target}"

    def release(self) -> None:
        """End every ``Stall``, also those to come."""
        self._script.released.set()

    def __enter__(self) -> Self:
        self._connections.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connections.stop_accepting()
        self._connections.end()


class _Script:
    """What the server has, is to do and has done; shared by the threads of the connections."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.stalled = threading.Event()
        self.released = threading.Event()
        self._faults = deque(faults)
        self._files: dict[str, File] = {}
        self._exchanges: list[Exchange] = []
        self._lock = threading.Lock()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        with self._lock:
            return tuple(self._exchanges)

    @property
    def pending(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._faults)

    def add(self, target: str, file: File) -> None:
        with self._lock:
            self._files[target] = file

    def file(self, target: str) -> File | None:
        with self._lock:
            return self._files.get(target)

    def greet(self) -> Refuse | FailTls | None:
        """The fault for a new connection."""
        with self._lock:
            fault = self._faults[0] if self._faults else None
            if isinstance(fault, Refuse | FailTls):
                self._faults.popleft()
                return fault
            return None

    def begin(self, request: Request) -> tuple[int, Fault | None]:
        """The number of an exchange that begins, and its fault."""
        with self._lock:
            fault = self._faults.popleft() if self._faults else None
            self._exchanges.append(
                Exchange(request, ByteRange.asked(request.headers), fault, sent=0)
            )
            return len(self._exchanges) - 1, fault

    def count(self, number: int, sent: int) -> None:
        """Note that *sent* more bytes belong to an exchange."""
        with self._lock:
            exchange = self._exchanges[number]
            self._exchanges[number] = replace(exchange, sent=exchange.sent + sent)


class _Connection(Connection):
    def __init__(
        self,
        script: _Script,
        ahead: int,
        connection: socket.socket,
        address: Address,
        server: Connections,
    ) -> None:
        self._script = script
        self._ahead = ahead
        self._number = 0
        super().__init__(connection, address, server)

    def handle(self) -> None:
        match self._script.greet():
            case Refuse():
                self._reset()
            case FailTls(answer):
                # Below TLS, as if there were none.
                socket.socket.recv(self.connection, _PIECE)
                socket.socket.sendall(self.connection, answer)
            case None:
                super().handle()

    def answer(self) -> None:
        request = self.request_read
        self._number, fault = self._script.begin(request)
        reply = reply_under(fault, request.headers, self._script.file(request.target))
        match fault:
            case Refuse() | FailTls() | CloseBeforeAnswer():
                self.close_connection = True
            case Reset() | Truncate() | Stall() | Drip():
                self._send_with_a_break(fault, reply)
            case EndlessBody():
                self._send_zeros_after(reply)
            case EndlessHeaders() | EndlessContinue() | EndlessTrailers():
                lines = self._begin_lines(fault, reply) * 50
                while True:
                    self._write(lines)
            case LyingLength():
                self._send_reply(reply)
                self.close_connection = True
            case _:
                self._send_reply(reply)

    def _send_with_a_break(self, fault: Reset | Truncate | Stall | Drip, reply: Reply) -> None:
        match fault:
            case Reset(after):
                self._send_reply(reply, end=after)
                self._wait(lambda: unread_bytes(self.connection) == 0)
                self._reset()
            case Truncate(after):
                self._send_reply(reply, end=after)
                self.close_connection = True
            case Stall(None):
                self._stall()
                self._send_reply(reply)
            case Stall(int(after)):
                self._send_reply(reply, end=after)
                self._stall()
                self._send_body(reply.body[after:])
            case Drip(size, pace):
                self.send_head(reply.status, reply.headers)
                for piece in _pieces(reply.body, size):
                    self._send_body(piece)
                    self._pause(pace)

    def _send_zeros_after(self, reply: Reply) -> NoReturn:
        self.send_head(reply.status, _without_length(reply, {"Connection": "close"}))
        self._send_body(reply.body)
        while True:
            self._send_body(bytes(_PIECE))

    def _begin_lines(
        self, fault: EndlessHeaders | EndlessContinue | EndlessTrailers, reply: Reply
    ) -> bytes:
        """Send what comes before the lines that never end, and return one of them."""
        match fault:
            case EndlessHeaders():
                self._write(b"HTTP/1.1 200 OK\r\n")
                return b"X-Header: value\r\n"
            case EndlessContinue():
                return b"HTTP/1.1 100 Continue\r\n\r\n"
            case EndlessTrailers():
                self._send_chunks(reply)
                self._write(b"0\r\n")
                return b"X-Trailer: value\r\n"

    def _send_chunks(self, reply: Reply) -> None:
        self.send_head(reply.status, _without_length(reply, {"Transfer-Encoding": "chunked"}))
        for piece in _pieces(reply.body):
            self._write(b"%x\r\n" % len(piece))
            self._send_body(piece)
            self._write(b"\r\n")

    def _send_reply(self, reply: Reply, end: int | None = None) -> None:
        self.send_head(reply.status, reply.headers)
        self._send_body(reply.body[:end])

    def _send_body(self, body: Bytes) -> None:
        for piece in _pieces(body):
            self._wait_for_room(len(piece))
            # Before the write, of which a client that goes away may have taken a part.
            self._script.count(self._number, len(piece))
            self.wfile.write(piece)

    def _write(self, data: bytes) -> None:
        self._wait_for_room(len(data))
        self.wfile.write(data)

    def _wait_for_room(self, size: int) -> None:
        self._wait(lambda: unread_bytes(self.connection) + size <= self._ahead)

    def _pause(self, pace: timedelta) -> None:
        end = time.monotonic() + pace.total_seconds()
        self._wait(lambda: unread_bytes(self.connection) == 0 and time.monotonic() >= end)

    def _stall(self) -> None:
        self._script.stalled.set()
        self._wait(self._script.released.is_set)

    def _wait(self, until: Callable[[], bool]) -> None:
        """Wait for what nobody tells.

        Raises:
            ConnectionResetError: the client goes away before, or the server ends.
        """
        departure = select.poll()
        departure.register(self.connection, select.POLLRDHUP)
        while not until():
            if departure.poll(_POLL_MILLISECONDS):
                raise ConnectionResetError("the client went away")

    def _reset(self) -> None:
        self.close_connection = True
        self.server.forget(self.connection)
        # To close a connection that does not linger is to reset it.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


def _without_length(reply: Reply, framing: Mapping[str, str]) -> dict[str, str]:
    """The headers of *reply*, where the body ends in the way that *framing* says."""
    headers = {**reply.headers, **framing}
    del headers["Content-Length"]
    return headers


def _pieces(body: Bytes, size: int = _PIECE) -> Iterator[Bytes]:
    view = memoryview(body)
    for start in range(0, len(view), size):
        yield view[start : start + size]
