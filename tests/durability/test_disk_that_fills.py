"""A disk that another program fills meanwhile: commands work, or fail, and never die.

``FILLING_RUNS`` in the environment is how often each command is tried in the longer test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from durability.site import Site, assert_whole
from durability.test_full_disk import SIZES, mounted, site_on, with_something_cached
from durability.volumes import disk, free_bytes, full, settle, tmpfs
from layermanager.desired import desired_to_json
from manager_fixtures import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durability.test_full_disk import Volume

RUNS: Final = int(os.environ.get("FILLING_RUNS", "10"))
STARTS: Final = (0, 64 * 1024, MIB // 2, 2 * MIB)
"""How many bytes are free when a command starts."""

VOLUMES: Final[dict[str, Volume]] = {
    "tmpfs": lambda path: tmpfs(path, 8 * MIB, inodes=200),
    "ext4": lambda path: disk(path, "ext4", 16 * MIB, "-N", "128"),
    "ext4, 1 KiB": lambda path: disk(path, "ext4", 16 * MIB, "-b", "1024", "-N", "128"),
    "xfs": lambda path: disk(path, "xfs", SIZES["xfs"]),
    "btrfs": lambda path: disk(path, "btrfs", SIZES["btrfs"]),
}

FILLER: Final = """
    import os, sys
    directory, number = sys.argv[1], 0
    file = os.open(f"{directory}/filling", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    is_full = False
    while True:
        try:
            os.write(file, bytes(65536))
        except OSError:
            try:
                os.write(file, bytes(1024))
            except OSError:
                try:
                    os.close(os.open(f"{directory}/filling-{number}", os.O_CREAT))
                    number += 1
                except OSError:
                    pass
                if not is_full:
                    is_full = True
                    print("full", flush=True)
"""


@contextmanager
def filling(directory: Path, *, wait: bool) -> Iterator[None]:
    """Have another program take every byte and every inode; *wait* until it has them once."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FILLER), directory], stdout=subprocess.PIPE
    )
    try:
        if wait:
            assert process.stdout is not None
            assert process.stdout.readline() == b"full\n"
        yield
    finally:
        process.kill()
        process.communicate()
        for path in directory.glob("filling*"):
            path.unlink()
        settle(directory)


def command(site: Site, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "layermanager"),
            *("--work-dir", site.config.working_dir, *arguments),
        ],
        check=False,
        capture_output=True,
        text=True,
    )


def assert_succeeds(site: Site, *arguments: str | Path) -> None:
    ended = command(site, *arguments)
    assert ended.returncode == 0, (arguments, ended.returncode, ended.stderr)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("volume", VOLUMES)
def test_what_works_on_a_disk_without_a_byte_and_without_an_inode(
    tmp_path: Path, volume: str
) -> None:
    """Another program goes on writing, and takes at once what is freed."""
    with mounted(VOLUMES[volume], tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        before = site.state()
        left = site.config.layers_dir / ".staging/left"
        left.mkdir(parents=True)
        (left / "over").write_bytes(bytes(MIB // 4))
        with filling(mount_point, wait=True):
            assert_succeeds(site, "ls")
            assert_succeeds(site, "df")
            assert_succeeds(site, "check")
            assert_succeeds(site, "show", "earlier")
            assert_succeeds(site, "lease", "ls")
            assert_succeeds(site, "gc", "--ttl-days", "0")
            state = site.state()
            assert state.leftovers == []
            assert state.trees.keys() == {site.layer("earlier").digest}
            # Btrfs may have no block for the row: then a later operation deletes it.
            assert volume == "btrfs" or state.rows.keys() == state.trees.keys()
            assert_succeeds(site, "ls")
        with site.manager():
            pass
        assert_whole(site.state(), before)
        assert {row.layer_id for row in site.state().rows.values()} == {"earlier"}


@pytest.mark.parametrize("volume", ["ext4", "btrfs"])
def test_leftovers_and_spools_go_before_the_reserve(tmp_path: Path, volume: str) -> None:
    with mounted(VOLUMES[volume], tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        left = site.config.layers_dir / ".trash/left"
        left.mkdir(parents=True)
        (left / "over").write_bytes(bytes(MIB))
        spool = site.config.download_dir / f"sha256-{'0' * 64}.part"
        spool.parent.mkdir(exist_ok=True)
        spool.write_bytes(bytes(MIB))
        reserve = site.config.database.with_name(f"{site.config.database.name}-reserve")
        identity = reserve.stat().st_ino
        with full(mount_point, free=0):
            assert_succeeds(site, "gc", "--ttl-days", "0")
            assert reserve.stat().st_ino == identity
            assert site.leftovers() == []
            assert {row.layer_id for row in site.state().rows.values()} == {"earlier"}


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_no_command_dies_while_the_disk_fills(tmp_path: Path) -> None:
    """Btrfs writes nothing in place, so that a mapping may need a block at any moment."""
    volume = VOLUMES["btrfs"]
    with mounted(volume, tmp_path / "volume") as mount_point:
        site = site_on(mount_point, tmp_path)
        with_something_cached(site)
        desired = tmp_path / "desired.json"
        layers = site.layers(["earlier", "new"])
        desired.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
        ended: dict[tuple[str, int], int] = {}
        for number in range(RUNS):
            start = full(mount_point, free=STARTS[number % len(STARTS)])
            with start, filling(mount_point, wait=False):
                for arguments in (("apply", str(desired)), ("ls",)):
                    done = command(site, *arguments)
                    key = arguments[0], done.returncode
                    ended[key] = ended.get(key, 0) + 1
                    assert done.returncode in {0, 1}, (number, done.stderr)
                    assert "Traceback" not in done.stderr
                    assert arguments != ("ls",) or done.returncode == 0, done.stderr
            site.apply(["earlier"])
            with site.manager() as manager:
                manager.remove_cached_layers(1 << 40)
        print(ended, time.strftime("%X"))  # noqa: T201 - what came of it
        assert free_bytes(mount_point) > MIB
