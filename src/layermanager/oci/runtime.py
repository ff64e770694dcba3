"""The configuration of a container: how a runtime such as crun or runc is to run an image.

An image's configuration becomes a runtime's as image-spec, conversion.md says; the rest, mounts,
capabilities and namespaces, is what runtimes have as their defaults (runtime-spec 1.0, config.md,
config-linux.md).

The image is not trusted. Annotations steer runtimes: they set properties of systemd units, choose
a handler or a kernel, add devices, or name another bundle (``org.systemd.property.*``,
``run.oci.*``, ``module.wasm.*``, ``io.katacontainers.*``, ``dev.gvisor.*``, ``org.criu.*``,
``cdi.k8s.io/*``, ``bundle``; and each new runtime has its own). So only labels that describe an
image pass. What a container cannot be run with is an error; what it can be run without is left out,
and noted.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layermanager.oci.manifest import ImageConfig

_VERSION: Final = "1.0.2"
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_ID: Final = (1 << 32) - 2  # the one after means none
_MOST_GROUPS: Final = 1 << 16  # NGROUPS_MAX
_MOST_HOST_NAME: Final = 64  # HOST_NAME_MAX
_MOST_PATH: Final = 4095  # PATH_MAX, without the zero byte
_MOST_STRING: Final = 128 * 1024 - 1  # the kernel's MAX_ARG_STRLEN, without the zero byte
_MOST_STRINGS: Final = 2 * 1024 * 1024  # of arguments and environment together; by default a
# quarter of the stack, which is 8 MiB
_POINTER: Final = 8
_ANNOTATIONS: Final = "org.opencontainers.image."
_STOP_SIGNAL: Final = f"{_ANNOTATIONS}stopSignal"
_EXPOSED_PORTS: Final = f"{_ANNOTATIONS}exposedPorts"
_SHOWN: Final = 10
_DESCRIBING: Final = re.compile(r"org\.(opencontainers\.image|label-schema)\.[A-Za-z0-9._-]+")
_VARIABLE: Final = re.compile(r"[!-<>-~]+", re.ASCII)
_SIGNAL: Final = re.compile(r"(SIG)?[A-Z0-9]+([+-][0-9]+)?", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?", re.ASCII)

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


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """A configuration that was made of an image's.

    Attributes:
        document: the ``config.json``.
        notes: what the image says and the configuration does not, one sentence each.
    """

    document: bytes
    notes: tuple[str, ...]


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
    if len(others) > _MOST_GROUPS:
        raise ImageError(f"the image's user is in {len(others)} groups: Linux has {_MOST_GROUPS}")
    return User(account.user, account.group, others if account.name else (), account.home)


def runtime_config(
    config: ImageConfig,
    user: User,
    *,
    hostname: str,
    arguments: Sequence[str] = (),
    is_read_only: bool = False,
) -> RuntimeConfig:
    """Return the ``config.json`` of a bundle whose root file system is in ``rootfs``.

    Args:
        config: the image's configuration.
        user: who runs the command.
        hostname: the name that the container has for itself; the kernel takes its beginning.
        arguments: the command's arguments instead of the image's; without an entrypoint, the
            command as a whole.
        is_read_only: whether the container sees its root file system as read-only.

    Raises:
        ImageError: there is no command, or the kernel could not run it so.
    """
    notes: list[str] = []
    command = (*config.entrypoint, *(arguments or config.arguments))
    if not command or not command[0]:
        raise ImageError("the image names no command: give one")
    environment = list(_environment(config.environment, user, notes))
    _check_strings(command, environment)
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
            "env": environment,
            "cwd": _directory(config.working_directory),
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": is_read_only},
        "hostname": hostname[:_MOST_HOST_NAME],
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": list(options)}
            for place, kind, source, options in _MOUNTS
        ],
        "annotations": _annotations(config, notes),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READ_ONLY_PATHS),
        },
    }
    return RuntimeConfig(json.dumps(document, indent=2).encode() + b"\n", tuple(notes))


def _directory(path: str) -> str:
    """Return where the command begins: absolute, in normal form.

    Below ``/proc`` a runtime could be led to its own open files, and by them to the host.
    """
    _check_text("working directory", path)
    directory = posixpath.normpath(f"/{path.lstrip('/')}")
    if len(directory.encode()) > _MOST_PATH:
        raise ImageError(f"the image's working directory is longer than {_MOST_PATH} bytes")
    if directory.split("/")[1] == "proc":
        raise ImageError(f"the image's working directory {directory!r:.80} is in /proc")
    return directory


def _environment(variables: Sequence[str], user: User, notes: list[str]) -> Iterator[str]:
    """Return the variables, each once: of those that are there twice the last."""
    values: dict[str, str] = {}
    for variable in variables:
        name, sign, value = variable.partition("=")
        if not (sign and _VARIABLE.fullmatch(name)):
            notes.append(f"environment: {variable!a:.80} is not NAME=value, and is left out")
            continue
        values[name] = value
    values.setdefault("PATH", _PATH)
    values.setdefault("HOME", user.home)
    return (f"{name}={value}" for name, value in values.items())


def _check_strings(arguments: Sequence[str], environment: Sequence[str]) -> None:
    """Refuse what execve(2) would refuse."""
    total = 0
    for what, texts in (("arguments", arguments), ("environment", environment)):
        for text in texts:
            size = _check_text(what, text)
            if size > _MOST_STRING:
                raise ImageError(
                    f"the image's {what}: {text!a:.40}… has {size} bytes, at most {_MOST_STRING}"
                    " can be passed to a program"
                )
            total += size + 1 + _POINTER
    if total > _MOST_STRINGS:
        raise ImageError(
            f"the image's arguments and environment take {total} bytes, at most {_MOST_STRINGS}"
            " can be passed to a program"
        )


def _check_text(what: str, text: str) -> int:
    """Return how many bytes *text* has for the kernel; refuse what it has no bytes for."""
    if not _is_text(text):
        raise ImageError(f"the image's {what}: {text!a:.80} has a zero byte or is no UTF-8")
    return len(text.encode())


def _is_text(text: str) -> bool:
    return not any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text)


def _annotations(config: ImageConfig, notes: list[str]) -> dict[str, str]:
    """Return what describes the image (conversion.md, "Annotation Fields"); labels win."""
    found = dict(_described(config))
    left_out = []
    for name, value in config.labels.items():
        if _DESCRIBING.fullmatch(name):
            found[name] = value
        else:
            left_out.append(name)
    if left_out:
        shown = ", ".join(f"{name!a:.80}" for name in left_out[:_SHOWN])
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        notes.append(f"labels that may steer a runtime are no annotations: {shown}{more}")
    kept = {name: value for name, value in found.items() if _is_sound(name, value)}
    notes += [
        f"annotations: {name} is left out, as it cannot be {found[name]!a:.80}"
        for name in found
        if name not in kept
    ]
    return kept


def _described(config: ImageConfig) -> Iterator[tuple[str, str]]:
    if config.platform is not None:
        yield f"{_ANNOTATIONS}os", config.platform.os
        yield f"{_ANNOTATIONS}architecture", config.platform.architecture
    if config.created:
        yield f"{_ANNOTATIONS}created", config.created
    if config.stop_signal:
        yield _STOP_SIGNAL, config.stop_signal
    if config.exposed_ports:
        yield _EXPOSED_PORTS, ",".join(config.exposed_ports)


def _is_sound(name: str, value: str) -> bool:
    """Return whether an annotation can have *value*: runtimes' callers act on two of them."""
    if name == _STOP_SIGNAL:
        return _SIGNAL.fullmatch(value) is not None
    if name == _EXPOSED_PORTS:
        return all(_PORT.fullmatch(port) for port in value.split(","))
    return _is_text(value)


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
    for line in passwd.decode(errors="replace").split("\n"):
        match line.split(":"):
            case [name, _, user_text, group_text, _, home, *_]:
                user, group = _number(user_text), _number(group_text)
                if user is not None and group is not None:
                    yield _Account(name, user, group, home if _is_home(home) else "/")


def _is_home(path: str) -> bool:
    return path.startswith("/") and _is_text(path)


def _groups(group: bytes) -> Iterator[tuple[int, str, Sequence[str]]]:
    for line in group.decode(errors="replace").split("\n"):
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
