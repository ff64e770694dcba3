"""A daemon whose desired state comes from elsewhere, and one whose desired state fails."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from daemon_fixtures import daemon

from layermanager.cli.run import run
from layermanager.client import ApiError
from layermanager.config import Network, Registry
from layermanager.daemon.config import DesiredStateConfig
from layermanager.desired import desired_to_json
from layermanager.oci.reference import parse_reference
from layermanager.testing import docker_registry
from layermanager.testing.layers import desired
from layermanager.testing.web import Answer, LayerServer
from layermanager.transfer.addresses import Backoff
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon_fixtures import Daemon

    from layermanager.client import Event
    from layermanager.model import DesiredLayer

AT_ONCE = Backoff(timedelta(seconds=0.01), timedelta(seconds=0.02))
SELDOM = timedelta(days=1)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desired.json"


def put(path: Path, *layers: DesiredLayer) -> None:
    """Replace the file as one should."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    new.replace(path)


def follow(path: Path, **settings: Any) -> DesiredStateConfig:
    return DesiredStateConfig(source=path, poll_period=SELDOM, backoff=AT_ONCE, **settings)


def events_of(served: Daemon, kind: str) -> Iterator[Event]:
    """The events of that *kind* from the beginning of the daemon's time on."""
    with closing(served.client.events(first_id(served))) as events:
        yield from (event for event in events if event.kind == kind)


def first_id(served: Daemon) -> str:
    """The id before the first event of this run."""
    with closing(served.client.events()) as events:
        run, _, _ = next(events).id.rpartition("-")
    return f"{run}-0"


def test_a_file_is_followed(node: Node, path: Path, tmp_path: Path) -> None:
    one, two = node.publish("one"), node.publish("two")
    put(path, one)
    with daemon(node.config, tmp_path, desired_state=follow(path)) as served:
        states = events_of(served, "desired-state")
        assert next(states).data["result"] == "changed"
        served.done(served.client.operation(served.client.desired_state().operation))
        node.assert_has([one])
        put(path, one, two)
        assert next(states).data["result"] == "changed"
        served.done(served.client.operation(served.client.desired_state().operation))
        node.assert_has([one, two])
        path.write_text("[{}]")
        refused = next(states)
        assert refused.data["result"] == "refused"
        assert "[0].digest" in refused.data["error"]["message"]  # type: ignore[index] # JSON
        assert served.client.desired_state().is_complete
        status = served.client.state_source()
        assert (status.source, status.is_refused) == (str(path), True)
        assert "[0].digest" in status.error
        page = served.ask("GET", "/").body.decode()
        assert f"desired state of {path} refused" in page
        assert "refused: " in page
        assert 'desired_state_polls_total{result="refused"} 1' in served.client.metrics()


def test_what_was_good_is_seen_to_without_its_source(
    node: Node, path: Path, tmp_path: Path
) -> None:
    one = node.publish("one")
    put(path, one)
    with daemon(node.config, tmp_path, desired_state=follow(path)) as served:
        next(events_of(served, "desired-state"))
    path.unlink()
    with daemon(node.config, tmp_path, desired_state=follow(path)) as served:
        served.done(served.client.operation(served.client.desired_state().operation))
        node.assert_has([one])
        states = events_of(served, "desired-state")
        failed = next(states)
        assert failed.data["result"] == "failed"
        assert "No such file" in served.client.state_source().error
        put(path)
        while next(states).data["result"] != "changed":
            pass


def test_nobody_else_says_what_is_desired_then(node: Node, path: Path, tmp_path: Path) -> None:
    put(path)
    with daemon(node.config, tmp_path, desired_state=follow(path)) as served:
        with pytest.raises(
            ApiError, match=r"comes from .*desired\.json: change it there"
        ) as caught:
            served.client.put_desired([node.publish("one")])
        assert caught.value.status == 409


def test_where_nothing_is_followed_there_is_no_source(node: Node, tmp_path: Path) -> None:
    with daemon(node.config, tmp_path) as served:
        for ask in (served.client.state_source, served.client.poll_state_source):
            with pytest.raises(ApiError, match=r"desiredState\.source") as caught:
                ask()
            assert caught.value.status == 404


def test_a_url_is_followed_and_polled_on_demand(node: Node, tmp_path: Path) -> None:
    one = node.publish("one")
    document = json.dumps([desired_to_json(one)]).encode()
    with LayerServer() as server:
        url = server.answer("/d", Answer(document, headers={"ETag": '"1"'}), Answer(status=304))
        config = DesiredStateConfig(source=url, poll_period=SELDOM)
        with daemon(node.config, tmp_path, desired_state=config) as served:
            states = events_of(served, "desired-state")
            assert next(states).data["result"] == "changed"
            server.answer("/d", Answer(b"[]", headers={"ETag": '"2"'}))
            assert served.client.poll_state_source().source == url
            assert next(states).data["result"] == "changed"
            served.done(served.client.operation(served.client.desired_state().operation))
            assert served.client.state_source().version == '"2"'
            assert [layer.cached for layer in served.client.layers()] in ([True], [])


def test_a_tag_is_followed_from_publishing_on(
    tmp_path: Path,
    path: Path,
    capfd: pytest.CaptureFixture[str],
    needs_docker_registry: None,  # noqa: ARG001
) -> None:
    (tmp_path / "registry").mkdir()
    with docker_registry.serve(tmp_path / "registry") as registry:
        registries = {registry: Registry(is_plain=True)}
        node = Node(tmp_path, network=Network(registries=registries))
        layer = node.publish("one")
        put(path, layer)
        name = f"{registry}/fleet/desired:stable"
        settings = tmp_path / "config.json"
        members = {registry: {"http": True}}
        settings.write_text(json.dumps({"layerManager": {"network": {"registries": members}}}))
        assert run(["--config", str(settings), "publish", str(path), name]) == 0
        digest = capfd.readouterr().out.strip().rpartition("@")[2]
        reference = parse_reference(name)
        config = DesiredStateConfig(source=reference, poll_period=SELDOM)  # type: ignore[arg-type] # of a registry
        with daemon(node.config, tmp_path, desired_state=config) as served:
            assert next(events_of(served, "desired-state")).data["result"] == "changed"
            served.done(served.client.operation(served.client.desired_state().operation))
            node.assert_has([layer])
            assert served.client.state_source().version == digest


class TestTryingAgain:
    def test_what_failed_is_tried_again_by_itself(self, node: Node, tmp_path: Path) -> None:
        blob = layer_tar("late")
        with LayerServer() as server:
            url = server.answer("/late", Answer(status=404), Answer(status=404), Answer(blob))
            layer = desired(blob, url)
            patient = DesiredStateConfig(backoff=AT_ONCE)
            with daemon(node.config, tmp_path, desired_state=patient) as served:
                operations = events_of(served, "operation")
                first = served.client.put_desired([layer])
                states = []
                for event in operations:
                    if event.data["kind"] == "apply" and event.data["state"] != "pending":
                        states.append((event.data["id"], event.data["state"]))
                    if states and states[-1][1] == "succeeded":
                        break
                assert (first.id, "failed") in states
                assert len({one for one, state in states if state == "failed"}) == 2
                assert served.client.desired_state().is_complete
                assert len(server.requests) == 3

    def test_a_new_one_takes_the_place_of_what_failed(self, node: Node, tmp_path: Path) -> None:
        lost, there = node.publish("lost"), node.publish("there")
        (node.published / "lost").unlink()
        patient = DesiredStateConfig(backoff=Backoff(timedelta(days=1), timedelta(days=1)))
        with daemon(node.config, tmp_path, desired_state=patient) as served:
            served.client.wait(served.client.put_desired([lost]).id)
            assert "nextTry" in served.ask("GET", "/v1/desired-state").document
            served.done(served.client.put_desired([there]))
            assert "nextTry" not in served.ask("GET", "/v1/desired-state").document
            node.assert_has([there])
