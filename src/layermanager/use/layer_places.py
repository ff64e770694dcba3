"""Where the layers of a store are, and the names by which other paths tell of them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Identity: TypeAlias = tuple[int, int]
    LayerPlace: TypeAlias = tuple[str, Identity, str]

_DELETED: Final = b"//deleted"
_DIGITS: Final = rb"([0-9a-f]{128}|[0-9a-f]{96}|[0-9a-f]{64})"
# A layer's directory has the name of its digest, in staging and trash with a suffix.
_LAYER_NAME: Final = re.compile(_DIGITS + rb"(?:\.[0-9a-f]+)?")
_NAMED_ANYWHERE: Final = re.compile(rb"(?<![0-9a-f])" + _DIGITS + rb"(?![0-9a-f])")


def layer_places(layers_dir: os.PathLike[str]) -> Sequence[LayerPlace]:
    """Return each layer's name, directory and path, those in staging and trash included.

    The name is the hex digits of the digest; the directory is told by device and inode.

    Raises:
        OSError: the store cannot be read.
    """
    found = []
    for parent in _entries(layers_dir):
        for entry in _entries(parent):
            for name in layers_in(os.fsencode(entry.name)):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((name, (status.st_dev, status.st_ino), entry.path))
    return found


def layers_in(path: bytes) -> dict[str, bytes]:
    """Return the layers on the way of *path*, by name, each with the way there."""
    path = path.removesuffix(_DELETED)
    found = {}
    end = -1
    while end < len(path):
        start, end = end + 1, path.find(b"/", end + 1)
        end = len(path) if end < 0 else end
        if match := _LAYER_NAME.fullmatch(path, start, end):
            found[match[1].decode("ascii")] = path[:end]
    return found


def layer_below(path: bytes) -> tuple[str, ...]:
    """Return the layer that *path* leads to or into, seen from the layers' directory, by name."""
    _, _, below = path.removesuffix(_DELETED).partition(b"/")
    match = _LAYER_NAME.fullmatch(below.partition(b"/")[0])
    return (match[1].decode("ascii"),) if match else ()


def layers_named(text: bytes) -> tuple[str, ...]:
    """Return the names of layers that are anywhere in *text*."""
    names = (match[1].decode("ascii") for match in _NAMED_ANYWHERE.finditer(text))
    return tuple(dict.fromkeys(names))


def _entries(directory: os.PathLike[str]) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()  # staging and trash are for those only who may change the store
