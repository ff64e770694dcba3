"""What a mounted image, or list of layers, shows of directories that upper layers do not list."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from layermanager import (
    DesiredImage,
    ImageInfo,
    Inventory,
    LayersFailedError,
    MountError,
    Repair,
)
from layermanager.adoption import write_index
from layermanager.cancellation import Cancellation
from layermanager.check import Status
from layermanager.images.directories import LAYER_NAME
from layermanager.steps import Step
from layermanager.store import Store, index_path
from layermanager.testing.clock import FakeClock
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, digest_of
from layermanager.testing.trees import snapshot
from layermanager.use.merged import NO_ROOM
from manager_fixtures import Node, wait_until_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from layermanager import LayerInfo, LayerManager
    from layermanager.model import Digest

pytestmark = pytest.mark.usefixtures("needs_overlay")

SECOND = 10**9
AT_ONCE = timedelta(0)
ACL = bytes.fromhex(
    "0200000001000700ffffffff02000500e803000004000000ffffffff10000500ffffffff20000000ffffffff"
)
"""An access control list that gives user 1000 r-x: rwx for the owner, mask r-x, none for others."""

BASE = (
    LayerBuilder()
    .directory(".", mode=0o751, mtime_ns=3 * SECOND)
    .directory("secret", mode=0o700, mtime_ns=5 * SECOND + 7)
    .directory("tmp", mode=0o1777)
    .directory("home", mode=0o755, mtime_ns=SECOND)
    .directory("home/app", mode=0o700, uid=1000, gid=1000, xattrs={"user.of": b"app"})
    .directory("shared", mode=0o750, xattrs={"system.posix_acl_access": ACL})
    .directory("listed", mode=0o700)
    .tar()
)
UPPER = (
    LayerBuilder()
    .file("secret/new", b"secret")
    .file("tmp/x")
    .file("home/app/cfg")
    .file("shared/x")
    .directory("listed", mode=0o711)
    .file("new/x")
    .tar()
)
EXPECTED = {
    ".": (0o751, (0, 0), 3 * SECOND),
    "secret": (0o700, (0, 0), 5 * SECOND + 7),
    "tmp": (0o1777, (0, 0), 0),
    "home": (0o755, (0, 0), SECOND),
    "home/app": (0o700, (1000, 1000), 0),
    "shared": (0o750, (0, 0), 0),
    "listed": (0o711, (0, 0), 0),
    "new": (0o755, (0, 0), 0),
}
PLAIN = LayerBuilder().directory(".").directory("etc").file("etc/name", b"plain").tar()


class ImageNode(Node):
    """A node with images in a layout."""

    def __init__(self, base: Path, **settings: Any) -> None:
        super().__init__(base, **settings)
        self.layout = base / "images"

    def publish_images(self, **images: Sequence[bytes]) -> None:
        """Make the layout hold just these, by name, each with its layers, the lowest first."""
        shutil.rmtree(self.layout, ignore_errors=True)
        built = {name: build_image(layers) for name, layers in images.items()}
        write_files(self.layout, layout_files(built))

    def image(self, name: str = "app") -> DesiredImage:
        """The image of that name in the layout."""
        return DesiredImage(f"oci:{self.layout}:{name}", "linux/amd64")


@pytest.fixture
def node(tmp_path: Path) -> ImageNode:
    node = ImageNode(tmp_path)
    node.publish_images(app=[BASE, UPPER])
    return node


@pytest.fixture
def manager(node: ImageNode) -> Iterator[LayerManager]:
    with node.manager() as manager:
        yield manager


def install(manager: LayerManager, node: ImageNode, name: str = "app") -> ImageInfo:
    manager.process_desired_layers([node.image(name)])
    return next(
        image
        for image in manager.get_images_info()
        if image.reference == node.image(name).reference
    )


def directories_of(root: Path) -> dict[str, tuple[int, tuple[int, int], int]]:
    return {
        os.fsdecode(name): (state.mode, state.owner, state.mtime_ns)
        for name, state in snapshot(root).items()
        if state.type == stat.S_IFDIR
    }


def upwards(image: ImageInfo) -> list[str]:
    """The layers of *image* as a list of layers has them, the uppermost first."""
    return [str(digest) for digest in reversed(image.layers)]


def made(manager: LayerManager) -> list[LayerInfo]:
    """The layers of directories that there are."""
    return [layer for layer in manager.get_layers_info() if layer.layer_id == LAYER_NAME]


def statuses(node: ImageNode) -> set[Status]:
    inventory = Inventory(node.config)
    return {report.status for report in inventory.check(inventory.layers())}


def of_leases(node: ImageNode) -> list[str]:
    directory = node.config.working_dir / "mounts"
    return sorted(one.name for one in directory.iterdir()) if directory.exists() else []


def refusing_to_stage(number: int) -> Callable[[Step], None]:
    """Have the disk find no room for the layer of that number, counted from 1."""
    numbers = count(1)

    def refuse(step: Step) -> None:
        if step is Step.STAGE_LAYER and next(numbers) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return refuse


@contextmanager
def overlay(lower: Sequence[Path], target: Path) -> Iterator[Path]:
    """An overlay that another program mounts."""
    options = "lowerdir=" + ":".join(map(str, lower))
    subprocess.run(["mount", "-t", "overlay", "x", "-o", options, target], check=True)
    try:
        yield target
    finally:
        # A look at the mounts may be in it at this moment.
        subprocess.run(["umount", "--lazy", target], check=True)


def unopenable(root: Path) -> list[Path]:
    """The names that are listed and lead to nothing."""
    return [path for path in root.rglob("*") if not os.path.lexists(path)]


NOTHING_TO_MERGE: Final[Mapping[str, Sequence[bytes]]] = {
    "no layer": (),
    "a layer without it": (LayerBuilder().file("a/x").tar(),),
    "a layer that removes it": (
        LayerBuilder().file("a/c/g").tar(),
        LayerBuilder().whiteout("a/c").tar(),
    ),
    "a layer that removes all in the one above": (
        LayerBuilder().file("a/c/g").tar(),
        LayerBuilder().opaque("a").tar(),
    ),
    "a layer that removes everything": (
        LayerBuilder().file("a/c/g").tar(),
        LayerBuilder().opaque(".").file("b").tar(),
    ),
}
"""What may be below a layer with whiteouts in a directory that no other layer has."""


class TestWhatIsShown:
    @pytest.mark.parametrize("read_only", [True, False])
    @pytest.mark.parametrize("by_image", [True, False])
    def test_the_directories_are_those_of_the_base(
        self,
        manager: LayerManager,
        node: ImageNode,
        target: Path,
        *,
        read_only: bool,
        by_image: bool,
    ) -> None:
        image = install(manager, node)
        layers = image.reference if by_image else upwards(image)
        with manager.mount("app", layers, target=target, read_only=read_only):
            found = directories_of(target)
            assert os.getxattr(target / "home/app", "user.of") == b"app"
            assert os.getxattr(target / "shared", "system.posix_acl_access") == ACL
            assert (target / "secret/new").read_text() == "secret"
        assert found == EXPECTED

    def test_a_bundle(self, manager: LayerManager, node: ImageNode, target: Path) -> None:
        built = build_image([BASE, UPPER], config={"config": {"Entrypoint": ["/x"]}})
        write_files(node.layout, layout_files({"run": built}))
        image = install(manager, node, "run")
        with manager.bundle("run", image.reference, directory=target) as mounted:
            assert directories_of(mounted.mount.target)["secret"] == EXPECTED["secret"]

    @pytest.mark.parametrize("by_image", [True, False])
    def test_the_directories_of_a_lease(
        self, manager: LayerManager, node: ImageNode, target: Path, *, by_image: bool
    ) -> None:
        image = install(manager, node)
        layers = image.reference if by_image else upwards(image)
        with manager.lease(layers, owner="test") as held:
            with overlay(held.lower, target):
                assert directories_of(target) == EXPECTED
            assert len(held.lower) == 3
        assert of_leases(node) == []

    def test_two_images_on_each_other(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        top = [
            LayerBuilder().directory("home", mode=0o711).tar(),
            LayerBuilder().file("home/y").file("secret/y").tar(),
        ]
        node.publish_images(app=[BASE, UPPER], top=top)
        desired = [node.image("top"), node.image("app")]
        manager.process_desired_layers(desired)
        layers = [one.reference for one in desired]
        with manager.mount("both", layers, target=target, read_only=True):
            expected = {**EXPECTED, "home": (0o711, (0, 0), 0)}
            assert directories_of(target) == expected

    def test_an_opaque_root(self, manager: LayerManager, node: ImageNode, target: Path) -> None:
        upper = LayerBuilder().file(".wh..wh..opq").file("secret/new").tar()
        node.publish_images(app=[BASE, upper])
        image = install(manager, node)
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert directories_of(target) == {
                ".": EXPECTED["."],
                "secret": (0o755, (0, 0), 0),
            }

    @pytest.mark.parametrize("below", NOTHING_TO_MERGE)
    @pytest.mark.parametrize("read_only", [True, False])
    @pytest.mark.parametrize("by_image", [True, False])
    def test_no_name_that_a_whiteout_hides(
        self,
        manager: LayerManager,
        node: ImageNode,
        target: Path,
        *,
        by_image: bool,
        read_only: bool,
        below: str,
    ) -> None:
        upper = LayerBuilder().directory("a", mode=0o750).file("a/c/new").whiteout("a/c/g").tar()
        node.publish_images(app=[*NOTHING_TO_MERGE[below], upper])
        image = install(manager, node)
        layers = image.reference if by_image else upwards(image)
        with manager.mount("app", layers, target=target, read_only=read_only):
            assert not unopenable(target)
            assert (target / "a/c/new").exists()
            assert directories_of(target)["a"][0] == 0o750
        assert statuses(node) == {Status.INTACT}

    def test_layers_without_an_index_are_shown_as_they_are(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        index_path(node.config.index_dir, image.layers[0]).unlink()
        with manager.mount("app", upwards(image), target=target, read_only=True):
            assert directories_of(target)["secret"] == (0o755, (0, 0), 0)

    def test_a_damaged_index_is_said(
        self,
        manager: LayerManager,
        node: ImageNode,
        target: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        image = install(manager, node)
        index_path(node.config.index_dir, image.layers[0]).write_bytes(b"?")
        with manager.mount("app", upwards(image), target=target, read_only=True):
            assert directories_of(target)["secret"] == (0o755, (0, 0), 0)
        assert str(image.layers[0]) in caplog.text


class TestListsOfLayers:
    def test_what_was_made_goes_with_the_mount(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        manager.mount("app", upwards(image), target=target)
        assert len(of_leases(node)) == 1
        manager.umount("app")
        wait_until_unused(manager)
        manager.remove_expired_layers()
        assert of_leases(node) == []

    def test_what_others_mounted_stays_when_the_lease_is_over(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        lease = manager.lease(upwards(image), owner="test")
        with overlay(lease.lower, target):
            lease.release()
            manager.remove_expired_layers()
            assert (target / "secret/new").exists()
            assert directories_of(target) == EXPECTED
        manager.remove_expired_layers()
        assert of_leases(node) == []

    def test_a_lease_that_fails_leaves_nothing(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        image = install(manager, node)
        (node.config.working_dir / "mounts").write_bytes(b"")
        with pytest.raises(Exception, match="cannot read a layer"):
            manager.lease(upwards(image), owner="test")
        (node.config.working_dir / "mounts").unlink()
        assert manager.leases() == ()


class TestImages:
    def test_the_layer_is_a_part_of_the_image(self, manager: LayerManager, node: ImageNode) -> None:
        result = manager.process_desired_layers([node.image()])
        (image,) = result.images.installed
        (layer,) = made(manager)
        assert image.directories == layer.digest
        assert image.stack == (layer.digest, *reversed(image.layers))
        assert image.layers == (digest_of(BASE), digest_of(UPPER))
        assert len(image.diff_ids) == len(image.layers)
        assert [one.digest for one in result.installed] == [*image.layers, layer.digest]
        assert manager.get_images_info() == (image,)
        assert statuses(node) == {Status.INTACT}
        usage = Inventory(node.config).usage()
        assert usage.desired == sum(one.size for one in manager.get_layers_info())

    def test_images_that_need_none_have_none(self, manager: LayerManager, node: ImageNode) -> None:
        node.publish_images(one=[UPPER], two=[PLAIN, BASE], three=[UPPER, UPPER])
        desired = [node.image(name) for name in ("one", "two", "three")]
        result = manager.process_desired_layers(desired)
        assert [image.directories for image in result.images.installed] == [None] * 3
        assert made(manager) == []

    def test_images_with_the_same_directories_share_it(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        other = LayerBuilder().raw(UPPER[:-1024]).file("another").tar()
        node.publish_images(app=[BASE, UPPER], other=[BASE, other])
        first, second = (install(manager, node, name) for name in ("app", "other"))
        assert first.directories == second.directories
        (layer,) = made(manager)
        assert not layer.cached

    def test_it_is_kept_cached_and_restored_with_the_image(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        assert image.directories in [
            layer.digest for layer in manager.process_desired_layers([node.image()]).kept
        ]
        cached = manager.process_desired_layers([])
        assert image.directories in [layer.digest for layer in cached.cached]
        shutil.rmtree(node.layout)  # as offline
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers([node.image()])
        result = caught.value.result
        assert image.directories in [layer.digest for layer in result.restored]
        assert result.installed == ()
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert directories_of(target) == EXPECTED

    def test_its_time_to_live_ends_with_that_of_the_image(self, node: ImageNode) -> None:
        clock = FakeClock()
        with node.manager(clock=clock) as manager:
            install(manager, node)
            manager.process_desired_layers([])
            clock.advance(node.config.layer_ttl)
            manager.remove_expired_layers()
        node.assert_has([])

    def test_an_image_that_moves_takes_it_over(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        first = install(manager, node)
        other = LayerBuilder().raw(UPPER[:-1024]).file("another").tar()
        node.publish_images(app=[BASE, other])
        result = manager.process_desired_layers([node.image()])
        (second,) = result.images.installed
        assert second.directories == first.directories
        assert second.directories not in [layer.digest for layer in result.cached]
        (layer,) = made(manager)
        assert not layer.cached

    def test_it_is_repaired_without_a_source(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        shutil.rmtree(node.layout)
        (layer,) = made(manager)
        (layer.path / "secret").chmod(0o777)
        (layer.path / "added").touch()
        assert statuses(node) == {Status.INTACT, Status.DAMAGED}
        source = Inventory(node.config).sources()[layer.digest]
        (repaired,) = manager.repair_layers([Repair(layer, source)])
        assert repaired.digest == layer.digest
        assert statuses(node) == {Status.INTACT}
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert directories_of(target) == EXPECTED

    def test_a_damaged_one_that_no_image_has_is_removed(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        image = install(manager, node)
        (layer,) = made(manager)
        manager.process_desired_layers([])
        for digest in image.layers:
            shutil.rmtree(node.config.layers_dir / "sha256" / digest.encoded)
        source = Inventory(node.config).sources()[layer.digest]
        (repaired,) = manager.repair_layers([Repair(layer, source)])
        assert repaired.digest == layer.digest
        assert made(manager) == []
        assert not layer.path.exists()

    def test_it_is_made_again_where_it_was_lost(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        (layer,) = made(manager)
        shutil.rmtree(layer.path)
        manager.remove_expired_layers()
        assert made(manager) == []
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert directories_of(target) == EXPECTED
        result = manager.process_desired_layers([node.image()])
        assert [one.digest for one in result.installed] == [layer.digest]
        assert result.images.kept == (image,)
        assert statuses(node) == {Status.INTACT}

    def test_a_lost_one_of_an_image_that_was_cached(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        image = install(manager, node)
        manager.process_desired_layers([])
        (layer,) = made(manager)
        shutil.rmtree(layer.path)
        result = manager.process_desired_layers([node.image()])
        assert [one.digest for one in result.installed] == [layer.digest]
        assert [one.directories for one in result.images.restored] == [image.directories]

    def test_it_is_not_removed_while_the_image_is_mounted(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        with manager.mount("app", image.reference, target=target, read_only=True):
            manager.process_desired_layers([])
            assert manager.remove_expired_layers(AT_ONCE) == ()
            assert directories_of(target) == EXPECTED

    def test_an_image_whose_layer_cannot_be_made_fails(self, node: ImageNode) -> None:
        with node.manager(on_step=refusing_to_stage(3)) as manager:
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([node.image()])
            (error,) = caught.value.exceptions
            (failed,) = caught.value.result.images.failed
            assert failed.error is error
            assert "No space left on device" in str(error)
            assert manager.get_images_info() == ()
            assert install(manager, node).directories is not None


def damage_index(node: ImageNode, digest: Digest) -> None:
    index_path(node.config.index_dir, digest).write_bytes(b"?")


def lose_index(node: ImageNode, digest: Digest) -> None:
    index_path(node.config.index_dir, digest).unlink()


def repair(manager: LayerManager, node: ImageNode, *digests: Digest | None) -> list[Digest]:
    """Repair layers by digest; return the layers that were repaired."""
    here = {layer.digest: layer for layer in manager.get_layers_info()}
    sources = Inventory(node.config).sources()
    repairs = [Repair(here[one], sources[one]) for one in digests if one is not None]
    return [layer.digest for layer in manager.repair_layers(repairs)]


def secret_of(manager: LayerManager, target: Path, layers: str | list[str]) -> int:
    """The mode of ``secret`` in a mount of *layers*."""
    with manager.mount("look", layers, target=target, read_only=True):
        return directories_of(target)["secret"][0]


def only_image(manager: LayerManager) -> ImageInfo:
    (image,) = manager.get_images_info()
    return image


def image_of(manager: LayerManager, reference: str) -> ImageInfo:
    return next(one for one in manager.get_images_info() if one.reference == reference)


class TestDirectoriesThatCannotBeTold:
    """An index is missing or damaged when an image is installed."""

    @pytest.fixture(params=[damage_index, lose_index])
    def spoil(self, request: pytest.FixtureRequest) -> Callable[[ImageNode, Digest], None]:
        spoil: Callable[[ImageNode, Digest], None] = request.param
        return spoil

    @pytest.fixture
    def unknown(
        self,
        manager: LayerManager,
        node: ImageNode,
        spoil: Callable[[ImageNode, Digest], None],
    ) -> ImageInfo:
        """The image, installed when the index of its base could not be read."""
        node.publish_images(base=[BASE], app=[BASE, UPPER])
        base = install(manager, node, "base")
        spoil(node, base.layers[0])
        return install(manager, node)

    def test_it_is_known_and_said(
        self,
        manager: LayerManager,
        node: ImageNode,
        unknown: ImageInfo,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert install(manager, node) == unknown  # and said again
        assert unknown.directories is None
        assert not unknown.are_directories_known
        assert unknown.reference in caplog.text
        assert str(unknown.layers[0]) in caplog.text
        assert made(manager) == []

    def test_the_next_apply_after_a_repair_makes_them(
        self, manager: LayerManager, node: ImageNode, target: Path, unknown: ImageInfo
    ) -> None:
        assert secret_of(manager, target, unknown.reference) == 0o755
        repair(manager, node, unknown.layers[0])
        install(manager, node)
        assert secret_of(manager, target, unknown.reference) == 0o700
        assert statuses(node) == {Status.INTACT}

    def test_the_repair_makes_them(
        self, manager: LayerManager, node: ImageNode, target: Path, unknown: ImageInfo
    ) -> None:
        assert repair(manager, node, unknown.layers[0]) == [unknown.layers[0]]
        image = image_of(manager, unknown.reference)
        assert image.are_directories_known
        assert [image.directories] == [layer.digest for layer in made(manager)]
        assert secret_of(manager, target, unknown.reference) == 0o700
        result = manager.process_desired_layers([node.image()])
        assert image.directories in [layer.digest for layer in result.kept]
        assert result.installed == result.restored == ()

    def test_an_apply_makes_them_where_the_index_is_there_again(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        node.publish_images(base=[BASE], app=[BASE, UPPER])
        base = install(manager, node, "base").layers[0]
        path = index_path(node.config.index_dir, base)
        content = path.read_bytes()
        damage_index(node, base)
        image = install(manager, node)
        path.write_bytes(content)
        # A mount decides by itself.
        assert secret_of(manager, target, image.reference) == 0o700
        assert made(manager) == []
        result = manager.process_desired_layers([node.image()])
        assert [layer.layer_id for layer in result.installed] == [LAYER_NAME]
        (kept,) = result.images.kept
        assert kept.directories == result.installed[0].digest
        assert secret_of(manager, target, image.reference) == 0o700

    @pytest.mark.parametrize("spoil", [damage_index], indirect=True)
    def test_a_cached_image_gets_them_when_it_is_desired_again(
        self, manager: LayerManager, node: ImageNode, unknown: ImageInfo
    ) -> None:
        manager.process_desired_layers([])
        repair(manager, node, unknown.layers[0])
        assert not image_of(manager, unknown.reference).are_directories_known
        assert made(manager) == []
        result = manager.process_desired_layers([node.image()])
        (image,) = result.images.restored
        assert image.are_directories_known
        assert image.directories is not None

    @pytest.mark.parametrize("spoil", [lose_index], indirect=True)
    def test_a_cached_image_with_a_layer_without_an_index_is_gone(
        self, manager: LayerManager, node: ImageNode, unknown: ImageInfo
    ) -> None:
        """As a layer whose removal was interrupted, which has no index."""
        manager.process_desired_layers([])
        assert unknown.reference not in {one.reference for one in manager.get_images_info()}
        image = install(manager, node)
        assert image.are_directories_known
        assert image.directories is not None

    def test_images_of_earlier_versions_are_looked_at_once_more(self, node: ImageNode) -> None:
        with node.manager() as manager:
            image = install(manager, node)
            assert image.directories is not None
            shutil.rmtree(made(manager)[0].path)
        with closing(sqlite3.connect(node.config.database)) as connection, connection:
            connection.execute("UPDATE ociImages SET directories = NULL")
            connection.execute("ALTER TABLE ociImages DROP COLUMN directoriesKnown")
            connection.execute("PRAGMA user_version = 12")
        assert not Inventory(node.config).images()[0].are_directories_known
        with node.manager() as manager:
            assert install(manager, node).directories == image.directories


class TestIndexesThatChange:
    """The index of a lower layer becomes another one after the image was installed."""

    def test_an_adoption_makes_another_layer(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        before = install(manager, node)
        change_base(node, before)
        lose_index(node, before.layers[0])
        manager.adopt_layers(manager.get_layers_info())
        after = only_image(manager)
        assert after.directories not in (None, before.directories)
        assert after.are_directories_known
        assert secret_of(manager, target, after.reference) == 0o750
        assert {layer.digest: layer.cached for layer in made(manager)} == {
            before.directories: True,
            after.directories: False,
        }
        assert statuses(node) == {Status.INTACT}

    @pytest.mark.parametrize("first", ["layer", "directories", "both"])
    def test_a_repair_of_a_lower_layer_and_of_the_directories(
        self, manager: LayerManager, node: ImageNode, target: Path, first: str
    ) -> None:
        image = outdated(manager, node)
        base, old = image.layers[0], image.directories
        damage(manager, old)
        damage_index(node, base)
        match first:
            case "layer":
                assert repair(manager, node, base) == [base]
            case "directories":
                with pytest.raises(LayersFailedError, match="could not be installed") as caught:
                    repair(manager, node, old)
                assert "repair that layer" in str(caught.value.exceptions[0])
                assert only_image(manager).directories == old
                assert not only_image(manager).are_directories_known
                assert repair(manager, node, base) == [base]
            case _:
                assert set(repair(manager, node, base, old)) == {base, old}
        after = only_image(manager)
        assert after.are_directories_known
        assert after.directories not in (None, old)
        assert secret_of(manager, target, after.reference) == 0o700

    def test_a_damaged_one_that_is_not_right_any_more_is_replaced(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = outdated(manager, node)
        old = image.directories
        change_base_and_index(node, image)
        damage(manager, old)
        assert repair(manager, node, old) == [old]
        after = only_image(manager)
        assert after.directories not in (None, old)
        assert [layer.digest for layer in made(manager)] == [after.directories]
        assert secret_of(manager, target, after.reference) == 0o700
        assert statuses(node) == {Status.INTACT}

    def test_the_index_of_a_lower_layer_was_made_again(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        change_base_and_index(node, image, mode=0o750)
        damage(manager, image.directories)
        repair(manager, node, image.directories)
        assert secret_of(manager, target, image.reference) == 0o750
        assert statuses(node) == {Status.INTACT}

    def test_a_damaged_one_that_is_mounted_stays_until_it_is_not(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = outdated(manager, node)
        change_base_and_index(node, image)
        damage(manager, image.directories)
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert repair(manager, node, image.directories) == [image.directories]
            assert [one.cached for one in made(manager) if one.digest == image.directories] == [
                True
            ]
        wait_until_unused(manager)
        manager.remove_expired_layers(AT_ONCE)
        assert [layer.digest for layer in made(manager)] == [only_image(manager).directories]

    def test_one_that_is_needed_no_more_is_removed(
        self, manager: LayerManager, node: ImageNode
    ) -> None:
        node.publish_images(
            app=[
                LayerBuilder().directory("secret", mode=0o700).file("name").tar(),
                LayerBuilder().file("secret/new").tar(),
            ]
        )
        image = install(manager, node)
        change_base_and_index(node, image, mode=0o755)
        damage(manager, image.directories)
        assert repair(manager, node, image.directories) == [image.directories]
        assert only_image(manager).directories is None
        assert only_image(manager).are_directories_known
        assert made(manager) == []

    def test_an_apply_takes_the_layer_that_is_change_base_and_index(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = outdated(manager, node)
        change_base_and_index(node, image)
        with closing(sqlite3.connect(node.config.database)) as connection, connection:
            connection.execute("UPDATE ociImages SET directoriesKnown = 0")
        # Until then a mount leaves out the layer that is not right.
        assert secret_of(manager, target, image.reference) == 0o700
        result = manager.process_desired_layers([node.image()])
        (kept,) = result.images.kept
        assert [layer.digest for layer in result.installed] == [kept.directories]
        assert [layer.digest for layer in result.cached] == [image.directories]
        assert image.directories not in [layer.digest for layer in result.kept]
        assert secret_of(manager, target, image.reference) == 0o700

    def test_one_with_the_content_of_a_layer_of_the_image(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        base = LayerBuilder().directory("secret", mode=0o700).tar()
        node.publish_images(app=[base, LayerBuilder().file("secret/new").tar()])
        image = install(manager, node)
        assert image.directories == image.layers[0]
        damage_index(node, image.layers[1])
        assert repair(manager, node, *image.layers) == [*image.layers]
        assert only_image(manager) == image
        assert not any(layer.cached for layer in manager.get_layers_info())
        with closing(sqlite3.connect(node.config.database)) as connection, connection:
            connection.execute("UPDATE ociImages SET directoriesKnown = 0")
        assert secret_of(manager, target, image.reference) == 0o700

    def test_what_was_known_stays_where_it_cannot_be_told_now(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        image = install(manager, node)
        damage_index(node, image.layers[0])
        damage_index(node, image.layers[1])
        repair(manager, node, image.layers[1])
        after = only_image(manager)
        assert not after.are_directories_known
        assert after.directories == image.directories
        assert secret_of(manager, target, image.reference) == 0o700
        install(manager, node)
        assert only_image(manager) == after
        repair(manager, node, image.layers[0])
        assert only_image(manager) == image

    def test_an_operation_that_fails_is_made_up_for(self, node: ImageNode, target: Path) -> None:
        with node.manager() as manager:
            image = outdated(manager, node)
            damage_index(node, image.layers[0])
        with node.manager(on_step=refusing_to_stage(2)) as manager:
            with pytest.raises(LayersFailedError) as caught:
                repair(manager, node, image.layers[0])
            assert [one.digest for one in caught.value.result.installed] == [image.layers[0]]
            (failed,) = caught.value.result.images.failed
            assert failed.desired.reference == image.reference
            assert not only_image(manager).are_directories_known
            assert secret_of(manager, target, image.reference) == 0o700
            install(manager, node)
            assert only_image(manager).are_directories_known
            assert secret_of(manager, target, image.reference) == 0o700


def change_base(node: ImageNode, image: ImageInfo, mode: int = 0o750) -> None:
    """Give ``secret`` of the base of *image* another mode."""
    (node.config.layers_dir / "sha256" / image.layers[0].encoded / "secret").chmod(mode)


def outdated(manager: LayerManager, node: ImageNode) -> ImageInfo:
    """Install an image whose base is as its archive does not have it, and its index with it."""
    image = install(manager, node)
    change_base_and_index(node, image, mode=0o750)
    with closing(sqlite3.connect(node.config.database)) as connection, connection:
        connection.execute("UPDATE ociImages SET directoriesKnown = 0")
    image = install(manager, node)
    manager.remove_expired_layers(AT_ONCE)
    assert [layer.digest for layer in made(manager)] == [image.directories]
    return image


def change_base_and_index(node: ImageNode, image: ImageInfo, *, mode: int = 0o700) -> None:
    """Change the base of *image* and its index, and nothing that the image refers to.

    That is what an earlier version left behind.
    """
    base = image.layers[0]
    change_base(node, image, mode)
    lose_index(node, base)
    store = Store(node.config.working_dir, node.config.layers_dir, node.config.index_dir)
    with store.adoption(base) as (root, index):
        write_index(root, index, Cancellation(), lambda _: None)


def damage(manager: LayerManager, digest: Digest | None) -> None:
    """Damage a layer of directories."""
    (layer,) = [layer for layer in made(manager) if layer.digest == digest]
    (layer.path / "added").touch()


class TestTheMostLayers:
    """overlayfs takes 500 layers."""

    @pytest.mark.parametrize(("number", "mode"), [(499, 0o700), (500, 0o755)])
    def test_an_image(
        self,
        manager: LayerManager,
        node: ImageNode,
        target: Path,
        caplog: pytest.LogCaptureFixture,
        number: int,
        mode: int,
    ) -> None:
        between = [LayerBuilder().file(f"f{one}").tar() for one in range(number - 2)]
        node.publish_images(app=[BASE, *between, UPPER], one=[PLAIN])
        image = install(manager, node)
        assert (image.directories is None) == (number == 500)
        assert image.are_directories_known
        assert self.warnings(caplog) == ([f"image {image.reference}: {NO_ROOM}"][: number - 499])
        for layers in (image.reference, upwards(image)):
            assert secret_of(manager, target, layers) == mode
            assert self.warnings(caplog) == [NO_ROOM][: number - 499]
        if number == 500:
            desired = [node.image("one"), node.image()]
            manager.process_desired_layers(desired)
            with pytest.raises(MountError, match="cannot mount"):
                manager.mount("look", [one.reference for one in desired], target=target)

    def warnings(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return what was said of missing room since this was asked last."""
        said = [one for one in caplog.messages if NO_ROOM in one]
        caplog.clear()
        return said

    @pytest.mark.slow
    def test_layers_below_an_opaque_root_do_not_count(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        between = [LayerBuilder().file(f"f{one}").tar() for one in range(497)]
        opaque = LayerBuilder().opaque(".").directory("secret", mode=0o700).tar()
        node.publish_images(app=[BASE, *between, opaque, UPPER])
        image = install(manager, node)
        assert image.directories is not None
        assert secret_of(manager, target, image.reference) == 0o700

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "names"), [(499, []), (500, ["gone"])])
    def test_whiteouts_of_an_opaque_root(
        self,
        manager: LayerManager,
        node: ImageNode,
        target: Path,
        caplog: pytest.LogCaptureFixture,
        number: int,
        names: list[str],
    ) -> None:
        opaque = LayerBuilder().opaque(".").directory(".").directory("d").whiteout("d/gone").tar()
        between = [LayerBuilder().directory(".").file(f"f{one}").tar() for one in range(number - 1)]
        node.publish_images(app=[opaque, *between])
        image = install(manager, node)
        with manager.mount("app", image.reference, target=target, read_only=True):
            assert [one.name for one in (target / "d").iterdir()] == names
            assert not (target / "d/gone").exists()
        assert (NO_ROOM in caplog.text) == (number == 500)

    @pytest.mark.slow
    def test_images_with_layers_of_directories_that_have_no_room_together(
        self, manager: LayerManager, node: ImageNode, target: Path
    ) -> None:
        between = [LayerBuilder().file(f"f{one}").tar() for one in range(495)]
        top = [
            LayerBuilder().directory("x", mode=0o711).file("x/x").tar(),
            LayerBuilder().file("x/y").tar(),
        ]
        node.publish_images(app=[BASE, *between, UPPER], top=top)
        desired = [node.image("top"), node.image("app")]
        manager.process_desired_layers(desired)
        assert all(image.directories for image in manager.get_images_info())
        layers = [one.reference for one in desired]
        with manager.mount("both", layers, target=target, read_only=True):
            found = directories_of(target)
        assert found == {**EXPECTED, "x": (0o711, (0, 0), 0)}


MOUNTER = """
    import os, signal, sys
    from pathlib import Path
    from layermanager import Config, LayerManager
    from layermanager.steps import Step

    def on_step(step):
        if step == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)

    with LayerManager(Config(Path(sys.argv[1])), on_step=on_step) as manager:
        manager.mount("app", sys.argv[4:], target=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", [Step.MAKE_MOUNT_DIRECTORY, Step.MOUNT])
def test_a_mount_that_is_killed_leaves_nothing(
    manager: LayerManager, node: ImageNode, target: Path, step: Step
) -> None:
    image = install(manager, node)
    arguments = [str(node.config.working_dir), str(target), step, *upwards(image)]
    mounter = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MOUNTER), *arguments], check=False
    )
    assert mounter.returncode == -signal.SIGKILL
    manager.remove_expired_layers()
    assert of_leases(node) == []
    assert manager.leases() == ()


# Random stacks: what is mounted is what one tree would be, to which one layer after another was
# applied


NAMES = ["a", "b", "c"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
METADATA = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([0o700, 0o755, 0o1777, 0o2750]),
        "uid": st.sampled_from([0, 1000]),
        "mtime_ns": st.sampled_from([0, SECOND, 5 * SECOND + 7]),
    },
    optional={"xattrs": st.sampled_from([{"user.a": b"1"}, {"user.b": b"2"}])},
)
ENTRIES: st.SearchStrategy[tuple[str, str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("directory"), PATHS | st.just("."), METADATA),
    st.tuples(st.just("file"), PATHS, st.just({})),
    st.tuples(st.just("whiteout"), PATHS, st.just({})),
    st.tuples(st.just("opaque"), PATHS, st.just({})),
)


class RandomLayer:
    """A layer that makes sense: at each path is one thing, and files have nothing in them."""

    def __init__(self, entries: list[tuple[str, str, dict[str, Any]]]) -> None:
        self.directories: dict[str, dict[str, Any]] = {}
        self.files: set[str] = set()
        self.hidden: set[str] = set()
        self.opaque: set[str] = set()
        self._builder = LayerBuilder()
        for kind, path, metadata in entries:
            if self._makes_sense(kind, path):
                self._add(kind, path, metadata)

    def tar(self) -> bytes:
        return self._builder.tar()

    @property
    def implied(self) -> set[str]:
        """The directories that it has without listing them, parents of markers among them."""
        inside = [*self.directories, *self.files, *self.hidden, *(f"{one}/" for one in self.opaque)]
        return {parent for path in inside for parent in parents(path)} - {*self.directories}

    def _makes_sense(self, kind: str, path: str) -> bool:
        needed = {*parents(path), path} if kind in ("directory", "opaque") else {*parents(path)}
        if needed & self.files:
            return False
        taken = self.directories.keys() | self.implied | self.hidden
        if kind == "file" and path in taken:
            return False
        if kind in ("file", "directory"):
            return True
        # A directory that is hidden and holds nothing but markers is none.
        others = self.hidden | self.opaque
        return not any(
            one == path or one in parents(path) or path in parents(one) for one in others
        )

    def _add(self, kind: str, path: str, metadata: dict[str, Any]) -> None:
        match kind:
            case "directory":
                before = self.directories.get(path, {})
                xattrs = {**before.get("xattrs", {}), **metadata.get("xattrs", {})}
                self.directories[path] = {**metadata, "xattrs": xattrs}
                self._builder.directory(path, **metadata)
            case "file":
                self.files.add(path)
                self._builder.file(path)
            case "whiteout":
                self.hidden.add(path)
                self._builder.whiteout(path)
            case "opaque":
                self.opaque.add(path)
                self._builder.opaque(path)


def parents(path: str) -> Iterator[str]:
    while path != ".":
        path = path.rpartition("/")[0] or "."
        yield path


class OneTree:
    """The directories of a tree to which layers are applied one after another, as umoci does."""

    NEW: Mapping[str, Any] = {"mode": 0o755, "uid": 0, "mtime_ns": 0, "xattrs": {}}

    def __init__(self) -> None:
        self.directories: dict[str, Mapping[str, Any]] = {".": self.NEW}

    def apply(self, layer: RandomLayer) -> None:
        for path in {*layer.hidden, *layer.files}:
            self._remove(lambda one, path=path: one == path or one.startswith(f"{path}/"))  # type: ignore[misc]
        for path in layer.opaque:
            self._remove(lambda one, path=path: one.startswith(f"{path}/"))  # type: ignore[misc]
        for path in layer.implied:
            self.directories.setdefault(path, self.NEW)
        for path, metadata in layer.directories.items():
            self.directories[path] = {**self.NEW, **metadata}

    def _remove(self, is_gone: Callable[[str], bool]) -> None:
        for path in [one for one in self.directories if is_gone(one)]:
            del self.directories[path]


STACKS = st.lists(st.lists(ENTRIES, min_size=1, max_size=8), min_size=2, max_size=4)


@settings(
    max_examples=6,
    # Each example installs and mounts: to make one smaller takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(stacks=st.lists(STACKS, min_size=6, max_size=6))
def test_random_stacks_show_what_one_tree_would(
    manager: LayerManager,
    node: ImageNode,
    target: Path,
    stacks: list[list[list[tuple[str, str, dict[str, Any]]]]],
) -> None:
    images = {
        f"app{number}": [RandomLayer(entries) for entries in stack]
        for number, stack in enumerate(stacks)
    }
    node.publish_images(
        **{name: [layer.tar() for layer in layers] for name, layers in images.items()}
    )
    manager.process_desired_layers([node.image(name) for name in images])
    here = {one.reference: one for one in manager.get_images_info() if not one.cached}
    for name, layers in images.items():
        tree = OneTree()
        for layer in layers:
            tree.apply(layer)
        image = here[node.image(name).reference]
        for names in (image.reference, upwards(image)):
            with manager.lease(names, owner="test") as held:
                lower = [*held.lower, target] if len(held.lower) == 1 else held.lower
                with overlay(lower, target):
                    assert shown(target) == tree.directories
                    assert not unopenable(target)
    assert statuses(node) == {Status.INTACT}


def shown(root: Path) -> dict[str, Mapping[str, Any]]:
    """The directories below *root*, as ``OneTree`` has them."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in (root, *(one for one in root.rglob("*") if one.is_dir() and not one.is_symlink())):
        state = path.lstat()
        found[str(path.relative_to(root))] = {
            "mode": stat.S_IMODE(state.st_mode),
            "uid": state.st_uid,
            "mtime_ns": state.st_mtime_ns,
            "xattrs": {name: os.getxattr(path, name) for name in os.listxattr(path)},
        }
    return found
