"""The record of the installed layers: a table in Aos's SQLite database.

The table is the one that the Aos service manager made, so that a node can be taken over and given
back. Aos reads it by position and reads no NULL: no column is ever added, and no NULL is written.
Its other tables are not touched. Where each layer comes from, and which layers are images, is in
tables of our own, which Aos passes over; so is how much time has passed for the store. Should Aos
remove a layer, the images that have it are no longer there either: only those whose layers are all
recorded count.

How the file is opened and read is in ``database``. With ``synchronous=FULL`` a change is on the
disk when its transaction ends. Which changes the schema has had is in ``PRAGMA user_version``,
which Aos does not use; each change is a step of ``_MIGRATIONS``.

What others wrote is read with patience, since a row that cannot be read is a layer that would be
removed from the disk: a NULL text reads as empty, a size that is none as 0, a timestamp that is
none as the time at which it was met, so that the layer's time to live starts then. Only a row
without a digest or an absolute path says nothing; it is passed over. Each is logged once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from layermanager.ages import AgeRecord, Period, StoreTime, SynchronisedTime, layer_subject
from layermanager.amounts import Amount
from layermanager.database import errors_named, open_database, read_database
from layermanager.errors import InvalidDigestError, LayerNotExistError, StorageError
from layermanager.leases import LayerMount, Lease, format_bond, parse_bond
from layermanager.model import DesiredLayer, Digest, Footprint, ImageInfo, LayerInfo
from layermanager.reserve import Reserve
from layermanager.steps import Step, unannounced
from layermanager.timestamps import format_timestamp, parse_timestamp
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from layermanager.protocols import Clock
    from layermanager.steps import OnStep

Content = TypeVar("Content")
_SourceRow: TypeAlias = tuple[str, str, str, str, bytes, int | None, str, str | None]

_LOGGER: Final = logging.getLogger(__name__)

_COLUMNS: Final = (
    "digest",
    "layerId",
    "path",
    "osVersion",
    "version",
    "timestamp",
    "cached",
    "size",
)

_MIGRATIONS: Final = (
    """
    CREATE TABLE IF NOT EXISTS layers (
        digest TEXT NOT NULL PRIMARY KEY,
        layerId TEXT,
        path TEXT,
        osVersion TEXT,
        version TEXT,
        timestamp TIMESTAMP,
        cached INTEGER,
        size INTEGER
    )
    """,
    """
    CREATE TABLE layerSources (
        digest TEXT NOT NULL PRIMARY KEY,
        layerId TEXT NOT NULL,
        version TEXT NOT NULL,
        url TEXT NOT NULL,
        sha256 BLOB NOT NULL,
        size INTEGER
    ) WITHOUT ROWID
    """,
    "ALTER TABLE layerSources ADD COLUMN mirrors TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE layerSources ADD COLUMN diffId TEXT",
    """
    CREATE TABLE ociImages (
        reference TEXT NOT NULL,
        digest TEXT NOT NULL,
        platform TEXT NOT NULL,
        configDigest TEXT NOT NULL,
        config BLOB NOT NULL,
        timestamp TIMESTAMP NOT NULL,
        cached INTEGER NOT NULL,
        PRIMARY KEY (reference, digest)
    )
    """,
    """
    CREATE TABLE ociImageLayers (
        reference TEXT NOT NULL,
        digest TEXT NOT NULL,
        position INTEGER NOT NULL,
        layer TEXT NOT NULL,
        diffId TEXT NOT NULL,
        PRIMARY KEY (reference, digest, position)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE layerLeases (
        leaseId TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        layers TEXT NOT NULL,
        created TEXT NOT NULL,
        expires TEXT,
        bond TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE layerMounts (
        name TEXT NOT NULL PRIMARY KEY,
        leaseId TEXT NOT NULL,
        target BLOB NOT NULL,
        upper BLOB
    ) WITHOUT ROWID
    """,
    "ALTER TABLE ociImages ADD COLUMN directories TEXT",
    """
    CREATE TABLE layerFootprints (
        digest TEXT NOT NULL PRIMARY KEY,
        size INTEGER NOT NULL,
        inodes INTEGER NOT NULL,
        blockBytes INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE storeTime (
        id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        passed INTEGER NOT NULL,
        boot TEXT NOT NULL,
        sinceBoot INTEGER NOT NULL,
        newest TEXT NOT NULL,
        syncPassed INTEGER,
        syncBoot TEXT,
        syncCalendar TEXT
    )
    """,
    """
    CREATE TABLE agePeriods (
        subject TEXT NOT NULL PRIMARY KEY,
        timestamp TEXT NOT NULL,
        begun INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    # Earlier versions recorded that images need no layer of directories where they could not tell.
    "ALTER TABLE ociImages ADD COLUMN directoriesKnown INTEGER NOT NULL DEFAULT 0",
)
"""The statement at index N takes a database from ``user_version`` N to N + 1."""

_SELECT: Final = """
    SELECT
        CAST(digest AS TEXT),
        ifnull(CAST(layerId AS TEXT), ''),
        ifnull(CAST(version AS TEXT), ''),
        ifnull(CAST(path AS TEXT), ''),
        ifnull(CAST(osVersion AS TEXT), ''),
        timestamp,
        ifnull(cached, 0) <> 0,
        size
    FROM layers
"""
_SELECT_ALL: Final = _SELECT + "ORDER BY digest"
_SELECT_ONE: Final = _SELECT + "WHERE digest = :digest"
_REPLACE: Final = """
    INSERT OR REPLACE INTO layers
        (digest, layerId, path, osVersion, version, timestamp, cached, size)
    VALUES
        (:digest, :layer_id, :path, :os_version, :version, :timestamp, :cached, :size)
"""
_DELETE: Final = "DELETE FROM layers WHERE digest = :digest"
_SOURCE_COLUMNS: Final = ("digest", "url", "layerId", "version", "sha256", "size")
_LATER_SOURCE_COLUMNS: Final = {"mirrors": "'[]'", "diffId": "NULL"}
"""Those that databases of earlier versions lack, each with what is read in its stead."""

_REPLACE_SOURCE: Final = """
    INSERT OR REPLACE INTO layerSources
        (digest, url, layerId, version, sha256, size, mirrors, diffId)
    VALUES
        (?, ?, ?, ?, ?, ?, ?, ?)
"""
_DELETE_SOURCE: Final = "DELETE FROM layerSources WHERE digest = :digest"
_SELECT_LEASES: Final = (
    "SELECT leaseId, owner, layers, created, expires, bond FROM layerLeases ORDER BY created"
)
_REPLACE_LEASE: Final = """
    INSERT OR REPLACE INTO layerLeases
        (leaseId, owner, layers, created, expires, bond)
    VALUES
        (?, ?, ?, ?, ?, ?)
"""
_DELETE_LEASE: Final = "DELETE FROM layerLeases WHERE leaseId = :lease_id"
_SELECT_MOUNTS: Final = """
    SELECT name, leaseId, target, upper, ifnull(layers, '[]')
    FROM layerMounts LEFT JOIN layerLeases USING (leaseId)
    ORDER BY name
"""
_REPLACE_MOUNT: Final = """
    INSERT OR REPLACE INTO layerMounts
        (name, leaseId, target, upper)
    VALUES
        (?, ?, ?, ?)
"""
_SELECT_TIME: Final = """
    SELECT passed, boot, sinceBoot, newest, syncPassed, syncBoot, syncCalendar FROM storeTime
"""
_REPLACE_TIME: Final = """
    INSERT OR REPLACE INTO storeTime
        (id, passed, boot, sinceBoot, newest, syncPassed, syncBoot, syncCalendar)
    VALUES
        (1, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT_PERIODS: Final = "SELECT subject, timestamp, begun FROM agePeriods"
_REPLACE_PERIOD: Final = (
    "INSERT OR REPLACE INTO agePeriods (subject, timestamp, begun) VALUES (?, ?, ?)"
)
_DELETE_PERIOD: Final = "DELETE FROM agePeriods WHERE subject = :subject"
_MICROSECOND: Final = timedelta(microseconds=1)
_DELETE_MOUNT: Final = "DELETE FROM layerMounts WHERE name = :name"
_REPLACE_FOOTPRINT: Final = """
    INSERT OR REPLACE INTO layerFootprints
        (digest, size, inodes, blockBytes)
    VALUES
        (?, ?, ?, ?)
"""
_SELECT_FOOTPRINTS: Final = "SELECT digest, size, inodes, blockBytes FROM layerFootprints"
_DELETE_OLD_FOOTPRINTS: Final = """
    DELETE FROM layerFootprints WHERE
        digest NOT IN (SELECT CAST(digest AS TEXT) FROM layers)
        AND rowid NOT IN (SELECT rowid FROM layerFootprints ORDER BY rowid DESC LIMIT :kept)
"""
_KEPT_FOOTPRINTS: Final = 1000
"""So many are remembered at most, those of installed layers not counted."""

_SET_CACHED: Final = """
    UPDATE layers SET
        timestamp = CASE
            WHEN (ifnull(cached, 0) <> 0) = :cached THEN timestamp
            ELSE :now
        END,
        cached = :cached
    WHERE digest = :digest
"""


_IMAGE_COLUMNS: Final = (
    "reference",
    "digest",
    "platform",
    "configDigest",
    "config",
    "timestamp",
    "cached",
)
_LATER_IMAGE_COLUMNS: Final = {"directories": "NULL", "directoriesKnown": "0"}
"""Those that databases of earlier versions lack, each with what is read in its stead."""

_COMPLETE_IMAGES: Final = """
    WHERE (reference, digest) NOT IN (
        SELECT reference, digest FROM ociImageLayers
        WHERE layer NOT IN (SELECT CAST(digest AS TEXT) FROM layers)
    )
    ORDER BY reference, digest
"""
_SELECT_INCOMPLETE_IMAGES: Final = """
    SELECT DISTINCT reference, digest FROM ociImageLayers
    WHERE layer NOT IN (SELECT CAST(digest AS TEXT) FROM layers)
"""
_SELECT_IMAGES_WITH_LAYER: Final = (
    "SELECT DISTINCT reference, digest FROM ociImageLayers WHERE layer = :digest"
)
_SELECT_IMAGE_LAYERS: Final = """
    SELECT layer, diffId FROM ociImageLayers
    WHERE reference = :reference AND digest = :digest
    ORDER BY position
"""
_REPLACE_IMAGE: Final = """
    INSERT OR REPLACE INTO ociImages
        (reference, digest, platform, configDigest, config, timestamp, cached, directories,
            directoriesKnown)
    VALUES
        (:reference, :digest, :platform, :config_digest, :config, :timestamp, :cached,
            :directories, :directories_known)
"""
_INSERT_IMAGE_LAYER: Final = """
    INSERT INTO ociImageLayers
        (reference, digest, position, layer, diffId)
    VALUES
        (?, ?, ?, ?, ?)
"""
_SET_IMAGE_CACHED: Final = """
    UPDATE ociImages SET
        timestamp = CASE WHEN cached = :cached THEN timestamp ELSE :now END,
        cached = :cached
    WHERE reference = :reference AND digest = :digest
"""
_DELETE_IMAGE: Final = "DELETE FROM ociImages WHERE reference = :reference AND digest = :digest"
_DELETE_IMAGE_LAYERS: Final = (
    "DELETE FROM ociImageLayers WHERE reference = :reference AND digest = :digest"
)


@dataclass(frozen=True, slots=True)
class _Brackets:
    """The statements around a transaction, or around a part of one."""

    begin: str
    keep: str
    take_back: tuple[str, ...]


_WHOLE: Final = _Brackets("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_PART: Final = _Brackets("SAVEPOINT part", "RELEASE part", ("ROLLBACK TO part", "RELEASE part"))


class SqliteLayerStorage:
    """The ``LayerStorage`` in a SQLite file, for any number of threads and processes.

    The file is made where it is missing, its directory is not. All threads share one connection,
    one at a time. To be closed; closing twice is no error.

    Args:
        path: the file.
        clock: the time, for changes that are dated.
        durable: whether a change is on the disk when its method returns. If not, a power cut may
            take back changes, and may damage the database.
        on_step: is told of each change of the disk before it is made.

    Raises:
        StorageError: the database cannot be opened, was made by a newer version of this
            package, or its table ``layers`` is not Aos's.
    """

    def __init__(
        self, path: Path, clock: Clock, *, durable: bool = True, on_step: OnStep = unannounced
    ) -> None:
        self._path = path
        self._clock = clock
        self._on_step = on_step
        self._rows = _RowReader(path, clock)
        self._lock = threading.RLock()
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"), on_step)
        self._connection = open_database(
            path,
            self._reserve,
            on_step,
            require_known=lambda connection: _refuse_foreign(connection, path),
            prepare=lambda connection: self._prepare(connection, durable=durable),
        )

    def add_layer(self, layer: LayerInfo) -> None:
        """Add *layer*; one of the same digest is replaced."""
        self._execute(
            _REPLACE,
            {
                "digest": layer.digest,
                "layer_id": layer.layer_id,
                "path": str(layer.path.absolute()),
                "os_version": layer.os_version,
                "version": layer.version,
                "timestamp": format_timestamp(layer.timestamp),
                "cached": int(layer.cached),
                "size": layer.size,
            },
        )

    def delete_layer_by_digest(self, digest: Digest) -> None:
        """Forget a layer, and the images that have it; one that is not there is no error."""
        with self.transaction():
            self._execute(_DELETE, {"digest": digest})
            self._execute(_DELETE_SOURCE, {"digest": digest})
            self._delete_images(_SELECT_IMAGES_WITH_LAYER, {"digest": digest})

    def add_image(self, image: ImageInfo) -> None:
        """Add *image*, whose layers are there; one of the same reference and digest is replaced.

        What others left of images when they removed layers goes at this occasion.
        """
        key = {"reference": image.reference, "digest": image.digest}
        with self.transaction():
            self._delete_images(_SELECT_INCOMPLETE_IMAGES, {})
            self._execute(
                _REPLACE_IMAGE,
                {
                    **key,
                    "platform": image.platform,
                    "config_digest": image.config_digest,
                    "config": image.config,
                    "timestamp": format_timestamp(image.timestamp),
                    "cached": int(image.cached),
                    "directories": image.directories,
                    "directories_known": int(image.are_directories_known),
                },
            )
            self._execute(_DELETE_IMAGE_LAYERS, key)
            for position, layer in enumerate(zip(image.layers, image.diff_ids, strict=True)):
                self._execute(
                    _INSERT_IMAGE_LAYER, (image.reference, image.digest, position, *layer)
                )

    def delete_image(self, reference: str, digest: Digest) -> None:
        """Forget an image, but none of its layers; one that is not there is no error."""
        key = {"reference": reference, "digest": digest}
        with self.transaction():
            self._execute(_DELETE_IMAGE, key)
            self._execute(_DELETE_IMAGE_LAYERS, key)

    def get_images_info(self) -> tuple[ImageInfo, ...]:
        """The images whose layers are all there, ordered by reference and digest."""
        with self._lock, errors_named(self._path):
            return _images(self._connection)

    def set_image_cached(self, reference: str, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - as for layers
        """Note that an image is cached from now on, or is desired again.

        Its timestamp becomes the current time if this is a change. An image that is not there is
        no error: it went with one of its layers.
        """
        now = format_timestamp(self._clock.now())
        self._execute(
            _SET_IMAGE_CACHED,
            {"reference": reference, "digest": digest, "cached": int(cached), "now": now},
        )

    def note_sources(self, layers: Iterable[DesiredLayer]) -> None:
        """Remember from where *layers* can be fetched again, without credentials.

        Only what is new is written.
        """
        with self._lock, errors_named(self._path):
            known = {row[0]: row for row in _source_rows(self._connection)}
            rows = [_source_row(layer) for layer in layers]
            changed = [row for row in rows if known.get(row[0]) != row]
            if not changed:
                return
            with self.transaction():
                for row in changed:
                    self._execute(_REPLACE_SOURCE, row)

    def get_sources(self) -> Mapping[Digest, DesiredLayer]:
        """From where each layer can be fetched again, as far as that is known."""
        with self._lock, errors_named(self._path):
            return _sources(self._connection)

    def note_footprint(self, digest: Digest, footprint: Footprint) -> None:
        """Remember what a layer takes; of removed layers the last ones are remembered."""
        amount = footprint.amount
        row = (digest, amount.size, amount.inodes, footprint.block_bytes)
        with self.transaction():
            self._execute(_REPLACE_FOOTPRINT, row)
            self._execute(_DELETE_OLD_FOOTPRINTS, {"kept": _KEPT_FOOTPRINTS})

    def get_footprints(self) -> Mapping[Digest, Footprint]:
        """What each layer takes, or took when it was installed last, as far as that is known."""
        with self._lock, errors_named(self._path):
            return _footprints(self._connection)

    def add_lease(self, lease: Lease) -> None:
        """Add *lease*; one of the same id is replaced."""
        self._execute(_REPLACE_LEASE, _lease_row(lease))

    def delete_lease(self, lease_id: str) -> None:
        """Forget a lease; one that is not there is no error."""
        self._execute(_DELETE_LEASE, {"lease_id": lease_id})

    def get_leases(self) -> tuple[Lease, ...]:
        """All leases, those that are over included, in the order in which they were made."""
        with self._lock, errors_named(self._path):
            return _leases(self._connection)

    def add_mount(self, mount: LayerMount) -> None:
        """Add *mount*; one of the same name is replaced."""
        upper = mount.upper and os.fsencode(mount.upper)
        self._execute(
            _REPLACE_MOUNT, (mount.name, mount.lease_id, os.fsencode(mount.target), upper)
        )

    def delete_mount(self, name: str) -> None:
        """Forget a mount; one that is not there is no error."""
        self._execute(_DELETE_MOUNT, {"name": name})

    def get_mounts(self) -> tuple[LayerMount, ...]:
        """All mounts, ordered by name, with the layers of their leases."""
        with self._lock, errors_named(self._path):
            return _mounts(self._connection)

    def get_ages(self) -> AgeRecord:
        """Return the record that was put last; an empty one if none was."""
        with self._lock, errors_named(self._path):
            return _ages(self._connection)

    def put_ages(self, record: AgeRecord) -> None:
        """Replace the record; of the periods only changes are written."""
        with self.transaction():
            before = self.get_ages()
            for subject in before.periods.keys() - record.periods.keys():
                self._execute(_DELETE_PERIOD, {"subject": subject})
            for subject, period in record.periods.items():
                if before.periods.get(subject) != period:
                    timestamp = format_timestamp(period.timestamp)
                    self._execute(_REPLACE_PERIOD, (subject, timestamp, _count(period.begun)))
            if record.time is not None and record.time != before.time:
                self._execute(_REPLACE_TIME, _time_row(record.time))

    def get_layers_info(self) -> tuple[LayerInfo, ...]:
        """All layers, ordered by digest."""
        with self._lock, errors_named(self._path):
            rows = self._connection.execute(_SELECT_ALL).fetchall()
            return self._rows.layers(rows, self._connection)

    def get_layer_info_by_digest(self, digest: Digest) -> LayerInfo:
        """One layer.

        Raises:
            LayerNotExistError: it is not there.
        """
        with self._lock, errors_named(self._path):
            rows = self._connection.execute(_SELECT_ONE, {"digest": digest}).fetchall()
            for layer in self._rows.layers(rows, self._connection):
                return layer
        raise LayerNotExistError(f"layer {digest} is not installed", digest=digest)

    def set_layer_cached(self, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - the seed's
        """Note that a layer is cached from now on, or is desired again.

        Its timestamp becomes the current time if this is a change, so it may be repeated.

        Raises:
            LayerNotExistError: it is not there.
        """
        now = format_timestamp(self._clock.now())
        found = self._execute(_SET_CACHED, {"digest": digest, "cached": int(cached), "now": now})
        if not found:
            raise LayerNotExistError(f"layer {digest} is not installed", digest=digest)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes within the ``with`` block one, durable when the block ends.

        An exception that leaves the block takes its changes back. A block within a block of the
        same thread is a part of it: durable, or taken back, with the outer one. Other threads
        that use this object wait, other processes wait only to write: so keep it short.
        """
        with self._lock, self._room():
            with errors_named(self._path):
                brackets = _PART if self._connection.in_transaction else _WHOLE
                self._connection.execute(brackets.begin)
            try:
                yield
                with errors_named(self._path):
                    self._on_step(Step.COMMIT_ROWS)
                    self._connection.execute(brackets.keep)
            except BaseException:
                with errors_named(self._path):
                    # SQLite takes all back by itself when the disk is full or fails.
                    if self._connection.in_transaction:
                        for statement in brackets.take_back:
                            self._connection.execute(statement)
                raise

    def close(self) -> None:
        """Close the database; what a thread is doing with it is done first."""
        with self._lock, errors_named(self._path):
            try:
                self._on_step(Step.CLOSE_DATABASE)
            finally:  # SQLite closes its files whatever fails
                self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, connection: sqlite3.Connection, *, durable: bool) -> None:
        if not durable:
            connection.execute("PRAGMA synchronous = OFF")
        if _user_version(connection) < len(_MIGRATIONS):
            with self._reserve.room():
                self._on_step(Step.MIGRATE_DATABASE)
                _migrate(connection)

    def _delete_images(self, selection: str, parameters: Mapping[str, object]) -> None:
        """Forget the images that the statement *selection* names."""
        with errors_named(self._path):
            images = self._connection.execute(selection, parameters).fetchall()
        for reference, digest in images:
            self.delete_image(reference, digest)

    def _execute(self, statement: str, parameters: Mapping[str, object] | Sequence[object]) -> int:
        """Change the database; return how many rows were concerned."""
        with self._lock, self._room(), errors_named(self._path):
            self._on_step(Step.WRITE_ROW)
            return self._connection.execute(statement, parameters).rowcount

    def _room(self) -> contextlib.AbstractContextManager[None]:
        """Room on the disk for a change of the database; a part of one has it already."""
        with errors_named(self._path):
            is_part = self._connection.in_transaction
        return contextlib.nullcontext() if is_part else self._reserve.room()


def read_layers_info(path: Path, clock: Clock) -> tuple[LayerInfo, ...]:
    """Return all layers in the database *path*, ordered by digest, for those who may only read it.

    Nothing in it is changed. A database that never had a table of layers has no layers.

    Raises:
        StorageError: the database cannot be read, was made by a newer version of this package,
            or its table ``layers`` is not Aos's.
    """
    rows = _RowReader(path, clock)
    return _read_only(path, lambda connection: rows.layers(_select_rows(connection), connection))


def read_sources(path: Path) -> Mapping[Digest, DesiredLayer]:
    """From where each layer in the database *path* can be fetched again, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _sources)


def read_footprints(path: Path) -> Mapping[Digest, Footprint]:
    """What each layer in the database *path* takes, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _footprints)


def read_images(path: Path) -> tuple[ImageInfo, ...]:
    """The images in the database *path* whose layers are all there, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _images)


def read_leases(path: Path) -> tuple[Lease, ...]:
    """All leases in the database *path*, those that are over included, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _leases)


def read_mounts(path: Path) -> tuple[LayerMount, ...]:
    """All mounts in the database *path*, ordered by name, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _mounts)


def read_ages(path: Path) -> AgeRecord:
    """How old what is in the database *path* is, as ``read_layers_info``.

    Raises:
        StorageError: the database cannot be read, or was made by a newer version of this package.
    """
    return _read_only(path, _ages)


def _read_only(path: Path, read: Callable[[sqlite3.Connection], Content]) -> Content:
    def require_known(connection: sqlite3.Connection) -> None:
        _refuse_foreign(connection, path)

    return read_database(path, read, require_known=require_known)


def _select_rows(connection: sqlite3.Connection) -> list[Any]:
    if not _columns(connection, "layers"):
        return []
    return connection.execute(_SELECT_ALL).fetchall()


def _sources(connection: sqlite3.Connection) -> Mapping[Digest, DesiredLayer]:
    return {
        Digest(digest): DesiredLayer(
            Digest(digest),
            url,
            layer_id,
            version,
            sha256,
            size,
            tuple(json.loads(mirrors)),
            None if diff_id is None else Digest(diff_id),
        )
        for (
            digest,
            url,
            layer_id,
            version,
            sha256,
            size,
            mirrors,
            diff_id,
        ) in _source_rows(connection)
    }


def _source_rows(connection: sqlite3.Connection) -> list[_SourceRow]:
    columns = _columns(connection, "layerSources")
    if not columns:
        return []  # made by Aos, or by the first version of this package
    chosen = _chosen(columns, _SOURCE_COLUMNS, _LATER_SOURCE_COLUMNS)
    return connection.execute(f"SELECT {chosen} FROM layerSources").fetchall()  # noqa: S608 - all of it is our own


def _chosen(there: Sequence[str], columns: Sequence[str], later: Mapping[str, str]) -> str:
    """Return the columns to select; of *later* ones that are not there, what is read instead."""
    chosen = (column if column in there else default for column, default in later.items())
    return ", ".join((*columns, *chosen))


def _source_row(layer: DesiredLayer) -> _SourceRow:
    url = without_credentials(layer.url)
    mirrors = json.dumps([without_credentials(mirror) for mirror in layer.mirrors])
    return (
        layer.digest,
        url,
        layer.layer_id,
        layer.version,
        layer.sha256,
        layer.size,
        mirrors,
        layer.diff_id,
    )


def _footprints(connection: sqlite3.Connection) -> Mapping[Digest, Footprint]:
    if not _columns(connection, "layerFootprints"):
        return {}  # made by Aos, or by an earlier version of this package
    return {
        Digest(digest): Footprint(Amount(size, inodes), block_bytes)
        for digest, size, inodes, block_bytes in connection.execute(_SELECT_FOOTPRINTS)
    }


def _images(connection: sqlite3.Connection) -> tuple[ImageInfo, ...]:
    if not _columns(connection, "ociImageLayers"):
        return ()  # made by Aos or an earlier version of this package, and only opened to be read
    chosen = _chosen(_columns(connection, "ociImages"), _IMAGE_COLUMNS, _LATER_IMAGE_COLUMNS)
    images = []
    for row in connection.execute(f"SELECT {chosen} FROM ociImages {_COMPLETE_IMAGES}").fetchall():  # noqa: S608 - all of it is our own
        reference, digest, platform, config_digest, config, timestamp, cached, *made_here = row
        directories, are_known = made_here
        layers = connection.execute(
            _SELECT_IMAGE_LAYERS, {"reference": reference, "digest": digest}
        ).fetchall()
        images.append(
            ImageInfo(
                reference=reference,
                digest=Digest(digest),
                platform=platform,
                layers=tuple(Digest(layer) for layer, _ in layers),
                diff_ids=tuple(Digest(diff_id) for _, diff_id in layers),
                config_digest=Digest(config_digest),
                config=config,
                timestamp=parse_timestamp(timestamp),
                cached=cached != 0,
                directories=None if directories is None else Digest(directories),
                are_directories_known=are_known != 0,
            )
        )
    return tuple(images)


def _leases(connection: sqlite3.Connection) -> tuple[Lease, ...]:
    if not _columns(connection, "layerLeases"):
        return ()  # made by Aos, or by an earlier version of this package
    return tuple(
        Lease(
            lease_id=lease_id,
            owner=owner,
            layers=_digests(layers),
            created=parse_timestamp(created),
            expires=None if expires is None else parse_timestamp(expires),
            bond=parse_bond(bond),
        )
        for lease_id, owner, layers, created, expires, bond in connection.execute(_SELECT_LEASES)
    )


def _lease_row(lease: Lease) -> tuple[str, str, str, str, str | None, str]:
    return (
        lease.lease_id,
        lease.owner,
        json.dumps(lease.layers),
        format_timestamp(lease.created),
        None if lease.expires is None else format_timestamp(lease.expires),
        format_bond(lease.bond),
    )


def _mounts(connection: sqlite3.Connection) -> tuple[LayerMount, ...]:
    if not _columns(connection, "layerMounts"):
        return ()
    return tuple(
        LayerMount(
            name=name,
            lease_id=lease_id,
            target=Path(os.fsdecode(target)),
            layers=_digests(layers),
            upper=None if upper is None else Path(os.fsdecode(upper)),
        )
        for name, lease_id, target, upper, layers in connection.execute(_SELECT_MOUNTS)
    )


def _ages(connection: sqlite3.Connection) -> AgeRecord:
    if not _columns(connection, "agePeriods"):
        return AgeRecord()  # made by Aos, or by an earlier version of this package
    # In this order: what another process adds in between has no period yet, and counts as new.
    periods = {
        subject: Period(parse_timestamp(timestamp), begun * _MICROSECOND)
        for subject, timestamp, begun in connection.execute(_SELECT_PERIODS)
    }
    row = connection.execute(_SELECT_TIME).fetchone()
    return AgeRecord(None if row is None else _store_time(row), periods)


def _store_time(row: tuple[int, str, int, str, int | None, str, str]) -> StoreTime:
    passed, boot, since_boot, newest, sync_passed, sync_boot, sync_calendar = row
    synchronised = None
    if sync_passed is not None:
        synchronised = SynchronisedTime(
            sync_passed * _MICROSECOND, sync_boot, parse_timestamp(sync_calendar)
        )
    return StoreTime(
        passed=passed * _MICROSECOND,
        boot=boot,
        since_boot=since_boot * _MICROSECOND,
        newest=parse_timestamp(newest),
        synchronised=synchronised,
    )


def _time_row(time: StoreTime) -> tuple[object, ...]:
    known = time.synchronised
    return (
        _count(time.passed),
        time.boot,
        _count(time.since_boot),
        format_timestamp(time.newest),
        *(
            (None, None, None)
            if known is None
            else (_count(known.passed), known.boot, format_timestamp(known.calendar))
        ),
    )


def _count(duration: timedelta) -> int:
    """Return *duration* in microseconds."""
    return duration // _MICROSECOND


def _digests(text: str) -> tuple[Digest, ...]:
    return tuple(map(Digest, json.loads(text)))


class _RowReader:
    """Makes layers of rows; remembers what it complained of, so as to do it once."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._complaints: dict[str, datetime] = {}

    def layers(self, rows: list[Any], connection: sqlite3.Connection) -> tuple[LayerInfo, ...]:
        """The layers that *rows* of ``_SELECT`` describe, which were read from *connection*."""
        layers = (self._layer(row, connection) for row in rows)
        return tuple(layer for layer in layers if layer is not None)

    def _layer(
        self,
        row: tuple[str, str, str, str, str, object, int, object],
        connection: sqlite3.Connection,
    ) -> LayerInfo | None:
        digest, layer_id, version, path, os_version, timestamp, cached, size = row
        try:
            checked = Digest(digest)
        except InvalidDigestError as error:
            self._complain(f"a row is passed over: {error}")
            return None
        if not path.startswith("/"):
            self._complain(f"layer {digest} is passed over: its path is not absolute: {path!r}")
            return None
        return LayerInfo(
            digest=checked,
            layer_id=layer_id,
            version=version,
            path=Path(path),
            os_version=os_version,
            timestamp=self._timestamp(checked, timestamp, connection),
            cached=cached != 0,
            size=self._size(checked, size),
        )

    def _timestamp(self, digest: Digest, value: object, connection: sqlite3.Connection) -> datetime:
        try:
            return parse_timestamp(value)
        except ValueError as error:
            met = self._complain(f"layer {digest}: its time to live starts now: {error}")
        # Another process may have met it before; else its time to live would never end.
        noted = _ages(connection).periods.get(layer_subject(digest))
        return met if noted is None else noted.timestamp

    def _size(self, digest: Digest, value: object) -> int:
        if isinstance(value, int) and value >= 0:
            return value
        self._complain(f"layer {digest}: counts as empty: not a size: {value!r:.80}")
        return 0

    def _complain(self, complaint: str) -> datetime:
        """Log *complaint* if it is new; return the time when it was."""
        if complaint not in self._complaints:
            self._complaints[complaint] = self._clock.now()
            _LOGGER.warning("%s: %s", self._path, complaint)
        return self._complaints[complaint]


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date; another process may have done so in the meantime."""
    connection.execute("BEGIN IMMEDIATE")
    for version in range(_user_version(connection), len(_MIGRATIONS)):
        connection.execute(_MIGRATIONS[version])
        # A pragma takes no parameters; the number is our own.
        connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.execute("COMMIT")


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Raise if the table of layers, where there is one, is not what this version knows."""
    version = _user_version(connection)
    if version > len(_MIGRATIONS):
        raise StorageError(
            f"{path}: made by a newer layermanager: its schema version is {version}, "
            f"this one knows up to {len(_MIGRATIONS)}"
        )
    columns = _columns(connection, "layers")
    if columns not in ((), _COLUMNS):
        raise StorageError(
            f"{path}: its table layers has the columns {', '.join(columns)}; "
            f"expected {', '.join(_COLUMNS)}"
        )


def _user_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    rows = connection.execute("SELECT name FROM pragma_table_info(:table)", {"table": table})
    return tuple(name for (name,) in rows)
