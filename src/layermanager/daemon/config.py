"""The object ``layerManager.daemon`` of the configuration file: where the daemon listens.

It is read when a daemon starts and by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from layermanager.daemon.server import ServerLimits
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError
from layermanager.logs import LogFormat

DEFAULT_SOCKET: Final = Path("/run/layermanager/api.sock")

_MODES: Final = frozenset("01234567")
_LONGEST: Final = 24 * 60 * 60
_KEYS: Final = frozenset(
    {
        "socket",
        "socketMode",
        "socketGroup",
        "tcp",
        "maxConnections",
        "maxEventReaders",
        "maxBodyBytes",
        "requestTimeoutSeconds",
        "idleTimeoutSeconds",
        "heartbeatSeconds",
        "stopTimeoutSeconds",
        "logFormat",
    }
)
_TCP_KEYS: Final = frozenset({"address", "port", "certificate", "key", "tokenFile"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConfig:
    """Listening on TCP, never without TLS and a token.

    Attributes:
        address: the IP address of this node to listen at.
        port: the port; 0 for one that the kernel chooses.
        certificate: a PEM file, the chain included.
        key: its private key, a PEM file that not everybody can read.
        token_file: holds the token that requests must show (RFC 6750); it is read for each
            request, so that a new one counts at once.
    """

    address: str
    port: int
    certificate: Path
    key: Path
    token_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """How the daemon is reached.

    Attributes:
        socket: the Unix socket that it makes.
        socket_mode: the permissions of the socket: who may write to it may do everything.
        socket_group: the group that the socket is given; empty: that of the process.
        tcp: where to listen besides; None: nowhere.
        limits: what one client may ask of the server.
        event_readers: how many may have events open at once.
        heartbeat: how long a reader of events hears nothing at most.
        log_format: what the log looks like.
        stop_timeout: how long answers that are being given may take when the daemon stops.
    """

    socket: Path = DEFAULT_SOCKET
    socket_mode: int = 0o660
    socket_group: str = ""
    tcp: TcpConfig | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    event_readers: int = 128
    heartbeat: timedelta = timedelta(seconds=15)
    stop_timeout: timedelta = timedelta(seconds=5)
    log_format: LogFormat = LogFormat.TEXT


def load_daemon_config(path: Path | None) -> DaemonConfig:
    """Read what the configuration file *path* says of the daemon.

    Args:
        path: the file; None for all defaults.

    Raises:
        ConfigError: the file cannot be read, or a key of it cannot be used; the key is named.
    """
    if path is None:
        return DaemonConfig()
    try:
        document = JsonObject.of(parse(path.read_bytes()), "")
        return _from_document(document.child("layerManager").child("daemon"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_document(document: JsonObject) -> DaemonConfig:
    document.refuse_others(_KEYS)
    base = DaemonConfig()
    limits = base.limits
    return DaemonConfig(
        socket=Path(document.text("socket", "") or base.socket),
        socket_mode=_mode(document, base.socket_mode),
        socket_group=document.text("socketGroup", base.socket_group),
        tcp=_tcp(document) if document.members.get("tcp") is not None else None,
        limits=ServerLimits(
            connections=document.integer("maxConnections", limits.connections, minimum=1),
            body_bytes=document.integer("maxBodyBytes", limits.body_bytes, minimum=1),
            request_timeout=_seconds(document, "requestTimeoutSeconds", limits.request_timeout),
            idle_timeout=_seconds(document, "idleTimeoutSeconds", limits.idle_timeout),
        ),
        event_readers=document.integer("maxEventReaders", base.event_readers),
        heartbeat=_seconds(document, "heartbeatSeconds", base.heartbeat),
        stop_timeout=_seconds(document, "stopTimeoutSeconds", base.stop_timeout),
        log_format=_log_format(document, base.log_format),
    )


def _tcp(document: JsonObject) -> TcpConfig:
    tcp = document.child("tcp")
    tcp.refuse_others(_TCP_KEYS)
    return TcpConfig(
        address=tcp.required_text("address"),
        port=tcp.integer("port", 8443, maximum=65535),
        certificate=Path(tcp.required_text("certificate")),
        key=Path(tcp.required_text("key")),
        token_file=Path(tcp.required_text("tokenFile")),
    )


def _log_format(document: JsonObject, default: LogFormat) -> LogFormat:
    text = document.text("logFormat", default)
    if text not in list(LogFormat):
        known = " or ".join(LogFormat)
        raise DocumentError(f"{document.at('logFormat')}: must be {known}, not {text!r:.80}")
    return LogFormat(text)


def _mode(document: JsonObject, default: int) -> int:
    text = document.text("socketMode", "")
    if not text:
        return default
    if not _MODES.issuperset(text) or int(text, 8) > 0o777:
        raise DocumentError(
            f"{document.at('socketMode')}: expected octal digits as 0660, found {text!r:.80}"
        )
    return int(text, 8)


def _seconds(document: JsonObject, key: str, default: timedelta) -> timedelta:
    seconds = document.number(key, default.total_seconds(), minimum=0.001, maximum=_LONGEST)
    return timedelta(seconds=seconds)
