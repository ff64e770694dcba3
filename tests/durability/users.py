"""What the processes do that use a store."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Final

from durability.scenarios import RAISED, RETURNED
from durability.site import Site
from durability.walk import Fault, Kind, Walk, say
from layermanager.config import Config
from layermanager.errors import LayerManagerError, LayersFailedError, UnpackerError
from layermanager.manager import LayerManager
from layermanager.model import Repair
from layermanager.space import DiskUsage, Partitions, disk_usage
from layermanager.steps import Step

NAMES: Final = ("one", "two", "three", "four", "five")
"""What is installed and removed; ``earlier`` is always desired."""

_PARALLEL: Final = 2
_PATIENCE: Final = timedelta(minutes=1)
_BOASTED: Final = 100 * 1024 * 1024


def publish(site: Site) -> None:
    """Publish layers of which some take a while."""
    site.publish("earlier", 100_000)
    for number, name in enumerate(NAMES):
        site.publish(name, number * 500_000)


def use(base: str, seed: int) -> int:
    """Do one thing after the other with a store, in an order that *seed* decides."""
    choice = random.Random(seed)  # noqa: S311 - a test's choice is no secret
    site = Site(Path(base), parallel_installs=_PARALLEL)
    while True:
        with site.manager(on_progress=Walk().on_progress) as manager:
            for _ in range(choice.randint(1, 5)):
                try:
                    _do_something(site, manager, choice)
                except LayersFailedError as error:
                    # The worker may be what was killed; then the rest goes on.
                    if error.split(UnpackerError)[1] is not None:
                        raise


def take_turns(base: str, seed: int, times: int) -> int:
    """Install, cache and remove layers, waiting for others that do so too."""
    choice = random.Random(seed)  # noqa: S311 - a test's choice is no secret
    site = Site(Path(base), parallel_installs=_PARALLEL)
    for _ in range(times):
        names = choice.sample(NAMES, choice.randint(0, len(NAMES)))
        with site.manager(patience=_PATIENCE) as manager:
            manager.process_desired_layers(site.layers(["earlier", *names]))
            manager.remove_cached_layers(choice.randrange(1_000_000))
    return RETURNED


def _do_something(site: Site, manager: LayerManager, choice: random.Random) -> None:
    match choice.randrange(6):
        case 0:
            say("removing")
            manager.remove_cached_layers(choice.randrange(1_000_000))
        case 1:
            say("removing")
            manager.remove_expired_layers(timedelta(0))
        case 2:
            layers = choice.sample(manager.get_layers_info(), 1)
            manager.repair_layers([Repair(one, site.layer(one.layer_id)) for one in layers])
        case _:
            names = choice.sample(NAMES, choice.randint(0, len(NAMES)))
            manager.process_desired_layers(site.layers(["earlier", *names]))


def apply(base: str, working_dir: str, allocator: str, *names: str) -> int:
    """Make the layers of the store *working_dir* those that are published below *base*."""
    site = Site(Path(base), working_dir=Path(working_dir))
    partitions = Partitions(USAGES[allocator])
    try:
        site.apply(names, new_space_allocator=partitions.new_allocator)
    except LayerManagerError:
        return RAISED
    return RETURNED


def _boast(path: Path) -> DiskUsage:
    """Say that there is room, so that it is the kernel that refuses what does not fit."""
    usage = disk_usage(path)
    return DiskUsage(usage.device, usage.total + _BOASTED, usage.free + _BOASTED)


USAGES: Final = {"the allocator refuses": disk_usage, "the kernel refuses": _boast}


def empty(working_dir: str, kind: str, step: str, occurrence: int) -> int:
    """Remove what is cached, until a fault."""
    walk = Walk(Fault(Kind(kind), Step(step), occurrence))
    try:
        with walk.watching(), LayerManager(Config(Path(working_dir)), on_step=walk) as manager:
            manager.remove_expired_layers(timedelta(0))
    except LayerManagerError:
        return RAISED
    return RETURNED
