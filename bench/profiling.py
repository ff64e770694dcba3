"""Where the CPU time of an installation goes, and how little it could be.

Each kind of work is done for itself, in a process of its own, by turns with the whole and with
tar. The floor is what no program of this kind can leave out: it inflates with the same library,
computes the same digests, and makes the same files with as few system calls as can be, of content
that it has in memory already.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.commands import install, untar
from bench.extracting import extract, seconds
from bench.figures import Figure, Peer
from bench.installing import CPU_GOAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.commands import Command
    from bench.figures import Series
    from bench.layers import Layer
    from bench.setting import Setting

_PROGRAM: Final = Path(__file__).with_name("kinds_of_work.py")
_FLOOR: Final = {
    "inflate": "inflate",
    "digests": "digests of the blob and of each file",
    "system-calls": "system calls that make the files",
}
_OTHER: Final = {
    "tar": "reading tar headers",
    "index": "writing the index",
}
_START: Final = "two Pythons, the database, a jail: an empty layer"
_REST: Final = "the rest: the tree in Python, pipes, threads, the jail's checks of each call"


def profile(setting: Setting) -> tuple[Figure, ...]:
    """Share out the CPU time of installing the layer of many files to kinds of work."""
    layer, nothing = corpora.many_files(setting), corpora.nothing(setting)
    kinds: dict[str, list[float]] = {kind: [] for kind in (*_FLOOR, *_OTHER)}
    ours: list[float] = []
    start: list[float] = []
    tar: list[float] = []
    for _ in range(setting.runs):
        ours.append(_cpu(setting, lambda directory: install(directory, layer)))
        tar.append(_cpu(setting, lambda directory: untar(directory, layer)))
        start.append(_cpu(setting, lambda directory: install(directory, nothing)))
        for kind, values in kinds.items():
            values.append(_cpu_of_kind(setting, kind, layer))
    floor = _sums(*(kinds[kind] for kind in _FLOOR))
    known = _sums(start, *kinds.values())
    rest = [whole - part for whole, part in zip(ours, known, strict=True)]
    subject = f"CPU of installing {layer.description}, by kind of work"
    all_of_it = Peer("all of ours", seconds(ours))
    shares: dict[str, Series] = {
        **{f"floor: {what}": seconds(kinds[kind]) for kind, what in _FLOOR.items()},
        **{what: seconds(kinds[kind]) for kind, what in _OTHER.items()},
        _START: seconds(start),
        _REST: seconds(rest),
    }
    return (
        *(Figure(subject, what, series, all_of_it) for what, series in shares.items()),
        Figure(subject, "the floor", seconds(floor), Peer(layer.tar, seconds(tar))),
        Figure(subject, "all", seconds(ours), Peer(layer.tar, seconds(tar)), CPU_GOAL),
        Figure(subject, "all", seconds(ours), Peer("the floor", seconds(floor))),
    )


def _cpu(setting: Setting, command: Callable[[Path], Command]) -> float:
    return extract(setting, command).usage.cpu_seconds


def _cpu_of_kind(setting: Setting, kind: str, layer: Layer) -> float:
    with setting.volumes.fresh() as volume:
        output = subprocess.run(
            (sys.executable, _PROGRAM, kind, layer.blob, volume.path),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return float(output)


def _sums(*columns: list[float]) -> list[float]:
    return [sum(row) for row in zip(*columns, strict=True)]
