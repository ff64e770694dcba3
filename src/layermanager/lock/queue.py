"""The queue of the processes that wait for a lock: first come, first served.

Each holds the lock of one byte of a file (open file description locks, fcntl(2), Linux 3.15), which
the kernel drops when the process ends, however it ends. The number of the byte is the time of
arrival, and the process: so everyone sees who is ahead, and nothing needs to be written. Locks may
lie beyond the end of the file, which stays empty.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# struct flock: type, whence, start, length, process; as the C compiler aligns it.
_FLOCK: Final = struct.Struct("@hhqqi0q")
_PROCESS_BITS: Final = 22  # the kernel's PID_MAX_LIMIT
_END: Final = (1 << 63) - 1
_TAKEN: Final = (errno.EAGAIN, errno.EACCES)


class Queue:
    """The queue at one file.

    All methods raise ``OSError`` where the kernel has no lock to give.

    Args:
        descriptor: of the file, open for writing. Its open file description is one place in the
            queue, so each that waits opens the file for itself.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place: int | None = None

    def enter(self, now: float) -> None:
        """Take a place behind those that came before *now*, seconds on a clock of the machine."""
        place = (int(now * 1000) << _PROCESS_BITS) | os.getpid()
        while not self._lock(place):  # another thread of this process came in the same millisecond
            place += 1 << _PROCESS_BITS
        self._place = place

    def leave(self) -> None:
        """Give the place up; without one this does nothing."""
        if self._place is not None:
            self._request(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, self._place, 1)
            self._place = None

    def processes_ahead(self) -> Iterator[int]:
        """Return the processes that are ahead of this place; without one, all that wait.

        A process of another process namespace appears with its number there.
        """
        spans = [(1, _END if self._place is None else self._place)]
        while spans:
            begin, end = spans.pop()
            found = self._locked_between(begin, end) if begin < end else None
            if found is not None:
                yield found & ((1 << _PROCESS_BITS) - 1)
                spans += [(found + 1, end), (begin, found)]

    def _lock(self, place: int) -> bool:
        try:
            self._request(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, place, 1)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def _locked_between(self, begin: int, end: int) -> int | None:
        """Return a place from *begin* on and before *end* that another has, if there is one."""
        kind, place = self._request(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, begin, end - begin)
        return None if kind == fcntl.F_UNLCK else place

    def _request(self, command: int, kind: int, start: int, length: int) -> tuple[int, int]:
        request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(self._descriptor, command, request))
        return answer[0], answer[2]
