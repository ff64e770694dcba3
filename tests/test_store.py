from __future__ import annotations

import errno
import os
import re
import stat
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import StoreError
from layermanager.steps import Step
from layermanager.store import StagedLayer, Store
from layermanager.testing.layers import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layermanager.model import Digest

ONE, TWO = digest_of(b"one"), digest_of(b"two")
EMPTY = {"layers", "layers/.staging", "layers/.trash", "index", "index/.staging"}

NONE = 0xFFFFFFFF
FOR_NOBODY = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, NONE), (2, 6, 65534), (4, 4, NONE), (16, 6, NONE), (32, 0, NONE))
)
"""An access control list by which user 65534 reads and writes."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, tmp_path / "layers", tmp_path / "index")


def fill(staged: StagedLayer, content: str = "content") -> None:
    """Grow a layer as an unpacker does; the last of it sets the mode."""
    (staged.path / "dir").mkdir()
    (staged.path / "dir/file").write_text(content)
    os.write(staged.index_descriptor, content.encode())
    staged.path.chmod(0o755)


def commit(store: Store, *digests: Digest, content: str = "content") -> None:
    for digest in digests:
        with store.stage(digest) as staged:
            fill(staged, content)
            for error in store.commit([staged]).values():
                raise error


def assert_own_index(store: Store) -> None:
    path = store.index_path_of(ONE)
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert path.read_text() == "content"


def everything_below(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


class TestStaging:
    def test_a_layer_grows_where_only_its_owner_may_look(self, store: Store) -> None:
        with store.stage(ONE) as staged:
            assert list(staged.path.iterdir()) == []
            assert stat.S_IMODE(staged.path.stat().st_mode) == 0o700
            assert stat.S_IMODE(staged.path.parent.stat().st_mode) == 0o700
            assert os.fstat(staged.descriptor).st_ino == staged.path.stat().st_ino
            assert os.fstat(staged.index_descriptor).st_ino == staged.index_path.stat().st_ino
            assert staged.path.stat().st_dev == store.layers_dir.stat().st_dev
            assert store.digests() == []

    def test_what_is_not_committed_disappears(self, store: Store, tmp_path: Path) -> None:
        with store.stage(ONE) as staged:
            fill(staged)
            (staged.path / "dir").chmod(0o500)
        assert everything_below(tmp_path) == EMPTY

    def test_what_fails_disappears(self, store: Store, tmp_path: Path) -> None:
        def stage() -> None:
            with store.stage(ONE) as staged:
                fill(staged)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stage()
        assert everything_below(tmp_path) == EMPTY

    def test_its_descriptors_are_closed(self, store: Store) -> None:
        with store.stage(ONE) as staged:
            pass
        for descriptor in (staged.descriptor, staged.index_descriptor):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    def test_the_same_layer_twice_at_once(self, store: Store) -> None:
        with store.stage(ONE) as first, store.stage(ONE) as second:
            assert first.path != second.path
            assert first.index_path != second.index_path


class TestCommit:
    def test_a_layer_is_in_its_place(self, store: Store, tmp_path: Path) -> None:
        commit(store, ONE)
        place = store.path_of(ONE)
        assert place == tmp_path / "layers/sha256" / ONE.encoded
        assert (place / "dir/file").read_text() == "content"
        assert stat.S_IMODE(place.stat().st_mode) == 0o755
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o755
        assert store.index_path_of(ONE).read_text() == "content"
        assert store.digests() == [ONE]
        assert list((store.layers_dir / ".staging").iterdir()) == []

    def test_what_a_worker_did_to_its_index_is_undone(self, store: Store) -> None:
        """It has a descriptor of it, with which it may give it away."""
        with store.stage(ONE) as staged:
            fill(staged)
            os.setxattr(staged.index_descriptor, "system.posix_acl_access", FOR_NOBODY)
            os.fchmod(staged.index_descriptor, 0o4777)
            if os.geteuid() == 0:
                os.fchown(staged.index_descriptor, 65534, 65534)
            store.commit([staged])
        assert_own_index(store)

    def test_an_index_that_is_also_elsewhere_is_refused(self, store: Store, tmp_path: Path) -> None:
        with store.stage(ONE) as staged:
            fill(staged)
            (tmp_path / "link").hardlink_to(staged.index_path)
            with pytest.raises(StoreError, match="replaced or linked"):
                store.commit([staged])
        assert store.digests() == []

    def test_an_index_that_was_replaced_is_refused(self, store: Store) -> None:
        with store.stage(ONE) as staged:
            fill(staged)
            staged.index_path.unlink()
            staged.index_path.symlink_to("/etc/passwd")
            with pytest.raises(StoreError, match="replaced or linked"):
                store.commit([staged])
        assert store.digests() == []

    def test_an_adopted_index_is_the_managers(self, store: Store) -> None:
        store.path_of(ONE).mkdir(parents=True)
        with store.adoption(ONE) as (_, index):
            os.write(index, b"content")
            os.fchmod(index, 0o666)
        assert_own_index(store)

    def test_a_group(self, store: Store) -> None:
        with store.stage(ONE) as first, store.stage(TWO) as second:
            fill(first)
            fill(second)
            store.commit([first, second])
        assert sorted(store.digests()) == sorted([ONE, TWO])

    def test_one_in_the_same_place_is_replaced_at_one_moment(self, tmp_path: Path) -> None:
        def look(step: Step) -> None:
            if place.exists():
                seen.append((step, (place / "dir/file").read_text()))

        place = tmp_path / "layers/sha256" / ONE.encoded
        seen: list[tuple[Step, str]] = []
        store = Store(tmp_path, tmp_path / "layers", tmp_path / "index", on_step=look)
        commit(store, ONE, content="old")
        seen.clear()
        with store.stage(ONE) as staged:
            fill(staged, content="new")
            store.commit([staged])
            assert (staged.path / "dir/file").read_text() == "old"
        placed = seen.index((Step.PLACE_LAYER, "old")) + 1
        assert {content for _, content in seen[:placed]} == {"old"}
        assert {content for _, content in seen[placed:]} == {"new"}
        assert store.index_path_of(ONE).read_text() == "new"
        assert list((store.layers_dir / ".staging").iterdir()) == []
        assert list((store.layers_dir / "sha256").iterdir()) == [place]

    def test_a_place_that_is_taken_by_a_file_is_made_free(self, store: Store) -> None:
        store.path_of(ONE).parent.mkdir()
        store.path_of(ONE).write_text("in the way")
        commit(store, ONE)
        assert store.digests() == [ONE]

    def test_what_cannot_be_committed_is_named(self, store: Store) -> None:
        (store.layers_dir / "sha256").write_text("in the way")
        with pytest.raises(StoreError, match=re.escape(str(store.layers_dir / "sha256"))):
            commit(store, ONE)
        assert list((store.layers_dir / ".staging").iterdir()) == []


class TestDurability:
    SYNCS = (Step.SYNC_LAYERS, Step.SYNC_INDEX, Step.SYNC_DIRECTORY)

    def test_a_group_is_synced_as_a_whole_before_the_first_of_it_is_placed(
        self, tmp_path: Path
    ) -> None:
        steps: list[Step] = []
        store = Store(tmp_path, tmp_path / "layers", tmp_path / "index", on_step=steps.append)
        with store.stage(ONE) as first, store.stage(TWO) as second:
            fill(first)
            fill(second)
            steps.clear()
            store.commit([first, second])
            places = [Step.PLACE_LAYER, Step.PLACE_INDEX]
            assert [step for step in steps if step != Step.MAKE_PARENT_DIRECTORY] == [
                *[Step.OWN_INDEX] * 2,
                Step.SYNC_LAYERS,
                *[Step.SYNC_INDEX] * 2,
                *places * 2,
                *[Step.SYNC_DIRECTORY] * 4,
            ]

    def test_it_can_be_switched_off(self, tmp_path: Path) -> None:
        steps: list[Step] = []
        store = Store(
            tmp_path, tmp_path / "layers", tmp_path / "index", durable=False, on_step=steps.append
        )
        commit(store, ONE)
        assert store.digests() == [ONE]
        assert set(steps).isdisjoint(self.SYNCS)


class TestIndexes:
    def test_one_without_its_layer_goes(self, store: Store) -> None:
        commit(store, ONE, TWO)
        store.remove_other_indexes([TWO])
        assert not store.index_path_of(ONE).exists()
        assert store.index_path_of(TWO).exists()


class TestRemoval:
    def test_only_that_layer_goes(self, store: Store) -> None:
        commit(store, ONE, TWO)
        (store.path_of(ONE) / "dir").chmod(0)
        store.remove([ONE])
        assert store.digests() == [TWO]
        assert not store.index_path_of(ONE).exists()
        assert store.index_path_of(TWO).exists()
        assert list((store.layers_dir / ".trash").iterdir()) == []

    def test_it_may_be_repeated(self, store: Store) -> None:
        store.remove([ONE])
        commit(store, ONE)
        store.remove([ONE])
        store.remove([ONE])
        assert store.digests() == []

    def test_by_several_threads_at_once(self, store: Store) -> None:
        digests = [digest_of(bytes([number])) for number in range(24)]
        commit(store, *digests)
        for digest in digests:
            for number in range(40):
                (store.path_of(digest) / "dir" / str(number)).touch()
        together = threading.Barrier(4)

        def remove_some(first: int) -> None:
            together.wait()
            for digest in digests[first::2]:  # each is removed by two threads
                store.remove([digest])

        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(remove_some, number // 2) for number in range(4)]:
                done.result()
        assert store.digests() == []
        assert list((store.layers_dir / ".trash").iterdir()) == []

    @pytest.mark.usefixtures("needs_root")
    def test_a_layer_with_a_mount_in_it_is_removed_but_for_that(
        self, store: Store, tmp_path: Path
    ) -> None:
        commit(store, ONE)
        (tmp_path / "home").mkdir()
        (tmp_path / "home/file").touch()
        mount_point = store.path_of(ONE) / "dir"
        subprocess.run(["mount", "--bind", tmp_path / "home", mount_point], check=True)
        try:
            with pytest.raises(StoreError, match=r"cannot remove: .*/dir: a file system is mount"):
                store.remove([ONE])
        finally:
            (trashed,) = (store.layers_dir / ".trash").iterdir()
            subprocess.run(["umount", trashed / "dir"], check=True)
        assert store.digests() == []
        assert not store.has_index(ONE)
        assert (tmp_path / "home/file").exists()
        assert store.sweep() == 1
        assert list((store.layers_dir / ".trash").iterdir()) == []


class Disk:
    """A disk on which steps fail, and the mounts that are seen on it.

    Attributes:
        errors: the error numbers of the steps that fail.
        steps: the steps so far.
        used: the layers that are mounted.
    """

    def __init__(self) -> None:
        self.errors: dict[Step, int] = {}
        self.steps: list[Step] = []
        self.used: set[Digest] = set()

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step in self.errors:
            raise OSError(self.errors[step], os.strerror(self.errors[step]))

    def look(self) -> Callable[[str], bool]:
        used = {digest.encoded for digest in self.used}
        return lambda name: name in used


class TestWithoutRoomToMove:
    """What cannot be renamed for want of room is removed where it is."""

    @pytest.fixture
    def disk(self) -> Disk:
        return Disk()

    @pytest.fixture
    def store(self, tmp_path: Path, disk: Disk) -> Store:
        layers_dir, index_dir = tmp_path / "layers", tmp_path / "index"
        return Store(tmp_path, layers_dir, index_dir, on_step=disk, look=disk.look)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_the_index_goes_first(self, store: Store, disk: Disk, number: int) -> None:
        commit(store, ONE, TWO)
        disk.errors[Step.MOVE_TO_TRASH] = number
        disk.steps.clear()
        taken = store.take_out([ONE])
        assert disk.steps == [
            Step.MOVE_TO_TRASH,
            Step.REMOVE_INDEX,
            Step.SYNC_DIRECTORY,
            Step.REMOVE_TREE,
        ]
        assert (dict(taken.trashed), taken.in_use, taken.failed) == ({ONE: None}, (), {})
        assert store.discard(taken) == {}
        assert store.digests() == [TWO]
        assert not store.has_index(ONE)

    def test_one_that_is_mounted_stays(self, store: Store, disk: Disk) -> None:
        commit(store, ONE, TWO)
        disk.errors[Step.MOVE_TO_TRASH] = errno.ENOSPC
        disk.used.add(ONE)
        taken = store.take_out([ONE, TWO])
        assert (taken.in_use, dict(taken.trashed)) == ((ONE,), {TWO: None})
        assert (store.path_of(ONE) / "dir/file").read_text() == "content"
        assert store.has_index(ONE)

    def test_one_that_must_not_be_stays(self, store: Store, disk: Disk) -> None:
        commit(store, ONE)
        disk.errors[Step.MOVE_TO_TRASH] = errno.ENOSPC
        taken = store.take_out([ONE], in_place=lambda _: False)
        assert [*taken.failed] == [ONE]
        assert (store.path_of(ONE) / "dir/file").read_text() == "content"
        assert store.has_index(ONE)

    @pytest.mark.parametrize("step", [Step.REMOVE_INDEX, Step.REMOVE_TREE])
    def test_it_is_told_whether_it_is_whole(self, store: Store, disk: Disk, step: Step) -> None:
        commit(store, ONE)
        disk.errors = {Step.MOVE_TO_TRASH: errno.ENOSPC, step: errno.EIO}
        taken = store.take_out([ONE])
        is_whole = step is Step.REMOVE_INDEX
        assert (ONE in taken.failed, ONE in taken.rests) == (is_whole, not is_whole)
        assert store.has_index(ONE) == is_whole
        assert (ONE in store.discard(taken)) != is_whole

    def test_other_errors_leave_it_whole(self, store: Store, disk: Disk) -> None:
        commit(store, ONE)
        disk.errors[Step.MOVE_TO_TRASH] = errno.EIO
        taken = store.take_out([ONE])
        assert str(taken.failed[ONE]) == f"cannot remove {store.path_of(ONE)}: Input/output error"
        assert store.has_index(ONE)

    def test_one_that_cannot_be_put_back_keeps_no_other(self, store: Store, disk: Disk) -> None:
        commit(store, ONE, TWO)
        disk.used.add(ONE)
        disk.errors[Step.PUT_BACK] = errno.ENOSPC
        taken = store.take_out([ONE, TWO])
        assert (taken.in_use, [*taken.trashed], [*taken.rests]) == ((), [TWO], [ONE])
        assert [*store.discard(taken)] == [ONE]
        assert store.digests() == []


class TestRoomForACommit:
    @pytest.fixture
    def disk(self) -> Disk:
        return Disk()

    @pytest.fixture
    def store(self, tmp_path: Path, disk: Disk) -> Store:
        return Store(tmp_path, tmp_path / "layers", tmp_path / "index", on_step=disk)

    @pytest.mark.parametrize("step", [Step.PLACE_LAYER, Step.PLACE_INDEX])
    def test_it_is_made_as_often_as_it_helps(self, store: Store, disk: Disk, step: Step) -> None:
        made = []

        def make_room() -> bool:
            made.append(len(disk.steps))
            if len(made) == 3:
                disk.errors.clear()
            return True

        with store.stage(ONE) as staged:
            fill(staged)
            disk.errors[step] = errno.ENOSPC
            assert store.commit([staged], make_room) == {}
        assert len(made) == 3
        assert store.digests() == [ONE]
        assert store.has_index(ONE)

    @pytest.mark.parametrize("step", [Step.PLACE_LAYER, Step.PLACE_INDEX])
    def test_where_there_is_none_to_make(self, store: Store, disk: Disk, step: Step) -> None:
        made = iter([True, False])
        with store.stage(ONE) as staged:
            fill(staged)
            disk.errors[step] = errno.ENOSPC
            failed = store.commit([staged], lambda: next(made))
        assert "cannot commit: " in str(failed[ONE])
        assert list(made) == []

    @pytest.mark.parametrize("step", [Step.SYNC_LAYERS, Step.SYNC_INDEX, Step.SYNC_DIRECTORY])
    def test_no_sync_is_tried_again(self, store: Store, disk: Disk, step: Step) -> None:
        """The kernel tells of what it could not write once; the next sync says that all is well."""
        with store.stage(ONE) as staged:
            fill(staged)
            disk.errors[step] = errno.ENOSPC
            with pytest.raises(StoreError, match="cannot commit"):
                store.commit([staged], lambda: pytest.fail("room was made"))

    @pytest.mark.usefixtures("needs_root")
    def test_a_place_that_cannot_be_had_stops_no_other(self, store: Store) -> None:
        commit(store, ONE)
        subprocess.run(["mount", "-t", "tmpfs", "none", store.path_of(ONE)], check=True)
        try:
            with store.stage(ONE) as first, store.stage(TWO) as second:
                fill(first)
                fill(second)
                assert [*store.commit([first, second])] == [ONE]
        finally:
            subprocess.run(["umount", store.path_of(ONE)], check=True)
        assert (store.path_of(TWO) / "dir/file").read_text() == "content"
        assert (store.path_of(ONE) / "dir/file").read_text() == "content"


class TestSweep:
    def test_it_counts_what_it_removes(self, store: Store) -> None:
        assert store.sweep() == 0
        for place in (".staging/a", ".staging/b", ".trash/c"):
            (store.layers_dir / place / "deep").mkdir(parents=True)
            (store.layers_dir / place / "deep").chmod(0o100)
        assert store.sweep() == 3
        assert store.sweep() == 0

    def test_layers_stay(self, store: Store) -> None:
        commit(store, ONE)
        assert store.sweep() == 0
        assert store.digests() == [ONE]

    def test_what_was_to_replace_a_layer_goes(self, store: Store) -> None:
        commit(store, ONE)
        growing = store.path_of(ONE).with_name(f"{ONE.encoded}.0123abcd")
        (growing / "deep").mkdir(parents=True)
        assert store.digests() == [ONE]
        assert store.sweep() == 1
        assert not growing.exists()
        assert store.digests() == [ONE]

    @pytest.mark.parametrize("name", ["lost+found", f"{ONE.encoded}.tar", "a.0123abcd"])
    def test_what_is_somebody_elses_stays(self, store: Store, name: str) -> None:
        commit(store, ONE)
        other = store.path_of(ONE).with_name(name)
        other.mkdir()
        assert store.sweep() == 0
        assert other.exists()

    @pytest.mark.usefixtures("needs_root")
    def test_a_mount_in_a_leftover_fails_no_operation(
        self, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A user makes one by fusermount; nothing of it is removed, and all else is."""
        (tmp_path / "home").mkdir()
        (tmp_path / "home/file").touch()
        for place in (".trash/a/user", ".trash/a/etc", ".trash/b/etc"):
            (store.layers_dir / place).mkdir(parents=True)
        mount_point = store.layers_dir / ".trash/a/user"
        subprocess.run(["mount", "--bind", tmp_path / "home", mount_point], check=True)
        try:
            assert store.sweep() == 1
            assert everything_below(store.layers_dir / ".trash") == {"a", "a/user", "a/user/file"}
        finally:
            subprocess.run(["umount", mount_point], check=True)
        (message,) = [record.getMessage() for record in caplog.records]
        assert message == (
            f"the rest of {mount_point.parent} is left to the next operation: "
            "a/user: a file system is mounted on it; unmount it"
        )
        assert (tmp_path / "home/file").exists()
        assert store.sweep() == 1
        assert list((store.layers_dir / ".trash").iterdir()) == []

    def test_no_entry_that_refuses_stops_another(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        refused: list[Step] = []

        def refuse_once(step: Step) -> None:
            if step in (Step.REMOVE_TREE, Step.REMOVE_INDEX) and step not in refused:
                refused.append(step)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        store = Store(tmp_path, tmp_path / "layers", tmp_path / "index", on_step=refuse_once)
        for place in ("index/.staging/a", "index/sha256/a", "index/sha256/b", "layers/.trash/a"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).touch()
        assert store.sweep() == 1
        store.remove_other_indexes([])
        assert len(everything_below(tmp_path / "index/sha256")) == 1
        assert everything_below(tmp_path / "index/.staging") == {"a"}
        assert [message.rpartition(": ")[2] for message in caplog.messages] == [
            "Input/output error",
            "Input/output error; it is left to the next operation",
        ]
        assert store.sweep() == 0
        store.remove_other_indexes([])
        assert everything_below(tmp_path / "index/sha256") == set()
        assert everything_below(tmp_path / "index/.staging") == set()

    def test_a_directory_among_the_indexes_fails_nothing(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        (store.index_path_of(ONE) / "deep").mkdir(parents=True)
        for _ in range(3):
            store.remove_other_indexes([])
        assert store.index_path_of(ONE).is_dir()
        assert len(caplog.messages) == 1

    def test_an_index_that_grew_goes(self, store: Store, tmp_path: Path) -> None:
        staging = tmp_path / "index/.staging"
        staging.mkdir(parents=True)
        (staging / "index").write_text("half")
        store.sweep()
        assert list(staging.iterdir()) == []


class TestDirectories:
    def test_they_are_made(self, tmp_path: Path) -> None:
        Store(tmp_path, tmp_path / "a/b/layers", tmp_path / "c/index")
        assert (tmp_path / "a/b/layers").is_dir()
        assert (tmp_path / "c/index").is_dir()

    def test_one_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=re.escape(str(tmp_path / "file'"))):
            Store(tmp_path, tmp_path / "file/layers", tmp_path / "index")

    def test_what_is_no_layer_is_passed_over(self, store: Store) -> None:
        commit(store, ONE)
        (store.layers_dir / "sha256/README").write_text("")
        (store.layers_dir / "sha256" / ("A" * 64)).mkdir()
        (store.layers_dir / "sha256" / ("0" * 64)).symlink_to(store.path_of(ONE))
        (store.layers_dir / "md5" / ("0" * 32)).mkdir(parents=True)
        (store.layers_dir / "README").write_text("")
        assert store.digests() == [ONE]

    def test_one_that_is_gone_is_named(self, store: Store) -> None:
        (store.layers_dir / ".trash").rmdir()
        store.layers_dir.rmdir()
        with pytest.raises(StoreError, match=re.escape(str(store.layers_dir))):
            store.digests()
