"""Directories of a store that other users of the node can enter.

New stores are closed. One that another program made keeps its modes, as that program may count on
them, and its owner is told what they allow.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layermanager.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Exposure:
    """A directory that other users can enter.

    Attributes:
        path: the directory.
        danger: what that lets them do.
    """

    path: Path
    danger: str

    def __str__(self) -> str:
        return f"other users can enter {self.path} and {self.danger}: make its mode 0700"


def exposures(working_dir: Path, layers_dir: Path) -> tuple[Exposure, ...]:
    """Return which directories of a store are open, by their modes and those of all above them.

    Raises:
        StoreError: a mode cannot be read.
    """
    dangers = {
        layers_dir: "run setuid programs of the layers by their paths",
        working_dir: "hold locks on the database",
    }
    try:
        return tuple(Exposure(path, danger) for path, danger in dangers.items() if _is_open(path))
    except OSError as error:
        raise StoreError(f"cannot look at the modes of the store: {error}") from error


def _is_open(path: Path) -> bool:
    """Return whether users who are neither owner nor in the group can enter; not if missing."""
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        return False
    return all(one.stat().st_mode & stat.S_IXOTH for one in (resolved, *resolved.parents))
