"""The program that is measured: a layer manager that installs one layer and ends.

Arguments: an empty working directory, the layer's URL, its digest, and the size of its blob.
"""

from __future__ import annotations

import sys
from pathlib import Path

from layermanager import Config, DesiredLayer, Digest, LayerManager


def main() -> None:
    """Install the layer that the arguments name."""
    working_dir, url, digest, size = sys.argv[1:]
    desired = DesiredLayer(Digest(digest), url, size=int(size))
    with LayerManager(Config(working_dir=Path(working_dir))) as manager:
        manager.process_desired_layers([desired])


if __name__ == "__main__":
    main()
