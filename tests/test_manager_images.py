"""Images, from the desired state to the disk: resolved, shared, cached, restored, evicted."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from layermanager import (
    DesiredImage,
    DesiredLayer,
    ImageChanges,
    ImageInfo,
    IntegrityError,
    InvalidReferenceError,
    Inventory,
    LayersFailedError,
    ManifestError,
    Repair,
    SourceError,
)
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.images import default_image_sources
from layermanager.storage import SqliteLayerStorage
from layermanager.testing.clock import FakeClock
from layermanager.testing.images import (
    build_image,
    docker_archive_files,
    layout_files,
    write_files,
    write_tar,
)
from layermanager.testing.layers import compress, digest_of
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import MIB, Node, descendants, layer_tar, name_on_disk

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from layermanager import ByteStream, Cancellation, LayerManager
    from layermanager.oci.manifest import Descriptor, ImageIndex
    from layermanager.oci.reference import Reference
    from layermanager.testing.images import BuiltImage

START = datetime(2026, 11, 24, tzinfo=UTC)


def blob(name: str, size: int = 0) -> bytes:
    return compress(layer_tar(name, size), "gzip")


def image_of(*names: str, **changes: Any) -> BuiltImage:
    """An image with a layer of each name, for this machine."""
    return build_image([blob(name) for name in names], config={"os": None}, **changes)


class ImageNode(Node):
    """A node with images in a layout beside the published packages."""

    def __init__(self, base: Path, **settings: Any) -> None:
        super().__init__(base, **settings)
        self.layout = base / "images"

    def publish_images(self, images: Mapping[str, BuiltImage]) -> None:
        """Make the layout hold just these."""
        shutil.rmtree(self.layout, ignore_errors=True)
        write_files(self.layout, layout_files(images))

    def image(self, name: str) -> DesiredImage:
        """The image of that name in the layout."""
        return DesiredImage(f"oci:{self.layout}:{name}")


class WatchedSource:
    """The layouts, and how many processes we have below us whenever something is asked for."""

    def __init__(self) -> None:
        self._source = default_image_sources(Network(), SystemClock())["oci"]
        self.processes: dict[str, int] = {}

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        self.processes["image"] = len(descendants())
        return self._source.find_image(reference, cancellation)

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        return self._source.read_document(reference, descriptor, cancellation)

    def open(self, url: str, cancellation: Cancellation, **arguments: Any) -> ByteStream:
        self.processes["layer"] = len(descendants())
        return self._source.open(url, cancellation, **arguments)

    def close(self) -> None:
        self._source.close()


@pytest.fixture
def node(tmp_path: Path) -> ImageNode:
    return ImageNode(tmp_path)


def keys(images: tuple[ImageInfo, ...]) -> list[str]:
    return [image.reference.rpartition(":")[2] for image in images]


def digests(*names: str) -> tuple[str, ...]:
    return tuple(digest_of(blob(name)) for name in names)


def failed(caught: pytest.ExceptionInfo[LayersFailedError]) -> ImageChanges:
    return caught.value.result.images


def test_a_layer_of_an_image_has_the_name_that_the_list_gives_it(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    lower = node.publish("lower")

    def names(manager: LayerManager) -> dict[str, str]:
        return {layer.digest: layer.layer_id for layer in manager.get_layers_info()}

    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
        assert names(manager)[lower.digest] == ""
        manager.process_desired_layers([lower, node.image("1")])
        assert names(manager)[lower.digest] == "lower"
        manager.process_desired_layers([node.image("1")])
        assert names(manager)[lower.digest] == "lower"


def test_a_repair_keeps_the_name_of_a_layer(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower")})
    lower = node.publish("lower")
    with node.manager() as manager:
        manager.process_desired_layers([lower])
        manager.process_desired_layers([node.image("1")])
        layer = manager.get_layer_info_by_digest(lower.digest)
        source = Inventory(node.config).sources()[lower.digest]
        assert (layer.layer_id, source.layer_id) == ("lower", "")
        manager.repair_layers([Repair(layer, source)])
        assert manager.get_layer_info_by_digest(lower.digest).layer_id == "lower"


def test_an_image_is_installed_with_all_its_layers(node: ImageNode) -> None:
    image = image_of("lower", "upper")
    node.publish_images({"1": image})
    clock = FakeClock(START)
    with node.manager(clock=clock) as manager:
        result = manager.process_desired_layers([node.image("1")])
        (installed,) = manager.get_images_info()
    assert installed == ImageInfo(
        reference=f"oci:{node.layout}:1",
        digest=image.digest,
        platform=installed.platform,
        layers=tuple(map(digest_of, image.layers)),
        diff_ids=(digest_of(layer_tar("lower")), digest_of(layer_tar("upper"))),
        config_digest=digest_of(image.config),
        config=image.config,
        timestamp=clock.now(),
        cached=False,
    )
    assert installed.platform.startswith("linux/")
    assert result.images == ImageChanges(installed=(installed,))
    assert [name_on_disk(layer) for layer in result.installed] == ["lower", "upper"]
    node.assert_has(digests("lower", "upper"))


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_an_image_comes_from_an_archive_as_well(node: ImageNode, transport: str) -> None:
    files = {"oci-archive": layout_files, "docker-archive": docker_archive_files}[transport]
    archive = write_tar(node.published / "app.tar", files({"app:1": image_of("lower", "upper")}))
    with node.manager() as manager:
        manager.process_desired_layers([DesiredImage(f"{transport}:{archive}:app:1")])
    node.assert_has(digests("lower", "upper"))


def test_what_is_here_is_kept(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
        (installed,) = manager.get_images_info()
        result = manager.process_desired_layers([node.image("1")])
    assert result.images == ImageChanges(kept=(installed,))
    assert (len(result.kept), result.installed) == (2, ())


def test_layers_are_shared_with_other_images_and_with_the_list(node: ImageNode) -> None:
    node.publish_images({"1": image_of("base", "one"), "2": image_of("base", "two")})
    plain = node.publish("two")
    with node.manager() as manager:
        result = manager.process_desired_layers([node.image("1"), node.image("2"), plain])
        assert len(result.installed) == 3
        # each goes on wanting its own
        result = manager.process_desired_layers([node.image("2")])
        assert [layer.digest for layer in result.cached] == [*digests("one")]
        assert (keys(result.images.kept), keys(result.images.cached)) == (["2"], ["1"])
        result = manager.process_desired_layers([plain])
        assert [layer.digest for layer in result.cached] == [*digests("base")]
        assert [layer.digest for layer in result.kept] == [*digests("two")]


def test_a_cached_image_is_restored_with_its_layers(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    clock = FakeClock(START)
    with node.manager(clock=clock) as manager:
        manager.process_desired_layers([node.image("1")])
        clock.advance(timedelta(hours=1))
        (cached,) = manager.process_desired_layers([]).images.cached
        assert (cached.cached, cached.timestamp) == (True, clock.now())
        clock.advance(timedelta(hours=1))
        result = manager.process_desired_layers([node.image("1")])
        (restored,) = result.images.restored
        assert (restored.cached, restored.timestamp) == (False, clock.now())
        assert (len(result.restored), result.installed) == (2, ())


def test_an_image_by_digest_is_had_without_asking_again(node: ImageNode) -> None:
    image = image_of("lower", "upper")
    node.publish_images({"1": image, "2": image_of("other")})
    by_digest = DesiredImage(f"oci:{node.layout}@{image.digest}")
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
        manager.process_desired_layers([node.image("2")])
        shutil.rmtree(node.layout)
        result = manager.process_desired_layers([by_digest])
        assert [layer.digest for layer in result.restored] == [*digests("lower", "upper")]
        (installed,) = result.images.installed
        assert installed.reference == by_digest.reference
        assert manager.process_desired_layers([by_digest]).images.kept == (installed,)


def test_an_image_that_cannot_be_asked_for_stays_as_it_is(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper"), "2": image_of("other")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
        manager.process_desired_layers([node.image("2")])
        node.layout.rename(node.layout.with_name("away"))
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers([node.image("1"), node.image("3")])
    assert keys(failed(caught).restored) == ["1"]
    assert keys(failed(caught).cached) == ["2"]
    assert [one.desired for one in failed(caught).failed] == [node.image("1"), node.image("3")]
    assert all(isinstance(error, SourceError) for error in caught.value.exceptions)
    assert {row.digest for row in node.rows() if not row.cached} == {*digests("lower", "upper")}


def test_a_tag_that_moved_means_another_image(node: ImageNode) -> None:
    node.publish_images({"1": image_of("base", "old")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
        old = manager.get_images_info()[0]
        node.publish_images({"1": image_of("base", "new")})
        result = manager.process_desired_layers([node.image("1")])
        assert [image.digest for image in result.images.cached] == [old.digest]
        assert keys(result.images.installed) == ["1"]
        assert [layer.digest for layer in result.cached] == [*digests("old")]
        # and back, by digest, with nothing but what is here
        shutil.rmtree(node.layout)
        back = DesiredImage(f"oci:{node.layout}@{old.digest}")
        result = manager.process_desired_layers([back])
        assert [layer.digest for layer in result.restored] == [*digests("old")]


def test_an_image_goes_with_any_of_its_layers(node: ImageNode) -> None:
    node.publish_images({"1": image_of("base", "one"), "2": image_of("base", "two")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1"), node.image("2")])
        manager.process_desired_layers([node.image("2")])
        removed = manager.remove_cached_layers(MIB)
        assert [layer.digest for layer in removed] == [*digests("one")]
        assert keys(tuple(manager.get_images_info())) == ["2"]
        result = manager.process_desired_layers([node.image("1"), node.image("2")])
        assert keys(result.images.installed) == ["1"]
        assert [layer.digest for layer in result.installed] == [*digests("one")]


def test_an_image_expires_with_its_layers_or_without_them(node: ImageNode) -> None:
    node.publish_images({"1": image_of("base", "one"), "2": image_of("base")})
    clock = FakeClock(START)
    with node.manager(clock=clock) as manager:
        manager.process_desired_layers([node.image("1"), node.image("2")])
        manager.process_desired_layers([node.publish("base")])
        clock.advance(timedelta(days=1))
        removed = manager.remove_expired_layers(timedelta(days=1))
        assert [layer.digest for layer in removed] == [*digests("one")]
        assert manager.get_images_info() == ()


def test_a_layer_whose_directory_was_lost_is_installed_again(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    with node.manager() as manager:
        result = manager.process_desired_layers([node.image("1")])
        shutil.rmtree(result.installed[0].path)
        result = manager.process_desired_layers([node.image("1")])
        assert keys(result.images.installed) == ["1"]
        assert [layer.digest for layer in result.installed] == [*digests("lower")]
    node.assert_has(digests("lower", "upper"))


class EvictingStorage(MemoryLayerStorage):
    """A storage of a process in which a neighbour evicts a layer just before it is restored."""

    def __init__(self, clock: FakeClock, evicted: str) -> None:
        super().__init__(clock)
        self.evicted = evicted
        self.manager: LayerManager | None = None

    def set_layer_cached(self, digest: Any, cached: bool) -> None:
        if self.manager is not None and not cached and digest == self.evicted:
            self.delete_layer_by_digest(digest)
        super().set_layer_cached(digest, cached)


def test_an_image_that_lost_a_layer_on_the_way_is_complete_again(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    clock = FakeClock(START)
    storage = EvictingStorage(clock, *digests("upper"))
    with node.manager(layer_storage=storage, clock=clock) as manager:
        manager.process_desired_layers([node.image("1")])
        manager.process_desired_layers([])
        storage.manager = manager
        result = manager.process_desired_layers([node.image("1")])
        assert [layer.digest for layer in result.restored] == [*digests("lower")]
        assert [layer.digest for layer in result.installed] == [*digests("upper")]
        assert (keys(result.images.installed), result.images.restored) == (["1"], ())
        assert keys(tuple(manager.get_images_info())) == ["1"]


def test_a_layer_that_fails_fails_its_images_only(node: ImageNode) -> None:
    broken = image_of("base", "broken")
    node.publish_images({"1": broken, "2": image_of("base"), "3": image_of("broken", "three")})
    (node.layout / f"blobs/sha256/{digest_of(broken.layers[1]).encoded}").write_bytes(b"x" * 10)
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([node.image(name) for name in "123"])
    assert keys(failed(caught).installed) == ["2"]
    assert [one.desired.reference[-1] for one in failed(caught).failed] == ["1", "3"]
    (error,) = caught.value.exceptions  # told once
    assert {id(one.error) for one in failed(caught).failed} == {id(error)}
    node.assert_has(digests("base", "three"))


def test_what_the_diff_id_contradicts_is_not_installed(node: ImageNode) -> None:
    lying = image_of("lower", "upper")
    config = json.loads(lying.config)
    config["rootfs"]["diff_ids"][1] = digest_of(b"something else")
    node.publish_images({"1": build_image(lying.layers, config=config)})
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([node.image("1")])
    (error,) = caught.value.exceptions
    assert isinstance(error, IntegrityError)
    assert (error.subject, error.digest) == ("diff ID", digest_of(blob("upper")))
    assert error.found == digest_of(layer_tar("upper"))
    node.assert_has(digests("lower"))


@pytest.mark.parametrize("order", ["12", "21"])
def test_of_two_images_that_contradict_each_other_the_liar_is_not_there(
    node: ImageNode, order: str
) -> None:
    true = image_of("base")
    lie = {"rootfs": {"diff_ids": [digest_of(b"something else")]}, "os": None}
    node.publish_images({"1": true, "2": build_image(true.layers, config=lie)})
    with node.manager() as manager:
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers([node.image(name) for name in order])
        if order == "12":
            assert keys(failed(caught).installed) == ["1"]
        assert "2" in [one.desired.reference[-1] for one in failed(caught).failed]
        assert all(isinstance(error, IntegrityError) for error in caught.value.exceptions)
        manager.process_desired_layers([node.image("1")])
        with pytest.raises(LayersFailedError, match="some desired layers") as caught:
            manager.process_desired_layers([node.image("1"), node.image("2")])
        assert keys(failed(caught).kept) == ["1"]


def test_a_package_of_the_list_is_compared_with_the_image_as_well(node: ImageNode) -> None:
    lie = {"rootfs": {"diff_ids": [digest_of(b"something else")]}, "os": None}
    node.publish_images({"1": build_image([blob("base")], config=lie)})
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([node.publish("base"), node.image("1")])
    (error,) = caught.value.exceptions
    assert isinstance(error, IntegrityError)
    assert error.subject == "diff ID"


def test_an_image_for_other_machines_is_refused(node: ImageNode) -> None:
    node.publish_images({"1": build_image([blob("base")], platform="linux/other")})
    with node.manager() as manager:
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers([node.image("1")])
        assert isinstance(caught.value.exceptions[0], ManifestError)
        result = manager.process_desired_layers([replace(node.image("1"), platform="linux/other")])
        assert [image.platform for image in result.images.installed] == ["linux/other"]


@pytest.mark.parametrize(
    "image",
    [
        DesiredImage("No/Name"),
        DesiredImage("oci:relative/path:1"),
        DesiredImage("oci:/absolute:1", platform="linux"),
    ],
)
def test_what_names_no_image_is_refused_before_anything_is_done(
    node: ImageNode, image: DesiredImage
) -> None:
    here = node.publish("here")
    with node.manager() as manager:
        manager.process_desired_layers([here])
        with pytest.raises(InvalidReferenceError):
            manager.process_desired_layers([node.publish("other"), image])
    node.assert_has([here])
    assert not node.rows()[0].cached


def test_a_transport_without_a_source_is_named(node: ImageNode) -> None:
    node.publish_images({"1": image_of("base")})
    with node.manager(sources={}) as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([node.image("1")])
    assert "there is no source for images of this kind" in str(caught.value.exceptions[0])


class PlainStorage:
    """A storage that knows layers only, as one of the seed would."""

    def __init__(self, storage: MemoryLayerStorage) -> None:
        self.add_layer = storage.add_layer
        self.delete_layer_by_digest = storage.delete_layer_by_digest
        self.get_layers_info = storage.get_layers_info
        self.get_layer_info_by_digest = storage.get_layer_info_by_digest
        self.set_layer_cached = storage.set_layer_cached


def test_a_storage_that_remembers_no_images_keeps_their_layers(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    storage = PlainStorage(MemoryLayerStorage(FakeClock(START)))
    with node.manager(layer_storage=storage) as manager:
        for installed in (2, 0):
            result = manager.process_desired_layers([node.image("1")])
            assert len(result.installed) == installed
            assert keys(result.images.installed) == ["1"]
        assert manager.get_images_info() == ()
        assert len(manager.process_desired_layers([]).cached) == 2


def test_a_layer_of_an_image_is_repaired_from_where_it_came(node: ImageNode) -> None:
    node.publish_images({"1": image_of("lower", "upper")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
    with SqliteLayerStorage(node.config.database, FakeClock(START)) as storage:
        sources = storage.get_sources()
    assert sources[digest_of(blob("lower"))].url == (
        f"oci:{node.layout}@{digest_of(blob('lower'))}"
    )
    assert sources[digest_of(blob("lower"))].diff_id == digest_of(layer_tar("lower"))


def test_the_digest_of_a_large_layer_is_that_of_its_bytes(node: ImageNode) -> None:
    large = compress(layer_tar("large", 3 * MIB), "zstd")
    node.publish_images({"1": build_image([large], config={"os": None})})
    with node.manager() as manager:
        (layer,) = manager.process_desired_layers([node.image("1")]).installed
    assert hashlib.sha256((layer.path / "data").read_bytes()).digest() == (
        hashlib.sha256(hashlib.shake_256(b"large").digest(3 * MIB)).digest()
    )


def test_the_unpacker_loads_while_an_image_is_looked_up(node: ImageNode) -> None:
    node.publish_images({"1": image_of("only")})
    source = WatchedSource()
    with node.manager(sources={"oci": source}) as manager:
        manager.process_desired_layers([node.image("1")])
    # The server alone: no worker waits for a layer that may take any time to arrive.
    assert source.processes == {"image": 1, "layer": 1}


def test_the_unpacker_loads_while_a_layer_is_asked_for(node: ImageNode) -> None:
    node.publish_images({"1": image_of("only")})
    source = WatchedSource()
    layer = DesiredLayer(digest_of(blob("only")), f"oci:{node.layout}@{digest_of(blob('only'))}")
    with node.manager(sources={"oci": source}) as manager:
        manager.process_desired_layers([layer])
    assert source.processes == {"layer": 1}


def test_the_unpacker_is_left_alone_where_an_image_is_known(node: ImageNode) -> None:
    node.publish_images({"1": image_of("only")})
    with node.manager() as manager:
        manager.process_desired_layers([node.image("1")])
    source = WatchedSource()
    with node.manager(sources={"oci": source}) as manager:
        manager.process_desired_layers([node.image("1")])
    assert source.processes == {"image": 0}
