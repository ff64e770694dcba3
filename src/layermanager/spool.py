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
from layermanager.errors import IntegrityError, InvalidDigestError, StoreError
from layermanager.model import Digest
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from layermanager.model import DesiredLayer
    from layermanager.protocols import Allocator, NewSpaceAllocator
    from layermanager.steps import OnStep

_LOGGER: Final = logging.getLogger(__name__)

MARK_BYTES: Final = 8 * 1024 * 1024
"""After so many bytes a spool is synced and marked: so many may have to be fetched again."""

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
        url: where the last of them came from, without credentials.
        validator: what named that version of the file there.
    """

    offset: int
    digest: str
    url: str
    validator: str


class Spools:
    """The spools of one store; used by several threads, under the store's lock.

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
        self._lock = threading.Lock()
        self._allocator: Allocator | None = None
        self._open: dict[str, Spool] = {}

    def keep_only(self, desired: Collection[DesiredLayer]) -> None:
        """Remove the spools of all layers but those that are *desired* and not there yet.

        Raises:
            StoreError: they cannot be removed.
        """
        kept = {_name(layer.digest) for layer in desired}
        found = self._names()
        with _store_errors("cannot clean up"):
            for name in found - kept:
                self._remove(name)
        for name in found & kept:
            self._note(name, self._size_of(name))

    def has(self, desired: DesiredLayer) -> bool:
        """Whether something was spooled of *desired*."""
        return self.path(_name(desired.digest), _JOURNAL).exists()

    def open(self, desired: DesiredLayer) -> Spool:
        """The spool of *desired*, with what an earlier transfer left in it.

        Raises:
            StoreError: it cannot be opened.
        """
        name = _name(desired.digest)
        with _store_errors("cannot spool"):
            self._make_directory()
            spool = Spool(self, name, desired, durable=self._durable, on_step=self._on_step)
        with self._lock:
            self._open[name] = spool
        self._note(name, spool.size)
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

    def set_aside(self, name: str, size: int, extra: int) -> bool:
        """Count *extra* bytes more for a spool that has *size*, if nothing need be removed."""
        with self._space().allocate_space(0) as space:
            if not space.grow_if_free(extra):
                return False
            space.accept(extra)
        self._note(name, size + extra)
        return True

    def remove(self, name: str, size: int) -> None:
        """Remove a spool of *size* bytes.

        Raises:
            StoreError: it cannot be removed.
        """
        self.forget(name)
        self._space().restore_outdated_item(name)
        with _store_errors("cannot remove"):
            self._remove(name)
        self._space().free_space(size)

    def forget(self, name: str) -> None:
        """Note that nobody writes to a spool any more."""
        with self._lock:
            self._open.pop(name, None)

    def _evict(self, name: str) -> None:
        """Remove a spool, whose space the allocator needs; called from any thread."""
        with self._lock:
            spool = self._open.pop(name, None)
        if spool is not None:
            spool.end()
        with _store_errors("cannot remove"):
            self._remove(name)

    def _note(self, name: str, size: int) -> None:
        self._space().add_outdated_item(name, size, _BEFORE_ALL_LAYERS)

    def _space(self) -> Allocator:
        with self._lock:
            if self._allocator is None:
                self._allocator = self._new_space_allocator(self._directory, 0, self._evict)
            return self._allocator

    def _make_directory(self) -> None:
        if not self._directory.is_dir():
            self._on_step(Step.MAKE_STORE_DIRECTORY)
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def _names(self) -> set[str]:
        """The spools on disk; other files are somebody else's."""
        try:
            files = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return set()
        names = {
            file.removesuffix(suffix)
            for file in files
            for suffix in (_PART, _JOURNAL)
            if file.endswith(suffix)
        }
        return {name for name in names if _is_name(name)}

    def _size_of(self, name: str) -> int:
        try:
            return self.path(name, _PART).stat().st_size
        except FileNotFoundError:
            return 0

    def _remove(self, name: str) -> None:
        for suffix in (_JOURNAL, _PART):
            self._on_step(Step.REMOVE_SPOOL)
            self.path(name, suffix).unlink(missing_ok=True)


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
        self._size = self.mark.offset if self.mark else 0
        self._set_aside = self._size
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
        with self._lock:
            if not self._is_open:
                return False
            try:
                has_room = self._has_room_for(len(data))
                if has_room:
                    self._on_step(Step.WRITE_SPOOL)
                    _write(self._part, data, self._size)
            except OSError as error:
                _LOGGER.warning("the spool %s is given up: %s", self._name, error)
                has_room = False
            if has_room:
                self._size += len(data)
                marked = self.mark.offset if self.mark else 0
                return self._size - marked >= MARK_BYTES
        self.discard()
        return False

    def note(self, mark: Mark) -> None:
        """Sync what was added, and note *mark* at its end."""
        with self._lock:
            if not self._is_open or mark.offset != self._size:
                return
            try:
                self._sync(self._part)
                self._on_step(Step.WRITE_SPOOL)
                _write(self._journal, _line(mark), os.fstat(self._journal).st_size)
                self._sync(self._journal)
            except OSError as error:
                _LOGGER.warning("the spool %s is not marked: %s", self._name, error)
                return
            self.mark = mark

    def close(self) -> None:
        """Leave it for another time; may be repeated."""
        self.end()
        self._spools.forget(self._name)

    def discard(self) -> None:
        """Remove it; where the disk refuses that, a later operation is another try."""
        self.end()
        try:
            self._spools.remove(self._name, self._set_aside)
        except StoreError as error:
            _LOGGER.warning("%s", error)

    def end(self) -> None:
        """Take no more bytes; may be repeated."""
        with self._lock:
            self._is_open = False
            self._files.close()

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
        if self._size + extra <= self._set_aside:
            return True
        step = max(extra, MARK_BYTES)
        if not self._spools.set_aside(self._name, self._set_aside, step):
            return False
        self._set_aside += step
        return True

    def _sync(self, descriptor: int) -> None:
        if not self._durable:
            return
        self._on_step(Step.SYNC_SPOOL)
        os.fdatasync(descriptor)


def _name(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.encoded}"


def _is_name(text: str) -> bool:
    try:
        Digest(text.replace("-", ":", 1))
    except InvalidDigestError:
        return False
    return True


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


@contextlib.contextmanager
def _store_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}") from error
