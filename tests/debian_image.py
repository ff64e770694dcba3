"""The smallest Debian as an image, made by debootstrap and umoci."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def call(*command: str | Path) -> str:
    """What a program that has to be here prints."""
    if shutil.which(command[0]) is None:
        (pytest.fail if os.environ.get("LAYERMANAGER_CI") == "1" else pytest.skip)(
            f"there is no program {command[0]}"
        )
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def debootstrap(release: str, root: Path, *options: str) -> None:
    """Make the smallest Debian in *root*."""
    # What it mounts and starts goes away with the namespaces, whichever way it ends.
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    bootstrap = ("debootstrap", "--variant=minbase", *options, release, str(root))
    done = subprocess.run((*alone, *bootstrap), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"debootstrap cannot fetch {release}: {done.stdout[-200:]}")


def debian_layout(base: Path) -> Path:
    """A layout with the smallest Debian, and a second layer that removes its documentation."""
    layout, bundle = base / "layout", base / "bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:1")
    call("umoci", "unpack", "--image", f"{layout}:1", bundle)
    call("debootstrap", "--version")
    debootstrap("bookworm", bundle / "rootfs")
    repack = ("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:1", bundle)
    call(*repack)
    shutil.rmtree(bundle / "rootfs/usr/share/doc")
    call(*repack)
    return layout
