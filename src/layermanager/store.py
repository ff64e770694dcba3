"""The directories of the store, and the only code that makes layers appear and disappear in it.

::

    <layersDir>/
        sha256/<hex>/            a layer: complete, verified, never changed
        sha256/<hex>.<random>/   a layer that grows to replace the one beside it
        .staging/<hex>.<random>/ a layer that grows; becomes one of the above by a rename
        .trash/<hex>.<random>/   a layer that is being removed; came here by a rename
    <workingDir>/index/
        sha256/<hex>.mtree.gz    what each path of the layer is
        .staging/                an index that grows

A layer is in its place or not there at all, since only renames make and unmake it. It *counts*
when the storage has a row for it besides: the row comes after the directory and goes before it.
Only a file system that has no room for a rename has a layer removed in its place, its index first
(``stale_rows``).
What lies in ``.staging`` and ``.trash``, what was to replace a layer, and layers without a row, are
leftovers of a crash and are swept. What has come into use by a mount is put back, or stays until it
is unmounted: a rename takes nothing from those who use it. Aos's own manager removes all
``<layersDir>/*/*`` that its database does not name, so that all these disappear there as well.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from layermanager import linux
from layermanager.errors import InvalidDigestError, StoreError
from layermanager.model import Digest
from layermanager.notices import Notices
from layermanager.presence import exists, is_directory
from layermanager.private_files import (
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    PUBLIC_DIRECTORY,
    make_directory,
)
from layermanager.removal import reason_of, remove_tree
from layermanager.steps import Step, unannounced
from layermanager.unpack.index import read_index

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from layermanager.model import Limits
    from layermanager.steps import OnStep

    IsInUse: TypeAlias = Callable[[str], bool]

Result = TypeVar("Result")

_LOGGER: Final = logging.getLogger(__name__)

_STAGING: Final = ".staging"
_TRASH: Final = ".trash"
_ROOT: Final = b"."  # in an index
_ACCESS_LIST: Final = "system.posix_acl_access"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_HAS_NONE: Final = (errno.ENODATA, errno.ENOTSUP)
_INDEX_SUFFIX: Final = ".mtree.gz"
_REPLACEMENT: Final = re.compile(r"[0-9a-f]{64,128}\.[0-9a-f]{8}")
_CREATE_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class StagedLayer:
    """A directory in which a layer grows until it is committed.

    Attributes:
        digest: the layer.
        path: the directory.
        descriptor: a file descriptor of it.
        block_bytes: the size of the blocks in which its file system counts.
        index_path: the file that gets the layer's index.
        index_descriptor: a file descriptor of that.
    """

    digest: Digest
    path: Path
    descriptor: int
    block_bytes: int
    index_path: Path
    index_descriptor: int


@dataclass(frozen=True, slots=True)
class TakenOut:
    """Layers that were to be taken out of their places.

    Attributes:
        trashed: where those are that were taken out; None where there is nothing any more.
        in_use: those that are in use, and in their places.
        failed: those that could not be moved, and why; they are whole and in their places.
        rests: those that are neither whole in their places nor gone, and why.
    """

    trashed: Mapping[Digest, Path | None]
    in_use: tuple[Digest, ...]
    failed: Mapping[Digest, StoreError]
    rests: Mapping[Digest, StoreError]

    def with_others(self, other: TakenOut) -> TakenOut:
        """Return the layers of both."""
        return TakenOut(
            {**self.trashed, **other.trashed},
            (*self.in_use, *other.in_use),
            {**self.failed, **other.failed},
            {**self.rests, **other.rests},
        )


class Store:
    """The layers below *layers_dir* and their indexes below *index_dir*.

    These and *working_dir* are made if missing. What changes anything is called with the store's
    lock held; several threads may share that.

    Args:
        working_dir: holds what else belongs to the store.
        layers_dir: holds the layers.
        index_dir: holds their indexes.
        durable: whether a layer that was committed is on the disk.
        on_step: is told of each change of the disk before it is made.
        look: looks at all mounts once; what it returns tells whether the layer whose digest has
            these hex digits was mounted then.
        notices: logs what cannot be removed, once as long as that lasts.

    Raises:
        StoreError: a directory cannot be made, read or changed; from every method.
    """

    def __init__(
        self,
        working_dir: Path,
        layers_dir: Path,
        index_dir: Path,
        *,
        durable: bool = True,
        on_step: OnStep = unannounced,
        look: Callable[[], IsInUse] = lambda: lambda _: False,
        notices: Notices | None = None,
    ) -> None:
        self.layers_dir = layers_dir
        self._durable = durable
        self._on_step = on_step
        self._index_dir = index_dir
        self._staging = layers_dir / _STAGING
        self._index_staging = index_dir / _STAGING
        self._trash = layers_dir / _TRASH
        self._look = look
        self._notices = notices or Notices()
        self._replaced: set[Path] = set()
        self._sweeping = threading.Lock()  # one thread at a time, or they would hinder each other
        with _store_errors("cannot make the directories of the store"):
            for directory in (working_dir, layers_dir, index_dir):
                self._make_directories(directory, PRIVATE_DIRECTORY)
            # On a full disk there may be no block for it, just when a layer is to be removed.
            self._make_trash()

    def path_of(self, digest: Digest) -> Path:
        """Where the layer *digest* is, or would be."""
        return self.layers_dir / digest.algorithm / digest.encoded

    def index_path_of(self, digest: Digest) -> Path:
        """Where the index of the layer *digest* is, or would be."""
        return index_path(self._index_dir, digest)

    def has_index(self, digest: Digest) -> bool:
        """Whether it is known what the layer *digest* is."""
        with _store_errors("cannot reach an index"):
            return exists(self.index_path_of(digest))

    def block_bytes(self) -> int:
        """Return the size of the blocks in which the file system of the layers counts."""
        with _store_errors("cannot tell the file system of the layers"):
            return os.statvfs(self.layers_dir).f_frsize

    def inodes_beside_layer(self) -> int:
        """Return how many inodes a layer takes beside what is unpacked: its root and its index.

        An index on another file system does not count.
        """
        with _store_errors("cannot reach the directories of the store"):
            is_beside = self.layers_dir.stat().st_dev == self._index_dir.stat().st_dev
        return 2 if is_beside else 1

    def inodes_in_index(self, digest: Digest, limits: Limits) -> int:
        """Count the inodes of a layer, without its root, by its index; 0 if there is no index.

        Of a damaged index the lines before the damage count: a check reports that.
        """
        inodes = 0
        with _store_errors("cannot read an index"):
            try:
                file = self.index_path_of(digest).open("rb")
            except FileNotFoundError:
                return 0
            with file, suppress(StoreError):
                for entry in read_index(file, str(digest), limits):
                    inodes += not (entry.hard_link or entry.path == _ROOT)
        return inodes

    def require_whiteouts(self) -> None:
        """Make sure that the file system of the layers can hold what hides files of other layers.

        Raises:
            StoreError: it cannot: it is an overlay itself, as the root directory of a container is.
        """
        with _store_errors("cannot tell the file system of the layers"):
            magic = linux.file_system_magic(os.fsencode(self.layers_dir))
        if magic == linux.OVERLAYFS_MAGIC:
            raise StoreError(
                f"cannot install layers in {self.layers_dir}: it is on overlayfs, which can hold "
                "no whiteouts; set layersDir to a directory on ext4, XFS, btrfs or tmpfs, such as "
                "a volume of the container"
            )

    def digests(self) -> list[Digest]:
        """The layers whose directory is there; other files are passed over."""
        found = []
        with _store_errors("cannot list the layers"):
            for algorithm in _subdirectories(self.layers_dir):
                for name in _subdirectories(self.layers_dir / algorithm):
                    try:
                        found.append(Digest(f"{algorithm}:{name}"))
                    except InvalidDigestError:
                        continue  # not a layer: somebody else's, or staging or trash
        return found

    @contextmanager
    def stage(
        self, digest: Digest, make_room: Callable[[], bool] = lambda: False
    ) -> Iterator[StagedLayer]:
        """Make an empty directory for a layer to grow in; it is discarded unless committed by then.

        Only its owner may enter it as long as it grows. It is beside the layer that it is to
        replace, if there is one: XFS takes an exchange between two directories for a change of what
        is exchanged. The time of that could be set back, but not in the same moment.

        Args:
            digest: the layer.
            make_room: is called where there is no room for it; returns whether it is worth another
                try.
        """
        place = self.path_of(digest)
        with ExitStack() as stack:
            with _store_errors("cannot make a directory for a new layer"):
                self._make_staging(self._staging)
                path = _new_name(place.parent if exists(place) else self._staging, digest)
                stack.callback(self._discard, path)
                _with_room(lambda: self._make_staged(path), make_room)
                descriptor = os.open(path, _OPEN_DIRECTORY)
                stack.callback(os.close, descriptor)
                block_bytes = os.fstatvfs(descriptor).f_frsize
                index, index_descriptor = self._stage_index(digest, stack, make_room)
            yield StagedLayer(digest, path, descriptor, block_bytes, index, index_descriptor)

    def commit(
        self, staged: Sequence[StagedLayer], make_room: Callable[[], bool] = lambda: False
    ) -> Mapping[Digest, StoreError]:
        """Put complete and verified layers into their places, durably.

        All their files are synced first, by one call for the whole group; then they are renamed;
        then the renames are synced. When this returns, no power cut can take them away, and until
        then no row names them. A layer that is in its place already is replaced at one moment; its
        old files are then where the new ones grew.

        Only a rename is tried again: what a failed sync did not write is lost.

        Args:
            staged: the layers.
            make_room: is called where a rename finds no room; returns whether it is worth another
                try.

        Returns:
            Those that could not be put into their places, and why; the others were.
        """
        failed: dict[Digest, StoreError] = {}
        with _store_errors("cannot commit"):
            for layer in staged:
                self._own_index(layer.index_path, layer.index_descriptor)
            self._sync(staged[0].descriptor, [layer.index_descriptor for layer in staged])
            for layer in staged:
                try:
                    self._place_whole(layer, make_room)
                except StoreError as error:
                    failed[layer.digest] = error
            places = {self.path_of(layer.digest).parent for layer in staged}
            places |= {self.index_path_of(layer.digest).parent for layer in staged}
            for directory in (*filter(is_directory, places), self.layers_dir, self._index_dir):
                self._sync_directory(directory)
        return failed

    @contextmanager
    def adoption(self, digest: Digest) -> Iterator[tuple[int, int]]:
        """Descriptors of a layer without an index, and of the file that becomes its index.

        At the end of the context both are on the disk and the index is in its place; after an
        exception there is none.
        """
        with ExitStack() as stack, _store_errors("cannot make an index"):
            root = os.open(self.path_of(digest), _OPEN_DIRECTORY)
            stack.callback(os.close, root)
            path, index = self._stage_index(digest, stack)
            yield root, index
            self._own_index(path, index)
            self._sync(root, [index])
            self._place_index(path, digest)
            for directory in (self.index_path_of(digest).parent, self._index_dir):
                self._sync_directory(directory)

    def take_out(
        self, digests: Iterable[Digest], *, in_place: Callable[[Digest], bool] = lambda _: True
    ) -> TakenOut:
        """Take layers out of their places, but for those that are in use.

        They are looked at in the trash, where no process can begin to use them by their path; one
        look is for all. Who began before has the directory itself: it loses nothing by a rename,
        and the layer is put back. So are all when it cannot be told what is in use.

        A rename needs room where the file system overwrites nothing in place (btrfs), and removing
        files does not. What cannot be renamed for that reason is removed in its place at once,
        right after a look of its own.

        ``discard`` is to follow.

        Args:
            digests: the layers.
            in_place: tells which layers may be removed in their places.
        """
        trashed: dict[Digest, Path | None] = {}
        failed: dict[Digest, StoreError] = {}
        immovable: list[Digest] = []
        for digest in digests:
            try:
                trashed[digest] = self._move_to_trash(digest)
            except OSError as error:
                if error.errno in _NO_ROOM and in_place(digest):
                    immovable.append(digest)
                else:
                    failed[digest] = _not_removed(self.path_of(digest), error)
        moved = {digest: path for digest, path in trashed.items() if path is not None}
        back = [*moved]
        rests: dict[Digest, StoreError] = {}
        try:
            if moved:
                is_in_use = self._look()
                back = [digest for digest in moved if is_in_use(digest.encoded)]
        finally:
            for digest in back:
                del trashed[digest]
                try:
                    self._put_back(moved[digest], digest)
                except StoreError as error:
                    rests[digest] = error
        in_use = tuple(digest for digest in back if digest not in rests)
        return TakenOut(trashed, in_use, failed, rests).with_others(
            self._remove_in_place(immovable)
        )

    def discard(self, taken: TakenOut) -> dict[Digest, StoreError]:
        """Remove what was taken out; its space is free then.

        One that refuses stops no other.

        Returns:
            Those of which something is left, and why.
        """
        failed = dict(taken.rests)
        for digest, trashed in taken.trashed.items():
            try:
                self._remove_index(digest)
                if trashed is not None:
                    self._remove_tree(trashed)
            except StoreError as error:
                failed[digest] = error
        return failed

    def remove_unrecorded(self, digests: Iterable[Digest]) -> TakenOut:
        """Remove layers that have no rows, but for those that are in use.

        What refuses is logged, once as long as it does, and left to the next operation.
        """
        taken = self.take_out(digests)
        for error in (*taken.failed.values(), *self.discard(taken).values()):
            self._warn(error)
        return taken

    def remove(self, digests: Iterable[Digest]) -> TakenOut:
        """Remove layers that have no rows, but for those that are in use."""
        taken = self.take_out(digests)
        for error in (*taken.failed.values(), *self.discard(taken).values()):
            raise error
        return taken

    def take_back(self, digests: Collection[Digest]) -> None:
        """Remove layers that were committed and got no row; a sweep tries again where that fails.

        Why they got no row is what is to be said; that the disk refuses this too is only logged.
        """
        try:
            self.remove(digests)
        except StoreError as error:
            _LOGGER.warning("layers are left to the next operation: %s", error)

    def remove_other_indexes(self, digests: Collection[Digest]) -> None:
        """Remove the indexes of all layers but *digests*.

        Btrfs may bring the names of one directory to the disk and not those of another, so that
        after a power cut an index can be there without its layer.
        """
        expected = {(digest.algorithm, digest.encoded + _INDEX_SUFFIX) for digest in digests}
        with _store_errors("cannot list the indexes"):
            others = [
                self._index_dir / algorithm / name
                for algorithm in _subdirectories(self._index_dir)
                if algorithm != self._index_staging.name
                for name in _names(self._index_dir / algorithm)
                if (algorithm, name) not in expected
            ]
        for path in others:
            try:
                self._on_step(Step.REMOVE_INDEX)
                path.unlink(missing_ok=True)
            except OSError as error:
                self._warn(_not_removed(path, error))

    def sweep(self, is_in_use: IsInUse | None = None) -> int:
        """Remove what a crash left in staging and trash; return how many layers that were.

        Args:
            is_in_use: from a look since the crash; by default it is looked. What is in use is
                looked at once more when all else is removed.
        """
        with self._sweeping:
            with _store_errors("cannot clean up"):
                indexes = _entries(self._index_staging)
                layers = [
                    *_entries(self._staging),
                    *_entries(self._trash),
                    *self._replacements(),
                ]
            for path in indexes:
                self._sweep_tree(path)
            if not layers:
                return 0
            is_in_use = is_in_use or self._look()
            used = [path for path in layers if is_in_use(_encoded(path))]
            removed = sum(self._sweep_tree(path) for path in layers if path not in used)
            if not used:
                return removed
            # The worker of a manager that was killed had its layer mounted until it ended.
            is_still_in_use = self._look()
            for path in used:
                if is_still_in_use(_encoded(path)):
                    _LOGGER.info("%s is in use by a mount, and stays until that ends", path)
                else:
                    removed += self._sweep_tree(path)
            return removed

    def _make_directories(self, path: Path, mode: int) -> None:
        """Make *path* with *mode*, and what is missing above it open to all, durably.

        Overlays reach layers by their directories, not by paths: who uses a mount needs no way to
        its lower directories. One that is there keeps its mode, as another program chose it.
        """
        if is_directory(path):
            return
        self._make_directories(path.parent, PUBLIC_DIRECTORY)
        self._on_step(Step.MAKE_STORE_DIRECTORY)
        make_directory(path, mode)
        self._sync_directory(path.parent)

    def _make_trash(self) -> None:
        if not is_directory(self._trash):
            self._on_step(Step.MAKE_STORE_DIRECTORY)
            make_directory(self._trash, PRIVATE_DIRECTORY)

    def _make_staging(self, staging: Path) -> None:
        self._on_step(Step.MAKE_STORE_DIRECTORY)
        make_directory(staging, PRIVATE_DIRECTORY)

    def _make_staged(self, path: Path) -> None:
        self._on_step(Step.STAGE_LAYER)
        path.mkdir(mode=0o700)

    def _stage_index(
        self,
        digest: Digest,
        stack: ExitStack,
        make_room: Callable[[], bool] = lambda: False,
    ) -> tuple[Path, int]:
        """An empty file for an index and its descriptor, until *stack* ends."""
        self._make_staging(self._index_staging)
        path = _new_name(self._index_staging, digest)
        stack.callback(self._discard, path)
        descriptor = _with_room(lambda: self._make_staged_index(path), make_room)
        stack.callback(os.close, descriptor)
        return path, descriptor

    def _make_staged_index(self, path: Path) -> int:
        self._on_step(Step.STAGE_INDEX)
        return os.open(path, _CREATE_FILE, PRIVATE_FILE)

    def _make_parent(self, place: Path, mode: int) -> None:
        self._on_step(Step.MAKE_PARENT_DIRECTORY)
        make_directory(place.parent, mode)

    def _own_index(self, path: Path, descriptor: int) -> None:
        """Give the staged index at *path* the owner and the mode that it is to have.

        The worker that wrote it had a descriptor of it, and may have been taken over.

        Raises:
            OSError: it is no longer the one file that was made at *path*.
        """
        status = os.fstat(descriptor)
        if status.st_nlink != 1 or not os.path.samestat(status, path.lstat()):
            raise OSError(errno.ESTALE, "the index was replaced or linked", str(path))
        self._on_step(Step.OWN_INDEX)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, os.geteuid(), os.getegid())
        _remove_access_list(descriptor)
        os.fchmod(descriptor, PRIVATE_FILE)

    def _place_index(self, path: Path, digest: Digest) -> None:
        place = self.index_path_of(digest)
        self._make_parent(place, PRIVATE_DIRECTORY)
        self._on_step(Step.PLACE_INDEX)
        path.rename(place)

    def _place_whole(self, layer: StagedLayer, make_room: Callable[[], bool]) -> None:
        """Put a layer and its index into their places, in this order.

        So an index without its layer cannot be left behind.
        """
        with _store_errors("cannot commit"):
            _with_room(lambda: self._place(layer), make_room)
            _with_room(lambda: self._place_index(layer.index_path, layer.digest), make_room)

    def _place(self, layer: StagedLayer) -> None:
        place = self.path_of(layer.digest)
        self._make_parent(place, PUBLIC_DIRECTORY)
        is_taken = exists(place)
        self._on_step(Step.PLACE_LAYER)
        if not is_taken:
            layer.path.rename(place)
            return
        self._replaced.add(layer.path)
        linux.exchange(os.fsencode(layer.path), os.fsencode(place))

    def _sync(self, layer: int, indexes: Iterable[int]) -> None:
        """Write a *layer*, all others of its file system, and *indexes* to disk; by descriptor."""
        if not self._durable:
            return
        self._on_step(Step.SYNC_LAYERS)
        linux.sync_file_system(layer)
        for index in indexes:
            self._on_step(Step.SYNC_INDEX)
            os.fsync(index)  # it may be on another file system

    def _sync_directory(self, path: Path) -> None:
        if not self._durable:
            return
        self._on_step(Step.SYNC_DIRECTORY)
        descriptor = os.open(path, _OPEN_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _move_to_trash(self, digest: Digest) -> Path | None:
        """Take a layer out of its place; return where it is then, if it was there.

        Raises:
            OSError: it cannot be moved, and is in its place.
        """
        trashed = _new_name(self._trash, digest)
        self._make_trash()  # Aos's manager may have tidied it up
        try:
            self._on_step(Step.MOVE_TO_TRASH)
            self.path_of(digest).rename(trashed)
        except FileNotFoundError:
            return None
        return trashed

    def _remove_in_place(self, digests: Iterable[Digest]) -> TakenOut:
        """Remove layers that cannot be moved, but for those that are in use.

        The index goes first, durably: without it a layer that has a row counts no more.
        """
        removed: dict[Digest, Path | None] = {}
        in_use: list[Digest] = []
        failed: dict[Digest, StoreError] = {}
        rests: dict[Digest, StoreError] = {}
        for digest in digests:
            refused = failed  # as long as it is whole
            try:
                if self._look()(digest.encoded):
                    in_use.append(digest)
                    continue
                self._remove_index(digest)
                with _store_errors("cannot remove a layer"), suppress(FileNotFoundError):
                    self._sync_directory(self.index_path_of(digest).parent)
                refused = rests
                self._remove_tree(self.path_of(digest))
            except StoreError as error:
                refused[digest] = error
            else:
                removed[digest] = None
        return TakenOut(removed, tuple(in_use), failed, rests)

    def _remove_index(self, digest: Digest) -> None:
        with _store_errors("cannot remove a layer"):
            self._on_step(Step.REMOVE_INDEX)
            self.index_path_of(digest).unlink(missing_ok=True)

    def _put_back(self, trashed: Path, digest: Digest) -> None:
        with _store_errors("cannot put a layer back that is in use"):
            self._on_step(Step.PUT_BACK)
            trashed.rename(self.path_of(digest))

    def _replacements(self) -> list[Path]:
        """What grew beside a layer, or was replaced by that."""
        return [
            self.layers_dir / algorithm / name
            for algorithm in _subdirectories(self.layers_dir)
            if not algorithm.startswith(".")
            for name in _names(self.layers_dir / algorithm)
            if _REPLACEMENT.fullmatch(name)
        ]

    def _discard(self, path: Path) -> None:
        """Remove what is in staging; where the disk refuses that, a sweep is another try.

        What was replaced by a repair may be in use, and is then left to a later sweep, too.
        """
        try:
            if path in self._replaced and self._look()(_encoded(path)):
                return
            self._remove_tree(path)
        except StoreError as error:
            _LOGGER.warning("%s is left to the next operation: %s", path, error)
        finally:
            self._replaced.discard(path)

    def _sweep_tree(self, path: Path) -> bool:
        """Remove a leftover; return whether nothing refused that.

        A user can make a part of a layer refuse, by a FUSE mount or a read-only subvolume. Neither
        that nor a fault of the disk must fail the operation that sweeps.
        """
        try:
            self._remove_from_disk(path)
        except OSError as error:
            self._notices.warn(
                _LOGGER, f"the rest of {path} is left to the next operation: {reason_of(error)}"
            )
            return False
        return True

    def _warn(self, error: StoreError) -> None:
        self._notices.warn(_LOGGER, f"{error}; it is left to the next operation")

    def _remove_tree(self, path: Path) -> None:
        with _store_errors("cannot remove"):
            self._remove_from_disk(path)

    def _remove_from_disk(self, path: Path) -> None:
        self._on_step(Step.REMOVE_TREE)
        directory = os.open(path.parent, _OPEN_DIRECTORY)
        try:
            remove_tree(path.name, dir_fd=directory)
        finally:
            os.close(directory)


def _with_room(step: Callable[[], Result], make_room: Callable[[], bool]) -> Result:
    """Do *step*; as often as it finds no room and some can be made, do it again."""
    while True:
        try:
            return step()
        except OSError as error:
            if error.errno not in _NO_ROOM or not make_room():
                raise


def _not_removed(path: Path, error: OSError) -> StoreError:
    """Return an error that names *path*, why it cannot be removed, and what to do."""
    failure = StoreError(f"cannot remove {path}: {reason_of(error)}")
    failure.__cause__ = error
    return failure


def _remove_access_list(descriptor: int) -> None:
    try:
        os.removexattr(descriptor, _ACCESS_LIST)
    except OSError as error:
        if error.errno not in _HAS_NONE:
            raise


def index_path(index_dir: Path, digest: Digest) -> Path:
    """Where the index of the layer *digest* is below *index_dir*, or would be."""
    return index_dir / digest.algorithm / f"{digest.encoded}{_INDEX_SUFFIX}"


def _new_name(directory: Path, digest: Digest) -> Path:
    return directory / f"{digest.encoded}.{secrets.token_hex(4)}"


def _encoded(path: Path) -> str:
    """The hex digits of the digest of what lies in staging or trash."""
    return path.name.partition(".")[0]


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:  # there are as many as layers: paths would take long
        return [entry.name for entry in entries]


def _subdirectories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}") from error
