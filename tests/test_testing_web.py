from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from layermanager.testing.web import Answer, Framing, LayerServer, Stall

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON = 20.0  # seconds after which something that should happen at once counts as hanging


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


def ask(server: LayerServer, target: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    try:
        connection.request(method, target, headers={"X-Name": "value"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_serves_bytes_by_path(server: LayerServer) -> None:
    assert server.add("/a", b"first") == f"http://127.0.0.1:{server.port}/a"
    server.add("/a?x=1", b"second")
    assert ask(server, "/a") == (200, b"first")
    assert ask(server, "/a?x=1") == (200, b"second")
    assert ask(server, "/b") == (404, b"")


@pytest.mark.parametrize("framing", Framing)
@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_frames_bodies(server: LayerServer, framing: Framing, size: int) -> None:
    server.answer("/a", Answer(b"x" * size, framing=framing))
    assert ask(server, "/a") == (200, b"x" * size)


def test_gives_answers_in_turn_and_repeats_the_last(server: LayerServer) -> None:
    server.answer("/a", Answer(b"1"), Answer(b"2", status=500))
    assert [ask(server, "/a") for _ in range(3)] == [(200, b"1"), (500, b"2"), (500, b"2")]


def test_cuts_bodies_off(server: LayerServer) -> None:
    server.answer("/a", Answer(b"0123456789", truncate_at=4))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(server, "/a")
    assert caught.value.partial == b"0123"


def test_goes_on_after_a_stall(server: LayerServer) -> None:
    stall = Stall(threading.Event(), after=4)
    server.answer("/a", Answer(b"0123456789", stall=stall))
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask, server, "/a")
        assert stall.reached.wait(SOON)
        assert not asking.done()
        stall.until.set()
        assert asking.result(SOON) == (200, b"0123456789")


def test_answers_each_method_by_itself_and_records_what_it_brings(server: LayerServer) -> None:
    server.answer("/a", Answer(b"got"))
    server.answer("/a", Answer(b"put", status=201), method="PUT")
    server.answer("/a", Answer(b"head"), method="HEAD")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    answers = []
    for method, body in (("PUT", b"sent"), ("HEAD", None), ("GET", None), ("POST", b"more")):
        connection.request(method, "/a", body=body)
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))
    connection.close()
    assert answers == [(201, b"put"), (200, b""), (200, b"got"), (404, b"")]
    assert [request.body for request in server.requests] == [b"sent", b"", b"", b"more"]


def test_records_every_request(server: LayerServer) -> None:
    ask(server, "/a?b")
    assert ask(server, "/a", "DELETE")[0] == 501
    assert [(one.method, one.target) for one in server.requests] == [
        ("GET", "/a?b"),
        ("DELETE", "/a"),
    ]
    assert server.requests[0].headers["x-name"] == "value"
    assert server.connections == 2


@pytest.mark.parametrize("after", [None, 0, 4])
def test_ends_with_stalled_and_idle_connections_and_says_nothing(
    capfd: pytest.CaptureFixture[str], after: int | None
) -> None:
    before = threading.active_count()
    stall = Stall(threading.Event(), after=after)
    with ThreadPoolExecutor(1) as thread:
        with LayerServer() as server:
            idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            idle.connect()
            server.answer("/a", Answer(b"0123456789", stall=stall))
            asking = thread.submit(ask, server, "/a")
            assert stall.reached.wait(SOON)
        asking.exception(SOON)
        idle.close()
    assert threading.active_count() == before
    assert capfd.readouterr() == ("", "")


def test_raises_what_went_wrong_in_a_connection() -> None:
    server = LayerServer()
    with pytest.raises(ExceptionGroup, match="the server failed"), server:  # noqa: PT012
        server.answer("/a", Answer(headers={"X-Name": "\u20ac"}))  # no character of a header
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(server, "/a")
