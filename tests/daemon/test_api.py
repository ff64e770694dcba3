"""The API from the outside: a real daemon on a socket, asked by its client and by hand."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import Daemon, daemon

from layermanager.client import ApiError, OperationFailedError
from layermanager.clock import SystemClock
from layermanager.desired import desired_to_json
from layermanager.inventory import Inventory
from layermanager.lock import StoreLock
from layermanager.plan import Renaming
from layermanager.store import index_path
from layermanager.testing.layers import LayerBuilder, desired
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import MIB, Node, layer_tar, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.model import DesiredLayer, Digest

MISSING = "sha256:" + "0" * 64


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def served(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(node.config, tmp_path) as served:
        yield served


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


def stalled(server: LayerServer, name: str) -> tuple[DesiredLayer, Stall]:
    """A layer whose transfer stops in the middle."""
    blob = layer_tar(name, MIB)
    stall = Stall(threading.Event(), after=MIB // 2)
    return desired(blob, server.answer(f"/{name}", Answer(blob, stall=stall)), layer_id=name), stall


class TestDesiredState:
    def test_it_becomes_what_is_there(self, node: Node, served: Daemon) -> None:
        layers = [node.publish(name) for name in ("one", "two")]
        operation = served.done(served.client.put_desired(layers))
        assert operation.kind == "apply"
        assert operation.result is not None
        assert [one["layerId"] for one in operation.result["installed"]] == ["one", "two"]  # type: ignore[attr-defined] # JSON
        status = served.client.desired_state()
        assert status.is_complete
        assert [(one.layer_id, one.state) for one in status.layers] == [
            ("one", "installed"),
            ("two", "installed"),
        ]
        node.assert_has(layers)
        assert names_in(served.client.layers()) == names_in(Inventory(node.config).layers())

    def test_what_fails_is_told_layer_by_layer(self, node: Node, served: Daemon) -> None:
        good, bad = node.publish("good"), node.publish("bad")
        (node.published / "bad").unlink()
        operation = served.client.wait(served.client.put_desired([good, bad]).id)
        assert operation.state == "failed"
        with pytest.raises(OperationFailedError):
            operation.raise_if_failed()
        assert operation.result is not None
        failed = operation.result["failed"]
        assert [one["digest"] for one in failed] == [bad.digest]  # type: ignore[attr-defined] # JSON
        status = served.client.desired_state()
        assert not status.is_complete
        assert [one.state for one in status.layers] == ["installed", "failed"]
        assert "bad" in status.layers[1].error

    def test_it_is_seen_to_after_a_restart(self, node: Node, tmp_path: Path) -> None:
        layer = node.publish("one")
        data = (node.published / "one").read_bytes()
        (node.published / "one").unlink()
        with daemon(node.config, tmp_path) as first:
            assert first.client.wait(first.client.put_desired([layer]).id).state == "failed"
        (node.published / "one").write_bytes(data)
        with daemon(node.config, tmp_path) as second:
            second.done(second.client.operation(second.client.desired_state().operation))
            node.assert_has([layer])

    def test_one_that_was_spoilt_on_disk_keeps_no_daemon_from_starting(
        self, node: Node, tmp_path: Path
    ) -> None:
        node.config.working_dir.mkdir()
        (node.config.working_dir / "desired.json").write_text("no list")
        with daemon(node.config, tmp_path) as served:
            with pytest.raises(ApiError) as caught:
                served.client.desired_state()
            assert caught.value.status == 404
            served.done(served.client.put_desired([node.publish("one")]))

    def test_its_secrets_are_for_its_owner_only_and_not_shown(
        self, node: Node, served: Daemon
    ) -> None:
        layer = desired(b"one", "https://user:password@127.0.0.1:1/one?signature=5ec2e7")
        served.client.wait(served.client.put_desired([layer]).id)
        file = node.config.working_dir / "desired.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"password" in file.read_bytes()
        for target in ("/v1/desired-state", "/v1/operations", "/"):
            body = served.ask("GET", target).body
            assert b"password" not in body
            assert b"5ec2e7" not in body

    def test_a_new_one_ends_the_work_for_the_old_one(
        self, node: Node, served: Daemon, server: LayerServer
    ) -> None:
        hanging, stall = stalled(server, "hanging")
        layer = node.publish("one")
        with closing(served.client.events()) as events:
            assert next(events).kind == "open"
            first = served.client.put_desired([hanging])
            while next(events).data.get("phase") != "installing":
                pass
        assert [one.state for one in served.client.desired_state().layers] == ["installing"]
        served.done(served.client.put_desired([layer]))
        assert served.client.operation(first.id).state == "cancelled"
        stall.until.set()
        node.assert_has([layer])

    def test_the_same_once_more_is_the_same_operation(
        self, served: Daemon, server: LayerServer
    ) -> None:
        hanging, stall = stalled(server, "hanging")
        first = served.client.put_desired([hanging])
        assert served.client.put_desired([hanging]).id == first.id
        stall.until.set()
        served.done(first)
        assert served.client.put_desired([hanging]).id != first.id

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ([{"url": "file:///a"}], "#/0/digest"),
            ([{"digest": MISSING, "url": ""}], "#/0/url"),
            ([{"digest": "sha256:abc", "url": "file:///a"}], "#/0/digest"),
            ([{"digest": MISSING, "url": "file:///a", "size": -1}], "#/0/size"),
            ([{"digest": MISSING, "url": "file:///a", "mirrors": ["a", 1]}], "#/0/mirrors/1"),
            ([{"digest": MISSING, "url": "file:///a", "sha256": "abc"}], "#/0/sha256"),
            ({"a": 1}, "#/a"),
            ("a", "#"),
        ],
    )
    def test_what_is_wrong_in_it_is_named_by_its_place(
        self, served: Daemon, body: object, pointer: str
    ) -> None:
        for method, target in (("PUT", "/v1/desired-state"), ("POST", "/v1/plan")):
            answer = served.ask(method, target, body)
            assert answer.status == 422
            assert answer.headers["content-type"] == "application/problem+json"
            assert [one["pointer"] for one in answer.document["errors"]] == [pointer]
        assert served.ask("GET", "/v1/desired-state").status == 404

    def test_one_that_contradicts_itself_is_refused_and_the_last_one_stays(
        self, node: Node, served: Daemon
    ) -> None:
        layer = node.publish("one")
        served.done(served.client.put_desired([layer]))
        twice = [desired_to_json(layer), {**desired_to_json(layer), "version": "other"}]
        answer = served.ask("PUT", "/v1/desired-state", twice)
        assert answer.status == 422
        assert answer.document["error"] == "DesiredStateError"
        assert answer.document["type"] == "urn:layermanager:DesiredStateError"
        assert served.client.desired_state().is_complete

    def test_what_aos_has_besides_is_ignored(self, node: Node, served: Daemon) -> None:
        document = {**desired_to_json(node.publish("one")), "decryptionInfo": {}, "size": None}
        assert served.ask("PUT", "/v1/desired-state", [document]).status == 202

    def test_a_plan_does_nothing(self, node: Node, served: Daemon) -> None:
        kept, cached, new = (node.publish(name) for name in ("kept", "cached", "new"))
        served.done(served.client.put_desired([kept, cached]))
        plan = served.client.plan([kept, new])
        assert plan.keep == (kept.digest,)
        assert plan.restore == ()
        assert plan.cache == (cached.digest,)
        assert plan.install == (new.digest,)
        node.assert_has([kept, cached])

    def test_a_new_version_of_what_is_there_is_planned_and_taken_over(
        self, node: Node, served: Daemon
    ) -> None:
        layer = node.publish("one")
        served.done(served.client.put_desired([layer]))
        newer = replace(layer, layer_id="other", version="2")
        plan = served.client.plan([newer])
        assert (plan.keep, plan.install) == ((layer.digest,), ())
        assert plan.rename == (Renaming(layer.digest, "other", "2"),)
        served.done(served.client.put_desired([newer]))
        found = served.client.layer(layer.digest)
        assert (found.layer_id, found.version) == ("other", "2")
        assert served.client.plan([newer]).rename == ()


class TestLayers:
    def test_one_and_its_files(self, node: Node, served: Daemon) -> None:
        layer = node.publish("one", 5000)
        served.done(served.client.put_desired([layer]))
        assert served.client.layer(layer.digest) == Inventory(node.config).layer(layer.digest)
        files = {one["path"]: one for one in served.client.files(layer.digest)}
        assert files["data"]["size"] == 5000
        assert files["etc/link"]["link"] == "name"

    def test_an_index_of_many_files_comes_in_pieces(self, node: Node, served: Daemon) -> None:
        for count in (0, 1, 199, 200, 401):
            builder = LayerBuilder()
            for number in range(count):
                builder.file(f"f{number:04}", b"")
            layer = node.publish_bytes(f"of-{count}", builder.tar())
            served.done(served.client.put_desired([layer]))
            paths = [one["path"] for one in served.client.files(layer.digest)]
            assert sorted(str(path) for path in paths if path != ".") == [
                f"f{number:04}" for number in range(count)
            ]

    def test_those_in_a_state(self, node: Node, served: Daemon) -> None:
        one, two = node.publish("one"), node.publish("two")
        served.done(served.client.put_desired([one, two]))
        served.done(served.client.put_desired([one]))
        for state, names in (("desired", ["one"]), ("cached", ["two"])):
            found = served.ask("GET", f"/v1/layers?state={state}").document
            assert [layer["layerId"] for layer in found] == names
        assert len(served.ask("GET", "/v1/layers").document) == 2

    @pytest.mark.parametrize("suffix", ["", "/files"])
    def test_one_that_is_not_there(self, served: Daemon, suffix: str) -> None:
        answer = served.ask("GET", f"/v1/layers/{MISSING}{suffix}")
        assert answer.status == 404
        assert answer.document["error"] == "LayerNotExistError"
        assert answer.document["digest"] == MISSING
        assert answer.document["hint"]

    def test_what_is_no_digest(self, served: Daemon) -> None:
        answer = served.ask("GET", "/v1/layers/latest")
        assert answer.status == 422
        assert answer.document["errors"][0]["pointer"] == "digest"

    def test_the_space(self, node: Node, served: Daemon) -> None:
        served.done(served.client.put_desired([node.publish("one", MIB)]))
        usage = served.client.usage()
        assert usage.path == node.config.layers_dir
        assert usage.desired >= MIB
        assert usage.reclaimable == 0

    def test_what_another_process_changes_is_seen(self, node: Node, served: Daemon) -> None:
        one = node.publish("one")
        served.done(served.client.put_desired([one]))
        assert names_in(served.client.layers()) == ["one"]
        with node.manager() as manager:
            manager.process_desired_layers([])
        assert [layer.cached for layer in served.client.layers()] == [True]


class TestOperations:
    def test_garbage_is_collected(self, node: Node, served: Daemon) -> None:
        one, two = node.publish("one", MIB), node.publish("two")
        served.done(served.client.put_desired([one, two]))
        served.done(served.client.put_desired([two]))
        nothing = served.done(served.client.collect_garbage())
        assert nothing.result == {"removed": [], "freed": 0, "held": []}
        collected = served.done(served.client.collect_garbage(free=1))
        assert collected.result is not None
        assert [layer["layerId"] for layer in collected.result["removed"]] == ["one"]  # type: ignore[attr-defined] # JSON
        node.assert_has([two])

    def test_garbage_of_a_day_is_collected(self, node: Node, served: Daemon) -> None:
        one = node.publish("one")
        served.done(served.client.put_desired([one]))
        served.done(served.client.put_desired([]))
        served.done(served.client.collect_garbage(ttl_days=1))
        node.assert_has([one])
        served.done(served.client.collect_garbage(ttl_days=0))
        node.assert_has([])

    def test_damage_is_found_and_repaired(self, node: Node, served: Daemon) -> None:
        layer, other = node.publish("one"), node.publish("other")
        served.done(served.client.put_desired([layer, other]))
        file = served.client.layer(layer.digest).path / "etc/name"
        file.write_text("two")
        found = served.done(served.client.check())
        assert _statuses(found.result) == {layer.digest: "damaged", other.digest: "intact"}
        assert _statuses(served.done(served.client.check([other.digest])).result) == {
            other.digest: "intact"
        }
        repaired = served.done(served.client.check(repair=True))
        assert _statuses(repaired.result)[layer.digest] == "repaired"
        assert (served.client.layer(layer.digest).path / "etc/name").read_text() == "one"
        assert "layermanager_check_failures_total 2\n" in served.client.metrics()

    def test_what_cannot_be_repaired_is_told(self, node: Node, served: Daemon) -> None:
        layer = node.publish("one")
        served.done(served.client.put_desired([layer]))
        (served.client.layer(layer.digest).path / "etc/name").unlink()
        (node.published / "one").unlink()
        result = served.done(served.client.check(repair=True)).result
        assert result is not None
        assert [one["error"]["type"] for one in result["failed"]] == ["SourceError"]  # type: ignore[attr-defined] # JSON

    def test_a_check_of_what_is_not_there_is_refused(self, served: Daemon) -> None:
        with pytest.raises(ApiError) as caught:
            served.client.check([MISSING])
        assert (caught.value.status, caught.value.error) == (404, "LayerNotExistError")

    def test_layers_of_another_program_are_taken_for_what_they_are(
        self, node: Node, served: Daemon
    ) -> None:
        strange, other = node.publish("one"), node.publish("other")
        served.done(served.client.put_desired([strange, other]))
        index_path(node.config.index_dir, strange.digest).unlink()
        etc = served.client.layer(strange.digest).path / "etc"
        (etc / ".wh.gone").touch()
        os.mknod(etc / "gone", stat.S_IFCHR)
        assert _statuses(served.done(served.client.check()).result) == {
            strange.digest: "unverified",
            other.digest: "intact",
        }
        result = served.done(served.client.adopt_layers(clean_markers=True)).result
        assert result is not None
        adopted = result["adopted"]
        assert isinstance(adopted, list)
        assert [(one["digest"], one["markers"]) for one in adopted] == [(strange.digest, 1)]
        assert not (etc / ".wh.gone").exists()
        assert stat.S_ISCHR((etc / "gone").stat().st_mode)
        assert set(_statuses(served.done(served.client.check()).result).values()) == {"intact"}
        assert served.done(served.client.adopt_layers([strange.digest])).result == {"adopted": []}

    def test_one_that_is_not_there_cannot_be_adopted(self, served: Daemon) -> None:
        with pytest.raises(ApiError) as caught:
            served.client.adopt_layers([MISSING])
        assert (caught.value.status, caught.value.error) == (404, "LayerNotExistError")

    def test_one_is_cancelled_and_leaves_nothing(
        self, node: Node, served: Daemon, server: LayerServer
    ) -> None:
        hanging, stall = stalled(server, "hanging")
        operation = served.client.put_desired([hanging])
        waiting = served.client.collect_garbage()
        assert stall.reached.wait(30)
        assert served.client.cancel(waiting.id).state == "cancelled"
        served.client.cancel(operation.id)
        assert served.client.wait(operation.id).state == "cancelled"
        assert served.client.cancel(operation.id).state == "cancelled"
        stall.until.set()
        node.assert_has([])

    def test_a_check_does_not_wait_for_an_installation_nor_do_reads(
        self, node: Node, served: Daemon, server: LayerServer
    ) -> None:
        served.done(served.client.put_desired([node.publish("one")]))
        hanging, stall = stalled(server, "hanging")
        operation = served.client.put_desired([hanging])
        assert stall.reached.wait(30)
        served.done(served.client.check())
        for target in ("/", "/v1/df", "/v1/metrics", "/v1/desired-state", "/v1/openapi.json"):
            assert served.ask("GET", target).status == 200
        assert served.client.operation(operation.id).state == "running"
        stall.until.set()

    def test_it_waits_for_another_process(self, node: Node, served: Daemon) -> None:
        served.done(served.client.put_desired([]))
        another_process = StoreLock(node.config.working_dir, SystemClock())
        with closing(served.client.events()) as events:
            assert next(events).kind == "open"
            with another_process.held(timedelta(0), threading.Event()):
                operation = served.client.collect_garbage()
                for event in events:
                    if "waitsFor" in event.data:
                        break
                assert "is being changed by" in str(event.data["waitsFor"])
            served.done(operation)

    def test_too_many_are_refused(self, served: Daemon, server: LayerServer) -> None:
        hanging, stall = stalled(server, "hanging")
        served.client.put_desired([hanging])
        assert stall.reached.wait(30)
        for _ in range(16):
            served.client.collect_garbage()
        answer = served.ask("POST", "/v1/gc", {})
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        stall.until.set()

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_one_that_is_not_known(self, served: Daemon, method: str) -> None:
        answer = served.ask(method, "/v1/operations/nothing")
        assert answer.status == 404
        assert "nothing" in answer.document["detail"]

    def test_they_are_listed_latest_first(self, served: Daemon) -> None:
        operation = served.done(served.client.collect_garbage())
        listed = served.client.operations()
        assert [one.kind for one in listed] == ["gc", "start"]
        assert listed[0].result is None
        assert operation.result is not None


class TestState:
    def test_it_is_healthy_and_ready(self, served: Daemon) -> None:
        served.done(served.client.collect_garbage())
        assert served.ask("GET", "/v1/health").document["status"] == "ok"
        assert served.client.is_ready()

    def test_it_is_not_ready_while_another_process_changes_the_store(
        self, node: Node, tmp_path: Path
    ) -> None:
        node.config.working_dir.mkdir()
        another_process = StoreLock(node.config.working_dir, SystemClock())
        with (
            another_process.held(timedelta(0), threading.Event()),
            daemon(node.config, tmp_path) as served,
        ):
            assert not served.client.is_ready()
            assert served.ask("GET", "/v1/health").status == 200
            assert served.client.layers() == ()

    def test_metrics_tell_what_was_done(self, node: Node, served: Daemon) -> None:
        one, bad = node.publish("one", MIB), node.publish("bad")
        (node.published / "bad").unlink()
        served.client.wait(served.client.put_desired([one, bad]).id)
        served.done(served.client.put_desired([one]))
        served.done(served.client.put_desired([]))
        metrics = dict(
            line.rsplit(" ", 1)
            for line in served.client.metrics().splitlines()
            if not line.startswith("#")
        )
        assert metrics['layermanager_installs_total{result="installed"}'] == "1"
        assert metrics['layermanager_installs_total{result="failed"}'] == "1"
        assert metrics['layermanager_install_errors_total{error="SourceError"}'] == "1"
        assert metrics['layermanager_layers{state="cached"}'] == "1"
        assert metrics['layermanager_layers{state="desired"}'] == "0"
        assert int(metrics["layermanager_fetched_bytes_total"]) == one.size
        assert int(metrics["layermanager_written_bytes_total"]) >= MIB
        assert float(metrics["layermanager_last_successful_apply_timestamp_seconds"]) > 0
        assert metrics["layermanager_install_duration_seconds_count"] == "1"
        assert metrics["layermanager_ready"] == "1"


def _statuses(result: object) -> dict[Digest, str]:
    assert isinstance(result, dict)
    return {report["digest"]: report["status"] for report in result["reports"]}
