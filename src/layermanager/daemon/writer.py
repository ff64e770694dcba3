"""Writing to a client that may be slow, but must go on taking what it asked for."""

from __future__ import annotations

import array
import fcntl
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LEAST_BYTES: Final = 16 * 1024
"""What a client has to take within the time that it has."""

_LOOKS: Final = 4


class SteadyWriter:
    """Sends data of any length as long as the client takes ``LEAST_BYTES`` of it in time.

    What was handed to the kernel is not what the client has taken: the kernel keeps up to some
    megabytes of it, and says that there is room only when much of that is gone. So it is asked
    what it still has.

    Args:
        client: its time-out is set here.
        seconds: how long the client may take for ``LEAST_BYTES``.
        monotonic: the time.
        unsent: how many bytes the kernel still has.
    """

    def __init__(
        self,
        client: socket.socket,
        seconds: float,
        monotonic: Callable[[], float],
        unsent: Callable[[socket.socket], int],
    ) -> None:
        self._client = client
        self._seconds = seconds
        self._monotonic = monotonic
        self._unsent = unsent

    def write(self, data: bytes) -> None:
        """Send all of *data*.

        Raises:
            TimeoutError: the client took too little of it in time.
            OSError: the client is gone.
        """
        rest = memoryview(data)
        before = -self._unsent(self._client)
        deadline = self._monotonic() + self._seconds
        self._client.settimeout(self._seconds / _LOOKS)
        while rest:
            try:
                # In pieces that are small enough to see each of them go.
                rest = rest[self._client.send(rest[:LEAST_BYTES]) :]
            except TimeoutError:
                if self._monotonic() >= deadline and self._taken(data, rest) - before < LEAST_BYTES:
                    raise
            taken = self._taken(data, rest)
            if taken - before >= LEAST_BYTES:
                before = taken
                deadline = self._monotonic() + self._seconds

    def _taken(self, data: bytes, rest: memoryview) -> int:
        return len(data) - len(rest) - self._unsent(self._client)


def unsent_bytes(client: socket.socket) -> int:
    """Return how many bytes the kernel has that the client has not taken (SIOCOUTQ)."""
    size = array.array("i", [0])
    fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, size)
    return size[0]
