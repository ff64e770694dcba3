"""What system calls the manager changes the disk by, as strace(1) sees them.

Each step is marked by a call that does nothing: the test of a path that is named after it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from durability.scenarios import SCENARIOS
from durability.walk import Walk
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKS: Final = "/step/"
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from durability.tracing import main; main(*sys.argv[1:4])"
)
_CHANGES: Final = (
    *("mkdir", "mkdirat", "mknod", "mknodat", "rmdir", "unlink", "unlinkat"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("open", "openat", "openat2", "creat", "truncate", "ftruncate", "fallocate"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile"),
    *("splice", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr"),
)
_WATCHED: Final = (*_CHANGES, "access", "faccessat", "faccessat2", "clone", "clone3")
"""Not every architecture has all of them, nor does every version of strace know all."""
_OPENS: Final = {"open", "openat", "openat2"}
_CALL: Final = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)")
_MARK: Final = re.compile(rf'"{_MARKS}([^"]+)"')


@dataclass(frozen=True, slots=True)
class Change:
    """A system call that changes the disk.

    Attributes:
        step: the step that the thread announced last before it.
        call: the name of the system call.
        arguments: its arguments, as strace writes them.
    """

    step: Step | None
    call: str
    arguments: str


def changes(scenario: str, base: Path, traces: Path, marks: str = "marked") -> list[Change]:
    """Have a process do *scenario* below *base*; return what it changed there.

    What its children did is left out.

    Args:
        scenario: what is to be done.
        base: where it has been prepared.
        traces: an empty directory.
        marks: ``marked``, or ``unmarked`` to see what comes of forgotten steps.
    """
    watched = ",".join(f"?{call}" for call in _WATCHED)
    traced = subprocess.run(
        [
            *("strace", "-ff", "-y", "-qq", "-s", "4096", "-o", str(traces / "trace")),
            *("-e", f"trace={watched}", "-e", "signal=none"),
            *(sys.executable, "-c", _BOOT, scenario, str(base), marks, *sys.path),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [
        change
        for thread in _threads(traces, int(traced.stdout.split()[0]))
        for change in _changes(thread)
        if str(base / "work") in change.arguments
    ]


def main(scenario: str, base: str, marks: str) -> None:
    """Be the process that is traced."""
    print(os.getpid(), flush=True)  # noqa: T201 - the test reads it
    mark = _mark if marks == "marked" else unannounced
    SCENARIOS[scenario].act(SCENARIOS[scenario].site(Path(base)), Walk(mark=mark))


def _mark(step: Step) -> None:
    os.access(f"{_MARKS}{step}", os.F_OK)


def _threads(traces: Path, thread: int) -> Iterator[list[str]]:
    """The calls of a thread, and of the threads, but not the processes, that it started."""
    lines = (traces / f"trace.{thread}").read_text().splitlines()
    yield lines
    for line in lines:
        if line.startswith("clone") and "CLONE_THREAD" in line:
            yield from _threads(traces, int(line.rpartition("= ")[2]))


def _changes(lines: list[str]) -> Iterator[Change]:
    step = None
    for line in lines:
        if mark := _MARK.search(line):
            step = Step(mark[1])
            continue
        call = _CALL.match(line)
        if call is None or call["name"] not in _CHANGES:
            continue
        name, arguments = call["name"], call["arguments"]
        if name in _OPENS and "O_CREAT" not in arguments and "O_TRUNC" not in arguments:
            continue
        yield Change(step, name, arguments)
