"""Layers of the directories that images need: made here, from the indexes of the images' layers."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import SourceError
from layermanager.model import DesiredLayer, Digest
from layermanager.pack.directories import directories_tar
from layermanager.use.merged import NO_ROOM, merged_directories
from layermanager.use.overlay import MAX_LOWER_DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from layermanager.cancellation import Cancellation
    from layermanager.model import ImageInfo, Limits
    from layermanager.use.merged import MergedStack

SCHEME: Final = "image-directories"
LAYER_NAME: Final = "image-directories"
"""What these layers are called."""


@dataclass(frozen=True, slots=True)
class ImageDirectories:
    """What the layers of an image need on top of them.

    Attributes:
        layer: the layer of directories; None: none is needed, or *problem* says why there is none.
        is_known: whether that is certain, as the indexes are.
        problem: for a warning: why directories may show other attributes than they should; empty:
            they do not.
    """

    layer: DesiredLayer | None = None
    is_known: bool = True
    problem: str = ""


class DirectoriesSource:
    """Source of layers that hold the directories which images imply.

    Such a layer is known by the digest of its tar, as any other, and is installed, checked and
    repaired like any other. Its tar is kept nowhere: it follows from the layers of the image.

    Args:
        index_dir: holds the indexes of the layers.
        limits: bounds on these.
        images: tells the installed images.
    """

    def __init__(
        self, index_dir: Path, limits: Limits, images: Callable[[], Sequence[ImageInfo]]
    ) -> None:
        self._index_dir = index_dir
        self._limits = limits
        self._images = images
        self._tars: dict[Digest, bytes] = {}

    def directories_for(self, layers: Sequence[Digest]) -> ImageDirectories:
        """Return what belongs on top of *layers*, the lowest first.

        A layer can be fetched until ``forget``, and from then on as long as an image has it.

        Raises:
            StoreError: an index cannot be read, beyond that it is damaged.
        """
        merged = self._merged(layers)
        if doubt := merged.doubt():
            return ImageDirectories(is_known=False, problem=doubt)
        if not merged.directories:
            return ImageDirectories()
        if merged.visible >= MAX_LOWER_DIRECTORIES:
            return ImageDirectories(problem=NO_ROOM)
        tar = directories_tar(merged.directories)
        digest = _digest(tar)
        self._tars[digest] = tar
        layer = DesiredLayer(
            digest, f"{SCHEME}:{digest}", layer_id=LAYER_NAME, size=len(tar), diff_id=digest
        )
        return ImageDirectories(layer)

    def forget(self) -> None:
        """Let go of the tars that were made."""
        self._tars.clear()

    def open(
        self,
        url: str,
        cancellation: Cancellation,  # noqa: ARG002 - nothing is waited for
        *,
        offset: int = 0,
        validator: str = "",  # noqa: ARG002 - the digest names the one version
    ) -> _TarStream:
        """Make the tar that *url* names.

        Raises:
            SourceError: no installed image has that layer.
        """
        digest = Digest(url.removeprefix(f"{SCHEME}:"))
        tar = self._tars.get(digest) or self._tar_again(digest)
        if not tar:
            raise SourceError(
                "cannot make the layer of an image's directories: no installed image has it, or "
                "the index of a layer of the image is missing or damaged; repair that layer or "
                "apply the image",
                url=url,
            )
        return _TarStream(tar, min(offset, len(tar)))

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def _tar_again(self, digest: Digest) -> bytes:
        for image in self._images():
            if image.directories != digest:
                continue
            tar = directories_tar(self._merged(image.layers).directories)
            if _digest(tar) == digest:
                return tar
        return b""

    def _merged(self, layers: Sequence[Digest]) -> MergedStack:
        # A layer that is there twice is mounted once, where it is uppermost.
        once = tuple(dict.fromkeys(reversed(layers)))[::-1]
        return merged_directories(once, self._index_dir, self._limits)


class _TarStream:
    """The bytes of a tar in memory."""

    is_local: Final = True
    validator: Final = ""

    def __init__(self, tar: bytes, offset: int) -> None:
        self.size = len(tar)
        self.offset = offset
        self._file = io.BytesIO(tar)
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def abort(self) -> None:
        """Do nothing: no read takes any time."""

    def close(self) -> None:
        self._file.close()


def _digest(tar: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(tar).hexdigest()}")
