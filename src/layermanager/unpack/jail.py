"""The jail of a worker: what it could do if an archive took it over, and what takes that away.

Each measure stands on its own, so that one that this kernel, or the rights of this user, do not
give leaves the others in force. Which are is reported to the manager before the worker has read
anything that strangers wrote.

An ordinary user gets the namespaces through a user namespace, in which he stays who he is.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.model import JailMeasure
from layermanager.unpack import seccomp

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.model import Limits

_NAMESPACES: Final = {
    "network namespace": linux.CLONE_NEWNET,
    "process namespace": linux.CLONE_NEWPID,
    "IPC namespace": linux.CLONE_NEWIPC,
    "host name namespace": linux.CLONE_NEWUTS,
}

_KEPT_CAPABILITIES: Final = (
    linux.CAP_CHOWN,
    linux.CAP_DAC_OVERRIDE,
    linux.CAP_FOWNER,
    linux.CAP_FSETID,
    linux.CAP_SYS_ADMIN,  # for trusted.* attributes; what else it allows, the filter forbids
    linux.CAP_MKNOD,
    linux.CAP_SETFCAP,
)

# landlock(7): LANDLOCK_ACCESS_FS_*, and by which version of the interface they came.
_LANDLOCK_FILE_ACCESS_BY_VERSION: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LANDLOCK_EXECUTE: Final = 1 << 0
_LANDLOCK_READ_FILE: Final = 1 << 2
_LANDLOCK_MAKE_SOCKET: Final = 1 << 9
_LANDLOCK_IOCTL_DEVICE: Final = 1 << 15
_LANDLOCK_DENIED: Final = (
    _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_MAKE_SOCKET | _LANDLOCK_IOCTL_DEVICE
)
_LANDLOCK_BIND_AND_CONNECT_TCP: Final = 0b11  # version 4
_LANDLOCK_SCOPE_SOCKETS_AND_SIGNALS: Final = 0b11  # version 6

_HIGHEST_BOUND: Final = 2**63 - 1
_OPEN_FILES: Final = 256  # the directories that the tree writer keeps open, and a few
_DATA_BYTES: Final = 256 * 1024 * 1024  # besides zstd's window: what Python and its threads need


def leave_namespaces() -> list[JailMeasure]:
    """Leave the system's namespaces.

    The next process that is forked is the first of its process namespace, in which it sees nobody
    else; the caller itself is still outside of that one.
    """
    needed = [] if os.geteuid() == 0 else [_attempt("user namespace", _enter_user_namespace)]
    return needed + [
        _attempt(name, partial(linux.unshare, flag)) for name, flag in _NAMESPACES.items()
    ]


def confine(root: int, limits: Limits) -> list[JailMeasure]:
    """Confine the calling process to the directory *root*, a file descriptor, for good.

    The descriptor leads to the same directory afterwards, but no way leads up from it. Modules
    cannot be imported any more.
    """
    is_root = os.geteuid() == 0
    kept = _KEPT_CAPABILITIES if is_root else ()
    # An ordinary user may not leave his groups, not even in his own namespace.
    groups = [_attempt("no other groups", partial(os.setgroups, []))] if is_root else []
    return [
        _attempt("mount namespace", lambda: _leave_mount_namespace(root)),
        _attempt("root directory", lambda: _change_root(root)),
        _attempt("resource limits", lambda: _limit_resources(limits)),
        *groups,
        _attempt("no new privileges", linux.set_no_new_privileges),
        _attempt("Landlock", lambda: _restrict_by_landlock(root)),
        _attempt("capability bounds", lambda: linux.bound_capabilities(kept)),
        _attempt("capabilities", lambda: linux.keep_capabilities(kept)),
        _attempt(
            "system call filter",
            lambda: linux.install_system_call_filter(seccomp.filter_program()),
        ),
    ]


def _attempt(name: str, measure: Callable[[], None]) -> JailMeasure:
    try:
        measure()
    except OSError as error:
        return JailMeasure(name, why_not=str(error.strerror))
    return JailMeasure(name)


def _enter_user_namespace() -> None:
    """Enter a user namespace of our own, if we can be somebody in it.

    Some systems give everybody the namespace, but not the right to map a user into it. There a
    process is nobody: it would tell of files that are nobody's, and no way leads back. So a
    process that has nothing to lose goes first.
    """
    scout = os.fork()
    if scout == 0:
        status = errno.EPERM
        try:
            _become_oneself_in_user_namespace()
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    _, status = os.waitpid(scout, 0)
    if status != 0:
        number = os.waitstatus_to_exitcode(status)
        raise OSError(number, os.strerror(number))
    _become_oneself_in_user_namespace()


def _become_oneself_in_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    # user_namespaces(7): the group map may be written by its owner once setgroups(2) is given up.
    for name, content in (
        ("setgroups", b"deny"),
        ("uid_map", b"%d %d 1" % (user, user)),
        ("gid_map", b"%d %d 1" % (group, group)),
    ):
        Path(f"/proc/self/{name}").write_bytes(content)


def _leave_mount_namespace(root: int) -> None:
    """Take a mount namespace in which there is one mount, of the directory *root*.

    No other is left behind through which anything could be reached, and through this one nothing
    can be executed or used as a device. Nothing may be mounted before the namespace is our own:
    all mounts of the system would be gone.
    """
    linux.unshare(linux.CLONE_NEWNS)
    os.fchdir(root)
    path = os.fsencode(Path.cwd())
    linux.mount(b"none", b"/", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount(path, path, linux.MS_BIND)
    linux.mount(
        b"none",
        path,
        linux.MS_REMOUNT | linux.MS_BIND | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC,
    )
    os.chdir(path)
    linux.pivot_root(b".", b".")
    linux.unmount(b".", linux.MNT_DETACH)
    # The descriptor from before is one of the old mount, and would lead up and out.
    inside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(inside, root, inheritable=False)
    os.close(inside)


def _change_root(root: int) -> None:
    """Make the directory *root* the root directory of this process alone."""
    os.fchdir(root)
    os.chroot(".")


def _limit_resources(limits: Limits) -> None:
    """Bound what the process takes of the machine, with soft and hard limit the same."""
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.unpacked_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_DATA, _DATA_BYTES + limits.zstd_window_bytes),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        highest = _HIGHEST_BOUND if hard == resource.RLIM_INFINITY else hard
        bound = min(wanted, highest)
        resource.setrlimit(kind, (bound, bound))


def _restrict_by_landlock(root: int) -> None:
    version = linux.landlock_version()
    if version == 1:
        # It would deny hard links between directories, which a layer may hold (until Linux 5.19).
        raise OSError(errno.EOPNOTSUPP, "version 1 cannot allow hard links")
    known = max(_LANDLOCK_FILE_ACCESS_BY_VERSION)
    file_access = (1 << _LANDLOCK_FILE_ACCESS_BY_VERSION[min(version, known)]) - 1
    network_access = _LANDLOCK_BIND_AND_CONNECT_TCP if version >= 4 else 0
    scope = _LANDLOCK_SCOPE_SOCKETS_AND_SIGNALS if version >= 6 else 0
    # An older kernel accepts the larger structure as long as what it does not know is zero.
    ruleset = struct.pack("=3Q", file_access, network_access, scope)
    linux.landlock_restrict(ruleset, root, file_access & ~_LANDLOCK_DENIED)
