"""Layers whose root is opaque: nothing of the layers below them is seen.

overlayfs honours the mark of an opaque directory, but not the one of a layer's root. Such a layer
has to be the lowest one of a mount.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# An ordinary user may set the second one only, and may not see the first one.
_MARKS: Final = ("trusted.overlay.opaque", "user.overlay.opaque")
_NO_MARK: Final = (errno.ENODATA, errno.EOPNOTSUPP)


def has_opaque_root(layer: Path) -> bool:
    """Return whether the directory *layer* hides all layers below.

    Raises:
        OSError: it cannot be read.
    """
    return any(_value(layer, mark) == b"y" for mark in _MARKS)


def visible_layers(layers: Sequence[Path]) -> list[Path]:
    """Return the *layers*, the uppermost first, without those below an opaque root.

    Raises:
        OSError: one cannot be read.
    """
    visible = []
    for layer in layers:
        visible.append(layer)
        if has_opaque_root(layer):
            break
    return visible


def _value(layer: Path, attribute: str) -> bytes:
    try:
        return os.getxattr(layer, attribute)
    except OSError as error:
        if error.errno in _NO_MARK:
            return b""
        raise
