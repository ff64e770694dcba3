"""A daemon in this process, on a socket of its own, for the time of a context."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from layermanager.client import Client
from layermanager.daemon.config import DaemonConfig
from layermanager.daemon.listening import Places
from layermanager.daemon.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.client import Operation
    from layermanager.config import Config
    from layermanager.daemon.node import Node

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """What a server said, read by hand."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Daemon:
    """A running daemon and ways to ask it."""

    node: Node
    config: DaemonConfig
    client: Client

    def connect(self) -> socket.socket:
        """A connection to its socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(self.config.socket))
        return connection

    def ask(
        self,
        method: str,
        target: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask by hand; *body* is sent as JSON unless it is bytes."""
        sent = {"Host": "localhost", "Connection": "close"}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        sent |= headers or {}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {sent[name]}" for name in sent)]
        return self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data)

    def send(self, request: bytes) -> Answer:
        """Send bytes and read what comes until the end of the connection."""
        with closing(self.connect()) as connection:
            connection.sendall(request)
            return read_answer(connection)

    def done(self, operation: Operation) -> Operation:
        """The operation when it has ended well."""
        ended = self.client.wait(operation.id)
        ended.raise_if_failed()
        return ended


def read_answer(connection: socket.socket) -> Answer:
    """One answer, whose body ends with the connection or by its length."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status_line.split()[1]), headers, body)


@contextmanager
def daemon(config: Config, directory: Path, **settings: Any) -> Iterator[Daemon]:
    """A daemon for the store of *config*, with its socket in *directory*."""
    settings = {"heartbeat": timedelta(seconds=0.2), **settings}
    daemon_config = replace(DaemonConfig(socket=directory / "api.sock"), **settings)
    with ExitStack() as stack:
        places = stack.enter_context(Places())
        service = stack.enter_context(
            running(config, daemon_config, places.listeners(daemon_config))
        )
        client = Client.at_socket(daemon_config.socket, timeout=timedelta(seconds=PATIENCE_SECONDS))
        yield Daemon(service.node, daemon_config, client)
