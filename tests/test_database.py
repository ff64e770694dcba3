"""The SQLite file itself: nothing of it is mapped, logs of others are taken over."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from durability.volumes import disk, full, tmpfs
from layermanager.database import JOURNAL_BYTES, open_database, read_database
from layermanager.errors import StorageError, StorageFullError
from layermanager.model import LayerInfo
from layermanager.reserve import Reserve
from layermanager.steps import Step, unannounced
from layermanager.storage import SqliteLayerStorage, read_layers_info
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

MIB: Final = 1024 * 1024
NOW: Final = datetime(2026, 11, 24, tzinfo=UTC)
LAYER: Final = LayerInfo(digest_of(b"1"), "", "", Path("/x"), "", NOW, cached=False, size=0)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "servicemanager.db"


def opened(database: Path, busy_seconds: float = 60) -> sqlite3.Connection:
    return open_database(
        database,
        Reserve(database.with_name("reserve"), unannounced),
        unannounced,
        require_known=lambda _: None,
        prepare=lambda one: one.execute("CREATE TABLE IF NOT EXISTS t (x)").close(),
        busy_seconds=busy_seconds,
    )


def numbers(database: Path) -> list[int]:
    return read_database(database, numbers_in, require_known=lambda _: None)


def numbers_in(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT x FROM t ORDER BY x")]


def mappings(database: Path) -> set[str]:
    """Which files beside the database this process has mapped, and with which rights."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, rights, *_, name = line.split()
        if name.startswith(str(database)):
            found.add(f"{rights} {name.removeprefix(str(database))}")
    return found


def files(database: Path) -> set[str]:
    return {path.name.removeprefix(database.name) for path in database.parent.iterdir()} - {
        "reserve"
    }


def make_with_log(database: Path, *, is_left: bool = False) -> None:
    """Make a database with a log, as Aos does; *is_left*: as Aos leaves it when it is killed."""
    made = database.with_name("made")
    made.mkdir()
    with closing(sqlite3.connect(made / database.name, isolation_level=None)) as aos:
        aos.execute("PRAGMA journal_mode = WAL")
        aos.execute("CREATE TABLE t (x)")
        aos.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        aos.execute("INSERT INTO t VALUES (1)")
        if is_left:
            for path in made.iterdir():
                shutil.copy(path, database.parent)
    if not is_left:
        shutil.copy(made / database.name, database.parent)
    shutil.rmtree(made)


PROGRAM: Final = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    for statement in sys.argv[2:]:
        connection.execute(statement).fetchall()
    print("done", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(database: Path, *statements: str) -> Iterator[None]:
    """Have another process execute *statements*, and keep the database open."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(database), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield
        process.communicate("\n")


class TestMappings:
    def test_nothing_is_mapped_by_who_changes_and_who_reads(self, database: Path) -> None:
        with closing(opened(database)) as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            assert read_database(
                database,
                lambda reader: (numbers_in(reader), mappings(database)),
                require_known=lambda _: None,
            ) == ([1], set())
            assert mappings(database) == set()

    @pytest.mark.parametrize("is_left", [False, True])
    def test_nor_where_a_log_is_taken_over(self, database: Path, is_left: bool) -> None:
        make_with_log(database, is_left=is_left)
        seen = []
        connection = open_database(
            database,
            Reserve(database.with_name("reserve"), unannounced),
            unannounced,
            require_known=lambda one: seen.append((numbers_in(one), mappings(database))),
            prepare=lambda _: None,
        )
        with closing(connection):
            assert seen == [([1], set())]
            assert mappings(database) == set()
            assert numbers_in(connection) == [1]

    def test_a_program_with_a_log_shows_in_the_mappings(self, database: Path) -> None:
        """What the tests above look for is found where it must be."""
        make_with_log(database)
        with closing(sqlite3.connect(database)) as connection:
            assert numbers_in(connection) == [1]
            assert mappings(database) == {"rw-s -shm"}


class TestLogs:
    @pytest.mark.parametrize("is_left", [False, True])
    def test_one_is_taken_over(self, database: Path, is_left: bool) -> None:
        make_with_log(database, is_left=is_left)
        assert ("-wal" in files(database)) is is_left
        with closing(opened(database)) as connection:
            assert numbers_in(connection) == [1]
            connection.execute("INSERT INTO t VALUES (2)")
            assert files(database) - {"-shm"} == {"", "-journal"}  # an old index says nothing
            assert database.read_bytes()[18:20] == b"\1\1"  # no log
        assert numbers(database) == [1, 2]

    def test_aos_may_have_its_log_again(self, database: Path) -> None:
        with closing(opened(database)) as connection:
            connection.execute("INSERT INTO t VALUES (1)")
        with other_process(database, "PRAGMA journal_mode = WAL", "INSERT INTO t VALUES (2)"):
            assert numbers(database) == [1, 2]
        with closing(opened(database)) as connection:
            assert numbers_in(connection) == [1, 2]
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_one_in_use_is_read_and_not_taken_over(self, database: Path) -> None:
        make_with_log(database)
        with other_process(database, "INSERT INTO t VALUES (2)"):
            assert read_database(
                database,
                lambda reader: (numbers_in(reader), mappings(database)),
                require_known=lambda _: None,
            ) == ([1, 2], {"r--s -shm"})
            with pytest.raises(StorageError, match="another process has it open with a log"):
                opened(database, busy_seconds=0)
            assert mappings(database) == set()
        with closing(opened(database)) as connection:
            assert numbers_in(connection) == [1, 2]

    def test_who_takes_it_over_waits_for_who_uses_it(self, database: Path) -> None:
        make_with_log(database)
        found = []
        with other_process(database, "INSERT INTO t VALUES (2)"):
            opening = threading.Thread(target=lambda: found.append(opened(database)))
            opening.start()
            opening.join(timeout=0.1)
            assert opening.is_alive()
        opening.join()
        assert numbers_in(found[0]) == [1, 2]
        found[0].close()

    def test_several_may_take_it_over_at_once(self, database: Path) -> None:
        make_with_log(database, is_left=True)
        script = """
            import sys
            from pathlib import Path
            sys.path[:] = sys.argv[2:]
            from test_database import opened
            print("ready", flush=True)
            sys.stdin.readline()
            opened(Path(sys.argv[1])).execute("INSERT INTO t VALUES (2)")
        """
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script), str(database), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        ended = [(*process.communicate("go\n"), process.returncode) for process in processes]
        assert ended == [("", "", 0)] * 4
        assert numbers(database) == [1, 2, 2, 2, 2]


class TestReaders:
    def test_none_waits_for_a_large_transaction_before_it_is_committed(
        self, database: Path
    ) -> None:
        with closing(opened(database)) as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("BEGIN IMMEDIATE")
            size = database.stat().st_size
            for _ in range(100):
                connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
            assert numbers(database) == [1]
            assert database.stat().st_size == size
            connection.execute("COMMIT")
            assert len(numbers(database)) == 101

    def test_a_reader_that_cannot_open_a_log_ends_no_locks_of_others(self, database: Path) -> None:
        """Closing any descriptor of a file ends all locks that the process has on it."""
        with closing(opened(database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = locks(database)
            assert before

            def fail(_: sqlite3.Connection) -> None:
                error = sqlite3.OperationalError("unable to open database file")
                error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
                raise error

            with pytest.raises(StorageError):
                read_database(database, fail, require_known=lambda _: None)
            assert locks(database) == before
            connection.execute("ROLLBACK")


def locks(database: Path) -> list[str]:
    """The locks that this process has on the database."""
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        _, _, _, kind, process, identity, *_ = line.split()
        if process == str(os.getpid()) and identity.endswith(f":{database.stat().st_ino}"):
            found.append(kind)
    return found


VOLUMES: Final[dict[str, Callable[[Path], AbstractContextManager[Path]]]] = {
    "tmpfs": lambda path: tmpfs(path, 8 * MIB),
    "ext4": lambda path: disk(path, "ext4", 8 * MIB),
    "ext4, 1 KiB": lambda path: disk(path, "ext4", 8 * MIB, "-b", "1024"),
    "xfs": lambda path: disk(path, "xfs", 512 * MIB),
}


class TestFullDisks:
    """Without the reserve: another program may have taken what it gave up."""

    @pytest.mark.parametrize("volume", VOLUMES)
    def test_rows_can_be_deleted_and_read(self, tmp_path: Path, volume: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: mounts")
        with VOLUMES[volume](tmp_path / "volume") as mount_point:
            database = mount_point / "servicemanager.db"
            with closing(opened(database)) as connection:
                for number in range(100):
                    connection.execute("INSERT INTO t VALUES (?)", (number,))
            database.with_name("reserve").unlink()
            with full(mount_point, free=0), closing(opened(database)) as connection:
                for number in range(1, 100):
                    connection.execute("DELETE FROM t WHERE x = ?", (number,))
                assert numbers(database) == [0]
                assert mappings(database) == set()

    def test_what_finds_no_room_is_said_to_have_found_none(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: mounts")
        with tmpfs(tmp_path / "volume", 8 * MIB) as mount_point:
            database = mount_point / "servicemanager.db"
            with SqliteLayerStorage(database, FakeClock(NOW)) as storage, full(mount_point, free=0):

                def grow() -> None:
                    with storage.transaction():
                        storage.add_layer(replace(LAYER, version="x" * 1_000_000))

                with pytest.raises(StorageFullError, match="its disk is full"):
                    grow()
                storage.delete_layer_by_digest(LAYER.digest)
                assert storage.get_layers_info() == ()

    def test_without_an_inode_it_is_opened_changed_and_read(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: mounts")
        with tmpfs(tmp_path / "volume", 8 * MIB, inodes=20) as mount_point:
            database = mount_point / "servicemanager.db"
            SqliteLayerStorage(database, FakeClock(NOW)).close()
            number = 0
            while os.statvfs(mount_point).f_favail:
                (mount_point / f"other-{number}").touch()
                number += 1
            with SqliteLayerStorage(database, FakeClock(NOW)) as storage:
                storage.delete_lease("none")
            assert read_layers_info(database, FakeClock(NOW)) == ()


def test_the_journal_keeps_its_blocks(database: Path) -> None:
    steps: list[Step] = []
    for _ in range(2):
        with SqliteLayerStorage(database, FakeClock(NOW), on_step=steps.append) as storage:
            storage.delete_lease("none")
        journal = database.with_name(f"{database.name}-journal").stat()
        assert journal.st_blocks * 512 >= JOURNAL_BYTES
        assert journal.st_mode == database.stat().st_mode
    assert steps.count(Step.MAKE_RESERVE) == 2  # the reserve and the journal
