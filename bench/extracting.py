"""One program that unpacks into an empty volume, measured until all of it is on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.figures import Series, Unit
from bench.processes import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bench.commands import Command
    from bench.processes import Usage
    from bench.setting import Setting
    from bench.volumes import Volume

_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Extraction:
    """One measurement of one side.

    Attributes:
        usage: of the program.
        synced_seconds: from its start until everything was on disk.
        device_bytes: what the device wrote by then, where it can be told.
    """

    usage: Usage
    synced_seconds: float
    device_bytes: int | None


def extract(setting: Setting, command: Callable[[Path], Command]) -> Extraction:
    """Measure the program that *command* makes for an empty directory."""
    return extract_by(setting, lambda directory: measure(command(directory)))


def extract_by(setting: Setting, unpack: Callable[[Path], Usage]) -> Extraction:
    """Have *unpack* fill an empty directory; it tells what it used."""
    with setting.volumes.fresh() as volume:
        before = volume.device_bytes()
        usage = unpack(volume.path)
        start = time.perf_counter()
        volume.sync()
        synced_seconds = usage.wall_seconds + time.perf_counter() - start
        return Extraction(usage, synced_seconds, _written_since(before, volume))


def cpu(extractions: Iterable[Extraction]) -> Series:
    """User and system time."""
    return seconds(one.usage.cpu_seconds for one in extractions)


def wall(extractions: Iterable[Extraction]) -> Series:
    """Time until the program's end."""
    return seconds(one.usage.wall_seconds for one in extractions)


def synced(extractions: Iterable[Extraction]) -> Series:
    """Time until everything was on disk."""
    return seconds(one.synced_seconds for one in extractions)


def seconds(values: Iterable[float]) -> Series:
    """*values* in seconds, as a series."""
    return Series(tuple(values), Unit.SECONDS)


def device_megabytes(extractions: Iterable[Extraction]) -> Series | None:
    """What the device wrote, if that can be told."""
    values = [one.device_bytes for one in extractions if one.device_bytes is not None]
    return Series(tuple(value / _MB for value in values), Unit.MEGABYTES) if values else None


def _written_since(before: int | None, volume: Volume) -> int | None:
    after = volume.device_bytes()
    return None if before is None or after is None else after - before
