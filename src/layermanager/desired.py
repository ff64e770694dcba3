"""The desired state as a JSON document, in the words of Aos.

The document of Aos is an array of objects with the keys ``layerId``, ``digest``, ``version``,
``url``, ``sha256`` and ``size``, and ``mirrors`` and ``diffId``, which Aos does not know. Keys
beyond these belong to other parts of Aos and are ignored.

A document that names images, too, is an object: ``layers`` is such an array, and ``images`` an
array of objects with the keys ``ref`` and ``platform``. It is ours, so that an unknown key is an
error.
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.documents import DocumentError, JsonObject, objects, parse
from layermanager.errors import DesiredStateError, InvalidDigestError, InvalidReferenceError
from layermanager.model import DesiredImage, DesiredLayer, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MIRRORS: Final = 64
"""How many other addresses a layer may have."""

_CHECKSUM_BYTES: Final = 32
_HEX_CHECKSUM: Final = re.compile(r"[0-9a-fA-F]{64}")
_STATE_KEYS: Final = frozenset({"layers", "images"})
_IMAGE_KEYS: Final = frozenset({"ref", "platform"})


def read_desired(document: bytes | str, name: str) -> list[DesiredLayer]:
    """Read the desired layers from a JSON *document*, in its order.

    Args:
        document: the text, as bytes in UTF-8 or decoded.
        name: what the errors call the document: its path or address.

    Raises:
        DesiredStateError: the document is not such a list; the message names the key.
        InvalidDigestError: the digest of a layer is none; the message names the key.
    """
    with _errors_named(name):
        return [_read_layer(entry) for entry in objects(parse(document), "")]


def read_desired_state(document: bytes | str, name: str) -> list[DesiredLayer | DesiredImage]:
    """Read the desired layers and images from a JSON *document*, in its order.

    Args:
        document: the text, as bytes in UTF-8 or decoded.
        name: what the errors call the document: its path or address.

    Raises:
        DesiredStateError: the document is none; the message names the key.
        InvalidDigestError, InvalidReferenceError: what a layer or an image is called cannot be
            that; the message names the key.
    """
    with _errors_named(name):
        parsed = parse(document)
        if isinstance(parsed, list):
            return [_read_layer(entry) for entry in objects(parsed, "")]
        return _read_state(JsonObject.of(parsed, ""))


def desired_to_json(layer: DesiredLayer) -> dict[str, object]:
    """The members of *layer*'s object in the document; what is not known is left out."""
    members: dict[str, object] = {
        "layerId": layer.layer_id,
        "digest": str(layer.digest),
        "version": layer.version,
        "url": layer.url,
    }
    if layer.sha256:
        members["sha256"] = base64.b64encode(layer.sha256).decode("ascii")
    if layer.size is not None:
        members["size"] = layer.size
    if layer.mirrors:
        members["mirrors"] = list(layer.mirrors)
    if layer.diff_id is not None:
        members["diffId"] = str(layer.diff_id)
    return members


def _read_state(state: JsonObject) -> list[DesiredLayer | DesiredImage]:
    if "digest" in state.members:
        raise DocumentError("one layer; expected an array of layers: put [ and ] around it")
    state.refuse_others(_STATE_KEYS)
    if not state.members:
        raise DocumentError("expected an array, or an object with layers or images")
    return [
        *map(_read_layer, state.objects("layers")),
        *map(_read_image, state.objects("images")),
    ]


def _read_image(entry: JsonObject) -> DesiredImage:
    # Here and not above: a list of Aos names no image.
    from layermanager.oci.platform import parse_platform  # noqa: PLC0415
    from layermanager.oci.reference import parse_reference  # noqa: PLC0415

    entry.refuse_others(_IMAGE_KEYS)
    image = DesiredImage(entry.required_text("ref"), entry.text("platform", ""))
    for key, text, read in (
        ("ref", image.reference, parse_reference),
        ("platform", image.platform, parse_platform),
    ):
        try:
            if text:
                read(text)
        except InvalidReferenceError as error:
            raise InvalidReferenceError(f"{entry.at(key)}: {error}") from error
    return image


def _read_layer(entry: JsonObject) -> DesiredLayer:
    return DesiredLayer(
        digest=_digest(entry, "digest"),
        url=entry.required_text("url"),
        layer_id=entry.text("layerId", ""),
        version=entry.text("version", ""),
        sha256=_checksum(entry),
        size=entry.integer("size", None),
        mirrors=_mirrors(entry),
        diff_id=_digest(entry, "diffId") if entry.text("diffId", "") else None,
    )


def _digest(entry: JsonObject, key: str) -> Digest:
    try:
        return Digest(entry.required_text(key))
    except InvalidDigestError as error:
        raise InvalidDigestError(f"{entry.at(key)}: {error}") from error


def _mirrors(entry: JsonObject) -> tuple[str, ...]:
    """The addresses at ``mirrors``; none when there is no such key."""
    mirrors = entry.texts("mirrors")
    if len(mirrors) > MAX_MIRRORS:
        raise DocumentError(f"{entry.at('mirrors')}: more than {MAX_MIRRORS} elements")
    if "" in mirrors:
        raise DocumentError(f"{entry.at('mirrors')}[{mirrors.index('')}]: is missing or empty")
    return mirrors


def _checksum(entry: JsonObject) -> bytes:
    """The checksum at ``sha256``; empty when there is none.

    64 hex digits are base64 too, but of 48 bytes: a text can be meant in one way only.
    """
    text = entry.text("sha256", "")
    if _HEX_CHECKSUM.fullmatch(text):
        return bytes.fromhex(text)
    try:
        checksum = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        checksum = None
    if checksum is None or len(checksum) not in {0, _CHECKSUM_BYTES}:
        raise DocumentError(
            f"{entry.at('sha256')}: expected {_CHECKSUM_BYTES} bytes in base64 or hex, "
            f"found {text!r:.80}"
        )
    return checksum


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Raise errors with the *name* of the document in front."""
    try:
        yield
    except (InvalidDigestError, InvalidReferenceError) as error:
        raise type(error)(f"{name}: {error}") from error
    except DocumentError as error:
        raise DesiredStateError(f"{name}: {error}") from error
