"""Standard error of a process that is not trusted: the first of it is kept for the log."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from layermanager.unpack.fields import shown

_KEPT_BYTES: Final = 16 * 1024
_TOLD_BYTES: Final = 4 * 1024
_TOLD_LINES: Final = 20


class ErrorPipe:
    """A pipe that stands for a process's standard error.

    It holds a few kilobytes and never blocks the writer: what does not fit is lost. So it need
    not be read as long as the process runs, and costs no more however much is written.

    Raises:
        OSError: no pipe can be made.
    """

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        for end in (self._reading, self.writing):
            os.set_blocking(end, False)
        with contextlib.suppress(OSError):  # without it, it holds some more
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, _KEPT_BYTES)

    def close_writing(self) -> None:
        """Close the end that the process has got; may be repeated."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Close what is open; may be repeated."""
        self.close_writing()
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def last_lines(self) -> list[str]:
        """Return the last lines of what is kept, readable and of bounded length, and forget it.

        A traceback ends with its reason.
        """
        try:
            kept = os.read(self._reading, _KEPT_BYTES)
        except BlockingIOError:
            return []
        lines = [shown(line) for line in kept[-_TOLD_BYTES:].split(b"\n") if line.strip()]
        return lines[-_TOLD_LINES:]
