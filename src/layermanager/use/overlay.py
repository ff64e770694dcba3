"""Mounting layers on top of each other: overlayfs (Documentation/filesystems/overlayfs.rst).

There are two ways to name the directories of an overlay. The first is by descriptors, one call
for each (Linux 6.13): as many as the file system takes, with names as they are, and the table of
mounts tells their full paths. The other one is a text of at most a page, in which 500 paths have
no room: where they do not fit, it names open descriptors by their numbers, and the thread that
mounts has ``/proc/self/fd`` as its working directory. The working directory belongs to the process
as a whole, so that thread is made for this and gets one of its own.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from layermanager import linux
from layermanager.errors import MountBusyError, MountError
from layermanager.use.mountinfo import OVERLAY, escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Mounter: TypeAlias = "Callable[[Overlay, Path, Callable[[str], None]], None]"

Result = TypeVar("Result")

MAX_LOWER_DIRECTORIES: Final = 500  # OVL_MAX_STACK of the kernel

_PAGE_BYTES: Final = 4096  # the smallest one; its last byte ends the text
_MESSAGE_BYTES: Final = 1024
_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_SUPPORTED: Final = (errno.ENOSYS, errno.EINVAL)
_NO_RIGHT: Final = (errno.EPERM, errno.EACCES)
_UNMOUNT_ATTEMPTS: Final = 20
_UNMOUNT_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Overlay:
    """What an overlay consists of.

    Attributes:
        lower: the layers, the uppermost first, at least one and at most 500. Where there is no
            ``upper`` the kernel wants at least two.
        upper: gets what is written; None: nothing can be written.
        work: an empty directory on the file system of ``upper``, for overlayfs itself.
        source: a name for it in the table of mounts.
        has_user_attributes: whether the layers are marked by ``user.overlay.*`` attributes, as
            those are that an ordinary user unpacked, instead of ``trusted.overlay.*``.
        context: the SELinux label of all files; empty: each has its own.
    """

    lower: Sequence[Path]
    upper: Path | None = None
    work: Path | None = None
    source: str = "overlay"
    has_user_attributes: bool = False
    context: str = ""


def mount(overlay: Overlay, target: Path, on_made: Callable[[str], None]) -> None:
    """Mount *overlay* on the directory *target*, by descriptors where the kernel takes them.

    Args:
        overlay: what to mount.
        target: an existing directory.
        on_made: is told the device of the overlay, ``major:minor``, as soon as there is one.

    Raises:
        MountError: it cannot be mounted.
    """
    if overlay.context and not _has_selinux():
        raise MountError(
            f"cannot mount on {target} with context={overlay.context}: SELinux is not in force "
            "here; mount without a label"
        )
    way = mount_by_descriptors if takes_descriptors() else mount_by_options
    way(overlay, target, on_made)


def takes_descriptors() -> bool:
    """Whether the kernel takes lower directories as descriptors."""
    try:
        with ExitStack() as stack:
            context = _closed_by(stack, linux.open_file_system(OVERLAY))
            root = _closed_by(stack, os.open("/", _OPEN))
            linux.set_descriptor(context, b"lowerdir+", root)
    except OSError as error:
        # Without the right to mount the other way will say so.
        if error.errno in (*_NOT_SUPPORTED, *_NO_RIGHT):
            return False
        raise MountError(f"cannot make an overlay: {error.strerror}") from error
    return True


def mount_by_descriptors(overlay: Overlay, target: Path, on_made: Callable[[str], None]) -> None:
    """Mount *overlay* on *target*; *on_made* is told its device before anybody can reach it.

    Raises:
        MountError: it cannot be mounted.
    """
    with _mount_errors(target), ExitStack() as stack:
        place = _closed_by(stack, os.open(target, _OPEN))
        context = _closed_by(stack, linux.open_file_system(OVERLAY))
        with _messages_of(context):
            linux.set_string(context, b"source", overlay.source.encode())
            for key, value in _plain_options(overlay):
                if value:
                    linux.set_string(context, key, value)
                else:
                    linux.set_flag(context, key)
            for key, directory in _directories(overlay):
                # The file system keeps what it needs of it: 500 at once may be more than one may.
                descriptor = os.open(directory, _OPEN)
                try:
                    linux.set_descriptor(context, key, descriptor)
                finally:
                    os.close(descriptor)
            linux.create_file_system(context)
        attributes = 0 if overlay.upper else linux.MOUNT_ATTR_RDONLY
        made = _closed_by(stack, linux.make_mount(context, attributes))
        on_made(device_text(os.fstat(made).st_dev))
        linux.attach_mount(made, place)


def mount_by_options(overlay: Overlay, target: Path, on_made: Callable[[str], None]) -> None:
    """Mount *overlay* on *target*; *on_made* is told its device right afterwards.

    Raises:
        MountError: it cannot be mounted.
    """
    with _mount_errors(target), ExitStack() as stack:
        options = _options(overlay, [escaped(os.fsencode(one)) for one in overlay.lower])
        if len(options) >= _PAGE_BYTES:
            opened = [_closed_by(stack, os.open(one, _OPEN)) for one in overlay.lower]
            options = _options(overlay, [b"%d" % one for one in opened])
        if len(options) >= _PAGE_BYTES:
            raise MountError(f"cannot mount on {target}: the names of its directories are too long")
        source, place = overlay.source.encode(), os.fsencode(target.absolute())
        flags = 0 if overlay.upper else linux.MS_RDONLY

        def mount_here() -> None:
            os.chdir("/proc/self/fd")
            linux.mount_new(OVERLAY, source, place, flags, options)

        with_own_directory(mount_here)
    try:
        on_made(device_text(target.stat().st_dev))
    except BaseException:
        unmount(target, lazy=True)
        raise


def unmount(
    target: Path, *, lazy: bool = False, pause: Callable[[float], None] = time.sleep
) -> None:
    """Unmount what is mounted on *target*.

    It is tried for a second while it is in use: a layer manager that looks at all mounts has each
    open for a moment.

    Args:
        target: the directory.
        lazy: take it out of the tree of directories now; who has files of it open keeps them.
        pause: waits for so many seconds.

    Raises:
        MountBusyError: it is in use, and *lazy* is not set.
        MountError: it cannot be unmounted.
    """
    flags = linux.UMOUNT_NOFOLLOW | (linux.MNT_DETACH if lazy else 0)
    for attempt in range(1, _UNMOUNT_ATTEMPTS + 1):
        try:
            linux.unmount(os.fsencode(target), flags)
        except OSError as error:
            if error.errno == errno.EBUSY and attempt < _UNMOUNT_ATTEMPTS:
                pause(_UNMOUNT_PAUSE_SECONDS)
                continue
            kind = MountBusyError if error.errno == errno.EBUSY else MountError
            raise kind(f"cannot unmount {target}: {error.strerror}") from error
        return


def device_text(device: int) -> str:
    """An ``st_dev`` as the table of mounts writes it."""
    return f"{os.major(device)}:{os.minor(device)}"


def _directories(overlay: Overlay) -> Iterator[tuple[bytes, Path]]:
    for lower in overlay.lower:
        yield b"lowerdir+", lower
    if overlay.upper and overlay.work:
        yield b"upperdir", overlay.upper
        yield b"workdir", overlay.work


def _plain_options(overlay: Overlay) -> Iterator[tuple[bytes, bytes]]:
    # An upper directory that refers to names or content of others could not be packed as a layer;
    # and nobody is to be led to such by what a layer brings along.
    yield b"redirect_dir", b"nofollow"
    yield b"metacopy", b"off"
    if overlay.has_user_attributes:
        yield b"userxattr", b""
    if overlay.context:
        yield b"context", overlay.context.encode("ascii")


def _options(overlay: Overlay, lower: Sequence[bytes]) -> bytes:
    options = [b"=".join(filter(None, _quoted(*pair))) for pair in _plain_options(overlay)]
    options.append(b"lowerdir=" + b":".join(lower))
    if overlay.upper and overlay.work:
        options.append(b"upperdir=" + escaped(os.fsencode(overlay.upper)))
        options.append(b"workdir=" + escaped(os.fsencode(overlay.work)))
    return b",".join(options)


def _quoted(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Quote a *value* with commas, as labels have them, for SELinux to take it as a whole."""
    return key, b'"%b"' % value if b"," in value else value


def _has_selinux() -> bool:
    return "selinuxfs" in Path("/proc/filesystems").read_text(encoding="ascii").split()


def with_own_directory(call: Callable[[], Result]) -> Result:
    """Make *call* in a thread whose working directory no other one has; what it raises is raised.

    The thread ends with that: what else it shares no more is nobody's concern.
    """

    def run() -> Result:
        linux.unshare(linux.CLONE_FS)
        return call()

    with ThreadPoolExecutor(1, "mount") as thread:
        return thread.submit(run).result()


def _closed_by(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


@contextmanager
def _messages_of(context: int) -> Iterator[None]:
    """Add to an error what the file system has to say about it."""
    try:
        yield
    except OSError as error:
        told = []
        with suppress(OSError):  # there are no more, or the kernel keeps none
            while True:
                kind, _, message = os.read(context, _MESSAGE_BYTES).partition(b" ")
                if kind == b"e":
                    told.append(message.decode(errors="replace").strip())
        if told:
            raise OSError(error.errno, "; ".join(told)) from error
        raise


@contextmanager
def _mount_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        reason = f"cannot mount an overlay on {target}: {error.strerror}{where}"
        if error.errno in _NO_RIGHT:
            raise MountError(
                f"{reason}; as an ordinary user: `unshare -Urm`, then mount"
            ) from error
        raise MountError(reason) from error
