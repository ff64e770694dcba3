"""One layer from its source into staging, verified; what is left to do is to commit it."""

from __future__ import annotations

import errno
import itertools
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.boundary import Boundary
from layermanager.errors import (
    IntegrityError,
    LayerError,
    LayerManagerError,
    NotEnoughSpaceError,
    StoreError,
)
from layermanager.model import LayerProgress, Phase
from layermanager.space import disk_usage
from layermanager.steps import Step
from layermanager.unpack.messages import Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.boundary import Guard
    from layermanager.cancellation import Cancellation
    from layermanager.model import DesiredLayer, Limits
    from layermanager.observer import Observer
    from layermanager.protocols import Allocator, Space, SpaceAllocator
    from layermanager.steps import OnStep
    from layermanager.store import StagedLayer, Store
    from layermanager.transfer.fetcher import Fetcher, Transfer
    from layermanager.unpack.client import Unpacker
    from layermanager.unpack.messages import Unpacked

Result = TypeVar("Result")

_RESERVED_STEP_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class VerifiedLayer:
    """A layer in staging that is what was desired.

    Attributes:
        desired: what was desired.
        transfer: what brought it; what it keeps is of no use once the layer is committed.
        staged: where it is.
        unpacked: what it turned out to be.
        space: what it takes; to be accepted when it is committed.
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
    ) -> None:
        self._guard = guard
        self._fetcher = fetcher
        self._unpacker = unpacker
        self._store = store
        self._allocator = allocator
        self._neighbour = neighbour
        self._limits = limits
        self._on_progress = on_progress
        self._on_step = on_step
        self._observer = observer

    def install(self, desired: DesiredLayer, cancellation: Cancellation) -> VerifiedLayer:
        """Fetch, unpack and verify one layer; nothing is left behind where that fails.

        Raises:
            LayerManagerError: the layer cannot be had, is not the desired one, or does not fit.
        """
        transfer = self._fetcher.begin(desired, cancellation)
        with closing(transfer):
            while True:
                try:
                    cancellation.check()
                    return self._install(desired, transfer, cancellation)
                except LayerError as error:
                    error.digest = error.digest or desired.digest
                    transfer.start_over(error)

    def _install(
        self, desired: DesiredLayer, transfer: Transfer, cancellation: Cancellation
    ) -> VerifiedLayer:
        with ExitStack() as leftovers:
            space = leftovers.enter_context(self._first_space(desired))
            staged = leftovers.enter_context(self._store.stage(desired.digest))
            unpacked = self._unpack(desired, transfer, staged, space, cancellation)
            return VerifiedLayer(desired, transfer, staged, unpacked, space, leftovers.pop_all())

    def _unpack(
        self,
        desired: DesiredLayer,
        transfer: Transfer,
        staged: StagedLayer,
        space: Space,
        cancellation: Cancellation,
    ) -> Unpacked:
        with ExitStack() as stack:
            chunks = stack.enter_context(closing(transfer.chunks()))
            # Nobody unpacks before there is something to unpack: that may take any time to arrive.
            first = next(chunks, b"")
            granting = _Granting(self._grow, space, self._observer)
            job = Job(
                digest=desired.digest,
                is_package=desired.is_package,
                limits=self._limits,
                granted=space.size,
                block_bytes=staged.block_bytes,
                diff_id=desired.diff_id,
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
                raise _disk_error(error, staged, space) from error
            granting.note_written(unpacked.size)
            self._report(desired, transfer, granting)
            if desired.is_package and unpacked.blob_digest != desired.digest:
                raise IntegrityError(
                    "layer digest", expected=desired.digest, found=unpacked.blob_digest
                )
            return unpacked

    def _first_space(self, desired: DesiredLayer) -> Space:
        """Set aside what the layer takes at least.

        How large it is unpacked shows only while it unpacks; hardly ever is it smaller than the
        compressed file, so that what can never fit is refused before anything is evicted for it.
        """
        return self._with_neighbour(lambda: self._allocator.allocate_space(desired.size or 0))

    def _grow(self, space: Space, size: int) -> None:
        """Have *space* hold *size* bytes, and a step more if there is room."""
        missing = size - space.size
        if space.grow_if_free(missing + _RESERVED_STEP_BYTES):
            return
        try:
            self._with_neighbour(lambda: space.grow(missing))
        except NotEnoughSpaceError as error:
            # From the layer's point of view: what it needs so far, and what it could have had.
            raise NotEnoughSpaceError(
                needed=space.size + missing,
                free=space.size + error.free,
                limit=error.limit,
                reclaimable=error.reclaimable,
                limit_reached=error.limit_reached,
            ) from error

    def _with_neighbour(self, allocate: Callable[[], Result]) -> Result:
        """Call *allocate*; where the partition is too full, ask the neighbour and call it again."""
        try:
            return allocate()
        except NotEnoughSpaceError as error:
            # Only the partition is shared: against our own limit the neighbour cannot help.
            if self._neighbour is None or error.limit_reached:
                raise
            with self._guard.containing(Boundary.SPACE_PROVIDER, "the neighbour"):
                self._neighbour.allocate_layers_space(error.missing)
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


class _Granting:
    """Answers one worker's requests for space.

    Attributes:
        written: the bytes on disk, as of the last request.
    """

    def __init__(
        self, grow: Callable[[Space, int], None], space: Space, observer: Observer
    ) -> None:
        self._grow = grow
        self._space = space
        self._observer = observer
        self.written = 0

    def grant(self, written: int, needed: int) -> int:
        """Return how many bytes the layer may take in all."""
        self.note_written(written)
        if written + needed > self._space.size:
            self._grow(self._space, written + needed)
        return self._space.size

    def note_written(self, written: int) -> None:
        """Note that the layer takes *written* bytes on disk by now: they do not count twice."""
        self._space.note_written(written)
        if written > self.written:
            self._observer.written(written - self.written)
            self.written = written


def _disk_error(error: OSError, staged: StagedLayer, space: Space) -> LayerManagerError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"cannot unpack {staged.digest}: {error.strerror}")
    return NotEnoughSpaceError(
        needed=space.size,
        free=disk_usage(staged.path).free,
        limit=0,
        reclaimable=0,
        limit_reached=False,
        digest=staged.digest,
    )
