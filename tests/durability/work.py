"""A process that works on a store, and writes down elsewhere what it was told to be done.

What it does is random, from a seed: it makes other layers the desired ones, removes cached ones,
installs some anew in their places, ends the manager and makes a new one. Meanwhile it is also
another program that shares the file system and the database, and syncs what is its own: with an
``fsync`` ext4, for one, writes its journal, so that names reach the disk whose content has not.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from durability.power import shut_down
from layermanager.config import Config
from layermanager.desired import desired_to_json, read_desired
from layermanager.errors import LayerManagerError, LayersFailedError
from layermanager.manager import LayerManager
from layermanager.model import Phase, Repair
from layermanager.testing.layers import LayerBuilder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from layermanager.model import DesiredLayer, LayerInfo, LayerProgress
    from layermanager.steps import Step
    from manager_fixtures import Node

DESIRED: Final = "desired"
CACHED: Final = "cached"
ABSENT: Final = "absent"

PART_LIMIT: Final = 2
"""In per cent of 512 MB: too little for all layers, and enough for those that are desired."""

_SIZES: Final = (0, 5_000, 200_000, 500_000, 1_000_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000)
_SMALL_FILES: Final = 200
_MOST_DESIRED: Final = 4
_CHANCE_OF_ANOTHER_PROGRAM: Final = 0.3
_AT_ONCE: Final = timedelta(0)
_PATIENCE_SECONDS: Final = 60


def publish(node: Node) -> list[DesiredLayer]:
    """Publish the layers that there are to work with."""
    layers = [node.publish(f"layer-{size}-{number}", size) for number, size in enumerate(_SIZES)]
    layers.append(node.publish_bytes("small-files", _small_files()))
    return layers


def _small_files() -> bytes:
    layer = LayerBuilder().directory(".", mtime_ns=1_700_000_000_123_456_789)
    for number in range(7):
        layer.directory(f"{number}", mode=0o700, mtime_ns=number)
    for number in range(_SMALL_FILES):
        layer.file(f"{number % 7}/{number}", b"%d " % number * number, uid=number)
    return (
        layer.hardlink("same", "0/0")
        .symlink("link", "same")
        .file("with-attribute", b"content", mode=0o755, xattrs={"user.comment": b"value"})
        .tar()
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What a process is to do.

    Attributes:
        desired: a file with all layers that may be desired.
        history: the file in which it says what it was told to be done.
        working_dir: of the store; another program's file lies beside it.
        record: the record of the disk, whose size is the time; there may be none.
        seed: of what is random.
        durable: whether the store is.
        sessions: how many managers to make, one after the other.
        operations: how many to do with each.
        shut_down_at: the number of the step before which to shut the file system down, after
            which the work fails, or at its end if there are not so many; 0 for never.
    """

    desired: str
    history: str
    working_dir: str
    record: str
    seed: int
    durable: bool = True
    sessions: int = 2
    operations: int = 6
    shut_down_at: int = 0

    def perform(self, layers: Sequence[DesiredLayer]) -> list[Fact]:
        """Have a process do it with *layers*; return what it was told to be done."""
        Path(self.history).write_bytes(b"")
        Path(self.desired).write_text(json.dumps([desired_to_json(layer) for layer in layers]))
        worker = subprocess.run(
            # When the first process of a namespace is gone, all that it started are gone as well,
            # and none of them is using the file system any more.
            [
                *("unshare", "--pid", "--fork", "--kill-child"),
                *(sys.executable, "-m", "durability.work", json.dumps(asdict(self))),
            ],
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
        if worker.returncode != 0:
            raise AssertionError(f"{self} failed:\n{worker.stderr}")
        return [Fact(**json.loads(line)) for line in Path(self.history).read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Fact:
    """What was known at a moment.

    Attributes:
        position: the moment, as a position in the record of the disk.
        rows: each layer that is installed, and whether it is desired or cached; if an operation
            is under way, before it.
        desired: what is desired by the operation that is under way, or was by the last one.
        is_under_way: whether there is one.
    """

    position: int
    rows: Mapping[str, str]
    desired: Sequence[str]
    is_under_way: bool

    def allows(self, digest: str, state: str) -> bool:
        """Whether the layer *digest* may be found in this *state* after a cut."""
        before = self.rows.get(digest, ABSENT)
        if not self.is_under_way:
            return state == before
        if digest in self.desired:
            return state in (before, DESIRED)
        way = (DESIRED, CACHED, ABSENT)  # it is cached, and may then be evicted
        return state in way[way.index(before) :]


class _Worker:
    """Does it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._random = random.Random(work.seed)  # noqa: S311 - no secret
        self._config = Config(
            Path(work.working_dir), durable=work.durable, layers_part_limit=PART_LIMIT
        )
        self._layers = {
            str(layer.digest): layer
            for layer in read_desired(Path(work.desired).read_bytes(), work.desired)
        }
        self._rows: dict[str, str] = {}
        self._desired: list[str] = []
        self._steps = 0
        self._is_shut_down = False
        self._is_another_program = threading.Lock()

    def run(self) -> None:
        try:
            self._run()
        except (LayerManagerError, sqlite3.Error):
            if not self._is_shut_down:
                raise
        if self._work.shut_down_at and not self._is_shut_down:
            self._shut_down()

    def _run(self) -> None:
        for _ in range(self._work.sessions):
            with LayerManager(
                self._config, on_progress=self._on_progress, on_step=self._on_step
            ) as manager:
                self._note_end(manager)
                for _ in range(self._work.operations):
                    self._operate(manager)
                    self._note_end(manager)
                    self._share_the_database()

    def _operate(self, manager: LayerManager) -> None:
        match self._random.choices(("apply", "evict", "expire", "repair"), (6, 1, 1, 2))[0]:
            case "apply":
                wanted = self._some_of(self._layers)
                self._note_begin(wanted)
                manager.process_desired_layers(self._layers[digest] for digest in wanted)
            case "evict":
                self._note_begin(self._desired)
                manager.remove_cached_layers(self._random.choice(_SIZES))
            case "expire":
                self._note_begin(self._desired)
                manager.remove_expired_layers(_AT_ONCE)
            case "repair":
                self._note_begin(self._desired)
                with suppress(LayersFailedError):  # there may be no room for second copies
                    manager.repair_layers(
                        Repair(manager.get_layer_info_by_digest(digest), self._layers[digest])
                        for digest in self._some_of(self._rows)
                    )

    def _some_of(self, digests: Collection[str]) -> list[str]:
        count = self._random.randint(0, min(_MOST_DESIRED, len(digests)))
        return self._random.sample(sorted(digests), count)

    def _on_progress(self, progress: LayerProgress) -> None:
        if progress.phase is Phase.INSTALLED and progress.desired.digest in self._desired:
            self._rows[progress.desired.digest] = DESIRED
            self._note(is_under_way=True)

    def _on_step(self, _: Step) -> None:
        with self._is_another_program:
            self._steps += 1
            if self._steps == self._work.shut_down_at:
                self._shut_down()
            if not self._is_shut_down and self._random.random() < _CHANCE_OF_ANOTHER_PROGRAM:
                path = self._config.working_dir.parent / "of-another-program"
                with path.open("a", encoding="ascii") as file:
                    file.write("another line\n")
                    file.flush()
                    os.fsync(file.fileno())

    def _shut_down(self) -> None:
        self._is_shut_down = True
        shut_down(self._config.working_dir.parent)

    def _share_the_database(self) -> None:
        """Be a program that has tables of its own in the database, as Aos's has."""
        with closing(sqlite3.connect(self._config.database, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = FULL")
            database.execute("CREATE TABLE IF NOT EXISTS instances (number INTEGER)")
            database.execute("INSERT INTO instances VALUES (1)")

    def _note_begin(self, desired: Sequence[str]) -> None:
        self._desired = list(desired)
        self._note(is_under_way=True)

    def _note_end(self, manager: LayerManager) -> None:
        self._rows = states(manager.get_layers_info())
        self._desired = [digest for digest, state in self._rows.items() if state == DESIRED]
        self._note(is_under_way=False)

    def _note(self, *, is_under_way: bool) -> None:
        record = Path(self._work.record)
        position = record.stat().st_size if record.exists() else 0
        fact = Fact(position, self._rows, self._desired, is_under_way)
        with Path(self._work.history).open("a", encoding="utf-8") as history:
            history.write(json.dumps(asdict(fact)) + "\n")


def states(rows: Sequence[LayerInfo]) -> dict[str, str]:
    """In which state the layers of *rows* are."""
    return {str(row.digest): CACHED if row.cached else DESIRED for row in rows}


if __name__ == "__main__":
    _Worker(Work(**json.loads(sys.argv[1]))).run()
