"""An image to pull: four layers, as an application's on top of a distribution's are.

Each is made of what is real: Debian itself, files of this machine, and removals of what Debian
holds. The image lies in an OCI layout, from where it is copied to a registry.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.debian import debian, debian_in_zstd
from bench.layers import in_zstd
from layermanager.oci.platform import host_platform
from layermanager.testing.images import build_image, layout_files, write_files

if TYPE_CHECKING:
    from pathlib import Path

    from bench.layers import Compression, Layer
    from bench.setting import Setting

_NAME: Final = "image"
_MEGABYTE: Final = 1_000_000
_REMOVED: Final = PurePosixPath("usr/share/doc")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an OCI layout.

    Attributes:
        layout: the directory.
        name: what it is called there.
        layers: its layers, the lowest first.
    """

    layout: Path
    name: str
    layers: tuple[Layer, ...]

    @property
    def compression(self) -> Compression:
        """How all its layers are compressed."""
        return self.layers[0].compression

    @property
    def reference(self) -> str:
        """By which it is found in the layout."""
        return f"oci:{self.layout}:{self.name}"

    @property
    def description(self) -> str:
        """What is in it, and how large it is."""
        files = sum(layer.files for layer in self.layers)
        content = sum(layer.content_bytes for layer in self.layers)
        compressed = sum(layer.blob.stat().st_size for layer in self.layers)
        return (
            f"{len(self.layers)} layers, {files:,} files, {content / _MEGABYTE:,.0f} MB, "
            f"{compressed / _MEGABYTE:,.0f} MB by {self.compression.name}"
        )


@cache
def application(setting: Setting) -> Image:
    """Debian, 20,000 small files with removals of Debian's, a few large ones, and a single one.

    Raises:
        UnavailableError: Debian cannot be made here.
    """
    system = debian(setting)
    layers = (
        system,
        corpora.small_files(setting, _packages_documented_in(system)),
        corpora.large_files(setting),
        corpora.one_file(setting),
    )
    return _in_layout(setting, layers)


@cache
def application_in_zstd(setting: Setting) -> Image:
    """The same, compressed by zstd.

    Raises:
        UnavailableError: there is no program zstd, or Debian cannot be made here.
    """
    _, *others = application(setting).layers
    layers = (debian_in_zstd(setting), *(in_zstd(layer, setting.scratch) for layer in others))
    return _in_layout(setting, layers)


def _packages_documented_in(system: Layer) -> tuple[PurePosixPath, ...]:
    with tarfile.open(system.blob, "r|gz") as tar:
        paths = (PurePosixPath(member.name) for member in tar)
        return tuple(path for path in paths if path.parent == _REMOVED)


def _in_layout(setting: Setting, layers: tuple[Layer, ...]) -> Image:
    this = os.uname()
    image = build_image(
        [layer.blob.read_bytes() for layer in layers],
        platform=str(host_platform(this.sysname, this.machine)),
    )
    layout = setting.scratch / f"layout-{layers[0].compression.name}"
    return Image(write_files(layout, layout_files({_NAME: image})), _NAME, layers)
