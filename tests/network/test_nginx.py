"""nginx as the peer: TLS, client certificates, passwords, and ranges as a real server has them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from layermanager.config import Network, TlsVersion
from layermanager.errors import CancelledError, LayersFailedError
from layermanager.testing.layers import build_package, compress, desired
from layermanager.testing.nginx import Site, serve, served
from manager_fixtures import IMPATIENT, MIB, Node, Progress, layer_tar, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import DesiredLayer, LayerProgress
    from layermanager.testing.tls import Authority

BLOB: Final = compress(layer_tar("one", 4 * MIB), "gzip")
PACKAGE: Final = build_package(BLOB)
SOON: Final = 60.0

pytestmark = pytest.mark.usefixtures("needs_nginx", "needs_openssl")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").write_bytes(PACKAGE)
    return root


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "nginx"
    prefix.mkdir()
    return prefix


def published(url: str) -> DesiredLayer:
    return desired(BLOB, f"{url}/one", package=PACKAGE, layer_id="one")


def install(base: Path, url: str, network: Network) -> list[str]:
    """Install the layer on a node of its own, and return what was installed."""
    base.mkdir()
    node = Node(base, network=network)
    with node.manager() as manager:
        result = manager.process_desired_layers([published(url)])
    node.assert_has([published(url)])
    return names_in(result.installed)


def refusal(base: Path, url: str, network: Network) -> str:
    """Why the layer could not be installed."""
    base.mkdir()
    node = Node(base, network=network)
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([published(url)])
    node.assert_has([])
    return str(caught.value.exceptions[0])


class TestWhoIsThere:
    def test_a_client_certificate_opens_the_door(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        site = Site(
            root, certificate=authority.server_certificate(), client_bundle=authority.bundle
        )
        mine = authority.client_certificate()
        nobody = replace(IMPATIENT, ca_bundle=authority.bundle)
        somebody = replace(nobody, client_certificate=mine.chain, client_key=mine.key)
        with serve(site, prefix) as url:
            assert "400" in refusal(tmp_path / "nobody", url, nobody)
            assert install(tmp_path / "somebody", url, somebody) == ["one"]

    def test_a_key_that_others_can_read_is_not_used(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        site = Site(
            root, certificate=authority.server_certificate(), client_bundle=authority.bundle
        )
        mine = authority.client_certificate()
        mine.key.chmod(0o644)
        network = replace(
            IMPATIENT,
            ca_bundle=authority.bundle,
            client_certificate=mine.chain,
            client_key=mine.key,
        )
        with serve(site, prefix) as url:
            assert f"{mine.key} holds a secret and has the mode 0644" in refusal(
                tmp_path / "node", url, network
            )

    def test_a_password_of_the_file_opens_the_door(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        site = Site(root, certificate=authority.server_certificate(), users={"user": "pass:word"})
        nobody = replace(IMPATIENT, ca_bundle=authority.bundle)
        credentials = tmp_path / "credentials.json"
        credentials.touch(mode=0o600)
        known = replace(nobody, credentials_file=credentials)
        with serve(site, prefix) as url:
            host = url.removeprefix("https://")
            credentials.write_text(json.dumps({host: {"username": "user", "password": "wrong"}}))
            for number, network in enumerate((nobody, known)):
                assert "401" in refusal(tmp_path / str(number), url, network)
            credentials.write_text(
                json.dumps({host: {"username": "user", "password": "pass:word"}})
            )
            assert install(tmp_path / "known", url, known) == ["one"]

    def test_so_does_one_of_netrc(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        site = Site(root, certificate=authority.server_certificate(), users={"user": "password"})
        netrc = tmp_path / "netrc"
        netrc.touch(mode=0o600)
        netrc.write_text("machine 127.0.0.1 login user password password\n")
        network = replace(IMPATIENT, ca_bundle=authority.bundle, netrc_file=netrc)
        with serve(site, prefix) as url:
            assert install(tmp_path / "node", url, network) == ["one"]

    def test_nobody_is_trusted_without_the_bundle(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        with serve(Site(root, certificate=authority.server_certificate()), prefix) as url:
            assert "certificate is not trusted" in refusal(tmp_path / "node", url, IMPATIENT)

    def test_the_newest_tls_is_spoken_where_it_is_asked_for(
        self, tmp_path: Path, root: Path, prefix: Path, authority: Authority
    ) -> None:
        network = replace(
            IMPATIENT, ca_bundle=authority.bundle, minimum_tls_version=TlsVersion.TLS_1_3
        )
        with serve(Site(root, certificate=authority.server_certificate()), prefix) as url:
            assert install(tmp_path / "node", url, network) == ["one"]


class TestGoingOn:
    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_cancelled_transfer_goes_on_the_next_time(
        self, tmp_path: Path, root: Path, prefix: Path, ranges: bool
    ) -> None:
        node = Node(tmp_path, network=replace(IMPATIENT, spool_bytes=1))
        half_way = threading.Event()
        slow = Site(root, bytes_per_second=2 * MIB, ranges=ranges)
        with serve(slow, prefix) as url:
            layer = published(url)
            self.interrupt(node, layer, half_way)
            transferred = self.spooled(node)
            assert MIB < transferred < len(PACKAGE)
        prefix.rename(tmp_path / "before")
        prefix.mkdir()
        with serve(Site(root, ranges=ranges), prefix) as url:
            progress = Progress()
            with node.manager(on_progress=progress) as manager:
                layer = replace(layer, url=f"{url}/one")
                assert names_in(manager.process_desired_layers([layer]).installed) == ["one"]
        node.assert_has([layer])
        assert self.spooled(node) == 0
        whole = len(PACKAGE)
        (answer,) = served(prefix)
        assert answer.status == (206 if ranges else 200)
        assert answer.sent == (whole - transferred if ranges else whole)

    @staticmethod
    def interrupt(node: Node, layer: DesiredLayer, half_way: threading.Event) -> None:
        def look(progress: LayerProgress) -> None:
            if progress.transferred > MIB:
                half_way.set()

        manager = node.manager(on_progress=look)

        def run() -> None:
            with pytest.raises(CancelledError):
                manager.process_desired_layers([layer])

        thread = threading.Thread(target=run)
        thread.start()
        assert half_way.wait(SOON)
        manager.close()
        thread.join(SOON)
        assert not thread.is_alive()

    @staticmethod
    def spooled(node: Node) -> int:
        return sum(path.stat().st_size for path in node.config.download_dir.glob("*.part"))
