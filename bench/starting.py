"""Starting an unpacker: what every layer pays, however small it is."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from bench.figures import Figure, Series, Unit
from layermanager.model import Digest, Limits
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.setting import Setting

_GOAL_MILLISECONDS: Final = 40
_TIMES: Final = 10
_PATIENCE: Final = timedelta(seconds=60)
_SUBJECT: Final = "start an unpacker, jail included, until it has unpacked a layer of nothing"
_EMPTY_TAR: Final = bytes(1024)
_EMPTY_LAYER: Final = Job(
    digest=Digest(f"sha256:{0:064}"),  # which only the caller compares
    is_package=False,
    limits=Limits(),
    granted=0,
    block_bytes=4096,
)


def start_up(setting: Setting) -> tuple[Figure, ...]:
    """Time a worker with its jail, with and without the server that forks it."""
    with setting.volumes.fresh() as volume:
        warm = _several(setting, lambda: _warm_milliseconds(volume.path))
        cold = _several(setting, lambda: _cold_milliseconds(volume.path))
    return (
        Figure(_SUBJECT, "wall; the server is running", warm, goal=_GOAL_MILLISECONDS),
        Figure(_SUBJECT, "wall; the server is started first", cold, goal=_GOAL_MILLISECONDS),
    )


def _several(setting: Setting, once: Callable[[], float]) -> Series:
    values = tuple(once() for _ in range(_TIMES * setting.runs))
    return Series(values, Unit.MILLISECONDS)


def _warm_milliseconds(directory: Path) -> float:
    with contextlib.closing(Unpacker(_PATIENCE)) as unpacker:
        _milliseconds_of_nothing(unpacker, directory)
        return _milliseconds_of_nothing(unpacker, directory)


def _cold_milliseconds(directory: Path) -> float:
    with contextlib.closing(Unpacker(_PATIENCE)) as unpacker:
        return _milliseconds_of_nothing(unpacker, directory)


def _milliseconds_of_nothing(unpacker: Unpacker, directory: Path) -> float:
    with tempfile.TemporaryDirectory(dir=directory) as empty, tempfile.TemporaryFile() as index:
        root = os.open(empty, os.O_RDONLY | os.O_DIRECTORY)
        try:
            start = time.perf_counter()
            with unpacker.start(
                _EMPTY_LAYER, root, index.fileno(), lambda n: n.wanted
            ) as unpacking:
                unpacking.feed(_EMPTY_TAR)
                unpacking.finish()
            return 1000 * (time.perf_counter() - start)
        finally:
            os.close(root)
