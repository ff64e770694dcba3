"""The program that is measured: a layer manager with a configuration that does its work and ends.

Arguments: the configuration file, an empty working directory, and the file of desired layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from layermanager import LayerManager, load_config, read_desired


def main() -> None:
    """Install the desired layers."""
    _, configuration, working_dir, desired = sys.argv
    config = load_config(Path(configuration), working_dir=Path(working_dir))
    with LayerManager(config) as manager:
        manager.process_desired_layers(read_desired(Path(desired).read_bytes(), desired))


if __name__ == "__main__":
    main()
