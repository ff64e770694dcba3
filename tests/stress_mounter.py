"""A stranger who mounts layers of a store at random, and looks whether they lose a file.

Run as a program: ``stress_mounter.py LAYERS_DIR TARGET EMPTY SEED MOUNTS``. It ends with an error
at the first file that is missing or wrong, and else says how often it mounted and was refused.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Final

from layermanager.errors import MountBusyError, MountError
from layermanager.use.overlay import Overlay, mount, mount_by_options, unmount

FILES: Final = 20
LOOKS: Final = 3


def file_of(layer: str, number: int) -> str:
    """Where a layer has one of its files, which no other layer has."""
    return f"of-{layer}/{number % 3}/{number}"


def content_of(layer: str, number: int) -> str:
    """What is in it."""
    return f"{number} of {layer}"


def assert_whole(root: Path) -> int:
    """Look at all files of all layers that are mounted on *root*; return how many layers."""
    layers = [path.name.removeprefix("of-") for path in root.iterdir()]
    for layer in layers:
        for number in range(FILES):
            path = root / file_of(layer, number)
            if path.read_text() != content_of(layer, number):
                raise AssertionError(f"{path} is wrong")
        if sum(1 for path in (root / f"of-{layer}").rglob("*") if path.is_file()) != FILES:
            raise AssertionError(f"files of {layer} are missing")
    return len(layers)


def unmount_once_idle(target: Path) -> None:
    """Unmount, again while somebody looks at what is mounted: the kernel calls it busy then."""
    while True:
        try:
            unmount(target)
        except MountBusyError:
            continue
        return


def main(layers_dir: Path, target: Path, empty: Path, seed: int, mounts: int) -> None:
    """Mount at random."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    refused = 0
    for _ in range(mounts):
        here = list((layers_dir / "sha256").iterdir())
        chosen = chance.sample(here, min(len(here), chance.randint(1, 4)))
        way = chance.choice((mount, mount_by_options))
        try:
            way(Overlay([*chosen, empty], source="a stranger"), target, lambda _: None)
        except MountError:
            refused += 1
            continue
        for _ in range(LOOKS):
            if assert_whole(target) != len(chosen):
                raise AssertionError(f"a layer of {chosen} is missing")
        unmount_once_idle(target)
    sys.stdout.write(f"{mounts - refused} {refused}")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    )
