"""Images, leases and mounts by the API."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import Daemon, daemon

from layermanager.client import ApiError
from layermanager.model import DesiredImage
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, compress, digest_of
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS = [compress(layer_tar(name), "gzip") for name in ("base", "app")]
IMAGE = build_image(LAYERS)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    write_files(tmp_path / "images", layout_files({"1": IMAGE}))
    return node


@pytest.fixture
def served(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(node.config, tmp_path) as served:
        served.client.wait(served.client.operations()[-1].id)
        yield served


@pytest.fixture
def image(tmp_path: Path) -> DesiredImage:
    return DesiredImage(f"oci:{tmp_path / 'images'}:1")


class TestImages:
    def test_one_is_desired_and_there(
        self, node: Node, served: Daemon, image: DesiredImage
    ) -> None:
        other = node.publish("other")
        plan = served.client.plan([other, image])
        assert set(plan.install) == {other.digest, *map(digest_of, LAYERS)}
        served.done(served.client.put_desired([other, image]))
        status = served.client.desired_state()
        assert status.is_complete
        assert [(one.reference, one.state) for one in status.images] == [
            (image.reference, "installed")
        ]
        assert [one["reference"] for one in served.client.images()] == [image.reference]
        assert image.reference.encode() in served.ask("GET", "/").body

    def test_one_that_is_not_to_be_had_is_told(self, served: Daemon, tmp_path: Path) -> None:
        missing = DesiredImage(f"oci:{tmp_path / 'images'}:2")
        assert served.client.wait(served.client.put_desired([missing]).id).state == "failed"
        status = served.client.desired_state()
        assert not status.is_complete
        assert [one.state for one in status.images] == ["failed"]
        assert "2" in status.images[0].error

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"images": [{"platform": "linux"}]}, "#/images/0/ref"),
            ({"images": [{"ref": "a:1", "arch": "arm"}]}, "#/images/0/arch"),
            ({"layers": [{}]}, "#/layers/0/digest"),
            ({"images": {}}, "#/images"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_place(
        self, served: Daemon, body: object, pointer: str
    ) -> None:
        answer = served.ask("PUT", "/v1/desired-state", body)
        assert answer.status == 422
        assert pointer in [one["pointer"] for one in answer.document["errors"]]

    def test_what_is_no_reference_is_refused(self, served: Daemon) -> None:
        answer = served.ask("PUT", "/v1/desired-state", {"images": [{"ref": "UPPER//case"}]})
        assert (answer.status, answer.document["error"]) == (422, "InvalidReferenceError")


class TestLeases:
    def test_what_is_leased_is_held(self, node: Node, served: Daemon) -> None:
        layer = node.publish("one")
        served.done(served.client.put_desired([layer]))
        lease_id = served.client.lease(["one"], owner="a test", ttl=timedelta(hours=1))
        served.done(served.client.put_desired([]))
        (lease,) = served.client.leases()
        assert (lease["leaseId"], lease["owner"], lease["layers"]) == (
            lease_id,
            "a test",
            [layer.digest],
        )
        result = served.done(served.client.collect_garbage(ttl_days=0)).result
        assert result is not None
        assert [one["digest"] for one in result["held"]] == [layer.digest]  # type: ignore[attr-defined] # JSON
        usage = served.client.usage()
        assert usage.held > 0
        assert usage.reclaimable == 0
        assert b"in use by" in served.ask("GET", "/").body
        served.client.release_lease(lease_id)
        assert served.client.leases() == ()
        served.done(served.client.collect_garbage(ttl_days=0))
        node.assert_has([])

    def test_the_directories_to_mount(self, node: Node, served: Daemon) -> None:
        tars = {name: LayerBuilder().file(name) for name in ("top", "middle", "low")}
        tars["middle"].opaque(".")
        served.done(
            served.client.put_desired(
                [
                    node.publish_bytes(name, compress(tar.tar(), "gzip"))
                    for name, tar in tars.items()
                ]
            )
        )
        paths = {row.layer_id: str(row.path) for row in node.rows()}
        body = {"layers": ["top", "middle", "low"], "owner": "a test"}
        answer = served.ask("POST", "/v1/leases", body)
        assert answer.document["lowerDirs"] == [paths["top"], paths["middle"]]
        assert len(answer.document["layers"]) == 3

    def test_one_of_a_process(self, node: Node, served: Daemon) -> None:
        served.done(served.client.put_desired([node.publish("one")]))
        served.client.lease(["one"], owner="a test", process=os.getpid())
        assert served.client.leases()[0]["process"] == os.getpid()

    def test_of_what_is_not_there(self, served: Daemon) -> None:
        with pytest.raises(ApiError) as caught:
            served.client.lease(["nothing"], owner="a test")
        assert (caught.value.status, caught.value.error) == (404, "LayerNotExistError")

    def test_one_that_is_over_already(self, served: Daemon) -> None:
        with pytest.raises(ApiError) as caught:
            served.client.release_lease("nothing")
        assert (caught.value.status, caught.value.error) == (404, "LeaseNotExistError")


class TestMounts:
    def test_an_image_is_mounted_and_unmounted(
        self, served: Daemon, image: DesiredImage, target: Path
    ) -> None:
        served.done(served.client.put_desired([image]))
        served.client.mount("app", [image.reference], target=target, read_only=True)
        assert (target / "etc/name").read_text() == "app"
        (mount,) = served.client.mounts()
        assert (mount["name"], mount["target"], mount["mounted"]) == ("app", str(target), True)
        served.client.umount("app")
        assert not target.is_mount()
        assert served.client.mounts() == ()

    def test_a_label_that_is_none(self, served: Daemon, image: DesiredImage, target: Path) -> None:
        served.done(served.client.put_desired([image]))
        with pytest.raises(ApiError, match="not an SELinux label: 'label'") as caught:
            served.client.mount("app", [image.reference], target=target, context="label")
        assert caught.value.error == "MountError"
        assert served.client.mounts() == ()

    def test_one_that_is_busy_goes_lazily(
        self, served: Daemon, image: DesiredImage, target: Path
    ) -> None:
        served.done(served.client.put_desired([image]))
        served.client.mount("app", [image.reference], target=target)
        with (target / "etc/name").open():
            with pytest.raises(ApiError) as caught:
                served.client.umount("app")
            assert (caught.value.status, caught.value.error) == (409, "MountBusyError")
            served.client.umount("app", lazy=True)
        assert not target.is_mount()

    def test_what_is_not_mounted(self, served: Daemon) -> None:
        with pytest.raises(ApiError) as caught:
            served.client.umount("nothing")
        assert (caught.value.status, caught.value.error) == (404, "MountNotExistError")

    def test_a_place_must_be_named_in_full(self, served: Daemon) -> None:
        body = {"name": "app", "layers": ["one"], "target": "here"}
        answer = served.ask("POST", "/v1/mounts", body)
        assert [one["pointer"] for one in answer.document["errors"]] == ["#/target"]
