"""Whether files exist, where an error of the disk is no answer.

``Path.exists`` and the like raised such errors until Python 3.13 and say no since Python 3.14: a
database that cannot be reached would be one that does not exist yet.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def exists(path: Path) -> bool:
    """Return whether there is anything at *path*, following symlinks.

    Raises:
        OSError: that cannot be told.
    """
    return _mode(path) is not None


def is_directory(path: Path) -> bool:
    """Return whether there is a directory at *path*, following symlinks.

    Raises:
        OSError: that cannot be told.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - of Path only what no version changes
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None
