"""The program that is measured: a layer manager that installs layers and ends.

Arguments: an empty working directory, and of each layer its URL, its digest and the size of its
blob. Layers are installed at the same time as far as there are cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from layermanager import Config, DesiredLayer, Digest, LayerManager


def main() -> None:
    """Install the layers that the arguments name."""
    _, working_dir, *layers = sys.argv
    desired = [
        DesiredLayer(Digest(digest), url, size=int(size))
        for url, digest, size in zip(layers[::3], layers[1::3], layers[2::3], strict=True)
    ]
    cores = len(os.sched_getaffinity(0))
    with LayerManager(Config(working_dir=Path(working_dir), parallel_installs=cores)) as manager:
        manager.process_desired_layers(desired)


if __name__ == "__main__":
    main()
