from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from layermanager.testing.backlog import unread_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[socket.socket, socket.socket]


_TCP_REPAIR = 19  # of linux/tcp.h


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as there,
    ):
        here, _ = listener.accept()
        with here:
            yield here, there


def wait_for(count: int, connection: socket.socket) -> None:
    """Return when what was sent has arrived and is acknowledged; hang if the count is wrong."""
    while (counted := unread_bytes(connection)) != count:
        assert counted > count


def fill(connection: socket.socket) -> int:
    """Send as much as the kernel takes."""
    connection.setblocking(False)
    sent = 0
    try:
        while True:
            sent += connection.send(b"x" * 100_000)
    except BlockingIOError:
        return sent


def test_counts_what_was_not_read(pair: Pair) -> None:
    here, there = pair
    assert unread_bytes(here) == 0
    here.sendall(b"x" * 10_000)
    wait_for(10_000, here)
    there.recv(4_000)
    wait_for(6_000, here)
    assert unread_bytes(there) == 0
    there.recv(6_000)
    wait_for(0, here)


def test_counts_the_queues_of_both_ends(pair: Pair) -> None:
    here, there = pair
    sent = fill(here)
    wait_for(sent, here)
    there.recv(sent, socket.MSG_WAITALL)
    wait_for(0, here)


def test_tells_that_the_connection_was_reset(pair: Pair) -> None:
    here, there = pair
    here.sendall(b"x")
    there.close()
    with pytest.raises(OSError, match="not connected"):
        unread_bytes(here)


@pytest.mark.usefixtures("needs_root")
def test_tells_that_nobody_is_at_the_other_end(pair: Pair) -> None:
    here, there = pair
    there.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    there.close()  # which says nothing to the other end, in this mode
    with pytest.raises(OSError, match="nobody is at the other end"):
        unread_bytes(here)
