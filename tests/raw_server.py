"""A server on loopback that answers with any bytes, also those that are no HTTP."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE_SECONDS = 30
_LARGEST_REQUEST = 1 << 20


class RawServer:
    """Sends one of *answers* to each request, the last one again and again; closes after each.

    Attributes:
        requests: the heads of the requests until now.
    """

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="raw-server")
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections[-1:]:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            connection.settimeout(_PATIENCE_SECONDS)
            with connection, suppress(OSError):  # the client closed it first
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _LARGEST_REQUEST:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        self.requests.append(head)
        connection.sendall(self._answers[0])
        if len(self._answers) > 1:
            del self._answers[0]
        # Not close: the kernel would reset the connection, and what was sent might be lost.
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
