"""Leases: somebody uses these layers, so they stay. The values, and when a lease is over. All pure.

A lease may be for good, until it is released; end at a time; or be bound to something that ends: a
process, or the overlay that a mount made. What it is bound to is told apart for ever: a process by
when it started, and both by when the machine was booted, since their numbers come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from pathlib import Path

    from layermanager.model import Digest

_TAG: Final = "layermanager:"


@dataclass(frozen=True, slots=True)
class ProcessBond:
    """A process.

    Attributes:
        boot: names the boot of the machine (``/proc/sys/kernel/random/boot_id``).
        namespace: the process namespace that ``process`` counts in, by its inode.
        process: its number.
        started: when it started, in ticks since the boot.
    """

    boot: str
    namespace: int
    process: int
    started: int


@dataclass(frozen=True, slots=True)
class OverlayBond:
    """An overlay, at whatever places and in whatever namespaces it is mounted, or in none.

    Attributes:
        boot: names the boot of the machine.
        device: its ``st_dev``, as ``major:minor``.
    """

    boot: str
    device: str


Bond: TypeAlias = ProcessBond | OverlayBond


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's use of layers.

    Attributes:
        lease_id: its name.
        owner: who uses them, in words of his own.
        layers: what is used.
        created: since when; UTC.
        expires: when it is over at the latest, by the date at which it was taken; UTC. It lasts
            as long as that is after ``created``, also if the date is set meanwhile.
        bond: what it is over with.
    """

    lease_id: str
    owner: str
    layers: tuple[Digest, ...]
    created: datetime
    expires: datetime | None = None
    bond: Bond | None = None

    @property
    def tag(self) -> str:
        """What overlays that were mounted by this lease have as their source."""
        return tag_of(self.lease_id)


@dataclass(frozen=True, slots=True)
class LayerMount:
    """Layers that were mounted by name.

    Attributes:
        name: what it is unmounted by.
        lease_id: the lease that keeps its layers.
        target: the directory on which they are mounted.
        layers: the layers, the uppermost first.
        upper: what was written is here; None if nothing can be written.
        is_mounted: whether it is, anywhere; a reboot, or somebody else, may have unmounted it.
    """

    name: str
    lease_id: str
    target: Path
    layers: tuple[Digest, ...]
    upper: Path | None = None
    is_mounted: bool = True


@dataclass(frozen=True, slots=True)
class Holder:
    """What keeps a layer from being removed.

    Attributes:
        description: the same in words.
        lease_id: the lease, if it is one.
        mount_point: where an overlay or a bind mount of the layer is, if it is one.
        process: one that sees that mount, or has its files open.
    """

    description: str
    lease_id: str | None = None
    mount_point: str | None = None
    process: int | None = None

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, slots=True)
class HeldLayer:
    """A cached layer that cannot be removed, and why."""

    digest: Digest
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        return f"{self.digest} by {' and '.join(map(str, self.holders))}"


def is_over(lease: Lease, age: timedelta, is_alive: Callable[[Lease, Bond], bool]) -> bool:
    """Whether a *lease* holds nothing any more.

    Args:
        lease: the lease.
        age: how long ago it was taken, whatever the calendar says.
        is_alive: tells whether what the lease is bound to is still there.
    """
    if lease.expires is not None and age >= lease.expires - lease.created:
        return True
    return lease.bond is not None and not is_alive(lease, lease.bond)


def tag_of(lease_id: str) -> str:
    """What overlays have as their source that were mounted by this lease."""
    return f"{_TAG}{lease_id}"


def format_bond(bond: Bond | None) -> str:
    """A bond as text; ``parse_bond`` reads it."""
    match bond:
        case ProcessBond():
            return f"process {bond.boot} {bond.namespace} {bond.process} {bond.started}"
        case OverlayBond():
            return f"overlay {bond.boot} {bond.device}"
        case None:
            return ""


def parse_bond(text: str) -> Bond | None:
    """Read what ``format_bond`` wrote.

    Raises:
        ValueError: it is something else.
    """
    match text.split():
        case []:
            return None
        case ["process", boot, namespace, process, started]:
            return ProcessBond(boot, int(namespace), int(process), int(started))
        case ["overlay", boot, device]:
            return OverlayBond(boot, device)
    raise ValueError(f"not what a lease can be bound to: {text!r}")
