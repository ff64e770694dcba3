"""The configuration: where the store is and within which bounds it works.

The file is JSON. At its top level are the keys of the Aos service manager that matter here, so
that an Aos node's own file can be used as it is; what else it holds belongs to other parts of
the service manager and is ignored. Settings that Aos does not know are in the object
``layerManager``, where an unknown key is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError
from layermanager.model import Limits

Default = TypeVar("Default")

REMOVE_CACHED_LAYERS_PERIOD: Final = timedelta(hours=24)
"""How often cached layers past their time to live are removed (the seed's
``RemoveCachedLayersPeriod``); the default of ``Config.remove_cached_layers_period``."""

DATABASE_NAME: Final = "servicemanager.db"
"""The database in the working directory; the name is Aos's, so that its node can be taken over."""

_LONGEST_TIMEOUT: Final = timedelta(days=1)

DEFAULT_WORKING_DIR: Final = Path("/var/lib/layermanager")
"""The working directory where neither the file nor the caller names one."""


@dataclass(frozen=True, slots=True)
class Config:
    """How a layer manager works; every default is one that a small device can live with.

    What is given as a relative path is below ``working_dir``.

    Attributes:
        working_dir: holds the database and, unless said otherwise, the store.
        layers_dir: the unpacked layers.
        layers_part_limit: the share of its partition that ``layers_dir`` may use, in per cent;
            0 for no limit.
        download_dir: accepted for Aos's sake: packages are unpacked while they arrive, so that
            nothing is ever written there.
        extract_dir: likewise.
        layer_ttl_days: how long a layer is kept after it stopped being desired, in days.
        remove_cached_layers_period: how often the layers past that time are removed.
        parallel_installs: how many layers are installed at once.
        durable: whether what was done is on the disk when it is told to be done. Without that a
            power cut may leave damaged layers, which only a check finds.
        connect_timeout: how long to wait for a server to accept a connection.
        read_timeout: how long to wait for the next bytes of a transfer.
        unpack_timeout: how long an unpacker may take in nothing and say nothing.
        ca_bundle: certificates to trust instead of the system's, a PEM file.
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
    connect_timeout: timedelta = timedelta(seconds=30)
    read_timeout: timedelta = timedelta(seconds=60)
    unpack_timeout: timedelta = timedelta(minutes=10)
    ca_bundle: Path | None = None
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
        if self.ca_bundle is not None:
            object.__setattr__(self, "ca_bundle", working_dir / self.ca_bundle)
        for key, duration, longest in (
            (
                "removeCachedLayersPeriodSeconds",
                self.remove_cached_layers_period,
                timedelta.max,
            ),
            ("connectTimeoutSeconds", self.connect_timeout, _LONGEST_TIMEOUT),
            ("readTimeoutSeconds", self.read_timeout, _LONGEST_TIMEOUT),
            ("unpackTimeoutSeconds", self.unpack_timeout, _LONGEST_TIMEOUT),
        ):
            if not timedelta(0) < duration <= longest:
                raise ConfigError(
                    f"{key} must be more than 0 and at most {longest}, not {duration}"
                )

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
        layer_ttl_days=document.integer("layerTtlDays", base.layer_ttl_days),
        remove_cached_layers_period=_seconds(
            own, "removeCachedLayersPeriodSeconds", base.remove_cached_layers_period
        ),
        parallel_installs=own.integer("parallelInstalls", base.parallel_installs, minimum=1),
        durable=own.boolean("durable", base.durable),
        connect_timeout=_seconds(own, "connectTimeoutSeconds", base.connect_timeout),
        read_timeout=_seconds(own, "readTimeoutSeconds", base.read_timeout),
        unpack_timeout=_seconds(own, "unpackTimeoutSeconds", base.unpack_timeout),
        ca_bundle=_path(own, "caBundle", base.ca_bundle),
        limits=Limits(
            **{
                name: limits.integer(key, getattr(base.limits, name), minimum=1)
                for key, name in _LIMIT_KEYS.items()
            }
        ),
    )


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
        "connectTimeoutSeconds",
        "readTimeoutSeconds",
        "unpackTimeoutSeconds",
        "caBundle",
        "limits",
    }
)
