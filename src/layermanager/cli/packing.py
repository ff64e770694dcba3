"""The command that makes something: ``pack``."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from layermanager.cli import arguments as kinds
from layermanager.cli.output import write_json
from layermanager.cli.settings import json_option
from layermanager.presence import is_directory

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.oci.platform import Platform

_TAR_ENDING: Final = re.compile(r"(\.tar)?(\.gz|\.zst)?\Z|\.tgz\Z")
_OF_A_PACKAGE: Final = ("layer_id", "layer_version", "os_version", "url")
_OF_AN_IMAGE: Final = (
    "platform",
    "created",
    "environment",
    "entrypoint",
    "arguments",
    "working_dir",
    "user",
    "labels",
)


@click.command("pack")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The package to write.",
)
@click.option("--oci", metavar="LAYOUT[:TAG]", help="The OCI image layout that gets the image.")
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "none"]),
    default="gzip",
    show_default=True,
)
@click.option(
    "--layer-id",
    callback=kinds.text,
    help="Package: name of the layer.  [default: the name of SOURCE]",
)
@click.option(
    "--layer-version",
    callback=kinds.text,
    default="1.0.0",
    show_default=True,
    help="Package: its version.",
)
@click.option(
    "--os-version", callback=kinds.text, default="", help="Package: OS version it is made for."
)
@click.option(
    "--url",
    callback=kinds.text,
    help="Package: where it will be fetched from.  [default: the file itself]",
)
@click.option(
    "--platform",
    callback=kinds.platform,
    help="Image: for which machines, as linux/arm64.  [default: for this one]",
)
@click.option(
    "--created",
    callback=kinds.moment,
    envvar="SOURCE_DATE_EPOCH",
    help="Image: when it was made, in seconds since 1970 or as 2026-11-24T00:00:00Z; no file in it"
    " is newer.  [env: SOURCE_DATE_EPOCH]",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    callback=kinds.texts,
    metavar="NAME=VALUE",
    help="Image: a variable.",
)
@click.option(
    "--entrypoint",
    multiple=True,
    callback=kinds.texts,
    metavar="WORD",
    help="Image: a word of the command; once for each.",
)
@click.option(
    "--cmd",
    "arguments",
    multiple=True,
    callback=kinds.texts,
    metavar="WORD",
    help="Image: a word that follows the entrypoint unless other ones are given.",
)
@click.option(
    "--working-dir", callback=kinds.text, default="", help="Image: where the command begins."
)
@click.option("--user", callback=kinds.text, default="", help="Image: who runs it.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=kinds.texts,
    metavar="NAME=VALUE",
    help="Image: a text about it.",
)
@json_option
@click.pass_context
def pack(
    context: click.Context,
    source: Path,
    output: Path | None,
    oci: str | None,
    *,
    compression: str,
    layer_id: str | None,
    layer_version: str,
    os_version: str,
    url: str | None,
    platform: Platform | None,
    created: datetime | None,
    environment: Sequence[str],
    entrypoint: Sequence[str],
    arguments: Sequence[str],
    working_dir: str,
    user: str,
    labels: Sequence[str],
) -> None:
    """Make a package or an image of SOURCE.

    SOURCE is a directory or a layer tar; it becomes the Aos layer package OUTPUT, or an OCI image
    of one layer in LAYOUT. Its entry for a list of desired layers, or of desired images, is printed
    as JSON. An overlay's upper directory is packed as the layer that it is, removals included.
    """
    from layermanager.desired import desired_to_json
    from layermanager.oci.manifest import ImageConfig
    from layermanager.oci.platform import host_platform
    from layermanager.pack import Compression, pack_image, pack_layer

    if output is not None and oci is None:
        _refuse(context, _OF_AN_IMAGE, "an image")
        layer = pack_layer(
            source,
            output,
            layer_id=layer_id or _name_of(source),
            version=layer_version,
            os_version=os_version,
            url=url,
            compression=Compression(compression),
        )
        write_json(desired_to_json(layer))
        return
    if oci is None or output is not None:
        raise click.UsageError("give either --output for a package, or --oci for an image")
    _refuse(context, _OF_A_PACKAGE, "a package")
    layout = kinds.layout(oci)
    config = ImageConfig(
        platform=platform or host_platform(os.uname().sysname, os.uname().machine),
        diff_ids=(),
        created="" if created is None else f"{created:%Y-%m-%dT%H:%M:%SZ}",
        environment=tuple(environment),
        entrypoint=tuple(entrypoint),
        arguments=tuple(arguments),
        working_directory=working_dir,
        user=user,
        labels=dict(label.partition("=")[::2] for label in labels),
    )
    descriptor = pack_image(
        source,
        Path(layout.path),
        layout.name,
        config=config,
        compression=Compression(compression),
        latest_ns=None if created is None else _nanoseconds(created),
    )
    write_json({"ref": layout.at(descriptor.digest).url, "platform": str(config.platform)})


def _refuse(context: click.Context, names: Sequence[str], what: str) -> None:
    """Refuse the options *names*, which say something about *what* is not made."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        if option.name in names and given is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} is for {what}")


def _nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _name_of(source: Path) -> str:
    """What a layer is called that is not told its name: ``app`` for ``app/`` and ``app.tar.gz``."""
    name = source.resolve().name
    if not is_directory(source):
        name = _TAR_ENDING.sub("", name)
    if not name or not kinds.is_text(name):
        raise click.UsageError(f"{source} gives the layer no name; give it one with --layer-id")
    return name
