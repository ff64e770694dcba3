"""What the options say that all commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

import click

from layermanager.cli import arguments

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    import logging
    from pathlib import Path

    from layermanager.cli.background import BackgroundDisplay
    from layermanager.config import Config
    from layermanager.inventory import Inventory


@dataclass(slots=True)
class Settings:
    """What the options before the command say, and where the log goes."""

    is_json: bool
    log: logging.StreamHandler[TextIO | BackgroundDisplay]
    config_file: Path | None = None
    working_dir: Path | None = None

    @property
    def config(self) -> Config:
        """The configuration."""
        from layermanager.config import load_config

        return load_config(self.config_file, working_dir=self.working_dir)

    @property
    def inventory(self) -> Inventory:
        """What is in the store, to look at."""
        from layermanager.inventory import Inventory

        return Inventory(self.config)


json_option: Final = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    help="Print one JSON document on standard output, and nothing else.",
)
"""Stands before the command or after it; ``run`` looks for it itself."""

wait_option: Final = click.option(
    "--wait",
    "patience",
    callback=arguments.patience,
    default="0",
    metavar="[=SECONDS]",
    help="Wait for another process that is changing the store.  [default: without end]",
)
