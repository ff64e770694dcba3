"""A web server on loopback that serves bytes and misbehaves by a script.

::

    with LayerServer() as server:
        url = server.add("/a.tar", data)
        server.answer("/b.tar", Answer(data, truncate_at=10), Answer(data))
"""

from __future__ import annotations

import enum
import socket
import socketserver
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Final, Self, TypeAlias

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    Address: TypeAlias = tuple[str, int]

_STEP: Final = 64 * 1024


class Framing(enum.Enum):
    """How a body says where it ends."""

    LENGTH = enum.auto()
    """By a Content-Length."""
    CHUNKED = enum.auto()
    """By chunks of Transfer-Encoding."""
    CLOSE = enum.auto()
    """By the end of the connection."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A pause in the middle of an answer.

    Attributes:
        until: ends the pause; it is set at the latest when the server ends.
        after: how many bytes of the body are sent before; None to pause before the status line.
        reached: set by the server when the pause begins.
    """

    until: threading.Event
    after: int | None = 0
    reached: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Pause, in the thread of the connection."""
        self.reached.set()
        self.until.wait()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says to one request.

    Attributes:
        body: the bytes of the body.
        status: the status code; its reason is the standard one.
        headers: headers besides those that the framing needs; they replace them if they have the
            same name.
        framing: how the body says where it ends.
        truncate_at: after so many bytes of the body the connection is closed.
        stall: a pause.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = Framing.LENGTH
    truncate_at: int | None = None
    stall: Stall | None = None

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Self:
        """An answer that sends the client to *location*."""
        return cls(status=status, headers={"Location": location})


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
        method: such as ``GET``.
        target: the path, with the query, as it was sent.
        headers: by their names in lower case.
    """

    method: str
    target: str
    headers: Mapping[str, str]


class LayerServer:
    """Serves bytes by path on 127.0.0.1 while its context lasts; each connection has a thread.

    A path without an answer is 404; a method other than GET is 501. Nothing is written to
    stderr. At the end all connections are closed and all threads have ended; what went wrong in
    them, other than a client that went away, is raised.

    Args:
        tls: a server-side context with its certificate, to speak https instead of http.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._scheme = "http" if tls is None else "https"
        self._script = _Script()
        self._server = _Server(self._script, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that the kernel chose."""
        return self._server.server_address[1]

    @property
    def requests(self) -> tuple[Request, ...]:
        """What was asked until now, in order, whatever the answer was."""
        return self._script.requests

    @property
    def connections(self) -> int:
        """How many connections were accepted until now."""
        return self._server.accepted

    def add(self, target: str, data: bytes) -> str:
        """Serve *data* at the path *target*, and return its URL."""
        return self.answer(target, Answer(data))

    def answer(self, target: str, *answers: Answer) -> str:
        """Give these *answers* at the path *target*, the last one again and again.

        Returns:
            The URL of *target*.
        """
        self._script.set(target, answers)
        return f"{self.url}{target}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._script.end_stalls()
        self._server.hang_up()
        self._server.server_close()
        if self._server.failures:
            raise ExceptionGroup("the server failed", self._server.failures)


class _Script:
    """The answers to give and the requests that came; shared by the threads of the connections."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Answer]] = {}
        self._stalls: list[Stall] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    @property
    def requests(self) -> tuple[Request, ...]:
        with self._lock:
            return tuple(self._requests)

    def set(self, target: str, answers: tuple[Answer, ...]) -> None:
        with self._lock:
            self._answers[target] = list(answers)
            self._stalls.extend(answer.stall for answer in answers if answer.stall)

    def record(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def next_answer(self, target: str) -> Answer:
        with self._lock:
            answers = self._answers.get(target)
            if not answers:
                return Answer(status=404)
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def end_stalls(self) -> None:
        with self._lock:
            for stall in self._stalls:
                stall.until.set()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    server_address: Address

    def __init__(self, script: _Script, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.accepted = 0
        self.failures: list[Exception] = []
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Address]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake is left to the first read, which is in the connection's own thread.
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        with self._lock:
            self.accepted += 1
            self._open.add(connection)
        return connection, address

    def forget(self, connection: socket.socket) -> None:
        """Note that nobody will wait on *connection* any more."""
        with self._lock:
            self._open.discard(connection)

    def handle_error(
        self,
        request: socket.socket | tuple[bytes, socket.socket],  # noqa: ARG002 - socketserver's
        client_address: object,  # noqa: ARG002 - socketserver's
    ) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.failures.append(error)

    def hang_up(self) -> None:
        """End every read and write on a connection; its thread ends for that."""
        with self._lock:
            for connection in self._open:
                try:
                    # Not SSLSocket's own, which also takes the TLS state from under its thread.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.script.record(Request(self.command, self.path, headers))
        return True

    def do_GET(self) -> None:  # the name is http.server's
        answer = self.server.script.next_answer(self.path)
        if answer.stall is not None and answer.stall.after is None:
            answer.stall.wait()
        self._send_head(answer)
        for piece in _pieces(answer):
            if answer.framing is Framing.CHUNKED:
                self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            else:
                self.wfile.write(piece)
        if answer.truncate_at is not None or answer.framing is Framing.CLOSE:
            self.close_connection = True
        elif answer.framing is Framing.CHUNKED:
            self.wfile.write(b"0\r\n\r\n")

    def finish(self) -> None:
        self.server.forget(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Stay silent: what was asked is recorded."""

    def _send_head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**_framing_headers(answer), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _framing_headers(answer: Answer) -> dict[str, str]:
    match answer.framing:
        case Framing.LENGTH:
            return {"Content-Length": str(len(answer.body))}
        case Framing.CHUNKED:
            return {"Transfer-Encoding": "chunked"}
        case Framing.CLOSE:
            return {"Connection": "close"}


def _pieces(answer: Answer) -> Iterator[memoryview]:
    """The body up to where it is cut off, in pieces, waiting where the answer stalls."""
    body = memoryview(answer.body)[: answer.truncate_at]
    stall = answer.stall
    start = 0
    if stall is not None and stall.after is not None:
        yield from _steps(body[: stall.after])
        stall.wait()
        start = stall.after
    yield from _steps(body[start:])


def _steps(body: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(body), _STEP):
        yield body[start : start + _STEP]
