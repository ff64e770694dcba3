from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layermanager.check import Status
from layermanager.errors import (
    DesiredStateError,
    InvalidDigestError,
    LayerNotExistError,
    StorageError,
)
from layermanager.inventory import Inventory
from layermanager.model import DesiredImage
from layermanager.space import disk_usage
from layermanager.store import index_path
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import compress, digest_of
from manager_fixtures import MIB, Node, layer_tar, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.model import DesiredLayer


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, layers_part_limit=50)


@pytest.fixture
def layers(node: Node) -> Iterator[tuple[DesiredLayer, DesiredLayer]]:
    """One in use and a cached one; their manager is closed."""
    used, cached = node.publish("used", MIB), node.publish("cached", 2 * MIB)
    with node.manager() as manager:
        manager.process_desired_layers([used, cached])
        manager.process_desired_layers([used])
    yield used, cached
    node.assert_has([used, cached])


class TestEmpty:
    def test_where_there_is_no_store_there_are_no_layers(self, node: Node) -> None:
        inventory = Inventory(node.config)
        assert inventory.layers() == ()
        with pytest.raises(LayerNotExistError):
            inventory.layer(digest_of(b"one"))
        one = node.publish("one")
        assert inventory.plan([one]).install == (one,)

    def test_the_space_is_that_of_where_it_will_be(self, node: Node, tmp_path: Path) -> None:
        usage = Inventory(node.config).usage()
        assert usage.path == node.config.layers_dir
        assert usage.total == disk_usage(tmp_path).total
        assert usage.limit == usage.total // 2
        assert (usage.desired, usage.reclaimable) == (0, 0)
        assert usage.other == usage.total - usage.free

    def test_nothing_is_made_by_looking(self, node: Node, tmp_path: Path) -> None:
        inventory = Inventory(node.config)
        inventory.layers()
        inventory.usage()
        inventory.plan([])
        assert [path.name for path in tmp_path.iterdir()] == ["published"]


class TestLooking:
    def test_it_sees_what_the_manager_sees(
        self, node: Node, layers: tuple[DesiredLayer, DesiredLayer]
    ) -> None:
        assert Inventory(node.config).layers() == node.rows()
        for layer in layers:
            info = Inventory(node.config).layer(layer.digest)
            assert (info.digest, info.cached) == (layer.digest, layer is layers[1])

    def test_a_plan(self, node: Node, layers: tuple[DesiredLayer, DesiredLayer]) -> None:
        used, cached = layers
        new = node.publish("new")
        plan = Inventory(node.config).plan([new, cached])
        assert (names_in(plan.cache), names_in(plan.restore)) == (["used"], ["cached"])
        assert (plan.keep, plan.install) == ((), (new,))
        assert used.digest in "\n".join(plan.lines())

    @pytest.mark.usefixtures("layers")
    def test_a_plan_of_what_contradicts_itself(self, node: Node) -> None:
        blob = b"one"
        contradicting = [
            node.publish_bytes("one", blob),
            node.publish_bytes("another", blob),
        ]
        with pytest.raises(DesiredStateError, match=digest_of(blob)):
            Inventory(node.config).plan(contradicting)

    @pytest.mark.usefixtures("layers")
    def test_the_space(self, node: Node) -> None:
        usage = Inventory(node.config).usage()
        cached, used = sorted(node.rows(), key=lambda row: row.layer_id)
        assert (usage.desired, usage.reclaimable) == (used.size, cached.size)
        assert usage.other == usage.total - usage.free - used.size - cached.size

    @pytest.mark.usefixtures("layers")
    def test_what_is_not_there(self, node: Node) -> None:
        inventory = Inventory(node.config)
        with pytest.raises(LayerNotExistError, match=digest_of(b"")) as caught:
            inventory.layer(digest_of(b""))
        assert caught.value.digest == digest_of(b"")
        with pytest.raises(InvalidDigestError):
            inventory.layer("sha256:../..")

    def test_a_cached_row_whose_directory_is_gone_does_not_count(self, node: Node) -> None:
        layer = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([layer])
            manager.process_desired_layers([])
        (row,) = node.rows()
        inventory = Inventory(node.config)
        assert inventory.layers() == (row,)
        shutil.rmtree(row.path)
        row.path.write_text("no layer")
        for _ in range(2):
            assert inventory.layers() == ()
            assert inventory.usage().reclaimable == 0
            row.path.unlink(missing_ok=True)
        with pytest.raises(LayerNotExistError):
            inventory.layer(layer.digest)
        assert inventory.plan([layer]).install == (layer,)

    def test_a_desired_row_whose_directory_is_gone_is_damaged(self, node: Node) -> None:
        with node.manager() as manager:
            manager.process_desired_layers([node.publish("one")])
        (row,) = node.rows()
        shutil.rmtree(row.path)
        inventory = Inventory(node.config)
        assert inventory.layers() == (row,)
        (report,) = inventory.check(inventory.layers())
        assert report.status is Status.DAMAGED

    def test_an_image_without_a_layer_does_not_count(self, node: Node) -> None:
        image = build_image([compress(layer_tar("app"), "gzip")], config={"os": None})
        write_files(node.published / "app", layout_files({"": image}))
        desired = DesiredImage(f"oci:{node.published / 'app'}")
        with node.manager() as manager:
            manager.process_desired_layers([desired])
            manager.process_desired_layers([])
            assert len(Inventory(node.config).images()) == len(manager.get_images_info()) == 1
            shutil.rmtree(node.rows()[0].path)
            assert Inventory(node.config).images() == manager.get_images_info() == ()

    def test_a_cached_layer_of_another_program_needs_no_index(self, node: Node) -> None:
        with node.manager() as manager:
            manager.process_desired_layers([node.publish("one")])
            manager.process_desired_layers([])
        (row,) = node.rows()
        index_path(node.config.index_dir, row.digest).unlink()
        assert Inventory(node.config).layers() == ()  # as where it is being removed in its place
        with closing(sqlite3.connect(node.config.database)) as database:
            database.execute("DELETE FROM layerFootprints")
            database.commit()
        assert Inventory(node.config).layers() == (row,)

    def test_a_database_that_is_none(self, node: Node) -> None:
        node.config.working_dir.mkdir()
        node.config.database.write_bytes(b"no database" * 1000)
        with pytest.raises(StorageError, match=str(node.config.database)):
            Inventory(node.config).layers()


@pytest.mark.usefixtures("needs_root")
def test_who_may_only_read_may_look() -> None:
    """A user who may enter the working directory sees what root sees, and changes nothing."""
    script = """
        import os, sys
        from layermanager import Config, Inventory
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        inventory = Inventory(Config(sys.argv[1]))
        assert inventory.usage().desired > 0
        print(*(layer.layer_id for layer in inventory.layers()))
    """
    with tempfile.TemporaryDirectory() as directory:  # pytest's own lets nobody in
        base = Path(directory)
        base.chmod(0o755)
        node = Node(base)
        node.config.working_dir.mkdir()
        node.config.working_dir.chmod(0o755)  # a new one is closed
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
        before = sorted(node.config.working_dir.iterdir())
        seen = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), node.config.working_dir],
            check=True,
            capture_output=True,
            text=True,
        )
        assert seen.stdout.split() == ["one"]
        assert sorted(node.config.working_dir.iterdir()) == before
