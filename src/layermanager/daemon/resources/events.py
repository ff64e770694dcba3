"""What happens, as it happens: server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.daemon.api import Endpoint, Parameter, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.schemas import TEXT

if TYPE_CHECKING:
    from collections.abc import Generator

    from layermanager.daemon.api import Call
    from layermanager.daemon.events import Events, Position
    from layermanager.daemon.node import Node

_GAP: Final = b"event: gap\ndata: {}\n\n"
_HEARTBEAT: Final = b":\n\n"


def _follow(node: Node, call: Call) -> Answer:
    if not node.events.enter():
        raise RefusedError.for_now("too many read events already; see maxEventReaders")
    position = node.events.position_after(call.parameters.get("Last-Event-ID"))
    stream = _stream(node.events, position)
    next(stream)  # into its try, so that closing it gives the place back, whatever comes first
    return Answer(200, "text/event-stream", stream)


def _stream(events: Events, position: Position) -> Generator[bytes]:
    try:
        yield b""
        # The id alone: who is gone before the first event comes goes on from here, too.
        yield b"retry: 2000\nid: %b\n\n" % events.id_of(position.number).encode("ascii")
        while not events.is_closed:
            if position.has_gap:
                yield _GAP
            found, position = events.wait(position)
            yield b"".join(event.text for event in found) or _HEARTBEAT
    finally:
        events.leave()


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/events",
        "followEvents",
        "What happens from now on, or has happened since Last-Event-ID, as server-sent events",
        _follow,
        {200: Reply("The events, without end.", None, "text/event-stream")},
        parameters=(
            Parameter("Last-Event-ID", "header", TEXT, "The id of the last event that was seen."),
        ),
        problems=(503,),
        description="Kinds are operation (an Operation without its result), progress (a Progress,"
        " with the id of its operation), removed (a Layer, with the reason), desired-state"
        " (what came of a look at its source), ready and gap: events that were not seen are gone,"
        " so that all has to be read anew. Silence is broken by comments.",
    ),
)
