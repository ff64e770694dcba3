"""The commands that change a store: ``apply`` and ``gc``."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from layermanager.cli import arguments as kinds
from layermanager.cli import tables
from layermanager.cli.output import tell, write, write_json, write_table
from layermanager.cli.settings import Settings, json_option, limit_rate_option, wait_option
from layermanager.errors import DesiredStateError, LayersFailedError
from layermanager.presence import exists

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from layermanager.cli.progress import Display
    from layermanager.config import Config
    from layermanager.errors import LayerManagerError
    from layermanager.leases import HeldLayer
    from layermanager.manager import LayerManager
    from layermanager.model import (
        ApplyResult,
        DesiredImage,
        DesiredLayer,
        ImageChanges,
        LayerInfo,
        LayerProgress,
    )

Result = TypeVar("Result")

_SECONDS_BETWEEN_LOOKS: Final = 1


@click.command("apply", cls=kinds.PatientCommand)
@click.argument("desired", metavar="DESIRED")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--platform",
    callback=kinds.text,
    help="For which machines the image DESIRED is, as linux/arm64.  [default: for this one]",
)
@limit_rate_option
@wait_option
@json_option
@click.pass_obj
def apply(
    settings: Settings, desired: str, *, dry_run: bool, platform: str | None, patience: timedelta
) -> int:
    """Make the layers on this node the DESIRED ones.

    Missing layers are installed, cached ones restored, those that are not desired cached. DESIRED
    is a JSON file with an array of layers, or with layers and images; or - for standard input; or
    the reference of the one image that is desired, as registry:5000/app:1.2, oci:PATH:TAG,
    oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG.
    """
    wanted = _read_desired(desired, platform)
    if dry_run:
        _print_plan(settings, wanted)
        return 0
    config = settings.config

    def apply(manager: LayerManager) -> ApplyResult:
        result = manager.process_desired_layers(wanted)
        manager.remove_expired_layers(config.layer_ttl)
        return result

    try:
        result = with_manager(settings, config, apply, patience)
    except LayersFailedError as error:
        _print_result(settings, error.result)
        return error.exit_code
    _print_result(settings, result)
    return 0


@click.command("gc", cls=kinds.PatientCommand)
@click.option(
    "--ttl-days",
    type=click.IntRange(min=0),
    help="Remove what has been cached for so many days, instead of the configuration's.",
)
@click.option(
    "--free",
    metavar="SIZE",
    callback=kinds.size,
    default="0",
    help="Then remove more, oldest first, until SIZE is freed.",
)
@wait_option
@json_option
@click.pass_obj
def gc(settings: Settings, ttl_days: int | None, free: int, patience: timedelta) -> None:
    """Remove cached layers past their time to live, or enough of them."""
    config = settings.config
    if ttl_days is not None:
        config = replace(config, layer_ttl_days=ttl_days)

    def collect(manager: LayerManager) -> tuple[Sequence[LayerInfo], Sequence[HeldLayer]]:
        removed = manager.remove_expired_layers(config.layer_ttl)
        freed = sum(layer.size for layer in removed)
        removed += manager.remove_cached_layers(max(0, free - freed))
        return removed, manager.held_layers()

    removed, held = with_manager(settings, config, collect, patience)
    freed = sum(layer.size for layer in removed)
    if settings.is_json:
        from layermanager.json_documents import held_json, layer_json

        write_json(
            {
                "removed": [layer_json(layer) for layer in removed],
                "freed": freed,
                "held": [held_json(layer) for layer in held],
            }
        )
        return
    for layer in removed:
        name = f"{layer.layer_id} {layer.version}".strip()
        write(f"removed {tables.short_digest(layer.digest)}  {name}")
    for one in held:
        holders = " and ".join(map(str, one.holders))
        write(f"in use  {tables.short_digest(one.digest)}  by {holders}")
    layers = "layer" if len(removed) == 1 else "layers"
    write(f"{len(removed)} {layers} removed, {tables.size_text(freed)} freed")


def _read_desired(name: str, platform: str | None) -> Sequence[DesiredLayer | DesiredImage]:
    from layermanager.desired import read_desired_state
    from layermanager.model import DesiredImage

    if kinds.names_image(name) and not exists(Path(name)):
        return [DesiredImage(kinds.image_reference(name), platform or "")]
    if platform is not None:
        raise click.UsageError("--platform is for an image that is named as DESIRED")
    try:
        document = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise DesiredStateError(f"cannot read the desired layers: {error}") from error
    return read_desired_state(document, "standard input" if name == "-" else name)


def with_manager(
    settings: Settings,
    config: Config,
    operation: Callable[[LayerManager], Result],
    patience: timedelta,
) -> Result:
    """Call *operation* with a manager that shows its progress.

    The operation has a thread of its own. A signal ends the waiting for it here; closing the
    manager then cancels it, and nothing within it is interrupted at a place of the signal's choice.
    """
    from concurrent.futures import ThreadPoolExecutor

    from layermanager.manager import LayerManager

    # A manager removes expired layers when it starts: before it knows that they are desired again,
    # and without telling which. Those who come here do it themselves.
    config = replace(config, layer_ttl_days=timedelta.max.days)
    with (
        _progress_shown(settings) as on_progress,
        ThreadPoolExecutor(1, "operation") as thread,
        LayerManager(config, patience=patience, on_progress=on_progress) as manager,
    ):
        return _result_of(thread.submit(operation, manager))


def _result_of(future: Future[Result]) -> Result:
    """What comes of *future*; a signal is heard meanwhile.

    A signal that another thread takes, or that comes between Python's look for one and the wait,
    does not end the wait: it is heard when the next one begins.
    """
    from concurrent.futures import wait

    while not wait((future,), timeout=_SECONDS_BETWEEN_LOOKS).done:
        pass
    return future.result()


@contextmanager
def _progress_shown(settings: Settings) -> Iterator[Callable[[LayerProgress], None]]:
    """Show on standard error what the function is told, and what is logged meanwhile."""
    from layermanager.cli.background import BackgroundDisplay

    with BackgroundDisplay(_display()) as display:
        settings.log.setStream(display)
        try:
            yield display.update
        finally:
            settings.log.setStream(sys.stderr)


def _display() -> Display:
    from layermanager.cli.progress import PlainDisplay, TerminalDisplay

    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return PlainDisplay(sys.stderr)
    return TerminalDisplay(sys.stderr, now=time.monotonic, size=_terminal_size)


def _terminal_size() -> tuple[int, int]:
    """Columns and lines of the terminal at standard error; standard output may be a file."""
    columns, lines = os.get_terminal_size(sys.stderr.fileno())
    return columns or 80, lines or 24


def _print_plan(settings: Settings, desired: Sequence[DesiredLayer | DesiredImage]) -> None:
    plan = settings.inventory.plan(desired)
    if settings.is_json:
        from layermanager.json_documents import plan_json

        write_json(plan_json(plan))
        return
    lines = list(plan.lines())
    for line in lines or ["nothing to do"]:
        write(line)


def _print_result(settings: Settings, result: ApplyResult) -> None:
    if settings.is_json:
        from layermanager.json_documents import result_json

        write_json(result_json(result))
        return
    rows = [
        _row(action, layer, tables.size_text(layer.size))
        for action, layers in (
            ("kept", result.kept),
            ("restored", result.restored),
            ("cached", result.cached),
            ("installed", result.installed),
        )
        for layer in layers
    ]
    rows += [_row("failed", failed.desired, "-") for failed in result.failed]
    images = list(_image_rows(result.images))
    if not rows and not images:
        write("no layers are desired, and none were")
        return
    if rows:
        write_table(("ACTION", "LAYER", "VERSION", "DIGEST", "SIZE"), rows, right=frozenset({4}))
    if images:
        write_table(("ACTION", "IMAGE", "PLATFORM", "DIGEST"), images, right=frozenset())
    for layer in result.failed:
        _tell_error(tables.short_digest(layer.desired.digest), layer.error)
    told = {id(layer.error) for layer in result.failed}
    for image in result.images.failed:
        if id(image.error) not in told:  # else it is that of a layer
            _tell_error(image.desired.reference, image.error)


def _image_rows(images: ImageChanges) -> Iterator[tuple[str, ...]]:
    for action, changed in (
        ("kept", images.kept),
        ("restored", images.restored),
        ("cached", images.cached),
        ("installed", images.installed),
    ):
        for image in changed:
            digest = tables.short_digest(image.digest)
            yield action, image.reference, image.platform, digest
    for failed in images.failed:
        yield "failed", failed.desired.reference, failed.desired.platform or "-", "-"


def _tell_error(what: str, error: LayerManagerError) -> None:
    message = str(error)
    tell(f"error: {message}" if message.startswith(what) else f"error: {what}: {message}")
    if error.hint:
        tell(f"hint: {error.hint}")


def _row(action: str, layer: LayerInfo | DesiredLayer, size: str) -> tuple[str, ...]:
    digest = tables.short_digest(layer.digest)
    return (action, layer.layer_id or "-", layer.version or "-", digest, size)
