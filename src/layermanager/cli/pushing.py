"""The commands that give something to others: ``push`` an image, ``publish`` a desired state."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from layermanager.cli import arguments as kinds
from layermanager.cli import tables
from layermanager.cli.output import tell, write, write_json
from layermanager.cli.settings import Settings, json_option

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from layermanager.images.push import PushProgress


@click.command("push")
@click.argument("source")
@click.argument("target", metavar="REF")
@json_option
@click.pass_obj
def push(settings: Settings, source: str, target: str) -> None:
    """Put the image SOURCE into a registry as REF.

    SOURCE is LAYOUT[:TAG] as for `pack --oci`, or a reference such as oci-archive:FILE:TAG. REF is
    for example registry:5000/app:1.2. What the registry has already is not sent again. The
    reference of the image by its digest is printed.
    """
    from layermanager.images.push import push_image
    from layermanager.oci.reference import parse_reference

    digest = push_image(
        kinds.image_to_push(source), target, settings.config.network, on_progress=_tell
    )
    pushed = parse_reference(target).at(digest)
    if settings.is_json:
        write_json({"ref": str(pushed)})
        return
    write(str(pushed))


@click.command("publish")
@click.argument("desired", metavar="DESIRED", type=click.File("rb"))
@click.argument("target", metavar="REF")
@click.option(
    "--signature", type=click.File("rb"), help="What proves to the nodes who made DESIRED."
)
@json_option
@click.pass_obj
def publish(settings: Settings, desired: BinaryIO, target: str, signature: BinaryIO | None) -> None:
    """Put the desired state DESIRED into a registry as REF.

    DESIRED is a file as for `apply`, or - for standard input. The nodes whose daemon follows REF,
    such as registry:5000/fleet/desired:stable, see to it from then on. The reference by its digest
    is printed.
    """
    from layermanager.images.publish import publish_state
    from layermanager.oci.reference import parse_reference

    digest = publish_state(
        desired.read(),
        target,
        settings.config.network,
        name="standard input" if desired.name == "<stdin>" else desired.name,
        signature=None if signature is None else signature.read(),
    )
    published = parse_reference(target).at(digest)
    if settings.is_json:
        write_json({"ref": str(published)})
        return
    write(str(published))


def _tell(progress: PushProgress) -> None:
    """Say where a blob is at its beginning and at its end, a line each."""
    name = tables.short_digest(progress.digest)
    if progress.was_there:
        tell(f"{name}: there already")
    elif progress.sent == 0:
        tell(f"{name}: sending, {tables.size_text(progress.size)}")
    elif progress.sent == progress.size:
        tell(f"{name}: sent")
