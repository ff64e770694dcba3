"""A client may be slow, but must go on taking what it asked for."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from datetime import timedelta
from typing import cast

import pytest

from layermanager.daemon.writer import LEAST_BYTES, SteadyWriter, unsent_bytes
from layermanager.testing.clock import FakeClock

SECONDS = 30.0


class SlowClient:
    """Takes some bytes a second from a buffer as a kernel has it."""

    def __init__(self, clock: FakeClock, rate: int, buffer: int) -> None:
        self._clock = clock
        self._rate = rate
        self._buffer = buffer
        self._timeout = 0.0
        self._held = 0
        self._looked = 0.0
        self.sent = bytearray()

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def send(self, data: memoryview) -> int:
        # As the kernel does: there is room when three quarters of the buffer are empty.
        if self.unsent > self._buffer / 4:
            self._clock.advance(timedelta(seconds=self._timeout))
        if self.unsent > self._buffer / 4:
            raise TimeoutError
        room = min(len(data), self._buffer - self._held)
        self._held += room
        self.sent += data[:room]
        return room

    @property
    def unsent(self) -> int:
        now = self._clock.monotonic()
        self._held = max(0, self._held - int((now - self._looked) * self._rate))
        self._looked = now
        return self._held


def writer(client: SlowClient, clock: FakeClock) -> SteadyWriter:
    return SteadyWriter(
        cast("socket.socket", client), SECONDS, clock.monotonic, lambda _: client.unsent
    )


@pytest.mark.parametrize("buffer", [LEAST_BYTES, 200_000, 4_000_000])
def test_a_client_that_reads_steadily_gets_all(buffer: int) -> None:
    clock = FakeClock()
    client = SlowClient(clock, rate=2 * LEAST_BYTES // int(SECONDS), buffer=buffer)
    data = bytes(10_000_000)
    writer(client, clock).write(data)
    assert client.sent == data
    assert clock.monotonic() > 10 * SECONDS


@pytest.mark.parametrize("rate", [0, 1, LEAST_BYTES // int(2 * SECONDS)])
def test_a_client_that_hardly_reads_is_left(rate: int) -> None:
    clock = FakeClock()
    client = SlowClient(clock, rate=rate, buffer=200_000)
    with pytest.raises(TimeoutError):
        writer(client, clock).write(bytes(1_000_000))
    assert clock.monotonic() <= 3 * SECONDS


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_what_the_kernel_holds_is_told(family: socket.AddressFamily) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        if family == socket.AF_UNIX:
            ours, theirs = socket.socketpair()
        else:
            theirs = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
    with ours, theirs:
        assert unsent_bytes(ours) == 0
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(LEAST_BYTES))
        held = unsent_bytes(ours)
        assert held > 0
        theirs.settimeout(SECONDS)
        received = 0
        while unsent_bytes(ours) == held:
            received += len(theirs.recv(LEAST_BYTES))
        assert received > 0
