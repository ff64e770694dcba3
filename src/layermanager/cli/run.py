"""The command line as a whole: its options, its commands, its exit status."""

from __future__ import annotations

import io
import logging
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from layermanager import __version__
from layermanager.cli import changing, checking, looking, packing, pushing, serving, using
from layermanager.cli.output import OutputError, drop_unwritten, tell, tell_lines, write_json
from layermanager.cli.settings import Settings, json_option, log_as
from layermanager.errors import LayerManagerError
from layermanager.readable import escaped

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_ENDING_SIGNALS: Final = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


class _EndedBySignal(BaseException):
    """Ctrl-C or the like: what is under way is to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        with _ended_by_signals():
            return _run(arguments)
    except OutputError as error:
        drop_unwritten(sys.stdout)
        if isinstance(error.reason, BrokenPipeError):
            return 128 + signal.SIGPIPE
        tell(f"error: {error}")
        return 1
    except _EndedBySignal as end:
        tell(_ENDING_SIGNALS[end.number])
        return 128 + end.number
    finally:
        drop_unwritten(sys.stderr)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise ``_EndedBySignal`` at the first signal; a second one ends the process at once.

    A signal that the caller ignores, as nohup does, stays ignored.
    """
    previous = {
        number: signal.getsignal(number)
        for number in _ENDING_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def end(number: int, _: FrameType | None) -> NoReturn:
        for one in previous:
            signal.signal(one, signal.SIG_DFL)
        raise _EndedBySignal(signal.Signals(number))

    for number in previous:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(arguments: Sequence[str]) -> int:
    # A usage error, too, is told as JSON, though the options were not understood then.
    settings = Settings(is_json="--json" in arguments, log=logging.StreamHandler(sys.stderr))
    try:
        status = group.main(
            list(arguments), prog_name="layermanager", standalone_mode=False, obj=settings
        )
    except click.ClickException as error:
        _print_usage_error(error, settings)
        return error.exit_code
    except LayerManagerError as error:
        _print_error(error, settings)
        return error.exit_code
    return status if isinstance(status, int) else 0


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit status: 0 done; 1 some layers failed, or are damaged, and the rest was done;"
    " 2 wrong usage or unusable input; 3 another process is changing the store.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="LAYERMANAGER_CONFIG",
    help="Configuration file; an Aos service manager's will do.  [env: LAYERMANAGER_CONFIG]",
)
@click.option(
    "--work-dir",
    "working_dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LAYERMANAGER_WORK_DIR",
    help="Working directory; /var/lib/layermanager unless the configuration says otherwise."
    "  [env: LAYERMANAGER_WORK_DIR]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What to log on standard error.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json", "journald"]),
    help="How to log.  [default: text; the configuration's, for serve]",
)
@json_option
@click.version_option(__version__)
@click.pass_obj
def group(
    settings: Settings,
    config_file: Path | None,
    working_dir: Path | None,
    log_level: str,
    log_format: str | None,
) -> None:
    """Make the filesystem layers on this node be exactly the desired ones."""
    settings.config_file = config_file
    settings.working_dir = working_dir
    settings.log_format = log_format
    logging.basicConfig(level=log_level.upper(), handlers=[settings.log])
    log_as(log_format or "text", settings.log)


for _command in (
    changing.apply,
    looking.ls,
    looking.show,
    looking.df,
    changing.gc,
    checking.check,
    packing.pack,
    pushing.push,
    pushing.publish,
    using.mount,
    using.bundle,
    using.umount,
    using.lease,
    serving.serve,
):
    group.add_command(_command)


def _print_usage_error(error: click.ClickException, settings: Settings) -> None:
    if not settings.is_json:
        tell_lines(_shown(error))
        return
    write_json({"error": {"type": type(error).__name__, "message": error.format_message()}})


def _shown(error: click.ClickException) -> str:
    """Return what click would print: usage, hint and message, of which the last may be hostile."""
    shown = io.StringIO()
    error.show(shown)
    message = error.format_message()
    return shown.getvalue().replace(message, escaped(message))


def _print_error(error: LayerManagerError, settings: Settings) -> None:
    if settings.is_json:
        from layermanager.json_documents import error_json

        write_json({"error": error_json(error)})
        return
    tell(f"error: {error}")
    if error.hint:
        tell(f"hint: {error.hint}")
