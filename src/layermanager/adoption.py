"""Layers that another program unpacked: what they are, noted as of those that we unpack.

The manager of Aos leaves the marker files of whiteouts beside the devices and attributes that it
makes of them; an overlay shows them. They can be removed before the index is made.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.directories import Directories, kind_of
from layermanager.errors import StoreError
from layermanager.steps import Step
from layermanager.unpack.fields import OPAQUE_MARKER, WHITEOUT_PREFIX
from layermanager.unpack.index import (
    Attributes,
    IndexWriter,
    device_keywords,
    file_keywords,
    link_keywords,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.cancellation import Cancellation
    from layermanager.directories import Place
    from layermanager.steps import OnStep

_LOGGER: Final = logging.getLogger(__name__)

_OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_READ_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 512
"""What ``st_blocks`` counts, whatever the file system's blocks are: stat(2)."""


@dataclass(frozen=True, slots=True)
class _File:
    path: bytes
    place: Place
    state: os.stat_result


def write_index(root: int, index: int, cancellation: Cancellation, on_step: OnStep) -> int:
    """Write the index of the tree below *root* to *index*; return how many bytes it has on disk.

    Args:
        root: a descriptor of the layer's directory.
        index: a descriptor of an empty file.
        cancellation: ends it early.
        on_step: is told of each change of the disk before it is made.

    Raises:
        CancelledError: the cancellation was called.
        StoreError: something in the tree is no part of any layer.
        OSError: it cannot be read, or the index not be written.
    """
    on_step(Step.WRITE_INDEX)
    writer = IndexWriter(index)
    first_paths: dict[tuple[int, int], bytes] = {}
    size = 0
    with closing(Directories(root)) as directories:
        for file in _files(directories, cancellation):
            if not stat.S_ISDIR(file.state.st_mode) and file.state.st_nlink > 1:
                inode = file.state.st_dev, file.state.st_ino
                first = first_paths.setdefault(inode, file.path)
                if first != file.path:
                    writer.add_hard_link(file.path, first)
                    continue
            size += file.state.st_blocks * _BLOCK_BYTES
            _add(writer, file, cancellation)
    writer.finish()
    return size


def remove_markers(root: int, cancellation: Cancellation, on_step: OnStep) -> int:
    """Remove the marker files of whiteouts that are done, below *root*; return how many.

    A marker goes where what it stands for is there: the device 0:0 beside it, or the attribute of
    its directory. So does a device whose own name is a marker's, which no archive can mean. The
    directories keep their times. A marker without what it stands for is kept, and logged.

    Raises:
        CancelledError: the cancellation was called; it can be gone on with.
        OSError: it cannot be read or changed.
    """
    removed = 0
    with closing(Directories(root)) as directories:
        for file in _files(directories, cancellation):
            if stat.S_ISDIR(file.state.st_mode):
                path = b"" if file.path == b"." else file.path
                removed += _remove_markers_in(directories, path, file, on_step)
    return removed


def _remove_markers_in(
    directories: Directories, path: bytes, directory: _File, on_step: OnStep
) -> int:
    descriptor = directories.open(path)
    names = directories.names(path)
    if descriptor is None or names is None:
        return 0
    markers = [name for name in names if name.startswith(WHITEOUT_PREFIX)]
    if not markers:
        return 0
    is_opaque = directory.place.xattrs().get(_OPAQUE_XATTR) == b"y"
    states = {name: os.stat(name, dir_fd=descriptor, follow_symlinks=False) for name in names}
    devices = {name for name, state in states.items() if _is_whiteout(state)}
    removable = []
    for name in markers:
        if stat.S_ISDIR(states[name].st_mode):
            continue  # which is no marker
        is_done = name in devices or name.removeprefix(WHITEOUT_PREFIX) in devices
        if is_done or (name == OPAQUE_MARKER and is_opaque):
            removable.append(name)
        else:
            shown = os.fsdecode(os.path.join(path, name))  # noqa: PTH118 - names are bytes
            _LOGGER.warning("%s is kept: what it stands for was not made", shown)
    if removable:
        on_step(Step.REMOVE_MARKERS)
    for name in removable:
        os.unlink(name, dir_fd=descriptor)
    if removable:
        times = directory.state.st_atime_ns, directory.state.st_mtime_ns
        os.utime(descriptor, ns=times)
    return len(removable)


def _is_whiteout(state: os.stat_result) -> bool:
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == 0


def _files(directories: Directories, cancellation: Cancellation) -> Iterator[_File]:
    """All files, each directory before what is in it; a place is good until the next."""
    pending = [b"."]
    while pending:
        cancellation.check()
        path = pending.pop()
        place = directories.place_of(path)
        state = place.state() if place else None
        if place is None or state is None:
            continue  # somebody else removed it just now
        yield _File(path, place, state)
        if not stat.S_ISDIR(state.st_mode):
            continue
        above = b"" if path == b"." else path + b"/"
        names = directories.names(above[:-1]) or ()
        pending += [above + name for name in reversed(names)]


def _add(writer: IndexWriter, file: _File, cancellation: Cancellation) -> None:
    state, kind = file.state, kind_of(file.state)
    keywords = b""
    match kind:
        case "file":
            keywords = file_keywords(state.st_size, _hash(file.place, cancellation))
        case "link":
            keywords = link_keywords(file.place.link())
        case "char" | "block":
            keywords = device_keywords((os.major(state.st_rdev), os.minor(state.st_rdev)))
        case "socket":
            raise StoreError(f"{os.fsdecode(file.path)}: a socket is no part of a layer; remove it")
    xattrs = {os.fsencode(name): value for name, value in file.place.xattrs().items()}
    owner = state.st_uid, state.st_gid
    attributes = Attributes(stat.S_IMODE(state.st_mode), owner, state.st_mtime_ns, xattrs)
    writer.add(file.path, kind.encode(), attributes, keywords)


def _hash(place: Place, cancellation: Cancellation) -> str:
    digest = hashlib.sha256()
    with os.fdopen(place.open(), "rb", buffering=0) as content:
        while chunk := content.read(_READ_BYTES):
            cancellation.check()
            digest.update(chunk)
    return digest.hexdigest()
