"""Directories that the layers of a stack have without listing them, and what they should be.

A layer that holds ``etc/motd`` has a directory ``etc``, also where its archive lists none. Such an
*implied* directory was made with attributes that no archive chose, and in a stack it hides those
of the layers below. Layers are shared, so the right attributes belong to the stack: one more layer
on top of it holds these directories as the layers below define them.

The rule is that of tools that apply one layer after another to one tree: an implied directory
keeps what the nearest layer below lists of it. What lies between may take that away, as it takes
away the directory: a whiteout or another file in the place of it, or of a directory that it is in,
and an opaque directory that it is in.

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
        is_listed: whether a layer lists it. Otherwise it is what the layers show anyhow, and only
            leads to others.
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
    """

    __slots__ = ("children", "listed", "uppermost")

    def __init__(self, entry: IndexEntry) -> None:
        self.children: set[bytes] = set()
        self.uppermost = entry
        self.listed: IndexEntry | None = None

    def is_wrong(self) -> bool:
        """Whether it shows other attributes than it should."""
        if self.listed is None or self.listed is self.uppermost:
            return False
        return _attributes(self.listed) != _attributes(self.uppermost)

    def merged(self) -> MergedDirectory:
        """The directory as it should be."""
        entry = self.listed or self.uppermost
        mode, owner, mtime_ns, xattrs = _attributes(entry)
        return MergedDirectory(
            entry.path, mode, owner, mtime_ns, xattrs, is_listed=self.listed is not None
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
        hidden, directories = [], []
        for path, directory in layer:
            if directory is None:
                if path in self._nodes:
                    hidden.append(path)
            elif not path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
                directories.append(directory)
        self.visible += 1
        # First what the layer hides of those below, and then what it has itself.
        for path in hidden:
            self._remove(path)
        for directory in directories:
            if any(directory.xattrs.get(mark) == b"y" for mark in _OPAQUE_MARKS):
                self._remove_children(directory.path)
                if directory.path == _ROOT:
                    self.visible = 1
        for directory in directories:
            self._put(directory)

    def add_unknown(self) -> None:
        """Put a layer on top without an index; it may hide anything of those below."""
        self.visible += 1
        self._nodes.clear()

    def implied(self) -> tuple[MergedDirectory, ...]:
        """Return the directories that show other attributes than they should.

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
        if not entry.is_implied:
            node.listed = entry

    def _remove(self, path: bytes) -> None:
        if path not in self._nodes:
            return  # with one that it is in
        if path != _ROOT:
            self._nodes[_parent(path)].children.discard(path)
        self._remove_children(path)
        del self._nodes[path]

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
