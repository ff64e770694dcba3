"""A fleet that follows a tag, by simulation: ``python -m bench.fleet [--nodes N] [--update PAGE]``.

Each node has the follower and the source of the daemon, and polls one real registry over TLS; only
the time between two polls passes at once. So an hour of a thousand nodes is over in a minute or
two, and every request, every byte and every wait is the real one. In that hour a new desired state
is published, and for ten minutes the registry cannot be reached.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import machine, report
from layermanager.boundary import Guard
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.daemon.config import DesiredStateConfig
from layermanager.daemon.following import Follower, FollowStatus, PollResult, PollSchedule
from layermanager.daemon.state_sources import state_source
from layermanager.images.publish import publish_state
from layermanager.living import LivingThreads
from layermanager.oci.reference import RegistryReference
from layermanager.testing import docker_registry
from layermanager.testing.tls import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layermanager.daemon.desired_state import DesiredState

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_HOUR: Final = 3600.0
_STARTED: Final = 60.0
_PUBLISHED_AT: Final = 1200.0
_DOWN_FROM: Final = 2100.0
_DOWN_UNTIL: Final = 2700.0
_WINDOW: Final = 10.0
_WORKERS: Final = 4
_LAYERS: Final = 20
_MOST_BYTES: Final = 1024 * 1024
_ANSWERED: Final = b"response completed"


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the hour.

    Attributes:
        name: what is special about it.
        begin: its first second.
        end: the one after its last.
    """

    name: str
    begin: float
    end: float


PHASES: Final = (
    Phase("all nodes start at the same moment", 0, _STARTED),
    Phase("nothing is new", _STARTED, _PUBLISHED_AT),
    Phase("a desired state was published", _PUBLISHED_AT, _DOWN_FROM),
    Phase("the registry is down", _DOWN_FROM, _DOWN_UNTIL),
    Phase("it is up again", _DOWN_UNTIL, _HOUR),
)


@dataclass(frozen=True, slots=True)
class Poll:
    """One look of one node: when, and what came of it."""

    at: float
    result: PollResult


@dataclass(slots=True)
class Found:
    """What was seen in one phase."""

    phase: Phase
    polls: list[Poll]
    requests: int
    connections: int
    bytes_sent: int
    bytes_received: int

    @property
    def fullest(self) -> float:
        """Polls a second in the fullest window."""
        counts: dict[int, int] = {}
        for poll in self.polls:
            window = int(poll.at // _WINDOW)
            counts[window] = counts.get(window, 0) + 1
        return max(counts.values(), default=0) / _WINDOW

    @property
    def mean(self) -> float:
        """Polls a second on average."""
        return len(self.polls) / (self.phase.end - self.phase.begin)


class NodeClock:
    """The time of one node, which its fleet sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """The time."""
        return _START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self.seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for nobody: a node is asked to poll when its time has come."""
        raise NotImplementedError(f"{event} {seconds}")


class Node:
    """A node of the fleet: the daemon's follower, and the time of its next look."""

    def __init__(
        self, reference: RegistryReference, period: timedelta, network: Network, seed: int
    ) -> None:
        chance = random.Random(seed).random  # noqa: S311 - no secret
        config = DesiredStateConfig(source=reference, poll_period=period)
        source = state_source(config, network, SystemClock(), most_bytes=_MOST_BYTES)
        assert source is not None
        self._source = source
        self._clock = NodeClock()
        self._follower = Follower(
            source,
            config,
            adopt=self._adopt,
            on_poll=self._note,
            clock=self._clock,
            threads=LivingThreads(Guard(), self._clock),
            chance=chance,
        )
        # As after a power cut: there is something to see to, so that nobody is in a hurry.
        self._next = PollSchedule(period, config.backoff).first(chance())
        self._states = 0
        self._polls: list[Poll] = []

    def live(self, until: float) -> list[Poll]:
        """Look whenever it is time, *until* then; what came of it."""
        self._polls = []
        while self._next < until:
            self._clock.seconds = self._next
            self._next += self._follower.poll()
            self._source.close()  # no server keeps an idle connection for minutes
        return self._polls

    def _adopt(self, _: DesiredState) -> None:
        self._states += 1

    def _note(self, result: PollResult, _: FollowStatus) -> None:
        self._polls.append(Poll(self._clock.seconds, result))


@dataclass(slots=True)
class Traffic:
    """What went through a relay so far."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Relay:
    """Stands before a server, counts what goes to and fro, and can cut it off.

    Attributes:
        name: where it listens, as references have it.
        traffic: what it has counted.
        is_down: whether it closes every connection at once.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.name = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.traffic = Traffic()
        self.is_down = False
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Accept nothing any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the end of listening
            while True:
                client, _ = self._listening.accept()
                if self.is_down:
                    client.close()
                    continue
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with self.traffic.lock:
            self.traffic.connections += 1
        with client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._copy, args=(server, client, "received"))
            back.start()
            self._copy(client, server, "sent")
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        with suppress(OSError):  # one of the two has ended
            while data := source.recv(65536):
                with self.traffic.lock:
                    setattr(self.traffic, counter, getattr(self.traffic, counter) + len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Fleet:
    """All nodes, the registry that they follow, and what goes between them."""

    def __init__(self, stack: ExitStack, nodes: int, period: timedelta, directory: Path) -> None:
        (directory / "authority").mkdir()
        authority = Authority.create(directory / "authority")
        certificate = authority.server_certificate()
        (directory / "registry").mkdir()
        registry = docker_registry.serve(directory / "registry", certificate=certificate)
        self._relay = stack.enter_context(closing(Relay(stack.enter_context(registry))))
        self._log = directory / "registry" / "registry.log"
        self._network = Network(
            ca_bundle=authority.bundle,
            connect_timeout=timedelta(seconds=30),
            read_timeout=timedelta(seconds=30),
        )
        self._reference = RegistryReference(self._relay.name, "fleet/desired", "stable")
        self._nodes = [Node(self._reference, period, self._network, seed) for seed in range(nodes)]

    def publish(self, version: int) -> None:
        """Publish a desired state."""
        publish_state(_state(version), str(self._reference), self._network, name="the state")

    def live(self, phase: Phase) -> Found:
        """Have all nodes live through a phase."""
        self._relay.is_down = phase.begin == _DOWN_FROM
        traffic = self._relay.traffic
        connections, sent, received = traffic.connections, traffic.sent, traffic.received
        answered = self._answered()
        with ThreadPoolExecutor(_WORKERS) as workers:
            polls = [
                poll
                for one in workers.map(lambda node: node.live(phase.end), self._nodes)
                for poll in one
            ]
        return Found(
            phase,
            polls,
            self._answered() - answered,
            traffic.connections - connections,
            traffic.sent - sent,
            traffic.received - received,
        )

    def _answered(self) -> int:
        """How many requests the registry says that it has answered."""
        return self._log.read_bytes().count(_ANSWERED)


def _state(version: int) -> bytes:
    """A desired state of the size of a usual one."""
    layers = [
        {
            "digest": f"sha256:{number:064x}",
            "layerId": f"layer-{number}",
            "version": str(version),
            "url": f"https://layers.example/{number}/{version}.tar.zst",
            "size": 10_000_000,
        }
        for number in range(_LAYERS)
    ]
    return json.dumps(layers).encode()


@contextmanager
def _children_cpu(spent: list[float]) -> Iterator[None]:
    """Add to *spent* what the children that end within the context took, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def simulate(nodes: int, period: timedelta) -> tuple[Sequence[Found], float]:
    """Let the hour pass; what was seen, and the seconds of processor that the registry took."""
    spent: list[float] = []
    found = []
    with (
        tempfile.TemporaryDirectory() as directory,
        _children_cpu(spent),
        ExitStack() as stack,
    ):
        fleet = Fleet(stack, nodes, period, Path(directory))
        fleet.publish(1)
        for phase in PHASES:
            if phase.begin == _PUBLISHED_AT:
                fleet.publish(2)
            found.append(fleet.live(phase))
    return found, spent[0]


def _table(found: Sequence[Found], nodes: int) -> Iterator[str]:
    yield (
        "| minutes | what happens | polls, of these changed / failed | requests"
        " | sent and received a node | polls a second, mean / fullest 10 s |"
    )
    yield "|---|---|---|---|---|---|"
    for one in found:
        changed = sum(poll.result is PollResult.CHANGED for poll in one.polls)
        failed = sum(poll.result is PollResult.FAILED for poll in one.polls)
        size = (one.bytes_sent + one.bytes_received) / nodes / 1000
        yield (
            f"| {one.phase.begin / 60:.0f} to {one.phase.end / 60:.0f} | {one.phase.name}"
            f" | {len(one.polls):,}, {changed:,} / {failed:,} | {one.requests:,}"
            f" | {size:,.1f} kB | {one.mean:,.1f} / {one.fullest:,.1f} |"
        )


def _summary(
    found: Sequence[Found], nodes: int, period: timedelta, cpu: float, wall: float
) -> Iterator[str]:
    quiet = found[1]
    polls = len(quiet.polls)
    size = (quiet.bytes_sent + quiet.bytes_received) / polls
    requests = sum(one.requests for one in found)
    yield f"- nodes: {nodes:,}, each polls every {period.total_seconds():.0f} s"
    yield (
        f"- a poll when nothing is new: {quiet.requests / polls:.2f} requests,"
        f" {quiet.connections / polls:.2f} TLS connections, {size:,.0f} bytes"
    )
    hourly = _HOUR / period.total_seconds()
    yield (
        f"- a node and hour when nothing is new: {hourly:.0f} requests,"
        f" {hourly * size / 1000:,.0f} kB"
    )
    yield f"- the registry: {1000 * cpu / requests:.2f} ms of processor a request, TLS included"
    yield f"- the simulated hour took {wall:.0f} s"


def main() -> None:
    """Simulate, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--poll-seconds", type=int, default=300)
    parser.add_argument(
        "--update", type=Path, metavar="PAGE", help="put the results into this page"
    )
    arguments = parser.parse_args()
    period = timedelta(seconds=arguments.poll_seconds)
    logging.getLogger("layermanager").setLevel(logging.ERROR)  # every node would warn
    start = time.perf_counter()
    found, cpu = simulate(arguments.nodes, period)
    wall = time.perf_counter() - start
    lines = [
        f"- machine: {machine.processor()}",
        *_summary(found, arguments.nodes, period, cpu, wall),
        "",
        *_table(found, arguments.nodes),
    ]
    results = "\n".join(lines) + "\n"
    print(results, end="")
    if arguments.update:
        report.update_page(arguments.update, results)


if __name__ == "__main__":
    main()
