"""What the servers on loopback have in common: connections with a thread each, and their end."""

from __future__ import annotations

import abc
import socket
import socketserver
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
        method: such as ``GET``.
        target: the path, with the query, as it was sent.
        headers: by their names in lower case.
        body: what came with it, where the server reads that.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class Connections(socketserver.ThreadingTCPServer):
    """Accepts connections on a port of 127.0.0.1 that the kernel chooses.

    Args:
        serve: makes the connection of a client from its socket, in a thread of its own; when it
            returns, the connection is closed.
        tls: a server-side context with its certificate, to speak https instead of http.
    """

    allow_reuse_address = True
    request_queue_size = 128
    server_address: Address

    def __init__(
        self,
        serve: Callable[[socket.socket, Address, Connections], Connection],
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), serve)
        self.accepted = 0
        self._tls = tls
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._failures: list[Exception] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that the kernel chose."""
        return self.server_address[1]

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread.start()

    def stop_accepting(self) -> None:
        """Accept no more; the connections that there are go on."""
        self.shutdown()
        self._thread.join()

    def end(self) -> None:
        """Close all connections, and return when their threads have ended.

        Raises:
            ExceptionGroup: what went wrong in them, other than a client that went away.
        """
        self._hang_up()
        self.server_close()
        if self._failures:
            raise ExceptionGroup("the server failed", self._failures)

    def forget(self, connection: socket.socket) -> None:
        """Note that nobody will wait on *connection* any more."""
        with self._lock:
            self._open.discard(connection)

    def get_request(self) -> tuple[socket.socket, Address]:
        """Accept a connection, as socketserver asks for it."""
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

    def handle_error(
        self,
        request: socket.socket | tuple[bytes, socket.socket],  # noqa: ARG002 - socketserver's
        client_address: object,  # noqa: ARG002 - socketserver's
    ) -> None:
        """Keep the error of a thread, as socketserver asks for it."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._failures.append(error)

    def _hang_up(self) -> None:
        """End every read and write on a connection; its thread ends for that."""
        with self._lock:
            for connection in self._open:
                try:
                    # Not SSLSocket's own, which also takes the TLS state from under its thread.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster


class Connection(BaseHTTPRequestHandler, abc.ABC):
    """Reads the requests of one connection, one after the other, and has GET answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Connections

    @abc.abstractmethod
    def answer(self) -> None:
        """Answer the GET that was read last."""

    @property
    def request_read(self) -> Request:
        """The request that was read last."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, self.path, headers)

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line, with its standard reason, the date unless given, and *headers*."""
        self.log_request(status)
        self.send_response_only(status)
        self.send_header("Server", self.version_string())
        if "Date" not in headers:
            self.send_header("Date", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        """Answer a GET; http.server asks for it, and says 501 to other methods."""
        self.answer()

    def finish(self) -> None:
        """Close the files of the connection, as socketserver asks for it."""
        self.server.forget(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Stay silent: what was asked is recorded."""
