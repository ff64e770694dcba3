"""Which modification times a file system can hold.

Linux sets the nearest one that it can (since 5.4), without a word: whole seconds from 1901 to 2038
on ext3 and on ext4 with inodes of 128 bytes, to 2446 and 2486 on ext4 and XFS of today.
"""

from __future__ import annotations

import os
from typing import Final

_EARLIEST_NS: Final = 1  # most layers hold nothing older than 1970, nor younger than January 2038
# Of the last second that a file system has, Linux keeps no fraction.
_LATEST_NS: Final = (2**31 - 1) * 1_000_000_000 - 1


def exact_times(directory: int) -> range:
    """Return the times, in nanoseconds, that the file system surely holds as they are.

    Any other one has to be read back after it was set.

    Args:
        directory: a descriptor of a directory, whose time is changed by this.
    """
    for time_ns in (_EARLIEST_NS, _LATEST_NS):
        os.utime(directory, ns=(time_ns, time_ns))
        if os.fstat(directory).st_mtime_ns != time_ns:
            return range(0)
    return range(_LATEST_NS + 1)
