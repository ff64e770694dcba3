"""Programs measured from outside, with all their descendants."""

from __future__ import annotations

import os
import select
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SAMPLE_MILLISECONDS: Final = 5
_OUTPUT_BLOCK_BYTES: Final = 512  # the unit of ru_oublock on Linux, whatever the file system's is


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program and its descendants used.

    Attributes:
        wall_seconds: from its start to its end.
        cpu_seconds: user and system.
        written_bytes: what they had the file systems write, in whole pages: the sum of
            ``write_bytes`` in /proc/PID/io at the end of each process.
    """

    wall_seconds: float
    cpu_seconds: float
    written_bytes: int


def measure(command: Sequence[str | Path]) -> Usage:
    """Run *command* to its end.

    A descendant counts when its parent waited for it, which ours, tar and shells do.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    with _started(command) as process:
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_oublock * _OUTPUT_BLOCK_BYTES)


def measure_with_server(command: Sequence[str | Path], server: int) -> Usage:
    """Run *command* to its end; what the process *server*, which works for it, uses counts as well.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    cpu_before, written_before = _used_so_far(server)
    client = measure(command)
    cpu, written = _used_so_far(server)
    return Usage(
        client.wall_seconds,
        client.cpu_seconds + cpu - cpu_before,
        client.written_bytes + written - written_before,
    )


def peak_memory_bytes(command: Sequence[str | Path]) -> int:
    """Run *command* to its end; return the most memory that it and its descendants ever had.

    It is the sum of their proportional set sizes, in which a page that several processes share
    counts once, looked at every few milliseconds. That slows the program down: time is taken in
    other runs.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    peak = 0
    with _started(command) as process:
        poll = select.poll()
        descriptor = os.pidfd_open(process.pid)
        try:
            poll.register(descriptor, select.POLLIN)
            while not poll.poll(_SAMPLE_MILLISECONDS):
                peak = max(peak, sum(map(proportional_bytes, _family(process.pid))))
        finally:
            os.close(descriptor)
        process.wait()
    return peak


@contextmanager
def _started(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        yield process
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, list(command))


def _used_so_far(process: int) -> tuple[float, int]:
    """The CPU seconds of a process and of its children that ended, and the bytes it has written."""
    # proc(5): the name in parentheses, which may hold blanks, is the second field of stat.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    written = dict(line.split(": ") for line in lines)["write_bytes"]
    return ticks / os.sysconf("SC_CLK_TCK"), int(written)


def _family(process: int) -> Iterator[int]:
    """A process and its descendants; those that end meanwhile may be missing."""
    yield process
    try:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _family(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended


def proportional_bytes(process: int) -> int:
    """The memory of one process, its share of what it shares; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended
    return 0
