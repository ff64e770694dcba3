"""``python -m layermanager`` is the command ``layermanager``."""

from layermanager.cli import main

main()
