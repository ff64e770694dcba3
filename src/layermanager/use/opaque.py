"""Layers whose root is opaque: nothing of the layers below them is seen.

overlayfs honours the mark of an opaque directory, but not the one of a layer's root. Such a layer
has to be the lowest one of a mount. Its whiteouts, which serve those who mount it otherwise, would
then be listed as files that cannot be opened: overlayfs filters the names of a directory only where
it merges several. So the mount gets empty directories of the same names below all layers.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def directories_of_whiteouts(layer: Path) -> Iterator[Path]:
    """Find the directories of *layer*, relative to it, in which there are whiteouts.

    Raises:
        OSError: the layer cannot be read.
    """
    pending = [Path()]
    while pending:
        directory = pending.pop()
        has_whiteouts = False
        with os.scandir(layer / directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(directory / entry.name)
                elif not has_whiteouts:
                    has_whiteouts = _is_whiteout(entry)
        if has_whiteouts:
            yield directory


def _value(layer: Path, attribute: str) -> bytes:
    try:
        return os.getxattr(layer, attribute)
    except OSError as error:
        if error.errno in _NO_MARK:
            return b""
        raise


def _is_whiteout(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False  # known without a system call
    state = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == os.makedev(0, 0)
