"""Clients that are slow, wrong, too many or gone: the server goes on, and says what was wrong."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import Answer as Received
from daemon_fixtures import read_answer

from layermanager.boundary import Boundary, Guard
from layermanager.clock import SystemClock
from layermanager.daemon.http import Answer, Request
from layermanager.daemon.listening import refuse_other_names, unix_socket
from layermanager.daemon.server import Listener, Server, ServerLimits
from layermanager.errors import StoreError
from layermanager.living import LivingThreads
from surprises import SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

PATIENCE_SECONDS = 30.0
HASTY = timedelta(seconds=0.2)


def echo(request: Request) -> Answer:
    return Answer.json(
        {"method": request.method, "target": request.target, "body": request.body.decode()}
    )


@contextmanager
def serving(
    directory: Path,
    answer: Callable[[Request], Answer] = echo,
    *,
    grace: timedelta = timedelta(seconds=PATIENCE_SECONDS),
    threads: LivingThreads | None = None,
    **limits: object,
) -> Iterator[Path]:
    path = directory / "socket"
    with unix_socket(path, 0o600, "") as listening:
        listeners = [Listener(listening, refuse_other_names)]
        threads = threads or LivingThreads(Guard(), SystemClock())
        server = Server(
            listeners,
            answer,
            ServerLimits(**limits),  # type: ignore[arg-type] # any of them
            threads,
        )
        server.start()
        try:
            yield path
        finally:
            server.close(grace)


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_SECONDS)
    connection.connect(str(path))
    return connection


def say(path: Path, request: bytes) -> Received:
    with closing(connect(path)) as connection:
        connection.sendall(request)
        return read_answer(connection)


def request(method: str = "GET", *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} / HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def test_a_body_arrives_whole(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        for headers, body in (
            ("Content-Length: 5", b"hello"),
            ("Transfer-Encoding: chunked", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        ):
            assert say(path, request("POST", headers, body=body)).document["body"] == "hello"


def test_requests_follow_each_other_on_a_connection(tmp_path: Path) -> None:
    with serving(tmp_path) as path, closing(connect(path)) as connection:
        kept = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(kept % 1 + kept % 2)
        connection.sendall(request())
        received = read_answer(connection)
        assert received.status == 200
        assert received.body.count(b"HTTP/1.1 200") == 2


def test_a_head_has_no_body(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        answer = say(path, request("HEAD"))
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 0
        assert answer.body == b""


def test_who_waits_for_permission_gets_it(tmp_path: Path) -> None:
    with serving(tmp_path) as path, closing(connect(path)) as connection:
        connection.sendall(request("POST", "Content-Length: 5", "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"hello")
        assert read_answer(connection).document["body"] == "hello"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\r\n" * 20_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_by_a_problem_document(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path) as path:
        answer = say(path, sent)
        assert 400 <= answer.status < 600
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.document["status"] == answer.status
        assert say(path, request()).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 1001",),
        ("Content-Length: 1001", "Expect: 100-continue"),
        ("Content-Length: 999999999999999",),
        ("Content-Length: 9999999999999999999",),
        ("Transfer-Encoding: chunked",),
    ],
)
def test_a_body_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, headers: tuple[str, ...]
) -> None:
    body = b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n" if "Transfer" in headers[0] else b""
    with serving(tmp_path, body_bytes=1000) as path:
        answer = say(path, request("PUT", *headers, body=body))
        assert answer.status == 413
        assert "maxBodyBytes: 1000" in answer.document["detail"]


def test_who_goes_on_sending_a_refused_body_gets_the_answer(tmp_path: Path) -> None:
    body = b"x" * 500_000
    with serving(tmp_path, body_bytes=1000) as path:
        assert say(path, request("PUT", f"Content-Length: {len(body)}", body=body)).status == 413


@pytest.mark.parametrize("begun", [b"GET / HT", request("POST", "Content-Length: 5", body=b"hel")])
def test_who_is_too_slow_is_told(tmp_path: Path, begun: bytes) -> None:
    with serving(tmp_path, request_timeout=HASTY) as path:
        answer = say(path, begun)
        assert answer.status == 408
        assert answer.headers["connection"] == "close"


def test_who_says_nothing_is_left(tmp_path: Path) -> None:
    with serving(tmp_path, idle_timeout=HASTY) as path, closing(connect(path)) as connection:
        assert connection.recv(1) == b""


def test_who_does_not_read_is_left(tmp_path: Path) -> None:
    ended = threading.Event()

    def endless() -> Generator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            ended.set()

    with (
        serving(tmp_path, lambda _: Answer(200, body=endless()), request_timeout=HASTY) as path,
        closing(connect(path)) as connection,
    ):
        connection.sendall(request())
        assert ended.wait(PATIENCE_SECONDS)


def test_who_goes_away_in_the_middle_ends_the_answer(tmp_path: Path) -> None:
    ended = threading.Event()

    def endless() -> Generator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            ended.set()

    with serving(tmp_path, lambda _: Answer(200, body=endless())) as path:
        with closing(connect(path)) as connection:
            connection.sendall(request())
            connection.recv(1)
        assert ended.wait(PATIENCE_SECONDS)
        assert ended.is_set()


def test_a_head_of_a_stream_releases_it(tmp_path: Path) -> None:
    ended = threading.Event()

    def stream() -> Generator[bytes]:
        try:
            yield b""
            raise AssertionError("nobody reads it")
        finally:
            ended.set()

    def answer(_: Request) -> Answer:
        body = stream()
        next(body)
        return Answer(200, body=body)

    with serving(tmp_path, answer) as path:
        assert say(path, request("HEAD")).status == 200
        assert ended.wait(PATIENCE_SECONDS)


def test_too_many_are_sent_away_and_come_in_later(tmp_path: Path) -> None:
    with serving(tmp_path, connections=2) as path:
        with ExitStack() as stack:
            for _ in range(2):
                connection = stack.enter_context(closing(connect(path)))
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(1000)
            one_too_many = stack.enter_context(closing(connect(path)))
            answer = read_answer(one_too_many)
            assert answer.status == 503
            assert answer.document["status"] == 503
            assert int(answer.headers["content-length"]) == len(answer.body)
        # Their threads end when they see that the clients are gone.
        while status_of(path) != 200:
            pass


def status_of(path: Path) -> int:
    """The status of an answer; 0 where the client was sent away before it had asked."""
    try:
        return say(path, request()).status
    except (BrokenPipeError, ConnectionResetError):
        return 0


def test_an_answer_that_is_being_given_is_finished_at_the_end(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(_: Request) -> Answer:
        asked.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return Answer.json("done")

    received: list[Received] = []
    with ExitStack() as stack:
        path = stack.enter_context(serving(tmp_path, slow))
        client = threading.Thread(target=lambda: received.append(say(path, request())))
        client.start()
        assert asked.wait(PATIENCE_SECONDS)
        idle = stack.enter_context(closing(connect(path)))
        threading.Timer(0.1, go_on.set).start()
    client.join()
    assert received[0].document == "done"
    assert idle.fileno() == -1


def test_an_answer_that_takes_too_long_is_broken_off_at_the_end(tmp_path: Path) -> None:
    ended = threading.Event()

    def endless() -> Generator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            ended.set()

    with ExitStack() as stack:
        path = stack.enter_context(
            serving(tmp_path, lambda _: Answer(200, body=endless()), grace=timedelta(0))
        )
        connection = stack.enter_context(closing(connect(path)))
        connection.sendall(request())
        connection.recv(1)
        stack.pop_all().close()
    assert ended.is_set()


class Counting:
    """Threads of a server, and what they meet."""

    def __init__(self) -> None:
        self.boundaries: list[Boundary] = []
        self.threads = LivingThreads(Guard(self.boundaries.append), SystemClock())


@pytest.mark.parametrize("surprise", SURPRISES)
def test_whatever_an_answer_raises_the_client_gets_a_problem(
    tmp_path: Path, surprise: str, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting()

    def answer(_: Request) -> Answer:
        raise made(surprise)

    with serving(tmp_path, answer, threads=counting.threads) as path:
        for _ in range(2):
            received = say(path, request())
            assert received.status == 500
            assert received.headers["content-type"] == "application/problem+json"
            assert received.document["error"] in {"UnexpectedError", "ExhaustedError"}
    assert counting.boundaries == [Boundary.REQUEST] * 2
    assert sum(one.exc_info is not None for one in caplog.records) == 2


@pytest.mark.parametrize("surprise", SURPRISES)
def test_whatever_a_stream_raises_the_client_does_not_take_it_for_the_whole(
    tmp_path: Path, surprise: str, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting()
    ended = threading.Event()

    def stream() -> Generator[bytes]:
        try:
            yield b"the beginning"
            raise made(surprise)
        finally:
            ended.set()

    with serving(tmp_path, lambda _: Answer(200, body=stream()), threads=counting.threads) as path:
        for _ in range(2):
            received = say(path, request())
            assert b"the beginning" in received.body
            assert not received.body.endswith(b"0\r\n\r\n")
            assert ended.wait(PATIENCE_SECONDS)
    assert counting.boundaries == [Boundary.STREAM] * 2
    assert sum(one.exc_info is not None for one in caplog.records) == 2


def test_a_foreseen_end_of_a_stream_is_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting()

    def stream() -> Generator[bytes]:
        yield b"the beginning"
        raise StoreError("the index is damaged")

    with serving(tmp_path, lambda _: Answer(200, body=stream()), threads=counting.threads) as path:
        assert not say(path, request()).body.endswith(b"0\r\n\r\n")
    assert counting.boundaries == []
    assert [one.message for one in caplog.records] == [
        "an answer was broken off: the index is damaged"
    ]


@pytest.mark.parametrize("surprise", SURPRISES)
def test_whatever_the_end_of_a_stream_raises_the_server_goes_on(
    tmp_path: Path, surprise: str
) -> None:
    counting = Counting()

    def stream() -> Generator[bytes]:
        try:
            yield b"the beginning"
            yield b"the end"
        finally:
            raise made(surprise)

    def answer(asked: Request) -> Answer:
        if asked.method == "HEAD":
            return echo(asked)
        body = stream()
        next(body)
        return Answer(200, body=body)

    with serving(tmp_path, answer, threads=counting.threads) as path:
        say(path, request())
        assert say(path, request("HEAD")).status == 200
    assert len(counting.boundaries) == 1


@pytest.mark.parametrize("surprise", SURPRISES)
def test_whatever_admission_raises_the_request_is_refused(tmp_path: Path, surprise: str) -> None:
    counting = Counting()

    def admit(_: Mapping[str, str]) -> None:
        raise made(surprise)

    with unix_socket(tmp_path / "socket", 0o600, "") as listening:
        server = Server([Listener(listening, admit)], echo, ServerLimits(), counting.threads)
        server.start()
        with closing(connect(tmp_path / "socket")) as connection:
            connection.sendall(request())
            received = connection.recv(65536)
        assert b" 200 " not in received
        server.close(timedelta(seconds=PATIENCE_SECONDS))


def test_the_thread_that_accepts_is_watched(tmp_path: Path) -> None:
    counting = Counting()
    with serving(tmp_path, threads=counting.threads) as path:
        assert say(path, request()).status == 200
        assert counting.threads.troubles() == ()
    assert counting.threads.troubles() == ()
