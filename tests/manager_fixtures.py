"""A node with a publisher, and ways to see whether its store is whole, for the manager's tests."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layermanager import Config, LayerManager, SqliteLayerStorage
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.space import Partitions
from layermanager.testing.layers import LayerBuilder, build_package, compress, desired
from layermanager.testing.trees import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from layermanager import Allocator, DesiredLayer, LayerInfo, LayerProgress, Space
    from layermanager.protocols import Remover
    from layermanager.testing.trees import FileState

MIB = 1024 * 1024

IMPATIENT = Network(
    attempts=2,
    retry_delay=timedelta(milliseconds=1),
    longest_retry_delay=timedelta(milliseconds=1),
)
"""For what fails for good in a test: a device would be more patient."""


def layer_tar(name: str, size: int = 0) -> bytes:
    """A layer whose files say *name*, one of them with *size* bytes that cannot be compressed."""
    return (
        LayerBuilder()
        .directory(".")
        .directory("etc")
        .file("etc/name", name.encode(), mode=0o600)
        .symlink("etc/link", "name")
        .file("data", hashlib.shake_256(name.encode()).digest(size))
        .tar()
    )


class Node:
    """A directory with published packages and a store; makes managers of it."""

    def __init__(self, base: Path, *, working_dir: Path | None = None, **settings: Any) -> None:
        self.published = base / "published"
        self.published.mkdir()
        self.config = Config(working_dir or base / "work", **{"network": IMPATIENT, **settings})

    def publish(self, name: str, size: int = 0) -> DesiredLayer:
        """Put a package with a layer of its own behind a file URL."""
        blob = compress(layer_tar(name, size), "gzip")
        return self.publish_bytes(name, blob, build_package(blob))

    def publish_bytes(self, name: str, blob: bytes, package: bytes | None = None) -> DesiredLayer:
        """Put *package*, or a bare *blob*, behind a file URL."""
        path = self.published / name
        path.write_bytes(blob if package is None else package)
        return desired(blob, path.as_uri(), package=package, layer_id=name)

    def manager(self, **arguments: Any) -> LayerManager:
        """A manager of the store."""
        return LayerManager(self.config, **arguments)

    def rows(self) -> tuple[LayerInfo, ...]:
        """What is recorded."""
        with SqliteLayerStorage(self.config.database, SystemClock()) as storage:
            return storage.get_layers_info()

    def files(self) -> dict[str, Mapping[bytes, FileState]]:
        """Every layer that is on disk, file by file."""
        return {
            f"{path.parent.name}:{path.name}": snapshot(path)
            for path in self.config.layers_dir.glob("*/*")
            if not path.parent.name.startswith(".") and "." not in path.name
        }

    def leftovers(self) -> list[Path]:
        """What lies in staging and trash, and beside a layer."""
        places = (".staging/*", ".trash/*", "[!.]*/*.*")
        return [
            *(path for place in places for path in self.config.layers_dir.glob(place)),
            *self.config.index_dir.glob(".staging/*"),
        ]

    def assert_has(self, desired_layers: Iterable[DesiredLayer | str]) -> None:
        """Exactly these layers are on disk and recorded, and nothing else lies about."""
        digests = sorted(
            layer if isinstance(layer, str) else layer.digest for layer in desired_layers
        )
        assert [str(row.digest) for row in self.rows()] == digests
        assert sorted(self.files()) == digests
        assert self.leftovers() == [], self.leftovers()


def names_in(layers: Iterable[LayerInfo]) -> list[str]:
    """The names of *layers*, in their order."""
    return [layer.layer_id for layer in layers]


def name_on_disk(layer: LayerInfo) -> str:
    """What a layer of ``layer_tar`` says that it is."""
    return (layer.path / "etc/name").read_text()


def descendants(process: int | None = None) -> set[int]:
    """The living processes that *process*, by default this one, started, and those they did."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name of the program, in parentheses, may hold anything; zombies are dead.
            state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    pending = [process or os.getpid()]
    while pending:
        for child in children.get(pending.pop(), []):
            found.add(child)
            pending.append(child)
    return found


@dataclass
class RecordingAllocators:
    """A ``NewSpaceAllocator`` that notes what it and its one allocator are asked."""

    partitions: Partitions = field(default_factory=Partitions)
    made: list[tuple[Path, int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    used: int = 0
    spaces: list[Space] = field(default_factory=list)

    def __call__(self, path: Path, part_limit: int, remover: Remover) -> RecordingAllocator:
        self.made.append((path, part_limit))
        return RecordingAllocator(self, self.partitions.new_allocator(path, part_limit, remover))

    @property
    def held(self) -> int:
        """The bytes that are set aside and neither accepted nor given back."""
        return sum(space.size for space in self.spaces)


class RecordingAllocator:
    """An ``Allocator`` that notes what it is asked and has another one do it."""

    def __init__(self, record: RecordingAllocators, allocator: Allocator) -> None:
        self._record = record
        self._allocator = allocator

    def allocate_space(self, size: int) -> Space:
        self._record.calls.append("allocate")
        space = self._allocator.allocate_space(size)
        self._record.spaces.append(space)
        return space

    def note_used_space(self, size: int) -> None:
        self._record.used = size
        self._allocator.note_used_space(size)

    def free_space(self, size: int) -> None:
        self._record.calls.append("free")
        self._allocator.free_space(size)

    def add_outdated_item(self, item_id: str, size: int, timestamp: datetime) -> None:
        self._record.calls.append("outdated")
        self._allocator.add_outdated_item(item_id, size, timestamp)

    def restore_outdated_item(self, item_id: str) -> None:
        self._record.calls.append("restore")
        self._allocator.restore_outdated_item(item_id)

    def close(self) -> None:
        self._record.calls.append("close")
        self._allocator.close()


@dataclass
class Progress:
    """Notes what ``on_progress`` is told."""

    told: list[LayerProgress] = field(default_factory=list)

    def __call__(self, progress: LayerProgress) -> None:
        self.told.append(progress)

    def phases_of(self, layer: DesiredLayer) -> list[str]:
        """The phases of *layer* in order, each once."""
        phases = [progress.phase.value for progress in self.told if progress.desired == layer]
        return list(dict.fromkeys(phases))


def wait_until_unused(manager: LayerManager) -> None:
    """Return when no copy is left of what was unmounted.

    A process that gets a mount namespace of its own, such as an unpacker of another test, has
    copies of all mounts for a moment.
    """
    while manager.leases():
        threading.Event().wait(0.01)
