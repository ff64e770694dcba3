"""The installed layers, their files, and the space that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.daemon.api import Endpoint, Parameter, Reply
from layermanager.daemon.http import JSON, Answer, encoded
from layermanager.daemon.schema import reference
from layermanager.daemon.schemas import array_of
from layermanager.errors import LayerNotExistError
from layermanager.json_documents import file_json, layer_json, usage_json
from layermanager.model import Digest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from layermanager.daemon.api import Call
    from layermanager.daemon.node import Node
    from layermanager.model import LayerInfo
    from layermanager.unpack.index import IndexEntry

_PIECE_FILES: Final = 200
_STATES: Final = {"desired": False, "cached": True}


def _list(node: Node, call: Call) -> Answer:
    layers = node.layers.get()
    if (state := call.parameters.get("state")) is not None:
        layers = [layer for layer in layers if layer.cached is _STATES[state]]
    return Answer.json([layer_json(layer) for layer in layers])


def _get(node: Node, call: Call) -> Answer:
    return Answer.json(layer_json(_find(node, call)))


def _files(node: Node, call: Call) -> Answer:
    entries = node.inventory.files(_find(node, call).digest)
    first = next(entries, None)  # an index that cannot be read is told of before the answer begins
    return Answer(200, JSON, _array(first, entries))


def _usage(node: Node, _: Call) -> Answer:
    return Answer.json(usage_json(node.usage()))


def _find(node: Node, call: Call) -> LayerInfo:
    wanted = Digest(call.parameters["digest"])
    for layer in node.layers.get():
        if layer.digest == wanted:
            return layer
    raise LayerNotExistError(f"layer {wanted} is not installed", digest=wanted)


def _array(first: IndexEntry | None, others: Iterator[IndexEntry]) -> Generator[bytes]:
    """A JSON array, in pieces: an index may be larger than what the daemon shall ever need."""
    piece = [] if first is None else [first]
    before = b"["
    for entry in others:
        piece.append(entry)
        if len(piece) >= _PIECE_FILES:
            yield before + _elements(piece)
            piece, before = [], b","
    if piece:
        yield before + _elements(piece)
        before = b""
    yield b"]" if before != b"[" else b"[]"


def _elements(entries: Iterable[IndexEntry]) -> bytes:
    return encoded([file_json(entry) for entry in entries])[1:-1]


_DIGEST: Final = Parameter("digest", "path", reference("Digest"), "The layer.")

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/layers",
        "listLayers",
        "The installed layers, ordered by digest",
        _list,
        {200: Reply("The layers.", array_of(reference("Layer")))},
        parameters=(
            Parameter(
                "state",
                "query",
                {"type": "string", "enum": list(_STATES)},
                "Only those that are desired, or only cached ones.",
            ),
        ),
    ),
    Endpoint(
        "GET",
        "/v1/layers/{digest}",
        "getLayer",
        "One installed layer",
        _get,
        {200: Reply("The layer.", reference("Layer"))},
        parameters=(_DIGEST,),
        problems=(404,),
    ),
    Endpoint(
        "GET",
        "/v1/layers/{digest}/files",
        "listFiles",
        "The files of a layer, from its index",
        _files,
        {200: Reply("The files.", array_of(reference("LayerFile")))},
        parameters=(_DIGEST,),
        problems=(404,),
    ),
    Endpoint(
        "GET",
        "/v1/df",
        "getUsage",
        "Where the space of the layers' partition went, in bytes",
        _usage,
        {200: Reply("The space.", reference("Usage"))},
    ),
)
