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
from layermanager.json_documents import error_json, plan_json
from layermanager.oci.reference import parse_reference
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from layermanager.daemon.api import Call
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
        }
    )


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
        description="It is kept, and seen to after a restart as well. The operation that sees to"
        " an earlier one is cancelled; the same state once more is the same operation.",
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
