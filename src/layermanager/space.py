"""Who may use how much of a disk: limits, reservations, and eviction where they are not enough.

Every directory has an allocator; the allocators on one partition share what is free there and
each other's outdated items. Two things bound an allocation:

*the limit*
    of the allocator, a share of its partition: used + reserved bytes stay within it. ``used`` are
    the accepted items, outdated ones included; ``reserved`` is what is set aside in ``Space``
    objects that are neither accepted nor released.
*the partition*
    itself: what the file system says is free, less what is set aside and not on disk yet. A byte
    that was written and is not yet noted counts twice for that time: on the safe side.

Where either is short, outdated items are removed, oldest first: the allocator's own for its
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
is just being removed may be all that they need.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layermanager import linux
from layermanager.boundary import Boundary, Guard
from layermanager.errors import (
    CancelledError,
    ConfigError,
    LayerManagerError,
    NotEnoughSpaceError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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
    """

    device: int
    total: int
    free: int
    free_inodes: int | None = None


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
        self.outdated: dict[str, _OutdatedItem] = {}
        self.being_removed: dict[str, _OutdatedItem] = {}

    def allocate_space(self, size: int) -> _HeldSpace:
        """Set *size* bytes aside.

        Where other threads or processes take space while outdated items are being removed for
        it, or removing frees less than expected, some were removed and there is still not enough.

        Raises:
            NotEnoughSpaceError: not even removing all outdated items would do.
            CancelledError: the allocator is closed.
            LayerManagerError: what a remover raised; its item stays outdated.
        """
        space = _HeldSpace(self)
        space.grow(size)
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
        """Offer an item for removal."""
        with self.partition.changed:
            self.outdated[item_id] = _OutdatedItem(self, item_id, size, timestamp)

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
    def unwritten(self) -> int:
        """The bytes of those that the file system does not count as used yet."""
        return sum(max(0, space.size - space.written) for space in self.spaces)


class _HeldSpace:
    """The ``Space`` of an allocator; its attributes are guarded by the partition's lock."""

    def __init__(self, owner: _DirectoryAllocator) -> None:
        self.owner = owner
        self.size = 0
        self.written = 0
        self.ended = False

    def grow(self, extra: int) -> None:
        """Set *extra* bytes more aside; raises what ``allocate_space`` raises."""
        self.owner.partition.reserve(self, extra)

    def grow_if_free(self, extra: int) -> bool:
        """Set *extra* bytes more aside if nothing need be removed for that; return whether."""
        return self.owner.partition.reserve_if_free(self, extra)

    def note_written(self, size: int) -> None:
        """Note that *size* bytes are on disk, in all since the space was allocated."""
        with self.owner.partition.changed:
            self.written = size

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
        self.size = 0
        self.ended = True

    def __enter__(self) -> _HeldSpace:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class _OutdatedItem:
    owner: _DirectoryAllocator
    item_id: str
    size: int
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class _Shortage:
    """How many bytes must go before an allocation fits; zero or less: it does.

    Attributes:
        in_limit: of the allocator's used bytes.
        on_partition: of what is on the partition.
        limit: the allocator's limit in bytes, 0 when there is none.
    """

    in_limit: int
    on_partition: int
    limit: int

    @property
    def is_none(self) -> bool:
        return self.in_limit <= 0 and self.on_partition <= 0


class _Partition:
    """The allocators of one partition.

    ``changed`` is the partition's lock, and tells those who wait that an eviction has ended.
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

    def reserve(self, space: _HeldSpace, size: int) -> None:
        """Set *size* bytes aside for *space*, evicting as often as that brings it nearer.

        It ends: every round removes at least one outdated item, or raises. No bytes at all always
        fit: what others lack is not removed for who asks for nothing.
        """
        while victims := self._reserve_or_choose_victims(space, size):
            self._evict(victims, space.owner, size)

    def reserve_if_free(self, space: _HeldSpace, size: int) -> bool:
        """Set *size* bytes aside for *space* if that fits as things are; return whether."""
        with self.changed:
            self._refuse_ended(space)
            return self._reserve_what_fits(space, size, self._shortage(space.owner, size))

    def _reserve_or_choose_victims(self, space: _HeldSpace, size: int) -> list[_OutdatedItem]:
        """Reserve and return nothing; or, where that does not fit, begin an eviction."""
        owner = space.owner
        with self.changed:
            self.changed.wait_for(lambda: not self._evicting or self._shortage(owner, size).is_none)
            self._refuse_ended(space)
            shortage = self._shortage(owner, size)
            if self._reserve_what_fits(space, size, shortage):
                return []
            victims = self._choose_victims(owner, size, shortage)
            for victim in victims:
                del victim.owner.outdated[victim.item_id]
                victim.owner.being_removed[victim.item_id] = victim
            self._evicting = True
            return victims

    def _refuse_ended(self, space: _HeldSpace) -> None:
        if space.owner not in self._allocators:
            raise CancelledError(f"{space.owner.path}: its space allocator is closed")
        if space.ended:
            raise ValueError("a space that was accepted or released cannot grow")

    @staticmethod
    def _reserve_what_fits(space: _HeldSpace, size: int, shortage: _Shortage) -> bool:
        if not shortage.is_none:
            return False
        space.size += size
        space.owner.spaces.add(space)
        return True

    def _shortage(self, owner: _DirectoryAllocator, size: int) -> _Shortage:
        usage = self._usage_of(owner.path)
        # Without an inode not a byte can be written, however many are free.
        free = 0 if usage.free_inodes == 0 else usage.free
        unwritten = sum(allocator.unwritten for allocator in self._allocators)
        limit = owner.limit(usage.total)
        if not size:
            return _Shortage(in_limit=0, on_partition=0, limit=limit)
        return _Shortage(
            in_limit=owner.used + owner.reserved + size - limit if owner.part_limit else 0,
            on_partition=unwritten + size - free,
            limit=limit,
        )

    def _choose_victims(
        self, owner: _DirectoryAllocator, size: int, shortage: _Shortage
    ) -> list[_OutdatedItem]:
        own = list(owner.outdated.values())
        everyones = [item for one in self._allocators for item in one.outdated.values()]
        for items, missing, limit_reached in (
            (own, shortage.in_limit, True),
            (everyones, shortage.on_partition, False),
        ):
            reclaimable = _bytes_of(items)
            if missing > reclaimable:
                raise NotEnoughSpaceError(
                    needed=size,
                    # Negative where more is used or set aside already than there may be.
                    free=size - missing,
                    limit=shortage.limit,
                    reclaimable=reclaimable,
                    limit_reached=limit_reached,
                )
        for_limit = _oldest(own, shortage.in_limit)
        others = set(everyones).difference(for_limit)
        return for_limit + _oldest(others, shortage.on_partition - _bytes_of(for_limit))

    def _evict(self, victims: list[_OutdatedItem], owner: _DirectoryAllocator, size: int) -> None:
        """Have the *victims* removed.

        One whose remover raises what it may not is withdrawn until its owner offers it again, so
        that it stands in the way of no other.
        """
        removed: list[_OutdatedItem] = []
        done = 0
        try:
            for victim in victims:
                with self._guard.containing(
                    Boundary.REMOVER,
                    f"the remover of {victim.item_id}",
                    passing=(LayerManagerError,),
                ):
                    victim.owner.remover(victim.item_id)
                    removed.append(victim)
                done += 1
            self._wait_for_freed_space(owner, size)
        finally:
            with self.changed:
                self._account(victims[:done], victims[done:], frozenset(removed))
                self._evicting = False
                self.changed.notify_all()

    def _wait_for_freed_space(self, owner: _DirectoryAllocator, size: int) -> None:
        """Wait while the partition is short of *size* bytes and gets more of them by waiting."""
        missing = self._missing_on_partition(owner, size)
        while missing > 0:
            self._settle(owner.path)
            before, missing = missing, self._missing_on_partition(owner, size)
            if missing >= before:
                return

    def _missing_on_partition(self, owner: _DirectoryAllocator, size: int) -> int:
        with self.changed:
            return self._shortage(owner, size).on_partition

    def _account(
        self,
        done: list[_OutdatedItem],
        left: list[_OutdatedItem],
        removed: frozenset[_OutdatedItem],
    ) -> None:
        """Settle an eviction; what was restored meanwhile is with who restored it."""
        for item in done:
            if item.owner.being_removed.pop(item.item_id, None) and item in removed:
                item.owner.used = max(0, item.owner.used - item.size)
        for item in left:
            if item.owner.being_removed.pop(item.item_id, None):
                item.owner.outdated.setdefault(item.item_id, item)


def _oldest(items: Iterable[_OutdatedItem], size: int) -> list[_OutdatedItem]:
    """The oldest *items* that together have at least *size* bytes."""
    chosen: list[_OutdatedItem] = []
    for item in sorted(items, key=lambda item: (item.timestamp, item.item_id)):
        if size <= 0:
            break
        chosen.append(item)
        size -= item.size
    return chosen


def _bytes_of(items: Iterable[_OutdatedItem]) -> int:
    return sum(item.size for item in items)
