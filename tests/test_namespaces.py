"""Mounts are found in all mount namespaces, and overlays that are in none."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import (
    IN_A_MOUNT_NAMESPACE,
    IN_A_USER_NAMESPACE,
    mount_command,
    shell,
    waiting,
)
from layermanager.use.inspector import Inspector
from layermanager.use.namespaces import (
    BoundLayers,
    detached_files,
    mount_tables,
    mounts_seen_by,
)
from layermanager.use.overlay import device_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

OWN = Path("/proc/self/ns/mnt")
CHROOTED = """
import os, subprocess, sys
subprocess.run(["sh", "-c", sys.argv[1]], check=True)
child = os.fork()
if child:
    os.chroot("/sys")
    print(child, flush=True)
os.read(0, 1)
if child:
    os.waitpid(child, 0)
"""

pytestmark = pytest.mark.usefixtures("needs_overlay")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory to mount on, whose name is nowhere else."""
    path = tmp_path / "a place"
    path.mkdir()
    return path


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("top", "low")]
    for path in paths:
        path.mkdir()
        (path / "file").write_text(path.name)
        (path / f"of {path.name}").mkdir()
    return paths


def seen_by(place: Path) -> list[int]:
    """A process of each namespace in which *place* is mounted."""
    return [
        table.process
        for table in mount_tables()
        for mount in table.mounts
        if mount.mount_point == os.fsencode(place)
    ]


def test_in_the_own_one(layers: list[Path], place: Path) -> None:
    with shell(mount_command(layers, place) + f"; trap 'umount \"{place}\"' EXIT"):
        (mount,) = (
            one for one in mounts_seen_by(os.getpid()) if one.mount_point == os.fsencode(place)
        )
        assert mount.kind == b"overlay"
        assert mount.device == device_text(place.stat().st_dev)
        assert seen_by(place)
    assert seen_by(place) == []


def test_in_another_one(layers: list[Path], place: Path) -> None:
    with shell(mount_command(layers, place), prefix=IN_A_MOUNT_NAMESPACE) as process:
        assert seen_by(place) == [process.pid]
        assert not place.is_mount()
    assert seen_by(place) == []


def test_what_a_root_directory_hides_from_the_first_process(
    layers: list[Path], place: Path
) -> None:
    """Of those in one namespace, all are looked at that see other parts of it."""
    with subprocess.Popen(
        [*IN_A_MOUNT_NAMESPACE, sys.executable, "-c", CHROOTED, mount_command(layers, place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.pid < child
        assert seen_by(place) == [child]
        process.communicate()
    assert seen_by(place) == []


def test_in_one_without_a_process(layers: list[Path], place: Path, tmp_path: Path) -> None:
    parent = tmp_path / "namespaces"
    parent.mkdir()
    file = parent / "one"
    file.touch()
    # The file of a namespace can only be mounted where that is not passed on to it.
    subprocess.run(["mount", "--bind", parent, parent], check=True)
    subprocess.run(["mount", "--make-private", parent], check=True)
    command = ["unshare", f"--mount={file}", "sh", "-c", mount_command(layers, place)]
    subprocess.run(command, check=True)
    try:
        assert len(seen_by(place)) == 1
    finally:
        subprocess.run(["umount", file], check=True)
        subprocess.run(["umount", parent], check=True)
    assert seen_by(place) == []


class TestDetached:
    """Overlays that were taken out of the tree while something of them is in use."""

    @pytest.fixture
    def mounted(self, layers: list[Path], place: Path) -> Iterator[Path]:
        subprocess.run(["sh", "-c", mount_command(layers, place)], check=True)
        yield place
        subprocess.run(["umount", "-q", "--lazy", place], check=False)

    def detached(self, layers_dir: Path, device: str) -> list[tuple[int, bool]]:
        inspector = Inspector(layers_dir)
        found = []
        for file in detached_files(mount_tables()):
            opened = inspector.identify(file.path, is_foreign=file.is_foreign)
            if opened and opened.is_overlay and opened.device == device:
                found.append((file.process, opened.is_directory))
        return found

    @pytest.mark.parametrize(
        ("script", "leads_on"),
        [("exec 3< {}/file", False), ("exec 3< {}/of' 'top", True), ("cd {}/of' 'top", True)],
    )
    def test_by_a_process(
        self, mounted: Path, tmp_path: Path, script: str, *, leads_on: bool
    ) -> None:
        device = device_text(mounted.stat().st_dev)
        with shell(script.format(shlex.quote(str(mounted)))) as process:
            assert self.detached(tmp_path, device) == []
            subprocess.run(["umount", "--lazy", mounted], check=True)
            assert self.detached(tmp_path, device) == [(process.pid, leads_on)]
        assert self.detached(tmp_path, device) == []

    def test_one_that_is_still_mounted_elsewhere_is_not(self, mounted: Path) -> None:
        with shell(f"cd '{mounted}'"), shell("true", prefix=IN_A_MOUNT_NAMESPACE) as other:
            subprocess.run(["umount", "--lazy", mounted], check=True)
            assert seen_by(mounted) == [other.pid]

    def test_pipes_sockets_and_files_in_memory_are_on_no_mount(self) -> None:
        program = """
import os, socket, sys
held = os.pipe(), socket.socket(), os.memfd_create("x"), os.eventfd(0)
print("ready", flush=True)
sys.stdin.read()
"""
        with waiting([sys.executable, "-c", program]) as process:
            files = detached_files(mount_tables())
            assert process.pid not in {file.process for file in files}


class TestTablesOfOthers:
    def test_a_carriage_return_in_a_mount_point(self, layers: list[Path], place: Path) -> None:
        odd = place / "a\r36 25 0:1 / \x1c\v\f\x85 - overlay y ro,lowerdir=z"
        odd.mkdir(parents=True)
        script = mount_command(layers, odd, "ro,userxattr")
        with shell(script, prefix=IN_A_USER_NAMESPACE) as process:
            assert seen_by(odd) == [process.pid]
            (table,) = (table for table in mount_tables() if table.process == process.pid)
            assert table.is_foreign
            assert table.unreadable == ()

    @pytest.mark.parametrize("count", [5, 20])
    def test_of_mounts_without_a_layer_only_the_numbers_are_kept(
        self, tmp_path: Path, count: int
    ) -> None:
        """Any user can make a hundred thousand of them, with long names, on any file system."""
        odd = tmp_path / "sha256" / ("0a" * 32)
        odd.mkdir(parents=True)
        bound = BoundLayers.below(tmp_path / "sha256")
        script = f"mount -t tmpfs none {tmp_path}; mkdir -p {odd}\n"
        script += f"mount --bind {odd} {odd}\n" * count
        with shell("", prefix=IN_A_USER_NAMESPACE) as plain:
            (before,) = (one for one in mount_tables(bound=bound) if one.process == plain.pid)
        with shell(script, prefix=IN_A_USER_NAMESPACE) as process:
            (table,) = (one for one in mount_tables(bound=bound) if one.process == process.pid)
        assert len(table.mounts) == len(before.mounts)
        assert len(table.numbers) == len(before.numbers) + 1 + count

    def test_bind_mounts_of_layers_are_kept(self, tmp_path: Path, place: Path) -> None:
        layer = tmp_path / "layers" / "sha256" / ("0a" * 32)
        layer.mkdir(parents=True)
        with shell(f"mount --bind {layer} '{place}'", prefix=IN_A_USER_NAMESPACE) as process:
            tables = mount_tables(bound=BoundLayers.below(tmp_path / "layers"))
        (table,) = (one for one in tables if one.process == process.pid)
        assert os.fsencode(place) in {mount.mount_point for mount in table.mounts}

    def test_the_owner_is_who_made_the_outermost_namespace(self) -> None:
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        inner = ("unshare", "--user", "--mount")
        with shell("", prefix=(*user, *IN_A_USER_NAMESPACE, *inner)) as process:
            (table,) = (one for one in mount_tables() if one.process == process.pid)
        assert table.is_foreign
        assert table.owner == 65534

    def test_each_namespace_that_root_made_is_an_owner(self) -> None:
        with (
            shell("", prefix=IN_A_USER_NAMESPACE) as one,
            shell("", prefix=IN_A_USER_NAMESPACE) as other,
        ):
            owners = [
                table.owner for table in mount_tables() if table.process in {one.pid, other.pid}
            ]
        assert len(set(owners)) == 2
        assert max(owners) < 0

    def test_the_own_namespace_is_not_foreign(self) -> None:
        table = next(
            table
            for table in mount_tables()
            if table.root and table.root.parent.joinpath("ns/mnt").readlink() == OWN.readlink()
        )
        assert not table.is_foreign

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_table_that_cannot_be_read(self, count: int) -> None:
        """There is one failure for all of them, and one line in the log."""
        with ExitStack() as stack:
            processes = [stack.enter_context(alone()).pid for _ in range(count)]
            # The memory of a process has nothing at its beginning: EIO.
            covers = "; ".join(f"mount --bind /proc/$$/mem {table(one)}" for one in processes)
            failed, *log = tables_seen_after(covers)
        more = "; and of 1 more processes" if count == 2 else ""
        assert failed == repr([(processes[0], None, (), f"Input/output error{more}")])
        assert log == [
            f"cannot read the mounts of process {processes[0]}: Input/output error{more}"
        ]

    def test_one_process_of_a_namespace_that_can_be_read_will_do(self) -> None:
        with alone() as one, shell("", prefix=("nsenter", "--mount", "-t", str(one.pid))):
            assert tables_seen_after(f"mount --bind /proc/$$/mem {table(one.pid)}") == ["[]"]

    def test_lines_that_cannot_be_read_are_logged_once_and_escaped(self, tmp_path: Path) -> None:
        lines = [
            b"1 2 3:4 / /x rw - overlay",
            b"\x1b[31m" + b"x" * 5000,
            b"1 2 0:1 / /y rw - a b c",
        ]
        (tmp_path / "table").write_bytes(b"\n".join(lines * 2))
        with alone() as one:
            failed, *log = tables_seen_after(f"mount --bind {tmp_path}/table {table(one.pid)}")
        assert failed == "[]"
        assert len(log) == 2
        assert log[0] == "cannot read a line of a table of mounts: b'1 2 3:4 / /x rw - overlay'"
        assert log[1].startswith("cannot read a line of a table of mounts: b'\\x1b[31mxx")
        assert len(log[1]) < 300

    def test_the_log_does_not_grow_with_the_lines(self, tmp_path: Path) -> None:
        (tmp_path / "table").write_text("".join(f"line {number}\n" for number in range(1000)))
        with alone() as one:
            _, *log = tables_seen_after(f"mount --bind {tmp_path}/table {table(one.pid)}")
        assert len(log) == 32
        assert log[-1].endswith("(further warnings of this kind are left out)")


LOOKING = """
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from layermanager.use.namespaces import mount_tables
for _ in range(3):
    tables = mount_tables()
print([(one.process, one.root, one.mounts, one.failure) for one in tables if one.failure])
"""


def alone() -> AbstractContextManager[subprocess.Popen[str]]:
    """A process in a mount namespace of its own."""
    return shell("", prefix=IN_A_MOUNT_NAMESPACE)


def table(process: int) -> str:
    return f"/proc/{process}/mountinfo"


def tables_seen_after(script: str) -> list[str]:
    """Which tables cannot be read after *script*, and then what was logged."""
    command = shlex.join([sys.executable, "-c", LOOKING])
    done = subprocess.run(
        [*IN_A_MOUNT_NAMESPACE, "sh", "-e", "-c", f"{script}; {command}"],
        check=True,
        capture_output=True,
        text=True,
    )
    *log, failed = done.stdout.splitlines()
    return [failed, *log]
