"""Layers of the directories that images need: made here, from the indexes of the images' layers."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Final

from layermanager.errors import SourceError
from layermanager.model import DesiredLayer, Digest
from layermanager.pack.directories import directories_tar
from layermanager.use.merged import merged_directories
from layermanager.use.overlay import MAX_LOWER_DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from layermanager.cancellation import Cancellation
    from layermanager.model import ImageInfo, Limits

SCHEME: Final = "image-directories"
LAYER_NAME: Final = "image-directories"
"""What these layers are called."""


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

    def layer_for(self, layers: Sequence[Digest]) -> DesiredLayer | None:
        """Return the layer that belongs on top of *layers*, the lowest first; None if none does.

        It can be fetched until ``forget``, and from then on as long as an image has it.

        Raises:
            StoreError: an index cannot be read.
        """
        tar = self._tar(layers)
        if not tar:
            return None
        digest = _digest(tar)
        self._tars[digest] = tar
        return DesiredLayer(
            digest, f"{SCHEME}:{digest}", layer_id=LAYER_NAME, size=len(tar), diff_id=digest
        )

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
                "cannot make the layer of an image's directories: no installed image has it; "
                "apply the image, or remove the layer with `gc`",
                url=url,
            )
        return _TarStream(tar, min(offset, len(tar)))

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def _tar_again(self, digest: Digest) -> bytes:
        for image in self._images():
            if image.directories == digest and _digest(tar := self._tar(image.layers)) == digest:
                return tar
        return b""

    def _tar(self, layers: Sequence[Digest]) -> bytes:
        # A layer that is there twice is mounted once, where it is uppermost.
        once = tuple(dict.fromkeys(reversed(layers)))[::-1]
        if len(once) == 1 or len(once) == MAX_LOWER_DIRECTORIES:
            return b""  # nothing is below another layer, or there is no room for one more
        directories = merged_directories(once, self._index_dir, self._limits)
        return directories_tar(directories) if directories else b""


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
