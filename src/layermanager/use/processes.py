"""Which process is which, and whether it is still there (proc_pid_stat(5))."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from layermanager.errors import UseError
from layermanager.leases import ProcessBond

_PROC: Final = Path("/proc")
_DEAD: Final = (b"Z", b"X")
# After the name: the state, and then numbers; the 17th are the threads, the 19th is the start.
_AFTER_NAME: Final = re.compile(rb" ([A-Za-z])(?: -?[0-9]+){16} ([0-9]+) -?[0-9]+ ([0-9]+)(?: |\Z)")


def boot_name() -> str:
    """What tells this boot of the machine from all others."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_bond(process: int) -> ProcessBond:
    """What a lease is bound to *process* by.

    Raises:
        UseError: there is no such process, or it cannot be told when it started.
    """
    try:
        started = _start(process)
    except OSError as error:
        raise UseError(f"cannot bind a lease to process {process}: {error.strerror}") from error
    if started is None:
        raise UseError(f"there is no process {process}")
    return ProcessBond(boot_name(), _namespace(), process, started)


def is_process_alive(bond: ProcessBond) -> bool:
    """Whether the process has not ended yet.

    Where that cannot be told it counts as alive, as in another process namespace.
    """
    if bond.boot != boot_name():
        return False
    if bond.namespace != _namespace():
        return True
    try:
        return _start(bond.process) == bond.started
    except OSError:
        return True


def _start(process: int) -> int | None:
    """Return when the process started; None if it has ended, whether it was waited for or not.

    Raises:
        OSError: it cannot be told.
    """
    try:
        status = (_PROC / str(process) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name of its program, in parentheses, may hold anything.
    match = _AFTER_NAME.match(status.rpartition(b")")[2])
    if match is None:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    state, threads, started = match[1], int(match[2]), int(match[3])
    # Its first thread may have ended and be waited for, while others go on.
    return None if state in _DEAD and threads <= 1 else started


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a name that is no path
