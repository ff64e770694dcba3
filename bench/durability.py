"""What it costs that a layer is on the disk when it is reported as installed.

The same layers are installed into an empty store, by turns as it is and with ``"durable": false``,
which leaves out every sync: on the volumes of all benchmarks and, where these are loop devices, in
a plain directory as well, since below a loop device there is another file system, with memory of
its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.commands import apply
from bench.documents import write_configuration, write_desired
from bench.extracting import cpu, extract, synced, wall
from bench.figures import Figure, Peer
from bench.layers import GZIP, read_layer
from bench.volumes import DirectoryVolumes, LoopVolumes
from layermanager.testing.layers import LayerBuilder, compress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.extracting import Extraction
    from bench.layers import Layer
    from bench.setting import Setting

_SMALL_LAYERS: Final = 100
_FILES_OF_A_SMALL_LAYER: Final = 20
_DIGESTS_OF_A_FILE: Final = 64
_WITHOUT: Final = '"durable": false'


def durability(setting: Setting) -> tuple[Figure, ...]:
    """Install many small layers, one of many files and one of few, with syncs and without."""
    works = {
        "many small layers": small_layers(setting),
        "a layer of many files": (corpora.many_files(setting),),
        "a layer of few large files": (corpora.few_files(setting),),
    }
    figures: list[Figure] = []
    for place in _places(setting):
        for name, layers in works.items():
            figures += _with_and_without(place, name, layers)
    return tuple(figures)


@cache
def small_layers(setting: Setting) -> tuple[Layer, ...]:
    """A hundred layers of twenty files each, none of which is in two of them."""
    return tuple(_small_layer(setting.scratch, number) for number in range(_SMALL_LAYERS))


def _small_layer(scratch: Path, number: int) -> Layer:
    builder = LayerBuilder().directory(".").directory("etc")
    for file in range(_FILES_OF_A_SMALL_LAYER):
        content = "\n".join(
            hashlib.sha256(f"{number} {file} {line}".encode()).hexdigest()
            for line in range(_DIGESTS_OF_A_FILE)
        )
        builder.file(f"etc/{file}", content.encode())
    blob = scratch / f"small-{number}.tar.gz"
    blob.write_bytes(compress(builder.tar(), "gzip"))
    return read_layer(blob, GZIP)


def _places(setting: Setting) -> Iterator[Setting]:
    yield setting
    if isinstance(setting.volumes, LoopVolumes):
        yield dataclasses.replace(setting, volumes=DirectoryVolumes(setting.scratch))


def _with_and_without(setting: Setting, name: str, layers: Sequence[Layer]) -> Iterator[Figure]:
    scratch = setting.scratch
    durable = write_configuration(scratch / "durable.json", {"durable": True})
    fleeting = write_configuration(scratch / "fleeting.json", {"durable": False})
    desired = write_desired(
        scratch / "desired.json", [layer.desired(layer.blob.as_uri()) for layer in layers]
    )
    ours: list[Extraction] = []
    without: list[Extraction] = []
    for _ in range(setting.runs):
        ours.append(extract(setting, lambda directory: apply(durable, directory, desired)))
        without.append(extract(setting, lambda directory: apply(fleeting, directory, desired)))
    subject = f"durability, {name} ({len(layers)}), {setting.volumes.description}"
    yield Figure(subject, "wall", wall(ours), Peer(_WITHOUT, wall(without)))
    yield Figure(
        subject, "wall; both on disk", wall(ours), Peer(f"{_WITHOUT}, sync -f", synced(without))
    )
    yield Figure(subject, "CPU, user + system", cpu(ours), Peer(_WITHOUT, cpu(without)))
