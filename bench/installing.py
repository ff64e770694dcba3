"""Installing layers from files, against GNU tar unpacking the same blobs.

Both are whole programs, from their start to their end: ours starts two Python interpreters, opens
its database, computes the digest of the blob and of every file in it for the index, records the
layer, and has everything on disk when it ends; tar only unpacks, and so is also measured with
``sync -f`` after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.commands import install, untar, untar_all_at_once, untar_one_by_one
from bench.extracting import cpu, device_megabytes, extract, seconds, synced, wall
from bench.figures import Figure, Peer, Series, Unit
from bench.layers import GZIP
from bench.processes import peak_memory_bytes
from bench.setting import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.extracting import Extraction
    from bench.layers import Layer
    from bench.setting import Setting

CPU_GOAL: Final = 0.6
_WALL_GOAL: Final = 0.6
_WRITTEN_GOAL: Final = 1.05
_IDLE_GOAL: Final = 1.2
"""How much longer than the CPU time, spread over all cores, still counts as using them all."""
_MEMORY_GOAL_MIB: Final = 64
_MIB: Final = 1024 * 1024
_MB: Final = 1_000_000


def one_layer(corpus: Callable[[Setting], Layer], setting: Setting) -> tuple[Figure, ...]:
    """Install the layer *corpus*, by turns with tar."""
    layer = corpus(setting)
    ours: list[Extraction] = []
    tar: list[Extraction] = []
    for _ in range(setting.runs):
        ours.append(extract(setting, lambda directory: install(directory, layer)))
        tar.append(extract(setting, lambda directory: untar(directory, layer)))
    return (*_figures(layer, ours, tar), *peak_memory(lambda _: layer, setting))


def peak_memory(corpus: Callable[[Setting], Layer], setting: Setting) -> tuple[Figure, ...]:
    """Install the layer *corpus* once, looking at the memory."""
    layer = corpus(setting)
    with setting.volumes.fresh() as volume:
        peak = peak_memory_bytes(install(volume.path, layer))
    mebibytes = Series((peak / _MIB,), Unit.MEBIBYTES)
    subject = f"install {layer.description}"
    return (Figure(subject, "peak memory, all processes", mebibytes, goal=_MEMORY_GOAL_MIB),)


def in_parallel(setting: Setting) -> tuple[Figure, ...]:
    """Install several layers at once, by turns with tar one by one and with as many tars."""
    layers = corpora.parts(setting)
    ours: list[Extraction] = []
    one_by_one: list[Extraction] = []
    at_once: list[Extraction] = []
    for _ in range(setting.runs):
        ours.append(extract(setting, lambda directory: install(directory, *layers)))
        one_by_one.append(extract(setting, lambda directory: untar_one_by_one(directory, layers)))
        at_once.append(extract(setting, lambda directory: untar_all_at_once(directory, layers)))
    available = cores()
    subject = f"install {len(layers)} layers at once, each of {layers[0].description}"
    name = f"{layers[0].tar}, sync -f"
    spread = seconds(one.usage.cpu_seconds / available for one in ours)
    return (
        Figure(subject, "CPU, user + system", cpu(ours), Peer(layers[0].tar, cpu(one_by_one))),
        Figure(
            subject,
            "wall; both on disk",
            wall(ours),
            Peer(f"{name}, one by one", synced(one_by_one)),
            _WALL_GOAL,
        ),
        Figure(
            subject,
            "wall; both on disk",
            wall(ours),
            Peer(f"{name}, all at once", synced(at_once)),
        ),
        Figure(
            subject,
            "wall",
            wall(ours),
            Peer(f"our CPU time, spread over {available} cores", spread),
            _IDLE_GOAL,
        ),
    )


def _figures(
    layer: Layer, ours: Sequence[Extraction], tar: Sequence[Extraction]
) -> tuple[Figure, ...]:
    subject = f"install {layer.description}"
    on_disk = f"{layer.tar}, sync -f"
    written = Series(tuple(one.usage.written_bytes / _MB for one in ours), Unit.MEGABYTES)
    payload = Series((layer.payload_bytes / _MB,), Unit.MEGABYTES)
    figures = [
        Figure(
            subject,
            "CPU, user + system",
            cpu(ours),
            Peer(layer.tar, cpu(tar)),
            # Zstd takes so little that most of the time is for digests, which tar has not to do.
            CPU_GOAL if layer.compression.name == GZIP.name else None,
        ),
        Figure(subject, "wall; tar's files are in memory", wall(ours), Peer(layer.tar, wall(tar))),
        Figure(subject, "wall; both on disk", wall(ours), Peer(on_disk, synced(tar)), _WALL_GOAL),
        Figure(subject, "bytes written", written, Peer("payload", payload), _WRITTEN_GOAL),
    ]
    our_device, tar_device = device_megabytes(ours), device_megabytes(tar)
    if our_device is not None and tar_device is not None:
        peer = Peer(on_disk, tar_device)
        figures.append(Figure(subject, "bytes written by the device", our_device, peer))
    return tuple(figures)
