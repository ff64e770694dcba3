"""What the options say that all commands share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TextIO

import click

from layermanager.cli import arguments

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.cli.background import BackgroundDisplay
    from layermanager.config import Config
    from layermanager.inventory import Inventory


@dataclass(slots=True)
class Settings:
    """What the options say that several commands have, and where the log goes.

    Attributes:
        is_json: whether to print JSON.
        log: where the log goes.
        config_file: the configuration file, if one is given.
        working_dir: the working directory, if one is given.
        log_format: what the log shall look like, if that is given.
        rate_limit: bytes a second instead of the configuration's, if they are given.
    """

    is_json: bool
    log: logging.StreamHandler[TextIO | BackgroundDisplay]
    config_file: Path | None = None
    working_dir: Path | None = None
    log_format: str | None = None
    rate_limit: int | None = None

    @property
    def config(self) -> Config:
        """The configuration."""
        from layermanager.config import load_config

        config = load_config(self.config_file, working_dir=self.working_dir)
        if self.rate_limit is None:
            return config
        return replace(config, network=replace(config.network, rate_limit=self.rate_limit))

    @property
    def inventory(self) -> Inventory:
        """What is in the store, to look at."""
        from layermanager.inventory import Inventory

        return Inventory(self.config)


def log_as(log_format: str, stream_handler: logging.Handler) -> None:
    """Have the log look so from now on; to the journal it does not go by *stream_handler*.

    Raises:
        ConfigError: there is no journal.
    """
    from layermanager.logs import JournalHandler, LogFormat, formatter

    stream_handler.setFormatter(formatter(log_format))
    if log_format == LogFormat.JOURNALD:
        root = logging.getLogger()
        root.addHandler(JournalHandler())
        root.removeHandler(stream_handler)


json_option: Final = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    help="Print one JSON document on standard output, and nothing else.",
)
"""Stands before the command or after it; ``run`` looks for it itself."""


def _note_rate_limit(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Settings).rate_limit = arguments.size(context, parameter, value)


limit_rate_option: Final = click.option(
    "--limit-rate",
    callback=_note_rate_limit,
    expose_value=False,
    metavar="SIZE",
    help="Fetch at most SIZE a second, all layers together.  [default: the configuration's]",
)

wait_option: Final = click.option(
    "--wait",
    "patience",
    callback=arguments.patience,
    default="0",
    metavar="[=SECONDS]",
    help="Wait for another process that is changing the store.  [default: without end]",
)
