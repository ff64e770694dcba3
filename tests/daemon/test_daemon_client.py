"""The client where the daemon is not as it should be."""

from __future__ import annotations

import http.client
import threading
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import daemon

from layermanager.client import Client, UnreachableError
from layermanager.testing.web import Answer, Framing, LayerServer
from manager_fixtures import Node

if TYPE_CHECKING:
    from pathlib import Path


def by_tcp(server: LayerServer) -> Client:
    """A client of a server that answers what a test wants."""

    return Client(lambda seconds: http.client.HTTPConnection("127.0.0.1", server.port, seconds))


def test_nobody_is_there(tmp_path: Path) -> None:
    client = Client.at_socket(tmp_path / "nothing")
    with pytest.raises(UnreachableError, match="No such file"):
        client.layers()
    with pytest.raises(UnreachableError, match="No such file"):
        next(client.events())


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'[{"digest": 1}]', b"[1]"])
def test_something_else_is_there(body: bytes) -> None:
    with LayerServer() as server:
        server.add("/v1/layers", body)
        with pytest.raises(UnreachableError, match="/v1/layers is not as this client knows it"):
            by_tcp(server).layers()


def test_events_go_on_where_a_connection_broke() -> None:
    def event(number: int) -> bytes:
        return b'id: r-%d\nevent: removed\ndata: {"n": %d}\n\n' % (number, number)

    with LayerServer() as server:
        server.answer(
            "/v1/events",
            Answer(b"retry: 1\nid: r-0\n\n" + event(1) + event(2), framing=Framing.CLOSE),
            Answer(b":\n\n" + event(3), framing=Framing.CLOSE),
        )
        with closing(by_tcp(server).events()) as events:
            seen = [next(events) for _ in range(5)]
        assert [one.kind for one in seen] == ["open", "removed", "removed", "open", "removed"]
        assert [one.data.get("n") for one in seen] == [None, 1, 2, None, 3]
        asked = [request.headers.get("last-event-id") for request in server.requests]
        assert asked == [None, "r-2"]


def test_events_are_given_up_when_nobody_comes_back() -> None:
    with LayerServer() as server:
        server.answer("/v1/events", Answer(b"retry: 1\n\n", framing=Framing.CLOSE))
        events = by_tcp(server).events(patience=timedelta(0))
        assert next(events).kind == "open"
    with pytest.raises(UnreachableError, match="cannot follow events"):
        list(events)


def test_events_are_followed_through_a_restart(tmp_path: Path) -> None:
    node = Node(tmp_path)
    events = Client.at_socket(tmp_path / "api.sock").events()
    with daemon(node.config, tmp_path) as first:
        assert next(events).kind == "open"
        first.done(first.client.collect_garbage())
        assert next(events).kind in {"operation", "ready"}
    with closing(events), daemon(node.config, tmp_path):
        kinds = [next(events).kind]
        while "open" not in kinds or kinds[-1] != "ready":
            kinds.append(next(events).kind)
        assert kinds[kinds.index("open") + 1] == "gap"


def test_too_many_readers_are_told_so(tmp_path: Path) -> None:
    with (
        daemon(Node(tmp_path).config, tmp_path, event_readers=1) as served,
        closing(served.client.events()) as events,
    ):
        assert next(events).kind == "open"
        answer = served.ask("GET", "/v1/events")
        assert answer.status == 503
        assert "maxEventReaders" in answer.document["detail"]


def test_readers_are_counted_and_their_places_given_back(tmp_path: Path) -> None:
    with daemon(Node(tmp_path).config, tmp_path) as served:
        with closing(served.client.events()) as events:
            next(events)
            assert "layermanager_event_readers 1\n" in served.client.metrics()
        left = threading.Event()
        while not left.is_set():  # the daemon sees it at its next heartbeat
            if "layermanager_event_readers 0\n" in served.client.metrics():
                left.set()
        assert served.node.events.readers == 0
