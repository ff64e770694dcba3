"""What other users' mounts hold, found out by touching them.

A file system of another user may answer no request, for ever. Whatever follows a path of another
process, or asks for a file that another process mounted or has open, is in this module. It runs in
a process of its own (``inspector``), which can be given up.

Overlays that are vague are compared with layers: their paths say nothing certain. Such are

- paths that lead nowhere, or to a layer by a symlink that may have led to another one;
- an empty directory, which may have been a mount point;
- a stack: the overlay has another overlay below it, which may have been unmounted since then. The
  kernel stacks no more than two, so an overlay that it puts a further one on is no stack.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.directories import Directories
from layermanager.use.layer_places import layer_below, layer_places, layers_in
from layermanager.use.mountinfo import OVERLAY, lower_directories
from layermanager.use.namespaces import detached_files, mount_tables
from layermanager.use.overlay import device_text, with_own_directory
from layermanager.use.paths import PROCESSES, ForeignPaths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Paths are texts here, some to files of processes.
# ruff: noqa: PTH110, PTH115, PTH116

_OPEN_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INODE_BITS: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class OverlayView:
    """An overlay, as one process sees it.

    Attributes:
        device: its ``st_dev``, as ``major:minor``.
        directory: where it is mounted, as the process sees it; if it is mounted nowhere, a path of
            ours to any directory of it.
        process: the directory of the process in ``/proc``; empty if it is mounted nowhere.
        lower: its lower directories, as they were given to it.
    """

    device: str
    directory: str
    process: str = ""
    lower: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The root directory of the process, by a path of ours."""
        return f"{self.process}/root"

    @property
    def path(self) -> str:
        """A path of ours to ``directory``."""
        return self.root + self.directory if self.process else self.directory


@dataclass(frozen=True, slots=True)
class Examined:
    """What the paths of an overlay tell.

    Attributes:
        layers: the layers that they lead to, by the hex digits of their digests.
        is_vague: whether it may have others, too.
        is_stacked: whether another overlay may be below it.
    """

    layers: tuple[str, ...]
    is_vague: bool
    is_stacked: bool


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What a process has open on a mount that is in no table.

    Attributes:
        device: its ``st_dev``, as ``major:minor``.
        is_overlay: whether it is on an overlay.
        is_directory: whether it is a directory.
        layers: the layer that the directory is, or is in, by the hex digits of its digest.
    """

    device: str
    is_overlay: bool
    is_directory: bool
    layers: tuple[str, ...] = ()


class Comparison(enum.StrEnum):
    """What comparing an overlay with a layer has told."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    GONE = "gone"
    """No process sees the overlay any more."""

    SILENT = "silent"
    """The overlay does not answer."""


class Inspection:
    """Looks at what mounts hold of the layers in *layers_dir*, which are where they are now."""

    def __init__(self, layers_dir: Path) -> None:
        self._layers_dir = layers_dir
        places = layer_places(layers_dir)
        self._names = {identity: name for name, identity, _ in places}
        self._stacked: dict[str, bool] = {}  # by device; an overlay stays what it is

    def examine(self, view: OverlayView) -> Examined:
        """Follow the lower directories of a mounted overlay.

        If no process sees the overlay any more it uses no layer.
        """
        for seen in filter(_is_there, _by_all(view)):
            paths = ForeignPaths(os.fsencode(seen.root))
            lower = [os.fsencode(one) for one in seen.lower]
            found = [name for one in lower for name in self._layers(one, paths)]
            is_stacked = self._may_be_stacked(seen)
            is_vague = is_stacked or any(self._is_vague(one, paths) for one in lower)
            return Examined(tuple(dict.fromkeys(found)), is_vague, is_stacked)
        return Examined((), is_vague=False, is_stacked=False)

    def identify(self, path: str) -> OpenedFile | None:
        """Tell what a process has open, by its *path* in ``/proc``; None if it was closed."""
        with ExitStack() as stack:
            try:
                descriptor = _open(path, os.O_PATH | os.O_CLOEXEC, stack)
                status = os.fstat(descriptor)
                is_overlay = linux.file_system_magic(os.fsencode(path)) == linux.OVERLAYFS_MAGIC
            except OSError:
                return None
            is_directory = stat.S_ISDIR(status.st_mode)
            layers = self._layers_around(descriptor, status, stack) if is_directory else ()
            return OpenedFile(device_text(status.st_dev), is_overlay, is_directory, tuple(layers))

    def _layers(self, path: bytes, paths: ForeignPaths) -> Iterator[str]:
        """Return the layers that *path* leads to, or through; or did, as far as its names say."""
        if not path.startswith(b"/"):
            yield from layers_in(path)
            return
        resolved = paths.resolve(path)
        named = layers_in(resolved)
        for way in {resolved, *named.values()}:
            identity = paths.identity(way)
            if identity in self._names:
                yield self._names[identity]
            elif identity is None:
                yield from (name for name, one in named.items() if one == way)

    def _is_vague(self, path: bytes, paths: ForeignPaths) -> bool:
        """Return whether *path* may have led to a layer when it was used, though not now."""
        if not path.startswith(b"/"):
            return True
        resolved = paths.resolve(path)
        if resolved.startswith(PROCESSES):
            return True  # such as /proc/self/fd/5: it leads elsewhere for each process
        if paths.identity(resolved) is None:
            return not layers_in(resolved)
        # A symlink that leads to one layer now may have led to another one.
        if resolved != path and any(self._layers(path, paths)):
            return True
        return paths.is_empty(resolved)

    def _may_be_stacked(self, view: OverlayView) -> bool:
        """Return whether the kernel refuses to put another overlay on top of the overlay.

        If the layers are on an overlay themselves, none of theirs can have another one on top.
        """
        if view.device not in self._stacked:
            self._stacked[view.device] = not self._layers_are_on_overlay and not _can_stack(view)
        return self._stacked[view.device]

    @cached_property
    def _layers_are_on_overlay(self) -> bool:
        return linux.file_system_magic(os.fsencode(self._layers_dir)) == linux.OVERLAYFS_MAGIC

    def _layers_around(
        self, directory: int, status: os.stat_result, stack: ExitStack
    ) -> Iterator[str]:
        """Return the layer that *directory* is, or is in, by whatever mount it was opened."""
        identity = status.st_dev, status.st_ino
        if identity in self._names:
            yield self._names[identity]
            return
        if status.st_dev not in {device for device, _ in self._names}:
            return
        with suppress(OSError):  # no file handles on this file system, or it was removed
            mount = _open(self._layers_dir, _OPEN_DIRECTORY, stack)
            again = linux.open_elsewhere(directory, mount)
            stack.callback(os.close, again)
            path = os.fsencode(os.readlink(f"/proc/self/fd/{again}"))
            above = os.fsencode(os.path.realpath(self._layers_dir)) + b"/"
            if path.startswith(above):
                yield from layer_below(path.removeprefix(above))


def compare(view: OverlayView, places: Sequence[str]) -> Comparison:
    """Return whether an overlay shows a file of a layer that is at one of *places*."""
    with ExitStack() as stack:
        root = _root_by_all(view, stack)
        if root is None:
            return Comparison.GONE
        is_shown = any(_shows(root, place) for place in places)
        return Comparison.SHOWN if is_shown else Comparison.NOT_SHOWN


def _is_there(view: OverlayView) -> bool:
    return bool(view.process) and os.path.exists(view.process)


def _can_stack(view: OverlayView) -> bool:
    """Return whether the kernel puts another overlay on top of the overlay.

    If it cannot be tried, as without the right to mount, the answer is no.
    """
    try:
        _try_to_stack(view)
    except OSError:
        return False
    return True


def _try_to_stack(view: OverlayView) -> None:
    """Make an overlay on top of the overlay, mounted nowhere, and have it go again.

    Raises:
        OSError: the kernel refuses, or it cannot be tried.
    """
    with ExitStack() as stack:
        namespace = _open(f"{view.process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, stack)
        # There need be no /proc inside, and the numbers of descriptors make short names.
        descriptors = _open("/proc/self/fd", _OPEN_PATH, stack)
        lower = _open(view.path, _OPEN_PATH, stack), _open_beside(view, stack)
        _require_device(os.fstat(lower[0]), view)

        def make() -> None:
            linux.enter_namespace(namespace, linux.CLONE_NEWNS)
            os.fchdir(descriptors)
            context = _closed_by(stack, linux.open_file_system(OVERLAY))
            for key in (b"xino", b"index", b"nfs_export", b"metacopy"):
                linux.set_string(context, key, b"off")
            linux.set_string(context, b"lowerdir", b"%d:%d" % lower)
            linux.create_file_system(context)

        with_own_directory(make)


def _open_beside(view: OverlayView, stack: ExitStack) -> int:
    """Open a directory of the same namespace that is on no overlay.

    Raises:
        OSError: there is none at the usual places.
    """
    for name in ("", "dev", "run", "tmp"):
        with suppress(OSError):
            path = f"{view.root}/{name}"
            if linux.file_system_magic(os.fsencode(path)) != linux.OVERLAYFS_MAGIC:
                return _open(path, _OPEN_PATH, stack)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), view.root)


def _open(path: str | Path, flags: int, stack: ExitStack) -> int:
    return _closed_by(stack, os.open(path, flags))


def _closed_by(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


# Comparing


def _shows(root: str, layer: str) -> bool:
    """Return whether a file of *layer* is shown below *root*, at its place."""
    with ExitStack() as stack:
        try:
            directory = _open(layer, _OPEN_DIRECTORY, stack)
        except FileNotFoundError:
            return False
        files = stack.enter_context(closing(Directories(directory))).files(_pass_over)
        return any(
            _is_same(file.state, f"{root}/{os.fsdecode(file.path)}")
            for file in files
            if not stat.S_ISDIR(file.state.st_mode)
        )


def _pass_over(_: bytes, __: OSError) -> None:
    """Compare the other files: one directory that cannot be read, or is hidden, proves nothing."""


def _root_by_all(view: OverlayView, stack: ExitStack) -> str | None:
    """Return the root directory of an overlay, as a path; None if no process sees it any more."""
    for seen in _by_all(view):
        with suppress(OSError):
            return _root_of(seen, stack)
    return None


def _by_all(view: OverlayView) -> Iterator[OverlayView]:
    """Return the same overlay, as it was found, and then as all processes see it that see it now.

    The process by which it was found may have ended since then.
    """
    yield view
    tables = mount_tables()
    for table in tables:
        for mount in table.mounts:
            if table.root and mount.kind == OVERLAY and mount.device == view.device:
                lower = tuple(map(os.fsdecode, lower_directories(mount.options)))
                place = os.fsdecode(mount.mount_point)
                yield OverlayView(view.device, place, f"/proc/{table.process}", lower)
    for opened in detached_files(tables):
        yield OverlayView(view.device, opened.path)


def _root_of(view: OverlayView, stack: ExitStack) -> str:
    """Return the root directory of an overlay, as a path.

    Of one that is mounted nothing is held open: who unmounts it is not to be told that it is busy.

    Raises:
        OSError: the overlay is not there any more.
    """
    if view.process:
        _require_device(os.stat(view.path), view)
        return view.path
    current = _open(view.path, _OPEN_PATH, stack)
    _require_device(os.fstat(current), view)
    while True:
        parent = os.open("..", _OPEN_PATH, dir_fd=current)
        stack.callback(os.close, parent)
        status, below = os.fstat(parent), os.fstat(current)
        if status.st_dev != below.st_dev or status.st_ino == below.st_ino:
            return f"/proc/self/fd/{current}"
        current = parent


def _require_device(status: os.stat_result, view: OverlayView) -> None:
    if device_text(status.st_dev) != view.device:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), view.path)


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
