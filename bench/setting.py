"""What every benchmark is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bench.volumes import Volumes


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how often to measure.

    Attributes:
        scratch: a directory for whatever is not measured itself, such as the layers' blobs.
        volumes: where to write what is measured.
        runs: how often each side is measured.
    """

    scratch: Path
    volumes: Volumes
    runs: int
