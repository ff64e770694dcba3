"""The desired state that the daemon was given, kept for the time after a restart."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.desired import read_desired_state
from layermanager.errors import StoreError
from layermanager.model import layers_and_images
from layermanager.plan import plan

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
        self._lock = threading.Lock()

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

        Raises:
            StoreError: it cannot be written; what was kept before is kept.
        """
        new = self._path.with_suffix(".new")
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    new.unlink()
                with open(new, "xb", opener=_open_private) as file:
                    file.write(state.document)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._path)
                _sync_directory(self._path.parent)
            except OSError as error:
                raise StoreError(f"cannot keep the desired state: {error}") from error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
