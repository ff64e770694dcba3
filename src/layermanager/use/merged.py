"""The directories of a stack of layers that need other attributes, read from their indexes."""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.errors import StoreError
from layermanager.implied import Stack
from layermanager.store import index_path
from layermanager.unpack.index import read_outline
from layermanager.xattrs import ACL_ACCESS, remove_acls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from layermanager.implied import MergedDirectory
    from layermanager.model import Digest, Limits

_LOGGER: Final = logging.getLogger(__name__)
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SUCH_OWNER_HERE: Final = (errno.EPERM, errno.EINVAL)  # the latter: not mapped
_NO_SUCH_XATTR_HERE: Final = (errno.EPERM, errno.EOPNOTSUPP)


def merged_directories(
    layers: Iterable[Digest], index_dir: Path, limits: Limits
) -> tuple[MergedDirectory, ...]:
    """Return what ``Stack.implied`` finds in *layers*, the lowest first.

    A layer without an index, and one whose index is damaged, may have hidden anything.

    Raises:
        StoreError: an index cannot be read, beyond that it is damaged.
    """
    stack = Stack()
    for digest in layers:
        path = index_path(index_dir, digest)
        try:
            with path.open("rb") as file:
                stack.add(read_outline(file, str(path), limits))
        except FileNotFoundError:
            stack.add_unknown()  # another program installed it
        except OSError as error:
            raise StoreError(f"cannot read an index: {error}") from error
        except StoreError as error:
            _LOGGER.warning(
                "directories of layers below %s may get mode 0755: %s; see `check`", digest, error
            )
            stack.add_unknown()
    return stack.implied()


def write_directories(directories: Iterable[MergedDirectory], root: Path) -> None:
    """Make *directories* below the empty directory *root*, as far as this process may.

    Raises:
        OSError: the file system refuses.
    """
    directories = tuple(directories)
    with _opened(root) as descriptor:
        for one in directories:
            if one.path != b".":
                os.mkdir(one.path, stat.S_IRWXU, dir_fd=descriptor)
        # What is in a directory first: making it changes the time of the directory.
        for one in reversed(directories):
            with _opened(one.path, descriptor) as directory:
                _set_attributes(one, directory)


def _set_attributes(one: MergedDirectory, directory: int) -> None:
    remove_acls(directory)  # what the working directory passes on
    try:
        os.fchown(directory, *one.owner)
    except OSError as error:
        if error.errno not in _NO_SUCH_OWNER_HERE:
            raise
    for name, value in one.xattrs.items():
        try:
            os.setxattr(directory, name, value)
        except OSError as error:
            if error.errno not in _NO_SUCH_XATTR_HERE:
                raise
    if one.mode != stat.S_IMODE(os.fstat(directory).st_mode) or ACL_ACCESS in one.xattrs:
        os.fchmod(directory, one.mode)
    os.utime(directory, ns=(one.mtime_ns, one.mtime_ns))


@contextmanager
def _opened(path: Path | bytes, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
