"""What to do, decided before anything is done.

Both decisions of the manager are pure functions of values: ``plan`` compares the desired layers
with the installed ones, ``reconcile`` compares the rows of the storage with the directories on
disk. Nothing here reads the disk, the database or the time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from layermanager.errors import DesiredStateError
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime, timedelta

    from layermanager.model import DesiredLayer, Digest, LayerInfo


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that make the installed layers the desired ones; each layer is in one of them.

    Attributes:
        keep: installed and desired: nothing to do.
        restore: cached and desired again: no longer reclaimable.
        cache: installed and no longer desired: kept, reclaimable.
        install: desired and not there: fetch and unpack, in the order of the desired list.
    """

    keep: tuple[LayerInfo, ...]
    restore: tuple[LayerInfo, ...]
    cache: tuple[LayerInfo, ...]
    install: tuple[DesiredLayer, ...]

    def lines(self) -> Iterator[str]:
        """The plan as text, a line a layer, steps in the order in which they are done."""
        for action, layers in (
            ("keep", self.keep),
            ("restore", self.restore),
            ("cache", self.cache),
        ):
            for layer in layers:
                yield f"{action} {layer.digest}"
        for desired in self.install:
            yield f"install {desired.digest} from {without_credentials(desired.url)}"


def plan(desired: Iterable[DesiredLayer], installed: Iterable[LayerInfo]) -> Plan:
    """Decide what to do so that the installed layers become the *desired* ones.

    A layer that is desired twice in the same words is desired once.

    Raises:
        DesiredStateError: a layer is desired twice, in contradicting words.
    """
    wanted = _by_digest(desired)
    here = {layer.digest: layer for layer in installed}
    desired_here = [here[digest] for digest in wanted if digest in here]
    return Plan(
        keep=tuple(layer for layer in desired_here if not layer.cached),
        restore=tuple(layer for layer in desired_here if layer.cached),
        cache=tuple(
            layer for layer in here.values() if layer.digest not in wanted and not layer.cached
        ),
        install=tuple(layer for layer in wanted.values() if layer.digest not in here),
    )


def _by_digest(desired: Iterable[DesiredLayer]) -> dict[Digest, DesiredLayer]:
    wanted: dict[Digest, DesiredLayer] = {}
    for layer in desired:
        first = wanted.setdefault(layer.digest, layer)
        if first != layer:
            differing = ", ".join(
                field.name
                for field in fields(layer)
                if getattr(first, field.name) != getattr(layer, field.name)
            )
            raise DesiredStateError(f"{layer.digest} is desired twice, with another {differing}")
    return wanted


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How rows and directories are brought together after a crash or a removal by hand.

    Attributes:
        complete: rows whose directory is there.
        forget: rows whose directory is gone: the row goes.
        remove: directories that no row names: the directory goes.
    """

    complete: tuple[LayerInfo, ...]
    forget: tuple[LayerInfo, ...]
    remove: tuple[Digest, ...]


def reconcile(rows: Iterable[LayerInfo], directories: Iterable[Digest]) -> Reconciliation:
    """Compare the *rows* of the storage with the layer *directories* on disk."""
    on_disk = set(directories)
    rows = tuple(rows)
    named = {row.digest for row in rows}
    return Reconciliation(
        complete=tuple(row for row in rows if row.digest in on_disk),
        forget=tuple(row for row in rows if row.digest not in on_disk),
        remove=tuple(sorted(on_disk - named)),
    )


def expired(
    layers: Iterable[LayerInfo], now: datetime, time_to_live: timedelta
) -> tuple[LayerInfo, ...]:
    """The cached *layers* whose time to live is over, oldest first.

    Subtracting from *now* what may be centuries would overflow; comparing ages cannot.
    """
    return tuple(
        sorted(
            (layer for layer in layers if layer.cached and now - layer.timestamp >= time_to_live),
            key=lambda layer: layer.timestamp,
        )
    )


def oldest_to_free(layers: Iterable[LayerInfo], size: int) -> tuple[LayerInfo, ...]:
    """The oldest cached *layers* that together free at least *size* bytes, or all of them."""
    chosen: list[LayerInfo] = []
    freed = 0
    for layer in sorted((one for one in layers if one.cached), key=lambda one: one.timestamp):
        if freed >= size:
            break
        chosen.append(layer)
        freed += layer.size
    return tuple(chosen)
