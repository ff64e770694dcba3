"""Decisions about the space of a partition: who may have how much, and what must go (no I/O).

A reservation has three amounts: ``used`` is on disk, ``held`` is needed, ``told`` may be written by
its holder without asking again. What is told beyond the need is given back with the next question.

Between two questions of a holder it is not known how much of ``told - used`` is on disk: the file
system counts that part, and the reservation counts it again; and what is told beyond the need may
never be written. That part is *unsure*. A request that is short by no more than what is unsure
waits: each holder asks again, or ends, and is exact then. A request that waits has nothing unsure
itself, so that requests never wait for one another.

A request is granted when it fits. It is refused when it cannot fit even if all that is unsure came
back and all items were evicted. Items are evicted only when it is certain that it fits then, and
only as many as are needed whatever becomes of the unsure part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeAlias, TypeVar

from layermanager.amounts import NOTHING, Amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

Owner = TypeVar("Owner")

_SHARE: Final = 32
_LARGEST_STEP: Final = Amount(16 * 1024 * 1024, 512)
_STEP_WITHIN_HELD: Final = Amount(1024 * 1024, 256)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Space that is set aside for one holder.

    Attributes:
        held: needed, as far as is known.
        told: the holder may write so much without asking, which may be more or less than *held*.
        used: on disk, as last noted.
    """

    held: Amount = NOTHING
    told: Amount = NOTHING
    used: Amount = NOTHING

    @property
    def aside(self) -> Amount:
        """All that is set aside."""
        return self.held.at_least(self.told)

    @property
    def unwritten(self) -> Amount:
        """What is set aside and not known to be on disk."""
        return (self.aside - self.used).at_least(NOTHING)

    @property
    def unsure(self) -> Amount:
        """What of that may be on disk already, or may never be written."""
        return (self.told - self.used).at_least(NOTHING)

    def asking(self, used: Amount) -> Reservation:
        """Return it with *used* on disk, of a holder that waits for the answer to a question."""
        return Reservation(self.held.at_least(used), used, used)

    def granted(self, needed: Amount, step: Amount) -> Reservation:
        """Return it with *needed* told, and up to *step* more.

        A small step is told at any rate where it is held already, so that a holder does not ask
        for every file.
        """
        held = self.held.at_least(needed)
        told = (needed + step).at_least((needed + _STEP_WITHIN_HELD).at_most(held))
        return Reservation(held, told, self.used)


@dataclass(frozen=True, slots=True)
class Item(Generic[Owner]):
    """Something that may be evicted.

    Attributes:
        owner: who can remove it.
        item_id: what its owner calls it.
        amount: what it takes.
        timestamp: since when it has not been needed.
        goes_last: whether it is evicted only when all others are not enough: what the operation
            under way replaces.
    """

    owner: Owner
    item_id: str
    amount: Amount
    timestamp: datetime
    goes_last: bool = False


@dataclass(frozen=True, slots=True)
class Situation(Generic[Owner]):
    """What a partition has, as a request meets it.

    Attributes:
        free: what the file system has left.
        unwritten: what is set aside on the partition and not known to be on disk.
        unsure: what of that may come back, by waiting.
        limit: the bytes that the requester's directory may take; None for no limit.
        counted: the bytes of them that are taken or set aside.
        own: the items of the requester's directory.
        everyones: all items of the partition, these included.
    """

    free: Amount
    unwritten: Amount
    unsure: Amount
    limit: int | None
    counted: int
    own: Sequence[Item[Owner]]
    everyones: Sequence[Item[Owner]]


@dataclass(frozen=True, slots=True)
class Fits:
    """The request is granted; *spare* is left."""

    spare: Amount


@dataclass(frozen=True, slots=True)
class Wait:
    """Whether the request fits depends on what is unsure."""


@dataclass(frozen=True, slots=True)
class Evict(Generic[Owner]):
    """The *items* have to go, in this order; then the request is looked at again."""

    items: tuple[Item[Owner], ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request cannot fit.

    Attributes:
        needed: what was asked for.
        free: what is free of it; negative where more is promised than there is.
        reclaimable: what evicting would give.
        is_limit: whether the limit is in the way.
        of_inodes: whether these numbers are inodes, not bytes.
    """

    needed: int
    free: int
    reclaimable: int
    is_limit: bool
    of_inodes: bool


Decision: TypeAlias = Fits | Wait | Evict[Owner] | Refuse


class _Bound(NamedTuple, Generic[Owner]):
    """One thing that a request may be short of: bytes in the limit, bytes or inodes on disk."""

    needed: int
    missing: int
    """So much is short if nothing of the unsure part comes back."""
    unsure: int
    items: Sequence[Item[Owner]]
    is_limit: bool = False
    of_inodes: bool = False

    def gain(self, item: Item[Owner]) -> int:
        return item.amount.inodes if self.of_inodes else item.amount.size

    @property
    def reclaimable(self) -> int:
        return sum(map(self.gain, self.items))


def decide(situation: Situation[Owner], extra: Amount, likely: Amount = NOTHING) -> Decision[Owner]:
    """Decide about a request for *extra* space.

    Args:
        situation: what there is.
        extra: what is needed.
        likely: what will probably be needed with it, by an estimate. No request is refused and no
            item evicted for that alone. But if items must be evicted for *extra*, they are evicted
            for *likely* at once, where that can be had.
    """
    if extra == NOTHING:
        return Fits(NOTHING)  # what others lack is not removed for a request for nothing
    bounds = _bounds(situation, extra)
    # What is not asked for cannot be short, whatever others took.
    bounds_of_need = [bound for bound in bounds if bound.needed]
    short = [bound for bound in bounds_of_need if bound.missing > 0]
    if not short:
        return Fits(Amount(*_spare(bounds)))
    for bound in short:
        if bound.missing - bound.unsure > bound.reclaimable:
            return Refuse(
                needed=bound.needed,
                free=bound.needed - bound.missing,
                reclaimable=bound.reclaimable,
                is_limit=bound.is_limit,
                of_inodes=bound.of_inodes,
            )
    is_certain = all(bound.missing <= bound.reclaimable for bound in short)
    if not is_certain or all(bound.missing <= bound.unsure for bound in short):
        return Wait()
    return Evict(_victims(bounds_of_need, (likely - extra).at_least(NOTHING)))


def step_of(spare: Amount) -> Amount:
    """Return how much to tell a holder beyond its need, where *spare* is left after that.

    A holder that has plenty asks seldom; one on a disk that is nearly full hoards nothing.
    """
    share = Amount(spare.size // _SHARE, spare.inodes // _SHARE)
    return share.at_least(NOTHING).at_most(_LARGEST_STEP)


def estimated(written: Amount, taken: int, total: int | None) -> Amount:
    """Return what a layer will take, if it goes on as it began.

    Args:
        written: what it takes so far.
        taken: bytes of the file of *total* bytes that were read for that, or more.
        total: None where it is not known.
    """
    if not taken or total is None or total <= taken:
        return written
    return Amount(written.size * total // taken, written.inodes * total // taken)


def _bounds(situation: Situation[Owner], extra: Amount) -> list[_Bound[Owner]]:
    over = situation.unwritten + extra - situation.free
    unsure = situation.unsure
    bounds = [
        _Bound(extra.size, over.size, unsure.size, situation.everyones),
        _Bound(extra.inodes, over.inodes, unsure.inodes, situation.everyones, of_inodes=True),
    ]
    if situation.limit is not None:
        missing = situation.counted + extra.size - situation.limit
        bounds.insert(0, _Bound(extra.size, missing, unsure.size, situation.own, is_limit=True))
    return bounds


def _spare(bounds: Iterable[_Bound[Owner]]) -> tuple[int, int]:
    left = {False: 0, True: 0}
    for of_inodes in left:
        spare = [-bound.missing for bound in bounds if bound.of_inodes is of_inodes]
        left[of_inodes] = min(spare, default=0)
    return left[False], left[True]


def _victims(bounds: Sequence[_Bound[Owner]], more: Amount) -> tuple[Item[Owner], ...]:
    """Choose items so that the request fits; with *more*, if that can be had as well."""
    roomy = [_with_more(bound, more) for bound in bounds]
    if all(bound.missing <= bound.reclaimable for bound in roomy):
        bounds = roomy
    chosen: dict[tuple[int, str], Item[Owner]] = {}
    for bound in bounds:  # the limit comes first: what goes for it counts for the others, too
        missing = bound.missing - bound.unsure - sum(map(bound.gain, chosen.values()))
        for item in sorted(bound.items, key=_age):
            if missing <= 0:
                break
            key = (id(item.owner), item.item_id)
            if key in chosen or not bound.gain(item):
                continue
            chosen[key] = item
            missing -= bound.gain(item)
    return tuple(chosen.values())


def _with_more(bound: _Bound[Owner], more: Amount) -> _Bound[Owner]:
    return bound._replace(missing=bound.missing + (more.inodes if bound.of_inodes else more.size))


def _age(item: Item[Owner]) -> tuple[bool, datetime, str]:
    return item.goes_last, item.timestamp, item.item_id
