"""A layer that is mounted, by whomever, loses no file; and it is said who is in the way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE, IN_A_USER_NAMESPACE, mount_command, shell
from layermanager.check import Status
from layermanager.desired import desired_to_json
from layermanager.errors import LayersFailedError, NotEnoughSpaceError, StorageError, StoreError
from layermanager.inventory import Inventory
from layermanager.model import Repair
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step
from layermanager.testing.clock import FakeClock
from manager_fixtures import MIB, Node, name_on_disk, names_in, wait_until_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager import DesiredLayer, LayerInfo, LayerManager

AT_ONCE = timedelta(0)

LEASING = """
import sys
from pathlib import Path
from layermanager import Config, LayerNotExistError
from layermanager.use.layer_use import open_use
with open_use(Config(Path(sys.argv[1]))) as use:
    print("ready", flush=True)
    try:
        use.lease("one", owner="a test")
        print("leased")
    except LayerNotExistError:
        print("refused")
"""

pytestmark = pytest.mark.usefixtures("needs_overlay")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """What an overlay of one layer has below it."""
    path = tmp_path / "empty"
    path.mkdir()
    return path


def cached(manager: LayerManager, *layers: DesiredLayer) -> tuple[LayerInfo, ...]:
    """Install *layers*, and desire them no longer; return them in that order."""
    manager.process_desired_layers(layers)
    rows = {row.digest: row for row in manager.process_desired_layers([]).cached}
    return tuple(rows[layer.digest] for layer in layers)


def assert_whole(target: Path, layer: LayerInfo) -> None:
    assert (target / "etc/name").read_text() == layer.layer_id
    assert (target / "data").read_bytes() == (layer.path / "data").read_bytes()


class TestEveryWayToRemove:
    """Each passes over a layer in another namespace's overlay, and takes the rest."""

    @pytest.fixture
    def layers(self, node: Node) -> list[DesiredLayer]:
        return [node.publish("used", MIB), node.publish("other", MIB)]

    def test_when_the_time_to_live_is_over(
        self, node: Node, layers: list[DesiredLayer], target: Path, empty: Path
    ) -> None:
        with node.manager() as manager:
            used, _ = cached(manager, *layers)
            with shell(mount_command([used.path, empty], target), prefix=IN_A_MOUNT_NAMESPACE):
                assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["other"]
                node.assert_has([layers[0]])
            assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["used"]

    def test_when_garbage_is_collected(
        self, node: Node, layers: list[DesiredLayer], target: Path, empty: Path
    ) -> None:
        with node.manager() as manager:
            used, _ = cached(manager, *layers)
            with shell(mount_command([used.path, empty], target), prefix=IN_A_MOUNT_NAMESPACE):
                assert names_in(manager.remove_cached_layers(1 << 60)) == ["other"]
            assert names_in(manager.remove_cached_layers(1 << 60)) == ["used"]

    def test_when_space_is_needed(
        self, node: Node, layers: list[DesiredLayer], target: Path, empty: Path
    ) -> None:
        node.config = replace(node.config, layers_part_limit=100)
        partitions = Partitions(lambda _: DiskUsage(device=1, total=3 * MIB, free=1 << 40))
        with node.manager(new_space_allocator=partitions.new_allocator) as manager:
            used, _ = cached(manager, *layers)
            with shell(mount_command([used.path, empty], target), prefix=IN_A_MOUNT_NAMESPACE):
                new = node.publish("new", MIB)
                assert names_in(manager.process_desired_layers([new]).installed) == ["new"]
                node.assert_has([layers[0], new])

    def test_when_a_row_is_missing(
        self, node: Node, layers: list[DesiredLayer], target: Path, empty: Path
    ) -> None:
        with node.manager() as manager:
            used, _ = manager.process_desired_layers(layers).installed
            manager._storage.delete_layer_by_digest(used.digest)
            with shell(mount_command([used.path, empty], target), prefix=IN_A_MOUNT_NAMESPACE):
                manager.remove_expired_layers()
                assert sorted(node.files()) == sorted(layer.digest for layer in layers)
                (again,) = manager.process_desired_layers(layers).installed
                assert again.digest == used.digest
                assert name_on_disk(again) == "used"
            manager.remove_expired_layers()
            node.assert_has(layers)

    def test_when_it_is_repaired(
        self, node: Node, layers: list[DesiredLayer], target: Path
    ) -> None:
        """The old one is kept, beside the new one, until nobody uses it any more."""
        with node.manager() as manager:
            used, _ = manager.process_desired_layers(layers).installed
            (used.path / "etc/name").write_text("damaged")
            with manager.mount("app", "used", target=target, read_only=True):
                manager.repair_layers([Repair(used, layers[0])])
                assert name_on_disk(used) == "used"
                assert (target / "etc/name").read_text() == "damaged"
                assert (target / "data").read_bytes() == (used.path / "data").read_bytes()
                assert len(node.leftovers()) == 1
                manager.remove_expired_layers()
                assert (target / "etc/link").is_symlink()
            manager.remove_expired_layers()
            node.assert_has(layers)

    def test_when_a_crash_left_it_in_the_trash_without_its_row(
        self, node: Node, layers: list[DesiredLayer], target: Path
    ) -> None:
        with node.manager() as manager:
            used, _ = manager.process_desired_layers(layers).installed
            with manager.mount("app", "used", target=target, read_only=True):
                manager._storage.delete_layer_by_digest(used.digest)
                used.path.rename(node.config.layers_dir / ".trash" / f"{used.digest.encoded}.0a")
                manager.remove_expired_layers()
                assert names_in(manager.get_layers_info()) == ["other"]
                assert (target / "etc/name").read_text() == "used"
            manager.remove_expired_layers()
            node.assert_has(layers[1:])


class TestAtThatMoment:
    """A mount that begins while its layer is being removed."""

    @pytest.fixture
    def layer(self, node: Node) -> DesiredLayer:
        return node.publish("one", MIB)

    def test_before_the_layer_leaves_its_place(
        self, node: Node, layer: DesiredLayer, target: Path, empty: Path
    ) -> None:
        """After it was found to be unused: it comes back, with its index and its age."""

        def mount(step: Step) -> None:
            if step is Step.MOVE_TO_TRASH:
                subprocess.run(["sh", "-c", mount_command([one.path, empty], target)], check=True)

        clock = FakeClock()
        with node.manager(clock=clock) as manager:
            (one,) = cached(manager, layer)
        before = node.files(), node.rows()
        clock.advance(timedelta(hours=1))
        with node.manager(clock=clock, on_step=mount) as manager:
            assert manager.remove_expired_layers(AT_ONCE) == ()
            assert_whole(target, one)
            assert (node.files(), node.rows()) == before
            (report,) = Inventory(node.config).check([one])
            assert report.status is Status.INTACT
            subprocess.run(["umount", target], check=True)
        with node.manager(clock=clock) as manager:
            assert manager.remove_expired_layers(AT_ONCE) == (one,)

    def test_after_the_layer_left_its_place(
        self, node: Node, layer: DesiredLayer, target: Path, empty: Path
    ) -> None:
        refused: list[int] = []

        def mount(step: Step) -> None:
            if step is Step.REMOVE_INDEX:
                command = ["sh", "-c", mount_command([one.path, empty], target)]
                refused.append(subprocess.run(command, check=False, capture_output=True).returncode)

        with node.manager(on_step=mount) as manager:
            (one,) = cached(manager, layer)
            assert manager.remove_expired_layers(AT_ONCE) == (one,)
        assert refused[0] != 0
        assert not target.is_mount()

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (Step.WRITE_LOCK, "leased"),
            (Step.MOVE_TO_TRASH, "refused"),
            (Step.WRITE_ROW, "refused"),
            (Step.REMOVE_INDEX, "refused"),
            (Step.REMOVE_TREE, "refused"),
        ],
    )
    def test_a_lease_of_another_process_comes_before_or_not_at_all(
        self, node: Node, layer: DesiredLayer, step: Step, expected: str
    ) -> None:
        leasing: list[subprocess.Popen[str]] = []

        def lease(now: Step) -> None:
            if now is not step or leasing:
                return
            command = [sys.executable, "-c", LEASING, str(node.config.working_dir)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            leasing.append(process)
            if expected == "leased":  # or else it may wait for what is being done here
                process.wait()

        with node.manager() as manager:
            (one,) = cached(manager, layer)
        with node.manager(on_step=lease) as manager:
            removed = manager.remove_expired_layers(AT_ONCE)
            (process,) = leasing
            assert process.communicate()[0] == f"{expected}\n"
            assert removed == (() if expected == "leased" else (one,))
            assert len(manager.leases()) == len(manager.get_layers_info()) == 1 - len(removed)


@pytest.fixture
def mounted_elsewhere(target: Path, empty: Path, tmp_path: Path) -> Iterator[None]:
    """An overlay of another program, at which every look at mounts has to look."""
    lower = tmp_path / "lower"
    lower.mkdir()
    with shell(mount_command([lower, empty], target), prefix=IN_A_MOUNT_NAMESPACE):
        yield


@pytest.mark.usefixtures("mounted_elsewhere")
class TestWhatFailed:
    """An exception that is kept refers to all that was looked at; nothing stays open by that."""

    def test_keeps_no_socket(self, node: Node) -> None:
        with node.manager() as manager:
            cached(manager, node.publish("one"))
        armed: list[bool] = []
        with node.manager(on_step=failing_to_remove(armed)) as manager:
            before = sockets()
            armed.append(True)
            with pytest.raises(StoreError) as failure:
                manager.remove_expired_layers(AT_ONCE)
            assert sockets() == before, failure

    def test_keeps_none_when_the_manager_starts(self, node: Node) -> None:
        with node.manager() as manager:
            cached(manager, node.publish("one"))
        node.config = replace(node.config, layer_ttl_days=0)
        before = sockets()
        with pytest.raises(StorageError) as failure:
            node.manager(on_step=failing_to_remove([True], Step.WRITE_ROW))
        assert sockets() == before, failure


def failing_to_remove(armed: list[bool], at: Step = Step.MOVE_TO_TRASH) -> Callable[[Step], None]:
    def step(now: Step) -> None:
        if armed and now is at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return step


def sockets() -> set[str]:
    opened = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the look itself
            opened.add(str(path.readlink()))
    return {one for one in opened if one.startswith("socket:")}


class TestWithoutProc:
    """Where ``/proc`` is not mounted, as where an image is built, no mount can be seen."""

    def test_nothing_is_removed_and_no_lease_ends(self, node: Node, tmp_path: Path) -> None:
        layers = [node.publish("leased"), node.publish("cached")]
        with node.manager() as manager:
            manager.process_desired_layers(layers)
            lease = manager.lease("leased", owner="a test", process=os.getpid()).lease
            manager.process_desired_layers([])
        new = tmp_path / "desired.json"
        new.write_text(json.dumps([desired_to_json(node.publish("new"))]))
        assert "installed" in without_proc(node, "apply", new)
        collected = without_proc(node, "gc", "--ttl-days", "0")
        assert "by an unknown mount (/proc" in collected
        with node.manager() as manager:
            assert {*names_in(manager.get_layers_info())} == {"cached", "leased", "new"}
            assert manager.leases() == (lease,)
            assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["cached"]


def without_proc(node: Node, *arguments: str | Path) -> str:
    """Run a command where ``/proc`` is an empty directory; return what it says."""
    done = subprocess.run(
        [
            *IN_A_MOUNT_NAMESPACE,
            *("sh", "-ec", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
            *(sys.executable, "-m", "layermanager"),
            *("--work-dir", str(node.config.working_dir), *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return f"{done.stdout}{done.stderr}"


class TestNotEnoughSpace:
    def test_it_is_said_who_is_in_the_way(self, node: Node, target: Path, empty: Path) -> None:
        node.config = replace(node.config, layers_part_limit=100)
        partitions = Partitions(lambda _: DiskUsage(device=1, total=4 * MIB, free=1 << 40))
        layers = [node.publish(name, MIB) for name in ("leased", "mounted", "free")]
        new = node.publish("new", 3 * MIB)
        with ExitStack() as stack:
            manager = stack.enter_context(
                node.manager(new_space_allocator=partitions.new_allocator)
            )
            leased, mounted, free = cached(manager, *layers)
            lease = stack.enter_context(manager.lease("leased", owner="the boot loader")).lease
            command = mount_command([mounted.path, empty], target)
            process = stack.enter_context(shell(command, prefix=IN_A_MOUNT_NAMESPACE))
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([new])
            (error,) = caught.value.exceptions
            assert isinstance(error, NotEnoughSpaceError)
            assert error.reclaimable == free.size
            assert [held.digest for held in error.held] == sorted([leased.digest, mounted.digest])
            for part in (
                f"{leased.digest} by lease {lease.lease_id} of the boot loader",
                f"{mounted.digest} by the overlay on {target}, which process {process.pid} sees",
            ):
                assert part in str(error)
            assert len(manager.get_layers_info()) == 3, "nothing was evicted in vain"

    def test_nobody_is(self, node: Node) -> None:
        node.config = replace(node.config, layers_part_limit=100)
        partitions = Partitions(lambda _: DiskUsage(device=1, total=MIB, free=1 << 40))
        with (
            node.manager(new_space_allocator=partitions.new_allocator) as manager,
            pytest.raises(LayersFailedError) as caught,
        ):
            manager.process_desired_layers([node.publish("new", 3 * MIB)])
        (error,) = caught.value.exceptions
        assert "in use" not in str(error)


class TestStacks:
    """An overlay of another user on top of one of ours, which is unmounted then."""

    @pytest.fixture
    def layers(self, node: Node) -> list[DesiredLayer]:
        return [node.publish("used", MIB), node.publish("other", MIB)]

    @pytest.mark.parametrize("read_only", [True, False])
    def test_it_keeps_layers_and_what_was_written(
        self,
        node: Node,
        layers: list[DesiredLayer],
        target: Path,
        empty: Path,
        tmp_path: Path,
        *,
        read_only: bool,
    ) -> None:
        above = tmp_path / "above"
        above.mkdir()
        with node.manager() as manager:
            (used, _) = cached(manager, *layers)
            manager.mount("base", "used", target=target, read_only=read_only)
            if not read_only:
                (target / "written").write_text("by the mount")
            command = mount_command([target, empty], above)
            with shell(f"{command}; trap 'umount {above}' EXIT"):
                manager.umount("base")
                assert not target.is_mount()
                assert manager.mounts() == ()
                assert names_in(manager.remove_cached_layers(1 << 60)) == ["other"]
                assert names_in(manager.remove_expired_layers(AT_ONCE)) == []
                assert_whole(above, used)
                assert read_only or (above / "written").read_text() == "by the mount"
                (lease,) = manager.leases()
                assert lease.owner == "mount base"
                with manager.mount("base", "used", target=target):
                    assert len(manager.leases()) == 2, "the name is free"
            wait_until_unused(manager)
            assert names_in(manager.remove_cached_layers(1 << 60)) == ["used"]
            mounts = node.config.working_dir / "mounts"
            assert not mounts.exists() or list(mounts.iterdir()) == []

    def test_by_the_root_of_a_user_namespace(
        self, node: Node, layers: list[DesiredLayer], target: Path, empty: Path, tmp_path: Path
    ) -> None:
        above = tmp_path / "above"
        above.mkdir()
        with node.manager() as manager:
            (used, _) = cached(manager, *layers)
            manager.mount("base", "used", target=target, read_only=True)
            script = mount_command([target, empty], above, "ro,userxattr")
            with shell(script, prefix=IN_A_USER_NAMESPACE) as process:
                manager.umount("base")
                assert names_in(manager.remove_cached_layers(1 << 60)) == ["other"]
                assert_whole(Path(f"/proc/{process.pid}/root{above}"), used)
            wait_until_unused(manager)
            assert names_in(manager.remove_cached_layers(1 << 60)) == ["used"]


class TestHostileMounts:
    """No mount of a user without any rights fails an operation."""

    @pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
    def test_names_with_characters_that_end_a_line(
        self, node: Node, target: Path, needs_nobody: tuple[str, ...], kind: str
    ) -> None:
        script = rf"""
            mount -t tmpfs none /mnt
            cd /mnt
            mkdir a b
            for odd in '\r' '\v' '\f' '\034' '\035' '\036' '\205' '\377' '\n1 2 3:4 - overlay'; do
                name="$(printf "x${{odd}}36 25 0:9 - overlay y ro,lowerdir=z")"
                mkdir "$name"
                mount -t {kind} -o {"ro" if kind == "tmpfs" else "lowerdir=a:b"} "$name" "$name"
            done
        """
        with shell(script, prefix=needs_nobody):
            self.assert_all_operations_work(node, target)

    def test_more_components_than_a_recursion_can_take(
        self, node: Node, target: Path, needs_nobody: tuple[str, ...]
    ) -> None:
        script = f"""
            mount -t tmpfs none /mnt
            cd /mnt
            mkdir a b c
            mount -t overlay -o lowerdir={"/." * 1900}/mnt/a:/mnt/b none /mnt/c
        """
        with shell(script, prefix=needs_nobody):
            self.assert_all_operations_work(node, target)

    def assert_all_operations_work(self, node: Node, target: Path) -> None:
        layers = [node.publish("one"), node.publish("two")]
        with node.manager() as manager:
            manager.process_desired_layers(layers)
            assert names_in(manager.process_desired_layers(layers[:1]).cached) == ["two"]
            with manager.mount("app", "one", target=target, read_only=True):
                assert [mount.name for mount in manager.mounts()] == ["app"]
                assert (target / "etc/name").read_text() == "one"
            assert manager.mounts() == ()
            assert Inventory(node.config).usage().held == 0
            assert names_in(manager.remove_cached_layers(1 << 60)) == ["two"]
            node.assert_has(layers[:1])
