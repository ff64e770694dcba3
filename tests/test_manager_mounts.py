"""Layers are mounted by name, and unmounted by it: also by others, and after a crash."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE, shell
from layermanager.errors import (
    LayerNotExistError,
    MountBusyError,
    MountError,
    MountNotExistError,
    UseError,
)
from layermanager.model import DesiredImage
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, compress
from manager_fixtures import Node, names_in, wait_until_unused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Overlay
    from layermanager import DesiredLayer, LayerManager

AT_ONCE = timedelta(0)
MOUNTER = """
    import os, signal, sys
    from pathlib import Path
    from layermanager import Config, LayerManager
    from layermanager.steps import Step

    def on_step(step):
        if step == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)

    with LayerManager(Config(Path(sys.argv[1])), on_step=on_step) as manager:
        manager.mount("app", ["top", "low"], target=Path(sys.argv[2]))
        on_step("end")
"""

pytestmark = pytest.mark.usefixtures("needs_overlay")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def manager(node: Node) -> Iterator[LayerManager]:
    with node.manager() as manager:
        manager.process_desired_layers([publish(node, "top"), publish(node, "low")])
        yield manager


def publish(node: Node, name: str) -> DesiredLayer:
    tar = (
        LayerBuilder()
        .directory(".", mode=0o751)
        .file("who", name.encode())
        .file(f"of-{name}", b"")
        .tar()
    )
    return node.publish_bytes(name, compress(tar, "gzip"))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def kept_by_mounts(node: Node) -> list[Path]:
    directory = node.config.working_dir / "mounts"
    return list(directory.iterdir()) if directory.exists() else []


@contextmanager
def file_open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class TestMounting:
    def test_the_uppermost_comes_first(self, manager: LayerManager, target: Path) -> None:
        with manager.mount("app", ["top", "low"], target=target) as mounted:
            assert (target / "who").read_text() == "top"
            assert names(target) == ["of-low", "of-top", "who"]
            assert [mounted.mount] == list(manager.mounts())
            assert mounted.mount.target == target
            assert mounted.mount.is_mounted
        assert names(target) == []
        assert manager.mounts() == ()
        wait_until_unused(manager)

    def test_what_is_written_is_thrown_away(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        before = node.files()
        with manager.mount("app", ["top", "low"], target=target) as mounted:
            (target / "who").write_text("written")
            assert mounted.mount.upper is not None
            assert (mounted.mount.upper / "who").read_text() == "written"
            assert stat.S_IMODE(target.stat().st_mode) == 0o751
        wait_until_unused(manager)
        manager.remove_expired_layers()
        assert kept_by_mounts(node) == []
        assert node.files() == before

    def test_what_is_written_stays_in_a_directory_that_was_given(
        self, node: Node, manager: LayerManager, target: Path, tmp_path: Path
    ) -> None:
        upper = tmp_path / "upper"
        upper.mkdir()
        for text in ("first", "second"):
            with manager.mount("app", "low", target=target, upper=upper):
                assert (target / "who").read_text() == ("low" if text == "first" else "first")
                (target / "who").write_text(text)
        assert (upper / "who").read_text() == "second"
        wait_until_unused(manager)
        manager.remove_expired_layers()
        assert kept_by_mounts(node) == []

    @pytest.mark.parametrize("layers", [["top", "low"], ["low"], "low"])
    def test_nothing_can_be_written(
        self, node: Node, manager: LayerManager, target: Path, layers: list[str]
    ) -> None:
        with manager.mount("app", layers, target=target, read_only=True) as mounted:
            assert mounted.mount.upper is None
            assert (target / "of-low").exists()
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").touch()
        wait_until_unused(manager)
        manager.remove_expired_layers()
        assert kept_by_mounts(node) == []

    def test_at_a_target_behind_a_symlink(
        self, manager: LayerManager, target: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(target)
        with manager.mount("app", "low", target=tmp_path / "link") as mounted:
            assert mounted.mount.target == target
            assert (target / "who").exists()

    def test_it_stays_when_the_manager_ends(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        manager.mount("app", ["top", "low"], target=target)
        manager.close()
        with node.manager() as other:
            assert [mount.name for mount in other.mounts()] == ["app"]
            other.process_desired_layers([])
            assert other.remove_expired_layers(AT_ONCE) == ()
            assert (target / "who").read_text() == "top"
            other.umount("app")
            assert names(target) == []
            wait_until_unused(other)
            assert len(other.remove_expired_layers(AT_ONCE)) == 2

    def test_a_layer_that_is_cached(self, manager: LayerManager, target: Path) -> None:
        manager.process_desired_layers([])
        with manager.mount("app", "low", target=target):
            assert (target / "who").read_text() == "low"
            assert names_in(manager.remove_cached_layers(1 << 60)) == ["top"]


class TestRefusing:
    def assert_nothing_is_left(self, node: Node, manager: LayerManager, target: Path) -> None:
        assert not target.is_mount()
        assert manager.mounts() == ()
        assert manager.leases() == ()
        assert kept_by_mounts(node) == []

    def test_a_layer_that_is_not_installed(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        with pytest.raises(LayerNotExistError, match="other"):
            manager.mount("app", ["top", "other"], target=target)
        self.assert_nothing_is_left(node, manager, target)

    @pytest.mark.parametrize("name", ["", ".", "../x", "a b", "a/b", "-x", "x" * 256])
    def test_names_that_are_none(
        self, node: Node, manager: LayerManager, target: Path, name: str
    ) -> None:
        with pytest.raises(MountError, match="not a name"):
            manager.mount(name, "low", target=target)
        self.assert_nothing_is_left(node, manager, target)

    def test_a_name_that_is_taken(self, manager: LayerManager, target: Path) -> None:
        with manager.mount("app", "low", target=target):
            with pytest.raises(MountError, match=f"app is mounted already, on {target}"):
                manager.mount("app", "low", target=target)
            assert (target / "who").exists()

    def test_a_target_that_is_no_directory(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        (target / "file").touch()
        for path in (target / "file", target / "missing"):
            with pytest.raises(MountError, match=str(path)):
                manager.mount("app", "low", target=path)
        self.assert_nothing_is_left(node, manager, target)

    def test_an_upper_directory_that_is_for_nothing(
        self, node: Node, manager: LayerManager, target: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(MountError, match="upper"):
            manager.mount("app", "low", target=target, upper=tmp_path, read_only=True)
        self.assert_nothing_is_left(node, manager, target)

    def test_what_the_kernel_refuses(
        self, node: Node, manager: LayerManager, target: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(MountError, match=str(target)):
            manager.mount("app", "low", target=target, upper=tmp_path, work=Path("/proc"))
        self.assert_nothing_is_left(node, manager, target)


class TestUnmounting:
    def test_what_is_not_there(self, manager: LayerManager) -> None:
        with pytest.raises(MountNotExistError, match="app"):
            manager.umount("app")

    def test_what_is_in_use(self, node: Node, manager: LayerManager, target: Path) -> None:
        manager.mount("app", ["top", "low"], target=target)
        manager.process_desired_layers([])
        with file_open(target / "who") as descriptor:
            with pytest.raises(MountBusyError, match=str(target)):
                manager.umount("app")
            assert (target / "who").exists()
            manager.umount("app", lazy=True)
            assert manager.mounts() == ()
            assert names(target) == []
            # Who has a file open can still reach all others from there.
            assert len(manager.leases()) == 1
            assert manager.remove_expired_layers(AT_ONCE) == ()
            assert len(kept_by_mounts(node)) == 1
            assert os.pread(descriptor, 10, 0) == b"top"
        wait_until_unused(manager)
        assert len(manager.remove_expired_layers(AT_ONCE)) == 2
        assert kept_by_mounts(node) == []

    def test_a_lazily_unmounted_one_holds_no_other_layers(
        self, manager: LayerManager, target: Path
    ) -> None:
        manager.mount("app", "low", target=target)
        manager.process_desired_layers([])
        with file_open(target / "who"):
            manager.umount("app", lazy=True)
            assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["top"]

    def test_its_name_is_free_at_once(self, manager: LayerManager, target: Path) -> None:
        first = manager.mount("app", "low", target=target)
        with file_open(target / "who"):
            first.umount(lazy=True)
            with manager.mount("app", "top", target=target):
                first.umount()
                assert (target / "who").read_text() == "top"

    def test_what_somebody_else_unmounted(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        mounted = manager.mount("app", "low", target=target)
        subprocess.run(["umount", target], check=True)
        assert [mount.is_mounted for mount in manager.mounts()] == [False]
        wait_until_unused(manager)
        with manager.mount("app", "top", target=target):
            mounted.umount()
            assert (target / "who").read_text() == "top"
        wait_until_unused(manager)
        manager.remove_expired_layers()
        assert kept_by_mounts(node) == []

    def test_something_else_is_mounted_there(self, manager: LayerManager, target: Path) -> None:
        manager.mount("app", "low", target=target)
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        with pytest.raises(MountError, match="mounted over"):
            manager.umount("app")
        assert target.is_mount()
        subprocess.run(["umount", target], check=True)
        manager.umount("app")
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        with pytest.raises(MountNotExistError):
            manager.umount("app")
        assert target.is_mount()

    def test_a_copy_in_another_namespace_keeps_the_layers(
        self, node: Node, manager: LayerManager, target: Path
    ) -> None:
        manager.mount("app", ["top", "low"], target=target)
        with shell("true", prefix=IN_A_MOUNT_NAMESPACE):
            manager.umount("app")
            assert names(target) == []
            manager.process_desired_layers([])
            assert manager.remove_expired_layers(AT_ONCE) == ()
            assert len(kept_by_mounts(node)) == 1
        wait_until_unused(manager)
        assert len(manager.remove_expired_layers(AT_ONCE)) == 2
        assert kept_by_mounts(node) == []

    def test_the_lease_of_a_mount_is_not_released_alone(
        self, manager: LayerManager, target: Path
    ) -> None:
        with manager.mount("app", "low", target=target) as mounted:
            with pytest.raises(UseError, match="mount app"):
                manager.release_lease(mounted.mount.lease_id)
            assert len(manager.leases()) == 1


class TestAfterSigkill:
    @pytest.mark.parametrize("step", ["make mount directory", "mount", "end"])
    def test_a_mount_is_there_or_not(
        self, node: Node, manager: LayerManager, target: Path, step: str
    ) -> None:
        manager.process_desired_layers([])
        killed = subprocess.run(
            [
                *(sys.executable, "-c", textwrap.dedent(MOUNTER)),
                *(str(node.config.working_dir), str(target), step),
            ],
            check=False,
        )
        assert killed.returncode == -9
        if step == "end":
            assert (target / "who").read_text() == "top"
            assert manager.remove_expired_layers(AT_ONCE) == ()
            assert (target / "of-low").exists()
            manager.umount("app")
        assert names(target) == []
        wait_until_unused(manager)
        assert len(manager.remove_expired_layers(AT_ONCE)) == 2
        assert manager.mounts() == ()
        assert kept_by_mounts(node) == []


def test_more_layers_than_have_room_on_a_page(node: Node, target: Path) -> None:
    order = [f"layer-{number}" for number in range(101)]
    with node.manager() as manager:
        manager.process_desired_layers([publish(node, name) for name in order])
        with manager.mount("app", order, target=target, read_only=True):
            assert (target / "who").read_text() == "layer-0"
            assert len(names(target)) == len(order) + 1


# Layers whose root is opaque

BASE = (
    LayerBuilder()
    .directory("etc")
    .file("etc/secret", b"secret")
    .file("etc/kept", b"base")
    .directory("var")
    .file("var/log", b"base")
)
OPAQUE_LAYERS = {
    "the mark first": LayerBuilder().opaque(".").directory("etc").whiteout("etc/secret"),
    "the mark last": LayerBuilder().directory("etc").whiteout("etc/secret").opaque("."),
}


def publish_tar(node: Node, name: str, builder: LayerBuilder) -> DesiredLayer:
    return node.publish_bytes(name, compress(builder.tar(), "gzip"))


def everything_in(directory: Path) -> list[str]:
    """All names, each of which has to be there when it is asked for."""
    paths = list(directory.rglob("*"))
    assert all(path.lstat() for path in paths)
    return sorted(str(path.relative_to(directory)) for path in paths)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", OPAQUE_LAYERS)
class TestOpaqueRoots:
    def test_nothing_of_the_layers_below_is_seen(
        self, name: str, read_only: bool, node: Node, target: Path
    ) -> None:
        opaque = OPAQUE_LAYERS[name]
        top = LayerBuilder().directory("var").whiteout("var/log").file("top", b"top")
        with node.manager() as manager:
            manager.process_desired_layers(
                [
                    publish_tar(node, "top", top),
                    publish_tar(node, "opaque", opaque),
                    publish_tar(node, "base", BASE),
                ]
            )
            layers = ["top", "opaque", "base"]
            with manager.mount("m", layers, target=target, read_only=read_only) as mounted:
                assert everything_in(target) == ["etc", "top", "var"]
                assert len(mounted.mount.layers) == 3
            with manager.mount("m", layers[1:], target=target, read_only=read_only):
                assert everything_in(target) == ["etc"]
            with manager.mount("m", layers[1], target=target, read_only=read_only):
                assert everything_in(target) == ["etc"]
            with manager.lease(layers, owner="a test") as lease:
                paths = {row.layer_id: row.path for row in node.rows()}
                assert lease.lower[1:] == (paths["top"], paths["opaque"])
                assert everything_in(lease.lower[0]) == ["etc", "var"]
            manager.remove_expired_layers()
            assert kept_by_mounts(node) == []

    def test_of_images(
        self, name: str, read_only: bool, node: Node, target: Path, tmp_path: Path
    ) -> None:
        tars = [BASE.tar(), OPAQUE_LAYERS[name].tar()]
        image = build_image(tars, config={"os": None, "config": {"Cmd": ["sh"]}})
        write_files(tmp_path / "image", layout_files({"": image}))
        reference = f"oci:{tmp_path / 'image'}"
        with node.manager() as manager:
            manager.process_desired_layers([DesiredImage(reference)])
            with manager.mount("m", reference, target=target, read_only=read_only):
                assert everything_in(target) == ["etc"]
            bundle = tmp_path / "bundle"
            with manager.bundle("m", reference, directory=bundle, read_only=read_only):
                assert everything_in(bundle / "rootfs") == ["etc"]

    def test_whiteouts_serve_those_who_mount_the_layers_otherwise(
        self, name: str, read_only: bool, node: Node, overlay: Overlay
    ) -> None:
        del read_only
        with node.manager() as manager:
            manager.process_desired_layers(
                [publish_tar(node, "opaque", OPAQUE_LAYERS[name]), publish_tar(node, "base", BASE)]
            )
        paths = {row.layer_id: row.path for row in node.rows()}
        with overlay([paths["opaque"], paths["base"]]) as merged:
            assert everything_in(merged) == ["etc", "etc/kept", "var", "var/log"]
