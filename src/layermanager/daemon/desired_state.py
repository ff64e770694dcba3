"""The desired state that the daemon was given, kept for the time after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.desired import read_desired_state
from layermanager.errors import StoreError
from layermanager.model import layers_and_images
from layermanager.plan import plan
from layermanager.private_files import PRIVATE_DIRECTORY, make_directories, replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from layermanager.model import DesiredImage, DesiredLayer

FILE_NAME: Final = "desired.json"


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What is desired.

    Attributes:
        document: the list as it was given, JSON.
        layers: the layers that it names.
        images: the images that it names.
    """

    document: bytes
    layers: Sequence[DesiredLayer]
    images: Sequence[DesiredImage]

    @classmethod
    def read(cls, document: bytes, name: str) -> DesiredState:
        """Read and check a list.

        Raises:
            DesiredStateError, InvalidDigestError, InvalidReferenceError: it cannot be used; the
                message names the key.
        """
        layers, images = layers_and_images(read_desired_state(document, name))
        plan(layers, ())  # which refuses what contradicts itself
        return cls(document, layers, images)


class RememberedState:
    """Keeps the last desired state in a file, which only its owner can read: URLs hold secrets."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> DesiredState | None:
        """What was kept last; None if nothing was.

        Raises:
            DesiredStateError, InvalidDigestError, InvalidReferenceError: somebody changed the
                file, so that it cannot be used any more.
            StoreError: it cannot be read.
        """
        try:
            document = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read the last desired state: {error}") from error
        return DesiredState.read(document, str(self._path))

    def keep(self, state: DesiredState) -> None:
        """Keep *state* from now on; it is on the disk, whole, when this returns.

        Several processes may do so at once: the last one wins.

        Raises:
            StoreError: it cannot be written; what was kept before is kept.
        """
        try:
            make_directories(self._path.parent, PRIVATE_DIRECTORY)
            replace_file(self._path, state.document)
        except OSError as error:
            raise StoreError(f"cannot keep the desired state: {error}") from error
