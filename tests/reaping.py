"""Wait for all that a process started, also after it was killed.

Processes of the unpacker hold nothing of their manager's by which their end could be seen. They
stay in its process group, and are given to the nearest process above them that is a subreaper
(PR_SET_CHILD_SUBREAPER of prctl(2)).
"""

from __future__ import annotations

import ctypes
import os

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
