"""Other programs that unpack layers, each into an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from typing import TYPE_CHECKING

from layermanager.testing.trees import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from layermanager.testing.trees import FileState

    Unpack = Callable[[Sequence[Path], Path], None]
    Tree = dict[str, FileState]


class RefusedError(Exception):
    """The program does not accept the layer; the text is what it said."""


def gnu_tar(layers: Sequence[Path], target: Path) -> None:
    """GNU tar, told to keep all that it can."""
    options = ("--xattrs", "--xattrs-include=*", "--acls", "--delay-directory-restore")
    for layer in layers:
        _run("tar", "--extract", "--same-permissions", "--numeric-owner", *options,
             f"--file={layer}", f"--directory={target}")  # fmt: skip


def bsdtar(layers: Sequence[Path], target: Path) -> None:
    """The tar of libarchive, likewise."""
    for layer in layers:
        _run("bsdtar", "-x", "-p", "--numeric-owner", "-f", layer, "-C", target)


def umoci(layers: Sequence[Path], target: Path) -> None:
    """umoci, which applies the layers of an OCI image one over the other."""
    layout = target.parent / f"{target.name}.oci"
    _run("umoci", "init", "--layout", layout)
    _run("umoci", "new", "--image", f"{layout}:image")
    for layer in layers:
        _run("umoci", "raw", "add-layer", "--image", f"{layout}:image", layer)
    target.rmdir()  # it wants to make that itself
    _run("umoci", "raw", "unpack", "--image", f"{layout}:image", target)


PEERS: dict[str, Unpack] = {"tar": gnu_tar, "bsdtar": bsdtar, "umoci": umoci}


@cache
def version(peer: str) -> tuple[int, ...]:
    """Return the version of the program that is installed."""
    said = subprocess.run([peer, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    assert found is not None, said
    return tuple(map(int, found[0].split(".")))


def tree(root: Path) -> Tree:
    """What is below *root*, without the root itself: an archive need not speak of it."""
    return {os.fsdecode(path): state for path, state in snapshot(root).items() if path != b"."}


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode != 0:
        raise RefusedError(done.stderr.decode(errors="replace").strip())
