"""No change of the disk is without its step: shown by all system calls of the manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from durability.scenarios import SCENARIOS
from durability.tracing import changes
from layermanager.steps import Step

if TYPE_CHECKING:
    from pathlib import Path

    from durability.tracing import Change

CALLS = {
    Step.WRITE_LOCK: {"mkdir", "openat"},
    Step.MAKE_RESERVE: {"openat", "fallocate", "fchmod"},
    Step.SPEND_RESERVE: {"unlink", "unlinkat", "syncfs"},
    Step.MAKE_DATABASE: {"mknod", "mknodat", "chmod", "fchmodat"},
    Step.SYNC_DATABASE_DIRECTORY: {"fsync"},
    Step.MAKE_STORE_DIRECTORY: {"mkdir", "mkdirat"},
    Step.STAGE_LAYER: {"mkdir", "mkdirat"},
    Step.STAGE_INDEX: {"openat"},
    Step.REMOVE_MARKERS: {"unlink", "unlinkat", "utimensat"},
    Step.WRITE_INDEX: {"write"},
    Step.UNPACK: set(),  # what changes the disk is the worker
    Step.OWN_INDEX: {"fchmod"},
    Step.SYNC_LAYERS: {"syncfs"},
    Step.SYNC_INDEX: {"fsync"},
    Step.MAKE_PARENT_DIRECTORY: {"mkdir", "mkdirat"},
    Step.PLACE_LAYER: {"rename", "renameat", "renameat2"},
    Step.PLACE_INDEX: {"rename", "renameat", "renameat2"},
    Step.SYNC_DIRECTORY: {"fsync"},
    Step.REMOVE_INDEX: {"unlink", "unlinkat"},
    Step.MOVE_TO_TRASH: {"rename", "renameat", "renameat2"},
    Step.PUT_BACK: {"rename", "renameat", "renameat2"},
    Step.MAKE_MOUNT_DIRECTORY: {
        "mkdir",
        "mkdirat",
        "chmod",
        "fchmodat",
        "chown",
        "fchownat",
        "fchown",
        "fchmod",
        "fsetxattr",
        "fremovexattr",
        "utimensat",
    },
    Step.MOUNT: set(),  # on a table of the kernel, not on the disk
    Step.UNMOUNT: set(),
    Step.REMOVE_TREE: {"unlink", "unlinkat", "rmdir", "fchown", "fchmod", "fchmodat", "chmod"},
    Step.WRITE_SPOOL: {"openat", "ftruncate", "pwrite64"},
    Step.SYNC_SPOOL: {"fdatasync"},
    Step.REMOVE_SPOOL: {"unlink", "unlinkat"},
}
"""What each step may do; what SQLite does is its own affair, within its steps."""

IN_SQLITE = {
    Step.OPEN_DATABASE,
    Step.MIGRATE_DATABASE,
    Step.WRITE_ROW,
    Step.COMMIT_ROWS,
    Step.CLOSE_DATABASE,
}


def traced(name: str, fast_path: Path, tmp_path: Path, marks: str = "marked") -> list[Change]:
    scenario = SCENARIOS[name]
    scenario.prepare(scenario.site(fast_path))
    found = changes(name, fast_path, tmp_path, marks)
    # SQLite gives its journal the owner that it has, whenever it looks at it, also to read.
    return [change for change in found if not _is_of_journal(change)]


def _is_of_journal(change: Change) -> bool:
    return change.call == "fchown" and "servicemanager.db-journal" in change.arguments


def is_announced(change: Change) -> bool:
    if change.step is None:
        return False
    if change.step in IN_SQLITE:
        # It also syncs the directory in which it makes its journal.
        return "servicemanager.db" in change.arguments or change.call == "fdatasync"
    return change.call in CALLS[change.step]


@pytest.mark.usefixtures("needs_strace", "needs_of_scenario")
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_change_is_announced(name: str, fast_path: Path, tmp_path: Path) -> None:
    found = traced(name, fast_path, tmp_path)
    assert found
    assert [change for change in found if not is_announced(change)] == []


@pytest.mark.usefixtures("needs_strace")
def test_a_change_that_is_not_announced_is_found(fast_path: Path, tmp_path: Path) -> None:
    """Where nothing is marked, everything that an installation does is found."""
    found = traced("install", fast_path, tmp_path, "unmarked")
    assert {change.call for change in found} > {"syncfs", "fsync", "pwrite64"}
    assert [change for change in found if is_announced(change)] == []
