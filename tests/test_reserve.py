"""The room that the database keeps for itself, on a real file system that fills up."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from durability.volumes import full, tmpfs
from layermanager.errors import StorageError
from layermanager.reserve import RESERVE_BYTES, Reserve, allocate, is_full
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a tmpfs")
    try:
        with tmpfs(tmp_path / "volume", 8 * MIB) as mount_point:
            yield mount_point
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {error}")


def bytes_of(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_it_is_made_where_there_is_room(volume: Path) -> None:
    steps: list[Step] = []
    path = volume / "reserve"

    for _ in range(2):
        with Reserve(path, steps.append).room():
            assert bytes_of(path) >= RESERVE_BYTES

    assert bytes_of(path) >= RESERVE_BYTES
    assert steps == [Step.MAKE_RESERVE]


def test_one_that_is_not_whole_is_filled_up(volume: Path) -> None:
    path = volume / "reserve"
    path.write_bytes(b"a crash came between")

    with Reserve(path, unannounced).room():
        assert bytes_of(path) >= RESERVE_BYTES


def test_on_a_full_disk_it_makes_room_and_takes_back_what_is_left(volume: Path) -> None:
    path = volume / "reserve"
    reserve = Reserve(path, unannounced)
    with reserve.room():
        pass

    with full(volume, free=0):
        with reserve.room():
            assert not path.exists()
            (volume / "row").write_bytes(bytes(RESERVE_BYTES // 3))
        assert bytes_of(path) == RESERVE_BYTES // 2
        with reserve.room():
            (volume / "row").unlink()
        assert bytes_of(path) == RESERVE_BYTES


def test_after_a_failure_the_next_change_takes_it_back(volume: Path) -> None:
    path = volume / "reserve"
    reserve = Reserve(path, unannounced)
    with reserve.room():
        pass

    with full(volume, free=0):
        with pytest.raises(ZeroDivisionError), reserve.room():
            raise ZeroDivisionError
        with reserve.room():
            assert not path.exists()
        assert bytes_of(path) == RESERVE_BYTES


def test_without_it_the_change_is_tried_on_a_full_disk_too(volume: Path) -> None:
    path = volume / "reserve"
    (volume / "row").write_bytes(b"before")

    with full(volume, free=0), Reserve(path, unannounced).room():
        (volume / "row").write_bytes(b"after!")
        assert not path.exists() or bytes_of(path) == 0

    assert (volume / "row").read_bytes() == b"after!"


def test_a_link_in_its_place_is_not_followed(volume: Path) -> None:
    (volume / "precious").write_bytes(b"")
    (volume / "reserve").symlink_to("precious")

    with (
        pytest.raises(StorageError, match="symbolic"),
        Reserve(volume / "reserve", unannounced).room(),
    ):
        pytest.fail("it followed the link")

    assert bytes_of(volume / "precious") == 0


def test_a_disk_without_blocks_or_without_inodes_is_full(tmp_path: Path, volume: Path) -> None:
    assert not is_full(volume)
    with full(volume, free=0):
        assert is_full(volume)
        assert not allocate(volume / "more", MIB)
    with tmpfs(tmp_path / "few", 8 * MIB, inodes=3) as few:
        (few / "one").touch()
        assert not is_full(few)
        (few / "two").touch()
        assert is_full(few)
        assert not allocate(few / "three", MIB)


def test_without_inodes_it_gives_up_its_own(tmp_path: Path, volume: Path) -> None:
    del volume
    with tmpfs(tmp_path / "few", 8 * MIB, inodes=2) as few:
        reserve = Reserve(few / "reserve", unannounced)
        with reserve.room():
            pass
        assert is_full(few)
        with reserve.room():
            (few / "journal").touch()


def test_what_is_allocated_can_be_like_another_file(volume: Path) -> None:
    (volume / "database").touch()
    (volume / "database").chmod(0o640)
    os.chown(volume / "database", 7, 8)
    assert allocate(volume / "journal", MIB, like=volume / "database")
    status = (volume / "journal").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 7, 8)
