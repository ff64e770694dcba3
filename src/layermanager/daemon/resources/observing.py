"""How the daemon is: for a supervisor, a monitoring system and a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager import __version__
from layermanager.daemon import page
from layermanager.daemon.api import Endpoint, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.metrics import CONTENT_TYPE, Snapshot
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.schema import reference

if TYPE_CHECKING:
    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node

_HEALTH: Final = {"status": "ok", "version": __version__}


def _health(node: Node, _: Call) -> Answer:
    _refuse_in_trouble(node)
    return Answer.json(_HEALTH)


def _refuse_in_trouble(node: Node) -> None:
    if troubles := node.troubles:
        raise RefusedError.for_now(f"not alive as a whole: {', '.join(troubles)}")


def _ready(node: Node, _: Call) -> Answer:
    _refuse_in_trouble(node)
    if not node.is_ready:
        raise RefusedError.for_now("the store is not clean yet; see /v1/operations")
    return Answer.json(_HEALTH)


def _metrics(node: Node, _: Call) -> Answer:
    snapshot = Snapshot(
        layers=node.layers.get(),
        usage=node.usage(),
        event_readers=node.events.readers,
        is_ready=node.is_ready and not node.troubles,
    )
    return Answer(200, CONTENT_TYPE, node.metrics.text(snapshot).encode())


def _page(node: Node, _: Call) -> Answer:
    state, _operation = node.desired
    layers = node.layers.get()
    users = node.users()
    view = page.View(
        now=node.clock.now(),
        is_ready=node.is_ready,
        source=None if node.follower is None else node.follower.status,
        desired=() if state is None else state.layers,
        images=node.inventory.images(),
        layers=layers,
        usage=node.usage(),
        holders={layer.digest: users.holders(layer.digest) for layer in layers},
        time_to_live=node.config.layer_ttl,
        operations=node.operations.current(),
        events=node.events.latest(),
    )
    return Answer(200, page.CONTENT_TYPE, page.render(view).encode(), page.HEADERS)


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/health",
        "getHealth",
        "Whether all threads of the daemon live, and none is stuck",
        _health,
        {200: Reply("They do.", reference("Health"))},
        problems=(503,),
    ),
    Endpoint(
        "GET",
        "/v1/ready",
        "getReadiness",
        "Whether the store is clean, operations are done and all threads live",
        _ready,
        {200: Reply("They are.", reference("Health"))},
        problems=(503,),
    ),
    Endpoint(
        "GET",
        "/v1/metrics",
        "getMetrics",
        "What was counted and measured, for Prometheus",
        _metrics,
        {200: Reply("The metrics, as text.", None, CONTENT_TYPE)},
    ),
    Endpoint(
        "GET",
        "/",
        "getStatusPage",
        "How the node is, for a browser",
        _page,
        {200: Reply("The page.", None, page.CONTENT_TYPE)},
    ),
)
