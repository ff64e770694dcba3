"""Sockets over which TLS is spoken, and which take all that has arrived."""

from __future__ import annotations

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from layermanager.sources.tls import EagerSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.testing.tls import Authority

RECORD: Final = 16 * 1024
"""The most that one record holds."""

DATA: Final = bytes(range(256)) * 192  # three records, which a socket holds unread
PATIENCE: Final = 20.0


@dataclass
class Pair:
    """A client with its server; what one of them sends has arrived when the sending returns."""

    client: ssl.SSLSocket
    server: ssl.SSLSocket

    def receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.client.recv_into(buffer)])

    def send_close_notify(self) -> None:
        """Send the alert that ends a stream, without waiting for the other side's."""
        self.server.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            self.server.unwrap()

    def send_garbage(self) -> None:
        """Send a record that was damaged on its way."""
        with socket.socket(fileno=os.dup(self.server.fileno())) as below:
            below.sendall(b"\x17\x03\x03\x00\x40" + bytes(0x40))


@pytest.fixture
def pair(authority: Authority) -> Iterator[Pair]:
    context = ssl.create_default_context(cafile=authority.bundle)
    context.sslsocket_class = EagerSocket
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    theirs.settimeout(PATIENCE)
    with ThreadPoolExecutor(1) as thread:
        server_side = thread.submit(
            authority.server_context().wrap_socket, theirs, server_side=True
        )
        client = context.wrap_socket(ours, server_hostname="127.0.0.1")
        server = server_side.result()
    with client, server:
        yield Pair(client, server)


def test_all_records_that_have_arrived_are_taken_at_once(pair: Pair) -> None:
    pair.server.sendall(DATA)
    assert pair.receive(1024 * 1024) == DATA
    pair.server.sendall(DATA[:10])
    assert pair.receive(1024 * 1024) == DATA[:10]


def test_what_does_not_fit_is_left_for_the_next_call(pair: Pair) -> None:
    pair.server.sendall(DATA)
    assert pair.receive(RECORD + 1) == DATA[: RECORD + 1]
    buffer = bytearray(len(DATA))
    assert pair.client.recv_into(buffer, RECORD) == RECORD
    assert bytes(buffer) == DATA[RECORD + 1 : 2 * RECORD + 1].ljust(len(DATA), b"\0")
    assert pair.receive(len(DATA)) == DATA[2 * RECORD + 1 :]


def test_it_waits_for_what_has_not_arrived_as_long_as_it_was_told_to(pair: Pair) -> None:
    pair.server.sendall(DATA)
    pair.receive(1024 * 1024)
    assert pair.client.gettimeout() == PATIENCE
    pair.client.settimeout(0.01)
    with pytest.raises(TimeoutError):
        pair.receive(1)


@pytest.mark.parametrize("has_close_notify", [True, False])
def test_the_end_comes_after_what_is_before_it(pair: Pair, has_close_notify: bool) -> None:
    pair.server.sendall(DATA)
    if has_close_notify:
        pair.send_close_notify()
    pair.server.close()
    assert pair.receive(1024 * 1024) == DATA
    assert pair.receive(1024 * 1024) == b""
    assert pair.receive(1024 * 1024) == b""


@pytest.mark.parametrize("has_close_notify", [True, False])
def test_an_end_before_any_byte(pair: Pair, has_close_notify: bool) -> None:
    if has_close_notify:
        pair.send_close_notify()
    pair.server.close()
    assert pair.receive(1024 * 1024) == b""


def test_damage_is_told_after_what_is_before_it(pair: Pair) -> None:
    pair.server.sendall(DATA)
    pair.send_garbage()
    assert pair.receive(1024 * 1024) == DATA
    with pytest.raises(ssl.SSLError, match="RECORD"):
        pair.receive(1024 * 1024)
