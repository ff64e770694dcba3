from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from datetime import timedelta
from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest

from layermanager.cancellation import Cancellation
from layermanager.config import Network, TlsVersion
from layermanager.errors import CancelledError, SourceError, SourceTimeoutError
from layermanager.sources.client import HttpClient, Place
from layermanager.sources.credentials import Credentials
from layermanager.sources.http import HttpSource
from layermanager.sources.scopes import Scope
from layermanager.testing.clock import FakeClock
from layermanager.testing.web import Answer, LayerServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.testing.tls import Authority

SECRET = "hunter2"  # noqa: S105 - nobody's


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def secure(authority: Authority) -> Iterator[LayerServer]:
    with LayerServer(authority.server_context()) as server:
        yield server


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with closing(HttpClient(Network(), Credentials())) as client:
        yield client


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def known(tmp_path: Path, *servers: LayerServer) -> Credentials:
    """A file with credentials for *servers*."""
    path = tmp_path / "credentials.json"
    names = [server.url.removeprefix("https://") for server in servers]
    path.write_text(json.dumps({name: {"username": "u", "password": SECRET} for name in names}))
    path.chmod(0o600)
    return Credentials(path)


def get(client: HttpClient, url: str) -> bytes:
    with closing(client.get(Place.of(url), {}, Cancellation())) as answer:
        return answer.read(1000, "nothing")


class TestCredentials:
    def test_of_the_file_are_sent_to_their_host(
        self, tmp_path: Path, secure: LayerServer, authority: Authority
    ) -> None:
        network = Network(ca_bundle=authority.bundle)
        with closing(HttpClient(network, known(tmp_path, secure))) as client:
            assert get(client, secure.add("/a", b"data")) == b"data"
        assert secure.requests[0].headers["authorization"] == basic(f"u:{SECRET}")

    def test_are_not_passed_on_by_a_redirect_to_another_one(
        self, tmp_path: Path, secure: LayerServer, authority: Authority
    ) -> None:
        network = Network(ca_bundle=authority.bundle)
        with (
            LayerServer(authority.server_context()) as other,
            closing(HttpClient(network, known(tmp_path, secure))) as client,
        ):
            other.add("/b", b"data")
            url = secure.answer("/a", Answer.redirect(f"{other.url}/b"))
            assert get(client, url) == b"data"
            assert "authorization" in secure.requests[0].headers
            assert "authorization" not in other.requests[0].headers

    def test_in_an_address_are_sent_to_its_host(
        self, client: HttpClient, server: LayerServer
    ) -> None:
        server.add("/a", b"data")
        url = server.answer("/b", Answer.redirect("/a")).replace("//", f"//u%40x:{SECRET}@")
        assert get(client, url) == b"data"
        sent = [request.headers.get("authorization") for request in server.requests]
        assert sent == [basic(f"u@x:{SECRET}")] * 2

    def test_in_an_address_are_not_sent_elsewhere(
        self, client: HttpClient, server: LayerServer
    ) -> None:
        with LayerServer() as other:
            target = other.add("/b", b"data").replace("//", "//other:secret@")
            url = server.answer("/a", Answer.redirect(target)).replace("//", f"//u:{SECRET}@")
            assert get(client, url) == b"data"
            assert "authorization" not in other.requests[0].headers

    def test_for_the_proxy_are_sent_to_the_proxy_alone(
        self, client: HttpClient, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.add("http://layers.invalid/a", b"data")
        proxy = server.url.replace("//", f"//p%3Aq:{SECRET}@")
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        assert get(client, "http://layers.invalid/a") == b"data"
        (request,) = server.requests
        assert request.headers["proxy-authorization"] == basic(f"p:q:{SECRET}")
        assert "authorization" not in request.headers

    def test_that_cannot_be_used_are_an_error_before_anybody_is_asked(
        self, tmp_path: Path, secure: LayerServer, authority: Authority
    ) -> None:
        credentials = known(tmp_path, secure)
        assert credentials.file is not None
        credentials.file.chmod(0o644)
        network = Network(ca_bundle=authority.bundle)
        with (
            closing(HttpClient(network, credentials)) as client,
            pytest.raises(
                SourceError, match=r"not asked: .*credentials.json .* mode 0644"
            ) as caught,
        ):
            get(client, secure.add("/a", b"data"))
        assert not caught.value.is_transient
        assert not secure.requests

    @pytest.mark.parametrize("path", ["/missing", "/a"])
    def test_are_in_no_error(self, client: HttpClient, server: LayerServer, path: str) -> None:
        source = HttpSource(client, FakeClock())
        server.answer("/a?sig=hunter2", Answer.redirect(f"ftp://u:{SECRET}@host/?sig={SECRET}"))
        url = f"{server.url}{path}?sig={SECRET}".replace("//", f"//u:{SECRET}@")
        with pytest.raises(SourceError) as caught:
            source.open(url, Cancellation())
        error: BaseException | None = caught.value
        while error is not None:
            assert SECRET not in str(error)
            error = error.__cause__ or error.__context__


class TestTlsSettings:
    def test_an_old_version_is_refused(self, authority: Authority) -> None:
        context = authority.server_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with LayerServer(context) as server:
            url = server.add("/a", b"data")
            network = Network(ca_bundle=authority.bundle)
            with closing(HttpClient(network, Credentials())) as client:
                assert get(client, url) == b"data"
            network = Network(ca_bundle=authority.bundle, minimum_tls_version=TlsVersion.TLS_1_3)
            with (
                closing(HttpClient(network, Credentials())) as client,
                pytest.raises(SourceError, match=r"no answer: .*(?i:version)") as caught,
            ):
                get(client, url)
            assert not caught.value.is_transient


# --- redirects that lead further in -----------------------------------------------------------


class TestScopes:
    PUBLIC = Place("https://a/x", "https://a/x").seen_at(Scope.PUBLIC)

    @pytest.mark.parametrize("scope", [Scope.LOOPBACK, Scope.LINK_LOCAL, Scope.PRIVATE])
    def test_no_redirect_leads_further_in(self, scope: Scope) -> None:
        place = self.PUBLIC.redirected("https://b/y")
        with pytest.raises(SourceError, match=f"from a public address to a {scope.words} one"):
            place.seen_at(scope)

    def test_nor_two_of_them(self) -> None:
        place = Place("http://a/", "http://a/").seen_at(Scope.PRIVATE).redirected("http://b/")
        place = place.seen_at(Scope.PRIVATE).redirected("http://c/")
        with pytest.raises(SourceError, match="from a private address to a loopback one"):
            place.seen_at(Scope.LOOPBACK)

    def test_further_out_is_anywhere(self) -> None:
        place = Place("http://a/", "http://a/").seen_at(Scope.LOOPBACK).redirected("http://b/")
        assert place.seen_at(Scope.PUBLIC).narrowest is Scope.PUBLIC

    def test_what_is_asked_for_itself_may_be_anywhere(self) -> None:
        assert Place("http://a/", "http://a/").seen_at(Scope.LOOPBACK).current == "http://a/"

    def test_behind_a_proxy_a_name_must_not_show_that_it_is_further_in(
        self, client: HttpClient, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "none.invalid")
        server.answer("http://9.9.9.9/a", Answer.redirect("http://169.254.169.254/latest"))
        with pytest.raises(SourceError, match="from a public address to a link-local one"):
            get(client, "http://9.9.9.9/a")
        assert len(server.requests) == 1

    def test_behind_a_proxy_an_address_counts_as_the_one_that_it_holds(
        self, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "none.invalid")
        server.answer("http://9.9.9.9/a", Answer.redirect("http://[2001:470::a00:1]/b"))
        server.add("http://[2001:470::a00:1]/b", b"data")
        network = Network(nat64_prefixes=(IPv6Network("2001:470::/96"),))
        with (
            closing(HttpClient(network, Credentials())) as client,
            pytest.raises(SourceError, match="from a public address to a private one"),
        ):
            get(client, "http://9.9.9.9/a")
        with closing(HttpClient(Network(), Credentials())) as client:
            assert get(client, "http://9.9.9.9/a") == b"data"

    def test_of_a_server_in_the_network_to_the_node_itself(self) -> None:
        if shutil.which("unshare") is None or shutil.which("ip") is None:
            pytest.skip("needs unshare and ip")
        namespace = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
        setup = 'ip link set lo up && ip address add 10.20.30.40/32 dev lo && exec "$@"'
        done = subprocess.run(
            [*namespace, setup, "sh", sys.executable, "-c", textwrap.dedent(REDIRECTED_INWARD)],
            check=False,
            capture_output=True,
            text=True,
        )
        if "unshare failed" in done.stderr:
            pytest.skip("may not make a network namespace")
        assert done.stderr == ""
        assert "redirected from a private address to a loopback one" in done.stdout
        assert "asked: ['/a']" in done.stdout


REDIRECTED_INWARD = """
    import http.server, threading
    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.errors import CancelledError, SourceError, SourceTimeoutError
    from layermanager.sources.client import HttpClient, Place
    from layermanager.sources.credentials import Credentials

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302 if self.path == "/a" else 200)
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/secret")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    asked = []
    server = http.server.ThreadingHTTPServer(("", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = HttpClient(Network(), Credentials())
    try:
        client.get(Place.of(f"http://10.20.30.40:{server.server_port}/a"), {}, Cancellation())
    except SourceError as error:
        print(error)
    client.close()
    server.shutdown()
    server.server_close()
    print("asked:", asked)
"""


class Pieces:
    """An upload of so many bytes that notes what is taken of it."""

    def __init__(self, size: int, *, fails_at: int | None = None) -> None:
        self.size = size
        self.largest = 0
        self._left = size
        self._fails_at = fails_at

    def read(self, size: int) -> bytes:
        if self._fails_at is not None and self.size - self._left >= self._fails_at:
            raise SourceError("cannot be read", url="file:///a")
        self.largest = max(self.largest, size)
        data = bytes(min(size, self._left))
        self._left -= len(data)
        return data


class TestUploads:
    SIZE = 3_000_000

    def test_are_sent_in_pieces(self, client: HttpClient, server: LayerServer) -> None:
        url = server.answer("/a", Answer(status=201), method="PUT")
        pieces = Pieces(self.SIZE)
        answer = client.send("PUT", Place.of(url), {}, Cancellation(), pieces)
        with closing(answer):
            assert answer.status == 201
        (request,) = server.requests
        assert request.body == bytes(self.SIZE)
        assert request.headers["content-length"] == f"{self.SIZE}"
        assert "transfer-encoding" not in request.headers
        assert pieces.largest <= 1 << 20

    def test_that_cannot_be_read_fail_with_their_own_error(
        self, client: HttpClient, server: LayerServer
    ) -> None:
        url = server.answer("/a", Answer(status=201), method="PUT")
        pieces = Pieces(self.SIZE, fails_at=self.SIZE // 2)
        with pytest.raises(SourceError, match="cannot be read: file:///a"):
            client.send("PUT", Place.of(url), {}, Cancellation(), pieces)

    def test_that_nobody_takes_have_an_end(self) -> None:
        network = Network(
            connect_timeout=timedelta(milliseconds=50), read_timeout=timedelta(milliseconds=50)
        )
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            place = Place.of(f"http://127.0.0.1:{deaf.getsockname()[1]}/a")
            with (
                closing(HttpClient(network, Credentials())) as client,
                pytest.raises(SourceTimeoutError, match="timed out"),
            ):
                client.send("PUT", place, {}, Cancellation(), Pieces(1 << 26))

    def test_that_nobody_takes_end_when_all_is_cancelled(self, client: HttpClient) -> None:
        cancellation = Cancellation()
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            place = Place.of(f"http://127.0.0.1:{deaf.getsockname()[1]}/a")

            def cancel() -> None:
                deaf.accept()[0].close()
                cancellation.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            with pytest.raises(CancelledError):
                client.send("PUT", place, {}, cancellation, Pieces(1 << 26))
            thread.join()
