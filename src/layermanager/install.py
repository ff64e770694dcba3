"""One layer from its source into staging, verified; what is left to do is to commit it."""

from __future__ import annotations

import errno
import itertools
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.amounts import NOTHING, Amount
from layermanager.boundary import Boundary
from layermanager.errors import (
    IntegrityError,
    LayerError,
    LayerManagerError,
    NotEnoughSpaceError,
    SpaceKind,
    StoreError,
)
from layermanager.model import LayerProgress, Phase
from layermanager.reservations import estimated
from layermanager.rooms import rooms_of
from layermanager.space import disk_usage
from layermanager.steps import Step
from layermanager.unpack.messages import Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.boundary import Guard
    from layermanager.cancellation import Cancellation
    from layermanager.model import DesiredLayer, Digest, Footprint, Limits
    from layermanager.observer import Observer
    from layermanager.protocols import Allocator, Room, Space, SpaceAllocator
    from layermanager.steps import OnStep
    from layermanager.store import StagedLayer, Store
    from layermanager.transfer.fetcher import Fetcher, Transfer
    from layermanager.unpack.client import Unpacker
    from layermanager.unpack.messages import Need, Unpacked

Result = TypeVar("Result")

_BYTES_OF_AN_INODE: Final = 4096
"""What a neighbour that counts bytes frees for an inode, at least: the block of a file."""

_MOST_PROVEN: Final = 1000


@dataclass(frozen=True, slots=True)
class VerifiedLayer:
    """A layer in staging that is what was desired.

    Attributes:
        desired: what was desired.
        transfer: what brought it; what it keeps is of no use once the layer is committed.
        staged: where it is.
        unpacked: what it turned out to be.
        space: what it holds; to be accepted when it is committed.
        leftovers: closing this removes from staging and gives back what was not committed.
    """

    desired: DesiredLayer
    transfer: Transfer
    staged: StagedLayer
    unpacked: Unpacked
    space: Space
    leftovers: ExitStack


class Installer:
    """Installs layers up to the commit; used by several threads at once.

    Args:
        fetcher: begins transfers.
        unpacker: unpacks.
        store: where layers are staged.
        allocator: hands out the space of the store.
        neighbour: can free more, if there is one.
        limits: what to refuse.
        on_progress: is told what happens, in the thread in which it happens.
        on_step: likewise is told of each piece that will be unpacked to disk.
        observer: is told what is written.
        guard: notes what *neighbour* raises; it is then taken to have freed nothing.
        make_room: evicts something where the disk has no room to begin a layer, whatever it says
            that is free; returns whether there was something.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        unpacker: Unpacker,
        store: Store,
        allocator: Allocator,
        neighbour: SpaceAllocator | None,
        limits: Limits,
        on_progress: Callable[[LayerProgress], None],
        on_step: OnStep,
        observer: Observer,
        guard: Guard,
        make_room: Callable[[], bool],
    ) -> None:
        self._make_room = make_room
        self._guard = guard
        self._fetcher = fetcher
        self._unpacker = unpacker
        self._store = store
        self._rooms = rooms_of(allocator)
        self._neighbour = neighbour
        self._limits = limits
        self._on_progress = on_progress
        self._on_step = on_step
        self._observer = observer
        self._proven = _Proven()

    def install(
        self,
        desired: DesiredLayer,
        cancellation: Cancellation,
        known: Footprint | None = None,
    ) -> VerifiedLayer:
        """Fetch, unpack and verify one layer; nothing is left behind where that fails.

        Args:
            desired: the layer.
            cancellation: ends it early.
            known: what it took when it was installed before.

        Raises:
            LayerManagerError: the layer cannot be had, is not the desired one, or does not fit.
        """
        transfer = self._fetcher.begin(desired, cancellation)
        with closing(transfer):
            while True:
                try:
                    cancellation.check()
                    return self._install(desired, transfer, known, cancellation)
                except LayerError as error:
                    error.digest = error.digest or desired.digest
                    transfer.start_over(error)

    def _install(
        self,
        desired: DesiredLayer,
        transfer: Transfer,
        known: Footprint | None,
        cancellation: Cancellation,
    ) -> VerifiedLayer:
        with ExitStack() as leftovers:
            shape = self._shape(desired, known)
            room = leftovers.enter_context(
                self._with_neighbour(
                    lambda: self._rooms.allocate(shape.least(NOTHING), shape.likely(NOTHING))
                )
            )
            staged = leftovers.enter_context(self._store.stage(desired.digest, self._make_room))
            granting = _Granting(
                room,
                shape,
                transfer,
                with_neighbour=self._with_neighbour,
                on_refusal=lambda needed: self._proven.note(desired.digest, needed),
                observer=self._observer,
            )
            unpacked = self._unpack(desired, transfer, staged, granting, cancellation)
            self._proven.forget(desired.digest)
            return VerifiedLayer(desired, transfer, staged, unpacked, room, leftovers.pop_all())

    def _shape(self, desired: DesiredLayer, known: Footprint | None) -> _Shape:
        block_bytes = self._store.block_bytes()
        if known is not None and known.block_bytes != block_bytes:
            known = None
        return _Shape(
            # Hardly ever is a layer smaller unpacked than its compressed file.
            file_bytes=desired.size or 0,
            declared=desired.unpacked,
            before=known.amount if known is not None else NOTHING,
            proven=self._proven.of(desired.digest),
            block_bytes=block_bytes,
            frame=Amount(inodes=self._store.inodes_beside_layer()),
        )

    def _unpack(
        self,
        desired: DesiredLayer,
        transfer: Transfer,
        staged: StagedLayer,
        granting: _Granting,
        cancellation: Cancellation,
    ) -> Unpacked:
        with ExitStack() as stack:
            chunks = stack.enter_context(closing(transfer.chunks()))
            # Nobody unpacks before there is something to unpack: that may take any time to arrive.
            first = next(chunks, b"")
            job = Job(
                digest=desired.digest,
                is_package=desired.is_package,
                limits=self._limits,
                granted=0,
                block_bytes=staged.block_bytes,
                diff_id=desired.diff_id,
                granted_inodes=0,
            )
            unpacking = stack.enter_context(
                self._unpacker.start(
                    job, staged.descriptor, staged.index_descriptor, granting.grant
                )
            )
            stack.enter_context(cancellation.interrupting(unpacking.kill))
            try:
                for chunk in itertools.chain((first,), chunks):
                    self._report(desired, transfer, granting)
                    self._on_step(Step.UNPACK)
                    unpacking.feed(chunk)
                transfer.verify()
                unpacked = unpacking.finish()
            except OSError as error:
                raise _disk_error(error, staged, granting) from error
            granting.settle(unpacked.amount)
            self._report(desired, transfer, granting)
            if desired.is_package and unpacked.blob_digest != desired.digest:
                raise IntegrityError(
                    "layer digest", expected=desired.digest, found=unpacked.blob_digest
                )
            return unpacked

    def _with_neighbour(self, allocate: Callable[[], Result]) -> Result:
        """Call *allocate*; where the partition is too full, ask the neighbour and call it again."""
        try:
            return allocate()
        except NotEnoughSpaceError as error:
            # Only the partition is shared: against our own limit the neighbour cannot help.
            if self._neighbour is None or error.limit_reached:
                raise
            is_short_of_inodes = error.kind is SpaceKind.INODES
            size = error.missing * (_BYTES_OF_AN_INODE if is_short_of_inodes else 1)
            with self._guard.containing(Boundary.SPACE_PROVIDER, "the neighbour"):
                self._neighbour.allocate_layers_space(size)
        return allocate()

    def _report(self, desired: DesiredLayer, transfer: Transfer, granting: _Granting) -> None:
        self._on_progress(
            LayerProgress(
                desired,
                Phase.INSTALLING,
                transferred=transfer.transferred,
                size=transfer.size,
                unpacked=granting.written,
            )
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known, before it is unpacked, of the space that a layer takes.

    Attributes:
        file_bytes: the size of its file.
        declared: its content and inodes, as its publisher says; 0 for what is not said.
        before: what it took when it was installed before, on a file system with such blocks.
        proven: what an attempt that was refused has shown that it takes at least.
        block_bytes: the size of the blocks.
        frame: what it takes beside what is unpacked.
    """

    file_bytes: int
    declared: Amount
    before: Amount
    proven: Amount
    block_bytes: int
    frame: Amount

    def least(self, declared: Amount) -> Amount:
        """Return what it takes at least; *declared* is what its package says."""
        content = Amount(self.file_bytes).at_least(self.declared).at_least(declared)
        return content.at_least(self.before).at_least(self.proven) + self.frame

    def least_after(self, used: Amount, taken: int) -> Amount:
        """Return what it takes at least when *taken* bytes of its file have become *used*."""
        return used + Amount(max(self.file_bytes - taken, 0)) + self.frame

    def likely(self, declared: Amount) -> Amount:
        """Return what it takes at most, if what is said of it is true."""
        content = self.declared.at_least(declared)
        # Each file fills the last of its blocks in part.
        whole = content + Amount(content.inodes * self.block_bytes)
        return (self.before if self.before != NOTHING else whole) + self.frame


class _Proven:
    """What attempts that were refused have shown of the layers, so that the next evicts nothing.

    It is for those whose unpacked size is not known. The oldest are forgotten.
    """

    def __init__(self) -> None:
        self._least: dict[Digest, Amount] = {}
        self._lock = threading.Lock()

    def of(self, digest: Digest) -> Amount:
        with self._lock:
            return self._least.get(digest, NOTHING)

    def note(self, digest: Digest, least: Amount) -> None:
        with self._lock:
            self._least[digest] = least.at_least(self._least.pop(digest, NOTHING))
            if len(self._least) > _MOST_PROVEN:
                del self._least[next(iter(self._least))]

    def forget(self, digest: Digest) -> None:
        with self._lock:
            self._least.pop(digest, None)


class _Granting:
    """Answers one worker's requests for space.

    Attributes:
        written: the bytes on disk, as of the last request.
    """

    def __init__(
        self,
        room: Room,
        shape: _Shape,
        transfer: Transfer,
        *,
        with_neighbour: Callable[[Callable[[], Amount]], Amount],
        on_refusal: Callable[[Amount], None],
        observer: Observer,
    ) -> None:
        self.room = room
        self._shape = shape
        self._transfer = transfer
        self._with_neighbour = with_neighbour
        self._on_refusal = on_refusal
        self._observer = observer
        self.written = 0

    def grant(self, need: Need) -> Amount:
        """Return how much the layer may take in all."""
        self._note_written(need.written)
        frame = self._shape.frame
        used, wanted = need.used + frame, need.wanted + frame
        taken = self._transfer.transferred
        # What the publisher says is refused at once if it cannot fit, and so is what is needed now.
        needed = wanted.at_least(self._shape.least_after(need.used, taken))
        needed = needed.at_least(self._shape.least(need.declared))
        pace = estimated(need.used, taken, self._transfer.size)
        likely = self._shape.likely(need.declared).at_least(pace + frame)
        try:
            told = self._with_neighbour(lambda: self.room.extend(used, needed, likely))
        except NotEnoughSpaceError as error:
            self._on_refusal(needed - frame)
            # From the layer's point of view: what it needs so far, and what it could have had.
            held = self.room.amount
            amount = held.inodes if error.kind is SpaceKind.INODES else held.size
            raise error.with_held(amount) from error
        return told - frame

    def settle(self, unpacked: Amount) -> None:
        """Note that the layer takes *unpacked*, and will take no more."""
        self._note_written(unpacked.size)
        self.room.settle(unpacked + self._shape.frame)

    def _note_written(self, written: int) -> None:
        if written > self.written:
            self._observer.written(written - self.written)
            self.written = written


def _disk_error(error: OSError, staged: StagedLayer, granting: _Granting) -> LayerManagerError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"cannot unpack {staged.digest}: {error.strerror}")
    usage, held = disk_usage(staged.path), granting.room.amount
    is_short_of_inodes = usage.free_inodes == 0
    return NotEnoughSpaceError(
        needed=held.inodes if is_short_of_inodes else held.size,
        free=0 if is_short_of_inodes else usage.free,
        limit=0,
        reclaimable=0,
        limit_reached=False,
        digest=staged.digest,
        kind=SpaceKind.INODES if is_short_of_inodes else SpaceKind.BYTES,
    )
