"""Transfers that are gone on with by the next one: what was spooled, and when that is no good."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given

from layermanager.cancellation import Cancellation
from layermanager.config import Network
from layermanager.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    LayerError,
    NotEnoughSpaceError,
    SourceChangedError,
    SourceError,
    UnpackerError,
)
from layermanager.model import Limits
from layermanager.sources import opener
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step, unannounced
from layermanager.testing.clock import PassingClock
from layermanager.testing.layers import build_package, desired
from layermanager.testing.sources import Asked, MemorySource, Mishap
from layermanager.transfer.fetcher import CHUNK_BYTES, Fetcher
from layermanager.transfer.spool import MARK_BYTES, Spools
from manager_fixtures import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.model import DesiredLayer
    from layermanager.steps import OnStep
    from layermanager.transfer.fetcher import Transfer

URL: Final = "memory://host/layer"
MIRROR: Final = "memory://mirror/layer"
USB: Final = "usb://stick/layer"
SIZE: Final = 2 * CHUNK_BYTES
DATA: Final = hashlib.shake_256(b"data").digest(SIZE)
OTHER_DATA: Final = hashlib.shake_256(b"other data").digest(SIZE)
LAYER: Final = desired(DATA, URL)
HERE: Final = CHUNK_BYTES + 5
"""Where the transfers of most tests are interrupted: in the middle of the second chunk."""

BREAK: Final = Mishap(breaks_after=HERE)
GONE: Final = Mishap(refused="404 Not Found", is_transient=False)
BUSY: Final = Mishap(refused="503 Service Unavailable")
NO_SPACE: Final = NotEnoughSpaceError(needed=2, free=1, limit=0, reclaimable=0, limit_reached=False)


class Run:
    """One run of a program that fetches: of an earlier one it knows what is in *directory*.

    It does with transfers what the manager does.
    """

    def __init__(
        self,
        directory: Path,
        files: dict[str, bytes],
        *mishaps: Mishap,
        spool_bytes: int = 1,
        durable: bool = False,
        partitions: Partitions | None = None,
        on_step: OnStep = unannounced,
    ) -> None:
        self.source = MemorySource(files, list(mishaps), is_local=False)
        self.usb = MemorySource(files)
        self.clock = PassingClock()
        self.cancellation = Cancellation()
        partitions = partitions or Partitions(lambda _: DiskUsage(1, 1 << 40, 1 << 40))
        self.fetcher = Fetcher(
            open_stream=opener({"memory": self.source, "usb": self.usb}),
            spools=Spools(directory, partitions.new_allocator, durable=durable, on_step=on_step),
            network=Network(spool_bytes=spool_bytes),
            limits=Limits(),
            clock=self.clock,
            chance=lambda: 1.0,
        )

    def begin(self, layer: DesiredLayer) -> Transfer:
        return self.fetcher.begin(layer, self.cancellation)

    def fetch(self, layer: DesiredLayer) -> bytes:
        """Have the layer arrive, unpacked and committed."""
        transfer = self.begin(layer)
        with closing(transfer):
            data = self._unpack(transfer)
        transfer.discard()
        return data

    def fail(self, layer: DesiredLayer, error: LayerError, after: int = HERE) -> None:
        """Have the unpacker fail after so many bytes."""
        transfer = self.begin(layer)
        with closing(transfer), closing(transfer.chunks()) as chunks:
            while transfer.transferred < after:
                next(chunks)
            with pytest.raises(type(error)):
                transfer.start_over(error)

    def _unpack(self, transfer: Transfer) -> bytes:
        while True:
            try:
                data = b"".join(transfer.chunks())
                transfer.verify()
            except LayerError as error:
                transfer.start_over(error)
            else:
                return data

    @property
    def offsets(self) -> list[int]:
        """Where the requests began."""
        return [asked.offset for asked in self.source.asked]


def interrupted(directory: Path, layer: DesiredLayer = LAYER, data: bytes = DATA) -> None:
    """Leave what a transfer leaves that broke off for good."""
    run = Run(directory, {URL: data}, BREAK, GONE)
    with pytest.raises(SourceError):
        run.fetch(layer)


def files_of(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir()) if directory.exists() else []


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "download"


# --- going on -----------------------------------------------------------------------------------


class TestGoingOn:
    def test_after_an_error(self, directory: Path) -> None:
        interrupted(directory)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.source.asked == [Asked(URL, HERE, '"1"')]
        assert again.source.bytes_read == SIZE - HERE
        assert files_of(directory) == []

    def test_after_a_cancellation(self, directory: Path) -> None:
        run = Run(directory, {URL: DATA}, BREAK, BUSY)
        run.clock.on_wait = run.cancellation.cancel
        with pytest.raises(CancelledError):
            run.fetch(LAYER)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.source.asked == [Asked(URL, HERE, '"1"')]

    def test_after_the_reader_went_away(self, directory: Path) -> None:
        transfer = Run(directory, {URL: DATA}).begin(LAYER)
        with closing(transfer), closing(transfer.chunks()) as chunks:
            next(chunks)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [CHUNK_BYTES]

    def test_of_a_package(self, directory: Path) -> None:
        package = build_package(DATA)
        layer = desired(DATA, URL, package=package)
        interrupted(directory, layer, package)
        again = Run(directory, {URL: package})
        assert again.fetch(layer) == package
        assert again.offsets == [HERE]

    def test_within_one_program(self, directory: Path) -> None:
        run = Run(directory, {URL: DATA}, BREAK, GONE)
        with pytest.raises(SourceError):
            run.fetch(LAYER)
        assert run.fetch(LAYER) == DATA
        assert run.offsets == [0, HERE, HERE]

    def test_the_progress_counts_what_was_spooled(self, directory: Path) -> None:
        interrupted(directory)
        transfer = Run(directory, {URL: DATA}).begin(LAYER)
        with closing(transfer), closing(transfer.chunks()) as chunks:
            assert next(chunks) == DATA[:CHUNK_BYTES]
            assert transfer.transferred == CHUNK_BYTES
            assert transfer.size == SIZE

    def test_a_spool_that_has_all_bytes_needs_no_request(self, directory: Path) -> None:
        Run(directory, {URL: DATA}).fail(LAYER, UnpackerError("killed"), after=SIZE)
        again = Run(directory, {})
        assert again.fetch(LAYER) == DATA
        assert again.source.asked == []
        assert files_of(directory) == []

    def test_a_crash_costs_no_more_than_what_was_not_marked(
        self, directory: Path, tmp_path: Path
    ) -> None:
        data = hashlib.shake_256(b"large").digest(2 * MARK_BYTES + 3 * MIB)
        layer = desired(data, URL)
        transfer = Run(directory, {URL: data}).begin(layer)
        with closing(transfer), closing(transfer.chunks()) as chunks:
            while transfer.transferred < 2 * MARK_BYTES + 2 * MIB:
                next(chunks)
            shutil.copytree(directory, tmp_path / "found")
        again = Run(tmp_path / "found", {URL: data})
        assert again.fetch(layer) == data
        assert again.offsets == [2 * MARK_BYTES]

    @given(st.lists(st.integers(0, 3000), max_size=8), st.booleans())
    def test_no_byte_is_fetched_twice_in_however_many_runs(
        self, breaks: Sequence[int], begins_anew: bool
    ) -> None:
        data = DATA[:5000]
        layer = desired(data, URL)
        with tempfile.TemporaryDirectory() as name:
            read = 0
            for after in breaks:
                mishap = Mishap(breaks_after=after, begins_anew=begins_anew and not read)
                run = Run(Path(name), {URL: data}, mishap, GONE)
                if read + after < len(data):
                    with pytest.raises(SourceError):
                        run.fetch(layer)
                    read += run.source.bytes_read
            last = Run(Path(name), {URL: data})
            assert last.fetch(layer) == data
            assert read + last.source.bytes_read == len(data)


class TestOtherAddresses:
    LAYER: Final = dataclasses.replace(LAYER, mirrors=(MIRROR,))

    def test_go_on_without_the_validator_of_another(self, directory: Path) -> None:
        interrupted(directory)
        again = Run(directory, {URL: DATA, MIRROR: DATA}, GONE)
        assert again.fetch(self.LAYER) == DATA
        assert again.source.asked == [Asked(URL, HERE, '"1"'), Asked(MIRROR, HERE, "")]
        assert again.source.bytes_read == SIZE - HERE

    def test_the_validator_is_of_the_address_that_gave_the_last_bytes(
        self, directory: Path
    ) -> None:
        run = Run(
            directory, {MIRROR: DATA}, GONE, dataclasses.replace(BREAK, validator='"m"'), GONE
        )
        with pytest.raises(SourceError):
            run.fetch(self.LAYER)
        again = Run(directory, {URL: DATA, MIRROR: DATA}, GONE)
        assert again.fetch(self.LAYER) == DATA
        assert again.source.asked == [Asked(URL, HERE, ""), Asked(MIRROR, HERE, '"m"')]

    def test_a_layer_that_moved_goes_on_at_its_new_address(self, directory: Path) -> None:
        interrupted(directory)
        again = Run(directory, {MIRROR: DATA})
        assert again.fetch(dataclasses.replace(LAYER, url=MIRROR)) == DATA
        assert again.source.asked == [Asked(MIRROR, HERE, "")]

    def test_secrets_are_neither_kept_nor_needed_to_know_an_address(self, directory: Path) -> None:
        url = "memory://user:secret@host/layer?signature=secret"
        run = Run(directory, {url: DATA}, BREAK, GONE)
        with pytest.raises(SourceError):
            run.fetch(dataclasses.replace(LAYER, url=url))
        (journal,) = directory.glob("*.journal")
        assert b"secret" not in journal.read_bytes()
        url = "memory://user:changed@host/layer?signature=changed"
        again = Run(directory, {url: DATA})
        assert again.fetch(dataclasses.replace(LAYER, url=url)) == DATA
        assert again.source.asked == [Asked(url, HERE, '"1"')]

    def test_one_that_cannot_begin_there_is_compared(self, directory: Path) -> None:
        interrupted(directory)
        again = Run(directory, {URL: DATA}, Mishap(begins_anew=True, breaks_after=HERE + 7), GONE)
        with pytest.raises(SourceError):
            again.fetch(LAYER)
        last = Run(directory, {URL: DATA})
        assert last.fetch(LAYER) == DATA
        assert last.offsets == [HERE + 7]

    def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(
        self, directory: Path
    ) -> None:
        interrupted(directory, data=OTHER_DATA)
        again = Run(directory, {URL: DATA}, Mishap(begins_anew=True), Mishap(validator='"2"'))
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [HERE, 0]
        assert files_of(directory) == []

    def test_nor_where_the_server_does_not_tell(self, directory: Path) -> None:
        interrupted(directory, data=OTHER_DATA)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [HERE, 0]
        assert files_of(directory) == []


# --- what is no good ----------------------------------------------------------------------------


class TestDamage:
    def test_a_byte_that_is_another(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        interrupted(directory)
        (part,) = directory.glob("*.part")
        with part.open("r+b") as file:
            file.seek(100)
            file.write(b"?")
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.source.asked == [Asked(URL, 0, "")]
        assert "is fetched from its beginning: spooled bytes: expected" in caplog.text
        assert files_of(directory) == []

    def test_what_is_fetched_instead_is_spooled_anew(self, directory: Path) -> None:
        interrupted(directory)
        (part,) = directory.glob("*.part")
        part.write_bytes(bytes(HERE))
        run = Run(directory, {URL: DATA}, Mishap(breaks_after=1000), GONE)
        with pytest.raises(SourceError):
            run.fetch(LAYER)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [1000]

    @pytest.mark.parametrize("suffix", ["part", "journal"])
    def test_a_file_that_is_shorter(self, directory: Path, suffix: str) -> None:
        interrupted(directory)
        (path,) = directory.glob(f"*.{suffix}")
        os.truncate(path, path.stat().st_size - 1)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [0]

    def test_the_unpacker_may_be_the_first_to_notice(self, directory: Path) -> None:
        interrupted(directory)
        transfer = Run(directory, {URL: DATA}).begin(LAYER)
        with closing(transfer):
            with closing(transfer.chunks()) as chunks:
                next(chunks)
            transfer.start_over(ArchiveError("not gzip"))
            assert files_of(directory) == []
            assert b"".join(transfer.chunks()) == DATA

    def test_a_spool_that_is_evicted_while_it_is_read(self, directory: Path) -> None:
        interrupted(directory)
        partitions = Partitions(lambda _: DiskUsage(1, 1 << 40, 1 << 40), settle=lambda _: None)
        again = Run(directory, {URL: DATA}, partitions=partitions)
        layers = partitions.new_allocator(directory, 0, lambda _: None)
        transfer = again.begin(LAYER)
        with closing(transfer):
            chunks = transfer.chunks()
            next(chunks)
            with pytest.raises(NotEnoughSpaceError):  # all that there is, and a spool more
                layers.allocate_space((1 << 40) + 1)
            assert files_of(directory) == []
            with pytest.raises(IntegrityError, match="spooled bytes") as caught:
                next(chunks)
            transfer.start_over(caught.value)
            assert b"".join(transfer.chunks()) == DATA
        assert again.offsets == [0]

    def test_one_that_cannot_be_opened(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        interrupted(directory)
        (part,) = directory.glob("*.part")
        part.unlink()
        part.symlink_to("/etc/passwd")
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [0]
        assert f"layer {LAYER.digest} is not spooled: cannot spool" in caplog.text

    def test_one_that_is_wrong_and_cannot_be_removed(self, directory: Path) -> None:
        """It must not be tried again and again."""

        def on_step(step: Step) -> None:
            if step is Step.REMOVE_SPOOL:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        interrupted(directory)
        (part,) = directory.glob("*.part")
        part.write_bytes(bytes(HERE))
        again = Run(directory, {URL: DATA}, on_step=on_step)
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [0]


class TestWrongBytes:
    def test_are_not_kept(self, directory: Path) -> None:
        run = Run(directory, {URL: OTHER_DATA})
        with pytest.raises(IntegrityError, match="layer digest"):
            run.fetch(LAYER)
        assert files_of(directory) == []
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [0]

    @pytest.mark.parametrize(
        "error", [ArchiveError("not gzip"), SourceChangedError("changed", url=URL)]
    )
    def test_nor_what_others_found_wrong(self, directory: Path, error: LayerError) -> None:
        layer = dataclasses.replace(LAYER, mirrors=(MIRROR,))
        transfer = Run(directory, {URL: DATA}).begin(layer)
        with closing(transfer):
            with closing(transfer.chunks()) as chunks:
                next(chunks)
            transfer.start_over(error)
        assert files_of(directory) == []

    def test_that_were_interrupted_are_found_out_in_the_end(self, directory: Path) -> None:
        interrupted(directory, data=OTHER_DATA)
        again = Run(directory, {URL: OTHER_DATA})
        with pytest.raises(IntegrityError, match="layer digest"):
            again.fetch(LAYER)
        assert again.offsets == [HERE, 0]
        assert files_of(directory) == []

    def test_after_a_wrong_mixture_nothing_is_spooled(self, directory: Path) -> None:
        interrupted(directory, data=OTHER_DATA)
        again = Run(directory, {URL: DATA}, Mishap(), BREAK, GONE)
        with pytest.raises(SourceError):
            again.fetch(LAYER)
        assert again.offsets == [HERE, 0, 0]
        assert files_of(directory) == []

    @pytest.mark.parametrize("error", [NO_SPACE, UnpackerError("killed by signal 9")])
    def test_may_be_what_another_error_is_due_to(self, directory: Path, error: LayerError) -> None:
        """The first time the bytes are kept; when it was they that led there, they are not."""
        Run(directory, {URL: DATA}).fail(LAYER, error)
        assert files_of(directory) == [".journal", ".part"]
        again = Run(directory, {URL: DATA})
        again.fail(LAYER, error)
        assert again.offsets == []
        assert files_of(directory) == []

    def test_a_source_that_fails_is_not_the_fault_of_what_was_spooled(
        self, directory: Path
    ) -> None:
        interrupted(directory)
        with pytest.raises(SourceError):
            Run(directory, {URL: DATA}, GONE).fetch(LAYER)
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA
        assert again.offsets == [HERE]


# --- what is spooled ----------------------------------------------------------------------------


class TestWhatIsSpooled:
    @pytest.mark.parametrize(("spool_bytes", "is_spooled"), [(SIZE, True), (SIZE + 1, False)])
    def test_only_what_is_large(self, directory: Path, spool_bytes: int, is_spooled: bool) -> None:
        run = Run(directory, {URL: DATA}, BREAK, GONE, spool_bytes=spool_bytes)
        with pytest.raises(SourceError):
            run.fetch(LAYER)
        assert directory.exists() == is_spooled

    def test_not_what_is_here_already(self, directory: Path) -> None:
        run = Run(directory, {USB: DATA})
        run.fail(dataclasses.replace(LAYER, url=USB), NO_SPACE)
        assert not directory.exists()

    @pytest.mark.parametrize("knows_size", [True, False])
    def test_not_what_nobody_knows_beforehand_how_large_it_is(
        self, directory: Path, knows_size: bool
    ) -> None:
        layer = dataclasses.replace(LAYER, size=None)
        run = Run(directory, {URL: DATA}, dataclasses.replace(BREAK, knows_size=knows_size), GONE)
        with pytest.raises(SourceError):
            run.fetch(layer)
        assert not directory.exists()

    def test_not_what_comes_from_here_after_all(self, directory: Path) -> None:
        run = Run(directory, {URL: DATA, USB: DATA}, Mishap(breaks_after=1000), GONE)
        transfer = run.begin(dataclasses.replace(LAYER, mirrors=(USB,)))
        with closing(transfer):
            assert b"".join(transfer.chunks()) == DATA
        (part,) = directory.glob("*.part")
        assert part.stat().st_size == 1000

    def test_nor_what_comes_behind_that(self, directory: Path) -> None:
        """A spool has no gaps."""
        layer = dataclasses.replace(LAYER, mirrors=(USB,))
        run = Run(directory, {URL: DATA, USB: DATA}, Mishap(breaks_after=1000))
        run.usb.mishaps.append(Mishap(breaks_after=1000))
        transfer = run.begin(layer)
        with closing(transfer):
            assert b"".join(transfer.chunks()) == DATA
        assert run.offsets == [0, 2000]
        again = Run(directory, {URL: DATA})
        assert again.fetch(LAYER) == DATA

    def test_what_has_arrived_is_gone(self, directory: Path) -> None:
        assert Run(directory, {URL: DATA}).fetch(LAYER) == DATA
        assert files_of(directory) == []

    def test_answers_without_a_byte_leave_nothing_open(self, directory: Path) -> None:
        empty = Mishap(breaks_after=0)
        before = descriptors()
        assert Run(directory, {URL: DATA}, *[empty] * 5).fetch(LAYER) == DATA
        assert descriptors() == before

    def test_nor_does_a_spool_without_a_mark(self, directory: Path) -> None:
        interrupted(directory)
        (journal,) = directory.glob("*.journal")
        journal.write_bytes(b"")
        before = descriptors()
        again = Run(directory, {URL: DATA}, BREAK, GONE)
        with pytest.raises(SourceError):
            again.fetch(LAYER)
        assert descriptors() == before
        last = Run(directory, {URL: DATA})
        assert last.fetch(LAYER) == DATA
        assert last.offsets == [HERE]

    @pytest.mark.parametrize("step", [Step.WRITE_SPOOL, Step.SYNC_SPOOL, Step.REMOVE_SPOOL])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_a_disk_that_refuses_ends_the_spool_and_not_the_transfer(
        self, directory: Path, step: Step, code: int, subtests: pytest.Subtests
    ) -> None:
        steps: list[Step] = []
        Run(directory, {URL: DATA}, durable=True, on_step=steps.append).fetch(LAYER)
        for number, lasts in product(range(1, steps.count(step) + 1), (False, True)):
            with subtests.test(number=number, lasts=lasts):
                left = number

                def on_step(current: Step, *, lasts: bool = lasts) -> None:
                    nonlocal left
                    left -= current is step
                    if current is step and (left == 0 or (lasts and left < 0)):
                        raise OSError(code, os.strerror(code))

                place = directory / f"{number} {lasts}"
                run = Run(place, {URL: DATA}, durable=True, on_step=on_step)
                assert run.fetch(LAYER) == DATA
                assert run.offsets == [0]
                assert left <= 0

    def test_a_spool_for_which_there_is_no_room(self, directory: Path) -> None:
        full = Partitions(lambda _: DiskUsage(1, 1 << 40, MARK_BYTES - 1))
        assert Run(directory, {URL: DATA}, partitions=full).fetch(LAYER) == DATA
        assert files_of(directory) == []


# --- all together -------------------------------------------------------------------------------

SMALL: Final = DATA[:600]
MISHAPS: Final = st.one_of(
    st.builds(Mishap, refused=st.just("503")),
    st.just(GONE),
    st.builds(Mishap, breaks_after=st.integers(0, 600), begins_anew=st.booleans()),
    st.builds(Mishap, ends_after=st.integers(0, 600), knows_size=st.booleans()),
    st.builds(
        Mishap,
        other_bytes=st.just(OTHER_DATA[:600]),
        breaks_after=st.none() | st.integers(0, 600),
        begins_anew=st.booleans(),
        validator=st.sampled_from(["", '"2"']),
    ),
)
DAMAGE: Final = st.tuples(
    st.sampled_from([".part", ".journal"]), st.integers(0, 700), st.binary(max_size=3)
)


@given(
    st.lists(st.tuples(st.lists(MISHAPS, max_size=4), st.none() | DAMAGE), max_size=5),
    st.booleans(),
)
def test_whatever_goes_wrong_the_layer_arrives_whole_in_the_end(
    runs: list[tuple[list[Mishap], tuple[str, int, bytes] | None]], has_mirror: bool
) -> None:
    layer = desired(SMALL, URL)
    if has_mirror:
        layer = dataclasses.replace(layer, mirrors=(MIRROR,))
    files = {URL: SMALL, MIRROR: SMALL}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for mishaps, damage in runs:
            run = Run(directory, files, *mishaps)
            try:
                assert run.fetch(layer) == SMALL
            except (SourceError, IntegrityError):
                pass
            else:
                assert files_of(directory) == []
            if damage is not None:
                write_over(directory, *damage)
        assert Run(directory, files).fetch(layer) == SMALL
        assert files_of(directory) == []


def write_over(directory: Path, suffix: str, position: int, data: bytes) -> None:
    """Write *data* somewhere into a file, or cut it off there if there is none."""
    for path in directory.glob(f"*{suffix}"):
        with path.open("r+b") as file:
            file.seek(position)
            if data:
                file.write(data)
            else:
                file.truncate()
