"""Who may use how much of a disk: limits, reservations, and eviction where they are not enough.

Every directory has an allocator; the allocators on one partition share what is free there and
each other's outdated items. Three things bound an allocation; ``reservations`` decides:

*the limit*
    of the allocator, a share of its partition: used + reserved bytes stay within it. ``used`` are
    the accepted items, outdated ones included; ``reserved`` is what is set aside in ``Space``
    objects that are neither accepted nor released.
*the bytes of the partition*
    that the file system says are free, less what is set aside and not on disk yet. A byte that was
    written and is not yet noted counts twice for that time: on the safe side. Nothing is evicted
    or refused for it: see ``reservations`` on what is unsure.
*its inodes*
    likewise, where the file system counts them.

Where one is short, outdated items are removed, oldest first: the allocator's own for its
limit, those of any allocator for the partition. Freed space is never believed in: after removing,
the disk is looked at again, and only what is really there is set aside. XFS and btrfs give back the
space of removed files in the background, so where it is not there yet, it is waited for: else more
would be removed than is needed.

Accounting has one owner: the allocator takes the size of an item that *it* evicts off the used
bytes, and its remover only removes. Who removes an item of his own accord says
``restore_outdated_item`` before, so that nobody evicts it, and ``free_space`` after.

An item may be restored when its removal has been decided already and its remover not yet begun.
So a remover looks, under a lock of its own, whether the item may still be removed, and returns if
not; who restores looks, under the same lock, whether the item is still there, and leaves it if
not. The allocator does not touch the accounting of an item that was restored meanwhile.

Locks: a partition has one, and nothing foreign is called while it is held. Removers take locks of
their own, and may run in the thread of any allocator of the partition: called under the lock,
they would meet a thread that holds their lock and waits for this one. For the same reason

- nobody may call ``allocate_space``, ``grow`` or ``close`` while holding a lock that a remover of
  the partition takes; the other methods do not wait for removers and may be called under it;
- a remover may call those other methods, but must not allocate or close.

One thread evicts at a time. Others that find too little wait for it to end and look again: what
is just being removed may be all that they need. They also wait for what is unsure of other spaces
of the same allocator. The holders of these are threads of the same operation, which is cancelled
as a whole, so that a cancelled thread does not wait for one that goes on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from layermanager import linux
from layermanager.amounts import NOTHING, UNCOUNTED, Amount
from layermanager.boundary import Boundary, Guard
from layermanager.errors import (
    CancelledError,
    ConfigError,
    LayerManagerError,
    NotEnoughSpaceError,
    SpaceKind,
    StoreError,
)
from layermanager.reservations import (
    Decision,
    Evict,
    Fits,
    Item,
    Refuse,
    Reservation,
    Situation,
    decide,
    step_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType

    from layermanager.protocols import Allocator, Remover


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """How full a partition is.

    Attributes:
        device: tells partitions apart (``st_dev``).
        total: the bytes that it has.
        free: the bytes that anybody may still write, without the reserve of the super-user: a
            store must not eat what keeps the system repairable.
        free_inodes: how many files can still be made; None where nothing but space bounds them.
        total_inodes: how many there can be; None likewise.
    """

    device: int
    total: int
    free: int
    free_inodes: int | None = None
    total_inodes: int | None = None

    @property
    def room(self) -> Amount:
        """What is free, as an amount."""
        return Amount(self.free, UNCOUNTED if self.free_inodes is None else self.free_inodes)


def disk_usage(path: Path) -> DiskUsage:
    """Ask the file system how full the partition of *path* is.

    Raises:
        StoreError: *path* cannot be reached.
    """
    try:
        device = path.stat().st_dev
        usage = os.statvfs(path)
    except OSError as error:
        raise StoreError(f"cannot tell the free space: {error}") from error
    return DiskUsage(
        device=device,
        total=usage.f_blocks * usage.f_frsize,
        free=usage.f_bavail * usage.f_frsize,
        free_inodes=usage.f_favail if usage.f_files else None,
        total_inodes=usage.f_files or None,
    )


def settle(path: Path) -> None:
    """Have the file system of *path* give back the space of removed files, if it can: syncfs(2).

    A disk that fails at that is told of by those who write to it.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linux.sync_file_system(descriptor)
        finally:
            os.close(descriptor)


class Partitions:
    """The partitions that allocators share, by device.

    Allocators know of each other when they come from the same object; a program needs one only.

    Args:
        usage_of: tells how full the partition of a path is.
        settle: waits until the partition of a path has given back what was removed.
        guard: notes what a remover raises that it may not.
    """

    def __init__(
        self,
        usage_of: Callable[[Path], DiskUsage] = disk_usage,
        settle: Callable[[Path], None] = settle,
        guard: Guard | None = None,
    ) -> None:
        self._usage_of = usage_of
        self._settle = settle
        self._guard = guard or Guard()
        self._lock = threading.Lock()
        self._partitions: dict[int, _Partition] = {}

    def new_allocator(self, path: Path, part_limit: int, remover: Remover) -> Allocator:
        """Make the allocator of the directory *path*; this is the default ``NewSpaceAllocator``.

        Raises:
            ConfigError: the limits on the partition would sum up to more than 100 per cent.
            StoreError: *path* cannot be reached.
        """
        device = self._usage_of(path).device
        with self._lock:
            partition = self._partitions.setdefault(
                device, _Partition(self._usage_of, self._settle, self._guard)
            )
        allocator = _DirectoryAllocator(partition, path, part_limit, remover)
        partition.join(allocator)
        return allocator


_Item: TypeAlias = "Item[_DirectoryAllocator]"


class _DirectoryAllocator:
    """The ``Allocator`` of one directory; its attributes are guarded by the partition's lock."""

    def __init__(
        self, partition: _Partition, path: Path, part_limit: int, remover: Remover
    ) -> None:
        self.partition = partition
        self.path = path
        self.part_limit = part_limit
        self.remover = remover
        self.used = 0
        self.spaces: set[_HeldSpace] = set()
        self.outdated: dict[str, _Item] = {}
        self.being_removed: dict[str, _Item] = {}

    def allocate_space(self, size: int) -> _HeldSpace:
        """Set *size* bytes aside, and the inode of a file that holds them.

        Where other threads or processes take space while outdated items are being removed for
        it, or removing frees less than expected, some were removed and there is still not enough.

        Raises:
            NotEnoughSpaceError: not even removing all outdated items would do.
            CancelledError: the allocator is closed.
            LayerManagerError: what a remover raised; its item stays outdated.
        """
        return self.allocate(Amount(size, 1 if size else 0))

    def allocate(self, amount: Amount, likely: Amount = NOTHING) -> _HeldSpace:
        """Set *amount* aside, as ``allocate_space``.

        If items must be removed for it, they are removed for *likely* at once, where that can be
        had.
        """
        space = _HeldSpace(self)
        self.partition.reserve(space, amount, likely)
        return space

    def note_used_space(self, size: int) -> None:
        """Set the used bytes."""
        with self.partition.changed:
            self.used = size

    def free_space(self, size: int) -> None:
        """Take *size* bytes off the used ones."""
        with self.partition.changed:
            self.used = max(0, self.used - size)

    def add_outdated_item(self, item_id: str, size: int, timestamp: datetime) -> None:
        """Offer an item for removal; it is taken to be one file."""
        self.offer(item_id, Amount(size, 1), timestamp)

    def offer(
        self, item_id: str, amount: Amount, timestamp: datetime, *, goes_last: bool = False
    ) -> None:
        """Offer an item that takes *amount* for removal, as ``add_outdated_item``.

        One that *goes_last* is removed only when all others are not enough.
        """
        with self.partition.changed:
            self.outdated[item_id] = Item(self, item_id, amount, timestamp, goes_last)

    def restore_outdated_item(self, item_id: str) -> None:
        """Withdraw an item; its accounting is the caller's from now on.

        Its remover may be called once more: see the module's text on what both must look at.
        """
        with self.partition.changed:
            self.outdated.pop(item_id, None)
            self.being_removed.pop(item_id, None)

    def close(self) -> None:
        """Leave the partition, after an eviction that is under way; may be repeated."""
        self.partition.leave(self)

    def limit(self, total: int) -> int:
        """The limit in bytes on a partition of *total* bytes."""
        return total * self.part_limit // 100

    @property
    def reserved(self) -> int:
        """The bytes that are set aside."""
        return sum(space.size for space in self.spaces)

    @property
    def unwritten(self) -> Amount:
        """What of that the file system does not count as used yet, as far as is known."""
        return sum((space.reservation.unwritten for space in self.spaces), NOTHING)

    def unsure_beside(self, space: _HeldSpace) -> Amount:
        """What the holders of the other spaces may have written already, or may never need."""
        others = (other.reservation.unsure for other in self.spaces if other is not space)
        return sum(others, NOTHING)


class _HeldSpace:
    """The ``Space`` of an allocator; its attributes are guarded by the partition's lock."""

    def __init__(self, owner: _DirectoryAllocator) -> None:
        self.owner = owner
        self.reservation = Reservation()
        self.ended = False

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return self.reservation.aside.size

    @property
    def amount(self) -> Amount:
        """All that it holds."""
        return self.reservation.aside

    def grow(self, extra: int) -> None:
        """Set *extra* bytes more aside; raises what ``allocate_space`` raises."""
        self.owner.partition.reserve(self, Amount(extra))

    def grow_if_free(self, extra: int) -> bool:
        """Set *extra* bytes more aside if nothing need be removed for that; return whether."""
        return self.owner.partition.reserve_if_free(self, Amount(extra))

    def extend(self, used: Amount, needed: Amount, likely: Amount = NOTHING) -> Amount:
        """Hold *needed*, for a holder that asks before it writes more than it was told.

        Args:
            used: what is on disk.
            needed: what there must be in all.
            likely: what there will probably be in all.

        Returns:
            What may be on disk before the holder asks again: *needed*, and more if that is free.

        Raises:
            NotEnoughSpaceError, CancelledError, LayerManagerError: as ``allocate_space``.
        """
        return self.owner.partition.extend(self, used, needed, likely)

    def note_written(self, size: int) -> None:
        """Note that *size* bytes are on disk, in all since the space was allocated."""
        held = self.reservation.held
        used = Amount(size, held.inodes if size else 0)
        self._note(Reservation(held, told=NOTHING, used=used))

    def settle(self, used: Amount) -> None:
        """Note that *used* is on disk and all that is needed; the rest is given back."""
        self._note(Reservation(used, used, used))

    def _note(self, reservation: Reservation) -> None:
        with self.owner.partition.changed:
            if not self.ended:
                self.reservation = reservation
                self.owner.partition.changed.notify_all()

    def accept(self, size: int | None = None) -> None:
        """Count the space, or *size* bytes in its stead, as used; they must be on disk."""
        with self.owner.partition.changed:
            if self.ended:
                return
            self.owner.used += self.size if size is None else size
            self._end()

    def release(self) -> None:
        """Give it back."""
        with self.owner.partition.changed:
            self._end()

    def _end(self) -> None:
        self.owner.spaces.discard(self)
        self.reservation = Reservation()
        self.ended = True
        self.owner.partition.changed.notify_all()

    def __enter__(self) -> _HeldSpace:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _Partition:
    """The allocators of one partition.

    ``changed`` is the partition's lock. It notifies when an eviction has ended, when the unsure
    part of a space is known, and when an allocator leaves.
    """

    def __init__(
        self,
        usage_of: Callable[[Path], DiskUsage],
        settle: Callable[[Path], None],
        guard: Guard,
    ) -> None:
        self.changed = threading.Condition(threading.Lock())
        self._usage_of = usage_of
        self._settle = settle
        self._guard = guard
        self._allocators: list[_DirectoryAllocator] = []
        self._evicting = False
        self._waiting = 0

    def join(self, allocator: _DirectoryAllocator) -> None:
        with self.changed:
            limits = [one.part_limit for one in (*self._allocators, allocator)]
            if min(limits) < 0 or sum(limits) > 100:
                raise ConfigError(
                    f"{allocator.path}: a limit of {allocator.part_limit} per cent cannot be had: "
                    f"the limits on its partition would be {' + '.join(map(str, limits))} per "
                    "cent, and may be 0 or more each and 100 together"
                )
            self._allocators.append(allocator)

    def leave(self, allocator: _DirectoryAllocator) -> None:
        with self.changed:
            # Its remover must not be called once it is closed, and may be running right now.
            self.changed.wait_for(lambda: not self._evicting)
            if allocator in self._allocators:
                self._allocators.remove(allocator)
                self.changed.notify_all()

    def reserve(self, space: _HeldSpace, extra: Amount, likely: Amount = NOTHING) -> None:
        """Set *extra* aside for *space*, evicting as often as that brings it nearer."""

        def hold(_: Amount) -> None:
            held = space.reservation.held + extra
            space.reservation = replace(space.reservation, held=held)

        self._obtain(space, extra, likely, hold)

    def extend(self, space: _HeldSpace, used: Amount, needed: Amount, likely: Amount) -> Amount:
        """Have *space*, of which *used* is on disk, hold *needed*; return what may be written."""

        def tell(spare: Amount) -> None:
            step = NOTHING if self._waiting else step_of(spare)
            space.reservation = space.reservation.granted(needed, step)

        with self.changed:
            self._refuse_ended(space)
            space.reservation = space.reservation.asking(used)
            held = space.reservation.held
            self.changed.notify_all()
        self._obtain(space, (needed - held).at_least(NOTHING), likely - held, tell)
        return space.reservation.told

    def reserve_if_free(self, space: _HeldSpace, extra: Amount) -> bool:
        """Set *extra* aside for *space* if that fits as things are; return whether."""
        with self.changed:
            self._refuse_ended(space)
            if not isinstance(self._decision(space, extra), Fits):
                return False
            held = space.reservation.held + extra
            space.reservation = replace(space.reservation, held=held)
            space.owner.spaces.add(space)
            return True

    def _obtain(
        self, space: _HeldSpace, extra: Amount, likely: Amount, take: Callable[[Amount], None]
    ) -> None:
        """Call *take*, under the lock, once *extra* fits; with what is left beyond that.

        It ends: every round removes at least one outdated item, or raises.
        """
        while victims := self._take_or_choose_victims(space, extra, likely, take):
            self._evict(victims, space, extra)

    def _take_or_choose_victims(
        self, space: _HeldSpace, extra: Amount, likely: Amount, take: Callable[[Amount], None]
    ) -> tuple[_Item, ...]:
        """Take what fits and return nothing; or, where it does not fit, begin an eviction."""
        with self.changed:
            while True:
                self._refuse_ended(space)
                decision = self._decision(space, extra, likely)
                if isinstance(decision, Fits):
                    take(decision.spare)
                    space.owner.spaces.add(space)
                    return ()
                # What is just being removed may be all that is needed.
                if isinstance(decision, Refuse) and not self._evicting:
                    raise self._refusal(space.owner, decision)
                if isinstance(decision, Evict) and not self._evicting:
                    self._begin_eviction(decision.items)
                    return decision.items
                self._wait()

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self.changed.wait()
        finally:
            self._waiting -= 1

    def _refuse_ended(self, space: _HeldSpace) -> None:
        if space.owner not in self._allocators:
            raise CancelledError(f"{space.owner.path}: its space allocator is closed")
        if space.ended:
            raise ValueError("a space that was accepted or released cannot grow")

    def _decision(
        self, space: _HeldSpace, extra: Amount, likely: Amount = NOTHING
    ) -> Decision[_DirectoryAllocator]:
        return decide(self._situation(space), extra, likely)

    def _situation(self, space: _HeldSpace) -> Situation[_DirectoryAllocator]:
        owner = space.owner
        usage = self._usage_of(owner.path)
        return Situation(
            free=usage.room,
            unwritten=sum((one.unwritten for one in self._allocators), NOTHING),
            unsure=owner.unsure_beside(space),
            limit=owner.limit(usage.total) if owner.part_limit else None,
            counted=owner.used + owner.reserved,
            own=tuple(owner.outdated.values()),
            everyones=tuple(item for one in self._allocators for item in one.outdated.values()),
        )

    def _refusal(self, owner: _DirectoryAllocator, refuse: Refuse) -> NotEnoughSpaceError:
        return NotEnoughSpaceError(
            needed=refuse.needed,
            free=refuse.free,
            limit=owner.limit(self._usage_of(owner.path).total),
            reclaimable=refuse.reclaimable,
            limit_reached=refuse.is_limit,
            kind=SpaceKind.INODES if refuse.of_inodes else SpaceKind.BYTES,
        )

    def _begin_eviction(self, victims: tuple[_Item, ...]) -> None:
        for victim in victims:
            del victim.owner.outdated[victim.item_id]
            victim.owner.being_removed[victim.item_id] = victim
        self._evicting = True

    def _evict(self, victims: tuple[_Item, ...], space: _HeldSpace, extra: Amount) -> None:
        """Have the *victims* removed.

        One whose remover raises what it may not is withdrawn until its owner offers it again, so
        that it stands in the way of no other.
        """
        removed: set[_Item] = set()
        done = 0
        try:
            for victim in victims:
                with self._guard.containing(
                    Boundary.REMOVER,
                    f"the remover of {victim.item_id}",
                    passing=(LayerManagerError,),
                ):
                    victim.owner.remover(victim.item_id)
                    removed.add(victim)
                done += 1
            self._wait_for_freed_space(space, extra)
        finally:
            with self.changed:
                self._account(victims[:done], victims[done:], removed)
                self._evicting = False
                self.changed.notify_all()

    def _wait_for_freed_space(self, space: _HeldSpace, extra: Amount) -> None:
        """Wait while the partition is short of *extra* and gets more of it by waiting."""
        missing = self._missing(space, extra)
        while missing != NOTHING:
            self._settle(space.owner.path)
            before, missing = missing, self._missing(space, extra)
            if before.fits(missing):
                return

    def _missing(self, space: _HeldSpace, extra: Amount) -> Amount:
        with self.changed:
            situation = self._situation(space)
        return (situation.unwritten + extra - situation.free).at_least(NOTHING)

    def _account(
        self, done: tuple[_Item, ...], left: tuple[_Item, ...], removed: Collection[_Item]
    ) -> None:
        """Settle an eviction; what was restored meanwhile is with who restored it."""
        for item in done:
            if item.owner.being_removed.pop(item.item_id, None) and item in removed:
                item.owner.used = max(0, item.owner.used - item.amount.size)
        for item in left:
            if item.owner.being_removed.pop(item.item_id, None):
                item.owner.outdated.setdefault(item.item_id, item)
