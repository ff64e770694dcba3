from __future__ import annotations

import gzip
import http.client
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from layermanager.testing.fault_server import BUFFER_BYTES, FaultServer
from layermanager.testing.faults import (
    CloseBeforeAnswer,
    Corrupt,
    Drip,
    Encoded,
    EndlessBody,
    EndlessContinue,
    EndlessHeaders,
    EndlessTrailers,
    FailTls,
    Fault,
    IgnoreRange,
    LyingLength,
    NewVersion,
    NoContentRange,
    OtherBytes,
    Redirect,
    Refuse,
    Reset,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)
from layermanager.testing.ranges import ByteRange, File
from network.scripts import fault_scripts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layermanager.testing.tls import Authority

SOON = 20.0  # seconds after which something that should happen at once counts as hanging
DATA = bytes(range(256)) * 1200  # several times BUFFER_BYTES
LENGTH = str(len(DATA))
REST = {"Range": "bytes=1000-"}


@contextmanager
def serving(*faults: Fault) -> Iterator[tuple[FaultServer, http.client.HTTPConnection]]:
    """A server with the file ``/a``, and a connection to it that is not opened yet."""
    with FaultServer(faults) as server:
        server.add("/a", DATA)
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
        try:
            yield server, client
        finally:
            client.close()


def ask(
    client: http.client.HTTPConnection, headers: Mapping[str, str] | None = None, target: str = "/a"
) -> tuple[int, Mapping[str, str], bytes]:
    client.request("GET", target, headers=headers or {})
    response = client.getresponse()
    return response.status, dict(response.headers), response.read()


def received(
    client: http.client.HTTPConnection, headers: Mapping[str, str] | None = None
) -> tuple[bytes, Exception | None]:
    """What arrives of the body of ``/a``, and how it ends."""
    client.request("GET", "/a", headers=headers or {})
    response = client.getresponse()
    parts = []
    try:
        while part := response.read1(10_000):
            parts.append(part)
    except (OSError, http.client.HTTPException) as error:
        return b"".join(parts), error
    return b"".join(parts), None


def take(connection: socket.socket, size: int) -> bytes:
    """Read *size* bytes, or up to the end."""
    parts = []
    while size and (part := connection.recv(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


@contextmanager
def asking(server: FaultServer) -> Iterator[socket.socket]:
    """A connection that has asked for ``/a``."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SOON) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n")
        yield connection


class TestWithoutFaults:
    def test_sends_files_and_parts_over_one_connection(self) -> None:
        with serving() as (server, client):
            status, headers, body = ask(client)
            assert (status, body) == (200, DATA)
            assert headers["ETag"] == File.of(DATA).etag
            asked = {"Range": "bytes=1000-", "If-Range": headers["ETag"]}
            status, headers, body = ask(client, asked)
            assert (status, body) == (206, DATA[1000:])
            assert headers["Content-Range"] == f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"
            assert ask(client, {"Range": f"bytes={LENGTH}-"})[0] == 416
            assert ask(client, target="/b")[0] == 404
            assert server.connections == 1

    def test_serves_files_with_validators_of_ones_own(self) -> None:
        with serving() as (server, client):
            assert server.add("/b?c", File(b"data", 'W/"1"', None)) == f"{server.url}/b?c"
            _, headers, body = ask(client, target="/b?c")
            assert body == b"data"
            assert headers["ETag"] == 'W/"1"'
            assert "Last-Modified" not in headers

    def test_records_what_was_asked_and_sent(self) -> None:
        with serving(Truncate(10), Status(503)) as (server, client):
            assert server.pending == (Truncate(10), Status(503))
            received(client)
            client.close()
            ask(client, {"X-Name": "value"})
            ask(client, {"Range": "bytes=1000-1009"})
            first, second, third = server.exchanges
            assert (first.request.method, first.request.target) == ("GET", "/a")
            assert (first.range, first.fault, first.sent) == (None, Truncate(10), 10)
            assert second.request.headers["x-name"] == "value"
            assert (second.fault, second.sent) == (Status(503), 0)
            assert (third.range, third.fault) == (ByteRange(1000, 1009), None)
            assert third.sent == 10
            assert server.sent == 20
            assert not server.pending

    def test_other_methods_meet_no_fault(self) -> None:
        with serving(Status(503)) as (server, client):
            client.request("PUT", "/a")
            assert client.getresponse().status == 501
            assert server.pending == (Status(503),)
            assert not server.exchanges

    def test_speaks_tls(self, authority: Authority) -> None:
        trust = ssl.create_default_context(cafile=authority.bundle)
        with FaultServer([Reset(100_000)], tls=authority.server_context()) as server:
            assert server.add("/a", DATA) == f"https://127.0.0.1:{server.port}/a"
            client = http.client.HTTPSConnection("127.0.0.1", server.port, context=trust)
            client.timeout = SOON
            assert received(client)[0] == DATA[:100_000]
            client.close()
            assert ask(client)[2] == DATA
            client.close()


class TestFaults:
    @pytest.mark.parametrize("fault", [Refuse(), FailTls(), CloseBeforeAnswer()])
    def test_there_is_no_answer(self, fault: Fault) -> None:
        with serving(fault) as (_, client):
            with pytest.raises(ConnectionError):
                ask(client)
            client.close()
            assert ask(client)[2] == DATA

    @pytest.mark.parametrize("fault", [Refuse(), FailTls(b"x"), CloseBeforeAnswer()])
    def test_an_open_connection_is_closed_without_an_answer(self, fault: Fault) -> None:
        with serving(Status(503), fault) as (server, client):
            assert ask(client)[0] == 503
            with pytest.raises(http.client.RemoteDisconnected):
                ask(client)
            client.close()
            assert ask(client)[2] == DATA
            assert server.connections == 2

    def test_a_refused_connection_is_reset(self) -> None:
        with (
            FaultServer([Refuse()]) as server,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", server.port), timeout=SOON) as client,
        ):
            client.recv(1)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [(b"", "EOF"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"WRONG_VERSION_NUMBER|PACKET")],
    )
    def test_the_handshake_fails(self, authority: Authority, answer: bytes, message: str) -> None:
        trust = ssl.create_default_context(cafile=authority.bundle)
        with FaultServer([FailTls(answer)], tls=authority.server_context()) as server:
            server.add("/a", DATA)
            client = http.client.HTTPSConnection("127.0.0.1", server.port, context=trust)
            with pytest.raises(ssl.SSLError, match=message):
                ask(client)
            client.close()
            assert ask(client)[2] == DATA
            client.close()

    def test_garbage_answers_a_request_without_tls(self) -> None:
        with (
            serving(FailTls(b"garbage\r\n")) as (_, client),
            pytest.raises(http.client.BadStatusLine, match="garbage"),
        ):
            ask(client)

    @pytest.mark.parametrize("after", [0, 1, 100_000, 200_000, 10**9])
    def test_a_reset_comes_after_what_was_read(self, after: int) -> None:
        with serving(Reset(after)) as (server, client), asking(server) as connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += take(connection, 1)
            assert take(connection, min(after, len(DATA))) == DATA[:after]
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            assert server.sent == min(after, len(DATA))
            assert ask(client)[2] == DATA

    @pytest.mark.parametrize("after", [0, 1, 100_000])
    def test_an_answer_is_cut_off_in_order(self, after: int) -> None:
        with serving(Truncate(after)) as (server, client):
            assert received(client) == (DATA[:after], None)
            assert server.sent == after

    @pytest.mark.parametrize("after", [None, 0, 100_000])
    def test_a_stall_lasts_until_it_is_released(self, after: int | None) -> None:
        with serving(Stall(after), Stall(after)) as (server, client), ThreadPoolExecutor(1) as pool:
            assert not server.stalled.is_set()
            answer = pool.submit(received, client)
            assert server.stalled.wait(SOON)
            assert server.sent == (after or 0)
            assert not answer.done()
            server.release()
            assert answer.result(SOON) == (DATA, None)
            client.close()
            assert received(client) == (DATA, None)

    def test_a_drip_waits_for_its_client(self) -> None:
        with serving(Drip(piece=100_000)) as (server, _), asking(server) as connection:
            connection.recv(1)
            assert server.sent <= 100_000
            assert take(connection, 10**9).endswith(DATA)

    def test_a_drip_has_a_pace(self) -> None:
        with serving(Drip(piece=7, pace=timedelta(days=1))) as (server, client):
            client.request("GET", "/a")
            with client.getresponse() as response:
                assert response.read1(100) == DATA[:7]
                assert server.sent == 7

    def test_one_byte_is_corrupt(self) -> None:
        with serving(Corrupt(5), Corrupt(5), Corrupt(len(DATA))) as (_, client):
            assert ask(client)[2] == DATA[:5] + b"\xfa" + DATA[6:]
            assert ask(client, REST)[2] == DATA[1000:1005] + b"\x12" + DATA[1006:]
            assert ask(client)[2] == DATA

    def test_the_bytes_of_another_file_have_the_right_headers(self) -> None:
        with serving(OtherBytes()) as (_, client):
            wrong, right = ask(client, REST), ask(client, REST)
            assert wrong[0] == right[0] == 206
            assert wrong[1] == {**right[1], "Date": wrong[1]["Date"]}
            assert len(wrong[2]) == len(right[2])
            assert not any(a == b for a, b in zip(wrong[2], right[2], strict=True))

    def test_a_new_version_is_told_by_its_entity_tag(self) -> None:
        with serving(NewVersion(), NewVersion()) as (_, client):
            etag = str(File.of(DATA).etag)
            status, headers, body = ask(client, REST)
            assert status == 206
            assert headers["ETag"] != etag
            assert body != DATA[1000:]
            assert ask(client, {**REST, "If-Range": etag})[0] == 200
            assert ask(client, {**REST, "If-Range": etag})[2] == DATA[1000:]

    def test_a_range_is_ignored(self) -> None:
        with serving(IgnoreRange()) as (_, client):
            status, headers, body = ask(client, REST)
            assert (status, body) == (200, DATA)
            assert "Content-Range" not in headers

    @pytest.mark.parametrize(
        ("shift", "first"), [(1, 1001), (-1, 999), (-2000, 0), (10**9, len(DATA) - 1)]
    )
    def test_another_part_comes_and_is_told(self, shift: int, first: int) -> None:
        with serving(WrongContentRange(shift)) as (_, client):
            status, headers, body = ask(client, REST)
            assert (status, body) == (206, DATA[first:])
            assert headers["Content-Range"] == f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"

    def test_another_part_of_a_whole_is_the_whole(self) -> None:
        with serving(*[WrongContentRange(1)] * 2) as (_, client):
            assert ask(client)[::2] == (200, DATA)
            assert ask(client, {"Range": f"bytes={LENGTH}-"})[0] == 416

    def test_the_part_is_not_told(self) -> None:
        with serving(NoContentRange()) as (_, client):
            status, headers, body = ask(client, REST)
            assert (status, body) == (206, DATA[1000:])
            assert "Content-Range" not in headers

    @pytest.mark.parametrize("delta", [-1, 1, -(10**9)])
    def test_a_length_lies(self, delta: int) -> None:
        with serving(LyingLength(delta)) as (server, _), asking(server) as connection:
            head, _, body = take(connection, 10**9).partition(b"\r\n\r\n")
            assert b"\r\nContent-Length: %d\r\n" % max(0, len(DATA) + delta) in head
            assert body == DATA

    def test_a_file_is_encoded(self) -> None:
        with serving(Encoded()) as (_, client):
            status, headers, body = ask(client, REST)
            assert (status, headers["Content-Encoding"]) == (200, "gzip")
            assert gzip.decompress(body) == DATA

    def test_a_status_says_when_to_come_again(self) -> None:
        date = "Mon, 01 Jan 2024 00:00:00 GMT"
        with serving(Status(503), Status(429, 7), Status(503, date)) as (_, client):
            asked = [ask(client) for _ in range(3)]
            assert [status for status, _, _ in asked] == [503, 429, 503]
            assert [headers.get("Retry-After") for _, headers, _ in asked] == [None, "7", date]

    def test_a_redirect_leads_elsewhere(self) -> None:
        with serving(Redirect("/b")) as (_, client):
            status, headers, body = ask(client)
            assert (status, headers["Location"], body) == (302, "/b", b"")

    @pytest.mark.parametrize(
        ("fault", "start", "line"),
        [
            (EndlessBody(), b"HTTP/1.1 200 OK\r\n", bytes(1000)),
            (EndlessHeaders(), b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n"),
            (EndlessContinue(), b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (EndlessTrailers(), b"HTTP/1.1 200 OK\r\n", b"\r\n0\r\nX-Trailer: value\r\n"),
        ],
    )
    def test_something_never_ends(self, fault: Fault, start: bytes, line: bytes) -> None:
        with serving(fault) as (server, client):
            with asking(server) as connection:
                answer = take(connection, 500_000)
            assert len(answer) == 500_000
            assert answer.startswith(start)
            assert line in answer
            assert ask(client)[2] == DATA

    def test_an_endless_body_begins_with_the_file(self) -> None:
        with serving(EndlessBody()) as (_, client):
            client.request("GET", "/a", headers=REST)
            with client.getresponse() as response:
                assert response.length is None
                assert response.read(len(DATA)) == DATA[1000:] + bytes(1000)

    def test_the_body_before_endless_trailers_is_the_file(self) -> None:
        with serving(EndlessTrailers()) as (_, client):
            client.request("GET", "/a")
            with client.getresponse() as response:
                assert response.read(len(DATA)) == DATA

    def test_every_fault_is_met_where_there_is_no_file(self) -> None:
        with serving(Corrupt(0), Stall(None), Truncate(0)) as (server, client):
            server.release()
            assert [ask(client, target="/b")[0] for _ in range(3)] == [404, 404, 404]


class TestTheBuffer:
    @pytest.mark.parametrize("fault", [Corrupt(0), EndlessBody(), Drip(100), Reset(280_000)])
    def test_the_server_is_ahead_of_a_slow_client_by_no_more(self, fault: Fault) -> None:
        with serving(fault) as (server, _):
            taken = 0
            with asking(server) as connection:
                for _ in range(250):
                    taken += len(take(connection, 1000))
                    assert server.sent <= taken + BUFFER_BYTES
            assert taken == 250_000
        assert server.sent <= taken + BUFFER_BYTES

    def test_the_server_is_ahead_of_a_client_that_left_by_no_more(self) -> None:
        with serving(EndlessBody()) as (server, _):
            with asking(server):
                while server.sent < BUFFER_BYTES - 20_000:
                    assert server.connections <= 1
            assert server.sent <= BUFFER_BYTES

    def test_the_server_is_ahead_of_a_client_that_read_fast_by_no_more(self) -> None:
        # Such a client has a large receive buffer; without a bound the server would fill it.
        with serving(EndlessBody()) as (server, _):
            with asking(server) as connection:
                take(connection, 50_000_000)
            taken = 50_000_000
        assert taken - 1000 < server.sent <= taken + BUFFER_BYTES

    def test_nothing_is_sent_in_vain_to_a_client_that_reads_all_and_goes_on_from_there(
        self,
    ) -> None:
        script: list[Fault] = [
            Reset(1000),
            Refuse(),
            Truncate(100_000),
            CloseBeforeAnswer(),
            Status(503),
        ]
        with serving(*script) as (server, client):
            body = b""
            while len(body) < len(DATA):
                with suppress(ConnectionError):
                    body += received(client, {"Range": f"bytes={len(body)}-"})[0]
                client.close()
            assert body == DATA
            assert server.sent == len(DATA)

    def test_the_server_uses_its_buffer(self) -> None:
        with serving(Stall(BUFFER_BYTES - 20_000)) as (server, _), asking(server):
            assert server.stalled.wait(SOON)  # though nothing was read
            assert server.sent == BUFFER_BYTES - 20_000


class TestTheEnd:
    @settings(max_examples=50)
    @given(fault_scripts(len(DATA)))
    def test_scripts_end_with_their_server(self, script: list[Fault]) -> None:
        before = threading.active_count()
        with ExitStack() as connections:
            with FaultServer(script) as server:
                server.add("/a", DATA)
                for _ in script:
                    with suppress(ConnectionError):  # refused
                        connection = socket.create_connection(("127.0.0.1", server.port), SOON)
                        connections.enter_context(connection)
                        connection.sendall(b"GET /a HTTP/1.1\r\nRange: bytes=1000-\r\n\r\n")
            assert threading.active_count() == before

    def test_hostile_scripts_end_with_their_server(self, capfd: pytest.CaptureFixture[str]) -> None:
        before = threading.active_count()
        hang: list[Fault] = [
            *(Stall(None), Stall(10), Reset(10**6), Drip(1, timedelta(days=1)), EndlessBody()),
            *(EndlessHeaders(), EndlessContinue(), EndlessTrailers()),
        ]
        with ExitStack() as connections:
            with FaultServer(hang) as server:
                server.add("/a", DATA)
                for number in range(len(hang) + 1):
                    connection = socket.create_connection(("127.0.0.1", server.port), SOON)
                    connections.enter_context(connection)
                    if number < len(hang):  # the last one is idle
                        connection.sendall(b"GET /a HTTP/1.1\r\n\r\n")
                while server.pending:
                    server.stalled.wait(SOON)
            assert threading.active_count() == before
        assert capfd.readouterr() == ("", "")

    def test_a_client_that_went_away_is_no_failure(self) -> None:
        with serving(*[Stall(None)] * 3) as (server, client):
            for _ in range(3):
                with asking(server):
                    assert server.stalled.wait(SOON)
            while server.pending:
                server.stalled.wait(SOON)
            assert ask(client)[2] == DATA

    def test_raises_what_went_wrong_in_a_connection(self) -> None:
        server = FaultServer([Redirect("\u20ac")])  # no character of a header
        with pytest.raises(ExceptionGroup, match="the server failed"), server:  # noqa: PT012
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            with pytest.raises((http.client.HTTPException, OSError)):
                ask(client)
            client.close()
