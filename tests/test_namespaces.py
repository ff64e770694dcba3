"""Mounts are found in all mount namespaces, and overlays that are in none."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.use.namespaces import detached_overlays, mount_tables, mounts_seen_by
from layermanager.use.overlay import device_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

    def detached(self, device: str) -> list[tuple[int, bool]]:
        return [
            (overlay.process, overlay.directory is not None)
            for overlay in detached_overlays(mount_tables())
            if overlay.device == device
        ]

    @pytest.mark.parametrize(
        ("script", "leads_on"),
        [("exec 3< {}/file", False), ("exec 3< {}/of' 'top", True), ("cd {}/of' 'top", True)],
    )
    def test_by_a_process(self, mounted: Path, script: str, *, leads_on: bool) -> None:
        device = device_text(mounted.stat().st_dev)
        with shell(script.format(shlex.quote(str(mounted)))) as process:
            assert self.detached(device) == []
            subprocess.run(["umount", "--lazy", mounted], check=True)
            assert self.detached(device) == [(process.pid, leads_on)]
        assert self.detached(device) == []

    def test_one_that_is_still_mounted_elsewhere_is_not(self, mounted: Path) -> None:
        device = device_text(mounted.stat().st_dev)
        with shell(f"cd '{mounted}'"), shell("true", prefix=IN_A_MOUNT_NAMESPACE) as other:
            subprocess.run(["umount", "--lazy", mounted], check=True)
            assert seen_by(mounted) == [other.pid]
            assert self.detached(device) == []
