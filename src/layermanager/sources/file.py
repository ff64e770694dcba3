"""Layers from the node's own file systems, such as a USB stick: ``file://`` URLs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from layermanager.errors import SourceError
from layermanager.urls import shown

if TYPE_CHECKING:
    from layermanager.cancellation import Cancellation

_FILE_URL: Final = re.compile(
    r"(?i:file):(?://(?P<host>[^/?#]*)(?=/)|(?!//))(?P<path>/[^?#]*)", re.DOTALL
)
_MALFORMED_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class FileSource:
    """Reads regular files; a stream of it is as long as the file was when it was opened."""

    def open(
        self,
        url: str,
        cancellation: Cancellation,  # noqa: ARG002 - opening a file waits for nobody
        *,
        offset: int = 0,
        validator: str = "",
    ) -> FileStream:
        """Open the file that *url* names, at the byte *offset* if it is still the same file.

        Raises:
            SourceError: it is not there, may not be read, or is no regular file; or *url* is not
                the URL of a file on this node.
        """
        path = _path_of(url)
        shown = path.decode("utf-8", "backslashreplace")
        with contextlib.ExitStack() as undo:
            try:
                file = undo.enter_context(io.FileIO(path, opener=_open_at_once))
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise SourceError(f"not a regular file: {shown}", url=url)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            except OSError as error:
                raise SourceError(f"cannot open {shown}: {error.strerror}", url=url) from error
            version = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
            if offset > status.st_size or validator not in {"", version}:
                offset = 0
            file.seek(offset)
            undo.pop_all()
            return FileStream(file, url, offset=offset, size=status.st_size, validator=version)

    def close(self) -> None:
        """Do nothing: no file stays open between transfers."""


class FileStream:
    """The bytes of one file."""

    is_local: Final = True

    def __init__(
        self, file: io.FileIO, url: str, *, offset: int, size: int, validator: str
    ) -> None:
        self._file = file
        self._url = url
        self._offset = offset
        self._position = offset
        self._size = size
        self._validator = validator
        self._aborted = False

    @property
    def size(self) -> int:
        """How many bytes the file had when it was opened."""
        return self._size

    @property
    def offset(self) -> int:
        """Which byte of the file comes first."""
        return self._offset

    @property
    def validator(self) -> str:
        """What changes when another file has that name, or the file is written to."""
        return self._validator

    def read(self, size: int) -> bytes:
        """Up to *size* bytes; empty where the file ended when it was opened.

        Raises:
            SourceError: the file became shorter, cannot be read, or ``abort`` was called.
        """
        if self._aborted:
            raise SourceError("the transfer was aborted", url=self._url)
        wanted = min(size, self._size - self._position)
        try:
            data = self._file.read(wanted)
        except OSError as error:
            raise SourceError(
                f"cannot read on after {self._progress}: {error.strerror}", url=self._url
            ) from error
        if wanted and not data:
            raise SourceError(
                f"the file became shorter while it was read: it ended after {self._progress}",
                url=self._url,
                is_transient=True,
            )
        self._position += len(data)
        return data

    def abort(self) -> None:
        """Make the next ``read`` fail; one that is under way ends as soon as the disk answers."""
        self._aborted = True

    def close(self) -> None:
        """Close the file; may be repeated."""
        self._file.close()

    @property
    def _progress(self) -> str:
        return f"{self._position} of {self._size} bytes"


def _open_at_once(path: str | bytes, flags: int) -> int:
    """Open *path* without waiting for the other end, if it turns out to be a fifo."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _path_of(url: str) -> bytes:
    """The path in *url*, as the bytes that the kernel knows it by.

    A ``?`` or ``#`` would begin something that a file does not have; most likely it belongs to a
    name and was not escaped. It is refused, since cutting it off would name another file.
    """
    match = _FILE_URL.fullmatch(url)
    if match is None:
        raise SourceError(
            "a file URL is file:// and an absolute path, with ? as %3F and # as %23",
            url=shown(url),
        )
    if (match["host"] or "localhost").lower() != "localhost":
        raise SourceError("a file URL cannot name another host", url=shown(url))
    if _MALFORMED_ESCAPE.search(match["path"]):
        raise SourceError("a % that is not followed by two hex digits must be %25", url=url)
    try:
        path = unquote_to_bytes(match["path"].encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise SourceError("the path is no valid text", url=url) from error
    if b"\0" in path:
        raise SourceError("a path cannot hold the byte 0", url=url)
    return path
