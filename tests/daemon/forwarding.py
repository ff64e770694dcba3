"""A port of 127.0.0.1 that leads to a Unix socket, as ``ssh -L`` makes one for a browser."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def forwarded(path: Path, port: int = 0) -> Iterator[int]:
    """Forward connections to the socket *path* for the time of the context; yields the port."""
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", port), backlog=128) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    daemon = socket.socket(socket.AF_UNIX)
                    daemon.connect(str(path))
                    open_sockets.extend((client, daemon))
                    for one, other in ((client, daemon), (daemon, client)):
                        thread = threading.Thread(target=_copy, args=(one, other))
                        threads.append(thread)
                        thread.start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for one in open_sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for one in open_sockets:
                one.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
