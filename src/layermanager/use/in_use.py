"""Which layers are in use: by overlays and bind mounts, whoever made them, in any namespace.

A layer in use must not lose a file. What is looked for are mounts that have a layer, or a part of
one, as a lower directory or as their root. Three things tell them:

*the directory* that the path leads to that was given to the overlay is the layer's, or is in it;
*the name* of the layer's directory, the hex digits of its digest, is in a path that leads to no
    directory any more, or that cannot be followed;
*the files* that an overlay shows are the layer's, by their inode numbers (overlayfs.rst, "Inode
    properties"). So are those compared that are in no table of mounts, or whose paths lead nowhere,
    or to layers by symlinks, which may have led to others once.

A path says where a directory was when it was mounted. That is why layers are renamed before the
last look and removed after it: from then on nobody can begin to use them by their path, who did
before is seen, and who is seen loses nothing by a rename: an overlay has the directory itself.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager.directories import Directories as Tree
from layermanager.errors import StoreError
from layermanager.leases import Holder
from layermanager.use.mountinfo import OVERLAY, Mount, lower_directories
from layermanager.use.namespaces import detached_overlays, mount_tables, mounts_seen_by
from layermanager.use.overlay import device_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from layermanager.use.namespaces import DetachedOverlay, MountTable

    Directories: TypeAlias = Mapping[tuple[int, int], str]

# A layer's directory has the name of its digest, in staging and trash with a suffix.
_LAYER_NAME: Final = re.compile(rb"([0-9a-f]{128}|[0-9a-f]{96}|[0-9a-f]{64})(?:\.[0-9a-f]+)?")
_DELETED: Final = b"//deleted"
_INODE_BITS: Final = 0xFFFF_FFFF
_OPEN_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PROCESSES: Final = b"/proc/"
_MOST_LINKS: Final = 40  # as the kernel has it


@dataclass(frozen=True, slots=True)
class Suspect:
    """An overlay whose layers have no names.

    Attributes:
        directory: a path of ours to its root directory; to any of it if it is not mounted.
        holder: what to say of it.
        device: its ``st_dev``, as ``major:minor``.
        is_mounted: whether it is in a table of mounts.
    """

    directory: str
    holder: Holder
    device: str
    is_mounted: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What is mounted at a moment.

    Attributes:
        by_name: who uses a layer, by the hex digits of its digest.
        suspects: who may use any.
        overlays: where each overlay is, by its source.
        detached: the devices of the overlays that are in no table.
        places: where the layers are, by the hex digits of their digests.
    """

    by_name: Mapping[str, Sequence[Holder]]
    suspects: Sequence[Suspect]
    overlays: Mapping[str, Sequence[Holder]]
    detached: frozenset[str]
    places: Mapping[str, Sequence[str]]

    def holders(self, encoded: str) -> tuple[Holder, ...]:
        """Who uses the layer whose digest has these hex digits."""
        shown = (
            suspect.holder
            for suspect in self.suspects
            if any(_shows(suspect, place) for place in self.places.get(encoded, ()))
        )
        return (*self.by_name.get(encoded, ()), *shown)


def look(layers_dir: Path) -> Look:
    """Look at all mounts for those that use layers of *layers_dir*.

    Raises:
        StoreError: it cannot be told what is mounted, or the store cannot be read.
    """
    before = mount_tables()
    while True:
        # What moves from the one to the other, or back, between two looks must be in one of them.
        detached = detached_overlays(before)
        tables = mount_tables()
        found = _look(layers_dir, tables, detached)
        if found is not None and _overlays(tables) == _overlays(before):
            return found
        before = tables


def _look(
    layers_dir: Path, tables: Iterable[MountTable], detached: Iterable[DetachedOverlay]
) -> Look | None:
    """What the *tables* say; None if one could not be looked into, since it is not true any more.

    Its process has ended, or has just moved what it mounted: paths are not what they were then.
    """
    try:
        places = _places(layers_dir)
    except OSError as error:
        raise StoreError(f"cannot tell which layers are in use: {error}") from error
    names = {identity: name for name, identity, _ in places}
    by_name: dict[str, list[Holder]] = defaultdict(list)
    overlays: dict[str, list[Holder]] = defaultdict(list)
    suspects = list(map(_suspect_detached, filter(lambda one: one.directory, detached)))
    seen = set()
    for table in tables:
        paths, users = _Paths(table.root), []
        for mount in table.mounts:
            identity = (mount.number, mount.root, mount.source, mount.options)
            if identity in seen:
                continue  # by another process of the same namespace
            seen.add(identity)
            for name in dict.fromkeys(_layers_of(mount, paths, names)):
                by_name[name].append(_holder(mount, table))
                users.append(mount)
            if mount.kind == OVERLAY:
                overlays[os.fsdecode(mount.source)].append(_holder(mount, table))
                if table.root and paths.are_vague(lower_directories(mount.options), names):
                    suspects.append(_suspect(mount, table, table.root))
        if table.root and not table.root.exists():
            return None
        if table.root and users and not set(users) <= {*mounts_seen_by(table.process)}:
            return None
    return Look(
        by_name=by_name,
        suspects=suspects,
        overlays=overlays,
        detached=frozenset(one.device for one in detached),
        places=_grouped(places),
    )


def _overlays(tables: Iterable[MountTable]) -> set[tuple[str, bytes]]:
    mounts = (mount for table in tables for mount in table.mounts)
    return {(mount.device, mount.source) for mount in mounts if mount.kind == OVERLAY}


def layers_in(path: bytes) -> dict[str, bytes]:
    """The names of the layers on the way of *path*, in staging and trash too, and the way there."""
    components = path.removesuffix(_DELETED).split(b"/")
    return {
        match[1].decode("ascii"): b"/".join(components[: position + 1])
        for position, component in enumerate(components)
        if (match := _LAYER_NAME.fullmatch(component))
    }


def _layers_of(mount: Mount, paths: _Paths, directories: Directories) -> Iterator[str]:
    for name, way in layers_in(mount.root).items():
        if way != mount.root or not paths.is_root_of_another(mount, directories):
            yield name
    if mount.kind != OVERLAY:
        return
    for lower in lower_directories(mount.options):
        yield from paths.layers(lower, directories)


def _places(layers_dir: Path) -> list[tuple[str, tuple[int, int], str]]:
    """Which layer is which directory, and where; those in staging and trash included."""
    found = []
    for parent in _entries(layers_dir):
        for entry in _entries(parent):
            for name in layers_in(os.fsencode(entry.name)):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((name, (status.st_dev, status.st_ino), entry.path))
    return found


def _grouped(places: Iterable[tuple[str, tuple[int, int], str]]) -> Mapping[str, Sequence[str]]:
    paths: dict[str, list[str]] = defaultdict(list)
    for name, _, path in places:
        paths[name].append(path)
    return paths


def _entries(directory: os.PathLike[str]) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()  # staging and trash are for those only who may change the store


class _Paths:
    """Paths as they are seen from below *root*, which may be another namespace's.

    They are followed by hand: a symlink there leads somewhere below that root, not ours, and the
    last part of one that leads to a layer need not be there any more.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = os.fsencode(root) if root else None
        self._known: dict[bytes, bytes] = {b"/": b"/"}

    def layers(self, path: bytes, directories: Directories) -> Iterator[str]:
        """The layers that *path* leads to, or through; or did, as far as its names say so."""
        if not self._can_follow(path):
            yield from layers_in(path)
            return
        resolved = self._resolved(path, _MOST_LINKS)
        ways = {resolved, *layers_in(resolved).values()}
        identities = {way: self._identity(way) for way in ways}
        yield from (directories[one] for one in identities.values() if one and one in directories)
        yield from (name for name, way in layers_in(resolved).items() if identities[way] is None)

    def is_root_of_another(self, mount: Mount, directories: Directories) -> bool:
        """Whether it can be seen that what is mounted is none of *directories*."""
        if not self._can_follow(mount.mount_point):
            return False
        identity = self._identity(mount.mount_point)
        # Something else may be mounted over it.
        is_seen = identity is not None and device_text(identity[0]) == mount.device
        return is_seen and identity not in directories

    def are_vague(self, paths: Iterable[bytes], directories: Directories) -> bool:
        """Whether one of *paths* may have led to a layer when it was used, though not now."""
        return any(self._is_vague(path, directories) for path in paths)

    def _is_vague(self, path: bytes, directories: Directories) -> bool:
        if not self._can_follow(path):
            return True
        resolved = self._resolved(path, _MOST_LINKS)
        if resolved.startswith(_PROCESSES):
            return True  # such as /proc/self/fd/5: it leads elsewhere for whoever looks
        if self._identity(resolved) is None:
            return not layers_in(resolved)
        # A symlink that leads to one layer now may have led to another one.
        return resolved != path and any(self.layers(path, directories))

    def _can_follow(self, path: bytes) -> bool:
        return self._root is not None and path.startswith(b"/")

    def _identity(self, path: bytes) -> tuple[int, int] | None:
        """Which directory is there, where no symlink is on the way; None if there is none."""
        try:
            status = os.lstat((self._root or b"") + path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _resolved(self, path: bytes, links: int) -> bytes:
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            return b"/"
        if path not in self._known:
            directory = self._resolved(parent or b"/", links)
            self._known[path] = self._joined(directory, name, links)
        return self._known[path]

    def _joined(self, directory: bytes, name: bytes, links: int) -> bytes:
        if name == b".":
            return directory
        if name == b"..":
            return directory.rpartition(b"/")[0] or b"/"
        path = directory.rstrip(b"/") + b"/" + name
        if path.startswith(_PROCESSES):
            return path
        try:
            target = os.readlink((self._root or b"") + path)  # noqa: PTH115 - bytes
        except OSError:
            return path  # no symlink, or nothing, or another's secret
        if not links:
            return path
        absolute = target if target.startswith(b"/") else directory + b"/" + target
        return self._resolved(absolute, links - 1)


def _holder(mount: Mount, table: MountTable) -> Holder:
    place = os.fsdecode(mount.mount_point)
    kind = "the overlay" if mount.kind == OVERLAY else "the bind mount"
    return Holder(
        f"{kind} on {place}, which process {table.process} sees",
        mount_point=place,
        process=table.process,
    )


def _suspect(mount: Mount, table: MountTable, root: Path) -> Suspect:
    directory = str(root) + os.fsdecode(mount.mount_point)
    return Suspect(directory, _holder(mount, table), mount.device, is_mounted=True)


def _suspect_detached(detached: DetachedOverlay) -> Suspect:
    holder = Holder(
        f"an unmounted overlay, of which process {detached.process} has a directory open",
        process=detached.process,
    )
    return Suspect(detached.directory or "", holder, detached.device, is_mounted=False)


def _shows(suspect: Suspect, layer: str) -> bool:
    """Whether the overlay shows a file of *layer*, at its place."""
    with ExitStack() as stack:
        try:
            directory = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False  # it is gone
        stack.callback(os.close, directory)
        root = _root_by_anybody(suspect, stack)
        if root is None:
            return False  # it is gone, too, or another one has its place
        files = stack.enter_context(closing(Tree(directory))).files(_pass_over)
        return any(
            _is_same(file.state, f"{root}/{os.fsdecode(file.path)}")
            for file in files
            if not stat.S_ISDIR(file.state.st_mode)
        )


def _pass_over(_: bytes, __: OSError) -> None:
    """Compare the other files: one directory that cannot be read, or is hidden, proves nothing."""


def _root_by_anybody(suspect: Suspect, stack: ExitStack) -> str | None:
    """The root directory of an overlay, as a path; None if nobody sees it any more.

    The process by which it was found may have ended since then, and others may see it all the same.
    """
    tried = set()
    candidates = [suspect]
    while candidates:
        candidate = candidates.pop()
        try:
            return _root_of(candidate, stack)
        except OSError:
            tried.add(candidate.holder.process)
            candidates = [one for one in _found_again(suspect) if one.holder.process not in tried]
    return None


def _found_again(suspect: Suspect) -> Iterator[Suspect]:
    """The same overlay, as all see it who see it now."""
    tables = mount_tables()
    for table in tables:
        for mount in table.mounts:
            if table.root and mount.kind == OVERLAY and mount.device == suspect.device:
                yield _suspect(mount, table, table.root)
    for detached in detached_overlays(tables):
        if detached.directory and detached.device == suspect.device:
            yield _suspect_detached(detached)


def _root_of(suspect: Suspect, stack: ExitStack) -> str:
    """The root directory of an overlay, as a path.

    Of one that is mounted nothing is held open: who unmounts it is not to be told that it is busy.

    Raises:
        OSError: the overlay is not there any more.
    """
    if suspect.is_mounted:
        _require_device(Path(suspect.directory).stat(), suspect)
        return suspect.directory
    current = os.open(suspect.directory, _OPEN_PATH)
    stack.callback(os.close, current)
    _require_device(os.fstat(current), suspect)
    while True:
        parent = os.open("..", _OPEN_PATH, dir_fd=current)
        stack.callback(os.close, parent)
        status, below = os.fstat(parent), os.fstat(current)
        if status.st_dev != below.st_dev or status.st_ino == below.st_ino:
            return f"/proc/self/fd/{current}"
        current = parent


def _require_device(status: os.stat_result, suspect: Suspect) -> None:
    if device_text(status.st_dev) != suspect.device:
        raise FileNotFoundError(suspect.directory)


def _is_same(own: os.stat_result, path: str) -> bool:
    """Return whether *path* shows the file of a layer whose state is *own*."""
    try:
        shown = os.lstat(path)
    except OSError:
        return False
    # With the option xino the upper bits say which layer it is from.
    return (shown.st_ino ^ own.st_ino) & _INODE_BITS == 0 and (
        (shown.st_mode, shown.st_size, shown.st_mtime_ns)
        == (own.st_mode, own.st_size, own.st_mtime_ns)
    )
