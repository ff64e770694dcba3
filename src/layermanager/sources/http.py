"""Layers from web servers: ``http://`` and ``https://`` URLs.

A layer is asked for by a single GET. The Go client asks by HEAD first and goes on whatever the
answer is; the answer to GET begins with the same headers, so nothing is lost without HEAD, and a
server that knows only GET will do.

What arrives is passed on as it is: no Content-Encoding is asked for, none is undone. Object stores
name ``aws-chunked`` for files that were uploaded so; their bytes are those of the file. To go on
where a transfer broke off, the rest is asked for by Range (RFC 9110, 14.2); with an If-Range where
the server gave a strong ETag, so that it begins anew by itself when the file has changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from layermanager.header_numbers import read_count, read_delay, read_etag, read_http_date
from layermanager.sources.client import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from layermanager.cancellation import Cancellation
    from layermanager.errors import SourceError
    from layermanager.protocols import Clock
    from layermanager.sources.client import Answer, HttpClient

_CONTENT_RANGE: Final = re.compile(
    r"bytes (?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})/(?P<size>[0-9]{1,18})"
)
_UNCHANGED: Final = frozenset({"", "identity", "aws-chunked"})
_LONGEST_DATE: Final = 64
_MAY_HEAL: Final = frozenset(
    {
        HTTPStatus.PARTIAL_CONTENT,  # that was not asked for: a cache mixed up its answers
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""The answers that say nothing about what was asked; another 4xx or 5xx stays what it is."""


class HttpSource:
    """Fetches over HTTP and TLS; may be used by several threads at once.

    Args:
        client: sends the requests; it is closed with the source.
        clock: the time, to which a server's ``Retry-After`` may refer.
    """

    def __init__(self, client: HttpClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> HttpStream:
        """Ask for *url* from the byte *offset* on; return when the headers of the answer are there.

        Raises:
            SourceError: the answer is not a layer as it is, or there is none.
            SourceTimeoutError: there is none in time.
            CancelledError: the request was cancelled.
        """
        place = Place.of(url)

        def ask(headers: Mapping[str, str]) -> Answer:
            return self._client.get(place, headers, cancellation)

        return open_stream(ask, self._clock, offset=offset, validator=validator)

    def close(self) -> None:
        """Close the idle connections; those of transfers under way close with their streams."""
        self._client.close()


def open_stream(
    ask: Callable[[Mapping[str, str]], Answer],
    clock: Clock,
    *,
    offset: int = 0,
    validator: str = "",
) -> HttpStream:
    """The file that is had by asking, from the byte *offset* on or from its first one.

    Args:
        ask: sends a GET with such headers besides its own.
        clock: the time, to which a server's ``Retry-After`` may refer.
        offset: as for ``Source.open``.
        validator: likewise.

    Raises:
        SourceError: the answer is not the file as it is.
    """
    if offset:
        answer = ask(_range_headers(offset, validator))
        stream = _rest(answer, clock, offset, validator)
        if stream is not None:
            return stream
        answer.close()
    return stream_of(ask({}), clock)


def stream_of(answer: Answer, clock: Clock) -> HttpStream:
    """Take the answer as the file from its first byte on.

    Raises:
        SourceError: it says something else, or does not send the file as it is.
    """
    if answer.status != HTTPStatus.OK:
        raise refusal(answer, clock)
    return _stream(answer, 0, None)


def refusal(answer: Answer, clock: Clock, reason: str = "") -> SourceError:
    """The error for an answer that is not the one that was hoped for; it is closed.

    Args:
        answer: what the server says.
        clock: the time.
        reason: what it means, where its status does not say enough.
    """
    answer.close()
    return answer.place.error(
        f"{reason}: {answer.reason}" if reason else answer.reason,
        is_transient=answer.status in _MAY_HEAL,
        retry_after=_retry_after(answer.headers, clock),
    )


def _rest(answer: Answer, clock: Clock, offset: int, validator: str) -> HttpStream | None:
    """Take the answer to a request for the bytes from *offset* on; None if it is none."""
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return None  # the file is another, and shorter
    if answer.status != HTTPStatus.PARTIAL_CONTENT:
        return stream_of(answer, clock)
    part = _part(answer.headers)
    if part is None or part.first != offset:
        return None
    if _body_length(answer) not in {None, part.last + 1 - part.first}:
        return None
    told = _validator(answer.headers)
    if validator and told and told != validator:
        return None
    return _stream(answer, part.first, part.size)


def _retry_after(headers: Mapping[str, str], clock: Clock) -> timedelta | None:
    """How long the server wants to be left alone (RFC 9110, 10.2.3).

    A date is compared with that of the answer, if it has one: the calendar here may be wrong.
    """
    now = clock.now()
    now = read_http_date(headers.get("Date", "").strip(), now) or now
    return read_delay(headers.get("Retry-After", "").strip(), now)


class HttpStream:
    """The body of one answer."""

    is_local: Final = False

    def __init__(self, answer: Answer, *, offset: int, size: int | None, validator: str) -> None:
        self._answer = answer
        self._offset = offset
        self._position = offset
        self._size = size
        self._validator = validator

    @property
    def size(self) -> int | None:
        """How many bytes the whole file has, where the server told it."""
        return self._size

    @property
    def offset(self) -> int:
        """Which byte of the file comes first."""
        return self._offset

    @property
    def validator(self) -> str:
        """The server's ETag, or the time of the last change if it gives none."""
        return self._validator

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, as soon as some are there; empty at the end of the body.

        Raises:
            SourceError: the connection broke, or was closed before the end of the body; or
                ``abort`` was called.
            SourceTimeoutError: nothing arrived for too long.
        """
        of_all = "" if self._size is None else f" of {self._size}"
        data = self._answer.read(size, f"{self._position}{of_all} bytes")
        self._position += len(data)
        if not data and self._size is not None and self._position < self._size:
            raise self._answer.place.error(
                f"ended after {self._position}{of_all} bytes", is_transient=True
            )
        return data

    def abort(self) -> None:
        """Make a ``read`` in another thread, and every later one, fail at once."""
        self._answer.abort()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; may be repeated."""
        self._answer.close()


@dataclass(frozen=True, slots=True)
class _Part:
    """What a Content-Range says: the first and the last byte, and the size of the whole file."""

    first: int
    last: int
    size: int


def _range_headers(offset: int, validator: str) -> dict[str, str]:
    headers = {"Range": f"bytes={offset}-"}
    # A weak ETag must not be sent (RFC 9110, 13.1.5), and whether a time is a strong one nobody
    # knows for sure: such are compared when the answer is there.
    if validator.startswith('"'):
        headers["If-Range"] = validator
    return headers


def _validator(headers: Mapping[str, str]) -> str:
    return read_etag(headers.get("ETag", "")) or headers.get("Last-Modified", "")[:_LONGEST_DATE]


def _part(headers: Mapping[str, str]) -> _Part | None:
    """What the answer is a part of; None if it does not say so in a way that can be used."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        return None
    part = _Part(int(match["first"]), int(match["last"]), int(match["size"]))
    return part if part.first <= part.last < part.size else None


def _stream(answer: Answer, offset: int, size: int | None) -> HttpStream:
    length = _body_length(answer)
    return HttpStream(
        answer,
        offset=offset,
        size=length if size is None else size,
        validator=_validator(answer.headers),
    )


def _body_length(answer: Answer) -> int | None:
    """How many bytes the body has, where its headers say so.

    Raises:
        SourceError: it is not sent as it is, or the headers are malformed; *answer* is closed.
    """
    headers = answer.headers
    encoding = headers.get("Content-Encoding", "").lower()
    if not _UNCHANGED.issuperset(word.strip() for word in encoding.split(",")):
        raise _refused(
            answer,
            f"the server sends the file with Content-Encoding {encoding!r:.80}: "
            "it must send it as it is",
        )
    transfer = headers.get("Transfer-Encoding")
    if transfer is not None:
        if transfer.strip().lower() != "chunked":
            raise _refused(answer, f"Transfer-Encoding {transfer!r:.80} is not supported")
        return None  # a Content-Length besides it does not count (RFC 9112, 6.3)
    length = headers.get("Content-Length")
    if length is None:
        return None
    size = read_count(length)
    if size is None:
        raise _refused(
            answer,
            f"the server's Content-Length is no number of bytes: {length!r:.80}",
            is_transient=True,
        )
    return size


def _refused(answer: Answer, message: str, *, is_transient: bool = False) -> SourceError:
    answer.close()
    return answer.place.error(message, is_transient=is_transient)
