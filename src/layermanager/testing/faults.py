"""What can go wrong between a client and a server, one event each, as values.

A script is a sequence of them: see ``layermanager.testing.fault_server``.

Positions count the bytes of the body of the answer that the fault happens to, not of the file: an
answer to a request for the rest of a file begins at 0. An answer that is shorter than a position
is whole; what happens to the connection happens after it, and there is no byte to corrupt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Refuse:
    """The connection is reset as soon as it is accepted."""


@dataclass(frozen=True, slots=True)
class FailTls:
    """The server takes the first bytes of the client, and closes after an answer that is no TLS.

    On a server without TLS the client's request is answered that way.

    Attributes:
        answer: the bytes of the answer; without any the connection ends in the handshake.
    """

    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class CloseBeforeAnswer:
    """The connection is closed, in order, when the request was read."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (RST) when the client has read a part of the body.

    The server waits for that, so that the client has all of that part whatever its speed: what is
    in the queues of a connection may perish with it.

    Attributes:
        after: the bytes of that part.
    """

    after: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """The connection is closed, in order, after a part of the body.

    Attributes:
        after: the bytes of that part.
    """

    after: int


@dataclass(frozen=True, slots=True)
class Stall:
    """The server goes silent until ``FaultServer.release``, and sends the rest then.

    Attributes:
        after: the bytes of the body before the silence; None to say nothing at all before.
    """

    after: int | None = None


@dataclass(frozen=True, slots=True)
class Drip:
    """The body comes in small pieces, each sent when the client has read the one before.

    Attributes:
        piece: the bytes of a piece.
        pace: how long the server waits at least after each piece.
    """

    piece: int = 1
    pace: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One byte of the body has all its bits inverted.

    Attributes:
        at: the position of that byte.
    """

    at: int


@dataclass(frozen=True, slots=True)
class OtherBytes:
    """The headers are right, also the entity tag, but the body is that of another file."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The answer is right for another file of the same size, with its own entity tag.

    So answers one of several servers behind an address that is ahead of the others; the answer to
    the next request is of the file again.
    """


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """The whole file with status 200, whatever part was asked for."""


@dataclass(frozen=True, slots=True)
class WrongContentRange:
    """Another part of the file than was asked for, and ``Content-Range`` says so.

    An answer with the whole file, or with none of it, stays as it is.

    Attributes:
        shift: how many bytes later than asked the part begins, as far as the file goes; less than
            0 for earlier.
    """

    shift: int = 1


@dataclass(frozen=True, slots=True)
class NoContentRange:
    """A part of the file, without the ``Content-Range`` that says which."""


@dataclass(frozen=True, slots=True)
class LyingLength:
    """``Content-Length`` is wrong; the connection is closed, in order, after the true body.

    Attributes:
        delta: what is added to the length, which is never less than 0.
    """

    delta: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """The whole file, compressed, with ``Content-Encoding: gzip``."""


@dataclass(frozen=True, slots=True)
class Status:
    """Another status, and no body.

    Attributes:
        code: the status code.
        retry_after: the header ``Retry-After``: seconds, or the text of an HTTP date; None for
            none.
    """

    code: int
    retry_after: int | str | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Status 302.

    Attributes:
        location: the header ``Location``.
    """

    location: str


@dataclass(frozen=True, slots=True)
class EndlessBody:
    """After the body zeros come, for ever; its length is not told."""


@dataclass(frozen=True, slots=True)
class EndlessHeaders:
    """After the status line headers come, for ever."""


@dataclass(frozen=True, slots=True)
class EndlessContinue:
    """The interim answer ``100 Continue`` comes, for ever."""


@dataclass(frozen=True, slots=True)
class EndlessTrailers:
    """After the body, which is chunked, trailers come, for ever."""


Fault: TypeAlias = (
    Refuse
    | FailTls
    | CloseBeforeAnswer
    | Reset
    | Truncate
    | Stall
    | Drip
    | Corrupt
    | OtherBytes
    | NewVersion
    | IgnoreRange
    | WrongContentRange
    | NoContentRange
    | LyingLength
    | Encoded
    | Status
    | Redirect
    | EndlessBody
    | EndlessHeaders
    | EndlessContinue
    | EndlessTrailers
)
