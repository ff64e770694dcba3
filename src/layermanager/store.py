"""The directories of the store, and the only code that makes layers appear and disappear in it.

::

    <layersDir>/
        sha256/<hex>/            a layer: complete, verified, never changed
        .staging/<hex>.<random>/ a layer that grows; becomes one of the above by a rename
        .trash/<hex>.<random>/   a layer that is being removed; came here by a rename

A layer is in its place or not there at all, since only renames make and unmake it. It *counts*
when the storage has a row for it besides: the row comes after the directory and goes before it.
What lies in ``.staging`` and ``.trash``, and layers without a row, are leftovers of a crash and are
swept. Aos's own manager removes all ``<layersDir>/*/*`` that its database does not name, so these
two disappear there as well.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.errors import InvalidDigestError, StoreError
from layermanager.model import Digest
from layermanager.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_STAGING: Final = ".staging"
_TRASH: Final = ".trash"
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class StagedLayer:
    """A directory in which a layer grows until it is committed.

    Attributes:
        digest: the layer.
        path: the directory.
        descriptor: a file descriptor of it.
    """

    digest: Digest
    path: Path
    descriptor: int


class Store:
    """The layers below *layers_dir*, which is made if it is not there.

    What changes anything is called with the store's lock held.

    Raises:
        StoreError: a directory cannot be made, read or changed; from every method.
    """

    def __init__(self, layers_dir: Path) -> None:
        self.layers_dir = layers_dir
        self._staging = layers_dir / _STAGING
        self._trash = layers_dir / _TRASH
        with _store_errors("cannot make the directory of the layers"):
            layers_dir.mkdir(mode=0o755, parents=True, exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        """Where the layer *digest* is, or would be."""
        return self.layers_dir / digest.algorithm / digest.encoded

    def digests(self) -> list[Digest]:
        """The layers whose directory is there; other files are passed over."""
        found = []
        with _store_errors("cannot list the layers"):
            for algorithm in _subdirectories(self.layers_dir):
                for name in _subdirectories(self.layers_dir / algorithm):
                    try:
                        found.append(Digest(f"{algorithm}:{name}"))
                    except InvalidDigestError:
                        continue  # not a layer: somebody else's, or staging or trash
        return found

    @contextmanager
    def stage(self, digest: Digest) -> Iterator[StagedLayer]:
        """Make an empty directory for a layer to grow in; it is removed unless committed by then.

        Only its owner may enter it as long as it grows.
        """
        path = self._staging / f"{digest.encoded}.{secrets.token_hex(4)}"
        with _store_errors("cannot make a directory for a new layer"):
            self._staging.mkdir(mode=0o700, exist_ok=True)
            path.mkdir(mode=0o700)
        with _store_errors("cannot use the directory of a new layer"):
            descriptor = os.open(path, _OPEN_DIRECTORY)
        try:
            yield StagedLayer(digest, path, descriptor)
        finally:
            os.close(descriptor)
            _remove(path)

    def commit(self, staged: Sequence[StagedLayer]) -> None:
        """Put complete and verified layers into their places, durably.

        All their files are synced first, by one call for the whole group; then they are renamed;
        then the renames are synced. When this returns, no power cut can take them away, and until
        then no row names them.
        """
        with _store_errors("cannot commit"):
            linux.sync_file_system(staged[0].descriptor)
            parents = set()
            for layer in staged:
                place = self.path_of(layer.digest)
                place.parent.mkdir(mode=0o755, exist_ok=True)
                self._move_to_trash(layer.digest)
                layer.path.rename(place)
                parents.add(place.parent)
            for directory in (*parents, self.layers_dir):
                _sync_directory(directory)
        self._empty(self._trash)

    def remove(self, digest: Digest) -> None:
        """Remove a layer whose row is gone, and return when its space is free again."""
        self._move_to_trash(digest)
        self._empty(self._trash)

    def sweep(self) -> int:
        """Remove what a crash left in staging and trash; return how many layers that were."""
        return self._empty(self._staging) + self._empty(self._trash)

    def _move_to_trash(self, digest: Digest) -> None:
        place = self.path_of(digest)
        with _store_errors("cannot remove a layer"):
            self._trash.mkdir(mode=0o700, exist_ok=True)
            try:
                place.rename(self._trash / f"{digest.encoded}.{secrets.token_hex(4)}")
            except FileNotFoundError:
                return  # it was not there, or is gone already

    def _empty(self, directory: Path) -> int:
        with _store_errors("cannot clean up"):
            try:
                leftovers = list(directory.iterdir())
            except FileNotFoundError:
                return 0
        for path in leftovers:
            _remove(path)
        return len(leftovers)


def _remove(path: Path) -> None:
    with _store_errors("cannot remove"):
        directory = os.open(path.parent, _OPEN_DIRECTORY)
        try:
            remove_tree(path.name, dir_fd=directory)
        finally:
            os.close(directory)


def _subdirectories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, _OPEN_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}") from error
