"""What layers and images are called at a shell: by less than a program needs, if it is enough."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from layermanager.cli import tables
from layermanager.cli.arguments import image_reference
from layermanager.errors import (
    ImageNotExistError,
    InvalidDigestError,
    InvalidReferenceError,
    LayerNotExistError,
)

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layermanager.inventory import Inventory
    from layermanager.model import ImageInfo, LayerInfo

_SHORTEST_PREFIX: Final = 4
_DIGEST: Final = re.compile(r"(?:sha[0-9]+:?)?[0-9a-f]*", re.ASCII)


def layer_called(text: str, layers: Sequence[LayerInfo]) -> LayerInfo | None:
    """The one layer whose name is *text*, or whose digest begins so; None if *text* is no digest.

    Raises:
        UseError: several have that name.
        InvalidDigestError: *text* is too short for a digest, or several begin so.
        LayerNotExistError: it is a digest, and no layer's.
    """
    from layermanager.plan import find_layer

    named = find_layer(text, layers)
    if named is not None or not _DIGEST.fullmatch(text):
        return named
    return _find_by_digest(text, layers)


def installed_layer(text: str, layers: Sequence[LayerInfo]) -> LayerInfo:
    """The one layer whose name is *text*, or whose digest begins so.

    Raises:
        UseError, InvalidDigestError: as ``layer_called``.
        LayerNotExistError: there is none.
    """
    layer = layer_called(text, layers)
    if layer is None:
        raise LayerNotExistError(f"layer {text} is not installed")
    return layer


def image_called(text: str, inventory: Inventory) -> ImageInfo:
    """The installed image whose reference is *text*.

    Raises:
        LayerNotExistError: there is none; a layer of that name would have been found before.
        InvalidReferenceError: *text* is no reference.
    """
    from layermanager.plan import find_image

    try:
        return find_image(image_reference(text), inventory.images(), inventory.ages().of)
    except ImageNotExistError as error:
        raise LayerNotExistError(f"no layer and no image {text} is installed") from error


def references(texts: Iterable[str], layers: Sequence[LayerInfo]) -> list[str]:
    """By what the library knows the *layers*, or images, that are called *texts*.

    Raises:
        UseError, InvalidDigestError, LayerNotExistError: as ``layer_called``.
    """
    return [
        layer.digest if (layer := layer_called(text, layers)) else _full_reference(text)
        for text in texts
    ]


def _find_by_digest(text: str, layers: Iterable[LayerInfo]) -> LayerInfo:
    """The one layer whose digest begins with *text*, with or without its algorithm."""
    algorithm, _, digits = text.rpartition(":")
    if len(digits) < _SHORTEST_PREFIX:
        raise InvalidDigestError(f"{text}: at least {_SHORTEST_PREFIX} digits are needed")
    found = [
        layer
        for layer in layers
        if algorithm in {"", layer.digest.algorithm} and layer.digest.encoded.startswith(digits)
    ]
    if len(found) > 1:
        digests = ", ".join(tables.short_digest(layer.digest) for layer in found)
        raise InvalidDigestError(f"{text}: several layers begin so: {digests}")
    if not found:
        raise LayerNotExistError(f"layer {text} is not installed")
    return found[0]


def _full_reference(text: str) -> str:
    try:
        return image_reference(text)
    except InvalidReferenceError:
        return text  # then it is the name of a layer that is not there
