"""Bundles: an image as a runtime takes it, a ``config.json`` and a mounted ``rootfs``."""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.directories import NotRegularError, open_regular
from layermanager.errors import ImageError, MountError
from layermanager.oci.manifest import read_config
from layermanager.oci.runtime import find_user, runtime_config
from layermanager.private_files import (
    PRIVATE_DIRECTORY,
    make_directories,
    make_directory,
    replace_file,
)
from layermanager.use.paths import PROCESSES, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from layermanager.model import ImageInfo
    from layermanager.use.layer_use import LayerUse, MountedLayers

_LOGGER: Final = logging.getLogger(__name__)
_OPEN_PLACE: Final = os.O_PATH | os.O_CLOEXEC
_MOST_BYTES: Final = 1 << 20
_LEADS_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MOST_ATTEMPTS: Final = 1000


def write_bundle(
    use: LayerUse,
    image: ImageInfo,
    directory: Path,
    *,
    name: str,
    arguments: Sequence[str] = (),
    read_only: bool = False,
    context: str = "",
) -> MountedLayers:
    """Make a bundle of *image*; see ``LayerManager.bundle``."""
    config = read_config(image.config, len(image.layers))
    with _bundle_errors(directory):
        make_directories(directory, PRIVATE_DIRECTORY)
        make_directory(directory / "rootfs", PRIVATE_DIRECTORY)
    # A runtime makes the directories that it mounts on, also where the container cannot.
    mounted = use.mount(name, image.stack, target=directory / "rootfs", context=context)
    try:
        with _bundle_errors(directory):
            passwd, group = _read_inside(mounted.mount.target, image, ("etc/passwd", "etc/group"))
            user = find_user(config.user, passwd, group)
            _check_directory(mounted.mount.target, image, config.working_directory)
            made = runtime_config(
                config, user, hostname=name, arguments=arguments, is_read_only=read_only
            )
            replace_file(directory / "config.json", made.document)
    except BaseException:
        mounted.umount()
        raise
    for note in made.notes:
        _LOGGER.warning("%s: %s", image.reference, note)
    return mounted


def _read_inside(root: Path, image: ImageInfo, names: Sequence[str]) -> list[bytes]:
    """Read small files of *image* as a process sees them that has *root* as its root directory.

    A symlink leads somewhere within. A missing file is empty.

    Raises:
        ImageError: a file is not a regular file, or is too large.
    """
    descriptor = os.open(root, _OPEN_PLACE | os.O_DIRECTORY)
    try:
        return [_read_file(descriptor, image, name) for name in names]
    finally:
        os.close(descriptor)


def _check_directory(root: Path, image: ImageInfo, path: str) -> None:
    """Refuse a working directory that symlinks of the image lead into ``/proc``.

    A runtime enters it when the container's ``/proc`` is mounted, and has files of the host open.

    Raises:
        ImageError: it leads there.
    """
    descriptor = os.open(root, _OPEN_PLACE | os.O_DIRECTORY)
    try:
        found = resolve(b"/" + os.fsencode(path), partial(_link_target, descriptor))
    finally:
        os.close(descriptor)
    if (found + b"/").startswith(PROCESSES):
        raise ImageError(
            f"the working directory of the image {image.reference} leads into /proc: {path!r:.80}"
        )


def _link_target(root: int, path: bytes) -> bytes | None:
    """Return the target of the symlink at *path*, which has no symlink on its way."""
    try:
        place = linux.open_inside(root, path, _OPEN_PLACE | os.O_NOFOLLOW)
    except OSError:
        return None  # a runtime would not find it either
    try:
        if not stat.S_ISLNK(os.fstat(place).st_mode):
            return None
        return os.readlink(b"", dir_fd=place)
    finally:
        os.close(place)


def _read_file(root: int, image: ImageInfo, name: str) -> bytes:
    try:
        place = _open_inside(root, name.encode())
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return b""
        raise
    try:
        descriptor = open_regular(place)
    except NotRegularError as error:
        raise ImageError(f"cannot read /{name} of the image {image.reference}: {error}") from error
    finally:
        os.close(place)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ImageError(
            f"cannot read /{name} of the image {image.reference}: larger than {_MOST_BYTES} bytes"
        )
    return content


def _open_inside(root: int, path: bytes) -> int:
    """Open the place of *path*, again where something was renamed or mounted meanwhile.

    The kernel cannot tell then whether a ``..`` left *root*, whatever was renamed, and asks for
    another attempt (openat2(2), ``EAGAIN``).
    """
    for _ in range(_MOST_ATTEMPTS - 1):
        try:
            return linux.open_inside(root, path, _OPEN_PLACE)
        except BlockingIOError:
            continue
    return linux.open_inside(root, path, _OPEN_PLACE)


@contextmanager
def _bundle_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MountError(f"cannot make a bundle in {directory}: {error}") from error
