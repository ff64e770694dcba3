"""The commands that look at a store: ``ls``, ``show`` and ``df``."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli import tables
from layermanager.cli.names import image_called, layer_called
from layermanager.cli.output import write, write_json, write_pairs, write_table
from layermanager.cli.settings import Settings, json_option
from layermanager.cli.using import list_mounts

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layermanager.model import ImageInfo, InodeUsage, LayerInfo
    from layermanager.unpack.index import IndexEntry

_LONGER_THAN_DEVICES_LIVE: Final = timedelta(days=36500)


@click.command("ls")
@click.option("--images", is_flag=True, help="List the installed images instead.")
@click.option("--mounts", is_flag=True, help="List what was mounted instead.")
@json_option
@click.pass_obj
def ls(settings: Settings, *, images: bool, mounts: bool) -> None:
    """List the installed layers."""
    if images:
        _list_images(settings)
        return
    if mounts:
        list_mounts(settings)
        return
    layers = settings.inventory.layers()
    if settings.is_json:
        from layermanager.json_documents import layer_json

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
@click.argument("name", metavar="LAYER|REFERENCE", required=False)
@click.option("--files", is_flag=True, help="List the layer's files, from its index.")
@click.option(
    "--jail",
    is_flag=True,
    help="Show what confines the unpacker and closes the store on this node.",
)
@json_option
@click.pass_obj
def show(settings: Settings, name: str | None, *, files: bool, jail: bool) -> None:
    """Show one layer, or one image, in detail.

    A layer is named by its name, or by its digest, which may be shortened to as much of its
    beginning as is unambiguous; an image by its reference.
    """
    if jail:
        _print_jail(settings)
        return
    if name is None:
        raise click.UsageError("Missing argument 'LAYER|REFERENCE'.")
    inventory = settings.inventory
    layer = layer_called(name, inventory.layers())
    if layer is None:
        image = image_called(name, inventory)
        if files:
            raise click.UsageError("--files is for a layer, and this is an image")
        _print_image(settings, image)
        return
    if files:
        _print_files(settings, inventory.files(layer.digest))
    elif settings.is_json:
        from layermanager.json_documents import layer_json

        write_json(layer_json(layer))
    else:
        write_pairs(_described(layer, _age(settings, layer), settings.config.layer_ttl))


def _list_images(settings: Settings) -> None:
    images = settings.inventory.images()
    if settings.is_json:
        from layermanager.json_documents import image_json

        write_json([image_json(image) for image in images])
        return
    if not images:
        write("no images are installed")
        return
    write_table(
        ("DIGEST", "IMAGE", "PLATFORM", "LAYERS", "STATE", "SINCE (UTC)"),
        [
            (
                tables.short_digest(image.digest),
                image.reference,
                image.platform,
                str(len(image.layers)),
                "cached" if image.cached else "desired",
                f"{image.timestamp:%Y-%m-%d %H:%M}",
            )
            for image in images
        ],
        right=frozenset({3, 5}),
    )


@click.command("df")
@json_option
@click.pass_obj
def df(settings: Settings) -> None:
    """Show where the space of the layers' partition went."""
    usage = settings.inventory.usage()
    if settings.is_json:
        from layermanager.json_documents import usage_json

        write_json(usage_json(usage))
        return
    rows = [
        ("layers", str(usage.path)),
        ("partition", tables.size_text(usage.total)),
        ("free", tables.size_text(usage.free)),
        ("limit", tables.size_text(usage.limit) if usage.limit else "none"),
        ("desired", tables.size_text(usage.desired)),
        ("cached", f"{tables.size_text(usage.reclaimable)} (reclaimable)"),
        ("other", tables.size_text(usage.other)),
    ]
    if usage.held:
        rows.insert(6, ("in use", f"{tables.size_text(usage.held)} (cached, not reclaimable)"))
    if usage.inodes is not None:
        rows.append(("inodes", _inodes_text(usage.inodes)))
    write_pairs(rows)


def _inodes_text(usage: InodeUsage) -> str:
    held = f", {usage.held} in use (not reclaimable)" if usage.held else ""
    return (
        f"{usage.total}: {usage.free} free, {usage.desired} desired, "
        f"{usage.reclaimable} cached (reclaimable){held}, {usage.other} other"
    )


def _print_image(settings: Settings, image: ImageInfo) -> None:
    if settings.is_json:
        from layermanager.documents import parse
        from layermanager.json_documents import image_json

        write_json({**image_json(image), "config": parse(image.config)})
        return
    layers = settings.inventory.layers()
    write_pairs(_described_image(image, _age(settings, image), layers))


def _age(settings: Settings, item: LayerInfo | ImageInfo) -> timedelta:
    """For how long it has been cached; of what is desired no more is known than a date."""
    from datetime import UTC, datetime

    if item.cached:
        return settings.inventory.ages().of(item)
    return max(timedelta(0), datetime.now(UTC) - item.timestamp)


def _described_image(
    image: ImageInfo, age: timedelta, layers: Iterable[LayerInfo]
) -> Iterator[tuple[str, str]]:
    from layermanager.errors import ImageNotExistError
    from layermanager.oci.manifest import read_config

    since = tables.age_text(age)
    config = read_config(image.config, len(image.layers))
    # Another process may have removed layers, and the image with them, since the image was read.
    sizes = {layer.digest: layer.size for layer in layers}
    if gone := [digest for digest in image.layers if digest not in sizes]:
        raise ImageNotExistError(
            f"image {image.reference} is not installed any more: layer {gone[0]} was removed"
        )
    yield "image", image.reference
    yield "digest", image.digest
    yield "platform", image.platform
    yield "state", f"cached for {since}" if image.cached else f"desired, here for {since}"
    yield "command", " ".join((*config.entrypoint, *config.arguments)) or "-"
    made = image.directories
    made_here = [made] if made is not None and made in sizes else []
    parts = {*image.layers, *made_here}
    yield "size", tables.size_text(sum(sizes[digest] for digest in parts))
    for position, digest in enumerate(image.layers):
        size = tables.size_text(sizes[digest])
        yield "" if position else "layers", f"{digest} {size}"
    for digest in made_here:
        yield "directories", f"{digest} {tables.size_text(sizes[digest])}"
    if not image.are_directories_known:
        yield "directories", "unknown, an index is missing or damaged: see `check`"


def _described(
    layer: LayerInfo, age: timedelta, time_to_live: timedelta
) -> Iterator[tuple[str, str]]:
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
    from layermanager.cli.files import file_line
    from layermanager.json_documents import file_json

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
    why_not = {one.name: one.why_not for one in measures}
    why_not["closed directories"] = "; ".join(map(str, settings.inventory.exposures()))
    if settings.is_json:
        write_json([{"name": name, "whyNot": reason} for name, reason in why_not.items()])
        return
    write_pairs(
        [
            (name, f"not in force: {reason}" if reason else "in force")
            for name, reason in why_not.items()
        ]
    )
