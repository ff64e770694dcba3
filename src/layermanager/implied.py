"""Directories that the layers of a stack have without listing them, and what they should be.

A layer that holds ``etc/motd`` has a directory ``etc``, also where its archive lists none. Such an
*implied* directory was made with attributes that no archive chose, and in a stack it hides those
of the layers below. Layers are shared, so the right attributes belong to the stack: one more layer
on top of it holds these directories as the layers below define them.

The rule is that of tools that apply one layer after another to one tree: an implied directory
keeps what the nearest layer below lists of it. What lies between may take that away, as it takes
away the directory: a whiteout or another file in the place of it, or of a directory that it is in,
and an opaque directory that it is in.

The same layer makes up for a lack of overlayfs. It leaves out the whiteouts when it lists a
directory that several layers have, but not of one that a single layer has: there they show as files
that cannot be opened. So that layer has such a directory, too.

No I/O: layers are what their indexes say. An index may lie, but only about the attributes of
directories, and only to those who mount its layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.unpack.fields import WHITEOUT_PREFIX
from layermanager.xattrs import OVERLAY_PREFIXES, SELINUX_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from layermanager.unpack.index import IndexEntry, Occurrence

_ROOT: Final = b"."
_OPAQUE_MARKS: Final = tuple(prefix + b"opaque" for prefix in OVERLAY_PREFIXES)


@dataclass(frozen=True, slots=True)
class MergedDirectory:
    """A directory as a stack of layers should show it.

    Attributes:
        path: relative to the root of the stack, which is ``.``.
        mode: permission bits with setuid, setgid and sticky.
        owner: user and group.
        mtime_ns: modification time, nanoseconds since 1970.
        xattrs: extended attributes, but for those that are overlayfs's or the host's.
        is_listed: whether a layer lists it, or has to. Otherwise it is what the layers show anyhow,
            and only leads to others.
    """

    path: bytes
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]
    is_listed: bool


class _Node:
    """A directory that is seen in the stack so far.

    Attributes:
        children: the paths of the directories in it.
        uppermost: what the uppermost layer that has it says of it.
        listed: what the uppermost layer that lists it says of it.
        layers: how many layers are merged in it.
        has_whiteouts: whether any of these has whiteouts in it.
    """

    __slots__ = ("children", "has_whiteouts", "layers", "listed", "uppermost")

    def __init__(self, entry: IndexEntry) -> None:
        self.children: set[bytes] = set()
        self.uppermost = entry
        self.listed: IndexEntry | None = None
        self.layers = 0
        self.has_whiteouts = False

    def is_wrong(self) -> bool:
        """Return whether it shows other attributes or other names than it should."""
        return self.shows_whiteouts or self._has_wrong_attributes()

    @property
    def shows_whiteouts(self) -> bool:
        """Whether overlayfs lists its whiteouts, since it has nothing to merge."""
        return self.has_whiteouts and self.layers == 1

    def _has_wrong_attributes(self) -> bool:
        if self.listed is None or self.listed is self.uppermost:
            return False
        return _attributes(self.listed) != _attributes(self.uppermost)

    def merged(self) -> MergedDirectory:
        """The directory as it should be."""
        entry = self.listed or self.uppermost
        mode, owner, mtime_ns, xattrs = _attributes(entry)
        return MergedDirectory(
            entry.path,
            mode,
            owner,
            mtime_ns,
            xattrs,
            is_listed=self.listed is not None or self.shows_whiteouts,
        )


class Stack:
    """The directories that are seen in a stack of layers, which are added from below.

    Attributes:
        visible: number of layers that a mount needs: not those below an opaque root.
    """

    def __init__(self) -> None:
        self.visible = 0
        self._nodes: dict[bytes, _Node] = {}

    def add(self, layer: Iterable[Occurrence]) -> None:
        """Put a layer on top; where it cannot be read to its end, nothing is changed."""
        hidden, directories, with_whiteouts = [], [], set()
        for path, directory, is_whiteout in layer:
            if directory is None:
                if path in self._nodes:
                    hidden.append(path)
                if is_whiteout:
                    with_whiteouts.add(_parent(path))
            elif not path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
                directories.append(directory)
        self.visible += 1
        self._hide(hidden, directories)
        for directory in directories:
            self._put(directory)
        for path in with_whiteouts & self._nodes.keys():
            self._nodes[path].has_whiteouts = True

    def _hide(self, paths: Iterable[bytes], directories: Iterable[IndexEntry]) -> None:
        """Remove what a layer hides of those below, by *paths* and by opaque *directories*."""
        for path in paths:
            self._remove(path)
        for directory in directories:
            if any(directory.xattrs.get(mark) == b"y" for mark in _OPAQUE_MARKS):
                self._restart(directory.path)
                if directory.path == _ROOT:
                    self.visible = 1

    def add_unknown(self) -> None:
        """Put a layer on top without an index; it may hide anything of those below."""
        self.visible += 1
        self._nodes.clear()

    def implied(self) -> tuple[MergedDirectory, ...]:
        """Return the directories that show other attributes or names than they should.

        With them come those that they are in, each before what is in it. There are none where the
        layers show what they should.
        """
        needed: set[bytes] = set()
        for path, node in self._nodes.items():
            if node.is_wrong():
                for one in _with_parents(path):
                    if one in needed:
                        break
                    needed.add(one)
        return tuple(self._nodes[path].merged() for path in sorted(needed, key=_order))

    def _put(self, entry: IndexEntry) -> None:
        node = self._nodes.get(entry.path)
        if node is None:
            if entry.path != _ROOT:
                parent = self._nodes.get(_parent(entry.path))
                if parent is None:
                    return  # no layer has that; making what is missing would multiply a lie
                parent.children.add(entry.path)
            node = self._nodes[entry.path] = _Node(entry)
        node.uppermost = entry
        node.layers += 1
        if not entry.is_implied:
            node.listed = entry

    def _remove(self, path: bytes) -> None:
        if path not in self._nodes:
            return  # with one that it is in
        if path != _ROOT:
            self._nodes[_parent(path)].children.discard(path)
        self._remove_children(path)
        del self._nodes[path]

    def _restart(self, path: bytes) -> None:
        """Hide what the layers below have in a directory; what they say of itself stays."""
        self._remove_children(path)
        node = self._nodes.get(path)
        if node is not None:
            node.layers = 0
            node.has_whiteouts = False

    def _remove_children(self, path: bytes) -> None:
        node = self._nodes.get(path)
        pending = [node] if node else []
        while pending:
            parent = pending.pop()
            pending += [self._nodes.pop(child) for child in parent.children]
            parent.children.clear()


def _attributes(entry: IndexEntry) -> tuple[int, tuple[int, int], int, Mapping[bytes, bytes]]:
    return entry.mode, entry.owner, entry.mtime_ns, _kept(entry.xattrs)


def _kept(xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return the attributes that an archive can give a directory, and that are not the host's."""
    return {
        name: value
        for name, value in xattrs.items()
        if name != SELINUX_LABEL and not name.startswith(OVERLAY_PREFIXES) and _fits_in_a_tar(name)
    }


def _fits_in_a_tar(name: bytes) -> bool:
    """Whether *name* can be a part of a PAX keyword; a layer of another program may have others."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"=" not in name


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or _ROOT


def _with_parents(path: bytes) -> Iterator[bytes]:
    while path != _ROOT:
        yield path
        path = _parent(path)
    yield _ROOT


def _order(path: bytes) -> list[bytes]:
    return [] if path == _ROOT else path.split(b"/")
