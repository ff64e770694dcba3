from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from layermanager import __version__
from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import CancelledError, LayerError, SourceError, SourceTimeoutError
from layermanager.model import DesiredLayer, Limits
from layermanager.sources import opener
from layermanager.sources.client import MAX_REDIRECTS, HttpClient
from layermanager.sources.credentials import Credentials
from layermanager.sources.http import HttpSource, HttpStream
from layermanager.space import Partitions
from layermanager.testing.clock import FakeClock, PassingClock
from layermanager.testing.layers import digest_of
from layermanager.testing.web import Answer, Framing, LayerServer, Stall
from layermanager.transfer.fetcher import Fetcher
from layermanager.transfer.spool import Spools
from raw_server import RawServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.protocols import ByteStream, Source
    from layermanager.testing.tls import Authority
    from layermanager.transfer.fetcher import Transfer

DATA: Final = bytes(range(256)) * 4096  # 1 MiB that is not the same everywhere
SOON: Final = 20.0
"""Seconds within which something happens that must not hang; all time-outs are longer."""


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def source() -> Iterator[HttpSource]:
    with http_source() as source:
        yield source


@contextmanager
def http_source(
    *, ca_bundle: Path | None = None, timeout: timedelta = timedelta(seconds=60)
) -> Iterator[HttpSource]:
    network = Network(connect_timeout=timeout, read_timeout=timeout, ca_bundle=ca_bundle)
    source = HttpSource(HttpClient(network, Credentials()), SystemClock())
    with closing(source):
        yield source


def fetch(source: Source, url: str) -> bytes:
    with closing(source.open(url, Cancellation())) as stream:
        return read_all(stream)


def read_all(stream: ByteStream) -> bytes:
    return b"".join(iter(lambda: stream.read(256 * 1024), b""))


# --- requests and answers ---------------------------------------------------------------------


class TestHttpRequests:
    def test_asks_once_by_get_for_the_bytes_as_they_are(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        assert fetch(source, server.add("/a.tar?x=%20y", DATA)) == DATA
        (request,) = server.requests
        assert (request.method, request.target) == ("GET", "/a.tar?x=%20y")
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"] == f"layermanager/{__version__}"

    def test_uses_a_connection_again(self, source: HttpSource, server: LayerServer) -> None:
        for framing in (Framing.LENGTH, Framing.CHUNKED, Framing.LENGTH):
            url = server.answer("/a", Answer(DATA, framing=framing))
            assert fetch(source, url) == DATA
        assert server.connections == 1

    def test_never_uses_a_connection_with_unread_bytes_again(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        url = server.add("/a", DATA)
        stream = source.open(url, Cancellation())
        stream.read(10)
        stream.close()
        assert fetch(source, url) == DATA
        assert server.connections == 2

    def test_close_ends_idle_connections(self, source: HttpSource, server: LayerServer) -> None:
        url = server.add("/a", DATA)
        fetch(source, url)
        source.close()
        fetch(source, url)
        assert server.connections == 2

    def test_a_transfer_goes_on_when_the_source_is_closed(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        stream = source.open(server.add("/a", DATA), Cancellation())
        source.close()
        assert read_all(stream) == DATA
        stream.close()

    def test_a_server_that_went_away_is_noticed(self, source: HttpSource) -> None:
        with LayerServer() as server:
            url = server.add("/a", DATA)
            fetch(source, url)
        with pytest.raises(SourceError, match="refused"):
            source.open(url, Cancellation())

    def test_serves_several_threads(self, source: HttpSource, server: LayerServer) -> None:
        urls = [server.add(f"/{number}", DATA[number:]) for number in range(8)]
        with ThreadPoolExecutor() as threads:
            bodies = list(threads.map(lambda url: fetch(source, url), urls))
        assert bodies == [DATA[number:] for number in range(8)]


class TestHttpAnswers:
    @pytest.mark.parametrize("framing", [Framing.CHUNKED, Framing.CLOSE])
    def test_a_body_of_unknown_length(
        self, source: HttpSource, server: LayerServer, framing: Framing
    ) -> None:
        stream = source.open(server.answer("/a", Answer(DATA, framing=framing)), Cancellation())
        assert stream.size is None
        assert read_all(stream) == DATA
        stream.close()

    def test_bytes_are_passed_on_before_all_that_was_asked_for_is_there(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        stall = Stall(threading.Event(), after=1000)
        stream = source.open(server.answer("/a", Answer(DATA, stall=stall)), Cancellation())
        begin = b""
        while len(begin) < 1000:
            begin += stream.read(len(DATA))
        assert begin == DATA[:1000]
        stall.until.set()
        assert read_all(stream) == DATA[1000:]
        stream.close()

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (404, "404 Not Found"),
            (401, "401 Unauthorized"),
            (500, "500 Internal Server Error"),
            (503, "503 Service Unavailable"),
            (204, "204 No Content"),
            (206, "206 Partial Content"),
            (304, "304 Not Modified"),
        ],
    )
    def test_a_status_other_than_200_is_an_error(
        self, source: HttpSource, server: LayerServer, status: int, words: str
    ) -> None:
        url = server.answer("/a", Answer(status=status))
        with pytest.raises(SourceError, match=f"^{words}: {url}$"):
            source.open(url, Cancellation())

    def test_an_error_of_the_server_is_not_tried_again(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        url = server.answer("/a", Answer(status=503, headers={"Retry-After": "0"}), Answer(DATA))
        with pytest.raises(SourceError):
            source.open(url, Cancellation())
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "encoding", ["gzip", "GZIP", "x-gzip", "zstd", "br", "gzip, identity", "aws-chunked,br"]
    )
    def test_an_encoded_body_is_refused(
        self, source: HttpSource, server: LayerServer, encoding: str
    ) -> None:
        url = server.answer("/a", Answer(DATA, headers={"Content-Encoding": encoding}))
        with pytest.raises(SourceError, match=f"Content-Encoding '{encoding.lower()}'"):
            source.open(url, Cancellation())

    @pytest.mark.parametrize(
        "encoding",
        ["identity", "Identity", "", "aws-chunked", "AWS-Chunked, identity", "identity,,identity"],
    )
    def test_a_body_said_to_be_as_it_is(
        self, source: HttpSource, server: LayerServer, encoding: str
    ) -> None:
        url = server.answer("/a", Answer(DATA, headers={"Content-Encoding": encoding}))
        assert fetch(source, url) == DATA

    @pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked"])
    def test_other_transfer_codings_are_refused(
        self, source: HttpSource, server: LayerServer, coding: str
    ) -> None:
        url = server.answer(
            "/a", Answer(DATA, framing=Framing.CLOSE, headers={"Transfer-Encoding": coding})
        )
        with pytest.raises(SourceError, match="Transfer-Encoding"):
            source.open(url, Cancellation())

    @pytest.mark.parametrize(
        "length", ["-1", "+5", "1_0", "5 5", "5, 5", "5, 6", "0x5", "five", "", "9" * 5000]
    )
    def test_a_content_length_that_is_no_number_is_refused(
        self, source: HttpSource, server: LayerServer, length: str
    ) -> None:
        url = server.answer("/a", Answer(b"12345", headers={"Content-Length": length}))
        with pytest.raises(SourceError, match=r"Content-Length") as caught:
            source.open(url, Cancellation())
        assert len(str(caught.value)) < 300
        assert caught.value.is_transient

    @pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED])
    def test_a_body_that_ends_too_early_is_an_error(
        self, source: HttpSource, server: LayerServer, framing: Framing
    ) -> None:
        url = server.answer("/a", Answer(DATA, framing=framing, truncate_at=1000))
        stream = source.open(url, Cancellation())
        of_all = f" of {len(DATA)}" if framing is Framing.LENGTH else ""
        with pytest.raises(
            SourceError, match=f"after 1000{of_all} bytes: the connection was closed: {url}"
        ):
            read_all(stream)
        stream.close()

    def test_a_refused_answer_closes_its_connection_though_the_error_is_kept(
        self, source: HttpSource
    ) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n12345"
        with raw_server(answer) as url, pytest.raises(SourceError) as caught:
            source.open(url, Cancellation())
        assert "Content-Length" in str(caught.value)

    def test_close_ends_the_connection_at_once(self, source: HttpSource) -> None:
        with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n12345") as url:
            stream = source.open(url, Cancellation())
            assert stream.read(5) == b"12345"
            stream.close()

    def test_what_is_no_http_is_an_error(self, source: HttpSource) -> None:
        with raw_server(b"SSH-2.0-OpenSSH_9.2\r\n\r\n") as url, pytest.raises(SourceError):
            source.open(url, Cancellation())

    def test_broken_chunks_are_an_error(self, source: HttpSource) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with raw_server(head + b"3\r\nabc\r\nthree\r\nabc\r\n") as url:
            stream = source.open(url, Cancellation())
            with pytest.raises(SourceError, match="after 3 bytes"):
                read_all(stream)
            stream.close()

    def test_too_many_headers_are_an_error(self, source: HttpSource) -> None:
        with (
            raw_server(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n") as url,
            pytest.raises(SourceError, match="100 headers"),
        ):
            source.open(url, Cancellation())

    def test_an_answer_that_does_not_come_is_an_error(self, source: HttpSource) -> None:
        with raw_server(b"") as url, pytest.raises(SourceError, match="without response"):
            source.open(url, Cancellation())


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Answer the headers of one connection with these bytes, and see the client close it, too."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += connection.recv(4096)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(SOON)
            assert connection.recv(1) == b""

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        serving = thread.submit(serve)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a"
        serving.result(SOON)


# --- connections ------------------------------------------------------------------------------


class TestHttpConnections:
    def test_a_server_that_is_not_there(self, source: HttpSource) -> None:
        url = f"http://127.0.0.1:{closed_port()}/a"
        with pytest.raises(SourceError, match=f"^no answer: Connection refused: {url}$") as caught:
            source.open(url, Cancellation())
        assert not isinstance(caught.value, SourceTimeoutError)

    def test_a_host_that_has_no_address(self, source: HttpSource) -> None:
        with pytest.raises(SourceError, match=r"no answer: .*"):
            source.open("http://" + "a" * 64 + ".invalid/a", Cancellation())

    @pytest.mark.parametrize(
        "url",
        [
            "http://",
            "http:///a",
            "http://:80/a",
            "http://[::1/a",
            "http://host:port/a",
            "http://host:99999/a",
            "http://ho st/a",
            "http://user:secret@host:port/a",
            "http://\ud800/a",
            "http:",
        ],
    )
    def test_an_address_that_is_none(self, source: HttpSource, url: str) -> None:
        with pytest.raises(SourceError) as caught:
            source.open(url, Cancellation())
        assert "secret" not in str(caught.value)

    def test_no_answer_in_time(self, server: LayerServer) -> None:
        stall = Stall(threading.Event(), after=None)
        url = server.answer("/a", Answer(DATA, stall=stall))
        with (
            http_source(timeout=timedelta(seconds=0.2)) as source,
            pytest.raises(SourceTimeoutError, match=f"^no answer: timed out: {url}$"),
        ):
            source.open(url, Cancellation())

    @pytest.mark.parametrize("framing", Framing)
    def test_a_body_that_stops_coming(self, server: LayerServer, framing: Framing) -> None:
        stall = Stall(threading.Event(), after=1000)
        url = server.answer("/a", Answer(DATA, framing=framing, stall=stall))
        with http_source(timeout=timedelta(seconds=0.2)) as source:
            stream = source.open(url, Cancellation())
            with pytest.raises(SourceTimeoutError, match=r"after 1000.* bytes: timed out"):
                read_all(stream)
            stream.close()

    def test_no_tls_handshake_in_time(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            http_source(timeout=timedelta(seconds=0.2)) as source,
            pytest.raises(SourceTimeoutError, match="timed out"),
        ):
            source.open(f"https://127.0.0.1:{listener.getsockname()[1]}/a", Cancellation())

    def test_a_connection_that_is_reset(self, source: HttpSource) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with ThreadPoolExecutor(1) as thread:
                opening = thread.submit(
                    source.open,
                    f"http://127.0.0.1:{listener.getsockname()[1]}/a",
                    Cancellation(),
                )
                connection, _ = listener.accept()
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
                stream = opening.result(SOON)
            # Closing with this option sends a reset rather than an orderly end.
            linger_for_nothing = b"\1\0\0\0\0\0\0\0"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_nothing)
            connection.close()
            with pytest.raises(SourceError, match="after 0 of 10 bytes: Connection reset"):
                stream.read(10)
            stream.close()

    @pytest.mark.parametrize("framing", Framing)
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_abort_ends_a_read_that_hangs(
        self, request: pytest.FixtureRequest, scheme: str, framing: Framing
    ) -> None:
        authority = request.getfixturevalue("authority") if scheme == "https" else None
        stall = Stall(threading.Event(), after=1000)
        with (
            LayerServer(authority and authority.server_context()) as server,
            http_source(ca_bundle=authority and authority.bundle) as source,
            ThreadPoolExecutor(1) as thread,
        ):
            url = server.answer("/a", Answer(DATA, framing=framing, stall=stall))
            stream = source.open(url, Cancellation())
            received = 0
            while received < 1000:
                received += len(stream.read(1000))
            reading = thread.submit(stream.read, 1000)
            assert stall.reached.wait(SOON)
            stream.abort()
            error = reading.exception(SOON)
            assert isinstance(error, SourceError)
            assert "aborted" in str(error)
            stream.close()

    def test_an_aborted_connection_is_not_used_again(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        url = server.add("/a", DATA)
        stream = source.open(url, Cancellation())
        stream.abort()
        stream.close()
        assert fetch(source, url) == DATA
        assert server.connections == 2

    def test_credentials_are_not_shown(self, server: LayerServer, source: HttpSource) -> None:
        url = server.url.replace("//", "//user:secret@")
        with pytest.raises(SourceError, match="404") as caught:
            source.open(f"{url}/missing", Cancellation())
        assert caught.value.url == f"{server.url}/missing"
        assert "secret" not in str(caught.value)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- redirects --------------------------------------------------------------------------------


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("location", ["b.tar", "/x/b.tar", "../x/b.tar", "{server}/x/b.tar"])
    def test_are_followed(
        self, source: HttpSource, server: LayerServer, status: int, location: str
    ) -> None:
        server.add("/x/b.tar", DATA)
        location = location.format(server=server.url)
        assert fetch(source, server.answer("/x/a", Answer.redirect(location, status))) == DATA

    def test_to_another_server_and_to_https(
        self, server: LayerServer, authority: Authority
    ) -> None:
        with (
            LayerServer(authority.server_context()) as secure_server,
            http_source(ca_bundle=authority.bundle) as source,
        ):
            url = server.answer("/a", Answer.redirect(secure_server.add("/b", DATA)))
            assert fetch(source, url) == DATA

    def test_from_https_to_http_is_refused(self, server: LayerServer, authority: Authority) -> None:
        with (
            LayerServer(authority.server_context()) as secure_server,
            http_source(ca_bundle=authority.bundle) as source,
        ):
            url = secure_server.answer("/a", Answer.redirect(server.add("/b", DATA)))
            with pytest.raises(SourceError, match="from https to http"):
                source.open(url, Cancellation())
        assert not server.requests

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a", "data:,x"])
    def test_to_another_scheme_are_refused(
        self, source: HttpSource, server: LayerServer, target: str
    ) -> None:
        with pytest.raises(SourceError, match=f"another scheme than http and https: {target}"):
            source.open(server.answer("/a", Answer.redirect(target)), Cancellation())

    def test_to_what_is_no_url_are_refused(self, source: HttpSource, server: LayerServer) -> None:
        with pytest.raises(SourceError, match="no URL"):
            source.open(server.answer("/a", Answer.redirect("http://[::1/")), Cancellation())

    def test_as_many_as_the_limit_are_followed(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        for number in range(MAX_REDIRECTS):
            server.answer(f"/{number}", Answer.redirect(f"/{number + 1}"))
        server.add(f"/{MAX_REDIRECTS}", DATA)
        assert fetch(source, f"{server.url}/0") == DATA

    def test_in_a_circle_come_to_an_end(self, source: HttpSource, server: LayerServer) -> None:
        with pytest.raises(SourceError, match="more than 10 redirects"):
            source.open(server.answer("/a", Answer.redirect("/a")), Cancellation())
        assert len(server.requests) == MAX_REDIRECTS + 1

    def test_with_an_endless_body_are_followed(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        server.add("/b", DATA)
        body = Stall(threading.Event())
        redirect = Answer(DATA, status=302, headers={"Location": "/b"}, stall=body)
        url = server.answer("/a", redirect)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(fetch, source, url).result(SOON) == DATA

    def test_without_a_location_are_errors(self, source: HttpSource, server: LayerServer) -> None:
        with pytest.raises(SourceError, match="302 Found"):
            source.open(server.answer("/a", Answer(status=302)), Cancellation())

    def test_an_error_names_both_ends_but_no_credentials(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        elsewhere = server.url.replace("//", "//user:secret@") + "/missing"
        url = server.answer("/a", Answer.redirect(elsewhere))
        with pytest.raises(
            SourceError, match=rf"404 Not Found \(redirected to {server.url}/missing\): {url}"
        ) as caught:
            source.open(url, Cancellation())
        assert caught.value.url == url

    def test_a_refused_location_is_shown_without_credentials(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        with pytest.raises(SourceError, match="ftp://host/a") as caught:
            source.open(
                server.answer("/a", Answer.redirect("ftp://user:secret@host/a")), Cancellation()
            )
        assert "secret" not in str(caught.value)


# --- TLS --------------------------------------------------------------------------------------


class TestTls:
    def test_a_certificate_of_an_unknown_authority_is_refused(
        self, authority: Authority, source: HttpSource
    ) -> None:
        with LayerServer(authority.server_context()) as server:
            url = server.add("/a", DATA)
            with pytest.raises(
                SourceError, match=r"certificate is not trusted: .*issuer"
            ) as caught:
                source.open(url, Cancellation())
            assert not isinstance(caught.value, SourceTimeoutError)
            assert not server.requests

    def test_what_has_arrived_is_read_at_once(self, authority: Authority) -> None:
        several_records = 48 * 1024
        stall = Stall(threading.Event(), after=several_records)
        with (
            LayerServer(authority.server_context()) as server,
            http_source(ca_bundle=authority.bundle) as source,
        ):
            url = server.answer("/a", Answer(DATA, stall=stall))
            with closing(source.open(url, Cancellation())) as stream:
                assert stall.reached.wait(SOON)
                beside_the_headers = stream.read(len(DATA))
                assert beside_the_headers + stream.read(len(DATA)) == DATA[:several_records]
                stall.until.set()
                assert read_all(stream) == DATA[several_records:]

    def test_an_expired_certificate_is_refused(self, authority: Authority) -> None:
        context = authority.server_context(age=timedelta(days=30))
        with LayerServer(context) as server, http_source(ca_bundle=authority.bundle) as source:
            url = server.add("/a", DATA)
            with pytest.raises(SourceError, match="not trusted: certificate has expired"):
                source.open(url, Cancellation())

    def test_a_certificate_for_another_name_is_refused(self, authority: Authority) -> None:
        context = authority.server_context("DNS:other.example")
        with LayerServer(context) as server, http_source(ca_bundle=authority.bundle) as source:
            url = server.add("/a", DATA)
            with pytest.raises(
                SourceError, match=r"not trusted: IP address mismatch.*127\.0\.0\.1"
            ):
                source.open(url, Cancellation())

    def test_a_server_without_tls_is_an_error(
        self, server: LayerServer, source: HttpSource
    ) -> None:
        url = server.add("/a", DATA).replace("http:", "https:")
        with pytest.raises(
            SourceError, match="no answer: the server speaks no TLS: is it one of http"
        ):
            source.open(url, Cancellation())

    @pytest.mark.parametrize("content", [None, b"", b"no certificate"])
    def test_an_unusable_bundle_is_named(self, tmp_path: Path, content: bytes | None) -> None:
        bundle = tmp_path / "bundle.pem"
        if content is not None:
            bundle.write_bytes(content)
        with (
            http_source(ca_bundle=bundle) as source,
            pytest.raises(SourceError, match=f"cannot use the CA bundle {bundle}: "),
        ):
            source.open("https://127.0.0.1/a", Cancellation())

    def test_without_tls_nobody_looks_at_certificates(
        self, server: LayerServer, tmp_path: Path
    ) -> None:
        with http_source(ca_bundle=tmp_path / "missing.pem") as source:
            assert fetch(source, server.add("/a", DATA)) == DATA


# --- proxies ----------------------------------------------------------------------------------


class TestProxies:
    @pytest.mark.parametrize("prefix", ["http://", ""])
    def test_are_taken_from_the_environment(
        self,
        source: HttpSource,
        server: LayerServer,
        monkeypatch: pytest.MonkeyPatch,
        prefix: str,
    ) -> None:
        monkeypatch.setenv("http_proxy", f"{prefix}127.0.0.1:{server.port}")
        server.add("http://layers.invalid/a", DATA)
        assert fetch(source, "http://user:secret@layers.invalid/a") == DATA
        assert server.requests[0].target == "http://layers.invalid/a"

    def test_are_asked_for_a_tunnel_for_https(
        self, source: HttpSource, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", server.url)
        with pytest.raises(SourceError, match=r"no answer from the proxy: .*501"):
            source.open("https://layers.invalid/a", Cancellation())
        (request,) = server.requests
        assert (request.method, request.target) == ("CONNECT", "layers.invalid:443")

    def test_are_not_used_where_no_proxy_says_so(
        self, source: HttpSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        monkeypatch.setenv("no_proxy", "example.org, layers.invalid:81")
        with pytest.raises(SourceError, match=r"no answer from the proxy: .*refused"):
            source.open("http://layers.invalid/a", Cancellation())
        with pytest.raises(SourceError, match="no answer: ") as caught:
            source.open("http://layers.invalid:81/a", Cancellation())
        assert "proxy" not in str(caught.value)

    def test_are_not_used_for_this_node(
        self, source: HttpSource, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        assert fetch(source, server.add("/a", DATA)) == DATA

    def test_that_are_not_there_are_named_as_such_without_credentials(
        self, source: HttpSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{closed_port()}")
        with pytest.raises(SourceError, match=r"no answer from the proxy: .*refused") as caught:
            source.open("http://layers.invalid/a", Cancellation())
        assert "secret" not in str(caught.value)

    def test_of_another_protocol_are_errors(
        self, source: HttpSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
        with pytest.raises(SourceError, match="Proxy URL had unsupported scheme") as caught:
            source.open("http://layers.invalid/a", Cancellation())
        assert "secret" not in str(caught.value)


# --- going on ---------------------------------------------------------------------------------


def part(first: int, last: int, size: int, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {"Content-Range": f"bytes {first}-{last}/{size}", **(headers or {})}


class TestRanges:
    """A stream that begins behind the first byte, or does not though it was asked to."""

    SIZE: Final = len(DATA)

    def open(
        self, source: HttpSource, url: str, offset: int = 1000, validator: str = ""
    ) -> HttpStream:
        return source.open(url, Cancellation(), offset=offset, validator=validator)

    def rest(self, headers: dict[str, str] | None = None) -> Answer:
        return Answer(
            DATA[1000:], status=206, headers=part(1000, self.SIZE - 1, self.SIZE, headers)
        )

    def test_the_rest_is_asked_for_and_given(self, source: HttpSource, server: LayerServer) -> None:
        with closing(self.open(source, server.answer("/a", self.rest()))) as stream:
            assert (stream.offset, stream.size) == (1000, self.SIZE)
            assert read_all(stream) == DATA[1000:]
        (request,) = server.requests
        assert request.headers["range"] == "bytes=1000-"
        assert "if-range" not in request.headers

    def test_a_strong_etag_is_a_condition(self, source: HttpSource, server: LayerServer) -> None:
        url = server.answer("/a", self.rest({"ETag": '"1"'}))
        with closing(self.open(source, url, validator='"1"')) as stream:
            assert stream.offset == 1000
            assert stream.validator == '"1"'
        assert server.requests[0].headers["if-range"] == '"1"'

    @pytest.mark.parametrize(
        ("header", "value"),
        [("ETag", 'W/"1"'), ("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")],
    )
    def test_what_is_no_condition_is_compared(
        self, source: HttpSource, server: LayerServer, header: str, value: str
    ) -> None:
        url = server.answer("/a", Answer(DATA, headers={header: value}), self.rest({header: value}))
        with closing(source.open(url, Cancellation())) as first:
            assert first.validator == value
        with closing(self.open(source, url, validator=value)) as stream:
            assert stream.offset == 1000
        assert "if-range" not in server.requests[1].headers

    def test_an_etag_counts_before_a_time(self, source: HttpSource, server: LayerServer) -> None:
        headers = {"ETag": '"1"', "Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT"}
        with closing(
            source.open(server.answer("/a", Answer(headers=headers)), Cancellation())
        ) as s:
            assert s.validator == '"1"'

    def test_a_server_without_ranges_begins_anew(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        with closing(self.open(source, server.add("/a", DATA))) as stream:
            assert (stream.offset, stream.size) == (0, self.SIZE)
            assert read_all(stream) == DATA
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(status=416),
            Answer(DATA[999:], status=206, headers=part(999, len(DATA) - 1, len(DATA))),
            Answer(DATA[1001:], status=206, headers=part(1001, len(DATA) - 1, len(DATA))),
            Answer(DATA[1000:], status=206, headers=part(1000, len(DATA), len(DATA))),
            Answer(b"", status=206, headers=part(1000, 999, len(DATA))),
            Answer(b"12345", status=206, headers=part(1000, 1001, len(DATA))),
            Answer(DATA[1000:], status=206),
            Answer(DATA[1000:], status=206, headers={"Content-Range": "bytes 1000-2000/*"}),
            Answer(DATA[1000:], status=206, headers={"Content-Range": "items 1000-2000/3000"}),
            Answer(DATA, status=206, headers={"Content-Type": "multipart/byteranges; boundary=x"}),
            Answer(
                DATA[1000:],
                status=206,
                headers=part(1000, len(DATA) - 1, len(DATA), {"ETag": '"2"'}),
            ),
        ],
        ids=lambda answer: str(answer.headers) or str(answer.status),
    )
    def test_a_part_that_is_not_the_one_is_left_for_the_whole(
        self, source: HttpSource, server: LayerServer, answer: Answer
    ) -> None:
        url = server.answer("/a", answer, Answer(DATA))
        with closing(self.open(source, url, validator='"1"')) as stream:
            assert stream.offset == 0
            assert read_all(stream) == DATA
        assert "range" not in server.requests[1].headers

    def test_a_part_shorter_than_asked_for_is_taken_as_far_as_it_goes(
        self, source: HttpSource, server: LayerServer
    ) -> None:
        url = server.answer(
            "/a", Answer(DATA[1000:3000], status=206, headers=part(1000, 2999, self.SIZE))
        )
        with closing(self.open(source, url)) as stream:
            received = b""
            while len(received) < 2000:
                received += stream.read(100_000)
            assert received == DATA[1000:3000]
            with pytest.raises(SourceError, match=f"ended after 3000 of {self.SIZE}") as caught:
                stream.read(1)
        assert caught.value.is_transient


class TestWhatMayHeal:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_a_server_in_trouble(
        self, source: HttpSource, server: LayerServer, status: int
    ) -> None:
        assert self.error(source, server, Answer(status=status)).is_transient

    @pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 416, 451, 501, 505])
    def test_not_a_server_that_says_no(
        self, source: HttpSource, server: LayerServer, status: int
    ) -> None:
        assert not self.error(source, server, Answer(status=status)).is_transient

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0),
            ("120", 120),
            (" 7 ", 7),
            ("Thu, 01 Jan 2026 00:02:00 GMT", 120),
            ("Thu, 01 Jan 2026 00:02:00", 120),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ],
    )
    def test_when_the_server_says_how_long(
        self, server: LayerServer, text: str, seconds: int
    ) -> None:
        date = "Thu, 01 Jan 2026 00:00:00 GMT"
        answer = Answer(status=503, headers={"Date": date, "Retry-After": text})
        with closing(HttpSource(HttpClient(Network(), Credentials()), FakeClock())) as source:
            error = self.error(source, server, answer)
        assert error.retry_after == timedelta(seconds=seconds)

    @pytest.mark.parametrize("year", [1970, 2026, 2099])
    def test_its_date_counts_from_the_one_that_it_tells_itself(
        self, server: LayerServer, year: int
    ) -> None:
        headers = {
            "Date": "Tue, 24 Nov 2026 10:00:00 GMT",
            "Retry-After": "Tue, 24 Nov 2026 10:02:00 GMT",
        }
        clock = FakeClock(datetime(year, 1, 1, tzinfo=UTC))
        with closing(HttpSource(HttpClient(Network(), Credentials()), clock)) as source:
            error = self.error(source, server, Answer(status=503, headers=headers))
        assert error.retry_after == timedelta(minutes=2)

    def test_its_date_counts_from_ours_where_it_tells_no_readable_one(
        self, server: LayerServer
    ) -> None:
        headers = {"Date": "now", "Retry-After": "Thu, 01 Jan 2026 00:02:00 GMT"}
        with closing(HttpSource(HttpClient(Network(), Credentials()), FakeClock())) as source:
            error = self.error(source, server, Answer(status=503, headers=headers))
        assert error.retry_after == timedelta(minutes=2)

    @pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "9" * 30, "Thu, 99 Jan 2026"])
    def test_when_it_says_nothing_of_use(
        self, source: HttpSource, server: LayerServer, text: str
    ) -> None:
        answer = Answer(status=503, headers={"Retry-After": text})
        assert self.error(source, server, answer).retry_after is None

    def test_a_connection_that_breaks(self, source: HttpSource, server: LayerServer) -> None:
        stream = source.open(server.answer("/a", Answer(DATA, truncate_at=1000)), Cancellation())
        with pytest.raises(SourceError) as caught:
            read_all(stream)
        assert caught.value.is_transient
        stream.close()

    def test_a_server_that_is_not_there(self, source: HttpSource) -> None:
        with pytest.raises(SourceError) as caught:
            source.open(f"http://127.0.0.1:{closed_port()}/a", Cancellation())
        assert caught.value.is_transient

    @pytest.mark.parametrize("url", ["http://host:port/a", "http:///a"])
    def test_not_an_address_that_is_none(self, source: HttpSource, url: str) -> None:
        with pytest.raises(SourceError) as caught:
            source.open(url, Cancellation())
        assert not caught.value.is_transient

    def test_not_a_certificate(self, authority: Authority, source: HttpSource) -> None:
        with LayerServer(authority.server_context()) as server:
            url = server.add("/a", DATA)
            with pytest.raises(SourceError) as caught:
                source.open(url, Cancellation())
        assert not caught.value.is_transient

    @staticmethod
    def error(source: HttpSource, server: LayerServer, answer: Answer) -> SourceError:
        with pytest.raises(SourceError) as caught:
            source.open(server.answer("/a", answer), Cancellation())
        return caught.value


def arrived(transfer: Transfer) -> bytes:
    """All bytes, as the installer gets them."""
    while True:
        try:
            data = b"".join(transfer.chunks())
            transfer.verify()
        except LayerError as error:
            transfer.start_over(error)
        else:
            return data


OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class TestAnswersThatAreNoHttp:
    """What no server says on purpose is asked for once more."""

    ANSWERS: Final = {
        "nothing": b"",
        "status line that is garbage": b"\x16\x03\x01garbage\r\n\r\n",
        "status line without a code": b"HTTP/1.1\r\n\r\n",
        "status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
        "status of one digit": b"HTTP/1.1 7 OK\r\n\r\n",
        "endless status line": b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        "half a status line": b"HTT",
        "unknown version": b"HTTP/9.9 200 OK\r\n\r\n",
        "overlong header": OK + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
        "too many headers": OK + b"A: b\r\n" * 200 + b"\r\n",
        "part that was not asked for": b"HTTP/1.1 206 Partial Content\r\n"
        b"Content-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\n12345",
        "part of nothing": b"HTTP/1.1 206 Partial Content\r\nContent-Range: x\r\n\r\n12345",
        "negative length": OK + b"Content-Length: -5\r\n\r\n12345",
        "length that is no number": OK + b"Content-Length: 5x\r\n\r\n12345",
        "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        "enormous length": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n12345",
        "length beyond the end": OK + b"Content-Length: 9\r\n\r\n12345",
        "chunk that is cut": CHUNKED + b"9\r\n12345",
        "chunk of no size": CHUNKED + b"zz\r\n12345\r\n",
        "chunk of a negative size": CHUNKED + b"-5\r\n12345\r\n",
        "chunk of an endless size": CHUNKED + b"1" * 70_000,
        "no last chunk": CHUNKED + b"5\r\n12345\r\n",
    }

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_may_heal(self, source: HttpSource, answer: bytes) -> None:
        with RawServer(answer) as server, pytest.raises(SourceError) as caught:
            fetch(source, f"{server.url}/a")
        assert caught.value.is_transient

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_are_tried_again(self, source: HttpSource, answer: bytes) -> None:
        good = OK + b"Content-Length: 5\r\n\r\nright"
        clock = PassingClock()
        fetcher = Fetcher(
            open_stream=opener({"http": source}),
            spools=Spools(Path("/nonexistent"), Partitions().new_allocator),
            network=Network(),
            limits=Limits(),
            clock=clock,
        )
        with RawServer(answer, good) as server:
            wanted = DesiredLayer(digest_of(b"right"), f"{server.url}/a")
            with closing(fetcher.begin(wanted, Cancellation())) as transfer:
                assert arrived(transfer) == b"right"
            # A third one where some bytes came, and were found to be others.
            assert 2 <= len(server.requests) <= 3


class TestCancellation:
    def test_ends_the_waiting_for_an_answer(self, source: HttpSource, server: LayerServer) -> None:
        stall = Stall(threading.Event(), after=None)
        url = server.answer("/a", Answer(DATA, stall=stall))
        cancellation = Cancellation()
        with ThreadPoolExecutor(1) as thread:
            opening = thread.submit(source.open, url, cancellation)
            assert stall.reached.wait(SOON)
            cancellation.cancel()
            assert isinstance(opening.exception(SOON), CancelledError)

    def test_ends_the_waiting_for_a_handshake(self, source: HttpSource) -> None:
        cancellation = Cancellation()
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            ThreadPoolExecutor(1) as thread,
        ):
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/a"
            opening = thread.submit(source.open, url, cancellation)
            connection, _ = listener.accept()
            assert connection.recv(1)
            cancellation.cancel()
            assert isinstance(opening.exception(SOON), CancelledError)
            connection.settimeout(SOON)
            while connection.recv(4096):  # and the connection does not outlive it
                pass
            connection.close()

    def test_asks_nobody_when_it_came_before(self, source: HttpSource, server: LayerServer) -> None:
        cancellation = Cancellation()
        cancellation.cancel()
        with pytest.raises(CancelledError):
            source.open(server.add("/a", DATA), cancellation)
        assert not server.requests
