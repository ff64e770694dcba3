"""Disks that are too small, by a lot or by a little: nothing half there, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from durability.scenarios import RAISED, RETURNED
from durability.site import Site, assert_whole
from durability.users import USAGES, apply, empty
from durability.volumes import disk, free_bytes, full, settle, tmpfs
from durability.walk import Kind
from layermanager.errors import LayerManagerError, LayersFailedError, NotEnoughSpaceError
from layermanager.steps import Step
from layermanager.testing.sources import MemorySource
from layermanager.transfer.spool import MARK_BYTES
from manager_fixtures import IMPATIENT, MIB, descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from durability.children import Children
    from durability.site import State

    Volume = Callable[[Path], AbstractContextManager[Path]]

KIB = 1024
NEW_BYTES = 200_000
ENOUGH = 768 * KIB
STEPS = [pytest.param(4 * KIB, marks=pytest.mark.slow), 160 * KIB]

VOLUMES: dict[str, Volume] = {
    "tmpfs": lambda path: tmpfs(path, 8 * MIB),
    "ext4": lambda path: disk(path, "ext4", 8 * MIB),
}
SIZES = {"ext4": 32 * MIB, "xfs": 512 * MIB, "btrfs": 256 * MIB}
"""About the smallest that the file systems can be."""


@contextmanager
def mounted(volume: Volume, path: Path) -> Iterator[Path]:
    """The mounted volume, or a skip where it cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    with ExitStack() as stack:
        try:
            mount_point = stack.enter_context(volume(path))
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("LAYERMANAGER_CI") == "1":
                pytest.fail(f"this machine lacks such a file system: {error}")
            pytest.skip(f"this machine lacks such a file system: {error}")
        yield mount_point


def site_on(mount_point: Path, tmp_path: Path) -> Site:
    """A store on the volume, database included; the packages are elsewhere."""
    return Site(tmp_path, working_dir=mount_point / "work")


def with_something_cached(site: Site) -> None:
    site.publish("earlier", 20_000)
    site.publish("cached", 50_000)
    site.publish("new", NEW_BYTES)
    site.apply(["earlier", "cached"])
    site.apply(["earlier"])


def survives(children: Children, site: Site, free: int, allocator: str, *names: str) -> bool:
    """Apply *names* while no more than *free* bytes can be written; whether that went well."""
    working_dir = site.config.working_dir
    with full(working_dir.parent, free=free):
        ended = children.run(apply, str(site.base), str(working_dir), allocator, *names)
    assert ended.status in {RETURNED, RAISED}, ended.lines
    assert ended.lines == []
    return ended.status == RETURNED


def assert_recovers(site: Site, before: State, after: State, *names: str) -> None:
    """With space again, nothing is lost and the same list leads to what it should."""
    with site.manager():
        pass
    state = site.state()
    assert_whole(state, before, after)
    if "earlier" in names:
        earlier = site.layer("earlier").digest
        assert state.rows[earlier] == before.rows[earlier]
    site.apply(names)
    desired = {layer.digest for layer in site.layers(names)}
    assert desired == {row.digest for row in site.state().rows.values() if not row.cached}
    assert_whole(site.state(), before, after)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("allocator", USAGES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("volume", VOLUMES)
def test_installing_at_every_size(
    tmp_path: Path,
    children: Children,
    volume: str,
    step: int,
    allocator: str,
    subtests: pytest.Subtests,
) -> None:
    with mounted(VOLUMES[volume], tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        site.keep()
        site.apply(["earlier", "new"])
        after = site.state()
        done = []
        for free in range(0, ENOUGH + step, step):
            with subtests.test(f"{free} bytes free"):
                site.go_back()
                done.append(survives(children, site, free, allocator, "earlier", "new"))
                if done[-1]:
                    assert site.layer("new").digest in site.state().rows
                assert_recovers(site, before, after, "earlier", "new")
        assert not done[0]
        assert done[-1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("allocator", USAGES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("volume", VOLUMES)
def test_the_first_start_at_every_size(
    tmp_path: Path,
    children: Children,
    volume: str,
    step: int,
    allocator: str,
    subtests: pytest.Subtests,
) -> None:
    with mounted(VOLUMES[volume], tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        site.publish("new", NEW_BYTES)
        before = site.state()
        site.config.working_dir.mkdir()
        site.keep()
        site.apply(["new"])
        after = site.state()
        done = []
        for free in range(0, ENOUGH + step, step):
            with subtests.test(f"{free} bytes free"):
                site.go_back()
                done.append(survives(children, site, free, allocator, "new"))
                assert_recovers(site, before, after, "new")
        assert not done[0]
        assert done[-1]


@pytest.mark.parametrize(
    "volume",
    [lambda path: tmpfs(path, 8 * MIB, inodes=100), lambda path: disk(path, "ext4", 8 * MIB)],
    ids=VOLUMES,
)
def test_any_number_of_inodes(
    tmp_path: Path, children: Children, volume: Volume, subtests: pytest.Subtests
) -> None:
    with mounted(volume, tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        site.keep()
        site.apply(["earlier", "new"])
        after = site.state()
        done = []
        refused = "the kernel refuses"
        for free in range(0, 16, 2):
            with subtests.test(f"{free} inodes free"):
                site.go_back()
                with without_inodes(mount_point, free):
                    done.append(survives(children, site, MIB, refused, "earlier", "new"))
                assert_recovers(site, before, after, "earlier", "new")
        assert done[-1]


@contextmanager
def without_inodes(mount_point: Path, free: int) -> Iterator[None]:
    """Have other files take all but *free* inodes, and one for the ballast."""
    settle(mount_point)
    directory = mount_point / "inodes"
    directory.mkdir()
    count = os.statvfs(mount_point).f_favail - free - 1
    try:
        for number in range(count):
            (directory / str(number)).touch()
        yield
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


@pytest.mark.parametrize("kind", SIZES)
def test_what_was_evicted_is_really_back_before_it_is_spent(tmp_path: Path, kind: str) -> None:
    """Also where the file system frees in the background, and no more is evicted than needed."""
    with mounted(lambda path: disk(path, kind, SIZES[kind]), tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        for name in ("oldest", "older", "old"):
            site.publish(name, 4 * MIB)
            site.apply([name])
        site.publish("new", 6 * MIB)
        site.apply([])
        with full(mount_point, free=MIB):
            site.apply(["new"])
            assert {row.layer_id for row in site.state().rows.values()} == {"old", "new"}
            assert free_bytes(mount_point) < 4 * MIB


def test_a_spool_takes_no_room_from_its_layer(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """A layer fits with a spool beside it wherever it fits without one."""
    with mounted(lambda path: disk(path, "ext4", 64 * MIB), tmp_path / "volume") as mount_point:
        place = {"layers_dir": mount_point / "layers", "download_dir": mount_point / "download"}
        site = Site(tmp_path, **place, network=replace(IMPATIENT, spool_bytes=1))
        layer = site.publish("large", MARK_BYTES + 2 * MIB)
        files = {layer.url: Path(layer.url.removeprefix("file://")).read_bytes()}
        done, spooled = [], []
        for free in range(8 * MIB, 40 * MIB, 4 * MIB):
            with subtests.test(f"{free} bytes free"), full(mount_point, free=free):
                steps: list[Step] = []
                sources = {"file": MemorySource(files, is_local=False)}
                with site.manager(sources=sources, on_step=steps.append) as manager:
                    is_there = _tries(lambda: manager.process_desired_layers([layer]))
                    assert site.spools() == []
                    manager.process_desired_layers([])
                    manager.remove_cached_layers(1 << 40)
                with site.manager() as manager:  # from a file: nothing is spooled
                    assert _tries(lambda: manager.process_desired_layers([layer])) == is_there
                    manager.process_desired_layers([])
                    manager.remove_cached_layers(1 << 40)
                done.append(is_there)
                spooled.append(steps.count(Step.SYNC_SPOOL) > 0)
        assert [done[0], done[-1]] == [False, True]
        assert [spooled[0], spooled[-1]] == [False, True]
        # Here and there it was begun, and had to go.
        assert sum(spooled) < sum(done)


def _tries(operation: Callable[[], object]) -> bool:
    """Do *operation*; whether there was room for it."""
    try:
        operation()
    except LayersFailedError as error:
        if error.subgroup(NotEnoughSpaceError) is None:
            raise
        return False
    return True


@pytest.mark.parametrize("kind", SIZES)
def test_a_disk_that_is_full_to_the_last_block_can_be_emptied(tmp_path: Path, kind: str) -> None:
    """The database's reserve is enough for it, and for the directories of XFS."""
    with mounted(lambda path: disk(path, kind, SIZES[kind]), tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        with full(mount_point, free=0), site.manager() as manager:
            manager.remove_expired_layers(timedelta(0))
            assert [row.layer_id for row in manager.get_layers_info()] == ["earlier"]
        assert_whole(site.state(), before)


@pytest.mark.parametrize("kind", [Kind.SIGKILL, Kind.EIO])
@pytest.mark.parametrize("step", [Step.SPEND_RESERVE, Step.MAKE_RESERVE, Step.WRITE_ROW])
def test_what_happens_while_a_full_disk_is_emptied(
    tmp_path: Path, children: Children, step: Step, kind: Kind, subtests: pytest.Subtests
) -> None:
    """The room that the reserve gave up is not lost: the next one can empty it."""
    with mounted(VOLUMES["ext4"], tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        site.keep()
        working_dir = site.config.working_dir
        for occurrence in range(1, 4):
            with subtests.test(f"{step} #{occurrence}"):
                site.go_back()
                with full(mount_point, free=0):
                    ended = children.run(empty, str(working_dir), kind, step, occurrence)
                    assert ended.lines == ["met"] or occurrence > 1
                    assert ended.status in {RETURNED, RAISED, -signal.SIGKILL}
                    ended = children.run(empty, str(working_dir), Kind.EIO, step, 1_000)
                    assert (ended.status, ended.lines) == (RETURNED, [])
                    assert {row.layer_id for row in site.state().rows.values()} == {"earlier"}
                assert_whole(site.state(), before)


def quota(path: Path) -> AbstractContextManager[Path]:
    """A btrfs on which no more than 2 MiB may be written, though it has more."""

    @contextmanager
    def volume() -> Iterator[Path]:
        with disk(path, "btrfs", SIZES["btrfs"]) as mount_point:
            for command in (
                f"quota enable {mount_point}",
                f"subvolume create {mount_point}/limited",
                f"qgroup limit {2 * MIB} {mount_point}/limited",
            ):
                subprocess.run(["btrfs", *command.split()], check=True, capture_output=True)
            yield mount_point

    return volume()


def test_a_quota(tmp_path: Path) -> None:
    with mounted(quota, tmp_path / "volume") as mount_point:
        site = Site(tmp_path, working_dir=mount_point / "limited/work")
        site.publish("earlier", 20_000)
        site.publish("new", 4 * MIB)
        site.publish("small", 100_000)
        site.apply(["earlier"])
        before = site.state()
        with site.manager() as manager:
            for _ in range(3):
                with pytest.raises(LayersFailedError) as caught:
                    manager.process_desired_layers(site.layers(["earlier", "new"]))
                (error,) = caught.value.exceptions
                assert isinstance(error, NotEnoughSpaceError)
            manager.process_desired_layers(site.layers(["earlier", "small"]))
        assert site.state().rows.keys() == {
            layer.digest for layer in site.layers(["earlier", "small"])
        }
        assert site.state().rows.items() >= before.rows.items()
        assert site.leftovers() == []


@pytest.mark.parametrize(
    "step",
    [
        *(Step.UNPACK, Step.SYNC_LAYERS, Step.PLACE_LAYER, Step.WRITE_ROW, Step.COMMIT_ROWS),
        *(
            pytest.param(step, marks=pytest.mark.slow)
            for step in (
                *(Step.WRITE_LOCK, Step.STAGE_LAYER, Step.STAGE_INDEX, Step.SYNC_INDEX),
                *(Step.MAKE_PARENT_DIRECTORY, Step.PLACE_INDEX, Step.SYNC_DIRECTORY),
            )
        ),
    ],
)
def test_a_disk_that_becomes_read_only(tmp_path: Path, step: Step) -> None:
    """An ext4 that finds an error in itself is remounted read-only, in the midst of anything."""
    is_armed = False

    def break_at(current: Step) -> None:
        nonlocal is_armed
        if is_armed and current == step:
            is_armed = False
            error_of(mount_point).write_text("a test")

    path = tmp_path / "volume"
    with mounted(lambda path: disk(path, "ext4", 8 * MIB), path) as mount_point:
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", mount_point], check=True)
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        processes = descendants()
        manager = site.manager(on_step=break_at)
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(LayerManagerError))
            stack.callback(manager.close)
            is_armed = True
            manager.process_desired_layers(site.layers(["earlier", "new"]))
        assert not is_armed
        assert descendants() == processes
        # What can be read is whole.
        for row in site.state().rows.values():
            if row.digest in before.trees:
                assert site.state().trees[row.digest] == before.trees[row.digest]
        subprocess.run(["umount", mount_point], check=True)
        # A copy, since some other process with a mount namespace of its own may keep the first.
        image = tmp_path / "mended.img"
        shutil.copyfile(path.with_suffix(".img"), image)
        checked = subprocess.run(["e2fsck", "-fp", image], check=False, capture_output=True)
        assert checked.returncode <= 1  # the error that was noted is taken off
        subprocess.run(["mount", "-o", "loop", image, mount_point], check=True)
        with site.manager():
            pass
        earlier = site.layer("earlier").digest
        assert site.state().rows[earlier] == before.rows[earlier]
        assert site.leftovers() == []
        site.apply(["earlier", "new"])
        assert site.layer("new").digest in site.state().rows


def error_of(mount_point: Path) -> Path:
    """The file of sysfs by which an ext4 can be made to find an error in itself."""
    device = mount_point.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return Path(f"/sys/fs/ext4/{name}/trigger_fs_error")
