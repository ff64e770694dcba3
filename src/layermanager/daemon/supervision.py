"""What a service manager and the daemon tell each other (sd_notify(3), sd_listen_fds(3)).

That the store is clean and operations are done; that it is alive, again and again; that it reads
its configuration anew, and that it ends. The service manager may have made the sockets. It says
where to tell, and what it has made, in the environment, from which that is taken: a child of the
daemon is not the daemon.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager.errors import ConfigError
from layermanager.header_numbers import read_count
from layermanager.readable import escaped

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

_FIRST_SOCKET: Final = 3
_PATIENCE: Final = timedelta(seconds=30)
_MOST_SOCKETS: Final = 1024
_LONGEST_WATCHDOG_MICROSECONDS: Final = 365 * 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The service manager; without one nobody is told anything.

    Attributes:
        address: where it listens, a path or an abstract name with ``@`` in front; empty: there is
            none.
        watchdog: within which time it wants to hear that the daemon lives; None: it does not.
    """

    address: str = ""
    watchdog: timedelta | None = None

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Supervisor:
        """The one that *environment* tells of, from which that is taken.

        Raises:
            ConfigError: what it says is no time.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "")
        if not microseconds or process not in {"", str(os.getpid())}:
            return cls(address)
        period = _number("WATCHDOG_USEC", microseconds, at_most=_LONGEST_WATCHDOG_MICROSECONDS)
        return cls(address, timedelta(microseconds=period))

    def starting(self, status: str) -> None:
        """Tell that it goes on, so that nobody loses patience."""
        microseconds = _PATIENCE // timedelta(microseconds=1)
        self._tell(f"EXTEND_TIMEOUT_USEC={microseconds}", f"STATUS={status}")

    def ready(self, status: str) -> bool:
        """Tell that the store is clean and operations are done; return whether it could be told."""
        return self._tell("READY=1", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """Tell that it lives."""
        self._tell("WATCHDOG=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the configuration is taken over; ``ready`` tells that this has ended."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=taking over the configuration")

    def stopping(self) -> None:
        """Tell that it ends."""
        self._tell("STOPPING=1", "STATUS=ending")

    def _tell(self, *lines: str) -> bool:
        """Tell *lines*; return False if descriptors ran out, so that they can be told later."""
        if not self.address:
            return True
        address = self.address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return False
        # Where it is gone, or does not listen, it draws its own conclusions.
        with telling, suppress(OSError):
            telling.sendto("\n".join(map(escaped, lines)).encode(), address)
        return True


def handed_over_sockets(environment: MutableMapping[str, str]) -> Sequence[socket.socket]:
    """The listening sockets that the service manager has made; *environment* forgets them.

    Raises:
        ConfigError: what it says is no number, or one is no listening socket.
    """
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()):
        return ()
    sockets = []
    handed_over = _number("LISTEN_FDS", count, at_most=_MOST_SOCKETS)
    for descriptor in range(_FIRST_SOCKET, _FIRST_SOCKET + handed_over):
        try:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library's
            sockets.append(socket.socket(fileno=descriptor))
        except OSError as error:
            raise ConfigError(f"descriptor {descriptor} of LISTEN_FDS is no socket") from error
        if not sockets[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigError(
                f"descriptor {descriptor} of LISTEN_FDS does not listen: its unit needs Accept=no"
            )
    return sockets


def _number(name: str, text: str, *, at_most: int) -> int:
    number = read_count(text, at_most=at_most)
    if number is None:
        raise ConfigError(f"{name} is no number up to {at_most}: {text!r:.80}")
    return number
