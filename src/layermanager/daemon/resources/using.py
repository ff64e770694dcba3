"""Using layers: leases and mounts. They wait for no operation, so they are done at once."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from layermanager.daemon.api import Endpoint, Parameter, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.schema import reference
from layermanager.daemon.schemas import FLAG, NAME, array_of
from layermanager.json_documents import lease_json, mount_json, taken_lease_json
from layermanager.use.layer_use import open_use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node
    from layermanager.use.layer_use import LayerUse


def _leases(node: Node, _: Call) -> Answer:
    return Answer.json([lease_json(lease) for lease in node.inventory.leases()])


def _lease(node: Node, call: Call) -> Answer:
    body: dict[str, Any] = call.body
    seconds = body.get("ttlSeconds")
    with _use(node) as use:
        taken = use.lease(
            body["layers"],
            owner=body["owner"],
            ttl=None if seconds is None else timedelta(seconds=seconds),
            process=body.get("process"),
        )
    return _created("leases", taken.lease.lease_id, taken_lease_json(taken))


def _release(node: Node, call: Call) -> Answer:
    with _use(node) as use:
        use.release_lease(call.parameters["id"])
    return Answer.json({"released": call.parameters["id"]})


def _mounts(node: Node, _: Call) -> Answer:
    return Answer.json([mount_json(mount) for mount in node.inventory.mounts()])


def _mount(node: Node, call: Call) -> Answer:
    body: dict[str, Any] = call.body
    with _use(node) as use:
        mounted = use.mount(
            body["name"],
            body["layers"],
            target=Path(body["target"]),
            upper=Path(body["upper"]) if "upper" in body else None,
            work=Path(body["work"]) if "work" in body else None,
            read_only=body.get("readOnly", False),
            context=body.get("context", ""),
        ).mount
    return _created("mounts", mounted.name, mount_json(mounted))


def _umount(node: Node, call: Call) -> Answer:
    with _use(node) as use:
        use.umount(call.parameters["name"], lazy=call.parameters.get("lazy", False))
    return Answer.json({"unmounted": call.parameters["name"]})


@contextmanager
def _use(node: Node) -> Iterator[LayerUse]:
    if not node.is_ready:
        raise RefusedError.for_now("the store is not clean yet; see /v1/operations")
    with open_use(node.config) as use:
        yield use


def _created(resource: str, name: str, document: dict[str, object]) -> Answer:
    headers = {"Location": f"/v1/{resource}/{quote(name, safe='')}"}
    return Answer.json(document, status=HTTPStatus.CREATED, headers=headers)


def _ended(word: str) -> dict[str, Any]:
    return {"type": "object", "properties": {word: NAME}, "required": [word]}


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/leases",
        "listLeases",
        "The leases that are not over, those of mounts included, oldest first",
        _leases,
        {200: Reply("The leases.", array_of(reference("Lease")))},
    ),
    Endpoint(
        "POST",
        "/v1/leases",
        "takeLease",
        "Keep layers from being removed",
        _lease,
        {201: Reply("The lease.", reference("Lease"))},
        body=reference("NewLease"),
        problems=(404, 503),
    ),
    Endpoint(
        "DELETE",
        "/v1/leases/{id}",
        "releaseLease",
        "End a lease",
        _release,
        {200: Reply("It is over.", _ended("released"))},
        parameters=(Parameter("id", "path", NAME, "The lease."),),
        problems=(404, 503),
    ),
    Endpoint(
        "GET",
        "/v1/mounts",
        "listMounts",
        "What was mounted by name",
        _mounts,
        {200: Reply("The mounts.", array_of(reference("Mount")))},
    ),
    Endpoint(
        "POST",
        "/v1/mounts",
        "mount",
        "Mount layers as one tree, where the daemon runs",
        _mount,
        {201: Reply("What is mounted.", reference("Mount"))},
        body=reference("NewMount"),
        problems=(404, 503),
    ),
    Endpoint(
        "DELETE",
        "/v1/mounts/{name}",
        "umount",
        "Unmount what was mounted by a name",
        _umount,
        {200: Reply("It is not mounted any more.", _ended("unmounted"))},
        parameters=(
            Parameter("name", "path", NAME, "The name."),
            Parameter("lazy", "query", FLAG, "Also if its files are in use."),
        ),
        problems=(404, 409, 503),
    ),
)
