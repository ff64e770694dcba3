"""A process that does one thing with fewer and fewer descriptors; ``test_exhaustion`` starts it.

For each number of spare descriptors, from 0 until it works, it prints a line of JSON: how many, how
many descriptors were left open by the try, and what each error was.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import Config, LayerManager, LayersFailedError
from layermanager.errors import LayerManagerError
from layermanager.inventory import Inventory
from layermanager.testing.layers import compress, desired
from manager_fixtures import IMPATIENT, layer_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layermanager import DesiredLayer

_MOST: Final = 60


def main() -> None:
    """Do what the arguments say: ACTION DIRECTORY."""
    action, base = sys.argv[1], Path(sys.argv[2])
    config = Config(base / "work", network=IMPATIENT, parallel_installs=2)
    warm, *layers = [_publish(base, name) for name in ("warm", "a", "b")]
    with LayerManager(config) as manager:
        manager.process_desired_layers([warm])  # all modules and processes are there now
        inventory = Inventory(config)
        actions: Mapping[str, Callable[[], object]] = {
            "apply": lambda: _apply(manager, [warm, *layers]),
            "look": lambda: (inventory.usage(), inventory.check(inventory.layers())),
        }
        if action in actions:
            _walk(actions[action])
    if action == "open":
        LayerManager(config).close()
        _walk(lambda: LayerManager(config).close())


def _apply(manager: LayerManager, layers: Sequence[DesiredLayer]) -> None:
    """Install *layers*, which are removed before."""
    manager.process_desired_layers(layers[:1])
    manager.remove_cached_layers(1 << 40)
    manager.process_desired_layers(layers)


def _publish(base: Path, name: str) -> DesiredLayer:
    blob = compress(layer_tar(name), "gzip")
    path = base / name
    path.write_bytes(blob)
    return desired(blob, path.as_uri())


def _walk(action: Callable[[], object]) -> None:
    action()
    gc.collect()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(_descriptors())
    while (free := os.dup(0)) < highest:
        pass  # the limit is on the numbers: there must be no free ones below it
    os.close(free)
    before = _descriptors()
    for spare in range(_MOST):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + spare, hard))
        try:
            action()
            errors: list[BaseException] = []
        except LayersFailedError as error:
            errors = list(error.exceptions)
        except LayerManagerError as error:
            errors = [error]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        told = [{"type": type(error).__name__, "message": str(error)} for error in errors]
        del errors
        gc.collect()
        left = [str(Path(f"/proc/self/fd/{one}").readlink()) for one in _descriptors() - before]
        print(json.dumps({"spare": spare, "left": left, "errors": told}), flush=True)  # noqa: T201
        if not told:
            return


def _descriptors() -> set[int]:
    found = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {one for one in found if Path(f"/proc/self/fd/{one}").exists()}  # not that of the look


main()
