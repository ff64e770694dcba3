"""Where images come from: what they are called there, their documents, and the way to their layers.

Each module knows one kind of place, behind ``ImageSource``; ``resolve`` goes with them from a
reference to the layers of one image, and proves every document on the way. Nothing is extracted or
copied: layers are read from where they are, members of an archive at their offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layermanager.images.docker_archive import DockerArchiveSource
from layermanager.images.layout import LayoutSource
from layermanager.images.members import DirectoryFiles, TarFiles
from layermanager.oci.reference import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layermanager.protocols import ImageSource


def default_image_sources() -> Mapping[str, ImageSource]:
    """The sources of this package that know images, by the schemes that they know."""
    return {
        Transport.LAYOUT: LayoutSource(DirectoryFiles),
        Transport.LAYOUT_ARCHIVE: LayoutSource(TarFiles),
        Transport.DOCKER_ARCHIVE: DockerArchiveSource(),
    }
