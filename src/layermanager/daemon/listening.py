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
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

from layermanager.daemon.problems import RefusedError
from layermanager.daemon.server import Listener
from layermanager.errors import ConfigError
from layermanager.private_files import PUBLIC_DIRECTORY, make_directories
from layermanager.secret_files import check_secret, read_secret

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from layermanager.daemon.config import DaemonConfig, TcpConfig
    from layermanager.daemon.server import Admit

_LOGGER: Final = logging.getLogger(__name__)

_BACKLOG: Final = 256
_OWN_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])?(:[0-9]+)?", re.IGNORECASE)
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="layermanager"'}


@dataclass(frozen=True, slots=True)
class _UnixPlace:
    path: Path


@dataclass(frozen=True, slots=True)
class _TcpPlace:
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class _Guard:
    """Who is let in at a place, and by what TLS."""

    admit: Admit
    tls: ssl.SSLContext | None = None


class Places:
    """The places where a daemon listens: they outlive it while it is made anew.

    Args:
        handed_over: sockets that listen already, as a service manager has made them; each is taken
            in the stead of the one of its kind that the configuration names.

    Raises:
        ConfigError: two of them are of one kind.
    """

    def __init__(self, handed_over: Sequence[socket.socket] = ()) -> None:
        self._handed_over: dict[type[_UnixPlace | _TcpPlace], socket.socket] = {}
        for one in handed_over:
            kind = _UnixPlace if one.family == socket.AF_UNIX else _TcpPlace
            if kind in self._handed_over:
                raise ConfigError("two sockets of one kind were handed over: one is enough")
            self._handed_over[kind] = one
        self._sockets: dict[_UnixPlace | _TcpPlace, socket.socket] = {}
        self._stacks: dict[_UnixPlace | _TcpPlace, ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_all_but(())
        for one in self._handed_over.values():
            one.close()

    def listeners(self, config: DaemonConfig) -> Sequence[Listener]:
        """Listen where *config* says from now on, and nowhere else.

        Returns:
            What a server is to accept connections from. It may close the sockets: who connects
            then waits for the next server.

        Raises:
            ConfigError: that cannot be done; where it was listened before, it still is.
        """
        guards: dict[_UnixPlace | _TcpPlace, _Guard] = {
            _UnixPlace(config.socket): _Guard(refuse_other_names)
        }
        if config.tcp is not None:
            guards[_TcpPlace(config.tcp.address, config.tcp.port)] = _guard_of(config.tcp)
        elif _TcpPlace in self._handed_over:
            raise ConfigError("a TCP socket was handed over: it needs the configuration's tcp")
        for place in guards:
            self._listen_at(place, config)
        self._close_all_but(guards)
        return [
            Listener(self._sockets[place].dup(), guard.admit, guard.tls)
            for place, guard in guards.items()
        ]

    def _listen_at(self, place: _UnixPlace | _TcpPlace, config: DaemonConfig) -> None:
        if type(place) in self._handed_over:
            self._sockets[place] = self._handed_over[type(place)]
            return
        if isinstance(place, _TcpPlace):
            if place not in self._sockets:
                self._open(place, tcp_socket(place.address, place.port))
        elif place not in self._sockets:
            self._open(place, unix_socket(place.path, config.socket_mode, config.socket_group))
        else:
            _permit(place.path, config.socket_mode, _group_id(config.socket_group))

    def _open(
        self, place: _UnixPlace | _TcpPlace, making: AbstractContextManager[socket.socket]
    ) -> None:
        stack = ExitStack()
        self._sockets[place] = stack.enter_context(making)
        self._stacks[place] = stack

    def _close_all_but(self, places: Container[_UnixPlace | _TcpPlace]) -> None:
        for place in [one for one in self._sockets if one not in places]:
            del self._sockets[place]
            if place in self._stacks:
                self._stacks.pop(place).close()


@contextmanager
def unix_socket(path: Path, mode: int, group: str) -> Iterator[socket.socket]:
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
        make_directories(path.parent, PUBLIC_DIRECTORY)
        stack.enter_context(_only_daemon_at(path))
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        _remove_stale(path)
        listening.bind(str(path))
        stack.callback(path.unlink, missing_ok=True)
        _permit(path, mode, group_id)
        listening.listen(_BACKLOG)
        resources = stack.pop_all()
    with resources:
        yield listening


def _permit(path: Path, mode: int, group_id: int) -> None:
    os.chown(path, -1, group_id)
    path.chmod(mode)


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
def tcp_socket(address: str, port: int) -> Iterator[socket.socket]:
    """Listen on TCP for the time of the context.

    Raises:
        ConfigError: the address is taken, or none of this node.
    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {address} port {port}: {error.strerror or error}"
        ) from error
    with listening:
        yield listening


def _guard_of(config: TcpConfig) -> _Guard:
    """Who may ask on TCP.

    Raises:
        ConfigError: the certificate, the key or the token cannot be used.
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

    return _Guard(admit, context)


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
