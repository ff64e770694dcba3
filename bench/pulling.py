"""Installing an image from a registry into an empty store, beside others that pull images.

All are whole programs, from their start to their end, and ask the same registry on loopback, whose
own work is not counted. Ours has everything on disk when it ends, the peers have nothing there. So
they are compared as they are, with ``sync -f`` after the peers, and with ours doing without, too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.extracting import cpu, device_megabytes, extract_by, synced, wall
from bench.figures import Figure, Peer
from bench.pullers import ours, peers
from bench.setting import UnavailableError, require_program
from layermanager.config import Network, Registry
from layermanager.images.push import push_image
from layermanager.testing import docker_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.extracting import Extraction
    from bench.images import Image
    from bench.pullers import Puller
    from bench.setting import Setting

_GOAL: Final = 0.7
_WITHOUT: Final = '"durable": false'


def pulling(make: Callable[[Setting], Image], setting: Setting) -> tuple[Figure, ...]:
    """Pull the image that *make* gives, by turns with every peer that is here.

    Raises:
        UnavailableError: there is no registry, or nobody to compare with.
    """
    if os.geteuid() != 0:
        raise UnavailableError("the peers need root")
    image = make(setting)
    others = peers(image.compression)
    if not others:
        raise UnavailableError("there is no other program that pulls such images")
    require_program("docker-registry")
    with (
        tempfile.TemporaryDirectory(dir=setting.scratch) as directory,
        docker_registry.serve(Path(directory)) as registry,
    ):
        reference = _push(image, registry)
        durable = ours(setting.scratch, registry, is_durable=True)
        fleeting = ours(setting.scratch, registry, is_durable=False)
        turns = [
            [_pull(setting, puller, reference) for puller in (durable, fleeting, *others)]
            for _ in range(setting.runs)
        ]
    as_it_is, without, *theirs = zip(*turns, strict=True)
    figures: list[Figure] = []
    for peer, extractions in zip(others, theirs, strict=True):
        figures += _figures(f"pull {image.description}", as_it_is, without, peer, extractions)
    return tuple(figures)


def _push(image: Image, registry: str) -> str:
    """Put *image* into the registry; return the reference by which it is pulled from there."""
    reference = f"{registry}/application:{image.name}"
    network = Network(registries={registry: Registry(is_plain=True)})
    push_image(image.reference, reference, network)
    return reference


def _pull(setting: Setting, puller: Puller, reference: str) -> Extraction:
    return extract_by(setting, lambda directory: puller.pull(directory, reference))


def _figures(
    subject: str,
    ours: Sequence[Extraction],
    without: Sequence[Extraction],
    peer: Puller,
    theirs: Sequence[Extraction],
) -> Iterator[Figure]:
    on_disk = Peer(f"{peer.name}, sync -f", synced(theirs))
    yield Figure(subject, "CPU, user + system", cpu(ours), Peer(peer.name, cpu(theirs)), _GOAL)
    yield Figure(subject, "wall", wall(ours), Peer(peer.name, wall(theirs)), _GOAL)
    yield Figure(subject, "wall; both on disk", wall(ours), on_disk, _GOAL)
    yield Figure(
        subject, f"wall; ours with {_WITHOUT}", wall(without), Peer(peer.name, wall(theirs)), _GOAL
    )
    our_device, their_device = device_megabytes(ours), device_megabytes(theirs)
    if our_device is not None and their_device is not None:
        peer_device = Peer(on_disk.name, their_device)
        yield Figure(subject, "bytes written by the device", our_device, peer_device)
