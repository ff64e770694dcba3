"""A daemon in which things happen that nothing foresees: it goes on, and says so."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from daemon_fixtures import daemon

from layermanager.boundary import Boundary
from layermanager.client import ApiError
from layermanager.clock import SystemClock
from layermanager.daemon.api import Api, Endpoint, Reply
from layermanager.daemon.config import DesiredStateConfig
from layermanager.daemon.http import Answer, Request
from layermanager.daemon.operations import Kind, Lane
from layermanager.desired import desired_to_json
from layermanager.testing.web import Answer as WebAnswer
from layermanager.testing.web import LayerServer
from layermanager.transfer.addresses import Backoff
from manager_fixtures import Node
from surprises import EXHAUSTED, SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon_fixtures import Daemon

    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node as DaemonNode

PATIENCE_SECONDS = 30
AT_ONCE = Backoff(timedelta(seconds=0.01), timedelta(seconds=0.02))
UNTIL_THE_END_OF_TIME = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def served(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(node.config, tmp_path) as served:
        yield served


def counted(served: Daemon) -> dict[str, int]:
    """The unexpected errors that metrics tell, by boundary; those that there were."""
    prefix = "layermanager_unexpected_errors_total{boundary="
    lines = served.ask("GET", "/v1/metrics").body.decode().splitlines()
    samples = dict(line.removeprefix(prefix).rsplit(" ", 1) for line in lines if prefix in line)
    assert {*samples} == {f'"{boundary}"}}' for boundary in Boundary}
    return {name[1:-2]: int(count) for name, count in samples.items() if int(count)}


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    return sum(one.exc_info is not None for one in caplog.records)


@pytest.mark.parametrize("surprise", SURPRISES)
class TestOperations:
    @pytest.mark.parametrize("lane", Lane)
    def test_one_fails_and_the_next_is_done(
        self, served: Daemon, lane: Lane, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def work(_: object) -> object:
            raise made(surprise)

        submitted = served.node.operations.submit(Kind.CHECK, work, lane)
        failed = served.client.wait(str(submitted["id"]))
        assert failed.state == "failed"
        document = served.ask("GET", f"/v1/operations/{failed.id}").document
        kind = "ExhaustedError" if surprise in EXHAUSTED else "UnexpectedError"
        assert document["error"]["type"] == kind
        assert document["error"]["message"].startswith(f"operation {failed.id}: ")
        assert counted(served) == {"operation": 1}
        assert tracebacks(caplog) == 1
        following = served.node.operations.submit(Kind.CHECK, lambda _: {}, lane)
        assert served.client.wait(str(following["id"])).state == "succeeded"
        assert served.ask("GET", "/v1/health").status == 200

    def test_a_result_that_cannot_be_told(self, served: Daemon, surprise: str) -> None:
        class Unspeakable(dict[str, object]):
            def items(self) -> Any:
                raise made(surprise)

        submitted = served.node.operations.submit(Kind.CHECK, lambda _: Unspeakable(a=1))
        assert served.client.wait(str(submitted["id"])).state == "failed"
        assert counted(served) == {"operation": 1}


@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_request_is_answered_and_the_next_one_too(
    served: Daemon, surprise: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(_node: DaemonNode, _call: Call) -> Answer:
        raise made(surprise)

    def on_answer(_name: str, _status: int, _seconds: float) -> None:
        raise made(surprise)

    endpoint = Endpoint("GET", "/x", "x", "x", handle, {200: Reply("x", None)})
    api = Api(served.node, [endpoint], {}, SystemClock(), on_answer)
    for _ in range(2):
        answer = api.answer(Request("GET", "/x"))
        assert answer.status == 500
        assert isinstance(answer.body, bytes)
        problem = json.loads(answer.body)
        assert problem["type"].startswith("urn:layermanager:")
        assert problem["detail"].startswith("GET /x: ")
    assert counted(served) == {"request": 4}
    assert tracebacks(caplog) == 3  # what is told of the answers is logged once


def test_a_thread_that_is_stuck_makes_the_daemon_unhealthy(served: Daemon) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def loop() -> None:
        with thread.working():
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)

    assert served.ask("GET", "/v1/health").status == 200
    thread = served.node.threads.thread("state-source", loop, longest=timedelta(0))
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    for path in ("/v1/health", "/v1/ready"):
        answer = served.ask("GET", path)
        assert answer.status == 503
        assert "state-source is stuck" in answer.document["detail"]
        assert answer.headers["retry-after"]
    assert b"layermanager_ready 0\n" in served.ask("GET", "/v1/metrics").body
    may_end.set()
    thread.close()
    assert served.ask("GET", "/v1/health").status == 200
    assert served.ask("GET", "/v1/openapi.json").status == 200


def test_all_threads_that_must_live_are_watched(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(b"[]")
    with daemon(node.config, tmp_path, desired_state=DesiredStateConfig(source=path)) as served:
        for operation in served.client.operations():
            served.client.wait(operation.id)
        assert {one.name for one in served.node.threads._threads} == {
            "accept",
            "changing",
            "looking",
            "layer-ttl",
            "next-try",
            "state-source",
            "state-watch",
        }
    assert served.node.threads._threads == []


def test_a_server_that_names_a_date_beyond_all_calendars_stops_nothing(
    node: Node, tmp_path: Path
) -> None:
    one = node.publish("one")
    with LayerServer() as server:
        busy = WebAnswer(status=503, headers={"Retry-After": UNTIL_THE_END_OF_TIME})
        good = WebAnswer(json.dumps([desired_to_json(one)]).encode())
        url = server.answer("/state", busy, busy, good)
        following = DesiredStateConfig(
            source=url, verify_command=("true", "{document}"), backoff=AT_ONCE
        )
        with daemon(node.config, tmp_path, desired_state=following) as served:
            with closing(served.client.events("none-0")) as events:
                results = (one.data["result"] for one in events if one.kind == "desired-state")
                assert list(itertools.islice(results, 3)) == ["failed", "failed", "changed"]
            assert served.client.state_source().failures == 0
            assert counted(served) == {}


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/v1/events", {"Last-Event-ID": "a-" + "9" * 5000}),
        ("GET", "/v1/layers?state=" + "9" * 5000, {}),
    ],
)
def test_five_thousand_digits_are_no_surprise(
    served: Daemon, method: str, target: str, headers: dict[str, str]
) -> None:
    answer_head = b""
    with served.connect() as connection:
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer_head:
            answer_head += connection.recv(1000)
    assert int(answer_head.split()[1]) < 500
    assert counted(served) == {}


@pytest.mark.parametrize(
    "document",
    [
        [{"digest": "sha256:" + "0" * 64, "url": "file:///x", "size": 2**63}],
        b'[{"digest": "sha256:%b", "url": "file:///x", "size": %b}]' % (b"0" * 64, b"9" * 5000),
        b"[" * 5000,
        b'{"layers": 1e999}',
    ],
)
def test_numbers_and_depths_beyond_all_bounds_are_refused(served: Daemon, document: object) -> None:
    answer = served.ask("PUT", "/v1/desired-state", document)
    assert 400 <= answer.status < 500
    assert counted(served) == {}
    with pytest.raises(ApiError):
        served.client.desired_state()
