"""The installed images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.daemon.api import Endpoint, Reply
from layermanager.daemon.http import Answer
from layermanager.daemon.schema import reference
from layermanager.daemon.schemas import array_of
from layermanager.json_documents import image_json

if TYPE_CHECKING:
    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node


def _list(node: Node, _: Call) -> Answer:
    return Answer.json([image_json(image) for image in node.inventory.images()])


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/images",
        "listImages",
        "The installed images, ordered by reference",
        _list,
        {200: Reply("The images.", array_of(reference("Image")))},
    ),
)
