"""Trees that exhaust a careless walk; any user can make them."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from layermanager.directories import Trail
from layermanager.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def comb(path: Path, depth: int, name: bytes) -> Iterator[int]:
    """Make directories *name* in one another, each with a file beside it that a walk yields later.

    Returns:
        A descriptor of *path*.
    """
    path.mkdir()
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with closing(Trail(root)) as trail:
            for _ in range(depth):
                os.mkdir(name, dir_fd=trail.descriptor)
                os.mknod(name + b"~", dir_fd=trail.descriptor)
                trail.enter(name)
        yield root
    finally:
        os.close(root)
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        remove_tree(path.name, dir_fd=parent)  # pytest could not
        os.close(parent)
