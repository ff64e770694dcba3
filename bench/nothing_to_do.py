"""Being told to have what is there already: the most frequent case of all."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from bench.figures import Figure, Peer, Series, Unit
from layermanager import Config, DesiredLayer, Digest, LayerInfo, LayerManager
from layermanager.clock import SystemClock
from layermanager.storage import SqliteLayerStorage

if TYPE_CHECKING:
    from pathlib import Path

    from bench.setting import Setting

_LAYERS: Final = (1_000, 5_000, 20_000)
_GOAL_MILLISECONDS: Final = 50
_LINEAR: Final = 1.2
"""How much more than in proportion still counts as linear."""


def nothing_to_do(setting: Setting) -> tuple[Figure, ...]:
    """Time ``process_desired_layers`` when all layers are installed, for several numbers of them.

    The layers are empty: their content is not looked at.
    """
    first = _milliseconds(setting, _LAYERS[0])
    figures = [
        Figure(f"nothing to do, {_LAYERS[0]:,} layers", "wall", first, goal=_GOAL_MILLISECONDS)
    ]
    for count in _LAYERS[1:]:
        factor = count // _LAYERS[0]
        proportional = Series(tuple(factor * value for value in first.values), first.unit)
        peer = Peer(f"{factor} times {_LAYERS[0]:,} layers", proportional)
        ours = _milliseconds(setting, count)
        figures.append(Figure(f"nothing to do, {count:,} layers", "wall", ours, peer, _LINEAR))
    return tuple(figures)


def _milliseconds(setting: Setting, count: int) -> Series:
    with setting.volumes.fresh() as volume:
        config = Config(working_dir=volume.path / "store")
        desired = _install_empty_layers(config, count)
        with LayerManager(config) as manager:
            seconds = [_seconds_of_one(manager, desired) for _ in range(setting.runs)]
    return Series(tuple(1000 * value for value in seconds), Unit.MILLISECONDS)


def _seconds_of_one(manager: LayerManager, desired: list[DesiredLayer]) -> float:
    start = time.perf_counter()
    result = manager.process_desired_layers(desired)
    seconds = time.perf_counter() - start
    assert len(result.kept) == len(desired)
    return seconds


def _install_empty_layers(config: Config, count: int) -> list[DesiredLayer]:
    config.working_dir.mkdir()
    desired = [_desired(number) for number in range(count)]
    with SqliteLayerStorage(config.database, SystemClock()) as storage, storage.transaction():
        for layer in desired:
            path = config.layers_dir / layer.digest.algorithm / layer.digest.encoded
            path.mkdir(parents=True)
            storage.add_layer(_installed(layer, path))
    return desired


def _desired(number: int) -> DesiredLayer:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return DesiredLayer(
        Digest(f"sha256:{digest}"), f"https://layers.example/{digest}", f"layer-{number}", "1.0.0"
    )


def _installed(layer: DesiredLayer, path: Path) -> LayerInfo:
    return LayerInfo(
        digest=layer.digest,
        layer_id=layer.layer_id,
        version=layer.version,
        path=path,
        os_version="",
        timestamp=datetime.now(UTC),
        cached=False,
        size=0,
    )
