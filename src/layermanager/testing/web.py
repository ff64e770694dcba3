"""A web server on loopback that serves bytes and misbehaves by a script.

::

    with LayerServer() as server:
        url = server.add("/a.tar", data)
        server.answer("/b.tar", Answer(data, truncate_at=10), Answer(data))
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from layermanager.testing.connections import Connection, Connections, Request

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from layermanager.testing.connections import Address

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


class LayerServer:
    """Serves bytes by path on 127.0.0.1 while its context lasts; each connection has a thread.

    A path without an answer is 404; a method other than GET, HEAD, POST and PUT is 501. Nothing is
    written to stderr. At the end all connections are closed and all threads have ended; what went
    wrong in them, other than a client that went away, is raised.

    Args:
        tls: a server-side context with its certificate, to speak https instead of http.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._script = _Script()
        self._connections = Connections(partial(_Connection, self._script), tls)

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return self._connections.url

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that the kernel chose."""
        return self._connections.port

    @property
    def requests(self) -> tuple[Request, ...]:
        """What was asked until now, in order, whatever the answer was."""
        return self._script.requests

    @property
    def connections(self) -> int:
        """How many connections were accepted until now."""
        return self._connections.accepted

    def add(self, target: str, data: bytes) -> str:
        """Serve *data* at the path *target*, and return its URL."""
        return self.answer(target, Answer(data))

    def answer(self, target: str, *answers: Answer, method: str = "GET") -> str:
        """Give these *answers* at the path *target*, the last one again and again.

        Returns:
            The URL of *target*.
        """
        self._script.set(method, target, answers)
        return f"{self.url}{target}"

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
        self._script.end_stalls()
        self._connections.end()


class _Script:
    """The answers to give and the requests that came; shared by the threads of the connections."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._stalls: list[Stall] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    @property
    def requests(self) -> tuple[Request, ...]:
        with self._lock:
            return tuple(self._requests)

    def set(self, method: str, target: str, answers: tuple[Answer, ...]) -> None:
        with self._lock:
            self._answers[method, target] = list(answers)
            self._stalls.extend(answer.stall for answer in answers if answer.stall)

    def record(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def next_answer(self, method: str, target: str) -> Answer:
        with self._lock:
            answers = self._answers.get((method, target))
            if not answers:
                return Answer(status=404)
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def end_stalls(self) -> None:
        with self._lock:
            for stall in self._stalls:
                stall.until.set()


class _Connection(Connection):
    def __init__(
        self, script: _Script, connection: socket.socket, address: Address, server: Connections
    ) -> None:
        self._script = script
        super().__init__(connection, address, server)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._script.record(replace(self.request_read, body=body))
        return True

    do_HEAD = do_POST = do_PUT = Connection.do_GET  # noqa: N815 - the names are http.server's

    def answer(self) -> None:
        answer = self._script.next_answer(self.command, self.path)
        if answer.stall is not None and answer.stall.after is None:
            answer.stall.wait()
        self.send_head(answer.status, {**_framing_headers(answer), **answer.headers})
        for piece in () if self.command == "HEAD" else _pieces(answer):
            if answer.framing is Framing.CHUNKED:
                self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            else:
                self.wfile.write(piece)
        if answer.truncate_at is not None or answer.framing is Framing.CLOSE:
            self.close_connection = True
        elif answer.framing is Framing.CHUNKED:
            self.wfile.write(b"0\r\n\r\n")


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
