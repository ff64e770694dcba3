"""The sockets of the daemon: whose they are, and who is let in."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import Daemon, daemon

from layermanager.client import ApiError, Client, UnreachableError
from layermanager.daemon.config import DaemonConfig, TcpConfig
from layermanager.daemon.listening import Places, unix_socket
from layermanager.errors import ConfigError
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.testing.tls import Authority

CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    print("refused")
else:
    print("connected")
"""
NOBODY = 65534
A_GROUP = 1  # daemon, on Debian


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(Node(tmp_path).config, tmp_path) as served:
        yield served


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_the_mode_that_it_shall_have(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o777)
    try:
        with unix_socket(tmp_path / "socket", mode, "") as listening:
            status = (tmp_path / "socket").stat()
            assert stat.S_IMODE(status.st_mode) == mode
            assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    finally:
        os.umask(before)
    assert not (tmp_path / "socket").exists()


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize(
    ("mode", "gid", "outcome"),
    [
        (0o600, A_GROUP, "refused"),
        (0o660, A_GROUP, "connected"),
        (0o660, NOBODY, "refused"),
        (0o666, NOBODY, "connected"),
    ],
)
def test_the_kernel_lets_in_whom_it_shall(mode: int, gid: int, outcome: str) -> None:
    import grp  # noqa: PLC0415 - only here
    import tempfile  # noqa: PLC0415 - pytest's directories are for their owner only
    from pathlib import Path  # noqa: PLC0415

    group = grp.getgrgid(A_GROUP).gr_name
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        path = directory / "socket"
        with unix_socket(path, mode, group):
            assert path.stat().st_gid == A_GROUP
            arguments = [sys.executable, "-c", CONNECT, str(path), str(NOBODY), str(gid)]
            ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
            assert ran.stdout.strip() == outcome


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    with unix_socket(tmp_path / "a/b/socket", 0o600, ""):
        assert (tmp_path / "a/b/socket").is_socket()


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with unix_socket(path, 0o600, ""), closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(path))


def test_the_socket_of_a_living_daemon_is_not(served: Daemon) -> None:
    path = served.config.socket
    with pytest.raises(ConfigError, match="another daemon"), unix_socket(path, 0o600, ""):
        pass
    assert served.ask("GET", "/v1/health").status == 200


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    path.mkdir() if kind == "directory" else path.write_text("precious")
    with pytest.raises(ConfigError, match="something else"), unix_socket(path, 0o600, ""):
        pass
    assert path.exists()


def test_a_group_that_is_none(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no group 'no-such-group'"),
        unix_socket(tmp_path / "socket", 0o600, "no-such-group"),
    ):
        pass


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"), unix_socket(tmp_path / ("a" * 200), 0, ""):
        pass


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:1", ""])
def test_a_socket_that_is_forwarded_to_a_port_answers(served: Daemon, host: str) -> None:
    assert served.ask("GET", "/", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "localhost.attacker.example:80"},
        {"Host": "localhost@attacker.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_site_gets_nothing(served: Daemon, headers: dict[str, str]) -> None:
    answer = served.ask("POST", "/v1/gc", {}, headers=headers)
    assert answer.status == 403
    assert [one.kind for one in served.client.operations()] == ["start"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_nor_does_a_form(served: Daemon, kind: str) -> None:
    assert served.ask("POST", "/v1/gc", {}, headers={"Content-Type": kind}).status == 415


def tcp(authority: Authority, directory: Path, port: int = 0) -> TcpConfig:
    certificate = authority.server_certificate()
    token = directory / "token"
    token.write_text("a-token\n")
    token.chmod(0o600)
    return TcpConfig(
        address="127.0.0.1",
        port=port,
        certificate=certificate.chain,
        key=certificate.key,
        token_file=token,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class TestTcp:
    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.fixture
    def by_tls(self, authority: Authority, tmp_path: Path, port: int) -> Iterator[Daemon]:
        config = tcp(authority, tmp_path, port)
        with daemon(Node(tmp_path).config, tmp_path, tcp=config) as served:
            yield served

    @pytest.mark.usefixtures("by_tls")
    def test_who_shows_the_token_is_let_in(self, authority: Authority, port: int) -> None:
        context = ssl.create_default_context(cafile=authority.bundle)
        client = Client.by_tls("127.0.0.1", port, "a-token", tls=context)
        assert client.layers() == ()
        assert next(client.events()).kind == "open"

    @pytest.mark.usefixtures("by_tls")
    @pytest.mark.parametrize("token", ["other", "a-toke", "a-token2"])
    def test_who_shows_another_one_is_not(
        self, authority: Authority, port: int, token: str
    ) -> None:
        context = ssl.create_default_context(cafile=authority.bundle)
        with pytest.raises(ApiError) as caught:
            Client.by_tls("127.0.0.1", port, token, tls=context).layers()
        assert caught.value.status == 401

    @pytest.mark.usefixtures("by_tls")
    def test_who_shows_none_learns_what_is_wanted(self, authority: Authority, port: int) -> None:
        context = ssl.create_default_context(cafile=authority.bundle)
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        with closing(connection):
            connection.request("GET", "/v1/health")
            answer = connection.getresponse()
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")

    def test_a_new_token_counts_at_once(
        self, authority: Authority, by_tls: Daemon, port: int
    ) -> None:
        assert by_tls.config.tcp is not None
        by_tls.config.tcp.token_file.write_text("another-token")
        context = ssl.create_default_context(cafile=authority.bundle)
        client = Client.by_tls("127.0.0.1", port, "another-token", tls=context)
        assert client.is_ready() in {True, False}

    def test_a_token_that_everybody_may_read_lets_nobody_in(
        self, authority: Authority, by_tls: Daemon, port: int
    ) -> None:
        assert by_tls.config.tcp is not None
        by_tls.config.tcp.token_file.chmod(0o644)
        context = ssl.create_default_context(cafile=authority.bundle)
        with pytest.raises(ApiError) as caught:
            Client.by_tls("127.0.0.1", port, "a-token", tls=context).layers()
        assert caught.value.status == 500

    def test_without_tls_nothing_is_said(self, by_tls: Daemon, port: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", "/v1/health", headers={"Authorization": "Bearer a-token"})
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()
        assert by_tls.ask("GET", "/v1/health").status == 200

    @pytest.mark.usefixtures("by_tls")
    def test_a_daemon_that_nobody_vouches_for_is_not_talked_to(self, port: int) -> None:
        client = Client.by_tls("127.0.0.1", port, "a-token", tls=ssl.create_default_context())
        with pytest.raises(UnreachableError, match="certificate"):
            client.layers()

    def test_it_does_not_listen_without_token_certificate_or_key(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        good = tcp(authority, tmp_path)
        config = DaemonConfig(socket=tmp_path / "api.sock", tcp=good)
        with Places() as places:
            for listener in places.listeners(config):
                listener.socket.close()
        good.token_file.write_text("")
        with pytest.raises(ConfigError, match="token is empty"), Places() as places:
            places.listeners(config)
        good.token_file.unlink()
        with pytest.raises(ConfigError, match="token"), Places() as places:
            places.listeners(config)
        good.token_file.touch(0o600)
        good.key.chmod(0o644)
        with pytest.raises(ConfigError, match="make it 0600"), Places() as places:
            places.listeners(config)


class TestPlaces:
    """What outlives a daemon that is made anew."""

    @pytest.fixture
    def places(self) -> Iterator[Places]:
        with Places() as places:
            yield places

    @staticmethod
    def listen(places: Places, config: DaemonConfig) -> None:
        for listener in places.listeners(config):
            listener.socket.close()

    @staticmethod
    def connects(path: Path) -> bool:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            try:
                client.connect(str(path))
            except OSError:
                return False
            return True

    def test_who_connects_between_two_servers_waits(self, places: Places, tmp_path: Path) -> None:
        config = DaemonConfig(socket=tmp_path / "socket")
        self.listen(places, config)
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(config.socket))
            (listener,) = places.listeners(config)
            with listener.socket:
                accepted, _ = listener.socket.accept()
                accepted.close()

    def test_what_is_no_longer_wanted_is_closed(self, places: Places, tmp_path: Path) -> None:
        self.listen(places, DaemonConfig(socket=tmp_path / "one"))
        self.listen(places, DaemonConfig(socket=tmp_path / "two"))
        assert not (tmp_path / "one").exists()
        assert self.connects(tmp_path / "two")

    def test_where_it_cannot_listen_the_old_one_stays(self, places: Places, tmp_path: Path) -> None:
        self.listen(places, DaemonConfig(socket=tmp_path / "one"))
        (tmp_path / "two").write_text("precious")
        with pytest.raises(ConfigError, match="something else"):
            places.listeners(DaemonConfig(socket=tmp_path / "two"))
        assert self.connects(tmp_path / "one")

    def test_permissions_are_changed_in_place(self, places: Places, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        self.listen(places, DaemonConfig(socket=path, socket_mode=0o600))
        before = path.stat().st_ino
        self.listen(places, DaemonConfig(socket=path, socket_mode=0o666))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert path.stat().st_ino == before

    def test_one_that_was_handed_over_takes_the_place_of_ours(self, tmp_path: Path) -> None:
        handed_over = socket.socket(socket.AF_UNIX)
        handed_over.bind(str(tmp_path / "theirs"))
        handed_over.listen()
        with Places([handed_over]) as places:
            self.listen(places, DaemonConfig(socket=tmp_path / "ours"))
            assert not (tmp_path / "ours").exists()
            assert self.connects(tmp_path / "theirs")
        assert (tmp_path / "theirs").exists()  # it is the service manager's

    def test_no_tcp_without_tls_and_a_token(self, tmp_path: Path) -> None:
        handed_over = socket.create_server(("127.0.0.1", 0))
        with Places([handed_over]) as places, pytest.raises(ConfigError, match=r"needs .* tcp"):
            places.listeners(DaemonConfig(socket=tmp_path / "ours"))

    def test_two_of_a_kind_are_refused(self) -> None:
        both = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        with pytest.raises(ConfigError, match="two sockets of one kind"):
            Places(both)
        for one in both:
            one.close()
