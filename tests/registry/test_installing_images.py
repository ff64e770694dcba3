"""Whole installations from registries that misbehave."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from registry_places import (
    IMAGE,
    asked,
    bearer_challenge,
    image_of,
    name_of,
    plain,
    put,
    token,
    token_path,
)

from layermanager.cli.run import run
from layermanager.config import Network, Registry
from layermanager.errors import CancelledError, LayersFailedError, SourceError
from layermanager.inventory import Inventory
from layermanager.model import DesiredImage, Repair
from layermanager.testing.layers import digest_of
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import IMPATIENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BLOB = IMAGE.layers[0]
DIGEST = digest_of(BLOB)
PATH = f"/v2/app/blobs/{DIGEST}"
BROKEN = Answer(BLOB, headers={"ETag": '"a"'}, truncate_at=10)
REST = Answer(
    BLOB[10:],
    status=206,
    headers={"ETag": '"a"', "Content-Range": f"bytes 10-{len(BLOB) - 1}/{len(BLOB)}"},
)


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxies and no logins."""
    for scheme in ("http", "https", "no"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def other() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


def node(
    base: Path,
    registries: Mapping[str, Registry],
    *,
    retry_delay: timedelta = IMPATIENT.retry_delay,
    **settings: Any,
) -> Node:
    network = Network(
        registries=registries,
        attempts=IMPATIENT.attempts,
        retry_delay=retry_delay,
        longest_retry_delay=retry_delay,
    )
    return Node(base, network=network, **settings)


def install(one: Node, *references: str) -> list[str]:
    """The references of the images that are installed now."""
    with one.manager() as manager:
        result = manager.process_desired_layers([desired(one) for one in references])
    return [image.reference for image in result.images.installed]


def desired(reference: str) -> DesiredImage:
    """On whatever machine."""
    return DesiredImage(reference, "linux/amd64")


def ranges(server: LayerServer) -> list[str | None]:
    """Which bytes of the blob were asked for."""
    return [one.headers.get("range") for one in server.requests if one.target == PATH]


class TestLayers:
    def test_that_break_off_go_on_there(self, tmp_path: Path, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        server.answer(PATH, BROKEN, REST)
        assert install(node(tmp_path, plain(server)), reference) == [reference]
        assert ranges(server) == [None, "bytes=10-"]

    def test_go_on_from_the_registry_where_a_mirror_broke_off(
        self, tmp_path: Path, server: LayerServer, other: LayerServer
    ) -> None:
        reference = put(server, IMAGE)
        put(other, IMAGE)
        other.answer(PATH, BROKEN)
        server.answer(PATH, REST)
        registries = {name_of(server): Registry(mirrors=(other.url,), is_plain=True)}
        # A mirror whose delay is over is asked before the registry again. The registry, which did
        # not fail, is asked without any delay.
        patient = node(tmp_path, registries, retry_delay=timedelta(hours=1))
        assert install(patient, reference) == [reference]
        assert (ranges(other), ranges(server)) == ([None], ["bytes=10-"])

    def test_that_a_mirror_has_wrong_come_from_the_registry(
        self, tmp_path: Path, server: LayerServer, other: LayerServer
    ) -> None:
        reference = put(server, IMAGE)
        put(other, IMAGE)
        other.answer(PATH, Answer(BLOB[:-1] + b"x"))
        registries = {name_of(server): Registry(mirrors=(other.url,), is_plain=True)}
        assert install(node(tmp_path, registries), reference) == [reference]
        assert ranges(server) == [None]

    def test_go_on_when_a_token_expires(self, tmp_path: Path, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        challenge = bearer_challenge(server)
        server.answer(PATH, challenge, BROKEN, challenge, REST)
        server.answer(token_path(), token("first"), token("second"))
        assert install(node(tmp_path, plain(server)), reference) == [reference]
        sent = [one.headers.get("authorization") for one in server.requests if one.target == PATH]
        assert sent == [None, "Bearer first", "Bearer first", "Bearer second"]
        assert ranges(server) == [None, None, "bytes=10-", "bytes=10-"]

    def test_that_are_not_those_of_the_image_are_refused(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        reference = put(server, IMAGE)
        server.answer(PATH, Answer(BLOB[:-1] + b"x"))
        with pytest.raises(LayersFailedError, match="some desired layers"):
            install(node(tmp_path, plain(server)), reference)

    def test_are_repaired_from_where_they_came(self, tmp_path: Path, server: LayerServer) -> None:
        one = node(tmp_path, plain(server))
        install(one, put(server, IMAGE))
        inventory = Inventory(one.config)
        (layer,) = inventory.layers()
        (layer.path / "file").write_text("damaged")
        with one.manager() as manager:
            manager.repair_layers([Repair(layer, inventory.sources()[layer.digest])])
        assert (layer.path / "file").read_text() == "some text"


class TestSeveralImages:
    def test_are_looked_up_at_once(self, tmp_path: Path, server: LayerServer) -> None:
        stalls = [Stall(threading.Event(), after=0) for _ in range(3)]
        references = []
        for number, stall in enumerate(stalls):
            image = image_of(f"text {number}")
            references.append(put(server, image, repository=f"app-{number}"))
            answer = Answer(image.document, stall=stall)
            server.answer(f"/v2/app-{number}/manifests/1", answer)

        def go_on() -> None:
            for stall in stalls:  # none goes on before all were asked for
                stall.reached.wait()
            for stall in stalls:
                stall.until.set()

        thread = threading.Thread(target=go_on)
        thread.start()
        one = node(tmp_path, plain(server), parallel_installs=3)
        assert install(one, *references) == references
        thread.join()

    def test_are_given_up_when_the_manager_is_closed(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        stall = Stall(threading.Event(), after=0)
        reference = put(server, IMAGE)
        server.answer("/v2/app/manifests/1", Answer(IMAGE.document, stall=stall))
        manager = node(tmp_path, plain(server)).manager()
        with ThreadPoolExecutor(1) as thread:
            applying = thread.submit(manager.process_desired_layers, [desired(reference)])
            stall.reached.wait()
            manager.close()
            assert isinstance(applying.exception(), CancelledError)


class TestCommand:
    @pytest.fixture
    def options(self, server: LayerServer, tmp_path: Path) -> list[str]:
        network = {"registries": {name_of(server): {"http": True}}, "attempts": 1}
        path = tmp_path / "config.json"
        document = {"workingDir": str(tmp_path / "work"), "layerManager": {"network": network}}
        path.write_text(json.dumps(document))
        return ["--config", str(path)]

    def test_plans_without_fetching_layers(
        self, server: LayerServer, options: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        reference = put(server, IMAGE)
        arguments = [*options, "apply", "--dry-run", "--platform", "linux/amd64", reference]
        assert run(arguments) == 0
        name = name_of(server)
        assert capsys.readouterr().out.splitlines() == [
            f"install {DIGEST} from docker://{name}/app@{DIGEST}",
            f"install image {reference}, linux/amd64, {IMAGE.digest}",
        ]
        assert PATH not in asked(server)

    def test_keeps_what_is_there_when_the_registry_is_gone(
        self, server: LayerServer, options: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        reference = put(server, IMAGE)
        arguments = [*options, "apply", "--platform", "linux/amd64", reference]
        assert run(arguments) == 0
        server.answer("/v2/app/manifests/1", Answer(status=503))
        capsys.readouterr()
        assert run(arguments) == 1
        out, err = capsys.readouterr()
        assert f"kept    {reference}" in out
        assert "503 Service Unavailable" in err


def test_an_unknown_kind_of_source_names_those_that_are_known(tmp_path: Path) -> None:
    with Node(tmp_path).manager(sources={}) as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([DesiredImage("localhost:5000/app")])
    (error,) = caught.value.exceptions
    assert isinstance(error, SourceError)
    assert "there is no source for images of this kind" in str(error)
