"""The configuration: where the store is and within which bounds it works.

The file is JSON. At its top level are the keys of the Aos service manager that matter here, so
that an Aos node's own file can be used as it is; what else it holds belongs to other parts of
the service manager and is ignored. Settings that Aos does not know are in the object
``layerManager``, where an unknown key is an error.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError, InvalidReferenceError
from layermanager.model import Limits
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv6Network

Default = TypeVar("Default")

REMOVE_CACHED_LAYERS_PERIOD: Final = timedelta(hours=24)
"""How often cached layers past their time to live are removed (the seed's
``RemoveCachedLayersPeriod``); the default of ``Config.remove_cached_layers_period``."""

DATABASE_NAME: Final = "servicemanager.db"
"""The database in the working directory; the name is Aos's, so that its node can be taken over."""

_NAT64_LENGTHS: Final = (32, 40, 48, 56, 64, 96)

_LARGEST_UNSIGNED: Final = 2**64 - 1  # of Go's uint64, in which Aos keeps the time to live
_LONGEST_TIMEOUT: Final = timedelta(days=1)
_LONGEST_TRANSFER: Final = timedelta(days=365)

DEFAULT_WORKING_DIR: Final = Path("/var/lib/layermanager")
"""The working directory where neither the file nor the caller names one."""


class TlsVersion(enum.StrEnum):
    """A version of TLS that may be asked for at least."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """How a registry is reached.

    Attributes:
        mirrors: URLs of the registries that are asked first, in this order; a path in one is put
            in front of the repository.
        is_plain: whether it speaks http and no TLS. For a mirror its URL says that.

    Raises:
        ConfigError: a mirror is no such URL.
    """

    mirrors: tuple[str, ...] = ()
    is_plain: bool = False

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            _check_mirror(mirror)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How patiently, how fast and in whose name files are fetched.

    What is given as a relative path is below ``Config.working_dir``.

    Attributes:
        connect_timeout: how long to wait for a server to accept a connection.
        read_timeout: how long to wait for the next bytes, and the time over which
            ``minimum_rate`` is looked at.
        minimum_rate: bytes a second below which a server is given up for a while.
        transfer_timeout: how long one layer may take to arrive, all waiting included.
        document_timeout: how long one document may take to arrive, redirects and login included: a
            manifest, a token, a configuration, a desired state.
        attempts: how often an address may fail in a row, without a byte in between.
        retry_delay: about how long to wait after a failure; doubled for each further one.
        longest_retry_delay: what the doubling ends at; a server may ask for more.
        rate_limit: bytes a second that all transfers may take together; 0 for no limit.
        spool_bytes: files of this size and more are kept in ``Config.download_dir`` while they
            arrive, so that they can be gone on with after a crash or a power cut.
        ca_bundle: certificates to trust instead of the system's, a PEM file.
        client_certificate: what to show to servers that ask who is there, a PEM file.
        client_key: its private key, a PEM file that not everybody can read; None if it is in
            ``client_certificate``.
        minimum_tls_version: older versions are refused.
        credentials_file: a JSON file of names, passwords and tokens by host.
        netrc_file: likewise, in the format of ftp and curl.
        registries: what is to be known of registries, by their names in references.
        nat64_prefixes: the prefixes of this network's NAT64 translators (RFC 6052), so that no
            redirect leads further in by way of one.

    Raises:
        ConfigError: a value cannot be used.
    """

    connect_timeout: timedelta = timedelta(seconds=30)
    read_timeout: timedelta = timedelta(seconds=60)
    minimum_rate: int = 256
    transfer_timeout: timedelta = timedelta(days=1)
    document_timeout: timedelta = timedelta(seconds=60)
    attempts: int = 6
    retry_delay: timedelta = timedelta(seconds=1)
    longest_retry_delay: timedelta = timedelta(minutes=1)
    rate_limit: int = 0
    spool_bytes: int = 64 * 1024 * 1024
    ca_bundle: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    minimum_tls_version: TlsVersion = TlsVersion.TLS_1_2
    credentials_file: Path | None = None
    netrc_file: Path | None = None
    registries: Mapping[str, Registry] = field(default_factory=lambda: MappingProxyType({}))
    nat64_prefixes: tuple[IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        for name, duration, longest in (
            ("connectTimeoutSeconds", self.connect_timeout, _LONGEST_TIMEOUT),
            ("readTimeoutSeconds", self.read_timeout, _LONGEST_TIMEOUT),
            ("transferTimeoutSeconds", self.transfer_timeout, _LONGEST_TRANSFER),
            ("documentTimeoutSeconds", self.document_timeout, _LONGEST_TIMEOUT),
            ("retryDelaySeconds", self.retry_delay, _LONGEST_TIMEOUT),
            ("longestRetryDelaySeconds", self.longest_retry_delay, _LONGEST_TIMEOUT),
        ):
            _check_duration(name, duration, longest)
        if self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, not {self.attempts}")
        for name, size in (
            ("minimumRate", self.minimum_rate),
            ("rateLimit", self.rate_limit),
            ("spoolBytes", self.spool_bytes),
        ):
            if size < 0:
                raise ConfigError(f"{name} must not be negative: {size}")
        if self.client_key is not None and self.client_certificate is None:
            raise ConfigError("clientKey is given without clientCertificate")
        for name in self.registries:
            _check_registry(name)
        for prefix in self.nat64_prefixes:
            _check_nat64_prefix(prefix)

    def below(self, directory: Path) -> Network:
        """The same with all paths absolute: relative ones are below *directory*."""
        return replace(
            self,
            **{
                name: directory / path
                for name in _NETWORK_FILES
                if (path := getattr(self, name)) is not None
            },
        )


_NETWORK_FILES: Final = (
    "ca_bundle",
    "client_certificate",
    "client_key",
    "credentials_file",
    "netrc_file",
)


@dataclass(frozen=True, slots=True)
class Config:
    """How a layer manager works; every default is one that a small device can live with.

    What is given as a relative path is below ``working_dir``.

    Attributes:
        working_dir: holds the database and, unless said otherwise, the store.
        layers_dir: the unpacked layers.
        layers_part_limit: the share of its partition that ``layers_dir`` may use, in per cent;
            0 for no limit.
        download_dir: what has arrived of large files, for the case of a crash.
        extract_dir: accepted for Aos's sake: packages are unpacked while they arrive, so that
            nothing is ever written there.
        layer_ttl_days: how long a layer is kept after it stopped being desired, in days.
        remove_cached_layers_period: how often the layers past that time are removed.
        parallel_installs: how many layers are installed at once.
        durable: whether what was done is on the disk when it is told to be done. Without that a
            power cut may leave damaged layers, which only a check finds.
        unpack_timeout: how long an unpacker may make no progress.
        network: how files are fetched.
        limits: bounds of what is accepted as a layer.

    Raises:
        ConfigError: a value cannot be used.
    """

    working_dir: Path
    layers_dir: Path = Path("layers")
    layers_part_limit: int = 0
    download_dir: Path = Path("download")
    extract_dir: Path = Path("extract")
    layer_ttl_days: int = 30
    remove_cached_layers_period: timedelta = REMOVE_CACHED_LAYERS_PERIOD
    parallel_installs: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    durable: bool = True
    unpack_timeout: timedelta = timedelta(minutes=10)
    network: Network = field(default_factory=Network)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        working_dir = Path(self.working_dir).absolute()
        object.__setattr__(self, "working_dir", working_dir)
        for name in ("layers_dir", "download_dir", "extract_dir"):
            object.__setattr__(self, name, working_dir / getattr(self, name))
        if not 0 <= self.layers_part_limit <= 100:
            raise ConfigError(
                f"layersPartLimit must be 0 to 100 per cent, not {self.layers_part_limit}"
            )
        if self.layer_ttl_days < 0:
            raise ConfigError(f"layerTtlDays must not be negative: {self.layer_ttl_days}")
        if self.parallel_installs < 1:
            raise ConfigError(f"parallelInstalls must be at least 1, not {self.parallel_installs}")
        object.__setattr__(self, "network", self.network.below(working_dir))
        _check_duration(
            "removeCachedLayersPeriodSeconds", self.remove_cached_layers_period, timedelta.max
        )
        _check_duration("unpackTimeoutSeconds", self.unpack_timeout, _LONGEST_TIMEOUT)

    @property
    def database(self) -> Path:
        """The SQLite file that records the installed layers."""
        return self.working_dir / DATABASE_NAME

    @property
    def index_dir(self) -> Path:
        """The indexes of the layers; not in ``layers_dir``, where Aos's own manager tidies up."""
        return self.working_dir / "index"

    @property
    def layer_ttl(self) -> timedelta:
        """``layer_ttl_days`` as a duration; a number of days beyond all calendars means forever."""
        return timedelta(days=min(self.layer_ttl_days, timedelta.max.days))


def load_config(path: Path | None, *, working_dir: Path | None = None) -> Config:
    """Read the configuration file *path*, if there is one to read.

    Args:
        path: a JSON file; None for all defaults.
        working_dir: overrides the file's ``workingDir``.

    Raises:
        ConfigError: the file cannot be read, or a key of it cannot be used; the key is named.
    """
    if path is None:
        return Config(working_dir=working_dir or DEFAULT_WORKING_DIR)
    try:
        return _from_document(JsonObject.of(parse(path.read_bytes()), ""), working_dir)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    except (DocumentError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_document(document: JsonObject, working_dir: Path | None) -> Config:
    own = document.child("layerManager")
    own.refuse_others(_OWN_KEYS)
    limits = own.child("limits")
    limits.refuse_others(frozenset(_LIMIT_KEYS))
    base = Config(working_dir or Path(document.text("workingDir", "") or DEFAULT_WORKING_DIR))
    return replace(
        base,
        layers_dir=_path(document, "layersDir", base.layers_dir),
        layers_part_limit=document.integer("layersPartLimit", base.layers_part_limit, maximum=100),
        download_dir=_path(document, "downloadDir", base.download_dir),
        extract_dir=_path(document, "extractDir", base.extract_dir),
        layer_ttl_days=document.integer(
            "layerTtlDays", base.layer_ttl_days, maximum=_LARGEST_UNSIGNED
        ),
        remove_cached_layers_period=_seconds(
            own, "removeCachedLayersPeriodSeconds", base.remove_cached_layers_period
        ),
        parallel_installs=own.integer("parallelInstalls", base.parallel_installs, minimum=1),
        durable=own.boolean("durable", base.durable),
        unpack_timeout=_seconds(own, "unpackTimeoutSeconds", base.unpack_timeout),
        network=_network(own.child("network"), base.network),
        limits=Limits(
            **{
                name: limits.integer(key, getattr(base.limits, name), minimum=1)
                for key, name in _LIMIT_KEYS.items()
            }
        ),
    )


def _network(document: JsonObject, base: Network) -> Network:
    document.refuse_others(_NETWORK_KEYS)
    return Network(
        connect_timeout=_seconds(document, "connectTimeoutSeconds", base.connect_timeout),
        read_timeout=_seconds(document, "readTimeoutSeconds", base.read_timeout),
        minimum_rate=document.integer("minimumRate", base.minimum_rate),
        transfer_timeout=_seconds(document, "transferTimeoutSeconds", base.transfer_timeout),
        document_timeout=_seconds(document, "documentTimeoutSeconds", base.document_timeout),
        attempts=document.integer("attempts", base.attempts, minimum=1),
        retry_delay=_seconds(document, "retryDelaySeconds", base.retry_delay),
        longest_retry_delay=_seconds(
            document, "longestRetryDelaySeconds", base.longest_retry_delay
        ),
        rate_limit=document.integer("rateLimit", base.rate_limit),
        spool_bytes=document.integer("spoolBytes", base.spool_bytes),
        ca_bundle=_path(document, "caBundle", base.ca_bundle),
        client_certificate=_path(document, "clientCertificate", base.client_certificate),
        client_key=_path(document, "clientKey", base.client_key),
        minimum_tls_version=_tls_version(document, base.minimum_tls_version),
        credentials_file=_path(document, "credentialsFile", base.credentials_file),
        netrc_file=_path(document, "netrcFile", base.netrc_file),
        registries=_registries(document.child("registries")),
        nat64_prefixes=tuple(map(_nat64_prefix, document.texts("nat64Prefixes"))),
    )


def _nat64_prefix(text: str) -> IPv6Network:
    from ipaddress import IPv6Network  # noqa: PLC0415 - few configurations name prefixes

    try:
        return IPv6Network(text)
    except ValueError as error:
        raise ConfigError(f"nat64Prefixes: not an IPv6 prefix: {text!r:.80}: {error}") from error


def _check_nat64_prefix(prefix: IPv6Network) -> None:
    """Refuse what RFC 6052, 2.2, does not allow."""
    if prefix.prefixlen not in _NAT64_LENGTHS:
        lengths = ", ".join(map(str, _NAT64_LENGTHS))
        raise ConfigError(f"nat64Prefixes: {prefix}: the length must be one of {lengths}")
    if prefix.network_address.packed[8]:
        raise ConfigError(f"nat64Prefixes: {prefix}: bits 64 to 71 must be 0 (RFC 6052)")


def _registries(document: JsonObject) -> Mapping[str, Registry]:
    return MappingProxyType({name: _registry(document.child(name)) for name in document.members})


def _registry(document: JsonObject) -> Registry:
    document.refuse_others(_REGISTRY_KEYS)
    base = Registry()
    return Registry(
        mirrors=document.texts("mirrors"), is_plain=document.boolean("http", base.is_plain)
    )


def _check_registry(name: str) -> None:
    """Refuse what no reference calls a registry."""
    # Here and not above: few configurations name registries.
    from layermanager.oci.reference import parse_registry_reference  # noqa: PLC0415

    try:
        meant = parse_registry_reference(f"{name}/x").registry
    except InvalidReferenceError as error:
        raise ConfigError(f"registries: not a registry: {name!r:.200}") from error
    if meant != name:
        raise ConfigError(
            f"registries: {name!r:.200} is no registry to a reference, which means {meant} by it"
        )


def _check_mirror(url: str) -> None:
    from layermanager.oci.reference import parse_registry_reference  # noqa: PLC0415 - as above

    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and not (parts.query or parts.fragment)
        place = f"{parts.netloc}/{parts.path.strip('/') or 'x'}"
        usable = usable and str(parse_registry_reference(f"{place}:x")) == f"{place}:x"
    except (ValueError, InvalidReferenceError):
        usable = False
    if not usable:
        raise ConfigError(
            f"mirrors: expected http:// or https://, a host and perhaps a path, "
            f"found {shown(url)!r:.200}"
        )


def _tls_version(document: JsonObject, default: TlsVersion) -> TlsVersion:
    text = document.text("minimumTlsVersion", default)
    if text not in list(TlsVersion):
        known = " or ".join(TlsVersion)
        raise DocumentError(f"{document.at('minimumTlsVersion')}: must be {known}, not {text!r}")
    return TlsVersion(text)


def _check_duration(key: str, duration: timedelta, longest: timedelta) -> None:
    if not timedelta(0) < duration <= longest:
        raise ConfigError(f"{key} must be more than 0 and at most {longest}, not {duration}")


def _path(document: JsonObject, key: str, default: Default) -> Path | Default:
    text = document.text(key, "")
    return Path(text) if text else default


def _seconds(document: JsonObject, key: str, default: timedelta) -> timedelta:
    longest = timedelta.max.days * 24 * 60 * 60
    return timedelta(
        seconds=document.number(key, default.total_seconds(), minimum=0, maximum=longest)
    )


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


_LIMIT_KEYS: Final = {_camel_case(limit.name): limit.name for limit in fields(Limits)}
_OWN_KEYS: Final = frozenset(
    {
        "removeCachedLayersPeriodSeconds",
        "parallelInstalls",
        "durable",
        "unpackTimeoutSeconds",
        "network",
        "limits",
        "daemon",  # which the daemon reads for itself
    }
)
_REGISTRY_KEYS: Final = frozenset({"mirrors", "http"})
_NETWORK_KEYS: Final = frozenset(
    {
        "connectTimeoutSeconds",
        "readTimeoutSeconds",
        "minimumRate",
        "transferTimeoutSeconds",
        "documentTimeoutSeconds",
        "attempts",
        "retryDelaySeconds",
        "longestRetryDelaySeconds",
        "rateLimit",
        "spoolBytes",
        "caBundle",
        "clientCertificate",
        "clientKey",
        "minimumTlsVersion",
        "credentialsFile",
        "netrcFile",
        "registries",
        "nat64Prefixes",
    }
)
