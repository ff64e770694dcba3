"""What is known of a layer's unpacked size before it is unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from layermanager.amounts import Amount, annotated
from layermanager.errors import LayersFailedError, NotEnoughSpaceError
from layermanager.model import DesiredImage
from layermanager.oci.manifest import ImageConfig
from layermanager.oci.platform import Platform
from layermanager.pack import Compression, pack_image, pack_layer
from layermanager.space import DiskUsage, Partitions
from manager_fixtures import MIB, Node

if TYPE_CHECKING:
    from pathlib import Path

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


def test_what_fits_by_what_it_says_is_installed(tmp_path: Path, source: Path) -> None:
    layer = pack_layer(source, tmp_path / "layer.tar", layer_id="l", version="1")
    node = Node(tmp_path)

    with node.manager() as manager:
        (installed,) = manager.process_desired_layers([layer]).installed

    assert installed.size >= CONTENT
