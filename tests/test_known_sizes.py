"""What is known of a layer's unpacked size before it is unpacked."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from layermanager.amounts import Amount, annotated
from layermanager.errors import LayersFailedError, NotEnoughSpaceError
from layermanager.model import DesiredImage
from layermanager.oci.manifest import ImageConfig
from layermanager.oci.platform import Platform
from layermanager.pack import Compression, pack_image, pack_layer
from layermanager.space import DiskUsage, Partitions
from layermanager.testing.layers import LayerBuilder, compress, desired
from layermanager.testing.observer import RecordingObserver
from manager_fixtures import MIB, Node

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager import LayerManager

CONTENT = 6 * MIB
"""Of zeros, which compress to next to nothing."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "file").write_bytes(bytes(CONTENT))
    (directory / "sub" / "hard").hardlink_to(directory / "sub" / "file")
    (directory / "link").symlink_to("sub")
    return directory


EXPECTED = Amount(CONTENT, 3)


def small_disk(_: Path) -> DiskUsage:
    return DiskUsage(device=1, total=1 << 30, free=4 * MIB)


def limited(node: Node, limit: int, **arguments: Any) -> LayerManager:
    """A manager whose layers may take so many bytes, of any disk."""
    node.config = replace(node.config, layers_part_limit=100)
    partitions = Partitions(lambda _: DiskUsage(device=1, total=limit, free=1 << 40))
    return node.manager(new_space_allocator=partitions.new_allocator, **arguments)


def refusal(node: Node, *desired: object) -> NotEnoughSpaceError:
    with node.manager(new_space_allocator=Partitions(small_disk).new_allocator) as manager:
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers(desired)  # type: ignore[arg-type]
        assert manager.get_layers_info() == ()
    error = caught.value.exceptions[0]
    assert isinstance(error, NotEnoughSpaceError)
    return error


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.NONE])
def test_a_package_says_what_it_unpacks_to(
    tmp_path: Path, source: Path, compression: Compression
) -> None:
    output = tmp_path / "layer.tar"
    layer = pack_layer(source, output, layer_id="l", version="1", compression=compression)

    with tarfile.open(fileobj=io.BytesIO(output.read_bytes())) as package:
        file = package.extractfile("layer.json")
        assert file is not None
        descriptor = json.load(file)
    assert annotated(descriptor["annotations"]) == layer.unpacked == EXPECTED


def test_a_package_is_refused_by_what_it_says(tmp_path: Path, source: Path) -> None:
    """A few KiB arrive; nothing is known of it before."""
    layer = pack_layer(source, tmp_path / "layer.tar", layer_id="l", version="1")
    node = Node(tmp_path)
    (node.published / "layer").write_bytes((tmp_path / "layer.tar").read_bytes())
    plain = type(layer)(
        layer.digest, (node.published / "layer").as_uri(), sha256=layer.sha256, size=layer.size
    )

    assert refusal(node, plain).needed == CONTENT


def test_an_image_is_refused_by_its_annotation(tmp_path: Path, source: Path) -> None:
    layout = tmp_path / "layout"
    config = ImageConfig(Platform("linux", "amd64"), ())
    pack_image(source, layout, "1", config=config)

    error = refusal(Node(tmp_path), DesiredImage(f"oci:{layout}:1", "linux/amd64"))

    assert error.needed == CONTENT


def test_what_was_refused_evicts_only_once(tmp_path: Path) -> None:
    """Of this layer nothing is known; the next attempt knows what the first has needed."""
    node = Node(tmp_path)
    large = LayerBuilder().file("large", b"x" * CONTENT).tar()
    (node.published / "large").write_bytes(blob := compress(large, "gzip"))
    unknown = desired(blob, (node.published / "large").as_uri())
    cached = node.publish("cached", MIB)
    with limited(node, 5 * MIB) as manager:
        kept = []
        for _ in range(2):
            manager.process_desired_layers([cached])
            manager.process_desired_layers([])
            with pytest.raises(LayersFailedError):
                manager.process_desired_layers([unknown])
            kept.append(len(manager.get_layers_info()))
    assert kept == [0, 1]


def test_the_rest_of_the_file_counts(tmp_path: Path) -> None:
    """A layer is refused when the rest of its file cannot fit any more."""
    node = Node(tmp_path)
    noise = random.Random(18).randbytes(16 * MIB)  # noqa: S311 - only to be incompressible
    tar = LayerBuilder().file("a", b"x" * (20 * MIB)).file("b", noise).tar()
    (node.published / "layer").write_bytes(blob := compress(tar, "gzip"))
    assert len(blob) > 16 * MIB
    layer = replace(desired(blob, (node.published / "layer").as_uri()), size=len(blob))
    observer = RecordingObserver()
    with limited(node, 24 * MIB, observer=observer) as manager, pytest.raises(LayersFailedError):
        manager.process_desired_layers([layer])
    assert observer.written_bytes < 16 * MIB, "24 MiB are allowed"


def test_what_fits_by_what_it_says_is_installed(tmp_path: Path, source: Path) -> None:
    layer = pack_layer(source, tmp_path / "layer.tar", layer_id="l", version="1")
    node = Node(tmp_path)

    with node.manager() as manager:
        (installed,) = manager.process_desired_layers([layer]).installed

    assert installed.size >= CONTENT
