"""The command that verifies what is installed, and mends it: ``check``."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli import arguments as kinds
from layermanager.cli import tables
from layermanager.cli.changing import with_manager
from layermanager.cli.names import installed_layer
from layermanager.cli.output import tell, write, write_json, write_table
from layermanager.cli.settings import Settings, json_option, limit_rate_option, wait_option
from layermanager.errors import LayersFailedError

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from layermanager.check import Difference, LayerReport
    from layermanager.inventory import CheckProgress, Inventory
    from layermanager.model import AdoptedLayer, Digest, FailedLayer, LayerInfo, Repair

_SECONDS_BETWEEN_LINES: Final = 0.1


@click.command("check", cls=kinds.PatientCommand)
@click.argument("names", metavar="[LAYER]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Compare all but the content of files.")
@click.option(
    "--repair", is_flag=True, help="Install damaged layers anew, from where they came from."
)
@click.option(
    "--index",
    is_flag=True,
    help="Take layers that another program installed for what they are, and verify them from now"
    " on.",
)
@click.option(
    "--clean-markers",
    is_flag=True,
    help="With --index: before that, remove the marker files (.wh.…) that Aos left where it made"
    " whiteouts of them.",
)
@limit_rate_option
@wait_option
@json_option
@click.pass_obj
def check(
    settings: Settings,
    names: Sequence[str],
    *,
    quick: bool,
    repair: bool,
    index: bool,
    clean_markers: bool,
    patience: timedelta,
) -> int:
    """Compare installed layers with what they were, file by file.

    Without a LAYER, a name or the beginning of a digest, all are checked. The status is 1 if a
    layer is damaged, or cannot be verified since another program installed it, and was not
    repaired. A warning says which directories other users can enter.
    """
    if clean_markers and not index:
        raise click.UsageError("--clean-markers goes with --index")
    if index and repair:
        raise click.UsageError("--index keeps layers as they are, and --repair replaces them")
    layers = _chosen(settings.inventory, names)
    adopted: tuple[AdoptedLayer, ...] = ()
    if index:
        adopted = with_manager(
            settings,
            settings.config,
            lambda manager: manager.adopt_layers(layers, clean_markers=clean_markers),
            patience,
        )
    done = dict.fromkeys((one.layer.digest for one in adopted), "indexed")
    others = [layer for layer in layers if layer.digest not in done]
    reports = _check(settings.inventory, others, quick=quick)
    failed: Mapping[Digest, FailedLayer] = {}
    if repair:
        repaired, failed = _repair(settings, reports, patience)
        done |= dict.fromkeys(repaired, "repaired")
    _print(settings, (*_reports_of(adopted), *reports), done, failed)
    for one in adopted:
        if one.markers:
            tell(f"{tables.short_digest(one.layer.digest)}: removed {one.markers} marker files")
    for exposure in settings.inventory.exposures():
        tell(f"warning: {exposure}")
    return 0 if _all_intact(one for one in reports if one.layer.digest not in done) else 1


def _chosen(inventory: Inventory, names: Sequence[str]) -> tuple[LayerInfo, ...]:
    layers = inventory.layers()
    if not names:
        return layers
    return tuple(dict.fromkeys(installed_layer(name, layers) for name in names))


def _reports_of(adopted: Sequence[AdoptedLayer]) -> Iterator[LayerReport]:
    from layermanager.check import LayerReport

    for one in adopted:
        yield LayerReport(one.layer)


def _check(
    inventory: Inventory, layers: Sequence[LayerInfo], *, quick: bool
) -> tuple[LayerReport, ...]:
    from layermanager.cancellation import Cancellation
    from layermanager.check import Depth

    cancellation = Cancellation()
    with _progress_shown() as on_progress:
        try:
            return inventory.check(
                layers,
                Depth.ATTRIBUTES if quick else Depth.CONTENT,
                cancellation=cancellation,
                on_progress=on_progress,
            )
        finally:
            cancellation.cancel()  # where a signal ended it, its threads are still at work


def _repair(
    settings: Settings, reports: Sequence[LayerReport], patience: timedelta
) -> tuple[Mapping[Digest, LayerInfo], Mapping[Digest, FailedLayer]]:
    """Repair what can be; which layers were, and which failed."""
    sources = settings.inventory.sources()
    from layermanager.model import Repair

    repairs = [
        Repair(report.layer, sources[report.layer.digest])
        for report in reports
        if not _all_intact([report]) and report.layer.digest in sources
    ]
    if not repairs:
        return {}, {}
    failed: Mapping[Digest, FailedLayer] = {}
    try:
        repaired = _with_manager(settings, repairs, patience)
    except LayersFailedError as error:
        repaired = error.result.installed
        failed = {layer.desired.digest: layer for layer in error.result.failed}
        images = error.result.images.failed
        if images and not failed:
            raise
        for image in images:
            tell(f"image {image.desired.reference}: {image.error}")
    return {layer.digest: layer for layer in repaired}, failed


def _with_manager(
    settings: Settings, repairs: Sequence[Repair], patience: timedelta
) -> tuple[LayerInfo, ...]:
    return with_manager(
        settings, settings.config, lambda manager: manager.repair_layers(repairs), patience
    )


def _all_intact(reports: Iterator[LayerReport] | Sequence[LayerReport]) -> bool:
    from layermanager.check import Status

    return all(report.status is Status.INTACT for report in reports)


def _print(
    settings: Settings,
    reports: Sequence[LayerReport],
    done: Mapping[Digest, str],
    failed: Mapping[Digest, FailedLayer],
) -> None:
    if settings.is_json:
        from layermanager.json_documents import report_json

        write_json([report_json(one, done.get(one.layer.digest, "")) for one in reports])
    else:
        _print_table(reports, done)
    for failure in failed.values():
        tell(f"error: {tables.short_digest(failure.desired.digest)}: {failure.error}")
    for report in reports:
        digest = report.layer.digest
        if not _all_intact([report]) and digest not in done and digest not in failed:
            tell(f"hint: {_advice(report)}")


def _print_table(reports: Sequence[LayerReport], done: Mapping[Digest, str]) -> None:
    if not reports:
        write("no layers are installed")
        return
    rows = []
    for report in reports:
        layer = report.layer
        status = done.get(layer.digest) or str(report.status)
        rows.append(
            (
                status,
                layer.layer_id or "-",
                layer.version or "-",
                tables.short_digest(layer.digest),
                str(report.count),
            )
        )
    write_table(("STATUS", "LAYER", "VERSION", "DIGEST", "DIFFERENCES"), rows, right=frozenset({4}))
    for report in reports:
        for difference in report.differences:
            write(f"{tables.short_digest(report.layer.digest)}  {difference_line(difference)}")
        if report.count > len(report.differences):
            write(f"… and {report.count - len(report.differences)} more")


def difference_line(difference: Difference) -> str:
    """One difference on a line."""
    from layermanager.unpack.fields import shown

    line = f"{shown(difference.path)}: {difference.problem}"
    if difference.expected:
        line += f": expected {difference.expected}"
    if difference.found:
        line += f"{',' if difference.expected else ':'} found {difference.found}"
    return line


def _advice(report: LayerReport) -> str:
    digest = tables.short_digest(report.layer.digest)
    if not report.has_index:
        return (
            f"{digest} has no index, as another program installed it; "
            f"`layermanager check --index {digest}` makes one of what it is now"
        )
    return f"{digest} can be installed anew with `layermanager check --repair {digest}`"


@contextmanager
def _progress_shown() -> Iterator[Callable[[CheckProgress], None]]:
    """Show on a terminal how far a check is; elsewhere its result says it all."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda _: None
        return
    began = time.monotonic()
    drawn = 0.0

    def show(progress: CheckProgress) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < _SECONDS_BETWEEN_LINES:
            return
        drawn = now
        rate = tables.size_text(int(progress.read / max(now - began, _SECONDS_BETWEEN_LINES)))
        read = tables.size_text(progress.read)
        line = f"checking layer {progress.number} of {progress.layers}: {read}, {rate}/s"
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
