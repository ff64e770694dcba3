"""The sockets that the daemon listens at, and whom they let in."""

from __future__ import annotations

import errno
import fcntl
import grp
import hmac
import logging
import os
import re
import socket
import ssl
import stat
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from layermanager.daemon.problems import RefusedError
from layermanager.daemon.server import Listener
from layermanager.errors import ConfigError
from layermanager.secret_files import check_secret, read_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.daemon.config import TcpConfig

_LOGGER: Final = logging.getLogger(__name__)

_BACKLOG: Final = 256
_OWN_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])?(:[0-9]+)?", re.IGNORECASE)
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="layermanager"'}


@contextmanager
def unix_listener(path: Path, mode: int, group: str) -> Iterator[Listener]:
    """Listen at the Unix socket *path* for the time of the context.

    The socket of a daemon that was killed is replaced. Nobody can connect before the permissions
    are right: until it listens, the kernel refuses.

    Args:
        path: where; missing directories above it are made.
        mode: the permissions of the socket.
        group: its group; empty: that of the process.

    Raises:
        ConfigError: another daemon listens there, or the socket cannot be made.
    """
    group_id = _group_id(group)
    with _named(path), ExitStack() as stack:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        stack.enter_context(_only_daemon_at(path))
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        _remove_stale(path)
        listening.bind(str(path))
        stack.callback(path.unlink, missing_ok=True)
        os.chown(path, -1, group_id)
        path.chmod(mode)
        listening.listen(_BACKLOG)
        resources = stack.pop_all()
    with resources:
        yield Listener(listening, refuse_other_names)


@contextmanager
def _only_daemon_at(path: Path) -> Iterator[None]:
    """Hold the lock that tells a living daemon from the socket of a dead one."""
    with open(f"{path}.lock", "ab", opener=_open_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another daemon listens at {path}") from None
        yield


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot listen at {path}: {error.strerror or error}") from error


def _remove_stale(path: Path) -> None:
    """Remove the socket that a daemon left; it does not listen, for it would hold the lock."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "something else is there")
        path.unlink()


def _group_id(group: str) -> int:
    if not group:
        return -1
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"socketGroup: there is no group {group!r}") from None


def refuse_other_names(headers: Mapping[str, str]) -> None:
    """Refuse what was sent to another host.

    Who may use the socket is decided by its permissions. But where it is forwarded to a port for
    a browser, a page of any other site could send requests there under a name of its own.
    """
    is_ours = _OWN_HOST.fullmatch(headers.get("host", ""))
    if not is_ours or headers.get("sec-fetch-site") == "cross-site":
        raise RefusedError(HTTPStatus.FORBIDDEN, "asked for another host; ask localhost")


@contextmanager
def tcp_listener(config: TcpConfig) -> Iterator[Listener]:
    """Listen on TCP for the time of the context.

    Raises:
        ConfigError: the certificate, the key or the token cannot be used, or the address is taken.
    """
    check_secret(config.key)
    _read_token(config.token_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {config.certificate} and {config.key}: {error}") from error

    def admit(headers: Mapping[str, str]) -> None:
        _refuse_without_token(headers, config.token_file)

    try:
        family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        listening = socket.create_server(
            (config.address, config.port), family=family, backlog=_BACKLOG
        )
    except OSError as error:
        where = f"{config.address} port {config.port}"
        raise ConfigError(f"cannot listen at {where}: {error.strerror or error}") from error
    with listening:
        yield Listener(listening, admit, context)


def _refuse_without_token(headers: Mapping[str, str], token_file: Path) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    try:
        expected = _read_token(token_file)
    except ConfigError as error:
        _LOGGER.error("nobody is let in by TCP: %s", error)  # noqa: TRY400 - no bug
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        raise RefusedError(status, "nobody is let in; see the daemon's log") from error
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), expected.encode()):
        raise RefusedError(
            HTTPStatus.UNAUTHORIZED, "needs the bearer token of this node", headers=_CHALLENGE
        )


def _read_token(path: Path) -> str:
    token = read_secret(path).strip()
    if not token:
        raise ConfigError(f"{path}: the token is empty")
    return token
