"""Directory trees as values, to be compared: by what a layer can say of a file, and no more."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WHITEOUT: Final = (stat.S_IFCHR, os.makedev(0, 0))
"""Type and device number of what overlayfs takes for a removed file."""


@dataclass(frozen=True, slots=True)
class FileState:
    """All that a layer can say of one file.

    Attributes:
        type: the type bits of the mode, such as ``stat.S_IFREG``.
        mode: the other bits of the mode.
        owner: user and group.
        mtime_ns: modification time, nanoseconds since 1970.
        device: the device number of a device, else 0.
        size: the size of a regular file, else 0.
        content: SHA-256 of a regular file's content, or the target of a symlink.
        xattrs: extended attributes.
        names: all names of the file below the root, sorted: more than one if there are hard links.
    """

    type: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    size: int
    content: bytes
    xattrs: Mapping[str, bytes]
    names: tuple[bytes, ...]

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs takes it for a removed file."""
        return (self.type, self.device) == WHITEOUT


def snapshot(root: Path) -> dict[bytes, FileState]:
    """The files below *root*, and itself as ``.``, by their paths."""
    top = os.fsencode(root)
    paths = [top]
    for directory, subdirectories, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in (*subdirectories, *files)]  # noqa: PTH118 - names are bytes
    states = {os.path.relpath(path, top): os.lstat(path) for path in paths}
    names = defaultdict(list)
    for name, state in states.items():
        if not stat.S_ISDIR(state.st_mode):
            names[state.st_ino].append(name)
    return {
        name: _file_state(os.path.join(top, name), state, sorted(names[state.st_ino]))  # noqa: PTH118
        for name, state in states.items()
    }


def _file_state(path: bytes, state: os.stat_result, names: list[bytes]) -> FileState:
    kind = stat.S_IFMT(state.st_mode)
    is_file = kind == stat.S_IFREG
    return FileState(
        type=kind,
        mode=stat.S_IMODE(state.st_mode),
        owner=(state.st_uid, state.st_gid),
        mtime_ns=state.st_mtime_ns,
        device=state.st_rdev,
        size=state.st_size if is_file else 0,
        content=_content(path, kind),
        xattrs={
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
        names=tuple(names),
    )


def _content(path: bytes, kind: int) -> bytes:
    if kind == stat.S_IFLNK:
        return os.readlink(path)  # noqa: PTH115 - names are bytes
    if kind != stat.S_IFREG:
        return b""
    with open(path, "rb") as file:  # noqa: PTH123 - likewise
        return hashlib.file_digest(file, "sha256").digest()
