"""Write the API reference, HTML made of the docstrings: ``scripts/api_reference.py DIRECTORY``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import layermanager

_MODULES = ("layermanager", "layermanager.client", "layermanager.testing")


def main() -> None:
    """Write it; what cannot be documented is an error."""
    warnings.simplefilter("error")
    # Aliases of what is imported for types only; they are shown as they are written.
    warnings.filterwarnings("ignore", message="Error parsing type annotation")
    # pdoc looks for names in the module's dictionary: they are there when they were used once.
    for name in layermanager.__all__:
        setattr(layermanager, name, getattr(layermanager, name))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*_MODULES, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
