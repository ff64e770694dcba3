"""The system calls by ctypes: that they do what they say, and tell the kernel's reason if not."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from prison import answer_by, in_child, outcome

from layermanager import linux

_LANDLOCK_CREATE_RULESET = 444
_CAP_CHOWN = 0
_CAP_KILL = 5
_CAP_SYS_ADMIN = 21


def _capabilities() -> dict[str, int]:
    lines = Path("/proc/self/status").read_bytes().splitlines()
    return {
        line[:6].decode(): int(line.split()[1], 16) for line in lines if line.startswith(b"Cap")
    }


def test_sync_file_system(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    linux.sync_file_system(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.sync_file_system(descriptor)


def test_process_dies_with_its_parent() -> None:
    readable, writable = os.pipe()

    def leave_a_child_behind() -> int:
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            linux.die_with_parent(signal.SIGKILL)
            os.write(go, b"x")
            signal.pause()
        os.read(ready, 1)
        return child

    assert isinstance(in_child(leave_a_child_behind), int)
    os.close(writable)
    # The pipe ends once the grandchild, the last that held it open, is no more.
    assert os.read(readable, 1) == b""
    os.close(readable)


@pytest.mark.usefixtures("needs_root")
def test_capabilities_that_are_not_kept_are_gone() -> None:
    def keep() -> dict[str, int]:
        linux.keep_capabilities([_CAP_CHOWN, _CAP_SYS_ADMIN])
        return _capabilities()

    found = in_child(keep)
    assert isinstance(found, dict)
    mask = 1 << _CAP_CHOWN | 1 << _CAP_SYS_ADMIN
    assert (found["CapEff"], found["CapPrm"], found["CapInh"]) == (mask, mask, 0)


@pytest.mark.usefixtures("needs_root")
def test_capabilities_that_were_never_there_need_not_be_kept() -> None:
    """Root in a container lacks some; the others are given up all the same."""

    def keep() -> int:
        linux.keep_capabilities([_CAP_CHOWN])
        linux.keep_capabilities([_CAP_CHOWN, _CAP_SYS_ADMIN])
        return _capabilities()["CapEff"]

    assert in_child(keep) == 1 << _CAP_CHOWN


@pytest.mark.usefixtures("needs_root")
def test_capabilities_are_bounded() -> None:
    def bound() -> int:
        linux.bound_capabilities([_CAP_CHOWN])
        return _capabilities()["CapBnd"]

    assert in_child(bound) == 1 << _CAP_CHOWN


@pytest.mark.usefixtures("needs_root")
def test_bounding_without_the_right_to_it_says_so() -> None:
    def bound() -> str:
        linux.keep_capabilities([_CAP_KILL])
        return outcome(lambda: linux.bound_capabilities([]))

    assert in_child(bound) == "EPERM"


def test_giving_up_all_capabilities_needs_no_rights() -> None:
    def keep() -> int:
        linux.keep_capabilities([])
        linux.keep_capabilities([])
        return _capabilities()["CapEff"]

    assert in_child(keep) == 0


def test_kernel_without_landlock() -> None:
    def version() -> str:
        answer_by(_LANDLOCK_CREATE_RULESET, errno.ENOSYS)
        return outcome(linux.landlock_version)

    assert in_child(version) == "ENOSYS"


def test_landlock_rules_of_what_the_kernel_does_not_know_are_refused(tmp_path: Path) -> None:
    try:
        linux.landlock_version()
    except OSError as error:
        pytest.skip(f"needs Landlock: {error}")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, no paths
    with pytest.raises(OSError, match="Invalid argument"):
        linux.landlock_restrict(b"\xff" * 8, directory, 0)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(directory)


def test_filter_that_is_no_program_is_refused() -> None:
    def install() -> str:
        linux.set_no_new_privileges()
        return outcome(lambda: linux.install_system_call_filter(b""))

    assert in_child(install) == "EINVAL"


@pytest.mark.usefixtures("needs_mount_namespace")
def test_mounts_in_a_namespace_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "file").touch()

    def bind() -> list[bool]:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(b"none", b"/", linux.MS_REC | linux.MS_PRIVATE)
        there = os.fsencode(tmp_path / "there")
        linux.mount(os.fsencode(tmp_path / "here"), there, linux.MS_BIND)
        mounted = (tmp_path / "there" / "file").exists()
        linux.unmount(there, linux.MNT_DETACH)
        return [mounted, (tmp_path / "there" / "file").exists()]

    assert in_child(bind) == [True, False]
    assert not (tmp_path / "there" / "file").exists()
