"""How fast installed layers are compared with their indexes, content included."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench import corpora
from bench.extracting import seconds
from bench.figures import Figure, Peer
from bench.setting import cores, require_program
from layermanager import Config, DesiredLayer, Digest, LayerManager

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.layers import Layer
    from bench.setting import Setting


def checking(setting: Setting) -> tuple[Figure, ...]:
    """Check a layer of many files and one of few, by turns with ``sha256sum`` of the same files.

    The peer reads every file, and compares nothing; both have the files in memory, so that what
    is measured is their own work and not the disk's.
    """
    require_program("sha256sum")
    return (
        _checking(setting, "a layer of many files", corpora.many_files(setting)),
        _checking(setting, "a layer of few large files", corpora.few_files(setting)),
    )


def _checking(setting: Setting, name: str, layer: Layer) -> Figure:
    with setting.volumes.fresh() as volume:
        config = Config(working_dir=volume.path / "store")
        with LayerManager(config) as manager:
            manager.process_desired_layers(
                [DesiredLayer(Digest(layer.digest), layer.blob.as_uri())]
            )
        check = [sys.executable, "-m", "layermanager"]
        check += ["--work-dir", str(config.working_dir), "check"]
        digests = f"find . -type f -print0 | xargs -0 -n 64 -P {cores()} sha256sum >/dev/null"
        sides = (check, ["sh", "-c", digests])
        for command in sides:  # into memory
            _seconds_of(command, config.layers_dir)
        turns = [
            [_seconds_of(command, config.layers_dir) for command in sides]
            for _ in range(setting.runs)
        ]
    ours, theirs = (seconds(side) for side in zip(*turns, strict=True))
    peer = Peer(f"sha256sum of each file, {cores()} at once", theirs)
    return Figure(f"check, {name}", "wall", ours, peer)


def _seconds_of(command: Sequence[str], directory: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
