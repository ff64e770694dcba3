"""What every benchmark is given."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bench.volumes import Volumes


class UnavailableError(Exception):
    """A benchmark cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how often to measure.

    Attributes:
        scratch: a directory for whatever is not measured itself, such as the layers' blobs.
        kept: a directory that stays, for what takes long to make.
        volumes: where to write what is measured.
        runs: how often each side is measured.
    """

    scratch: Path
    kept: Path
    volumes: Volumes
    runs: int


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def require_program(name: str) -> None:
    """Make sure that there is a program *name*.

    Raises:
        UnavailableError: there is none.
    """
    if shutil.which(name) is None:
        raise UnavailableError(f"there is no program {name}")
