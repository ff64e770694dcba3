"""Wait for all that a process started, also after it was killed.

Processes of the unpacker hold nothing of their manager's by which their end could be seen. They
stay in its process group, and are given to the nearest process above them that is a subreaper
(PR_SET_CHILD_SUBREAPER of prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have this process get the descendants whose parents end."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def reap_group(group: int) -> None:
    """Wait until no child of this process, own or given to it, is left in the process group."""
    while True:
        try:
            os.waitpid(-group, 0)
        except ChildProcessError:
            return


def main(arguments: list[str]) -> int:
    """Run a program; return its status, as a shell tells it, when all that it started has ended."""
    become_subreaper()
    with subprocess.Popen(arguments, process_group=0) as process:
        status = process.wait()
    reap_group(process.pid)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
