"""The database of Aos's service manager 8, as it makes it, with a row in some of its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

_STATEMENTS: Final = (
    "CREATE TABLE config (operationVersion INTEGER)",
    "CREATE TABLE services (id TEXT NOT NULL PRIMARY KEY, path TEXT, timestamp TIMESTAMP)",
    "CREATE TABLE instances (instanceID TEXT NOT NULL PRIMARY KEY, serviceID TEXT)",
    "CREATE TABLE network (networkID TEXT NOT NULL PRIMARY KEY, ip TEXT)",
    """
    CREATE TABLE layers (digest TEXT NOT NULL PRIMARY KEY, layerId TEXT, path TEXT,
    osVersion TEXT, version TEXT, timestamp TIMESTAMP, cached INTEGER, size INTEGER)
    """,
    "CREATE TABLE schema_migrations (version uint64, dirty bool)",
    "CREATE UNIQUE INDEX version_unique ON schema_migrations (version)",
    "INSERT INTO config VALUES (9)",
    "INSERT INTO schema_migrations VALUES (7, 0)",
    "INSERT INTO services VALUES ('one', '/services/one', '2026-11-24 00:49:32.58664659+00:00')",
    "INSERT INTO instances VALUES ('1', 'one')",
    "INSERT INTO network VALUES ('net', '172.17.0.1')",
)
AOS_TABLES: Final = ("config", "services", "instances", "network", "schema_migrations")
"""Those of them that are none of a layer manager's business."""


def make_tables_of_aos(database: sqlite3.Connection) -> None:
    """Make an empty *database* one of Aos, without layers."""
    with database:
        for statement in _STATEMENTS:
            database.execute(statement)
