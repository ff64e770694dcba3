"""A client that asks a daemon at a steady rate: ``python -m bench.asking SOCKET RATE REQUESTS``.

A process of its own, so that it takes no time from whom it measures. It prints a JSON array of the
milliseconds that each answer took, counted from when it was due: who keeps one request waiting
keeps those behind it waiting as well.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Final

_TARGETS: Final = ("/v1/layers", "/v1/desired-state", "/v1/operations", "/v1/health", "/v1/df")
_CONNECTIONS: Final = 4
_RECEIVE_BYTES: Final = 1 << 20


def main() -> None:
    """Ask, and print how long the answers took."""
    path, rate, requests = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    connections = [socket.socket(socket.AF_UNIX) for _ in range(_CONNECTIONS)]
    for connection in connections:
        connection.connect(path)
    took = []
    start = time.perf_counter()
    for number in range(requests):
        due = start + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        _ask(connections[number % _CONNECTIONS], _TARGETS[number % len(_TARGETS)])
        took.append(1000 * (time.perf_counter() - due))
    json.dump(took, sys.stdout)


def _ask(connection: socket.socket, target: str) -> None:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(_RECEIVE_BYTES)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    (length,) = (
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(_RECEIVE_BYTES)


if __name__ == "__main__":
    main()
