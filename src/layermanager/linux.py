"""System calls of Linux that the standard library lacks; the only ctypes code."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PR_SET_PDEATHSIG: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)


def sync_file_system(descriptor: int) -> None:
    """Write all that the file system of *descriptor* still holds in memory to disk (syncfs(2)).

    Raises:
        OSError: writing failed, now or (since Linux 5.8) at any time since the last call.
    """
    _require_success(_libc.syncfs(descriptor))


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send *signal_number* to this process when its parent ends (prctl(2)).

    The parent, to the kernel, is the thread that forked, so it must not be one that ends early.
    """
    _require_success(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def _require_success(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
