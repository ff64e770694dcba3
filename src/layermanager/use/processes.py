"""Which process is which, and whether it is still there (proc_pid_stat(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from layermanager.errors import UseError
from layermanager.leases import ProcessBond

_PROC: Final = Path("/proc")
_DEAD: Final = (b"Z", b"X")


def boot_name() -> str:
    """What tells this boot of the machine from all others."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_bond(process: int) -> ProcessBond:
    """What a lease is bound to *process* by.

    Raises:
        UseError: there is no such process.
    """
    started = _start(process)
    if started is None:
        raise UseError(f"there is no process {process}")
    return ProcessBond(boot_name(), _namespace(), process, started)


def is_process_alive(bond: ProcessBond) -> bool:
    """Whether the process has not ended yet.

    Of another process namespace nothing can be told; there it counts as alive.
    """
    if bond.boot != boot_name():
        return False
    if bond.namespace != _namespace():
        return True
    return _start(bond.process) == bond.started


def _start(process: int) -> int | None:
    """When the process started; None if it has ended, also if nobody has taken note of that."""
    try:
        status = (_PROC / str(process) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name of its program, in parentheses, may hold anything.
    state, *numbers = status.rpartition(b")")[2].split()
    threads, started = int(numbers[16]), int(numbers[18])
    # Its first thread may have ended and be waited for, while others go on.
    return None if state in _DEAD and threads <= 1 else started


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a name that is no path
