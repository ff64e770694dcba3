"""The commands: what they take, what they call, what they print."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO, TypeVar

import click

from layermanager import __version__
from layermanager.cli import tables
from layermanager.errors import (
    DesiredStateError,
    InvalidDigestError,
    LayerManagerError,
    LayerNotExistError,
    LayersFailedError,
)

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType

    from layermanager.cli.progress import Display
    from layermanager.config import Config
    from layermanager.inventory import Inventory
    from layermanager.manager import LayerManager
    from layermanager.model import ApplyResult, DesiredLayer, FailedLayer, LayerInfo
    from layermanager.unpack.index import IndexEntry

_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_EXIT_TERMINATED: Final = 128 + signal.SIGTERM
_EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE
_WITHOUT_END: Final = timedelta.max
_SHORTEST_PREFIX: Final = 4


@dataclass(slots=True)
class _Settings:
    """What the options before the command say, and where the log goes."""

    is_json: bool
    log: logging.StreamHandler[TextIO | Display]
    config_file: Path | None = None
    working_dir: Path | None = None

    @property
    def config(self) -> Config:
        from layermanager.config import load_config

        return load_config(self.config_file, working_dir=self.working_dir)

    @property
    def inventory(self) -> Inventory:
        from layermanager.inventory import Inventory

        return Inventory(self.config)


class _TerminatedError(BaseException):
    """SIGTERM: ends what is under way as Ctrl-C does."""


class _NobodyReadsError(BaseException):
    """Standard output is a pipe whose other end was closed; click would make that status 1."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    # A usage error, too, is told as JSON, though the options were not understood then.
    settings = _Settings(is_json="--json" in arguments, log=logging.StreamHandler(sys.stderr))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _group.main(
            list(arguments), prog_name="layermanager", standalone_mode=False, obj=settings
        )
    except click.ClickException as error:
        _print_usage_error(error, settings)
        return error.exit_code
    except LayerManagerError as error:
        _print_error(error, settings)
        return error.exit_code
    except _NobodyReadsError:
        # Python would try once more to write what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return _EXIT_INTERRUPTED
    except _TerminatedError:
        click.echo("terminated", err=True)
        return _EXIT_TERMINATED
    return status if isinstance(status, int) else 0


def _terminate(_signal_number: int, _frame: FrameType | None) -> NoReturn:
    raise _TerminatedError


_json_option: Final = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    help="Print one JSON document on standard output, and nothing else.",
)
"""Stands before the command or after it; ``run`` looks for it itself."""

_wait_option: Final = click.option(
    "--wait", is_flag=True, help="Wait for another process that is changing the store."
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit status: 0 done; 1 some layers failed, the rest was done; 2 wrong usage or unusable"
    " input; 3 another process is changing the store.",
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
@_json_option
@click.version_option(__version__)
@click.pass_obj
def _group(
    settings: _Settings, config_file: Path | None, working_dir: Path | None, log_level: str
) -> None:
    """Make the filesystem layers on this node be exactly the desired ones."""
    settings.config_file = config_file
    settings.working_dir = working_dir
    logging.basicConfig(
        level=log_level.upper(), format="%(levelname)s: %(message)s", handlers=[settings.log]
    )


@_group.command("apply")
@click.argument("desired", metavar="DESIRED")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@_wait_option
@_json_option
@click.pass_obj
def _apply(settings: _Settings, desired: str, *, dry_run: bool, wait: bool) -> int:
    """Make the layers on this node the DESIRED ones.

    Missing layers are installed, cached ones restored, those that are not desired cached. DESIRED
    is a JSON file with an array of layers, or - for standard input.
    """
    layers = _read_desired(desired)
    if dry_run:
        _print_plan(settings, layers)
        return 0
    try:
        result = _with_manager(
            settings, settings.config, lambda one: one.process_desired_layers(layers), wait=wait
        )
    except LayersFailedError as error:
        _print_result(settings, error.result)
        return error.exit_code
    _print_result(settings, result)
    return 0


@_group.command("ls")
@_json_option
@click.pass_obj
def _ls(settings: _Settings) -> None:
    """List the installed layers."""
    layers = settings.inventory.layers()
    if settings.is_json:
        from layermanager.cli.documents import layer_json

        _print_json([layer_json(layer) for layer in layers])
        return
    if not layers:
        _print("no layers are installed")
        return
    _print_table(
        ("DIGEST", "LAYER", "VERSION", "STATE", "SIZE", "SINCE (UTC)"),
        [
            (
                tables.short_digest(layer.digest),
                layer.layer_id or "-",
                layer.version or "-",
                "cached" if layer.cached else "desired",
                tables.size_text(layer.size),
                f"{layer.timestamp:%Y-%m-%d %H:%M}",
            )
            for layer in layers
        ],
        right=frozenset({4, 5}),
    )


@_group.command("show")
@click.argument("digest", required=False)
@click.option("--files", is_flag=True, help="List the layer's files, from its index.")
@click.option("--jail", is_flag=True, help="Show what confines the unpacker on this node.")
@_json_option
@click.pass_obj
def _show(settings: _Settings, digest: str | None, *, files: bool, jail: bool) -> None:
    """Show one layer in detail.

    DIGEST may be shortened to as much of its beginning as is unambiguous.
    """
    if jail:
        _print_jail(settings)
        return
    if digest is None:
        raise click.UsageError("Missing argument 'DIGEST'.")
    inventory = settings.inventory
    layer = _find(inventory.layers(), digest)
    if files:
        _print_files(settings, inventory.files(layer.digest))
    elif settings.is_json:
        from layermanager.cli.documents import layer_json

        _print_json(layer_json(layer))
    else:
        _print_pairs(_described(layer, settings.config.layer_ttl))


@_group.command("df")
@_json_option
@click.pass_obj
def _df(settings: _Settings) -> None:
    """Show where the space of the layers' partition went."""
    usage = settings.inventory.usage()
    if settings.is_json:
        from layermanager.cli.documents import usage_json

        _print_json(usage_json(usage))
        return
    _print_pairs(
        [
            ("layers", str(usage.path)),
            ("partition", tables.size_text(usage.total)),
            ("free", tables.size_text(usage.free)),
            ("limit", tables.size_text(usage.limit) if usage.limit else "none"),
            ("desired", tables.size_text(usage.desired)),
            ("cached", f"{tables.size_text(usage.reclaimable)} (reclaimable)"),
            ("other", tables.size_text(usage.other)),
        ]
    )


@_group.command("gc")
@click.option(
    "--ttl-days",
    type=click.IntRange(min=0),
    help="Remove what has been cached for so many days, instead of the configuration's.",
)
@click.option("--free", metavar="SIZE", help="Then remove more, oldest first, until SIZE is freed.")
@_wait_option
@_json_option
@click.pass_obj
def _gc(settings: _Settings, ttl_days: int | None, free: str | None, *, wait: bool) -> None:
    """Remove cached layers past their time to live, or enough of them."""
    try:
        wanted = tables.parse_size(free) if free is not None else 0
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--free") from error
    config = settings.config
    if ttl_days is not None:
        config = replace(config, layer_ttl_days=ttl_days)
    time_to_live = config.layer_ttl
    # A manager removes expired layers when it starts, but then nobody is told which.
    config = replace(config, layer_ttl_days=timedelta.max.days)

    def collect(manager: LayerManager) -> tuple[LayerInfo, ...]:
        removed = manager.remove_expired_layers(time_to_live)
        freed = sum(layer.size for layer in removed)
        return removed + manager.remove_cached_layers(max(0, wanted - freed))

    removed = _with_manager(settings, config, collect, wait=wait)
    freed = sum(layer.size for layer in removed)
    if settings.is_json:
        from layermanager.cli.documents import layer_json

        _print_json({"removed": [layer_json(layer) for layer in removed], "freed": freed})
        return
    for layer in removed:
        name = tables.printable(f"{layer.layer_id} {layer.version}".strip())
        _print(f"removed {tables.short_digest(layer.digest)}  {name}")
    layers = "layer" if len(removed) == 1 else "layers"
    _print(f"{len(removed)} {layers} removed, {tables.size_text(freed)} freed")


@_group.command("pack")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The package to write.",
)
@click.option("--layer-id", help="Name of the layer.  [default: the name of SOURCE]")
@click.option("--layer-version", default="1.0.0", show_default=True, help="Its version.")
@click.option("--os-version", default="", help="OS version that it is made for.")
@click.option("--url", help="Where it will be fetched from.  [default: the file itself]")
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "none"]),
    default="gzip",
    show_default=True,
)
@_json_option
def _pack(
    source: Path,
    output: Path,
    *,
    layer_id: str | None,
    layer_version: str,
    os_version: str,
    url: str | None,
    compression: str,
) -> None:
    """Make an Aos layer package of SOURCE.

    SOURCE is a directory or a layer tar. The package's entry for a list of desired layers is
    printed as JSON. An overlay's upper directory is packed as the layer that it is, removals
    included.
    """
    from layermanager.desired import desired_to_json
    from layermanager.pack import Compression, pack_layer

    layer = pack_layer(
        source,
        output,
        layer_id=layer_id or source.absolute().name.split(".")[0],
        version=layer_version,
        os_version=os_version,
        url=url,
        compression=Compression(compression),
    )
    _print_json(desired_to_json(layer))


# What the commands share


def _read_desired(name: str) -> list[DesiredLayer]:
    from layermanager.desired import read_desired

    try:
        document = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise DesiredStateError(f"cannot read the desired layers: {error}") from error
    return read_desired(document, "standard input" if name == "-" else name)


Result = TypeVar("Result")


def _with_manager(
    settings: _Settings, config: Config, operation: Callable[[LayerManager], Result], *, wait: bool
) -> Result:
    """Call *operation* with a manager that shows its progress."""
    from layermanager.manager import LayerManager

    display = _display()
    settings.log.setStream(display)
    patience = _WITHOUT_END if wait else timedelta(0)
    try:
        with LayerManager(config, patience=patience, on_progress=display.update) as manager:
            return operation(manager)
    finally:
        display.end()


def _display() -> Display:
    from layermanager.cli.progress import PlainDisplay, TerminalDisplay

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainDisplay(sys.stderr)
    return TerminalDisplay(
        sys.stderr,
        now=time.monotonic,
        size=shutil.get_terminal_size,
    )


def _find(layers: Iterable[LayerInfo], text: str) -> LayerInfo:
    """The one layer whose digest begins with *text*, with or without its algorithm."""
    algorithm, _, digits = text.rpartition(":")
    if len(digits) < _SHORTEST_PREFIX:
        raise InvalidDigestError(f"{text}: at least {_SHORTEST_PREFIX} digits are needed")
    found = [
        layer
        for layer in layers
        if algorithm in {"", layer.digest.algorithm} and layer.digest.encoded.startswith(digits)
    ]
    if len(found) > 1:
        digests = ", ".join(tables.short_digest(layer.digest) for layer in found)
        raise InvalidDigestError(f"{text}: several layers begin so: {digests}")
    if not found:
        raise LayerNotExistError(f"layer {text} is not installed")
    return found[0]


def _described(layer: LayerInfo, time_to_live: timedelta) -> Iterator[tuple[str, str]]:
    from datetime import UTC, datetime

    age = max(timedelta(0), datetime.now(UTC) - layer.timestamp)
    yield "digest", layer.digest
    yield "layer", layer.layer_id or "-"
    yield "version", layer.version or "-"
    yield "os version", layer.os_version or "-"
    yield "path", str(layer.path)
    yield "size", tables.size_text(layer.size)
    if layer.cached:
        left = tables.age_text(time_to_live - age)
        yield "state", f"cached for {tables.age_text(age)}, removed in {left} at the latest"
    else:
        yield "state", f"desired, here for {tables.age_text(age)}"


def _print_plan(settings: _Settings, layers: Sequence[DesiredLayer]) -> None:
    plan = settings.inventory.plan(layers)
    if settings.is_json:
        from layermanager.cli.documents import plan_json

        _print_json(plan_json(plan))
        return
    lines = list(plan.lines())
    for line in lines or ["nothing to do"]:
        _print(line)


def _print_result(settings: _Settings, result: ApplyResult) -> None:
    if settings.is_json:
        from layermanager.cli.documents import result_json

        _print_json(result_json(result))
        return
    rows = [
        (
            action,
            layer.layer_id or "-",
            layer.version or "-",
            tables.short_digest(layer.digest),
            tables.size_text(layer.size),
        )
        for action, layers in (
            ("kept", result.kept),
            ("restored", result.restored),
            ("cached", result.cached),
            ("installed", result.installed),
        )
        for layer in layers
    ]
    rows += [_failed_row(failed) for failed in result.failed]
    if not rows:
        _print("no layers are desired, and none were")
        return
    _print_table(("ACTION", "LAYER", "VERSION", "DIGEST", "SIZE"), rows, right=frozenset({4}))
    for failed in result.failed:
        click.echo(f"error: {tables.short_digest(failed.desired.digest)}: {failed.error}", err=True)
        if failed.error.hint:
            click.echo(f"hint: {failed.error.hint}", err=True)


def _failed_row(failed: FailedLayer) -> tuple[str, str, str, str, str]:
    desired = failed.desired
    digest = tables.short_digest(desired.digest)
    return ("failed", desired.layer_id or "-", desired.version or "-", digest, "-")


def _print_files(settings: _Settings, entries: Iterator[IndexEntry]) -> None:
    from layermanager.cli.files import file_json, file_line

    if settings.is_json:
        _print_json([file_json(entry) for entry in entries])
        return
    for entry in entries:
        _print(file_line(entry))


def _print_jail(settings: _Settings) -> None:
    from layermanager.unpack.client import Unpacker

    unpacker = Unpacker(settings.config.unpack_timeout)
    try:
        measures = unpacker.jail_measures(Path(tempfile.gettempdir()))
    finally:
        unpacker.close()
    if settings.is_json:
        _print_json([{"name": one.name, "whyNot": one.why_not} for one in measures])
        return
    _print_pairs(
        [
            (one.name, "in force" if one.is_in_force else f"not in force: {one.why_not}")
            for one in measures
        ]
    )


def _print_usage_error(error: click.ClickException, settings: _Settings) -> None:
    if not settings.is_json:
        error.show()
        return
    _print_json({"error": {"type": type(error).__name__, "message": error.format_message()}})


def _print_error(error: LayerManagerError, settings: _Settings) -> None:
    if settings.is_json:
        from layermanager.cli.documents import error_json

        _print_json({"error": error_json(error)})
        return
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]
) -> None:
    for line in tables.table(head, rows, width=shutil.get_terminal_size().columns, right=right):
        _print(line)


def _print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        _print(f"{name.ljust(width)}  {tables.printable(value)}")


def _print_json(document: object) -> None:
    _print(json.dumps(document, indent=2))


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError as error:
        raise _NobodyReadsError from error
