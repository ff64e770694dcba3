"""Which layers are in use: by overlays and bind mounts, whoever made them, in any namespace.

A layer in use must not lose a file. Mounts are looked for that have a layer, or a part of one, as a
lower directory or as their root. A bind mount tells in the table where it is on its file system, so
its place is compared with that of the layers. An overlay only tells by what paths it was made:

*the directory* that such a path leads to is the layer's, or is in it;
*the name* of the layer's directory, the hex digits of its digest, is in a path that leads to no
    directory any more, or that cannot be followed;
*the files* that an overlay shows are the layer's, by their inode numbers (overlayfs.rst, "Inode
    properties"). Overlays are compared with layers where their paths are vague (``inspection``),
    and where they are in no table of mounts.

A path says where a directory was when it was mounted. That is why layers are renamed before the
last look and removed after it: from then on no process can begin to use them by their path. One
that did before is seen, and loses nothing by a rename: an overlay has the directory itself.

Tables are the text of other users. A line that cannot be read counts as use of the layers that it
names, and of no others: otherwise any user could keep all layers. So does an overlay of another
user namespace that does not answer in time. One of our own user namespace counts as use of all
layers then: root made it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

from layermanager.errors import StoreError
from layermanager.leases import Holder
from layermanager.use.inspection import Comparison, OverlayView
from layermanager.use.inspector import Inspector
from layermanager.use.layer_places import layer_places, layers_in, layers_named
from layermanager.use.mountinfo import OVERLAY, Mount, lower_directories
from layermanager.use.namespaces import UNKNOWN_OWNER, BoundLayers, detached_files, mount_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from layermanager.use.inspection import OpenedFile
    from layermanager.use.namespaces import DetachedFile, MountTable


_A_FILE_IS_OPEN: Final = Holder("an unmounted overlay, of which a process has a file open")
_UNKNOWN: Final = Holder("an unknown mount (/proc does not show this process, so none is seen)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An overlay that may use layers.

    Attributes:
        view: how to look at it.
        holder: what to say of it.
        is_foreign: whether a user without any rights may have made it.
        owner: that user, by number.
    """

    view: OverlayView
    holder: Holder
    is_foreign: bool
    owner: int = UNKNOWN_OWNER


@dataclass(frozen=True, slots=True)
class Suspect:
    """An overlay that may use any layer.

    Attributes:
        candidate: the overlay.
        is_stacked: whether another overlay may be below it.
        is_silent: whether it does not answer, so that it cannot be compared.
    """

    candidate: Candidate
    is_stacked: bool = False
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What looking at the mounts themselves has told.

    Attributes:
        by_name: what uses a layer, by the hex digits of its digest.
        suspects: the overlays that may use any.
    """

    by_name: Mapping[str, Sequence[Holder]]
    suspects: Sequence[Suspect]


class DetachedMounts:
    """What is open on mounts that are in no table, looked at when that is needed.

    Args:
        files: what is open.
        inspector: looks at it.
    """

    def __init__(self, files: Sequence[DetachedFile], inspector: Inspector) -> None:
        self._files = sorted(files, key=lambda file: file.is_foreign)
        self._inspector = inspector

    @cached_property
    def opened(self) -> Sequence[tuple[DetachedFile, OpenedFile]]:
        """What is open, as far as that can be found out in time."""
        asked = [
            (
                file,
                self._inspector.identify(file.path, is_foreign=file.is_foreign, owner=file.owner),
            )
            for file in self._files
        ]
        return [(file, opened) for file, opened in asked if opened is not None]

    @property
    def overlays(self) -> Iterator[tuple[str, Candidate | None]]:
        """The overlays, each once, by device; with a candidate if a directory is open."""
        found: dict[str, Candidate | None] = {}
        for file, opened in self.opened:
            if opened.is_overlay and found.get(opened.device) is None:
                view = OverlayView(opened.device, file.path)
                candidate = Candidate(
                    view, _holder_of_detached(file, "overlay"), file.is_foreign, file.owner
                )
                found[opened.device] = candidate if opened.is_directory else None
        yield from found.items()


class LayerPlaces:
    """Where the layers are, looked at when that is needed.

    Args:
        layers_dir: the layers' directory.
    """

    def __init__(self, layers_dir: Path) -> None:
        self._layers_dir = layers_dir

    def of(self, encoded: str) -> Sequence[str]:
        """Return the paths of the layer whose digest has these hex digits.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._by_name.get(encoded, ())

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        try:
            for name, _, path in layer_places(self._layers_dir):
                found[name].append(path)
        except OSError as error:
            raise StoreError(f"cannot tell which layers are in use: {error}") from error
        return found


@dataclass(frozen=True, slots=True)
class NoMounts:
    """What is mounted where it was not looked, or where that cannot be told.

    Attributes:
        any_layer: what may use any layer.
        overlays: none that is known.
    """

    any_layer: tuple[Holder, ...] = ()
    overlays: ClassVar[Mapping[str, Sequence[Holder]]] = MappingProxyType({})

    def holders(self, _: str) -> tuple[Holder, ...]:
        """Return what may use any layer."""
        return self.any_layer

    def is_lower(self, _: str) -> bool:
        """Return true, since it may be one."""
        return True


UNKNOWN_MOUNTS: Final = NoMounts((_UNKNOWN,))


class Look:
    """What is mounted at a moment. The mounts themselves are looked at when that is needed.

    Attributes:
        overlays: where each overlay is, by its source.

    Args:
        named: what uses a layer, by the hex digits of its digest, as far as tables tell.
        any_layer: what may use any layer.
        overlays: as above.
        candidates: the overlays that are in a table.
        detached: mounts that are in no table.
        places: where the layers are.
        inspector: looks at mounts.
        known: the layers of overlays that need no look, by their devices.
        lower: the paths of the lower directories of all overlays, as they were mounted.
    """

    def __init__(
        self,
        *,
        named: Mapping[str, Sequence[Holder]],
        any_layer: Sequence[Holder],
        overlays: Mapping[str, Sequence[Holder]],
        candidates: Sequence[Candidate],
        detached: DetachedMounts,
        places: LayerPlaces,
        inspector: Inspector,
        known: Mapping[str, Sequence[str]] = MappingProxyType({}),
        lower: frozenset[str] = frozenset(),
    ) -> None:
        self.overlays = overlays
        self._named = named
        self._any_layer = any_layer
        self._candidates = candidates
        self._detached = detached
        self._places = places
        self._inspector = inspector
        self._known = known
        self._lower = lower
        self._gone: set[str] = set()
        self._silent: set[str] = set()

    def knowing(self, layers: Mapping[str, Sequence[str]]) -> Look:
        """Return the same, which need not look at overlays whose *layers* are known.

        Args:
            layers: the layers of overlays, by their devices.
        """
        return Look(
            named=self._named,
            any_layer=self._any_layer,
            overlays=self.overlays,
            candidates=self._candidates,
            detached=self._detached,
            places=self._places,
            inspector=self._inspector,
            known={**self._known, **layers},
            lower=self._lower,
        )

    def is_lower(self, end: str) -> bool:
        """Return whether an overlay has a lower directory whose path had this *end*."""
        return any(path.endswith(end) for path in self._lower)

    def holders(self, encoded: str) -> tuple[Holder, ...]:
        """Return what uses the layer whose digest has these hex digits.

        Raises:
            StoreError: it cannot be told.
        """
        found = self._findings
        holders = (
            *self._any_layer,
            *self._named.get(encoded, ()),
            *found.by_name.get(encoded, ()),
            *(one.candidate.holder for one in found.suspects if self._uses(one, encoded)),
        )
        return tuple(dict.fromkeys(holders))

    def has_detached(self, device: str) -> bool:
        """Return whether anything is open of an overlay with this *device* that is in no table.

        Raises:
            StoreError: it cannot be told.
        """
        return any(device == one for one, _ in self._detached.overlays)

    def has_stacked(self, layers: Iterable[str]) -> bool:
        """Return whether an overlay is on top of another one that has any of these *layers*.

        The lower one is in use, although it may be mounted nowhere.

        Raises:
            StoreError: it cannot be told.
        """
        stacked = [one for one in self._findings.suspects if one.is_stacked]
        return any(self._uses(one, layer) for layer in layers for one in stacked)

    def _uses(self, suspect: Suspect, encoded: str) -> bool:
        if suspect.is_silent:
            return True
        candidate = suspect.candidate
        device = candidate.view.device
        places = self._places.of(encoded)
        if not places or device in self._gone:
            return False
        if device not in self._silent:
            compared = self._inspector.compare(
                candidate.view, places, is_foreign=candidate.is_foreign, owner=candidate.owner
            )
            match compared:
                case Comparison.SHOWN | Comparison.NOT_SHOWN:
                    return compared is Comparison.SHOWN
                case Comparison.GONE:
                    self._gone.add(device)
                    return False
            self._silent.add(device)  # it is not waited for again
        return not candidate.is_foreign

    @cached_property
    def _findings(self) -> Findings:
        """Look at all overlays, first at those that no user without rights can have made."""
        by_name: dict[str, list[Holder]] = defaultdict(list)
        suspects: list[Suspect] = []
        for one in sorted(self._candidates, key=lambda one: one.is_foreign):
            names, suspect = self._examined(one)
            for name in names:
                by_name[name].append(one.holder)
            suspects += filter(None, [suspect])
        for device, detached in self._detached.overlays:
            holder = detached.holder if detached else _A_FILE_IS_OPEN
            for name in self._known.get(device, ()):
                by_name[name].append(holder)
            if detached is not None and device not in self._known:
                suspects.append(Suspect(detached))
        for file, opened in self._detached.opened:
            for name in opened.layers:
                by_name[name].append(_holder_of_detached(file, "bind mount"))
        return Findings(by_name, suspects)

    def _examined(self, candidate: Candidate) -> tuple[Sequence[str], Suspect | None]:
        """Return the layers that an overlay has for sure, and a suspect if it may have others."""
        view = candidate.view
        if view.device in self._known:
            return self._known[view.device], None
        examined = self._inspector.examine(
            view, is_foreign=candidate.is_foreign, owner=candidate.owner
        )
        if examined is None:
            suspect = None if candidate.is_foreign else Suspect(candidate, is_silent=True)
            return _names_in(view.lower), suspect
        suspect = Suspect(candidate, is_stacked=examined.is_stacked) if examined.is_vague else None
        return examined.layers, suspect


def look(layers_dir: Path, inspector: Inspector | None = None) -> Look:
    """Look at all mounts for those that use layers of *layers_dir*.

    Args:
        layers_dir: the layers' directory.
        inspector: looks at mounts; by default one with the usual patience.

    Raises:
        StoreError: it cannot be told what is mounted, or the store cannot be read.
    """
    inspector = inspector or Inspector(layers_dir)
    bound = _bound_layers(layers_dir)
    # What moves from a table to no table meanwhile, or back, is in one of these.
    before = mount_tables(inspector.table_inside, bound)
    detached = detached_files(before)
    after = mount_tables(inspector.table_inside, bound)
    return look_at([*before, *after], detached, layers_dir, inspector, bound)


def look_at(
    tables: Sequence[MountTable],
    detached: Iterable[DetachedFile],
    layers_dir: Path,
    inspector: Inspector,
    bound: BoundLayers | None = None,
) -> Look:
    """Look at what is in *tables*, or *detached*, for use of layers.

    Args:
        tables: the tables.
        detached: what is open on mounts that are in no table.
        layers_dir: the layers' directory.
        inspector: looks at mounts.
        bound: tells which layers are bind mounts; by default those that are in *layers_dir* now.

    Raises:
        StoreError: the store cannot be read.
    """
    layers_dir = layers_dir.absolute()
    bound = bound or _bound_layers(layers_dir)
    named: dict[str, list[Holder]] = defaultdict(list)
    overlays: dict[str, list[Holder]] = defaultdict(list)
    candidates: list[Candidate] = []
    lower_paths: set[str] = set()
    numbers: set[int] = set().union(*(table.numbers for table in tables))
    for mount, table in _mounts_of(tables):
        holder = _holder(mount, table)
        if mount.kind != OVERLAY:
            for name in bound.names(mount):
                named[name].append(holder)
            continue
        overlays[os.fsdecode(mount.source)].append(holder)
        lower = tuple(map(os.fsdecode, lower_directories(mount.options)))
        lower_paths.update(lower)
        if table.root is None:
            for name in _names_in(lower):
                named[name].append(holder)
            continue
        process = f"/proc/{table.process}"
        view = OverlayView(mount.device, os.fsdecode(mount.mount_point), process, lower)
        candidates.append(Candidate(view, holder, table.is_foreign, table.owner))
    for name, holder in _named_by_unreadable_lines(tables):
        named[name].append(holder)
    return Look(
        named=named,
        any_layer=_unreadable_tables(tables),
        overlays=overlays,
        candidates=candidates,
        detached=DetachedMounts([one for one in detached if one.mount not in numbers], inspector),
        places=LayerPlaces(layers_dir),
        inspector=inspector,
        lower=frozenset(lower_paths),
    )


def _bound_layers(layers_dir: Path) -> BoundLayers:
    try:
        return BoundLayers.below(layers_dir)
    except OSError as error:
        raise StoreError(f"cannot tell which layers are in use: {error}") from error


def _mounts_of(tables: Iterable[MountTable]) -> Iterator[tuple[Mount, MountTable]]:
    """Return all mounts, each once, by a process that can be entered if there is one.

    All processes of a namespace see the same.
    """
    seen = set()
    for table in sorted(tables, key=lambda table: table.root is None):
        for mount in table.mounts:
            identity = (mount.number, mount.root, mount.source, mount.options)
            if identity not in seen:
                seen.add(identity)
                yield mount, table


def _names_in(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for path in paths for name in layers_in(os.fsencode(path))))


def _named_by_unreadable_lines(tables: Iterable[MountTable]) -> Iterator[tuple[str, Holder]]:
    seen = set()
    for table in tables:
        for line in table.unreadable:
            if line in seen:
                continue
            seen.add(line)
            what = f"a mount that process {table.process} sees, in a line that cannot be read"
            for name in layers_named(line):
                yield name, Holder(what, process=table.process)


def _unreadable_tables(tables: Iterable[MountTable]) -> list[Holder]:
    return [
        Holder(
            f"process {table.process}, whose mounts cannot be read ({table.failure})",
            process=table.process,
        )
        for table in tables
        if table.failure
    ]


def _holder(mount: Mount, table: MountTable) -> Holder:
    place = os.fsdecode(mount.mount_point)
    kind = "the overlay" if mount.kind == OVERLAY else "the bind mount"
    return Holder(
        f"{kind} on {place}, which process {table.process} sees",
        mount_point=place,
        process=table.process,
    )


def _holder_of_detached(file: DetachedFile, kind: str) -> Holder:
    return Holder(
        f"an unmounted {kind}, of which process {file.process} has a directory open",
        process=file.process,
    )
