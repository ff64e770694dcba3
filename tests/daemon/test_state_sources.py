"""The sources of a desired state, each at its real place."""

from __future__ import annotations

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.boundary import Boundary, Guard
from layermanager.cancellation import Cancellation
from layermanager.cli.run import run
from layermanager.clock import SystemClock
from layermanager.config import Network, Registry
from layermanager.daemon.config import DesiredStateConfig
from layermanager.daemon.state_sources import Fetched, StateSource, state_source
from layermanager.errors import (
    CancelledError,
    DesiredStateError,
    InvalidReferenceError,
    ManifestError,
    SourceError,
    SourceTimeoutError,
)
from layermanager.images import registry_client
from layermanager.images.publish import publish_state
from layermanager.living import LivingThreads
from layermanager.oci.artifact import STATE_TYPE, Document, config_document, write_artifact
from layermanager.oci.manifest import OCI_MANIFEST
from layermanager.oci.reference import RegistryReference, parse_reference, registry_reference
from layermanager.registry.upload import Blob, Repository
from layermanager.testing import docker_registry
from layermanager.testing.clock import FakeClock
from layermanager.testing.tls import Authority
from layermanager.testing.web import Answer, LayerServer, Stall
from surprises import SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.daemon.config import StatePlace

PATIENCE_SECONDS = 30
MOST_BYTES = 1000
STATE = b"[]"
SIGNED = ("verify", "{document}", "{signature}")


def source(place: StatePlace, *command: str, network: Network | None = None) -> StateSource:
    config = DesiredStateConfig(source=place, verify_command=command)
    found = state_source(config, network or Network(), SystemClock(), most_bytes=MOST_BYTES)
    assert found is not None
    return found


def fetch(one: StateSource, known: str = "") -> Fetched | None:
    return one.fetch(known, Cancellation())


def fetched(one: StateSource, known: str = "") -> Fetched:
    found = fetch(one, known)
    assert found is not None
    return found


def test_nothing_need_be_followed() -> None:
    assert state_source(DesiredStateConfig(), Network(), SystemClock(), most_bytes=1) is None


def new_threads() -> LivingThreads:
    return LivingThreads(Guard(), SystemClock())


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "desired.json"
        path.write_bytes(STATE)
        return path

    def test_what_is_in_it(self, path: Path) -> None:
        one = source(path)
        first = fetched(one)
        assert (one.name, one.is_local) == (str(path), True)
        assert (first.document, first.signature) == (STATE, None)
        assert fetch(one, first.version) is None

    def test_another_file_of_the_same_size_and_time(self, path: Path) -> None:
        one = source(path)
        first = fetched(one)
        other = path.with_suffix(".new")
        other.write_bytes(b"{}")
        status = path.stat()
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        assert fetched(one, first.version).document == b"{}"

    def test_its_signature_is_beside_it(self, path: Path) -> None:
        one = source(path, *SIGNED)
        with pytest.raises(SourceError, match=r"desired\.json\.sig"):
            fetch(one)
        path.with_name("desired.json.sig").write_bytes(b"by me")
        first = fetched(one)
        assert first.signature == b"by me"
        path.with_name("desired.json.sig").write_bytes(b"by her")
        assert fetched(one, first.version).signature == b"by her"

    def test_what_cannot_be_read_is_named(self, path: Path) -> None:
        path.unlink()
        with pytest.raises(SourceError, match=r"No such file.*desired\.json") as raised:
            fetch(source(path))
        assert raised.value.is_transient

    def test_it_is_not_too_large(self, path: Path) -> None:
        path.write_bytes(b" " * (MOST_BYTES + 1))
        with pytest.raises(SourceError, match="larger than 1000 bytes"):
            fetch(source(path))

    def test_its_changes_are_told(self, path: Path) -> None:
        changed = threading.Semaphore(0)

        def is_told() -> bool:
            return changed.acquire(timeout=PATIENCE_SECONDS)

        with source(path).watching(changed.release, new_threads()):
            path.write_bytes(b"{}")
            assert is_told()
            new = path.parent.parent / f"{path.parent.name}-new"
            new.write_bytes(b"[]")
            while changed.acquire(blocking=False):
                pass
            new.replace(path)
            assert is_told()

    def test_a_directory_that_is_not_there_is_said_to_be_polled(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "nothing" / "desired.json"
        with source(path).watching(lambda: None, new_threads()):
            pass
        assert "only polled: No such file or directory" in caplog.text

    @pytest.mark.parametrize("surprise", SURPRISES)
    def test_whatever_its_listener_raises_it_is_told_of_the_next_change(
        self, path: Path, surprise: str
    ) -> None:
        changed = threading.Semaphore(0)
        clock = FakeClock()
        counted: list[Boundary] = []
        threads = LivingThreads(Guard(counted.append), clock)

        def tell() -> None:
            changed.release()
            if not counted:
                raise made(surprise)

        with source(path).watching(tell, threads):
            path.write_bytes(b"{}")
            assert changed.acquire(timeout=PATIENCE_SECONDS)
            clock.wait_for_waiters(1)
            assert threads.troubles() == ("state-watch fails, and is started again",)
            clock.advance(timedelta(seconds=1))
            path.write_bytes(b"[]")
            assert changed.acquire(timeout=PATIENCE_SECONDS)
            assert counted == [Boundary.THREAD]
        assert threads.troubles() == ()


class TestWeb:
    @pytest.fixture
    def server(self) -> Iterator[LayerServer]:
        with LayerServer() as server:
            yield server

    def test_it_is_asked_by_its_etag(self, server: LayerServer) -> None:
        answers = (Answer(STATE, headers={"ETag": '"1"'}), Answer(status=304))
        with closing(source(server.answer("/d", *answers))) as one:
            first = fetched(one)
            assert (first.document, first.version) == (STATE, '"1"')
            assert fetch(one, first.version) is None
            assert not one.is_local
        asked = [request.headers.get("if-none-match") for request in server.requests]
        assert asked == [None, '"1"']
        assert server.connections == 1

    def test_or_by_the_time_of_its_change(self, server: LayerServer) -> None:
        time = "Thu, 01 Jan 2026 00:00:00 GMT"
        answers = (Answer(STATE, headers={"Last-Modified": time}), Answer(status=304))
        with closing(source(server.answer("/d", *answers))) as one:
            assert fetch(one, fetched(one).version) is None
        assert server.requests[1].headers["if-modified-since"] == time

    @pytest.mark.parametrize(
        "headers",
        [
            {"ETag": '"' + "x" * 30_000 + '"'},
            {"ETag": '"1", *'},
            {"ETag": "*"},
            {"Last-Modified": "Fri, 31 Dec 9999 23:59:59 GMT"},
            {"Last-Modified": "just now"},
            {
                "Last-Modified": "Thu, 01 Jan 2026 00:00:01 GMT",
                "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
        ],
        ids=str,
    )
    def test_what_no_honest_server_understands_is_not_sent_back(
        self, server: LayerServer, headers: dict[str, str]
    ) -> None:
        answers = (Answer(b"<html>", headers=headers), Answer(STATE))
        with closing(source(server.answer("/d", *answers))) as one:
            assert fetched(one, fetched(one).version).document == STATE
        assert not {"if-none-match", "if-modified-since"} & set(server.requests[1].headers)

    def test_what_was_refused_is_known_by_its_content(self, server: LayerServer) -> None:
        headers = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        answers = (Answer(b"<html>", headers=headers),) * 2
        with closing(source(server.answer("/d", *answers))) as one:
            refused = fetched(one).refused_version
            assert refused
            assert fetch(one, refused) is None
        assert not {"if-none-match", "if-modified-since"} & set(server.requests[1].headers)

    def test_or_looked_at(self, server: LayerServer) -> None:
        answers = (Answer(STATE), Answer(STATE), Answer(b"{}"))
        with closing(source(server.answer("/d", *answers))) as one:
            first = fetched(one)
            assert fetch(one, first.version) is None
            assert fetched(one, first.version).document == b"{}"
        assert not {"if-none-match", "if-modified-since"} & set(server.requests[1].headers)

    def test_its_signature_is_beside_it(self, server: LayerServer) -> None:
        url = server.answer("/d?token=secret", Answer(STATE))
        server.answer("/d.sig?token=secret", Answer(b"by me"))
        with closing(source(url, *SIGNED)) as one:
            assert fetched(one).signature == b"by me"
            assert "secret" not in one.name

    @pytest.mark.parametrize("framing_length", [MOST_BYTES + 1, 10**6])
    def test_it_is_not_too_large(self, server: LayerServer, framing_length: int) -> None:
        url = server.answer("/d", Answer(b" " * framing_length))
        with closing(source(url)) as one, pytest.raises(SourceError, match="larger than 1000"):
            fetch(one)

    def test_a_refusal_says_when_to_come_again(self, server: LayerServer) -> None:
        url = server.answer("/d", Answer(status=503, headers={"Retry-After": "7"}))
        with closing(source(url)) as one, pytest.raises(SourceError, match="503") as raised:
            fetch(one)
        assert raised.value.retry_after is not None
        assert raised.value.retry_after.total_seconds() == 7

    def test_tls_and_who_is_trusted(self, tmp_path: Path, needs_openssl: None) -> None:  # noqa: ARG002
        authority = Authority.create(tmp_path)
        with LayerServer(authority.server_context()) as server:
            url = server.answer("/d", Answer(STATE))
            trusting = source(url, network=Network(ca_bundle=authority.bundle))
            with closing(trusting):
                assert fetched(trusting).document == STATE
            with closing(source(url)) as other, pytest.raises(SourceError, match="certificate"):
                fetch(other)

    def test_it_ends_at_once(self, server: LayerServer) -> None:
        cancellation = Cancellation()
        cancellation.cancel()
        one = source(server.answer("/d", Answer(STATE)))
        with closing(one), pytest.raises(CancelledError):
            one.fetch("", cancellation)


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory,
    needs_docker_registry: None,  # noqa: ARG001
) -> Iterator[str]:
    with docker_registry.serve(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


class TestArtifact:
    @pytest.fixture
    def network(self, registry: str) -> Network:
        return Network(registries={registry: Registry(is_plain=True)})

    def source(self, name: str, network: Network, *command: str) -> StateSource:
        reference = parse_reference(name)
        assert isinstance(reference, RegistryReference)
        return source(reference, *command, network=network)

    def test_what_its_tag_names(self, registry: str, network: Network) -> None:
        name = f"{registry}/fleet/desired:stable"
        digest = publish_state(STATE, name, network, name="d", signature=b"by me")
        with closing(self.source(name, network, *SIGNED)) as one:
            assert (one.name, one.is_local) == (name, False)
            assert fetched(one) == Fetched(digest, STATE, b"by me")
            assert fetch(one, digest) is None
            again = publish_state(b'{"layers": []}', name, network, name="d")
            with pytest.raises(ManifestError, match=r"no layers of the type .*signature"):
                fetch(one, digest)
        with closing(self.source(name, network)) as one:
            assert fetched(one, digest) == Fetched(again, b'{"layers": []}')
        # The same gives the same.
        assert publish_state(STATE, name, network, name="d", signature=b"by me") == digest

    def test_a_tag_that_is_not_there(self, registry: str, network: Network) -> None:
        one = self.source(f"{registry}/fleet/nothing:stable", network)
        with closing(one), pytest.raises(SourceError, match="404"):
            fetch(one)

    def test_an_image_is_no_desired_state(self, registry: str, network: Network) -> None:
        name = f"{registry}/fleet/other:stable"
        publish(name, network, [Document.of("text/plain", b"words")])
        one = self.source(name, network)
        with closing(one), pytest.raises(ManifestError, match=r"other:stable: no layers of the"):
            fetch(one)

    def test_two_are_none(self, registry: str, network: Network) -> None:
        name = f"{registry}/fleet/two:stable"
        publish(name, network, [Document.of(STATE_TYPE, b"[]"), Document.of(STATE_TYPE, b"[ ]")])
        one = self.source(name, network)
        with closing(one), pytest.raises(ManifestError, match="2 layers of the type"):
            fetch(one)

    def test_it_is_not_too_large(self, registry: str, network: Network) -> None:
        name = f"{registry}/fleet/large:stable"
        publish_state(b"[" + b" " * MOST_BYTES + b"]", name, network, name="d")
        one = self.source(name, network)
        with closing(one), pytest.raises(SourceError, match="larger than 1000 bytes"):
            fetch(one)

    def test_a_mirror_is_asked_first_and_the_registry_at_last(
        self, registry: str, network: Network
    ) -> None:
        name = f"{registry}/fleet/mirrored:stable"
        publish_state(STATE, name, network, name="d")
        with LayerServer() as server:
            mirrors = (server.url,)
            network = Network(registries={registry: Registry(mirrors=mirrors, is_plain=True)})
            with closing(self.source(name, network)) as one:
                assert fetched(one).document == STATE
            asked = [request.method for request in server.requests]
            assert asked == ["HEAD", "GET", "GET"]

    def test_a_poll_is_one_head(self, registry: str, network: Network) -> None:
        name = f"{registry}/fleet/counted:stable"
        digest = publish_state(STATE, name, network, name="d")
        with LayerServer() as server:
            server.answer(
                "/v2/fleet/counted/manifests/stable",
                Answer(headers={"Docker-Content-Digest": digest}),
                method="HEAD",
            )
            plain = Network(registries={f"127.0.0.1:{server.port}": Registry(is_plain=True)})
            counted = f"127.0.0.1:{server.port}/fleet/counted:stable"
            with closing(self.source(counted, plain)) as one:
                assert fetch(one, digest) is None
                assert fetch(one, digest) is None
            assert [request.method for request in server.requests] == ["HEAD", "HEAD"]
            assert server.connections == 1

    def test_what_is_no_desired_state_is_not_published(
        self, registry: str, network: Network
    ) -> None:
        with pytest.raises(DesiredStateError, match="d: "):
            publish_state(b"{", f"{registry}/fleet/broken:stable", network, name="d")
        with pytest.raises(InvalidReferenceError, match="a tag, not a digest"):
            publish_state(STATE, f"{registry}/a@sha256:{'0' * 64}", network, name="d")


class TestPublish:
    """The command."""

    @pytest.fixture
    def config(self, registry: str, tmp_path: Path) -> str:
        path = tmp_path / "config.json"
        registries = {registry: {"http": True}}
        path.write_text(json.dumps({"layerManager": {"network": {"registries": registries}}}))
        return str(path)

    def test_it_prints_what_it_has_published(
        self, registry: str, config: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        files = [tmp_path / name for name in ("d", "d.sig")]
        for file, content in zip(files, (STATE, b"by me"), strict=True):
            file.write_bytes(content)
        name = f"{registry}/fleet/published:1"
        desired, signature = map(str, files)
        words = ["--config", config, "--json", "publish", desired, name, "--signature", signature]
        assert run(words) == 0
        published = json.loads(capfd.readouterr().out)["ref"]
        assert published.startswith(f"{registry}/fleet/published@sha256:")
        network = Network(registries={registry: Registry(is_plain=True)})
        reference = parse_reference(name)
        assert isinstance(reference, RegistryReference)
        with closing(source(reference, *SIGNED, network=network)) as one:
            found = fetched(one)
        assert published.endswith(found.version)
        assert (found.document, found.signature) == (STATE, b"by me")

    def test_what_is_no_desired_state_is_named(
        self, registry: str, config: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "d").write_text("[{}]")
        name = f"{registry}/fleet/broken:1"
        assert run(["--config", config, "publish", str(tmp_path / "d"), name]) == 2
        assert f"{tmp_path / 'd'}: [0].digest: is missing" in capfd.readouterr().err


def publish(name: str, network: Network, documents: list[Document]) -> None:
    """Put an artifact of any *documents* into a registry."""
    reference = registry_reference(parse_reference(name))
    with closing(registry_client(network, SystemClock())) as client:
        repository = Repository(client, reference, Cancellation())
        for blob in (config_document(), *documents):
            stream = io.BytesIO(blob.content)
            repository.put_blob(Blob(stream, blob.descriptor, lambda _: None))
        manifest = write_artifact(STATE_TYPE, documents)
        repository.put_manifest(manifest, OCI_MANIFEST, reference.tag)


# --- what holds for all that is asked by the network --------------------------------------------


@pytest.mark.parametrize("told", ["", '"{0}"', "{0}, {0}", "{0}, sha256:" + "0" * 64, None])
def test_a_registry_may_tell_the_digest_oddly_or_not_at_all(told: str | None) -> None:
    document = Document.of(STATE_TYPE, STATE)
    manifest = Document.of(OCI_MANIFEST, write_artifact(STATE_TYPE, [document]))
    digest = manifest.descriptor.digest
    with LayerServer() as server:
        name = f"127.0.0.1:{server.port}"
        base = "/v2/fleet/desired"
        headers = {} if told is None else {"Docker-Content-Digest": told.format(digest)}
        server.answer(f"{base}/manifests/stable", Answer(headers=headers), method="HEAD")
        server.add(f"{base}/manifests/stable", manifest.content)
        server.add(f"{base}/manifests/{digest}", manifest.content)
        server.add(f"{base}/blobs/{document.descriptor.digest}", STATE)
        plain = Network(registries={name: Registry(is_plain=True)})
        reference = registry_reference(parse_reference(f"{name}/fleet/desired:stable"))
        with closing(source(reference, network=plain)) as one:
            assert fetched(one) == Fetched(digest, STATE)
            assert fetch(one, digest) is None


@pytest.mark.parametrize("kind", ["web", "registry"])
def test_a_source_that_drips_has_an_end(kind: str) -> None:
    stall = Stall(threading.Event(), after=None)
    with LayerServer() as server:
        name = f"127.0.0.1:{server.port}"
        network = Network(
            read_timeout=timedelta(hours=1), registries={name: Registry(is_plain=True)}
        )
        place: StatePlace = server.answer("/d", Answer(STATE, stall=stall))
        if kind == "registry":
            server.answer("/v2/a/manifests/b", Answer(stall=stall), method="HEAD")
            place = registry_reference(parse_reference(f"{name}/a:b"))
        clock = FakeClock()
        config = DesiredStateConfig(source=place)
        one = state_source(config, network, clock, most_bytes=MOST_BYTES)
        assert one is not None
        with closing(one), ThreadPoolExecutor(1) as thread:
            fetching = thread.submit(fetch, one)
            stall.reached.wait()
            clock.wait_for_waiters(1)
            clock.advance(timedelta(seconds=60))
            error = fetching.exception()
    assert isinstance(error, SourceTimeoutError)
    assert "not there within documentTimeoutSeconds" in str(error)
