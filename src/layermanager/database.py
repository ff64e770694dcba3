"""The SQLite file: opening it to change or read it, whatever the state of its disk.

The database has a rollback journal, not a write-ahead log. SQLite maps the index of a log into
memory and writes to it: where the kernel finds no block for a page of it, it ends the process
(SIGBUS). Nothing of the database is mapped here. Readers make no file and write nothing, so that
they need neither a free block nor a free inode, nor the permission to write.

The journal stays when a transaction ends; only its header is cleared. Its blocks are allocated
beforehand, so that a small change needs none where the file system overwrites in place. Readers
wait while a transaction is being committed, some milliseconds, and not before: changes stay in
memory until then. Writers wait for one another, a minute at most.

A database that Aos, or an earlier version of this package, left with a log is taken over: the log
is written to the file under an exclusive lock, with which SQLite keeps the index in its own memory.
That is refused while another process has the database open. It can be read all the same, by way of
a mapping that is never written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.errors import StorageError, StorageFullError
from layermanager.presence import exists
from layermanager.reserve import allocate, allocated_bytes, is_full
from layermanager.steps import Step
from layermanager.urls import file_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.reserve import Reserve
    from layermanager.steps import OnStep

Content = TypeVar("Content")

JOURNAL_BYTES: Final = 128 * 1024
"""Size that the journal keeps: enough for a change of some thirty pages."""

_FILE_MODE: Final = 0o644
_BUSY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.01
_DESCRIPTORS_TO_READ: Final = 3  # the database, a log and the log's index
_READ_ATTEMPTS: Final = 10
_TO_CHANGE: Final = "mode=rw"
_TO_READ: Final = "mode=ro&readonly_shm=1"
_AT_REST: Final = "mode=ro&immutable=1"


def open_database(
    path: Path,
    reserve: Reserve,
    on_step: OnStep,
    *,
    require_known: Callable[[sqlite3.Connection], None],
    prepare: Callable[[sqlite3.Connection], None],
    busy_seconds: float = _BUSY_SECONDS,
) -> sqlite3.Connection:
    """Open the database *path* to change it; make it where it is missing.

    Args:
        path: the file; its directory exists.
        reserve: gives up room for what has to be written.
        on_step: is told of each change of the disk before it is made.
        require_known: raises if the content is not for this program; then nothing is changed.
        prepare: brings the content up to date; it is not empty afterwards.
        busy_seconds: how long to wait for other processes.

    Raises:
        StorageError: it cannot be opened, or has a log that another process uses.
    """
    room = contextlib.nullcontext() if _is_settled(path) else reserve.room()
    with room, errors_named(path), contextlib.ExitStack() as undo:
        _create_file(path, on_step)
        on_step(Step.OPEN_DATABASE)
        connection = _settled(path, require_known, busy_seconds)
        undo.callback(connection.close)
        prepare(connection)
        _allocate_journal(connection, path, on_step)
        undo.pop_all()
    return connection


def read_database(
    path: Path,
    read: Callable[[sqlite3.Connection], Content],
    *,
    require_known: Callable[[sqlite3.Connection], None],
) -> Content:
    """Return what *read* finds in the database *path*; nothing is changed.

    A reader who may not write cannot use a log whose index is missing. Without a log the file alone
    is everything, and SQLite is told that it is immutable. That is wrong if a writer comes
    meanwhile: then the file is another afterwards, and is read once more. What a process left
    behind that was killed in the midst of a change is put in order first.

    Args:
        path: the file.
        read: reads it; may be called several times.
        require_known: raises if the content is not for this program.

    Raises:
        StorageError: it cannot be read.
    """

    def read_known(connection: sqlite3.Connection) -> Content:
        require_known(connection)
        return read(connection)

    with errors_named(path):
        for _ in range(_READ_ATTEMPTS):
            try:
                return _read_by(path, _TO_READ, read_known)
            except sqlite3.OperationalError as error:
                if not _is(error, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
            _require_descriptors()
            found = _read_at_rest(path, read_known)
            if found is not None:
                return found
            _put_in_order(path, require_known)
            time.sleep(_POLL_SECONDS)
    raise StorageError(
        f"{path}: its log or journal cannot be read without the permission to write; "
        "run a command that changes the store, or any command as root"
    )


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Raise what SQLite and the system raise as ``StorageError``, with the *path*.

    A ``ValueError`` comes from a text that cannot be UTF-8 or a path that cannot be one.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use the database {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        if _is_for_want_of_room(error, path):
            raise StorageFullError(f"cannot use the database {path}: its disk is full") from error
        raise StorageError(f"cannot use the database {path}: {error}") from error
    except ValueError as error:
        raise StorageError(f"cannot use the database {path}: {error}") from error


# To change it


def _is_settled(path: Path) -> bool:
    """Return whether opening the database writes nothing."""
    with errors_named(path):
        return (
            exists(path)
            and not _has_log(path)
            and not _is_journal_hot(path)
            and allocated_bytes(_beside(path, "-journal")) >= JOURNAL_BYTES
        )


def _create_file(path: Path, on_step: OnStep) -> None:
    """Make an empty database file where there is none.

    It is made without being opened: closing any descriptor of a file ends all locks that the
    process has on it, also those of another connection.
    """
    on_step(Step.MAKE_DATABASE)
    try:
        os.mknod(path, _FILE_MODE)
    except FileExistsError:
        return
    path.chmod(_FILE_MODE)
    on_step(Step.SYNC_DATABASE_DIRECTORY)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _settled(
    path: Path, require_known: Callable[[sqlite3.Connection], None], busy_seconds: float
) -> sqlite3.Connection:
    """Open the database, with what other processes left of changes written to it or undone.

    Two processes that both wait for an exclusive lock would wait for each other, so each gives up
    its own lock before it tries again.
    """
    deadline = time.monotonic() + busy_seconds
    while True:
        with contextlib.ExitStack() as undo:
            connection = _connect(path, _TO_CHANGE, busy_seconds=0)
            undo.callback(connection.close)
            try:
                _settle(connection, require_known)
            except sqlite3.OperationalError as error:
                if not _is(error, sqlite3.SQLITE_BUSY):
                    raise
                if time.monotonic() > deadline:
                    raise _held_open(path, error) from error
            else:
                connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
                undo.pop_all()
                return connection
        time.sleep(_POLL_SECONDS)


def _settle(
    connection: sqlite3.Connection, require_known: Callable[[sqlite3.Connection], None]
) -> None:
    # As long as this lasts SQLite maps no index of a log. It counts for the next access.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    require_known(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_mode = PERSIST")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
    # Else a large transaction would keep readers out before it is committed.
    connection.execute("PRAGMA cache_spill = OFF")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA locking_mode = NORMAL")
    connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # this ends the lock


def _held_open(path: Path, error: sqlite3.Error) -> StorageError:
    if _has_log(path):
        return StorageError(
            f"cannot take over the database {path}: another process has it open with a log (WAL); "
            "stop that process, such as Aos's service manager or an older daemon"
        )
    return StorageError(f"cannot use the database {path}: {error}")


def _allocate_journal(connection: sqlite3.Connection, path: Path, on_step: OnStep) -> None:
    """Give the journal its blocks; on a disk without them it gets them at a later start.

    No other process uses the journal meanwhile. SQLite removes the one of an empty database.
    """
    journal = _beside(path, "-journal")
    if allocated_bytes(journal) >= JOURNAL_BYTES:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        on_step(Step.MAKE_RESERVE)
        allocate(journal, JOURNAL_BYTES, like=path)
    finally:
        connection.execute("ROLLBACK")


# To read it


def _read_by(path: Path, query: str, read: Callable[[sqlite3.Connection], Content]) -> Content:
    with contextlib.closing(_connect(path, query, busy_seconds=_BUSY_SECONDS)) as connection:
        return read(connection)


def _read_at_rest(path: Path, read: Callable[[sqlite3.Connection], Content]) -> Content | None:
    """Read a database that no process has open; None if one has, or came to."""
    before = _state_at_rest(path)
    if before is None:
        return None
    try:
        content = _read_by(path, _AT_REST, read)
    except sqlite3.DatabaseError:
        if before == _state_at_rest(path):
            raise
        return None
    return content if before == _state_at_rest(path) else None


def _state_at_rest(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever the file changes; None while it is not everything."""
    if _has_log(path) or _is_journal_hot(path):
        return None
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _put_in_order(path: Path, require_known: Callable[[sqlite3.Connection], None]) -> None:
    """Undo or complete what a killed process left, if this process may."""
    if not all(os.access(one, os.W_OK, effective_ids=True) for one in (path, path.parent)):
        return
    try:
        _settled(path, require_known, busy_seconds=0).close()
    except StorageError:
        return  # another process has it open, and may be putting it in order itself
    except sqlite3.OperationalError as error:
        if not _is(error, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise


# Both


def _connect(path: Path, query: str, *, busy_seconds: float) -> sqlite3.Connection:
    """Open the existing database *path*; *query* says how, in the words of SQLite's addresses."""
    connection = sqlite3.connect(
        f"{file_url(path.absolute())}?{query}",
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )
    # Texts are decoded as file names are, so that none makes a row unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection


def _has_log(path: Path) -> bool:
    return exists(_beside(path, "-wal"))


def _is_journal_hot(path: Path) -> bool:
    """Return whether a change is under way, or a process ended in the midst of one."""
    try:
        with _beside(path, "-journal").open("rb") as file:
            return file.read(1) not in (b"", b"\0")
    except FileNotFoundError:
        return False


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _require_descriptors() -> None:
    """Raise ``OSError`` if it is for want of descriptors that the database cannot be opened.

    SQLite itself says no more than that it cannot. It is tried with another file: to close a
    descriptor of the database would end the locks that other threads have on it.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(_DESCRIPTORS_TO_READ):
            try:
                stack.enter_context(Path(os.devnull).open("rb"))
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    raise
                return


def _is_for_want_of_room(error: sqlite3.Error, path: Path) -> bool:
    """Return whether *error* comes from a full disk.

    SQLite says so of a write. A file that cannot be made, or synced, is only said to have failed.
    """
    if not isinstance(error, sqlite3.OperationalError):
        return False
    if _is(error, sqlite3.SQLITE_FULL):
        return True
    return _is(error, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and is_full(path.parent)


def _is(error: sqlite3.Error, *primary_codes: int) -> bool:
    return error.sqlite_errorcode & 0xFF in primary_codes
