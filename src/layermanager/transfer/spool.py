"""What has arrived of large files, kept so that a transfer goes on after a crash or a power cut.

::

    <downloadDir>/
        <algorithm>-<hex>.part     the bytes so far
        <algorithm>-<hex>.journal  how many of them are proved to be there, a line each time

The first line of a journal says which file it is; each further one says up to which byte the part
is synced, the digest of all bytes until there, and from where they come. The last line that is
whole counts: bytes behind it are cut off, and a part that is shorter is worth nothing. So a power
cut costs at most the bytes since the last line.

A spool is worth less than anything else on the disk: it grows only where nothing need be removed
for it, and is the first thing to be evicted. A disk that refuses its bytes ends the spool, not the
transfer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import (
    IntegrityError,
    InvalidDigestError,
    LayerManagerError,
    StoreError,
)
from layermanager.model import Digest
from layermanager.presence import is_directory
from layermanager.private_files import PRIVATE_DIRECTORY, make_directories
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from layermanager.model import DesiredLayer
    from layermanager.protocols import Allocator, NewSpaceAllocator, Space
    from layermanager.steps import OnStep

_LOGGER: Final = logging.getLogger(__name__)

MARK_BYTES: Final = 8 * 1024 * 1024
"""After so many bytes a spool is synced and marked: so many may have to be fetched again."""

_BEGIN_BYTES: Final = 1024 * 1024
"""So many bytes at a time the disk is told to begin to write."""

_PART: Final = ".part"
_JOURNAL: Final = ".journal"
_READ_BYTES: Final = 256 * 1024
_JOURNAL_LIMIT: Final = 16 * 1024 * 1024
_BEFORE_ALL_LAYERS: Final = datetime.min.replace(tzinfo=UTC)
_APPEND: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Mark:
    """A point up to which a spool can be trusted.

    Attributes:
        offset: how many bytes there are.
        digest: the digest of these bytes, in hex, by the algorithm that the transfer uses.
        url: where the last of them came from, without what may be a secret.
        validator: what named that version of the file there.
    """

    offset: int
    digest: str
    url: str
    validator: str


class Spools:
    """The spools of one store; used by several threads, under the store's lock.

    The accounting of their bytes is done here alone, under one lock: a spool may grow while the
    allocator decides to evict it as small as it was, so that no size given before can be believed.

    Args:
        directory: where they are; made when it is first needed.
        new_space_allocator: makes the allocator of the directory.
        durable: whether bytes are synced before they are marked.
        on_step: is told of each change of the disk before it is made.
    """

    def __init__(
        self,
        directory: Path,
        new_space_allocator: NewSpaceAllocator,
        *,
        durable: bool = True,
        on_step: OnStep = unannounced,
    ) -> None:
        self._directory = directory
        self._new_space_allocator = new_space_allocator
        self._durable = durable
        self._on_step = on_step
        # Taken before that of a spool, and never while the allocator may evict.
        self._lock = threading.Lock()
        self._allocator: Allocator | None = None
        self._open: dict[str, Spool] = {}
        self._counted: dict[str, int] = {}

    def take_stock(self) -> None:
        """Offer to the allocator what is there; to be called when an operation begins."""
        with self._lock:
            self._take_stock()

    def keep_only(self, desired: Collection[DesiredLayer]) -> None:
        """Remove the spools of all layers but those that are *desired* and not there yet.

        Where the disk refuses that, a later operation is another try.
        """
        kept = {_name(layer.digest) for layer in desired}
        with self._lock:
            for name in self._sizes().keys() - kept:
                self._try_to_remove(name)
            self._take_stock()

    def has(self, desired: DesiredLayer) -> bool:
        """Whether something was spooled of *desired*."""
        return os.path.lexists(self.path(_name(desired.digest), _JOURNAL))

    def open(self, desired: DesiredLayer) -> Spool:
        """The spool of *desired*, with what an earlier transfer left in it.

        Raises:
            StoreError: it cannot be opened.
        """
        name = _name(desired.digest)
        with self._lock:
            try:
                self._make_directory()
                self._space()
                spool = Spool(self, name, desired, durable=self._durable, on_step=self._on_step)
            except (OSError, LayerManagerError) as error:
                raise StoreError(f"cannot spool: {error}") from error
            self._open[name] = spool
            self._count(name, spool.size)
        return spool

    def close(self) -> None:
        """End; what is spooled stays."""
        with self._lock:
            allocator, self._allocator = self._allocator, None
        if allocator is not None:
            allocator.close()

    # For a spool

    def path(self, name: str, suffix: str) -> Path:
        """The file of the spool *name* that ends in *suffix*."""
        return self._directory / f"{name}{suffix}"

    def set_aside(self, name: str, size: int, extra: int) -> Space | None:
        """Room for *extra* bytes more of a spool that has *size*, if nothing need be removed.

        It is offered for removal together with the spool. No lock is held meanwhile: to allocate
        may be to wait for an eviction of this very spool.

        Raises:
            LayerManagerError: the allocator cannot tell.
        """
        with self._lock:
            allocator = self._space()
        with contextlib.ExitStack() as undo:
            room = undo.enter_context(allocator.allocate_space(0))
            if not room.grow_if_free(extra):
                return None
            undo.pop_all()
        with self._lock:
            if name in self._open:
                self._count(name, size, extra)
        return room

    def leave(self, name: str, size: int) -> None:
        """Note that nobody writes any more to a spool, which has *size* bytes."""
        with self._lock:
            if self._open.pop(name, None) is not None:
                self._count(name, size)

    def remove(self, name: str) -> None:
        """Remove a spool; where the disk refuses that, a later operation is another try."""
        with self._lock:
            self._open.pop(name, None)
            self._try_to_remove(name)

    def _evict(self, name: str) -> None:
        """Remove a spool, whose space the allocator needs; called from any thread.

        One that the disk does not let go is not offered again: it would be the first to be chosen
        every time, and keep layers from being evicted.
        """
        with self._lock:
            spool = self._open.pop(name, None)
            if spool is not None:
                spool.end()
            self._try_to_remove(name)
            self._forget(name)

    # With the lock held

    def _take_stock(self) -> None:
        sizes = self._sizes()
        for name in self._counted.keys() - sizes.keys():
            self._forget(name)
        for name, size in sizes.items():
            self._count(name, size)

    def _count(self, name: str, size: int, room: int = 0) -> None:
        """Offer a spool of *size* bytes, with the *room* that it has for more, for removal."""
        self._counted[name] = size
        self._space().add_outdated_item(name, size + room, _BEFORE_ALL_LAYERS)
        self._note_used_space()

    def _forget(self, name: str) -> None:
        """Offer a spool no more: it is gone.

        Also where it is the allocator that has it removed: what it knew of the spool when it chose
        it may be less than was removed.
        """
        if self._counted.pop(name, None) is not None:
            self._space().restore_outdated_item(name)
            self._note_used_space()

    def _note_used_space(self) -> None:
        self._space().note_used_space(sum(self._counted.values()))

    def _space(self) -> Allocator:
        if self._allocator is None:
            self._allocator = self._new_space_allocator(self._directory, 0, self._evict)
        return self._allocator

    def _make_directory(self) -> None:
        if not is_directory(self._directory):
            self._on_step(Step.MAKE_STORE_DIRECTORY)
            make_directories(self._directory, PRIVATE_DIRECTORY)

    def _sizes(self) -> dict[str, int]:
        """The spools on disk and their sizes; other files are somebody else's."""
        sizes: dict[str, int] = {}
        try:
            for path in self._directory.iterdir():
                name = path.stem
                if path.suffix in (_PART, _JOURNAL) and _is_name(name):
                    size = path.lstat().st_size if path.suffix == _PART else 0
                    sizes[name] = sizes.get(name, 0) + size
        except FileNotFoundError:
            return sizes
        except OSError as error:
            _LOGGER.warning("cannot look for spools: %s", error)
        return sizes

    def _try_to_remove(self, name: str) -> None:
        is_gone = True
        for suffix in (_JOURNAL, _PART):
            try:
                self._on_step(Step.REMOVE_SPOOL)
                self.path(name, suffix).unlink(missing_ok=True)
            except OSError as error:
                _LOGGER.warning("a spool is left to the next operation: %s", error)
                is_gone = False
        if is_gone:
            self._forget(name)


class Spool:
    """What has arrived of one file; used by one thread, but for its eviction.

    Attributes:
        mark: up to where its bytes can be trusted; None where there are none.
    """

    def __init__(
        self, spools: Spools, name: str, desired: DesiredLayer, *, durable: bool, on_step: OnStep
    ) -> None:
        self._spools = spools
        self._name = name
        self._durable = durable
        self._on_step = on_step
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            self._on_step(Step.WRITE_SPOOL)
            self._part = os.open(spools.path(name, _PART), _APPEND, 0o600)
            undo.callback(os.close, self._part)
            self._on_step(Step.WRITE_SPOOL)
            self._journal = os.open(spools.path(name, _JOURNAL), _APPEND, 0o600)
            undo.callback(os.close, self._journal)
            self.mark = self._take_up(_header(desired))
            self._files = undo.pop_all()
        self._size = self._begun = self.mark.offset if self.mark else 0
        self._room: Space | None = None
        self._room_begins = self._size
        self._is_open = True

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return self._size

    def chunks(self) -> Iterator[bytes]:
        """The bytes up to the mark.

        Raises:
            IntegrityError: they cannot be read, or were evicted meanwhile.
        """
        end = self.mark.offset if self.mark else 0
        position = 0
        while position < end:
            data = self._read(min(_READ_BYTES, end - position), position)
            if not data:
                raise IntegrityError("spooled bytes", expected=end, found=position)
            position += len(data)
            yield data

    def append(self, data: bytes) -> bool:
        """Add *data*; return whether it is time to ``note`` a mark.

        Where it cannot be added, for whatever reason, the spool is removed and takes no more.
        """
        if not self._is_open:
            return False
        try:
            is_added = self._has_room_for(len(data)) and self._add(data)
        except (OSError, LayerManagerError) as error:
            _LOGGER.warning("the spool %s is given up: %s", self._name, error)
            is_added = False
        if not is_added:
            self.discard()
            return False
        return self._size - (self.mark.offset if self.mark else 0) >= MARK_BYTES

    def note(self, mark: Mark) -> None:
        """Sync what was added, and note *mark* at its end.

        Where the disk refuses that, the spool is removed: after an error the kernel takes for
        written what it could not write, so that no later sync can be believed.
        """
        try:
            with self._lock:
                if not self._is_open or mark.offset != self._size:
                    return
                self._sync(self._part)
                self._on_step(Step.WRITE_SPOOL)
                _write(self._journal, _line(mark), os.fstat(self._journal).st_size)
                self._sync(self._journal)
                self.mark = mark
        except OSError as error:
            _LOGGER.warning("the spool %s is given up: %s", self._name, error)
            self.discard()

    def close(self) -> None:
        """Leave it for another time; may be repeated."""
        self.end()
        self._spools.leave(self._name, self._size)

    def discard(self) -> None:
        """Remove it; where the disk refuses that, a later operation is another try."""
        self.end()
        self._spools.remove(self._name)

    def end(self) -> None:
        """Take no more bytes; may be repeated."""
        with self._lock:
            self._is_open = False
            self._files.close()
            if self._room is not None:
                self._room.release()

    def _take_up(self, header: bytes) -> Mark | None:
        """Go on at the last mark of what is there, or begin anew if it is of another file."""
        length = os.fstat(self._journal).st_size
        text = os.pread(self._journal, min(length, _JOURNAL_LIMIT), 0)
        is_same = text.startswith(header)
        mark = _last_mark(text[len(header) :]) if is_same else None
        if mark is not None and os.fstat(self._part).st_size < mark.offset:
            mark = None
        self._on_step(Step.WRITE_SPOOL)
        os.ftruncate(self._part, mark.offset if mark else 0)
        self._on_step(Step.WRITE_SPOOL)
        if mark is not None:  # without the half line that a power cut may have left
            os.ftruncate(self._journal, text.rindex(b"\n") + 1)
            return mark
        os.ftruncate(self._journal, 0)
        _write(self._journal, header, 0)
        return None

    def _read(self, size: int, position: int) -> bytes:
        with self._lock:
            if not self._is_open:
                return b""
            try:
                return os.pread(self._part, size, position)
            except OSError as error:
                raise IntegrityError(
                    "spooled bytes", expected="bytes that can be read", found=error.strerror
                ) from error

    def _has_room_for(self, extra: int) -> bool:
        """Whether *extra* bytes are set aside; more are, if need be, for some while."""
        if self._room is not None and self._size + extra <= self._room_begins + self._room.size:
            return True
        room = self._spools.set_aside(self._name, self._size, max(extra, MARK_BYTES))
        if room is None:
            _LOGGER.info("the spool %s is given up: there is no room for it", self._name)
            return False
        with self._lock:
            if not self._is_open:
                room.release()
                return False
            if self._room is not None:
                self._room.release()
            self._room, self._room_begins = room, self._size
        return True

    def _add(self, data: bytes) -> bool:
        with self._lock:
            if not self._is_open:
                return False
            self._on_step(Step.WRITE_SPOOL)
            _write(self._part, data, self._size)
            self._size += len(data)
            self._begin_to_write()
            if self._room is not None:
                self._room.note_written(self._size - self._room_begins)
        return True

    def _begin_to_write(self) -> None:
        """Have the disk begin with what was added, so that a sync finds little to wait for.

        The transfer waits for syncs, which would otherwise be all the time that the disk has.
        """
        added = self._size - self._begun
        if self._durable and added >= _BEGIN_BYTES:
            # Of pages that nobody needs, Linux begins to write those that it has yet to.
            os.posix_fadvise(self._part, self._begun, added, os.POSIX_FADV_DONTNEED)
            self._begun = self._size

    def _sync(self, descriptor: int) -> None:
        if not self._durable:
            return
        self._on_step(Step.SYNC_SPOOL)
        os.fdatasync(descriptor)


def _name(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.encoded}"


def _is_name(text: str) -> bool:
    try:
        return _name(Digest(text.replace("-", ":", 1))) == text
    except InvalidDigestError:
        return False


def _header(desired: DesiredLayer) -> bytes:
    """The first line of a journal: a file that is desired otherwise is another file."""
    members = {
        "digest": desired.digest,
        "checksum": desired.sha256.hex(),
        "size": desired.size,
    }
    return json.dumps(members).encode() + b"\n"


def _line(mark: Mark) -> bytes:
    members = {
        "offset": mark.offset,
        "digest": mark.digest,
        "url": mark.url,
        "validator": mark.validator,
    }
    return json.dumps(members).encode() + b"\n"


def _last_mark(lines: bytes) -> Mark | None:
    """The last whole line of *lines* that is a mark."""
    for line in reversed(lines.split(b"\n")[:-1]):
        try:
            document = JsonObject.of(parse(line), "")
            return Mark(
                offset=document.required_integer("offset"),
                digest=document.required_text("digest"),
                url=document.text("url", ""),
                validator=document.text("validator", ""),
            )
        except DocumentError:
            continue  # a power cut left it as it is
    return None


def _write(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
