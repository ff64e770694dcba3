"""All that there is to ask for: a module a resource, and the list of their endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.daemon import openapi
from layermanager.daemon.api import Endpoint, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.resources import (
    desired,
    events,
    images,
    layers,
    observing,
    operations,
    using,
)
from layermanager.daemon.schemas import COMPONENTS

if TYPE_CHECKING:
    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node


def openapi_document() -> dict[str, object]:
    """The OpenAPI document of all endpoints."""
    return openapi.document(ENDPOINTS, COMPONENTS)


def _describe(_node: Node, _call: Call) -> Answer:
    return Answer.json(openapi_document())


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *desired.ENDPOINTS,
    *layers.ENDPOINTS,
    *images.ENDPOINTS,
    *using.ENDPOINTS,
    *operations.ENDPOINTS,
    *events.ENDPOINTS,
    *observing.ENDPOINTS,
    Endpoint(
        "GET",
        "/v1/openapi.json",
        "getDescription",
        "This document",
        _describe,
        {200: Reply("An OpenAPI 3.1 document.", {"type": "object"})},
    ),
)
