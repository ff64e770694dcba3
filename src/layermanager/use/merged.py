"""The directories of a stack of layers that need other attributes, read from their indexes."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import StoreError
from layermanager.implied import Stack
from layermanager.store import index_path
from layermanager.unpack.index import read_outline
from layermanager.use.overlay import MAX_LOWER_DIRECTORIES
from layermanager.xattrs import ACL_ACCESS, remove_acls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from layermanager.implied import MergedDirectory
    from layermanager.model import Digest, Limits

NO_ROOM: Final = (
    "no room for the layer that gives directories which upper layers do not list their attributes, "
    "they may show as mode 0755 of root, and names that are hidden may be listed: "
    f"{MAX_LOWER_DIRECTORIES} layers are all that overlayfs takes; use fewer layers"
)
"""What a warning says of as many layers as can be mounted, which need one more."""

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SUCH_OWNER_HERE: Final = (errno.EPERM, errno.EINVAL)  # the latter: not mapped
_NO_SUCH_XATTR_HERE: Final = (errno.EPERM, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class MergedStack:
    """What a stack of layers should show beyond what it shows.

    Attributes:
        directories: what ``Stack.implied`` found.
        unreadable: the layers whose index is missing or damaged, each with the reason. They may
            have hidden any directory below, so that others may be needed as well.
        visible: number of layers that a mount needs.
    """

    directories: tuple[MergedDirectory, ...]
    unreadable: Mapping[Digest, str]
    visible: int

    def doubt(self) -> str:
        """Return what a warning says of directories that cannot be told; empty: none."""
        if not self.unreadable:
            return ""
        digest, reason = next(iter(self.unreadable.items()))
        others = f" (and of {len(self.unreadable) - 1} more)" if len(self.unreadable) > 1 else ""
        return (
            "cannot tell the attributes of directories that upper layers do not list, they may "
            f"show as mode 0755 of root: the index of layer {digest}{others} {reason}; "
            "use `check --repair` or `check --index`"
        )


def merged_directories(layers: Iterable[Digest], index_dir: Path, limits: Limits) -> MergedStack:
    """Merge the directories of *layers*, the lowest first.

    Raises:
        StoreError: an index cannot be read, beyond that it is damaged.
    """
    stack = Stack()
    unreadable: dict[Digest, str] = {}
    for digest in layers:
        path = index_path(index_dir, digest)
        try:
            with path.open("rb") as file:
                stack.add(read_outline(file, str(path), limits))
        except FileNotFoundError:
            unreadable[digest] = "is missing"  # or another program installed it
            stack.add_unknown()
        except OSError as error:
            raise StoreError(f"cannot read an index: {error}") from error
        except StoreError as error:
            unreadable[digest] = f"is damaged: {error}"
            stack.add_unknown()
    return MergedStack(stack.implied(), unreadable, stack.visible)


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
