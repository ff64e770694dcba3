"""The daemon as a whole: its parts put together, from the first thread to the last one."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.boundary import Boundary
from layermanager.clock import SystemClock
from layermanager.daemon.api import Api
from layermanager.daemon.events import Events
from layermanager.daemon.node import Node
from layermanager.daemon.resources import ENDPOINTS
from layermanager.daemon.schemas import COMPONENTS
from layermanager.daemon.server import Server
from layermanager.daemon.state_sources import state_source
from layermanager.errors import LayerManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layermanager.config import Config
    from layermanager.daemon.config import DaemonConfig
    from layermanager.daemon.server import Listener

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """A running daemon.

    Attributes:
        node: what it serves.
        server: what answers for it.
    """

    node: Node
    server: Server

    @property
    def is_alive(self) -> bool:
        """Whether all threads that must live do, and none is stuck."""
        return not self.node.troubles

    @property
    def status(self) -> str:
        """What it does, on a line; the thread that asks for it must live, whatever fails."""
        try:
            with self.node.guard.failing(Boundary.THREAD, "the status"):
                return self._status()
        except LayerManagerError as error:
            return f"its status cannot be told: {error}"

    def _status(self) -> str:
        troubles = self.node.troubles
        if troubles:
            return ", ".join(troubles)
        operations = self.node.operations.current()
        if not operations:
            return f"{len(self.node.layers.get())} layers"
        first = operations[0]
        waits = f", waits: {first['waitsFor']}" if "waitsFor" in first else ""
        return f"{first['kind']} {first['state']}{waits}"


@contextmanager
def running(
    config: Config, daemon: DaemonConfig, listeners: Sequence[Listener]
) -> Iterator[Service]:
    """Serve the store of *config* at *listeners* for the time of the context, which closes them.

    What it serves is ready a little later than the context begins. At the end events end, answers
    that are being given are finished, and operations are cancelled, in this order.
    """
    clock = SystemClock()
    events = Events(clock, max_readers=daemon.event_readers, heartbeat=daemon.heartbeat)
    source = state_source(
        daemon.desired_state, config.network, clock, most_bytes=daemon.limits.body_bytes
    )
    node = Node(config, clock, events, daemon.desired_state, source=source)
    api = Api(node, ENDPOINTS, COMPONENTS, clock, node.metrics.answered)
    with ExitStack() as stack:
        server = Server(listeners, api.answer, daemon.limits, node.threads)
        node.start()
        stack.callback(node.close)
        server.start()
        stack.callback(server.close, daemon.stop_timeout)
        stack.callback(events.close)
        for listener in listeners:
            _LOGGER.info("listening at %s", listener.socket.getsockname())
        yield Service(node, server)
