"""The files that our programs are given: their configuration and what they are to have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from layermanager import desired_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from layermanager import DesiredLayer


def write_configuration(path: Path, settings: Mapping[str, object]) -> Path:
    """Write a configuration with these *settings* of our own, and return *path*."""
    path.write_text(json.dumps({"layerManager": settings}), encoding="utf-8")
    return path


def write_desired(path: Path, layers: Iterable[DesiredLayer]) -> Path:
    """Write *layers* as what is desired, and return *path*."""
    path.write_text(json.dumps([desired_to_json(layer) for layer in layers]), encoding="utf-8")
    return path
