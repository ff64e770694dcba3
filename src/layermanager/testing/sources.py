"""A source of bytes in memory that fails by a script."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layermanager.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from layermanager.cancellation import Cancellation


@dataclass(frozen=True, slots=True)
class Mishap:
    """What goes wrong with one request.

    Attributes:
        refused: what is said instead of an answer; empty if there is an answer.
        is_transient: whether that may heal.
        retry_after: how long the source wants to be left alone.
        breaks_after: after so many bytes of the answer the connection breaks.
        ends_after: after so many bytes of the answer it ends, as if that were all.
        begins_anew: the answer is the file from its first byte on, whatever was asked for.
        other_bytes: the answer is of these bytes instead of the file's.
        knows_size: whether the source says how long the file is.
        validator: what names the version of the file that is answered.
    """

    refused: str = ""
    is_transient: bool = True
    retry_after: timedelta | None = None
    breaks_after: int | None = None
    ends_after: int | None = None
    begins_anew: bool = False
    other_bytes: bytes | None = None
    knows_size: bool = True
    validator: str = '"1"'


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to a source."""

    url: str
    offset: int
    validator: str


@dataclass
class MemorySource:
    """A ``Source`` of *files* by their URLs; a file that it lacks is an error that does not heal.

    Attributes:
        files: the files by URL.
        mishaps: what goes wrong, a request after the other; when they are used up all is well.
        is_local: what its streams say of that.
        asked: the requests until now.
        bytes_read: how many bytes its streams gave.
        closed: how often it was closed.
    """

    files: Mapping[str, bytes]
    mishaps: list[Mishap] = field(default_factory=list)
    is_local: bool = True
    asked: list[Asked] = field(default_factory=list)
    bytes_read: int = 0
    closed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> MemoryStream:
        """Answer as the script has it."""
        cancellation.check()
        with self._lock:
            self.asked.append(Asked(url, offset, validator))
            mishap = self.mishaps.pop(0) if self.mishaps else Mishap()
        if mishap.refused:
            raise SourceError(
                mishap.refused,
                url=url,
                is_transient=mishap.is_transient,
                retry_after=mishap.retry_after,
            )
        if url not in self.files:
            raise SourceError("no such file", url=url)
        data = self.files[url] if mishap.other_bytes is None else mishap.other_bytes
        return MemoryStream(self, url, data, 0 if mishap.begins_anew else offset, mishap)

    def close(self) -> None:
        """Note it."""
        self.closed += 1

    def note_read(self, size: int) -> None:
        """Count *size* bytes more."""
        with self._lock:
            self.bytes_read += size


class MemoryStream:
    """The bytes of one answer."""

    def __init__(
        self, source: MemorySource, url: str, data: bytes, offset: int, mishap: Mishap
    ) -> None:
        self.is_local = source.is_local
        self.offset = offset
        self.size = len(data) if mishap.knows_size else None
        self.validator = mishap.validator
        self._source = source
        self._url = url
        self._rest = memoryview(data)[offset:][: mishap.ends_after]
        self._given = 0
        self._breaks_after = mishap.breaks_after
        self._aborted = False
        self.is_closed = False

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, until something goes wrong."""
        if self._aborted:
            raise SourceError("the transfer was aborted", url=self._url)
        if self._breaks_after is not None:
            size = min(size, self._breaks_after - self._given)
            if not size:
                raise SourceError("broken off", url=self._url, is_transient=True)
        data = bytes(self._rest[:size])
        self._rest = self._rest[len(data) :]
        self._given += len(data)
        self._source.note_read(len(data))
        return data

    def abort(self) -> None:
        """Make the next ``read`` fail."""
        self._aborted = True

    def close(self) -> None:
        """Note it."""
        self.is_closed = True
