"""Bytes and inodes of any allocator, also of one that counts bytes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.amounts import NOTHING, UNCOUNTED, Amount
from layermanager.protocols import CountsInodes

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from layermanager.protocols import Allocator, Room, Space

_STEP_BYTES: Final = 1024 * 1024


def rooms_of(allocator: Allocator) -> CountsInodes:
    """Return *allocator* itself if it counts inodes, or what has it count the bytes."""
    return allocator if isinstance(allocator, CountsInodes) else _BytesOnly(allocator)


class _BytesOnly:
    """An allocator that knows no inodes: there is no end of them."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator

    def allocate(self, amount: Amount, likely: Amount = NOTHING) -> Room:  # noqa: ARG002 - it cannot use *likely*
        return _BytesOnlyRoom(self._allocator.allocate_space(amount.size))

    def offer(
        self,
        item_id: str,
        amount: Amount,
        timestamp: datetime,
        *,
        goes_last: bool = False,  # noqa: ARG002 - by its timestamp it does
    ) -> None:
        self._allocator.add_outdated_item(item_id, amount.size, timestamp)


class _BytesOnlyRoom:
    """A ``Room`` of a ``Space``."""

    def __init__(self, space: Space) -> None:
        self._space = space

    @property
    def size(self) -> int:
        return self._space.size

    @property
    def amount(self) -> Amount:
        return Amount(self._space.size)

    def grow(self, extra: int) -> None:
        self._space.grow(extra)

    def grow_if_free(self, extra: int) -> bool:
        return self._space.grow_if_free(extra)

    def extend(self, used: Amount, needed: Amount, likely: Amount = NOTHING) -> Amount:  # noqa: ARG002 - as above
        self._space.note_written(used.size)
        extra = needed.size - self._space.size
        if extra > 0 and not self._space.grow_if_free(extra + _STEP_BYTES):
            self._space.grow(extra)
        return Amount(self._space.size, UNCOUNTED)

    def note_written(self, size: int) -> None:
        self._space.note_written(size)

    def settle(self, used: Amount) -> None:
        self._space.note_written(used.size)

    def accept(self, size: int | None = None) -> None:
        self._space.accept(size)

    def release(self) -> None:
        self._space.release()

    def __enter__(self) -> _BytesOnlyRoom:
        self._space.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._space.__exit__(exc_type, exc, traceback)
