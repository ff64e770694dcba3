from __future__ import annotations

import base64
import http.client
import os
import ssl
import stat
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from layermanager.testing.nginx import Site, serve, served

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from layermanager.testing.tls import Authority

pytestmark = pytest.mark.usefixtures("needs_nginx")

SOON = 20.0  # seconds after which something that should happen at once counts as hanging
DATA = bytes(range(256)) * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with the file ``a``."""
    path = tmp_path / "root"
    path.mkdir()
    (path / "a").write_bytes(DATA)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory for nginx's own files."""
    path = tmp_path / "nginx"
    path.mkdir()
    return path


def ask(
    url: str,
    path: str = "/a",
    headers: Mapping[str, str] | None = None,
    trust: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SOON)
    if trust is not None:
        client = http.client.HTTPSConnection(urlsplit(url).netloc, timeout=SOON, context=trust)
    try:
        client.request("GET", path, headers=headers or {})
        response = client.getresponse()
        return response.status, response.read()
    finally:
        client.close()


def test_serves_files_and_their_parts(root: Path, own: Path) -> None:
    with serve(Site(root), own) as url:
        assert ask(url) == (200, DATA)
        assert ask(url, headers={"Range": "bytes=1000-"}) == (206, DATA[1000:])
        assert ask(url, "/b")[0] == 404


def test_tells_what_it_served_and_over_which_connections(root: Path, own: Path) -> None:
    with serve(Site(root), own) as url:
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SOON)
        for _ in range(2):
            client.request("GET", "/a")
            assert client.getresponse().read() == DATA
        client.close()
        ask(url, headers={"Range": "bytes=1000-"})
    first, second, third = served(own)
    assert (first.status, first.sent) == (second.status, second.sent) == (200, len(DATA))
    assert (third.status, third.sent) == (206, len(DATA) - 1000)
    assert first.connection == second.connection != third.connection


def test_ends_with_its_context(root: Path, own: Path) -> None:
    with serve(Site(root), own) as url:
        assert ask(url) == (200, DATA)
        pid = int((own / "nginx.pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        ask(url)


def test_several_run_at_once(root: Path, own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with serve(Site(root), own) as first, serve(Site(root), other) as second:
        assert ask(first) == ask(second) == (200, DATA)


def test_says_why_it_does_not_run(root: Path, own: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"nginx does not run: .*invalid value"),
        serve(Site(root, bytes_per_second=-1), own),
    ):
        pass


def test_speaks_tls(root: Path, own: Path, authority: Authority) -> None:
    trust = ssl.create_default_context(cafile=authority.bundle)
    with serve(Site(root, certificate=authority.server_certificate()), own) as url:
        assert url.startswith("https://127.0.0.1:")
        assert ask(url, trust=trust) == (200, DATA)
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(url, trust=ssl.create_default_context())


def test_asks_clients_for_certificates(root: Path, own: Path, authority: Authority) -> None:
    anonymous = ssl.create_default_context(cafile=authority.bundle)
    known = ssl.create_default_context(cafile=authority.bundle)
    certificate = authority.client_certificate()
    known.load_cert_chain(certificate.chain, certificate.key)
    site = Site(root, certificate=authority.server_certificate(), client_bundle=authority.bundle)
    with serve(site, own) as url:
        assert ask(url, trust=known) == (200, DATA)
        assert ask(url, trust=anonymous)[0] == 400


def test_asks_for_passwords(root: Path, own: Path) -> None:
    def basic(credentials: bytes) -> dict[str, str]:
        return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}

    with serve(Site(root, users={"user": "a b:c", "other": "secret"}), own) as url:
        assert ask(url)[0] == 401
        assert ask(url, headers=basic(b"user:secret"))[0] == 401
        assert ask(url, headers=basic(b"user:a b:c")) == (200, DATA)
        assert ask(url, headers=basic(b"other:secret")) == (200, DATA)
    assert stat.S_IMODE((own / "passwords").stat().st_mode) == 0o600


def test_can_be_without_ranges(root: Path, own: Path) -> None:
    with serve(Site(root, ranges=False), own) as url:
        assert ask(url, headers={"Range": "bytes=1000-"}) == (200, DATA)


def test_can_be_slow(root: Path, own: Path) -> None:
    with serve(Site(root, bytes_per_second=10_000), own) as url:
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SOON)
        client.request("GET", "/a")
        response = client.getresponse()
        assert len(response.read1(len(DATA))) < len(DATA) // 2
        client.close()
