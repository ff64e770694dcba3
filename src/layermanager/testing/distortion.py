"""What a server answers that breaks RFC 9110: the faults that are in the answer itself."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from layermanager.testing.faults import (
    Corrupt,
    Encoded,
    Fault,
    IgnoreRange,
    LyingLength,
    NewVersion,
    NoContentRange,
    OtherBytes,
    Redirect,
    Status,
    WrongContentRange,
)
from layermanager.testing.ranges import ByteRange, File, Reply, part, reply_to, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

_INVERTED: Final = bytes(range(255, -1, -1))


def reply_under(fault: Fault | None, headers: Mapping[str, str], file: File | None) -> Reply:
    """The answer under *fault*; it is the right one for a fault that is in how it is sent.

    Args:
        fault: None for none.
        headers: those of the request, by their names in lower case.
        file: what the server has at the target of the request; None for nothing.
    """
    match fault:
        case Status(code, retry_after):
            retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return _without_body(code, retry)
        case Redirect(location):
            return _without_body(302, {"Location": location})
    if file is None:
        return _without_body(404, {})
    return _wrong_part(fault, headers, file) or _distorted(fault, reply_to(headers, file))


def _wrong_part(fault: Fault | None, headers: Mapping[str, str], file: File) -> Reply | None:
    """The answer where *fault* is in what it is of."""
    match fault:
        case NewVersion():
            return reply_to(headers, File.of(_inverted(file.data)))
        case IgnoreRange():
            return whole(file)
        case Encoded():
            return _encoded(file)
        case WrongContentRange(shift):
            return _shifted(file, headers, shift)
        case _:
            return None


def _without_body(status: int, headers: Mapping[str, str]) -> Reply:
    return Reply(status, {"Content-Length": "0", **headers})


def _encoded(file: File) -> Reply:
    body = gzip.compress(file.data, mtime=0)
    headers = {"Content-Length": str(len(body)), "Content-Encoding": "gzip", **file.validators}
    return Reply(200, headers, body)


def _shifted(file: File, headers: Mapping[str, str], shift: int) -> Reply:
    reply = reply_to(headers, file)
    asked = ByteRange.asked(headers)
    if asked is None or reply.status != 206:
        return reply
    first = min(max(asked.first + shift, 0), len(file.data) - 1)
    return part(file, first, None if asked.last is None else max(asked.last, first))


def _distorted(fault: Fault | None, reply: Reply) -> Reply:
    match fault:
        case OtherBytes():
            return replace(reply, body=_inverted(reply.body))
        case Corrupt(at):
            before, byte, after = reply.body[:at], reply.body[at : at + 1], reply.body[at + 1 :]
            return replace(reply, body=b"".join([before, _inverted(byte), after]))
        case NoContentRange():
            headers = {**reply.headers}
            headers.pop("Content-Range", None)
            return replace(reply, headers=headers)
        case LyingLength(delta):
            length = max(0, len(reply.body) + delta)
            return replace(reply, headers={**reply.headers, "Content-Length": str(length)})
        case _:
            return reply


def _inverted(data: bytes | memoryview) -> bytes:
    return bytes(data).translate(_INVERTED)
