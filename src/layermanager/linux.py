"""System calls of Linux that the standard library lacks; the only ctypes code.

Each function is one call. They raise ``OSError`` with the kernel's reason.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_FILE_HANDLE: Final = struct.Struct("=Ii")  # the bytes that follow, how many; their type
_MAX_HANDLE_BYTES: Final = 128
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_OPEN_HOW: Final = struct.Struct("=3Q")  # flags, mode, how to resolve the path
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x00000004
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x00000040
_IN_CLOSE_WRITE: Final = 0x00000008
_IN_MOVED_FROM: Final = 0x00000040
_IN_MOVED_TO: Final = 0x00000080
_IN_CREATE: Final = 0x00000100
_IN_DELETE: Final = 0x00000200
_IN_ONLYDIR: Final = 0x01000000
_RENAME_EXCHANGE: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_STA_UNSYNC: Final = 0x0040
_TIMEX_BYTES: Final = 512  # more than any architecture's structure
_CAPABILITY_VERSION_3: Final = 0x20080522
_MAX_CAPABILITIES: Final = 64
_STATFS_BYTES: Final = 256  # more than any architecture's structure, whose first field is the kind
_CAPABILITIES: Final = struct.Struct("=6I")  # effective, permitted, inheritable; twice, low first

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
OVERLAYFS_MAGIC: Final = 0x794C7630

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_SETFCAP: Final = 31

MOUNT_ATTR_RDONLY: Final = 1

# These numbers are the same on all architectures.
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_OPENAT2: Final = 437
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_SYS_LANDLOCK_ADD_RULE: Final = 445
_SYS_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_RULE_PATH_BENEATH: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)
# With its types said once a call takes half the time: there is one for each directory of a tree.
_openat2: Final = _libc["syscall"]
_openat2.argtypes = (
    *(ctypes.c_long, ctypes.c_long),
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
)
_openat2.restype = ctypes.c_long


class _Timex(ctypes.Structure):
    """The beginning of ``struct timex``."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
    )


def is_clock_synchronised() -> bool:
    """Return whether a program keeps the date in step with a time server (adjtimex(2)).

    The kernel denies it after each boot, after the date was set by hand, and where that program
    has not been heard for hours.
    """
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    _require_success(_libc.adjtimex(buffer))
    return not _Timex.from_buffer(buffer).status & _STA_UNSYNC


def sync_file_system(descriptor: int) -> None:
    """Write all that the file system of *descriptor* still holds in memory to disk (syncfs(2)).

    Raises:
        OSError: writing failed, now or (since Linux 5.8) at any time since the last call.
    """
    _require_success(_libc.syncfs(descriptor))


def exchange(source: bytes, target: bytes) -> None:
    """Make *source* and *target* each other, at one moment (renameat2(2), Linux 3.15).

    Raises:
        OSError: with ``EINVAL`` where the file system cannot do it.
    """
    _require_success(_libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_EXCHANGE))


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send *signal_number* to this process when its parent ends (prctl(2)).

    The parent, to the kernel, is the thread that forked, so it must not be one that ends early.
    """
    _require_success(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def set_process_name(name: bytes) -> None:
    """Set the name of this thread, of at most 15 bytes, which all processes may read (prctl(2))."""
    _require_success(_libc.prctl(_PR_SET_NAME, name, 0, 0, 0))


def unshare(namespaces: int) -> None:
    """Move this process, or its children for ``CLONE_NEWPID``, to new namespaces (unshare(2)).

    ``CLONE_FS`` gives this thread a working directory of its own, which it shared with all threads.
    """
    _require_success(_libc.unshare(namespaces))


def enter_namespace(descriptor: int, kind: int) -> None:
    """Move this thread to the namespace that *descriptor* is a file of (setns(2)).

    For ``CLONE_NEWNS`` it needs a working directory of its own, which it loses for the namespace's
    root directory.
    """
    _require_success(_libc.setns(descriptor, kind))


def file_system_magic(path: bytes) -> int:
    """What kind of file system *path* is on (statfs(2))."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _require_success(_libc.statfs(path, buffer))
    magic: int = ctypes.c_long.from_buffer(buffer).value
    return magic


def open_inside(root: int, path: bytes, flags: int) -> int:
    """Open *path* as a process does whose root directory is *root* (openat2(2), Linux 5.6)."""
    return _open_how(root, path, flags, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def open_on_mount(directory: int, path: bytes, flags: int) -> int:
    """Open *path* in *directory* unless a mount point is on the way (openat2(2), Linux 5.6).

    Raises:
        OSError: with ``EXDEV``: it is on another mount than *directory*.
    """
    return _open_how(directory, path, flags, _RESOLVE_NO_XDEV)


def _open_how(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = _OPEN_HOW.pack(flags, 0, resolve)
    descriptor: int = _openat2(_SYS_OPENAT2, directory, path, how, _OPEN_HOW.size)
    _require_success(descriptor)
    return descriptor


def open_elsewhere(directory: int, mount: int) -> int:
    """Open the *directory* again by another mount of its file system (open_by_handle_at(2)).

    Args:
        directory: file descriptor of a directory.
        mount: file descriptor of any file or directory on that other mount.

    Returns:
        A descriptor as ``O_PATH`` gives it.

    Raises:
        OSError: with ``EOPNOTSUPP`` if the file system has no file handles.
    """
    handle = ctypes.create_string_buffer(_FILE_HANDLE.size + _MAX_HANDLE_BYTES)
    _FILE_HANDLE.pack_into(handle, 0, _MAX_HANDLE_BYTES, 0)
    number = ctypes.c_int()
    _require_success(
        _libc.name_to_handle_at(directory, b"", handle, ctypes.byref(number), _AT_EMPTY_PATH)
    )
    descriptor: int = _libc.open_by_handle_at(
        mount, handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    )
    _require_success(descriptor)
    return descriptor


def open_events() -> int:
    """A descriptor from which events of watched files can be read (inotify_init1(2))."""
    descriptor: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    _require_success(descriptor)
    return descriptor


def watch_directory(events: int, path: bytes) -> None:
    """Have *events* tell when a file of a directory was written or moved (inotify_add_watch(2))."""
    mask = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
    _require_success(_libc.inotify_add_watch(events, path, mask))


def mount(source: bytes, target: bytes, flags: int) -> None:
    """Change the tree of mounts (mount(2)), without a new file system."""
    _require_success(_libc.mount(source, target, None, ctypes.c_ulong(flags), None))


def mount_new(kind: bytes, source: bytes, target: bytes, flags: int, options: bytes) -> None:
    """Make a file system of that *kind* and mount it (mount(2)).

    Raises:
        OSError: with ``EINVAL`` also where *options* are longer than a page.
    """
    _require_success(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def open_file_system(kind: bytes) -> int:
    """Begin to make a file system of that *kind* (fsopen(2), Linux 5.2).

    Returns:
        A descriptor of what is to become it; what is wrong with it can be read from there.
    """
    return _system_call(_SYS_FSOPEN, kind, _FSOPEN_CLOEXEC)


def set_flag(context: int, key: bytes) -> None:
    """Set an option without a value of a file system that is being made (fsconfig(2))."""
    _system_call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, key, None, 0)


def set_string(context: int, key: bytes, value: bytes) -> None:
    """Set an option of a file system that is being made, to at most 255 bytes (fsconfig(2))."""
    _system_call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)


def set_descriptor(context: int, key: bytes, descriptor: int) -> None:
    """Set an option of a file system that is being made to an open file (fsconfig(2))."""
    _system_call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FD, key, None, descriptor)


def create_file_system(context: int) -> None:
    """Make the file system whose options have been set (fsconfig(2))."""
    _system_call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)


def make_mount(context: int, attributes: int) -> int:
    """Make a mount of the file system, at no place yet (fsmount(2), Linux 5.2).

    Returns:
        A descriptor of its root; if it is closed before it is at a place, the mount is gone.
    """
    return _system_call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)


def attach_mount(mount: int, target: int) -> None:
    """Put a mount on top of the directory *target*, both by descriptors (move_mount(2))."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _system_call(_SYS_MOVE_MOUNT, mount, b"", target, b"", flags)


def unmount(target: bytes, flags: int) -> None:
    """Take a mount out of the tree (umount2(2))."""
    _require_success(_libc.umount2(target, flags))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make another mount the root of this mount namespace (pivot_root(2))."""
    _require_success(_libc.pivot_root(new_root, put_old))


def set_no_new_privileges() -> None:
    """Let this process and its children never gain rights by executing a file (prctl(2))."""
    _require_success(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def bound_capabilities(kept: Iterable[int]) -> None:
    """Let no file that is executed give other capabilities than *kept* (prctl(2)).

    Raises:
        OSError: this process has no right to that: it lacks CAP_SETPCAP.
    """
    mask = _capability_mask(kept)
    for capability in range(_MAX_CAPABILITIES):
        if mask >> capability & 1 or _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) <= 0:
            continue  # kept, gone already, or unknown to this kernel
        _require_success(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))


def keep_capabilities(kept: Iterable[int]) -> None:
    """Give up all capabilities but those of *kept* that this process has, for good (capset(2))."""
    _, permitted_low, _, _, permitted_high, _ = _capabilities()
    mask = _capability_mask(kept)
    low, high = mask & permitted_low, mask >> 32 & permitted_high
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _require_success(_libc.capset(header, _CAPABILITIES.pack(low, low, 0, high, high, 0)))


def effective_capabilities() -> int:
    """Return the capabilities of this thread that are in force, as a mask (capget(2))."""
    low, _, _, high, _, _ = _capabilities()
    return high << 32 | low


def _capabilities() -> tuple[int, int, int, int, int, int]:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    _require_success(_libc.capget(header, data))
    effective_low, permitted_low, inheritable_low, *high = _CAPABILITIES.unpack(data.raw)
    effective_high, permitted_high, inheritable_high = high
    return (
        effective_low,
        permitted_low,
        inheritable_low,
        effective_high,
        permitted_high,
        inheritable_high,
    )


def _capability_mask(capabilities: Iterable[int]) -> int:
    return sum(1 << capability for capability in capabilities)


def landlock_version() -> int:
    """The version of Landlock's interface that the kernel has.

    Raises:
        OSError: it has none, or it was switched off at boot.
    """
    version: int = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION),
    )
    _require_success(version)
    return version


def landlock_restrict(ruleset: bytes, directory: int, allowed_file_access: int) -> None:
    """Restrict this process by Landlock, for good (landlock(7)).

    Args:
        ruleset: a ``struct landlock_ruleset_attr``: all that is denied unless a rule allows it.
        directory: file descriptor of the directory below which the one rule allows something.
        allowed_file_access: what it allows.
    """
    ruleset_descriptor = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET),
        ruleset,
        ctypes.c_size_t(len(ruleset)),
        ctypes.c_uint32(0),
    )
    _require_success(ruleset_descriptor)
    try:
        _require_success(
            _libc.syscall(
                ctypes.c_long(_SYS_LANDLOCK_ADD_RULE),
                ctypes.c_int(ruleset_descriptor),
                ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH),
                struct.pack("=Qi", allowed_file_access, directory),
                ctypes.c_uint32(0),
            )
        )
        _require_success(
            _libc.syscall(
                ctypes.c_long(_SYS_LANDLOCK_RESTRICT_SELF),
                ctypes.c_int(ruleset_descriptor),
                ctypes.c_uint32(0),
            )
        )
    finally:
        os.close(ruleset_descriptor)


def install_system_call_filter(program: bytes) -> None:
    """Have the kernel run *program* on each system call of this thread (seccomp(2)).

    Args:
        program: instructions of classic BPF, eight bytes each. Threads that are started later
            inherit it; those that run already do not.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _require_success(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    """Call what the C library may not know yet; numbers are passed as the kernel's registers."""
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    _require_success(result)
    return result


def _require_success(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
