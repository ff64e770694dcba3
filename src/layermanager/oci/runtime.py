"""The configuration of a container: how a runtime such as crun or runc is to run an image.

An image's configuration becomes a runtime's as image-spec, conversion.md says; the rest, mounts,
capabilities and namespaces, is what runtimes have as their defaults (runtime-spec 1.0, config.md,
config-linux.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layermanager.oci.manifest import ImageConfig

_VERSION: Final = "1.0.2"
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_ID: Final = (1 << 32) - 2  # the one after means none
_ANNOTATIONS: Final = "org.opencontainers.image."

_CAPABILITIES: Final = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP"),
    *("CAP_SETUID", "CAP_SYS_CHROOT", "CAP_AUDIT_WRITE"),
)
_MASKED_PATHS: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
)
_READ_ONLY_PATHS: Final = (
    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
)
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_DEV_OPTIONS: Final = ("nosuid", "strictatime", "mode=755", "size=65536k")
_PTS_OPTIONS: Final = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
_SHM_OPTIONS: Final = ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")
_LOCKED: Final = ("nosuid", "noexec", "nodev")
_MOUNTS: Final = (
    ("/proc", "proc", "proc", _LOCKED),
    ("/dev", "tmpfs", "tmpfs", _DEV_OPTIONS),
    ("/dev/pts", "devpts", "devpts", _PTS_OPTIONS),
    ("/dev/shm", "tmpfs", "shm", _SHM_OPTIONS),  # noqa: S108 - inside of the container
    ("/dev/mqueue", "mqueue", "mqueue", _LOCKED),
    ("/sys", "sysfs", "sysfs", (*_LOCKED, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_LOCKED, "relatime", "ro")),
)


@dataclass(frozen=True, slots=True)
class User:
    """Who runs the command, in numbers.

    Attributes:
        user: the user.
        group: the first group.
        groups: the other ones.
        home: the home directory.
    """

    user: int
    group: int
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Account:
    """A line of ``/etc/passwd``."""

    name: str
    user: int
    group: int
    home: str


def find_user(text: str, passwd: bytes, group: bytes) -> User:
    """Who the *text* of an image's configuration means.

    Args:
        text: ``user`` or ``user:group``, names or numbers; empty means root.
        passwd: the image's ``/etc/passwd``; lines that make no sense are passed over.
        group: the image's ``/etc/group``, likewise.

    Raises:
        ImageError: a name is not in these files.
    """
    name, _, group_name = text.partition(":")
    account = _account(name or "0", passwd)
    if group_name:
        return User(account.user, _group(group_name, group), (), account.home)
    members = (number for number, _, members in _groups(group) if account.name in members)
    others = tuple(sorted({number for number in members if number != account.group}))
    return User(account.user, account.group, others if account.name else (), account.home)


def runtime_config(
    config: ImageConfig,
    user: User,
    *,
    hostname: str,
    arguments: Sequence[str] = (),
    is_read_only: bool = False,
) -> bytes:
    """The ``config.json`` of a bundle whose root file system is in ``rootfs``.

    Args:
        config: the image's configuration.
        user: who runs the command.
        hostname: the name that the container has for itself.
        arguments: the command's arguments instead of the image's; without an entrypoint, the
            command as a whole.
        is_read_only: whether the container sees its root file system as read-only.

    Raises:
        ImageError: there is no command.
    """
    command = (*config.entrypoint, *(arguments or config.arguments))
    if not command:
        raise ImageError("the image names no command: give one")
    capabilities = list(_CAPABILITIES)
    document = {
        "ociVersion": _VERSION,
        "process": {
            "terminal": False,
            "user": {
                "uid": user.user,
                "gid": user.group,
                "additionalGids": list(user.groups),
            },
            "args": list(command),
            "env": list(_environment(config.environment, user)),
            "cwd": f"/{config.working_directory.lstrip('/')}",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": is_read_only},
        "hostname": hostname,
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": list(options)}
            for place, kind, source, options in _MOUNTS
        ],
        "annotations": dict(_annotations(config)),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READ_ONLY_PATHS),
        },
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _environment(variables: Sequence[str], user: User) -> Iterator[str]:
    names = {variable.partition("=")[0] for variable in variables}
    yield from variables
    if "PATH" not in names:
        yield _PATH
    if "HOME" not in names:
        yield f"HOME={user.home}"


def _annotations(config: ImageConfig) -> Iterator[tuple[str, str]]:
    """What the configuration says besides (conversion.md, "Annotation Fields"); labels win."""
    if config.platform is not None:
        yield f"{_ANNOTATIONS}os", config.platform.os
        yield f"{_ANNOTATIONS}architecture", config.platform.architecture
    if config.created:
        yield f"{_ANNOTATIONS}created", config.created
    if config.stop_signal:
        yield f"{_ANNOTATIONS}stopSignal", config.stop_signal
    if config.exposed_ports:
        yield f"{_ANNOTATIONS}exposedPorts", ",".join(config.exposed_ports)
    labels: Mapping[str, str] = config.labels
    yield from labels.items()


def _account(name: str, passwd: bytes) -> _Account:
    number = _number(name)
    for account in _accounts(passwd):
        if account.name == name or account.user == number:
            return account
    if number is None:
        raise ImageError(f"the image's user {name!r} is not in its /etc/passwd")
    return _Account("", number, 0, "/")


def _group(name: str, group: bytes) -> int:
    number = _number(name)
    if number is not None:
        return number
    for found, group_name, _ in _groups(group):
        if group_name == name:
            return found
    raise ImageError(f"the image's group {name!r} is not in its /etc/group")


def _accounts(passwd: bytes) -> Iterator[_Account]:
    for line in passwd.decode(errors="replace").splitlines():
        match line.split(":"):
            case [name, _, user_text, group_text, _, home, *_]:
                user, group = _number(user_text), _number(group_text)
                if user is not None and group is not None:
                    yield _Account(name, user, group, home or "/")


def _groups(group: bytes) -> Iterator[tuple[int, str, Sequence[str]]]:
    for line in group.decode(errors="replace").splitlines():
        match line.split(":"):
            case [name, _, text, members, *_]:
                number = _number(text)
                if number is not None:
                    yield number, name, members.split(",")


def _number(text: str) -> int | None:
    """The number of a user or group that *text* is; None if it is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    return int(text) if int(text) <= _LARGEST_ID else None
