"""Indexes of layers that another program installed.

The manager of Aos leaves the marker files of whiteouts beside the devices and attributes that it
makes of them; an overlay shows them. They can be removed before the index is made.

Other users may change the layer meanwhile, so it is walked by ``directories``. What they remove is
left out; a file that changes while it is read is an error, since no index could describe it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Final

from layermanager.directories import MAX_PATH_BYTES, Directories, NotRegularError, Place, kind_of
from layermanager.errors import StoreError
from layermanager.steps import Step
from layermanager.unpack.fields import OPAQUE_MARKER, WHITEOUT_PREFIX, shown
from layermanager.unpack.index import (
    Attributes,
    IndexWriter,
    device_keywords,
    file_keywords,
    link_keywords,
)
from layermanager.xattrs import SET_BY_KERNEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.cancellation import Cancellation
    from layermanager.directories import File
    from layermanager.steps import OnStep

_LOGGER: Final = logging.getLogger(__name__)

_OPAQUE_XATTR: Final = b"trusted.overlay.opaque"
_READ_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 512
"""What ``st_blocks`` counts, whatever the file system's blocks are: stat(2)."""


def write_index(root: int, index: int, cancellation: Cancellation, on_step: OnStep) -> int:
    """Write the index of the tree below *root* to *index*; return how many bytes it has on disk.

    Args:
        root: a descriptor of the layer's directory.
        index: a descriptor of an empty file.
        cancellation: ends it early.
        on_step: is told of each change of the disk before it is made.

    Raises:
        CancelledError: the cancellation was called.
        StoreError: something in the tree is no part of any layer, or changed while it was read.
        OSError: it cannot be read, or the index not be written.
    """
    on_step(Step.WRITE_INDEX)
    writer = IndexWriter(index)
    first_paths: dict[tuple[int, int], bytes] = {}
    size = 0
    with closing(Directories(root)) as directories:
        for file in directories.files(_refuse_unreadable):
            cancellation.check()
            inode = file.state.st_dev, file.state.st_ino
            first = first_paths.get(inode)
            if first is not None:
                writer.add_hard_link(file.path, first)
                continue
            try:
                _add(writer, file, cancellation)
            except FileNotFoundError:
                continue  # others removed it meanwhile
            if not stat.S_ISDIR(file.state.st_mode) and file.state.st_nlink > 1:
                first_paths[inode] = file.path
            size += file.state.st_blocks * _BLOCK_BYTES
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
        for file in directories.files(_refuse_unreadable):
            cancellation.check()
            if stat.S_ISDIR(file.state.st_mode):
                path = b"" if file.path == b"." else file.path
                removed += _remove_markers_in(directories, path, on_step)
    return removed


def _remove_markers_in(directories: Directories, path: bytes, on_step: OnStep) -> int:
    descriptor = directories.open(path)
    if descriptor is None:
        return 0
    before = os.fstat(descriptor)
    names = directories.names(path) or ()
    markers = [name for name in names if name.startswith(WHITEOUT_PREFIX)]
    if not markers:
        return 0
    is_opaque = _is_opaque(descriptor)
    states = _states(descriptor, names)
    devices = {name for name, state in states.items() if _is_whiteout(state)}
    removable = []
    for name in markers:
        if name not in states or stat.S_ISDIR(states[name].st_mode):
            continue  # which is no marker
        is_done = name in devices or name.removeprefix(WHITEOUT_PREFIX) in devices
        if is_done or (name == OPAQUE_MARKER and is_opaque):
            removable.append(name)
        else:
            shown = os.fsdecode(os.path.join(path, name))  # noqa: PTH118 - names are bytes
            _LOGGER.warning("%s is kept: what it stands for was not made", shown)
    if not removable:
        return 0
    on_step(Step.REMOVE_MARKERS)
    removed = sum(_unlink(name, descriptor) for name in removable)
    os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
    return removed


def _states(directory: int, names: Sequence[bytes]) -> dict[bytes, os.stat_result]:
    places = {name: Place(directory, name).state() for name in names}
    return {name: state for name, state in places.items() if state is not None}


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _unlink(name: bytes, directory: int) -> bool:
    """Remove a file; return whether it was there, and no directory had taken its place."""
    try:
        os.unlink(name, dir_fd=directory)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def _is_whiteout(state: os.stat_result) -> bool:
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == 0


def _refuse_unreadable(path: bytes, error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return  # others removed it meanwhile
    if error.errno == errno.EXDEV:
        raise StoreError(
            f"{os.fsdecode(path)}: hidden by a mounted file system; unmount it, then adopt again"
        ) from error
    if error.errno == errno.ENAMETOOLONG:
        raise StoreError(
            f"{shown(path)}: path longer than {MAX_PATH_BYTES} bytes; remove it, then adopt again"
        ) from error
    raise error


def _add(writer: IndexWriter, file: File, cancellation: Cancellation) -> None:
    state, kind = file.state, kind_of(file.state)
    keywords = b""
    match kind:
        case "file":
            keywords = file_keywords(state.st_size, _hash(file, cancellation))
        case "link":
            keywords = link_keywords(_link(file))
        case "char" | "block":
            keywords = device_keywords((os.major(state.st_rdev), os.minor(state.st_rdev)))
        case "socket":
            raise StoreError(f"{os.fsdecode(file.path)}: a socket is no part of a layer; remove it")
    xattrs = {
        name: value for name, value in file.place.xattrs().items() if name not in SET_BY_KERNEL
    }
    owner = state.st_uid, state.st_gid
    attributes = Attributes(stat.S_IMODE(state.st_mode), owner, state.st_mtime_ns, xattrs)
    writer.add(file.path, kind.encode(), attributes, keywords)


def _link(file: File) -> bytes:
    try:
        return file.place.link()
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is no symlink any more
            raise _changed(file) from error
        raise


def _hash(file: File, cancellation: Cancellation) -> str:
    """Hash a file that stays as it is meanwhile; one that grows is read to its former size only."""
    digest = hashlib.sha256()
    left = file.state.st_size
    try:
        descriptor = file.place.open()
    except NotRegularError as error:
        raise _changed(file) from error
    with os.fdopen(descriptor, "rb", buffering=0) as content:
        if _version(os.fstat(descriptor)) != _version(file.state):
            raise _changed(file)
        while left and (chunk := content.read(min(left, _READ_BYTES))):
            cancellation.check()
            digest.update(chunk)
            left -= len(chunk)
        if left or _version(os.fstat(descriptor)) != _version(file.state):
            raise _changed(file)
    return digest.hexdigest()


def _version(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _changed(file: File) -> StoreError:
    return StoreError(
        f"{os.fsdecode(file.path)}: changed while it was read; stop what writes to the layer, "
        "then adopt again"
    )
