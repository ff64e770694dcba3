"""What a server that keeps to RFC 9110 answers to a GET, also of a part of a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_RANGE: Final = re.compile(r"bytes=([0-9]+)-([0-9]*)")


@dataclass(frozen=True, slots=True)
class File:
    """What a server has at a URL.

    Attributes:
        data: its bytes.
        etag: its entity tag with the quotes, which may be weak (``W/"1"``); None for none.
        last_modified: None for unknown.
    """

    data: bytes
    etag: str | None
    last_modified: datetime | None

    @classmethod
    def of(cls, data: bytes) -> File:
        """A file with a strong entity tag, made of *data*, and a date."""
        tag = hashlib.sha256(data).hexdigest()[:16]
        return cls(data, f'"{tag}"', datetime(2024, 1, 1, tzinfo=UTC))

    @property
    def validators(self) -> dict[str, str]:
        """The headers that say which version of the file this is."""
        headers = {}
        if self.etag is not None:
            headers["ETag"] = self.etag
        if self.last_modified is not None:
            headers["Last-Modified"] = format_datetime(self.last_modified, usegmt=True)
        return headers


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The part of a file that a client asks for.

    Attributes:
        first: the position of its first byte.
        last: the position of its last byte; None for the end of the file.
    """

    first: int
    last: int | None

    @classmethod
    def asked(cls, headers: Mapping[str, str]) -> ByteRange | None:
        """The single range that *headers* (names in lower case) ask for.

        None if they ask for none, or in a way that this server does not know or that is invalid;
        it then gives the whole file, as section 14.2 allows.
        """
        match = _RANGE.fullmatch(headers.get("range", ""))
        if match is None:
            return None
        first, last = int(match[1]), int(match[2]) if match[2] else None
        return None if last is not None and last < first else cls(first, last)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: the status code.
        headers: all but the date.
        body: as long as ``Content-Length`` says, unless the server lies.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview = b""


def reply_to(headers: Mapping[str, str], file: File) -> Reply:
    """What a server answers that has *file* and knows ranges.

    Args:
        headers: those of the request, by their names in lower case.
        file: what the server has at the target of the request.
    """
    asked = ByteRange.asked(headers)
    if asked is None or not _is_current(headers.get("if-range"), file):
        return whole(file)
    if asked.first >= len(file.data):
        return Reply(416, {"Content-Range": f"bytes */{len(file.data)}", "Content-Length": "0"})
    return part(file, asked.first, asked.last)


def whole(file: File) -> Reply:
    """All of *file*."""
    return Reply(
        200,
        {
            "Content-Length": str(len(file.data)),
            "Accept-Ranges": "bytes",
            **file.validators,
        },
        file.data,
    )


def part(file: File, first: int, last: int | None) -> Reply:
    """The bytes of *file* from the position *first* to *last* or, at most, to its end."""
    end = len(file.data) if last is None else min(last + 1, len(file.data))
    return Reply(
        206,
        {
            "Content-Length": str(end - first),
            "Content-Range": f"bytes {first}-{end - 1}/{len(file.data)}",
            **file.validators,
        },
        memoryview(file.data)[first:end],
    )


def _is_current(if_range: str | None, file: File) -> bool:
    """Whether *if_range* names this version of *file*, by the strong comparison (13.1.5)."""
    if if_range is None:
        return True
    if if_range.startswith("W/"):
        return False
    return if_range in file.validators.values()
