"""The command that runs the daemon: ``serve``."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli.settings import Settings, json_option, log_as

# The daemon, and h11, are imported when it is to run.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from types import FrameType

_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SECONDS_BETWEEN_LOOKS: Final = 1


@click.command("serve")
@click.option(
    "--socket",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The Unix socket to listen at.  [default: the configuration's, or"
    " /run/layermanager/api.sock]",
)
@json_option
@click.pass_obj
def serve(settings: Settings, socket: Path | None) -> None:
    """Run the daemon: this library over HTTP, until it is told to end.

    The API is at a Unix socket, and by TLS where the configuration says so; a status page is at /,
    metrics are at /v1/metrics.
    """
    try:
        import h11  # noqa: F401 - to say what is missing before anything is begun
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the daemon needs {error.name}: pip install 'layermanager[daemon]'"
        ) from error
    from layermanager.daemon.config import load_daemon_config
    from layermanager.daemon.service import running

    daemon = load_daemon_config(settings.config_file)
    if socket is not None:
        daemon = replace(daemon, socket=socket)
    if settings.log_format is None:
        log_as(daemon.log_format, settings.log)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in _ENDING_SIGNALS:  # a second one does not wait
            signal.signal(number, signal.SIG_DFL)
        ended.set()

    for number in _ENDING_SIGNALS:
        signal.signal(number, end)
    with running(settings.config, daemon):
        # A signal that another thread takes does not end a wait.
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            pass
