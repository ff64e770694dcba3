"""What is asked and answered over HTTP, as values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

# Of RFC 9110, with 431 of RFC 6585. Those of http.HTTPStatus changed with versions of Python, and
# the description of the API, the titles of its problems and its status lines would change, too.
_PHRASES: Final[Mapping[int, str]] = MappingProxyType(
    {
        200: "OK",
        201: "Created",
        202: "Accepted",
        204: "No Content",
        304: "Not Modified",
        400: "Bad Request",
        401: "Unauthorized",
        403: "Forbidden",
        404: "Not Found",
        405: "Method Not Allowed",
        406: "Not Acceptable",
        408: "Request Timeout",
        409: "Conflict",
        411: "Length Required",
        412: "Precondition Failed",
        413: "Content Too Large",
        414: "URI Too Long",
        415: "Unsupported Media Type",
        417: "Expectation Failed",
        422: "Unprocessable Content",
        426: "Upgrade Required",
        431: "Request Header Fields Too Large",
        500: "Internal Server Error",
        501: "Not Implemented",
        503: "Service Unavailable",
        505: "HTTP Version Not Supported",
    }
)


def phrase(status: int) -> str:
    """Return the reason phrase of a status code; it is empty for an unknown one, as HTTP allows."""
    return _PHRASES.get(status, "")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, wholly read.

    Attributes:
        method: such as ``GET``.
        target: the path and the query, as they were sent.
        headers: by their names in lower case; of those that came several times the last one.
        body: its bytes; empty where there is none.
        peer: who asks, for the log.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to a request.

    Attributes:
        status: the status code.
        content_type: what the body is.
        body: its bytes; or a generator of them, which is sent piece by piece as they come, and
            closed when the client goes away.
        headers: headers besides those of the body.
    """

    status: int
    content_type: str = JSON
    body: bytes | Generator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(
        cls, document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Self:
        """The *document*, in ASCII: names of files may be no UTF-8."""
        return cls(status, JSON, encoded(document), headers or {})


def encoded(document: object) -> bytes:
    """A JSON document on one line."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")
