"""The commands that look at a store: ``ls``, ``show`` and ``df``."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli import tables
from layermanager.cli.output import write, write_json, write_pairs, write_table
from layermanager.cli.settings import Settings, json_option
from layermanager.errors import InvalidDigestError, LayerNotExistError

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layermanager.model import LayerInfo
    from layermanager.unpack.index import IndexEntry

_LONGER_THAN_DEVICES_LIVE: Final = timedelta(days=36500)
_SHORTEST_PREFIX: Final = 4


@click.command("ls")
@json_option
@click.pass_obj
def ls(settings: Settings) -> None:
    """List the installed layers."""
    layers = settings.inventory.layers()
    if settings.is_json:
        from layermanager.cli.documents import layer_json

        write_json([layer_json(layer) for layer in layers])
        return
    if not layers:
        write("no layers are installed")
        return
    write_table(
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


@click.command("show")
@click.argument("digest", required=False)
@click.option("--files", is_flag=True, help="List the layer's files, from its index.")
@click.option("--jail", is_flag=True, help="Show what confines the unpacker on this node.")
@json_option
@click.pass_obj
def show(settings: Settings, digest: str | None, *, files: bool, jail: bool) -> None:
    """Show one layer in detail.

    DIGEST may be shortened to as much of its beginning as is unambiguous.
    """
    if jail:
        _print_jail(settings)
        return
    if digest is None:
        raise click.UsageError("Missing argument 'DIGEST'.")
    inventory = settings.inventory
    layer = find(inventory.layers(), digest)
    if files:
        _print_files(settings, inventory.files(layer.digest))
    elif settings.is_json:
        from layermanager.cli.documents import layer_json

        write_json(layer_json(layer))
    else:
        write_pairs(_described(layer, settings.config.layer_ttl))


@click.command("df")
@json_option
@click.pass_obj
def df(settings: Settings) -> None:
    """Show where the space of the layers' partition went."""
    usage = settings.inventory.usage()
    if settings.is_json:
        from layermanager.cli.documents import usage_json

        write_json(usage_json(usage))
        return
    write_pairs(
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


def find(layers: Iterable[LayerInfo], text: str) -> LayerInfo:
    """The one layer whose digest begins with *text*, with or without its algorithm.

    Raises:
        InvalidDigestError: *text* is too short, or several begin so.
        LayerNotExistError: none does.
    """
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
        yield "state", f"cached for {tables.age_text(age)}, {_end_of(time_to_live - age)}"
    else:
        yield "state", f"desired, here for {tables.age_text(age)}"


def _end_of(time_left: timedelta) -> str:
    """When a cached layer is removed."""
    if time_left <= timedelta(0):
        return "removed with the next change"
    if time_left > _LONGER_THAN_DEVICES_LIVE:
        return "removed when space is needed"
    return f"removed in {tables.age_text(time_left)} at the latest"


def _print_files(settings: Settings, entries: Iterator[IndexEntry]) -> None:
    from layermanager.cli.files import file_json, file_line

    if settings.is_json:
        write_json([file_json(entry) for entry in entries])
        return
    for entry in entries:
        write(file_line(entry))


def _print_jail(settings: Settings) -> None:
    from layermanager.unpack.client import Unpacker

    unpacker = Unpacker(settings.config.unpack_timeout)
    try:
        measures = unpacker.jail_measures(Path(tempfile.gettempdir()))
    finally:
        unpacker.close()
    if settings.is_json:
        write_json([{"name": one.name, "whyNot": one.why_not} for one in measures])
        return
    write_pairs(
        [
            (one.name, "in force" if one.is_in_force else f"not in force: {one.why_not}")
            for one in measures
        ]
    )
