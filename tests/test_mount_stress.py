"""Layers are mounted, evicted, expired and installed at random, by several: none loses a file."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE
from layermanager.errors import LayerNotExistError, LayersFailedError
from layermanager.space import DiskUsage, Partitions
from layermanager.testing.layers import LayerBuilder, compress
from manager_fixtures import Node
from stress_mounter import FILES, assert_whole, content_of, file_of

if TYPE_CHECKING:
    from layermanager import DesiredLayer, LayerManager

LAYERS = 8
STRANGERS = 2
OWN_MOUNTS = 5

pytestmark = pytest.mark.usefixtures("needs_overlay")


class Stress:
    """A store that changes all the time, and mounts of its own besides those of strangers."""

    def __init__(self, base: Path, seed: int) -> None:
        self._base = base
        self._node = Node(base, layers_part_limit=100)
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._layers = [self._publish(f"{number}-{base.name}") for number in range(LAYERS)]
        self.removed = 0
        self.mounted = 0
        (base / "empty").mkdir()

    def _publish(self, name: str) -> DesiredLayer:
        builder = LayerBuilder().directory(".").directory(f"of-{name}")
        for part in range(3):
            builder = builder.directory(f"of-{name}/{part}")
        for number in range(FILES):
            builder = builder.file(file_of(name, number), content_of(name, number).encode())
        return self._node.publish_bytes(name, compress(builder.tar(), "gzip"))

    def run(self, mounts: int) -> list[str]:
        """Change the store until all have mounted so often; return what the strangers said."""
        with ExitStack() as stack:
            manager = stack.enter_context(self._node.manager(new_space_allocator=self._space()))
            manager.process_desired_layers(self._layers)
            size = sum(layer.size for layer in manager.get_layers_info())
            self._total = size * 3 // 4
            strangers = [self._stranger(number, mounts) for number in range(STRANGERS)]
            try:
                while self._has_strangers(strangers) or self.mounted < OWN_MOUNTS:
                    self._act(manager)
            finally:
                for stranger in strangers:
                    stranger.kill()
        said = []
        for stranger in strangers:
            out, errors = stranger.communicate()
            assert stranger.returncode == 0, errors
            said.append(out)
        return said

    @staticmethod
    def _has_strangers(strangers: list[subprocess.Popen[str]]) -> bool:
        return any(stranger.poll() is None for stranger in strangers)

    def _space(self) -> object:
        self._total = 1 << 40
        usage = Partitions(lambda _: DiskUsage(device=1, total=self._total, free=1 << 40))
        return usage.new_allocator

    def _stranger(self, number: int, mounts: int) -> subprocess.Popen[str]:
        target = self._base / f"target-{number}"
        target.mkdir()
        script = Path(__file__).with_name("stress_mounter.py")
        places = (self._node.config.layers_dir, target, self._base / "empty")
        return subprocess.Popen(
            [*IN_A_MOUNT_NAMESPACE, sys.executable, script, *places, str(number), str(mounts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _act(self, manager: LayerManager) -> None:
        match self._chance.choice(("apply", "apply", "expire", "collect", "mount")):
            case "apply":
                wanted = self._chance.sample(self._layers, self._chance.randint(0, 6))
                with suppress(LayersFailedError):  # there may be no room beside what is in use
                    manager.process_desired_layers(wanted)
            case "expire":
                self.removed += len(manager.remove_expired_layers(timedelta(0)))
            case "collect":
                self.removed += len(manager.remove_cached_layers(self._chance.randint(1, 200_000)))
            case "mount":
                self._mount(manager)

    def _mount(self, manager: LayerManager) -> None:
        """Mount some layers by name, and let them expire meanwhile."""
        target = self._base / "own-target"
        target.mkdir(exist_ok=True)
        chosen = self._chance.sample(self._layers, self._chance.randint(1, 4))
        digests = [layer.digest for layer in chosen]
        with suppress(LayerNotExistError), manager.mount("own", digests, target=target):
            manager.process_desired_layers([])
            self.removed += len(manager.remove_expired_layers(timedelta(0)))
            assert assert_whole(target) == len(chosen)
            self.mounted += 1


@pytest.mark.parametrize(
    "mounts", [200, pytest.param(6000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_no_mount_loses_a_file(tmp_path: Path, mounts: int) -> None:
    stress = Stress(tmp_path, seed=mounts)
    said = stress.run(mounts)
    assert all(int(line.split()[0]) > mounts // 10 for line in said), said
    assert stress.removed > 0
