"""The commands that use layers: ``mount``, ``umount`` and ``lease``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from layermanager.cli import arguments as kinds
from layermanager.cli import names
from layermanager.cli.output import write, write_json, write_table
from layermanager.cli.settings import Settings, json_option

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from layermanager.leases import Lease


_context_option = click.option(
    "--context",
    metavar="LABEL",
    default="",
    help="SELinux label of all files in the mount: USER:ROLE:TYPE[:LEVEL].",
)


@click.command("mount")
@click.argument("name")
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.argument("layers", metavar="LAYER|IMAGE...", nargs=-1, required=True)
@click.option(
    "--upper",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for what is written.  [default: thrown away at the end]",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Empty directory beside it, for overlayfs.  [default: one is made]",
)
@click.option("--read-only", is_flag=True, help="Let nothing be written.")
@_context_option
@json_option
@click.pass_obj
def mount(
    settings: Settings,
    name: str,
    target: Path,
    layers: Sequence[str],
    *,
    upper: Path | None,
    work: Path | None,
    read_only: bool,
    context: str,
) -> None:
    """Mount installed layers, or an image, as one tree on the directory TARGET.

    The uppermost LAYER comes first. A layer is named by its digest, which may be shortened, or by
    its name. NAME is what `umount` unmounts it by.
    """
    from layermanager.use.layer_use import open_use

    references = names.references(layers, settings.inventory.layers())
    with open_use(settings.config) as use:
        mounted = use.mount(
            name,
            references,
            target=target,
            upper=upper,
            work=work,
            read_only=read_only,
            context=context,
        )
    if settings.is_json:
        from layermanager.json_documents import mount_json

        write_json(mount_json(mounted.mount))
        return
    count = len(mounted.mount.layers)
    layers_text = "layer" if count == 1 else "layers"
    write(f"mounted {name} on {mounted.mount.target}: {count} {layers_text}")


@click.command("bundle")
@click.argument("image")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1)
@click.option("--name", help="What to unmount it by.  [default: the name of DIRECTORY]")
@click.option("--read-only", is_flag=True, help="Let the container write nothing there.")
@_context_option
@json_option
@click.pass_obj
def bundle(
    settings: Settings,
    image: str,
    directory: Path,
    arguments: Sequence[str],
    *,
    name: str | None,
    read_only: bool,
    context: str,
) -> None:
    """Make a bundle of an installed IMAGE, for `crun run --bundle DIRECTORY`.

    The image is mounted on DIRECTORY/rootfs, until `umount`. ARGUMENTS, after a --, are those of
    the command instead of the image's.
    """
    from layermanager.use.bundle import write_bundle
    from layermanager.use.layer_use import open_use

    with open_use(settings.config) as use:
        mounted = write_bundle(
            use,
            use.image(kinds.image_reference(image)),
            directory,
            name=name or directory.resolve().name,
            arguments=arguments,
            read_only=read_only,
            context=context,
        )
    if settings.is_json:
        from layermanager.json_documents import mount_json

        write_json(mount_json(mounted.mount))
        return
    write(
        f"made a bundle in {directory}: unmount it with `layermanager umount {mounted.mount.name}`"
    )


@click.command("umount")
@click.argument("name")
@click.option("--lazy", is_flag=True, help="Also if its files are in use; who has some keeps them.")
@json_option
@click.pass_obj
def umount(settings: Settings, name: str, *, lazy: bool) -> None:
    """Unmount what was mounted as NAME, and throw away what is to be thrown away."""
    from layermanager.use.layer_use import open_use

    with open_use(settings.config) as use:
        use.umount(name, lazy=lazy)
    if settings.is_json:
        write_json({"unmounted": name})
        return
    write(f"unmounted {name}")


@click.group("lease")
def lease() -> None:
    """Keep layers that somebody uses from being removed."""


@lease.command("add")
@click.argument("layers", metavar="LAYER|IMAGE...", nargs=-1, required=True)
@click.option("--owner", callback=kinds.text, required=True, help="Who uses them.")
@click.option(
    "--ttl", callback=kinds.duration, metavar="TIME", help="For how long, such as 90s or 12h."
)
@click.option(
    "--process", type=click.IntRange(min=1), help="Number of a process with which it ends."
)
@click.option(
    "--paths",
    is_flag=True,
    help="Print also the directories to mount, the uppermost first, as `mount` would take them.",
)
@json_option
@click.pass_obj
def add(
    settings: Settings,
    layers: Sequence[str],
    *,
    owner: str,
    ttl: timedelta | None,
    process: int | None,
    paths: bool,
) -> None:
    """Keep layers, or those of an image, and print what the lease is released by."""
    from layermanager.use.layer_use import open_use

    references = names.references(layers, settings.inventory.layers())
    with open_use(settings.config) as use:
        taken = use.lease(references, owner=owner, ttl=ttl, process=process)
    if settings.is_json:
        from layermanager.json_documents import lease_json, taken_lease_json

        write_json(taken_lease_json(taken) if paths else lease_json(taken.lease))
        return
    write(taken.lease.lease_id)
    for path in taken.lower if paths else ():
        write(str(path))


@lease.command("ls")
@json_option
@click.pass_obj
def list_leases(settings: Settings) -> None:
    """List the leases, those of mounts included."""
    leases = settings.inventory.leases()
    if settings.is_json:
        from layermanager.json_documents import lease_json

        write_json([lease_json(one) for one in leases])
        return
    if not leases:
        write("there are no leases")
        return
    write_table(
        ("LEASE", "OWNER", "LAYERS", "SINCE (UTC)", "ENDS"),
        [
            (
                one.lease_id,
                one.owner,
                str(len(one.layers)),
                f"{one.created:%Y-%m-%d %H:%M}",
                _end_of(one),
            )
            for one in leases
        ],
        right=frozenset({2}),
    )


@lease.command("release")
@click.argument("lease_id", metavar="LEASE")
@json_option
@click.pass_obj
def release(settings: Settings, lease_id: str) -> None:
    """End a lease."""
    from layermanager.use.layer_use import open_use

    with open_use(settings.config) as use:
        use.release_lease(lease_id)
    if settings.is_json:
        write_json({"released": lease_id})
        return
    write(f"released {lease_id}")


def list_mounts(settings: Settings) -> None:
    """Print what was mounted by name."""
    mounts = settings.inventory.mounts()
    if settings.is_json:
        from layermanager.json_documents import mount_json

        write_json([mount_json(one) for one in mounts])
        return
    if not mounts:
        write("nothing is mounted")
        return
    write_table(
        ("NAME", "STATE", "LAYERS", "WRITES TO", "TARGET"),
        [
            (
                one.name,
                "mounted" if one.is_mounted else "gone",
                str(len(one.layers)),
                "-" if one.upper is None else str(one.upper),
                str(one.target),
            )
            for one in mounts
        ],
        right=frozenset({2}),
    )


def _end_of(lease: Lease) -> str:
    from layermanager.leases import OverlayBond, ProcessBond

    ends = []
    if lease.expires is not None:
        ends.append(f"{lease.expires:%Y-%m-%d %H:%M}")
    match lease.bond:
        case ProcessBond():
            ends.append(f"process {lease.bond.process}")
        case OverlayBond():
            ends.append("when unmounted")
    return " or ".join(ends) or "when released"
