"""What is done to the store: looked at, asked for, cancelled."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

from layermanager.check import Depth
from layermanager.daemon.api import Endpoint, Parameter, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.operations import NoSuchOperationError
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.schema import reference
from layermanager.daemon.schemas import TEXT, array_of
from layermanager.model import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node


def accepted(operation: Mapping[str, object]) -> Answer:
    """The answer to a request that an operation sees to from now on."""
    headers = {"Location": f"/v1/operations/{operation['id']}"}
    return Answer.json(operation, status=HTTPStatus.ACCEPTED, headers=headers)


def _list(node: Node, _: Call) -> Answer:
    return Answer.json(node.operations.summaries())


def _get(node: Node, call: Call) -> Answer:
    try:
        return Answer.json(node.operations.get(call.parameters["id"]))
    except NoSuchOperationError:
        _miss(call)


def _cancel(node: Node, call: Call) -> Answer:
    try:
        return accepted(node.operations.cancel(call.parameters["id"]))
    except NoSuchOperationError:
        _miss(call)


def _gc(node: Node, call: Call) -> Answer:
    days = call.body.get("ttlDays")
    time_to_live = node.config.layer_ttl if days is None else timedelta(days=days)
    return accepted(node.collect_garbage(time_to_live, call.body.get("free", 0)))


def _check(node: Node, call: Call) -> Answer:
    depth = Depth.ATTRIBUTES if call.body.get("quick", False) else Depth.CONTENT
    return accepted(node.check(_digests(call), depth, repair=call.body.get("repair", False)))


def _adopt(node: Node, call: Call) -> Answer:
    return accepted(node.adopt(_digests(call), clean_markers=call.body.get("cleanMarkers", False)))


def _digests(call: Call) -> list[Digest]:
    """The layers that the body names; none: all of them are meant."""
    return [Digest(text) for text in call.body.get("digests", ())]


def _miss(call: Call) -> NoReturn:
    raise RefusedError(
        HTTPStatus.NOT_FOUND,
        f"there is no operation {call.parameters['id']:.80}, or not any more",
    )


_ID: Final = Parameter("id", "path", TEXT, "The operation.")
_ACCEPTED: Final = {202: Reply("The operation.", reference("Operation"))}

ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/gc",
        "collectGarbage",
        "Remove cached layers past their time to live, or enough of them",
        _gc,
        _ACCEPTED,
        body=reference("GarbageCollection"),
    ),
    Endpoint(
        "POST",
        "/v1/check",
        "check",
        "Compare installed layers with what they were, file by file",
        _check,
        _ACCEPTED,
        body=reference("Check"),
        problems=(404,),
        description="It has succeeded when all was compared, whatever was found: its result has a"
        " report a layer.",
    ),
    Endpoint(
        "POST",
        "/v1/adopt",
        "adoptLayers",
        "Take layers that another program installed for what they are, and verify them from now on",
        _adopt,
        _ACCEPTED,
        body=reference("Adoption"),
        problems=(404,),
        description="Those that are known already are passed over.",
    ),
    Endpoint(
        "GET",
        "/v1/operations",
        "listOperations",
        "What is done and was done lately, the latest one first, without results",
        _list,
        {200: Reply("The operations.", array_of(reference("Operation")))},
    ),
    Endpoint(
        "GET",
        "/v1/operations/{id}",
        "getOperation",
        "One operation, how far it is, and what came of it",
        _get,
        {200: Reply("The operation.", reference("Operation"))},
        parameters=(_ID,),
        problems=(404,),
    ),
    Endpoint(
        "DELETE",
        "/v1/operations/{id}",
        "cancelOperation",
        "End an operation early; one that has ended stays as it is",
        _cancel,
        {202: Reply("The operation, which ends soon.", reference("Operation"))},
        parameters=(_ID,),
        problems=(404,),
    ),
)
