"""What a service manager hears, and what it hands over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.daemon.supervision import Supervisor, handed_over_sockets
from layermanager.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HAND_OVER = """
import json, os, socket, sys
from layermanager.daemon.supervision import handed_over_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
sockets = handed_over_sockets(os.environ)
print(json.dumps([
    [one.getsockname() for one in sockets], [one.get_inheritable() for one in sockets],
    [name for name in os.environ if name.startswith("LISTEN_")],
]))
"""


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The address of a service manager, and where it listens."""
    name = str(tmp_path / "notify")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        if request.param == "path":
            listening.bind(name)
            yield name, listening
        else:
            listening.bind(f"\0{name}")
            yield f"@{name}", listening


def test_everything_is_told(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    supervisor = Supervisor(address)
    supervisor.starting("one")
    supervisor.ready("two")
    supervisor.alive("three")
    supervisor.reloading()
    supervisor.stopping()
    heard = [listening.recv(4096).decode().splitlines() for _ in range(5)]
    assert heard[0] == ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=one"]
    assert heard[1] == ["READY=1", "STATUS=two"]
    assert heard[2] == ["WATCHDOG=1", "STATUS=three"]
    assert heard[3][0] == "RELOADING=1"
    assert int(heard[3][1].removeprefix("MONOTONIC_USEC=")) > 0
    assert heard[4][0] == "STOPPING=1"


def test_a_status_is_no_message_of_its_own(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    Supervisor(address).alive("waits for 7\nMAINPID=1 \x1b[2J\udcff")
    heard = listening.recv(4096).decode().split("\n")
    assert heard == ["WATCHDOG=1", r"STATUS=waits for 7\nMAINPID=1 \x1b[2J\udcff"]


def test_without_a_service_manager_nobody_is_told() -> None:
    Supervisor.of_environment({}).ready("fine")


def test_one_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    Supervisor(str(tmp_path / "nothing")).ready("fine")


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, timedelta(seconds=3)),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, timedelta(seconds=3)),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_children_learn_nothing_of_it(
    environment: dict[str, str], watchdog: timedelta | None
) -> None:
    environment |= {"NOTIFY_SOCKET": "/n", "PATH": "/bin"}
    assert Supervisor.of_environment(environment) == Supervisor("/n", watchdog)
    assert environment == {"PATH": "/bin"}


def test_sockets_are_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()
        ran = subprocess.run(
            [sys.executable, "-c", HAND_OVER],
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"},
            preexec_fn=lambda: os.dup2(listening.fileno(), 3),
            pass_fds=[3],
            capture_output=True,
            text=True,
            check=True,
        )
    assert ran.stdout.strip() == f'[["{path}"], [false], []]'


def test_what_is_for_another_process_is_left() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert handed_over_sockets(environment) == ()
    assert environment == {}


def test_what_is_no_number_is_named() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}
    with pytest.raises(ConfigError, match="LISTEN_FDS is no number up to 1024: "):
        handed_over_sockets(environment)
