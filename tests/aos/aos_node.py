"""A node as Aos's service manager 8 leaves it: its files, its database, its configuration."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aos_schema import make_tables_of_aos
from layermanager.testing.layers import compress, desired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layermanager import DesiredLayer


@dataclass(frozen=True)
class AosNode:
    """A working directory of Aos.

    Attributes:
        working_dir: the directory.
        config: the service manager's own configuration file.
    """

    working_dir: Path
    config: Path

    @property
    def database(self) -> Path:
        """The database."""
        return self.working_dir / "servicemanager.db"

    @classmethod
    def make(cls, base: Path) -> AosNode:
        """A node without layers below *base*."""
        node = cls(base / "sm", base / "aos_servicemanager.cfg")
        for name in ("layers", "download", "extract", "services", "runtime"):
            (node.working_dir / name).mkdir(parents=True)
        document = {
            "caCert": "/etc/ssl/certs/rootCA.crt.pem",
            "cmServerUrl": "aoscm:8093",
            "workingDir": str(node.working_dir),
            "layerTtlDays": 30,
            "serviceTtlDays": 30,
            "monitoring": {"pollPeriod": "1s"},
        }
        node.config.write_text(json.dumps(document))
        with closing(node.connect()) as database:
            database.execute("PRAGMA journal_mode = WAL").fetchall()
            make_tables_of_aos(database)
        return node

    def connect(self) -> sqlite3.Connection:
        """The database."""
        return sqlite3.connect(self.database, isolation_level=None)

    def add(
        self, name: str, tar: bytes, *, timestamp: object, cached: bool = False
    ) -> DesiredLayer:
        """A layer that Aos has installed from *tar*, from where nothing can be had any more.

        Its directory is for the test to fill.
        """
        blob = compress(tar, "gzip")
        layer = desired(blob, f"http://127.0.0.1:9/{name}", layer_id=name)
        path = self.path_of(layer)
        path.mkdir(parents=True)
        row = (layer.digest, name, str(path), "", "1.0.0", timestamp, int(cached), len(blob))
        with closing(self.connect()) as database:
            database.execute("INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return layer

    def path_of(self, layer: DesiredLayer) -> Path:
        """The directory of a layer."""
        return self.working_dir / "layers" / layer.digest.algorithm / layer.digest.encoded

    def rows(self) -> Mapping[str, tuple[object, ...]]:
        """The rows of layers as Aos reads them, ``SELECT *`` and by position, by their names."""
        with closing(self.connect()) as database:
            return {row[1]: row for row in database.execute("SELECT * FROM layers")}

    def others(self) -> list[str]:
        """All that is in the database and Aos's, but for the rows of layers."""
        with closing(self.connect()) as database:
            lines = list(database.iterdump())
        ours = (
            '"layers"',
            "layerSources",
            "ociImage",
            "layerLeases",
            "layerMounts",
            "layerFootprints",
            "storeTime",
            "agePeriods",
        )
        return [line for line in lines if not any(name in line for name in ours)]

    def leave_log(self) -> None:
        """Have the last changes be in the database's log only, as after a crash of Aos."""
        with closing(self.connect()) as database:
            database.execute("PRAGMA wal_autocheckpoint = 0")
            database.execute("UPDATE layers SET osVersion = '2.0.0'")
            kept = {name: (self.working_dir / name).read_bytes() for name in self._files()}
        for name, content in kept.items():
            (self.working_dir / name).write_bytes(content)
        assert (self.working_dir / "servicemanager.db-wal").stat().st_size > 0

    def _files(self) -> list[str]:
        return [f"servicemanager.db{suffix}" for suffix in ("", "-wal")]


def unpack_as_aos(tree: Path) -> None:
    """Do to an unpacked *tree* what Aos does to whiteouts: add to the markers what they stand for.

    What is proved of Aos 8.0.1 by running it is in ``docs/aos.md``.
    """
    for directory, _, files in os.walk(tree):
        for name in files:
            if name == ".wh..wh..opq":
                os.setxattr(directory, "trusted.overlay.opaque", b"y")
            elif name.startswith(".wh."):
                os.mknod(Path(directory, name.removeprefix(".wh.")), 0o020000)


def extract(tar: bytes, tree: Path) -> None:
    """Unpack *tar* as tar(1) does, which is what Aos calls."""
    program = shutil.which("tar") or "tar"
    subprocess.run([program, "--numeric-owner", "-xpf", "-", "-C", tree], input=tar, check=True)
