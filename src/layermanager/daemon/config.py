"""The object ``layerManager.daemon`` of the configuration file: where the daemon listens.

It is read when a daemon starts and by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from layermanager.daemon.server import ServerLimits
from layermanager.daemon.verifying import DOCUMENT, SIGNATURE
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError, InvalidReferenceError
from layermanager.logs import LogFormat
from layermanager.oci.reference import RegistryReference, parse_reference
from layermanager.transfer.addresses import Backoff
from layermanager.urls import shown

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
        "desiredState",
    }
)
_DESIRED_STATE_KEYS: Final = frozenset(
    {"source", "pollSeconds", "verifyCommand", "retryDelaySeconds", "longestRetryDelaySeconds"}
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


_BACKOFF: Final = Backoff(timedelta(seconds=10), timedelta(hours=1))

StatePlace: TypeAlias = Path | RegistryReference | str
"""Where a desired state is: in a file, behind a tag of a registry, or at a URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredStateConfig:
    """Where the desired state comes from, and how patiently it is seen to.

    Attributes:
        source: what is followed; None where whoever uses the API says what is desired.
        poll_period: how long to wait, on average, before the source is looked at again.
        verify_command: a program, with its arguments, that proves who made what was found; none
            where everything is believed.
        backoff: how long to wait after the source failed, or an application of what is desired.
    """

    source: StatePlace | None = None
    poll_period: timedelta = timedelta(minutes=5)
    verify_command: tuple[str, ...] = ()
    backoff: Backoff = _BACKOFF

    @property
    def wants_signature(self) -> bool:
        """Whether ``verify_command`` looks at a signature beside the document."""
        return any(SIGNATURE in word for word in self.verify_command)


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
        desired_state: where the desired state comes from.
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
    desired_state: DesiredStateConfig = DesiredStateConfig()


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
        desired_state=_desired_state(document.child("desiredState")),
    )


def _desired_state(document: JsonObject) -> DesiredStateConfig:
    document.refuse_others(_DESIRED_STATE_KEYS)
    base = DesiredStateConfig()
    command = document.texts("verifyCommand")
    if command and not any(DOCUMENT in word for word in command):
        raise DocumentError(
            f"{document.at('verifyCommand')}: no argument has {DOCUMENT}, so nothing is verified"
        )
    source = document.text("source", "")
    return DesiredStateConfig(
        source=_state_place(document, source, is_verified=bool(command)) if source else None,
        poll_period=_seconds(document, "pollSeconds", base.poll_period),
        verify_command=command,
        backoff=Backoff(
            _seconds(document, "retryDelaySeconds", base.backoff.first_delay),
            _seconds(document, "longestRetryDelaySeconds", base.backoff.longest_delay),
        ),
    )


def _state_place(document: JsonObject, text: str, *, is_verified: bool) -> StatePlace:
    place = document.at("source")
    if text.startswith("/"):
        return Path(text)
    scheme = text.partition("://")[0].lower()
    if scheme in {"http", "https"}:
        try:
            host = urlsplit(text).hostname
        except ValueError as error:
            raise DocumentError(f"{place}: {error}: {shown(text):.200}") from error
        if not host:
            raise DocumentError(f"{place}: names no host: {shown(text):.200}")
        if scheme == "http" and not is_verified:
            raise DocumentError(
                f"{place}: anybody on the way may change what comes by http: take https, or set "
                "verifyCommand"
            )
        return text
    try:
        reference = parse_reference(text)
    except InvalidReferenceError as error:
        raise DocumentError(
            f"{place}: expected an absolute path, an https:// URL or REGISTRY/NAME:TAG: {error}"
        ) from error
    if (
        not isinstance(reference, RegistryReference)
        or reference.digest is not None
        or str(reference) != text  # nothing is filled in: it may be a path without its slash
    ):
        raise DocumentError(
            f"{place}: what is followed in a registry is a tag, as REGISTRY/NAME:TAG, not "
            f"{text!r:.200}"
        )
    return reference


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
