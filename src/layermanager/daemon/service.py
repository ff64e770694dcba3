"""The daemon as a whole: its parts put together, from the first socket to the last thread."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.clock import SystemClock
from layermanager.daemon.api import Api
from layermanager.daemon.events import Events
from layermanager.daemon.listening import tcp_listener, unix_listener
from layermanager.daemon.node import Node
from layermanager.daemon.resources import ENDPOINTS
from layermanager.daemon.schemas import COMPONENTS
from layermanager.daemon.server import Server
from layermanager.daemon.state_sources import state_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.config import Config
    from layermanager.daemon.config import DaemonConfig

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def running(config: Config, daemon: DaemonConfig) -> Iterator[Node]:
    """Serve the store of *config* for the time of the context.

    It listens when the context begins; what it serves is ready a little later. At the end events
    end, answers that are being given are finished, and operations are cancelled, in this order.

    Raises:
        ConfigError: it cannot listen where it should.
    """
    clock = SystemClock()
    events = Events(clock, max_readers=daemon.event_readers, heartbeat=daemon.heartbeat)
    source = state_source(
        daemon.desired_state, config.network, clock, most_bytes=daemon.limits.body_bytes
    )
    node = Node(config, clock, events, daemon.desired_state, source=source)
    api = Api(node, ENDPOINTS, COMPONENTS, clock, node.metrics.answered)
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(
                unix_listener(daemon.socket, daemon.socket_mode, daemon.socket_group)
            )
        ]
        if daemon.tcp is not None:
            listeners.append(stack.enter_context(tcp_listener(daemon.tcp)))
        server = Server(listeners, api.answer, daemon.limits)
        node.start()
        stack.callback(node.close)
        server.start()
        stack.callback(server.close, daemon.stop_timeout)
        stack.callback(events.close)
        for listener in listeners:
            _LOGGER.info("listening at %s", listener.socket.getsockname())
        yield node
