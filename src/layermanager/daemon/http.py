"""What is asked and answered over HTTP, as values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


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
