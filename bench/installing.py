"""Installing one layer from a file, against GNU tar unpacking the same blob.

Both are whole programs, from their start to their end: ours starts two Python interpreters, opens
its database, computes the digest of the blob and of every file in it for the index, records the
layer, and has everything on disk when it ends; tar only unpacks, and so is also measured with
``sync -f`` after it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.figures import Figure, Peer, Series, Unit
from bench.processes import Usage, measure, peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.corpora import Layer
    from bench.setting import Setting
    from bench.volumes import Volume

    Command = Callable[[Path], Sequence[str | Path]]

_CPU_GOAL: Final = 0.9
_WRITTEN_GOAL: Final = 1.05
_MEMORY_GOAL_MIB: Final = 96
_MIB: Final = 1024 * 1024
_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Extraction:
    """One measurement of one side.

    Attributes:
        usage: of the program.
        synced_seconds: from its start until everything was on disk.
        device_bytes: what the device wrote by then, where it can be told.
    """

    usage: Usage
    synced_seconds: float
    device_bytes: int | None


def many_files(setting: Setting) -> tuple[Figure, ...]:
    """A layer of many small files."""
    return _installing(setting, corpora.many_files(setting.scratch))


def few_files(setting: Setting) -> tuple[Figure, ...]:
    """A layer of a few large files."""
    return _installing(setting, corpora.few_files(setting.scratch))


def _installing(setting: Setting, layer: Layer) -> tuple[Figure, ...]:
    def install(directory: Path) -> Sequence[str | Path]:
        program = Path(__file__).with_name("install_one.py")
        size = layer.blob.stat().st_size
        return (sys.executable, program, directory, layer.blob.as_uri(), layer.digest, str(size))

    def untar(directory: Path) -> Sequence[str | Path]:
        return ("tar", "--extract", "--gzip", "--file", layer.blob, "--directory", directory)

    ours: list[_Extraction] = []
    tar: list[_Extraction] = []
    for _ in range(setting.runs):
        ours.append(_extract(setting, install))
        tar.append(_extract(setting, untar))
    with setting.volumes.fresh() as volume:
        memory = peak_memory_bytes(install(volume.path))
    return _figures(layer, ours, tar, memory)


def _extract(setting: Setting, command: Command) -> _Extraction:
    with setting.volumes.fresh() as volume:
        before = volume.device_bytes()
        usage = measure(command(volume.path))
        start = time.perf_counter()
        volume.sync()
        synced_seconds = usage.wall_seconds + time.perf_counter() - start
        return _Extraction(usage, synced_seconds, _written_since(before, volume))


def _written_since(before: int | None, volume: Volume) -> int | None:
    after = volume.device_bytes()
    return None if before is None or after is None else after - before


def _figures(
    layer: Layer, ours: Sequence[_Extraction], tar: Sequence[_Extraction], memory: int
) -> tuple[Figure, ...]:
    subject = f"install {layer.description}"
    wall = _seconds(one.usage.wall_seconds for one in ours)
    written = Series(tuple(one.usage.written_bytes / _MB for one in ours), Unit.MEGABYTES)
    payload = Series((layer.payload_bytes / _MB,), Unit.MEGABYTES)
    figures = [
        Figure(
            subject,
            "CPU, user + system",
            _seconds(one.usage.cpu_seconds for one in ours),
            Peer("tar -xzf", _seconds(one.usage.cpu_seconds for one in tar)),
            _CPU_GOAL,
        ),
        Figure(
            subject,
            "wall; tar's files are in memory",
            wall,
            Peer("tar -xzf", _seconds(one.usage.wall_seconds for one in tar)),
        ),
        Figure(
            subject,
            "wall; both on disk",
            wall,
            Peer("tar -xzf, sync -f", _seconds(one.synced_seconds for one in tar)),
        ),
        Figure(subject, "bytes written", written, Peer("payload", payload), _WRITTEN_GOAL),
    ]
    our_device, tar_device = _device_megabytes(ours), _device_megabytes(tar)
    if our_device is not None and tar_device is not None:
        peer = Peer("tar -xzf, sync -f", tar_device)
        figures.append(Figure(subject, "bytes written by the device", our_device, peer))
    peak = Series((memory / _MIB,), Unit.MEBIBYTES)
    figures.append(Figure(subject, "peak memory, all processes", peak, goal=_MEMORY_GOAL_MIB))
    return tuple(figures)


def _seconds(values: Iterable[float]) -> Series:
    return Series(tuple(values), Unit.SECONDS)


def _device_megabytes(extractions: Sequence[_Extraction]) -> Series | None:
    values = [one.device_bytes for one in extractions if one.device_bytes is not None]
    return Series(tuple(value / _MB for value in values), Unit.MEGABYTES) if values else None
