"""The desired state: given, looked at, tried out."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from layermanager.daemon.api import Endpoint, Reply
from layermanager.daemon.desired_state import DesiredState
from layermanager.daemon.http import Answer
from layermanager.daemon.operations import NoSuchOperationError
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.resources.operations import accepted
from layermanager.daemon.schema import reference
from layermanager.desired import desired_to_json
from layermanager.json_documents import error_json, plan_json, time_json
from layermanager.oci.reference import parse_reference
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from layermanager.daemon.api import Call
    from layermanager.daemon.following import Follower
    from layermanager.daemon.node import Node
    from layermanager.model import DesiredImage, DesiredLayer, Digest, LayerProgress


def _put(node: Node, call: Call) -> Answer:
    return accepted(node.put_desired(call.text))


def _get(node: Node, _: Call) -> Answer:
    state, operation = node.desired
    if state is None:
        raise RefusedError(HTTPStatus.NOT_FOUND, "no desired state was given yet; PUT one here")
    try:
        progress = node.operations.layers_of(operation)
    except NoSuchOperationError:  # it has ended so long ago that it is forgotten
        progress = {}
    here = {layer.digest for layer in node.layers.get() if not layer.cached}
    layers = [_layer_json(layer, here, progress) for layer in state.layers]
    images = _images_json(node, state.images, operation) if state.images else []
    return Answer.json(
        {
            "layers": layers,
            "images": images,
            "isComplete": all(one["state"] == "installed" for one in (*layers, *images)),
            "operation": operation,
            **({} if node.next_try is None else {"nextTry": time_json(node.next_try)}),
        }
    )


def _source(node: Node, _: Call) -> Answer:
    return Answer.json(_source_json(_follower(node)))


def _poll(node: Node, _: Call) -> Answer:
    follower = _follower(node)
    follower.poll_now()
    return Answer.json(_source_json(follower), status=HTTPStatus.ACCEPTED)


def _follower(node: Node) -> Follower:
    if node.follower is None:
        raise RefusedError(
            HTTPStatus.NOT_FOUND,
            "no source is followed; see desiredState.source of the configuration",
        )
    return node.follower


def _source_json(follower: Follower) -> dict[str, object]:
    status, next_poll = follower.status, follower.next_poll
    document: dict[str, object] = {
        "source": status.source,
        "version": status.version,
        "failures": status.failures,
        "isRefused": status.is_refused,
    }
    for name, moment in (
        ("lastPoll", status.last_poll),
        ("lastChange", status.last_change),
        ("nextPoll", next_poll),
    ):
        if moment is not None:
            document[name] = time_json(moment)
    if status.error is not None:
        document["error"] = error_json(status.error)
    return document


def _plan(node: Node, call: Call) -> Answer:
    desired = DesiredState.read(call.text, "the body")
    return Answer.json(plan_json(node.inventory.plan((*desired.layers, *desired.images))))


def _layer_json(
    layer: DesiredLayer, here: Set[Digest], progress: Mapping[Digest, LayerProgress]
) -> dict[str, object]:
    document = desired_to_json(layer)
    document["url"] = shown(layer.url)
    if layer.mirrors:
        document["mirrors"] = [shown(url) for url in layer.mirrors]
    moment = progress.get(layer.digest)
    if layer.digest in here:
        return {**document, "state": "installed"}
    if moment is None:
        return {**document, "state": "missing"}
    document |= {"state": str(moment.phase), "transferred": moment.transferred}
    if moment.error is not None:
        document["error"] = error_json(moment.error)
    return document


def _images_json(
    node: Node, images: Sequence[DesiredImage], operation: str
) -> list[dict[str, object]]:
    here = {image.reference for image in node.inventory.images() if not image.cached}
    failed = node.operations.failed_images_of(operation)
    documents = []
    for image in images:
        document: dict[str, object] = {"ref": image.reference, "platform": image.platform}
        if image.reference in failed:
            document |= {"state": "failed", "error": failed[image.reference]}
        else:
            is_here = str(parse_reference(image.reference)) in here
            document["state"] = "installed" if is_here else "missing"
        documents.append(document)
    return documents


_PATH: Final = "/v1/desired-state"

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        _PATH,
        "getDesiredState",
        "What shall be on this node, and how far it is",
        _get,
        {200: Reply("The layers, each with its state.", reference("DesiredStatus"))},
        problems=(404,),
    ),
    Endpoint(
        "PUT",
        _PATH,
        "putDesiredState",
        "Make the layers on this node be these",
        _put,
        {202: Reply("The operation that sees to it.", reference("Operation"))},
        body=reference("DesiredState"),
        problems=(409,),
        description="It is kept, and seen to after a restart as well. The operation that sees to"
        " an earlier one is cancelled; the same state once more is the same operation.",
    ),
    Endpoint(
        "GET",
        f"{_PATH}/source",
        "getDesiredStateSource",
        "Where the desired state comes from, and how looking there goes",
        _source,
        {200: Reply("How it goes.", reference("DesiredStateSource"))},
        problems=(404,),
    ),
    Endpoint(
        "POST",
        f"{_PATH}/poll",
        "pollDesiredStateSource",
        "Look there as soon as possible",
        _poll,
        {202: Reply("How it went so far.", reference("DesiredStateSource"))},
        problems=(404,),
    ),
    Endpoint(
        "POST",
        "/v1/plan",
        "plan",
        "What would be done to make the layers on this node be these",
        _plan,
        {200: Reply("The digests, by what would be done.", reference("Plan"))},
        body=reference("DesiredState"),
    ),
)
