"""Places with images, of every kind that is a file, and a way to resolve what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.images import default_image_sources
from layermanager.images.resolve import ImageResolver
from layermanager.model import DesiredImage
from layermanager.oci.platform import parse_platform
from layermanager.testing.images import (
    docker_archive_files,
    layout_files,
    write_files,
    write_tar,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.model import Resolution, ResolvedImage
    from layermanager.testing.images import BuiltImage

    Write = Callable[[Path, Mapping[str, BuiltImage]], Path]

HOST = parse_platform("linux/amd64")


def write_layout(path: Path, images: Mapping[str, BuiltImage]) -> Path:
    return write_files(path, layout_files(images))


def write_layout_archive(path: Path, images: Mapping[str, BuiltImage]) -> Path:
    return write_tar(path, layout_files(images))


def write_docker_archive(path: Path, images: Mapping[str, BuiltImage]) -> Path:
    return write_tar(path, docker_archive_files(images))


PLACES: Mapping[str, Write] = {
    "oci": write_layout,
    "oci-archive": write_layout_archive,
    "docker-archive": write_docker_archive,
}


def open_descriptors() -> list[str]:
    """The file descriptors of this process that are open."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def resolve_all(*images: DesiredImage) -> Resolution:
    return ImageResolver(default_image_sources(Network(), SystemClock()), HOST).resolve(
        images, (), {}, Cancellation()
    )


def resolve(reference: str, platform: str = "") -> ResolvedImage:
    """The image; the error, if it failed."""
    resolution = resolve_all(DesiredImage(reference, platform))
    for failed in resolution.failed:
        raise failed.error
    (image,) = resolution.images
    return image


def fetch(image: ResolvedImage) -> list[bytes]:
    """The layers of *image*, from the addresses that they have."""
    sources = default_image_sources(Network(), SystemClock())
    layers = []
    for layer in image.layers:
        stream = sources[layer.url.partition(":")[0]].open(layer.url, Cancellation())
        pieces = []
        while piece := stream.read(1000):
            pieces.append(piece)
        stream.close()
        layers.append(b"".join(pieces))
    return layers
