"""The daemon: when it answers, how it bears readers while it installs, what memory it takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.figures import Figure, Peer, Series, Unit
from bench.processes import proportional_bytes
from layermanager import Config, DesiredLayer
from layermanager.client import Client, UnreachableError
from layermanager.testing.layers import LayerBuilder, desired

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.setting import Setting

_READERS: Final = 100
_RATE: Final = 1000
_ASKERS: Final = 4
_REQUESTS: Final = 10_000
_LONG_RUN: Final = 200_000
_LAYERS: Final = 50
_LARGE_BYTES: Final = 100 * 1024 * 1024
_LARGE_LAYERS: Final = 4
_MIB: Final = 1024 * 1024
_GOAL_START_MILLISECONDS: Final = 1000
_GOAL_MEMORY_MIB: Final = 48
_GOAL_MILLISECONDS: Final = 100
_GROWTH: Final = 1.10
_SUBJECT: Final = f"serve, {_LAYERS} layers"
_LOADED: Final = f"{_SUBJECT}, {_READERS} readers of events, {_RATE:,} reads/s"


def serving(setting: Setting) -> tuple[Figure, ...]:
    """Measure a daemon on a Unix socket, from outside.

    Reads are of the layers, the desired state, the operations, the health and the space by turns.
    """
    starts, figures = [], []
    for _ in range(setting.runs):
        with setting.volumes.fresh() as volume, _daemon(volume.path) as daemon:
            starts.append(daemon.start_milliseconds)
    milliseconds = Series(tuple(starts), Unit.MILLISECONDS)
    figures.append(
        Figure("serve", "start until ready", milliseconds, goal=_GOAL_START_MILLISECONDS)
    )
    with setting.volumes.fresh() as volume, _daemon(volume.path) as daemon:
        figures += _under_load(daemon, _published(setting.scratch))
    return tuple(figures)


def _under_load(daemon: _Daemon, layers: _Layers) -> Iterator[Figure]:
    daemon.apply(layers.small)
    idle = daemon.memory()
    with daemon.events_read():
        read = daemon.memory()
        _ask(daemon.socket, _REQUESTS)
        resting = _ask(daemon.socket, _REQUESTS)
        with daemon.installing(layers):
            busy = _ask(daemon.socket, _REQUESTS)
        before = daemon.memory()
        _ask(daemon.socket, _LONG_RUN, rate=10 * _RATE)
        after = daemon.memory()
    yield Figure(_SUBJECT, "memory, nobody asks", idle, goal=_GOAL_MEMORY_MIB)
    yield Figure(_SUBJECT, f"memory, {_READERS} readers of events", read, goal=_GOAL_MEMORY_MIB)
    for when, took in (("nothing is installed", resting), ("layers are installed", busy)):
        yield Figure(_LOADED, f"answer, median; {when}", _percentile(took, 0.5))
        figure = _percentile(took, 0.99)
        yield Figure(_LOADED, f"answer, 99 of 100; {when}", figure, goal=_GOAL_MILLISECONDS)
    peer = Peer("before them", before)
    yield Figure(_SUBJECT, f"memory after {_LONG_RUN:,} more requests", after, peer, _GROWTH)


@dataclass(frozen=True, slots=True)
class _Layers:
    small: Sequence[DesiredLayer]
    large: Sequence[DesiredLayer]


@dataclass(frozen=True, slots=True)
class _Daemon:
    process: int
    socket: Path
    start_milliseconds: float

    @property
    def client(self) -> Client:
        return Client.at_socket(self.socket)

    def memory(self) -> Series:
        """Its own; that of unpackers is measured elsewhere."""
        return Series((proportional_bytes(self.process) / _MIB,), Unit.MEBIBYTES)

    def apply(self, layers: Sequence[DesiredLayer]) -> None:
        self.client.wait(self.client.put_desired(layers).id).raise_if_failed()

    @contextmanager
    def events_read(self) -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(_READERS):
                connection = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
                connection.connect(str(self.socket))
                connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                reader = threading.Thread(target=_drain, args=(connection,))
                reader.start()
                stack.callback(reader.join)
                stack.callback(connection.shutdown, socket.SHUT_RDWR)
            yield

    @contextmanager
    def installing(self, layers: _Layers) -> Iterator[None]:
        """Install and remove large layers again and again."""
        ended = threading.Event()

        def install() -> None:
            while not ended.is_set():
                self.apply((*layers.small, *layers.large))
                self.apply(layers.small)
                self.client.wait(self.client.collect_garbage(ttl_days=0).id).raise_if_failed()

        thread = threading.Thread(target=install)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _daemon(directory: Path) -> Iterator[_Daemon]:
    path = directory / "api.sock"
    config = Config(working_dir=directory / "store")
    command = [sys.executable, "-m", "layermanager", "--work-dir", str(config.working_dir)]
    start = time.perf_counter()
    with subprocess.Popen([*command, "serve", "--socket", str(path)]) as process:
        client = Client.at_socket(path)
        while not _is_ready(client):
            time.sleep(0.001)
        yield _Daemon(process.pid, path, 1000 * (time.perf_counter() - start))
        process.terminate()


def _is_ready(client: Client) -> bool:
    try:
        return client.is_ready()
    except UnreachableError:
        return False


def _ask(path: Path, requests: int, rate: float = _RATE) -> list[float]:
    """Have several clients ask at *rate* in all; how many milliseconds each answer took."""
    command = [sys.executable, "-m", "bench.asking", str(path), str(rate / _ASKERS)]
    command.append(str(requests // _ASKERS))
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(_ASKERS)]
    took: list[float] = []
    for client in clients:
        out, _ = client.communicate()
        assert client.returncode == 0
        took += json.loads(out)
    return took


def _percentile(took: Sequence[float], share: float) -> Series:
    return Series((sorted(took)[int(share * (len(took) - 1))],), Unit.MILLISECONDS)


def _drain(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _published(directory: Path) -> _Layers:
    small = [_publish(directory / f"small-{number}", 1000) for number in range(_LAYERS)]
    large = [
        _publish(directory / f"large-{number}", _LARGE_BYTES) for number in range(_LARGE_LAYERS)
    ]
    return _Layers(small, large)


def _publish(path: Path, size: int) -> DesiredLayer:
    blob = LayerBuilder().file(path.name, os.urandom(size)).tar()
    path.write_bytes(blob)
    return desired(blob, path.as_uri(), layer_id=path.name)
