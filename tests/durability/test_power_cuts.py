"""Whatever moment the power fails at: what was reported as installed is there, whole.

``POWER_CUTS`` in the environment is the number of cuts that the slow tests make at least;
``POWER_SEED`` is another beginning of what is random. A seed says what is done and where it is cut
short; when a file system writes is up to the kernel, so that a failure may need several tries.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from conftest import _require
from durability.disk import read_record
from durability.power import (
    BTRFS,
    EXT4,
    XFS,
    Cut,
    Loss,
    Machine,
    Recording,
    any_cut,
    shut_down,
    with_own_mounts,
)
from durability.work import ABSENT, DESIRED, PART_LIMIT, Fact, Work, publish, states
from layermanager.check import Status
from layermanager.errors import LayerManagerError
from layermanager.inventory import Inventory
from layermanager.model import Repair
from layermanager.space import Partitions
from layermanager.testing.layers import desired
from layermanager.testing.trees import snapshot
from layermanager.transfer.spool import Mark, Spools
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from durability.power import FileSystem
    from layermanager.model import DesiredLayer, LayerInfo
    from layermanager.steps import Step
    from layermanager.testing.trees import FileState
    from layermanager.transfer.spool import Spool

    Content = tuple[Mapping[bytes, FileState], bytes]

_SEED: Final = int(os.environ.get("POWER_SEED", "0"))
_CUTS: Final = int(os.environ.get("POWER_CUTS", "102"))
_CUTS_OF_A_TEST: Final = 17
_CUTS_OF_A_RECORDING: Final = 6
_MOST_STEPS: Final = 400
"""About as many as the work has."""

_ALL: Final = (EXT4, XFS, BTRFS)
_SEEDS: Final = range(_SEED, _SEED - (-_CUTS // (_CUTS_OF_A_TEST * len(_ALL))))
"""So many for each file system that there are at least as many cuts as are wanted."""

_SPOOLED: Final = hashlib.shake_256(b"spooled").digest(4_000_000)
_SPOOLED_LAYER: Final = desired(_SPOOLED, "https://host/layer")

_NOTHING: Final = Fact(0, {}, (), is_under_way=False)


@dataclass(frozen=True, slots=True)
class Rig:
    """A store on a machine whose power fails.

    Attributes:
        directory: where all is.
        machine: whose power fails.
        node: the store on it.
        layers: what may be desired.
        pristine: each of them, and its index, as it is where nothing ever failed.
    """

    directory: Path
    machine: Machine
    node: Node
    layers: Sequence[DesiredLayer]
    pristine: Mapping[str, Content]

    def record(self, image: Path, seed: int, **work: Any) -> tuple[Recording, list[Fact]]:
        """Have a process work on the store in *image*; return what the disk and it were told."""
        record = self.directory / "record"
        record.write_bytes(b"")
        with self.machine.recorded(image, record):
            facts = self.work(seed, **work)
        return Recording(image, read_record(record)), facts

    def work(self, seed: int, **work: Any) -> list[Fact]:
        """Have a process work on the store that is mounted; return what it was told."""
        return Work(
            desired=str(self.directory / "desired.json"),
            history=str(self.directory / "history"),
            working_dir=str(self.node.config.working_dir),
            record=str(self.directory / "record"),
            seed=seed,
            **work,
        ).perform(self.layers)

    def examine(self, image: Path, fact: Fact) -> dict[str, str]:
        """Turn the machine on after a power cut, and look whether all is well.

        Args:
            image: its disk.
            fact: what was known when the power failed.

        Returns:
            The layers that were installed.
        """
        wanted = [layer for layer in self.layers if layer.digest in fact.desired]
        with self.machine.mounted(image):
            found = self._rows()
            assert self._damaged(found) == []
            with self.node.manager() as manager:
                assert tuple(manager.get_layers_info()) == found
                self._assert_tidy(found)
                manager.process_desired_layers(wanted)
                converged = manager.get_layers_info()
            assert self._damaged(converged) == []
            checked = Inventory(self.node.config).check(converged)
            assert [report.status for report in checked] == [Status.INTACT] * len(converged)
            self._assert_tidy(converged)
        assert self.machine.faults(image) == ""
        for digest in self.pristine:
            state = states(found).get(digest, ABSENT)
            assert fact.allows(digest, state), f"{digest} is {state} after {fact}"
            is_desired = states(converged).get(digest) == DESIRED
            assert is_desired == (digest in fact.desired)
        return states(found)

    def damaged(self, image: Path) -> list[str]:
        """Turn the machine on, and name the layers that count as installed and are not whole."""
        with self.machine.mounted(image):
            return self._damaged(self._rows())

    def _rows(self) -> tuple[LayerInfo, ...]:
        """What counts as installed before anything is put in order: a reader may come first."""
        return Inventory(self.node.config).layers()

    def _damaged(self, rows: Sequence[LayerInfo]) -> list[str]:
        contents = _contents(self.node) if rows else {}
        return [
            row.layer_id for row in rows if contents.get(row.digest) != self.pristine[row.digest]
        ]

    def _assert_tidy(self, rows: Sequence[LayerInfo]) -> None:
        """There is nothing but the layers of *rows*, and their indexes."""
        assert self.node.leftovers() == []
        assert set(_contents(self.node)) == {row.digest for row in rows}
        indexes = self.node.config.index_dir.glob("sha256/*")
        assert {path.name for path in indexes} == {f"{row.digest.encoded}.mtree.gz" for row in rows}


def on(*file_systems: FileSystem) -> pytest.MarkDecorator:
    """Try a test on *file_systems*."""
    parameters = [pytest.param(one, id=one.name) for one in file_systems]
    return pytest.mark.parametrize("rig", parameters, indirect=True)


@pytest.fixture
def rig(request: pytest.FixtureRequest, fast_path: Path, needs_trusted_xattrs: None) -> Rig:  # noqa: ARG001 - of a layer's files, wherever they are compared
    """A rig in memory; the parameter is the file system of the machine."""
    machine = Machine(fast_path, request.param)
    _require(
        f"a disk in user space (FUSE, loop devices) with {request.param.name}",
        lambda: with_own_mounts(lambda: _probe(machine)),
    )
    node = Node(fast_path, working_dir=machine.mount_point / "work", layers_part_limit=PART_LIMIT)
    layers = publish(node)
    (fast_path / "pristine").mkdir()
    pristine = Node(fast_path / "pristine", durable=False)
    with pristine.manager() as manager:
        manager.process_desired_layers(layers)
    return Rig(fast_path, machine, node, layers, _contents(pristine))


def _probe(machine: Machine) -> None:
    """Use all that a rig needs once."""
    image = machine.new_image("probe")
    with machine.recorded(image, image.with_name("probe-record")):
        pass
    machine.faults(image)


def _contents(node: Node) -> dict[str, Content]:
    """Every layer in its place, with its index."""
    indexes = node.config.index_dir / "sha256"
    return {
        digest: (tree, _read(indexes / f"{digest.partition(':')[2]}.mtree.gz"))
        for digest, tree in node.files().items()
    }


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def cut_again_and_again(rig: Rig, seed: int, cuts: int) -> None:
    """Cut the power *cuts* times while work is done.

    Each recording begins with a disk as a cut of the one before left it, so that taking the work
    up after a cut is cut short as well.
    """
    generator = random.Random(seed)  # noqa: S311 - no secret
    image, fact = rig.machine.new_image("image"), _NOTHING
    for first in range(0, cuts, _CUTS_OF_A_RECORDING):
        recording, told = rig.record(image, generator.getrandbits(32))
        facts = [fact, *told]
        moments = _moments(recording, facts)
        numbers = range(first, min(first + _CUTS_OF_A_RECORDING, cuts))
        chosen = {number: any_cut(generator, moments) for number in numbers}
        for number, cut in chosen.items():
            with _noting(f"after {cut}, number {number} of the seed {seed}"):
                rows = _examined(rig, recording, cut, facts)
                fact = Fact(0, rows, (), is_under_way=False)
        image = rig.directory / f"image-{first}"
        recording.write_image(image, chosen[numbers[-1]])
        recording.base.unlink()


def _examined(rig: Rig, recording: Recording, cut: Cut, facts: Sequence[Fact]) -> Mapping[str, str]:
    image = rig.directory / "examined"
    recording.write_image(image, cut)
    known = bisect_right([fact.position for fact in facts], cut.position)
    return rig.examine(image, facts[known - 1])


@contextmanager
def _noting(circumstances: str) -> Iterator[None]:
    """Say with a failure under which *circumstances* it came."""
    try:
        yield
    except (AssertionError, LayerManagerError, subprocess.CalledProcessError) as error:
        error.add_note(circumstances)
        raise


def _moments(recording: Recording, facts: Sequence[Fact]) -> list[int]:
    """Positions for cuts: one in three when something had just been told, else between writes."""
    last = facts[-1].position
    between = [entry.end for entry in recording.entries if entry.end <= last]
    told = [fact.position for fact in facts]
    return [*between, *told * (len(between) // len(told) // 2)]


def _mark_at(offset: int) -> Mark:
    return Mark(offset, hashlib.sha256(_SPOOLED[:offset]).hexdigest(), "https://host/layer", "")


@on(*_ALL)
def test_some_power_cuts(rig: Rig) -> None:
    with_own_mounts(lambda: cut_again_and_again(rig, _SEED, cuts=2))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", _SEEDS)
@on(*_ALL)
def test_many_power_cuts(rig: Rig, seed: int) -> None:
    with_own_mounts(lambda: cut_again_and_again(rig, seed, _CUTS_OF_A_TEST))


def shut_down_at_random(rig: Rig, seed: int, times: int) -> None:
    """Have the file system end without writing its log while work is done, *times* times."""
    generator = random.Random(seed)  # noqa: S311 - no secret
    for number in range(times):
        image, step = rig.machine.new_image(f"image-{number}"), generator.randint(1, _MOST_STEPS)
        with rig.machine.mounted(image):
            told = rig.work(generator.getrandbits(32), shut_down_at=step)
        with _noting(f"shut down at step {step}, number {number} of the seed {seed}"):
            rig.examine(image, [_NOTHING, *told][-1])
        image.unlink()


@on(EXT4, XFS)
def test_some_shutdowns(rig: Rig) -> None:
    with_own_mounts(lambda: shut_down_at_random(rig, _SEED, times=2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", _SEEDS)
@on(EXT4, XFS)
def test_many_shutdowns(rig: Rig, seed: int) -> None:
    with_own_mounts(lambda: shut_down_at_random(rig, seed, times=10))


@on(*_ALL)
def test_a_layer_that_replaces_another_is_whole_from_the_first_moment(rig: Rig) -> None:
    """It has its own times as well, which XFS would change if it came from another directory."""

    def look(_: Step) -> None:
        seen.append(snapshot(place) == tree)

    def replace() -> None:
        with rig.machine.mounted(rig.machine.new_image("image")):
            with rig.node.manager() as manager:
                manager.process_desired_layers([layer])
                installed = manager.get_layer_info_by_digest(layer.digest)
            with rig.node.manager(on_step=look) as manager:
                manager.repair_layers([Repair(installed, layer)])

    seen: list[bool] = []
    layer = rig.layers[-1]
    place = rig.node.config.layers_dir / layer.digest.algorithm / layer.digest.encoded
    tree, _ = rig.pristine[layer.digest]
    with_own_mounts(replace)
    assert set(seen) == {True}


@dataclass(frozen=True, slots=True)
class Marked:
    """What was known of a spool at a moment.

    Attributes:
        position: the moment, as a position in the record of the disk.
        least: so many bytes must be in it.
    """

    position: int
    least: int


class Spooling:
    """A program that spools a layer, in its own way every time, beside another program.

    Attributes:
        told: what it was told to be marked.
    """

    def __init__(self, rig: Rig, seed: int) -> None:
        self.told: list[Marked] = []
        self._directory = rig.machine.mount_point / "download"
        self._record = rig.directory / "record"
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def run(self, operations: int) -> None:
        spool = self._open()
        for _ in range(operations):
            match self._random.choices(("append", "note", "open", "discard"), (8, 3, 2, 1))[0]:
                case "append":
                    spool.append(_SPOOLED[spool.size :][: self._random.randrange(50_000)])
                case "note":
                    spool.note(_mark_at(spool.size))
                    self._tell(spool.size)
                case "open":
                    spool.close()
                    spool = self._open()
                case "discard":
                    self._tell(0)
                    spool.discard()
                    spool = self._open()
            self._be_another_program()
        spool.close()

    def _open(self) -> Spool:
        return Spools(self._directory, Partitions().new_allocator).open(_SPOOLED_LAYER)

    def _tell(self, least: int) -> None:
        position = self._record.stat().st_size if self._record.exists() else 0
        self.told.append(Marked(position, least))

    def _be_another_program(self) -> None:
        if self._random.random() < 0.3:
            with (self._directory.parent / "of-another-program").open("a") as file:
                file.write("another line\n")
                file.flush()
                os.fsync(file.fileno())


def spooled_after_a_cut(rig: Rig, image: Path, least: int) -> None:
    """Turn the machine on: a spool is right, and has at least what must be in it."""
    with rig.machine.mounted(image):
        allocators = Partitions().new_allocator
        spool = Spools(rig.machine.mount_point / "download", allocators).open(_SPOOLED_LAYER)
        found = b"".join(spool.chunks())
        spool.close()
    assert rig.machine.faults(image) == ""
    assert spool.mark in (None, _mark_at(len(found)))
    assert found == _SPOOLED[: len(found)]
    assert len(found) >= least


def cut_while_spooling(rig: Rig, seed: int, cuts: int) -> None:
    """Spool once, and look at *cuts* power cuts of that."""
    generator = random.Random(seed)  # noqa: S311 - no secret
    image, record = rig.machine.new_image("image"), rig.directory / "record"
    record.write_bytes(b"")
    spooling = Spooling(rig, generator.getrandbits(32))
    with rig.machine.recorded(image, record):
        spooling.run(operations=60)
    recording = Recording(image, read_record(record))
    told = [Marked(0, 0), *spooling.told]
    moments = [entry.end for entry in recording.entries]
    moments += [marked.position for marked in told] * (len(moments) // len(told) // 2)
    for number in range(cuts):
        cut = any_cut(generator, moments)
        known = bisect_right([marked.position for marked in told], cut.position)
        examined = rig.directory / "examined"
        recording.write_image(examined, cut)
        with _noting(f"after {cut}, number {number} of the seed {seed}"):
            spooled_after_a_cut(rig, examined, told[known - 1].least)


@on(*_ALL)
def test_spools_after_some_power_cuts(rig: Rig) -> None:
    with_own_mounts(lambda: cut_while_spooling(rig, _SEED, cuts=6))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", _SEEDS)
@on(*_ALL)
def test_spools_after_many_power_cuts(rig: Rig, seed: int) -> None:
    with_own_mounts(lambda: cut_while_spooling(rig, seed, cuts=50))


@on(EXT4, XFS)
def test_a_spool_whose_file_system_shuts_down(rig: Rig) -> None:
    """With what was marked last, all its bytes are there; and the program gets over it."""

    def shut_down_after_a_mark() -> None:
        image = rig.machine.new_image("image")
        with rig.machine.mounted(image):
            allocators = Partitions().new_allocator
            spool = Spools(rig.machine.mount_point / "download", allocators).open(_SPOOLED_LAYER)
            for _ in range(3):
                spool.append(_SPOOLED[spool.size :][:100_000])
                spool.note(_mark_at(spool.size))
            spool.append(_SPOOLED[spool.size :][:100_000])
            shut_down(rig.machine.mount_point)
            spool.append(_SPOOLED[spool.size :][:100_000])
            spool.note(_mark_at(spool.size))
            spool.close()
        spooled_after_a_cut(rig, image, 300_000)

    with_own_mounts(shut_down_after_a_mark)


@on(EXT4)
def test_without_durability_there_is_damage(rig: Rig) -> None:
    """What the other tests look for is found where it must be, and on the kindest of disks."""

    def any_damage() -> bool:
        recording, facts = rig.record(rig.machine.new_image("image"), _SEED, durable=False)
        examined = rig.directory / "examined"
        for fact in facts:
            recording.write_image(examined, Cut(fact.position, Loss.NOTHING, seed=0))
            if rig.damaged(examined):
                return True
        return False

    assert with_own_mounts(any_damage)
