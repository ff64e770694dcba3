"""Spools: what they keep, what they do not believe, and how little they are worth."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from layermanager.errors import ConfigError, IntegrityError, NotEnoughSpaceError, StoreError
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step, unannounced
from layermanager.testing.layers import desired
from layermanager.transfer.spool import MARK_BYTES, Mark, Spool, Spools
from manager_fixtures import MIB, RecordingAllocators

if TYPE_CHECKING:
    from layermanager.model import DesiredLayer
    from layermanager.protocols import Allocator, Remover
    from layermanager.steps import OnStep

LONG: Final = 20  # seconds after which something that should happen at once counts as hanging
URL: Final = "https://host/layer"
DATA: Final = hashlib.shake_256(b"spooled").digest(1000)
LAYER: Final = desired(DATA, URL)
OTHER: Final = desired(b"other", URL)
FULL: Final = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
WRITTEN_DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)


def mark_of(data: bytes, url: str = URL, validator: str = '"1"') -> Mark:
    return Mark(len(data), hashlib.sha256(data).hexdigest(), url, validator)


def name_of(layer: DesiredLayer) -> str:
    return layer.digest.replace(":", "-")


def plenty(_: Path) -> DiskUsage:
    return DiskUsage(device=1, total=1 << 40, free=1 << 40)


def in_plenty(directory: Path, *, durable: bool = True, on_step: OnStep = unannounced) -> Spools:
    """Spools that the allocator has any room for."""
    allocators = Partitions(plenty).new_allocator
    return Spools(directory, allocators, durable=durable, on_step=on_step)


def spool(spools: Spools, data: bytes, *marks: int, layer: DesiredLayer = LAYER) -> None:
    """Spool *data*, with marks behind so many bytes, as a transfer does that is interrupted."""
    open_spool = spools.open(layer)
    begin = 0
    for end in sorted({*marks, len(data)}):
        open_spool.append(data[begin:end])
        if end in marks:
            open_spool.note(mark_of(data[:end]))
        begin = end
    open_spool.close()


def spooled(spools: Spools, layer: DesiredLayer = LAYER) -> bytes:
    """What is found, by somebody who then leaves it."""
    open_spool = spools.open(layer)
    data = b"".join(open_spool.chunks())
    assert open_spool.size == len(data) == (open_spool.mark.offset if open_spool.mark else 0)
    open_spool.close()
    return data


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "download"


@pytest.fixture
def spools(directory: Path) -> Spools:
    return in_plenty(directory)


@pytest.fixture
def part(directory: Path) -> Path:
    return directory / f"{name_of(LAYER)}.part"


@pytest.fixture
def journal(directory: Path) -> Path:
    return directory / f"{name_of(LAYER)}.journal"


# --- what is kept -------------------------------------------------------------------------------


class TestKeeping:
    def test_what_was_marked_comes_back(self, spools: Spools) -> None:
        spool(spools, DATA, 600)
        found = spools.open(LAYER)
        assert found.mark == mark_of(DATA[:600])
        assert b"".join(found.chunks()) == DATA[:600]
        found.close()

    def test_and_is_gone_on_with(self, spools: Spools) -> None:
        spool(spools, DATA, 600)
        found = spools.open(LAYER)
        found.append(DATA[600:])
        found.note(mark_of(DATA))
        found.close()
        assert spooled(spools) == DATA

    def test_nothing_is_believed_without_a_mark(self, spools: Spools, part: Path) -> None:
        spool(spools, DATA)
        assert part.read_bytes() == DATA
        assert spooled(spools) == b""
        assert part.read_bytes() == b""

    def test_a_mark_is_due_after_so_many_bytes(self, spools: Spools) -> None:
        open_spool = spools.open(LAYER)
        assert not open_spool.append(bytes(MARK_BYTES - 1))
        assert open_spool.append(b"1")
        open_spool.note(mark_of(bytes(MARK_BYTES - 1) + b"1"))
        assert not open_spool.append(b"2")
        open_spool.close()

    def test_a_mark_elsewhere_than_at_the_end_is_not_noted(self, spools: Spools) -> None:
        open_spool = spools.open(LAYER)
        open_spool.append(DATA)
        open_spool.note(mark_of(DATA[:-1]))
        assert open_spool.mark is None
        open_spool.close()
        assert spooled(spools) == b""

    def test_it_is_found_as_soon_as_it_is_begun(self, spools: Spools) -> None:
        assert not spools.has(LAYER)
        spool(spools, DATA)
        assert spools.has(LAYER)
        assert not spools.has(OTHER)

    def test_what_was_discarded_is_gone(self, spools: Spools, directory: Path) -> None:
        spool(spools, DATA, 600)
        found = spools.open(LAYER)
        found.discard()
        found.discard()
        assert not found.append(DATA)
        found.note(mark_of(DATA))
        found.close()
        assert list(directory.iterdir()) == []
        assert not spools.has(LAYER)

    def test_only_its_owner_may_read_it(self, spools: Spools, part: Path, journal: Path) -> None:
        spool(spools, DATA, 600)
        assert [path.stat().st_mode & 0o777 for path in (part, journal)] == [0o600, 0o600]

    def test_no_descriptor_is_left_open(self, spools: Spools) -> None:
        before = open_descriptors()
        spool(spools, DATA, 600)
        spooled(spools)
        spools.open(LAYER).discard()
        assert open_descriptors() == before

    def test_text_of_any_kind_is_kept_of_an_address(self, spools: Spools) -> None:
        mark = mark_of(DATA, 'https://höst/"layer"\n?a=\\b', 'W/"ü\n{}"')
        open_spool = spools.open(LAYER)
        open_spool.append(DATA)
        open_spool.note(mark)
        open_spool.close()
        found = spools.open(LAYER)
        assert found.mark == mark
        found.close()

    def test_a_disk_is_told_first_the_bytes_and_then_the_mark(self, directory: Path) -> None:
        steps: list[Step] = []
        open_spool = in_plenty(directory, on_step=steps.append).open(LAYER)
        open_spool.append(DATA)
        steps.clear()
        open_spool.note(mark_of(DATA))
        open_spool.close()
        assert steps == [Step.SYNC_SPOOL, Step.WRITE_SPOOL, Step.SYNC_SPOOL]

    def test_the_disk_begins_with_the_bytes_before_they_are_synced(
        self, small_file_system: Path
    ) -> None:
        device = small_file_system.stat().st_dev
        statistics = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")

        def written() -> int:
            return int(statistics.read_text().split()[6]) * 512

        spools = in_plenty(small_file_system / "download")
        with contextlib.closing(spools.open(LAYER)) as open_spool:
            before, deadline = written(), time.monotonic() + LONG
            open_spool.append(bytes(2 * MIB))
            while written() < before + 2 * MIB:  # of itself it begins after half a minute
                assert time.monotonic() < deadline
                time.sleep(0.01)  # the kernel does not tell

    def test_without_durability_nothing_is_synced(self, directory: Path) -> None:
        steps: list[Step] = []
        spools = in_plenty(directory, durable=False, on_step=steps.append)
        spool(spools, DATA, 600)
        assert Step.SYNC_SPOOL not in steps
        assert spooled(spools) == DATA[:600]


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=20))
def test_the_bytes_up_to_the_last_mark_come_back(pieces: list[tuple[bytes, bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        open_spool = in_plenty(Path(directory), durable=False).open(LAYER)
        data = marked = b""
        for piece, is_marked in pieces:
            open_spool.append(piece)
            data += piece
            if is_marked:
                open_spool.note(mark_of(data))
                marked = data
        open_spool.close()
        assert spooled(in_plenty(Path(directory))) == marked


# --- what is not believed -----------------------------------------------------------------------


class TestDamage:
    MARKS: Final = (200, 600, 1000)

    def test_a_journal_that_is_cut_off_at_any_byte(
        self, directory: Path, part: Path, journal: Path
    ) -> None:
        spools = in_plenty(directory, durable=False)
        spool(spools, DATA, *self.MARKS)
        whole = journal.read_bytes()
        ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
        assert len(ends) == 1 + len(self.MARKS)
        for cut in range(len(whole)):
            part.write_bytes(DATA)
            journal.write_bytes(whole[:cut])
            lines = sum(end <= cut for end in ends)
            expected = DATA[: (0, 0, *self.MARKS)[lines]]
            found = spools.open(LAYER)
            assert b"".join(found.chunks()) == expected
            # What is written behind it is not part of the line that was cut off.
            found.append(DATA[len(expected) : 900])
            found.note(mark_of(DATA[:900]))
            found.close()
            assert spooled(spools) == DATA[:900]

    @given(st.lists(st.binary(max_size=40), max_size=5), st.binary(max_size=40))
    def test_lines_that_are_no_marks_are_passed_over(
        self, garbage: list[bytes], torn: bytes
    ) -> None:
        with tempfile.TemporaryDirectory() as directory:
            spools = in_plenty(Path(directory), durable=False)
            spool(spools, DATA, *self.MARKS)
            (journal,) = Path(directory).glob("*.journal")
            with journal.open("ab") as file:
                file.write(b"\n".join([*garbage, torn.replace(b"\n", b"")]))
            assert spooled(spools) == DATA

    @pytest.mark.parametrize(
        "line",
        [
            b"{}",
            b"[]",
            b'{"offset": 300}',
            b'{"offset": -1, "digest": "00", "url": "u", "validator": ""}',
            b'{"offset": "300", "digest": "00"}',
            b'{"offset": 3.5, "digest": "00"}',
            b'{"offset": 300, "digest": ""}',
            b'{"offset": 300, "digest": "00", "url": "\\ud800"}',
            b'{"offset": 300, "digest": "00", "offset": 300}',
            b'{"offset": ' + b"9" * 5000 + b', "digest": "00"}',
            b"[" * 100_000,
            b"\0" * 4096,
            b"\xff",
        ],
    )
    def test_nor_are_these_marks(self, spools: Spools, journal: Path, line: bytes) -> None:
        spool(spools, DATA, 200)
        with journal.open("ab") as file:
            file.write(line + b"\n")
        assert spooled(spools) == DATA[:200]

    @given(st.binary(max_size=300), st.binary(max_size=300))
    def test_any_files_can_be_in_its_place(self, part: bytes, journal: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            spools = in_plenty(Path(directory), durable=False)
            (Path(directory) / f"{name_of(LAYER)}.part").write_bytes(part)
            (Path(directory) / f"{name_of(LAYER)}.journal").write_bytes(journal)
            assert spooled(spools) == b""
            spool(spools, DATA, 600)
            assert spooled(spools) == DATA[:600]

    @pytest.mark.parametrize("size", [0, 1, 999])
    def test_a_part_that_is_shorter_than_its_mark(
        self, spools: Spools, part: Path, size: int
    ) -> None:
        spool(spools, DATA, *self.MARKS)
        os.truncate(part, size)
        assert spooled(spools) == b""

    def test_a_part_that_is_longer(self, spools: Spools, part: Path) -> None:
        spool(spools, DATA, 600)
        assert part.stat().st_size == 1000
        assert spooled(spools) == DATA[:600]
        assert part.stat().st_size == 600

    def test_a_part_that_is_gone(self, spools: Spools, part: Path) -> None:
        spool(spools, DATA, 600)
        part.unlink()
        assert spooled(spools) == b""

    def test_a_part_without_a_journal(self, spools: Spools, journal: Path) -> None:
        spool(spools, DATA, 600)
        journal.unlink()
        assert not spools.has(LAYER)
        assert spooled(spools) == b""

    @pytest.mark.parametrize(
        "otherwise",
        [
            dataclasses.replace(LAYER, size=999),
            dataclasses.replace(LAYER, size=None),
            dataclasses.replace(LAYER, sha256=b"\1" * 32),
        ],
    )
    def test_a_file_that_is_desired_otherwise_is_another(
        self, spools: Spools, otherwise: DesiredLayer
    ) -> None:
        spool(spools, DATA, 600)
        assert spooled(spools, otherwise) == b""
        assert spooled(spools, LAYER) == b""

    def test_so_is_that_of_another_layer_under_this_name(
        self, spools: Spools, part: Path, journal: Path
    ) -> None:
        spool(spools, DATA, 600, layer=OTHER)
        for path in (part, journal):
            path.with_stem(name_of(OTHER)).rename(path)
        assert spooled(spools) == b""

    def test_where_it_is_to_be_had_does_not_matter(self, spools: Spools) -> None:
        spool(spools, DATA, 600)
        moved = dataclasses.replace(LAYER, url="https://new/", mirrors=("https://mirror/",))
        assert spooled(spools, moved) == DATA[:600]

    def test_a_part_that_gets_shorter_while_it_is_read(self, spools: Spools, part: Path) -> None:
        data = bytes(MIB)
        spool(spools, data, len(data))
        found = spools.open(LAYER)
        chunks = found.chunks()
        first = next(chunks)
        os.truncate(part, len(first) + 1)
        assert next(chunks) == b"\0"
        with pytest.raises(IntegrityError, match=f"spooled bytes.*found {len(first) + 1}"):
            next(chunks)
        found.close()

    def test_an_endless_journal_is_read_up_to_a_bound(self, spools: Spools, journal: Path) -> None:
        spool(spools, DATA, 600)
        marked = journal.stat().st_size
        os.truncate(journal, 1 << 40)  # a hole
        assert spooled(spools) == DATA[:600]
        assert journal.stat().st_size == marked


# --- other files --------------------------------------------------------------------------------


FOREIGN: Final = (
    "layer.tar",
    "sha256",
    ".part",
    ".journal",
    "sha256-0123.part",
    f"md5-{'0' * 32}.part",
    f"{LAYER.digest}.part",
    f"{name_of(LAYER)}",
    f"{name_of(LAYER)}.tmp",
    f"{name_of(LAYER)}.part.tmp",
    f"{name_of(LAYER)}.tmp.part",
    f"{name_of(LAYER).upper()}.part",
    f"{name_of(LAYER)} .part",
    os.fsdecode(b"\xff.part"),
)


class TestOtherFiles:
    def test_only_spools_that_nobody_desires_are_removed(
        self, spools: Spools, directory: Path
    ) -> None:
        for layer in (LAYER, OTHER):
            spool(spools, DATA, 600, layer=layer)
        spools.keep_only([OTHER])
        assert {path.stem for path in directory.iterdir()} == {name_of(OTHER)}
        assert spooled(spools, OTHER) == DATA[:600]
        spools.keep_only([])
        assert list(directory.iterdir()) == []

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_also_half_of_one(self, spools: Spools, directory: Path, suffix: str) -> None:
        directory.mkdir()
        (directory / f"{name_of(LAYER)}.{suffix}").write_bytes(DATA)
        spools.keep_only([OTHER])
        assert list(directory.iterdir()) == []

    def test_files_of_others_stay(self, spools: Spools, directory: Path) -> None:
        directory.mkdir()
        for name in FOREIGN:
            (directory / name).write_bytes(os.fsencode(name))
        spool(spools, DATA, 600)
        spools.keep_only([])
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
            name: os.fsencode(name) for name in FOREIGN
        }

    def test_a_directory_that_is_not_there_is_not_made(
        self, spools: Spools, directory: Path
    ) -> None:
        spools.take_stock()
        spools.keep_only([LAYER])
        assert not spools.has(LAYER)
        assert not directory.exists()

    def test_it_is_made_when_there_is_something_to_spool(
        self, directory: Path, tmp_path: Path
    ) -> None:
        steps: list[Step] = []
        spool(in_plenty(directory / "deep", on_step=steps.append), DATA, 600)
        assert steps.count(Step.MAKE_STORE_DIRECTORY) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["download"]

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_a_symbolic_link_in_its_place_is_refused(
        self, spools: Spools, directory: Path, tmp_path: Path, suffix: str
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        directory.mkdir()
        link = directory / f"{name_of(LAYER)}.{suffix}"
        link.symlink_to(victim)
        before = open_descriptors()
        with pytest.raises(StoreError, match=f"cannot spool: .*{link}"):
            spools.open(LAYER)
        assert open_descriptors() == before
        assert victim.read_text() == "precious"
        spools.keep_only([])
        assert list(directory.iterdir()) == []
        assert victim.read_text() == "precious"

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_nor_is_anything_made_where_it_leads(
        self, spools: Spools, directory: Path, tmp_path: Path, suffix: str
    ) -> None:
        directory.mkdir()
        (directory / f"{name_of(LAYER)}.{suffix}").symlink_to(tmp_path / "made")
        with pytest.raises(StoreError):
            spools.open(LAYER)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_a_fifo_is_refused(self, spools: Spools, directory: Path, suffix: str) -> None:
        directory.mkdir()
        os.mkfifo(directory / f"{name_of(LAYER)}.{suffix}")
        with pytest.raises(StoreError, match="cannot spool"):
            spools.open(LAYER)

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_a_directory_in_its_place_hinders_nobody_else(
        self, spools: Spools, directory: Path, suffix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        obstacle = directory / f"{name_of(LAYER)}.{suffix}"
        obstacle.mkdir(parents=True)
        with pytest.raises(StoreError, match="cannot spool"):
            spools.open(LAYER)
        spool(spools, DATA, 600, layer=OTHER)
        spools.keep_only([])
        assert list(directory.iterdir()) == [obstacle]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert str(obstacle) in caplog.text

    def test_a_file_in_place_of_the_directory_hinders_nobody(
        self, spools: Spools, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory.write_text("a file")
        spools.keep_only([LAYER])
        assert "cannot look for spools" in caplog.text
        assert not spools.has(LAYER)
        with pytest.raises(StoreError, match="cannot spool"):
            spools.open(LAYER)
        assert directory.read_text() == "a file"


# --- a disk that refuses ------------------------------------------------------------------------


class Faults:
    """An ``OnStep`` that has the n-th step of a kind fail."""

    def __init__(self, step: Step, number: int, code: int) -> None:
        self._step = step
        self._left = number
        self._code = code

    def __call__(self, step: Step) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                raise OSError(self._code, os.strerror(self._code), step)


class TestErrors:
    @pytest.mark.parametrize("code", FULL)
    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_at_the_beginning_there_is_no_spool(
        self, directory: Path, number: int, code: int
    ) -> None:
        spools = in_plenty(directory, on_step=Faults(Step.WRITE_SPOOL, number, code))
        before = open_descriptors()
        with pytest.raises(StoreError, match=f"cannot spool: .*{os.strerror(code)}"):
            spools.open(LAYER)
        assert open_descriptors() == before
        spool(spools, DATA, 600)
        assert spooled(spools) == DATA[:600]

    @pytest.mark.parametrize("code", FULL)
    @pytest.mark.parametrize(
        ("step", "number"),
        [
            (Step.WRITE_SPOOL, 5),  # the bytes
            (Step.SYNC_SPOOL, 1),
            (Step.WRITE_SPOOL, 6),  # the mark
            (Step.SYNC_SPOOL, 2),
        ],
    )
    def test_later_it_is_given_up(
        self,
        directory: Path,
        step: Step,
        number: int,
        code: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        open_spool = in_plenty(directory, on_step=Faults(step, number, code)).open(LAYER)
        open_spool.append(DATA[:600])
        open_spool.note(mark_of(DATA[:600]))
        assert not open_spool.append(DATA[600:])
        open_spool.close()
        assert list(directory.iterdir()) == []
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert name_of(LAYER) in record.getMessage()
        assert os.strerror(code) in record.getMessage()

    @pytest.mark.parametrize("number", [1, 2])
    def test_what_cannot_be_removed_is_left_to_another_time(
        self, directory: Path, number: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        spools = in_plenty(directory, on_step=Faults(Step.REMOVE_SPOOL, number, errno.EIO))
        spool(spools, DATA, 600)
        spools.open(LAYER).discard()
        assert list(directory.iterdir()) != []
        assert "left to the next operation" in caplog.text
        spools.keep_only([])
        assert list(directory.iterdir()) == []

    def test_a_full_disk(self, small_file_system: Path) -> None:
        """The allocator believes that there is room, and the kernel says that there is none."""
        spools = in_plenty(small_file_system / "download")
        open_spool = spools.open(LAYER)
        piece = bytes(MIB)
        for _ in range(10):
            open_spool.append(piece)
        open_spool.close()
        assert list((small_file_system / "download").iterdir()) == []

    def test_a_directory_that_is_removed_meanwhile(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "download"
        spools = Spools(directory, Partitions().new_allocator)
        open_spool = spools.open(LAYER)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        assert not open_spool.append(DATA)
        open_spool.close()
        assert "is given up: cannot tell the free space" in caplog.text

    def test_an_allocator_that_cannot_be_made(self, directory: Path) -> None:
        def new_allocator(path: Path, part_limit: int, remover: Remover) -> Allocator:
            raise ConfigError(f"{path}, {part_limit}, {remover}")

        with pytest.raises(StoreError, match=f"cannot spool: {directory}, 0"):
            Spools(directory, new_allocator).open(LAYER)
        assert list(directory.iterdir()) == []

    def test_an_allocator_that_was_closed(self, directory: Path) -> None:
        made: list[Allocator] = []

        def new_allocator(path: Path, part_limit: int, remover: Remover) -> Allocator:
            made.append(Partitions(plenty).new_allocator(path, part_limit, remover))
            return made[-1]

        open_spool = Spools(directory, new_allocator).open(LAYER)
        (allocator,) = made
        allocator.close()
        assert not open_spool.append(DATA)
        assert list(directory.iterdir()) == []


# --- room ---------------------------------------------------------------------------------------


class Disk:
    """A partition of *total* bytes that holds the files of a directory and one cached layer."""

    def __init__(self, base: Path, total: int) -> None:
        self.directory = base / "download"
        self.total = total
        self.cached = 0
        self.evicted: list[str] = []
        self.allocators = RecordingAllocators(Partitions(self.usage, settle=lambda _: None))
        self.spools = Spools(self.directory, self.allocators, durable=False)
        self.layers = self.allocators.partitions.new_allocator(base, 0, self._remove)

    def usage(self, _: Path) -> DiskUsage:
        return DiskUsage(1, self.total, self.total - self.taken)

    @property
    def taken(self) -> int:
        return self.cached + sum(self.files.values())

    @property
    def files(self) -> dict[str, int]:
        """The parts of spools and their sizes."""
        found = {}
        for path in self.directory.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):  # another thread evicted it just now
                found[path.stem] = path.stat().st_size
        return found

    def cache(self, name: str, size: int) -> None:
        with self.layers.allocate_space(size) as space:
            self.cached += size
            space.accept()
        self.layers.add_outdated_item(name, size, WRITTEN_DAY)

    def reclaimable(self) -> int:
        """What the allocators believe that can be evicted, learnt from a refusal."""
        with pytest.raises(NotEnoughSpaceError) as caught:
            self.layers.allocate_space(1 << 50)
        return caught.value.reclaimable

    def assert_right(self) -> None:
        """The accounting is that of the files, and nothing is set aside."""
        sizes = sum(self.files.values())
        assert self.allocators.held == 0
        assert self.allocators.used == sizes
        assert self.reclaimable() == sizes + self.cached
        assert {path.stem for path in self.directory.glob("*.journal")} == self.files.keys()

    def _remove(self, name: str) -> None:
        self.cached = 0
        self.evicted.append(name)


def write(open_spool: Spool, size: int) -> None:
    """Append *size* bytes in pieces, and marks as they are due."""
    piece = bytes(MIB)
    for _ in range(size // len(piece)):
        if open_spool.append(piece):
            open_spool.note(Mark(open_spool.size, "00", URL, ""))


class TestRoom:
    def test_one_allocator_without_a_limit_is_made_when_it_is_needed(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 100 * MIB)
        disk.spools.take_stock()
        disk.spools.keep_only([LAYER])
        assert disk.allocators.made == []
        spool(disk.spools, DATA, 600)
        spool(disk.spools, DATA, 600, layer=OTHER)
        assert disk.allocators.made == [(disk.directory, 0)]
        disk.spools.close()
        assert disk.allocators.calls[-1] == "close"

    def test_what_is_being_written_is_set_aside_before(self, tmp_path: Path) -> None:
        """Else a layer is promised the bytes, and then does not have them."""
        disk = Disk(tmp_path, 100 * MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 11 * MIB)
        with pytest.raises(NotEnoughSpaceError) as caught:
            disk.layers.allocate_space(1 << 50)
        steps = -(-11 * MIB // MARK_BYTES)
        assert caught.value.free == 100 * MIB - steps * MARK_BYTES
        open_spool.close()
        assert disk.allocators.held == 0

    @pytest.mark.parametrize("end", ["close", "discard", "evict"])
    def test_is_accounted_for_to_the_byte(self, tmp_path: Path, end: str) -> None:
        disk = Disk(tmp_path, 100 * MIB)
        disk.cache("cached", MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 21 * MIB)
        match end:
            case "close":
                open_spool.close()
            case "discard":
                open_spool.discard()
            case "evict":
                disk.layers.allocate_space(85 * MIB).release()
        disk.assert_right()
        assert bool(disk.files) == (end == "close")
        assert disk.evicted == []

    def test_what_a_crash_left_is_offered_when_an_operation_begins(self, tmp_path: Path) -> None:
        spool(in_plenty(tmp_path / "download"), bytes(3 * MIB), 2 * MIB)
        disk = Disk(tmp_path, 100 * MIB)
        disk.spools.take_stock()
        disk.assert_right()
        assert disk.reclaimable() == 3 * MIB
        open_spool = disk.spools.open(LAYER)
        assert disk.reclaimable() == 2 * MIB
        open_spool.close()
        disk.assert_right()

    def test_what_another_process_removed_is_offered_no_more(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 100 * MIB)
        spool(disk.spools, DATA, 600)
        for path in disk.directory.iterdir():
            path.unlink()
        disk.spools.take_stock()
        disk.assert_right()

    def test_nor_is_what_is_not_desired_any_more(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 100 * MIB)
        spool(disk.spools, DATA, 600)
        spool(disk.spools, DATA, 600, layer=OTHER)
        disk.spools.keep_only([OTHER])
        disk.assert_right()

    def test_nothing_is_removed_for_it(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 20 * MIB)
        disk.cache("cached", 6 * MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 8 * MIB)
        assert open_spool.size == 8 * MIB
        write(open_spool, MIB)
        assert disk.evicted == []
        disk.assert_right()
        assert disk.files == {}

    def test_nor_where_others_took_what_it_was_promised(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 20 * MIB)
        disk.cache("cached", 6 * MIB)
        space = disk.layers.allocate_space(4 * MIB)
        disk.total -= 11 * MIB
        open_spool = disk.spools.open(LAYER)
        write(open_spool, MIB)
        assert disk.evicted == []
        assert disk.files == {}
        space.release()
        disk.assert_right()

    def test_it_goes_before_any_cached_layer(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 40 * MIB)
        spool(disk.spools, bytes(18 * MIB), 18 * MIB)
        disk.cache(OTHER.digest, 6 * MIB)
        # As one is that has a timestamp which cannot be read.
        disk.layers.add_outdated_item(OTHER.digest, 6 * MIB, datetime.min.replace(tzinfo=UTC))
        disk.layers.allocate_space(34 * MIB).release()
        assert disk.files == {}
        assert disk.evicted == []
        disk.assert_right()

    def test_while_it_is_being_written(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 40 * MIB)
        disk.cache("cached", 6 * MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 18 * MIB)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(disk.layers.allocate_space, 34 * MIB).result(LONG).release()
        assert disk.evicted == []
        assert disk.files == {}
        write(open_spool, 3 * MIB)
        open_spool.note(Mark(open_spool.size, "00", URL, ""))
        open_spool.close()
        disk.assert_right()

    def test_while_it_is_being_read(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, 40 * MIB)
        spool(disk.spools, bytes(18 * MIB), 18 * MIB)
        open_spool = disk.spools.open(LAYER)
        chunks = open_spool.chunks()
        first = next(chunks)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(disk.layers.allocate_space, 40 * MIB).result(LONG).release()
        with pytest.raises(IntegrityError, match=f"spooled bytes.*found {len(first)}"):
            list(chunks)
        open_spool.discard()
        disk.assert_right()

    def test_while_it_asks_for_room_itself(self, tmp_path: Path) -> None:
        """The allocator is evicting, this spool is next: neither waits for the other."""
        disk = Disk(tmp_path, 40 * MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 8 * MIB)
        promised = disk.layers.allocate_space(16 * MIB)
        disk.total -= 20 * MIB  # so that there is less than was promised, whatever is asked for
        with ThreadPoolExecutor(2) as threads:

            def remove_first(_: str) -> None:
                threads.submit(write, open_spool, 2 * MIB).result(LONG)

            first = disk.allocators.partitions.new_allocator(tmp_path, 0, remove_first)
            first.add_outdated_item("!", 16 * MIB, datetime.min.replace(tzinfo=UTC))
            with pytest.raises(NotEnoughSpaceError):
                threads.submit(disk.layers.allocate_space, 8 * MIB).result(LONG)
        assert disk.files == {}
        promised.release()
        open_spool.close()
        disk.assert_right()

    def test_when_it_grew_since_it_was_chosen(self, tmp_path: Path) -> None:
        """What is offered of it is not left over when it is gone."""
        disk = Disk(tmp_path, 80 * MIB)
        open_spool = disk.spools.open(LAYER)
        write(open_spool, 8 * MIB)
        first = disk.allocators.partitions.new_allocator(
            tmp_path, 0, lambda _: write(open_spool, 18 * MIB)
        )
        first.add_outdated_item("!", 4 * MIB, datetime.min.replace(tzinfo=UTC))
        disk.layers.allocate_space(79 * MIB).release()
        assert disk.files == {}
        open_spool.close()
        disk.assert_right()

    def test_one_that_cannot_be_removed_keeps_no_layer_from_being_evicted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk = Disk(tmp_path, 40 * MIB)
        spool(disk.spools, bytes(10 * MIB), 10 * MIB)
        (part,) = disk.directory.glob("*.part")
        part.rename(part.with_suffix(".kept"))
        part.mkdir()
        disk.cache("cached", 10 * MIB)
        disk.layers.allocate_space(33 * MIB).release()
        assert disk.evicted == ["cached"]
        assert str(part) in caplog.text

    def test_threads_that_write_and_evict_at_random_leave_nothing_uncounted(
        self, tmp_path: Path
    ) -> None:
        disk = Disk(tmp_path, 64 * MIB)
        layers = [desired(bytes([number]), URL) for number in range(3)]
        stop = threading.Event()

        def use(layer: DesiredLayer, seed: int) -> None:
            choice = random.Random(seed)  # noqa: S311 - a test's choice is no secret
            for _ in range(8):
                open_spool = disk.spools.open(layer)
                for _ in range(choice.randint(0, 20)):
                    if open_spool.append(bytes(MIB)):
                        open_spool.note(Mark(open_spool.size, "00", URL, ""))
                choice.choice((open_spool.close, open_spool.discard))()

        def evict() -> None:
            choice = random.Random(0)  # noqa: S311 - likewise
            while not stop.is_set():
                try:
                    disk.layers.allocate_space(choice.randint(20, 64) * MIB).release()
                except NotEnoughSpaceError:
                    continue

        with ThreadPoolExecutor(4) as threads:
            evicting = threads.submit(evict)
            writing = [threads.submit(use, layer, seed) for seed, layer in enumerate(layers)]
            for future in writing:
                future.result(3 * LONG)
            stop.set()
            evicting.result(LONG)
        disk.spools.take_stock()
        disk.assert_right()


# --- all together -------------------------------------------------------------------------------


CONTENTS: Final = {
    desired(name, URL): hashlib.shake_256(name).digest(2000) for name in (b"1", b"2")
}
layers_of_two = st.sampled_from(sorted(CONTENTS, key=lambda layer: layer.digest))


def some_open(machine: SpoolsMachine) -> bool:
    return bool(machine.open)


class SpoolsMachine(RuleBasedStateMachine):
    """Spools of two layers, compared with what was written; now and then the process dies."""

    @initialize()
    def begin(self) -> None:
        self.base = tempfile.TemporaryDirectory()
        self.open: dict[DesiredLayer, Spool] = {}
        self.marked: dict[DesiredLayer, bytes | None] = {}
        self.written: dict[DesiredLayer, int] = {}
        self.is_dead = False
        self.start()

    def teardown(self) -> None:
        if hasattr(self, "base"):
            self.base.cleanup()

    def start(self) -> None:
        self.disk = Disk(Path(self.base.name), 100 * MIB)
        self.disk.spools.take_stock()

    @rule(layer=layers_of_two)
    def open_or_go_on(self, layer: DesiredLayer) -> None:
        if layer in self.open:
            return
        open_spool = self.disk.spools.open(layer)
        expected = self.marked.get(layer) or b""
        assert b"".join(open_spool.chunks()) == expected
        assert open_spool.mark == (mark_of(expected) if expected else None)
        self.open[layer] = open_spool
        self.marked[layer] = expected or None
        self.written[layer] = len(expected)

    @precondition(some_open)
    @rule(choice=st.integers(0, 99), size=st.integers(1, 500), is_marked=st.booleans())
    def append(self, choice: int, size: int, is_marked: bool) -> None:
        layer, open_spool = self.an_open(choice)
        data = CONTENTS[layer][self.written[layer] :][:size]
        open_spool.append(data)
        if open_spool.size == self.written[layer]:  # it was evicted
            return
        self.written[layer] += len(data)
        if is_marked:
            self.marked[layer] = CONTENTS[layer][: self.written[layer]]
            open_spool.note(mark_of(CONTENTS[layer][: self.written[layer]]))

    @precondition(some_open)
    @rule(choice=st.integers(0, 99), is_kept=st.booleans())
    def end(self, choice: int, is_kept: bool) -> None:
        layer, open_spool = self.an_open(choice)
        del self.open[layer]
        if is_kept:
            open_spool.close()
        else:
            open_spool.discard()
            self.marked.pop(layer, None)

    @rule()
    def evict_all(self) -> None:
        self.disk.layers.allocate_space(100 * MIB).release()
        self.marked.clear()

    @rule(kept=st.sets(layers_of_two))
    def begin_an_operation(self, kept: set[DesiredLayer]) -> None:
        for open_spool in self.open.values():
            open_spool.close()
        self.open.clear()
        self.disk.spools.take_stock()
        self.disk.spools.keep_only(kept)
        for layer in CONTENTS.keys() - kept:
            self.marked.pop(layer, None)

    @rule()
    def die_and_start(self) -> None:
        for open_spool in self.open.values():
            open_spool.end()  # as the kernel closes the files of the dead
        self.open.clear()
        self.start()

    @invariant()
    def all_is_counted(self) -> None:
        if hasattr(self, "disk") and not self.open:
            self.disk.assert_right()

    def an_open(self, choice: int) -> tuple[DesiredLayer, Spool]:
        return list(self.open.items())[choice % len(self.open)]


TestSpools = SpoolsMachine.TestCase
