"""The decisions about space, for any situation and for holders that write as they like."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layermanager.amounts import NOTHING, UNCOUNTED, Amount, annotated, annotations_of
from layermanager.reservations import (
    Evict,
    Fits,
    Item,
    Refuse,
    Reservation,
    Situation,
    Wait,
    decide,
    estimated,
    step_of,
)

MIB = 1024 * 1024


def day(number: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)


def item(item_id: str, amount: Amount, age: int = 1, *, goes_last: bool = False) -> Item[str]:
    return Item("us", item_id, amount, day(-age), goes_last)


def situation(free: Amount, *items: Item[str], **facts: object) -> Situation[str]:
    plain = Situation(free, NOTHING, NOTHING, None, 0, items, items)
    return replace(plain, **facts)  # type: ignore[arg-type]


def ids(decision: object) -> list[str]:
    assert isinstance(decision, Evict)
    return [one.item_id for one in decision.items]


class TestDecision:
    def test_what_fits_fits(self) -> None:
        assert decide(situation(Amount(10, 5)), Amount(7, 2)) == Fits(Amount(3, 3))

    def test_inodes_are_freed_by_evicting_as_bytes_are(self) -> None:
        """Of 128 inodes a cached layer holds 70, and the desired one wants 70."""
        cached = item("cached", Amount(0, 70))

        assert ids(decide(situation(Amount(10**6, 58), cached), Amount(0, 70))) == ["cached"]

    def test_an_item_without_inodes_is_not_evicted_for_inodes(self) -> None:
        items = item("bytes", Amount(500, 0), age=9), item("files", Amount(1, 70))

        assert ids(decide(situation(Amount(10**6, 58), *items), Amount(1, 70))) == ["files"]

    def test_what_is_short_is_named(self) -> None:
        cached = item("cached", Amount(100, 3))

        decision = decide(situation(Amount(10**6, 58), cached), Amount(10, 70))

        assert decision == Refuse(70, 58, 3, is_limit=False, of_inodes=True)

    def test_what_goes_last_goes_after_what_is_younger(self) -> None:
        replaced = item("replaced", Amount(10), age=50, goes_last=True)
        young = item("young", Amount(10), age=1)

        assert ids(decide(situation(NOTHING, replaced, young), Amount(10))) == ["young"]
        assert ids(decide(situation(NOTHING, replaced, young), Amount(11))) == ["young", "replaced"]

    def test_nothing_is_evicted_while_what_others_hold_may_be_enough(self) -> None:
        cached = item("cached", Amount(10))
        facts = situation(Amount(10), cached, unwritten=Amount(6), unsure=Amount(4))

        assert decide(facts, Amount(8)) == Wait()
        assert ids(decide(facts, Amount(9))) == ["cached"]

    def test_nothing_is_evicted_before_it_is_certain_that_it_helps(self) -> None:
        cached = item("cached", Amount(10))
        facts = situation(Amount(10), cached, unwritten=Amount(6), unsure=Amount(4))

        assert ids(decide(facts, Amount(14))) == ["cached"]
        assert decide(facts, Amount(15)) == Wait()
        assert decide(facts, Amount(18)) == Wait()
        assert isinstance(decide(facts, Amount(19)), Refuse)

    def test_an_estimate_evicts_at_once_what_will_be_needed(self) -> None:
        items = [item(name, Amount(10), age) for name, age in (("a", 3), ("b", 2), ("c", 1))]

        assert ids(decide(situation(NOTHING, *items), Amount(5), Amount(25))) == ["a", "b", "c"]
        assert ids(decide(situation(NOTHING, *items), Amount(5), Amount(31))) == ["a"]
        assert decide(situation(Amount(5), *items), Amount(5), Amount(25)) == Fits(NOTHING)


class TestSteps:
    def test_a_holder_gets_much_where_there_is_plenty(self) -> None:
        assert step_of(Amount(1 << 40, UNCOUNTED)) == Amount(16 * MIB, 512)

    def test_a_holder_gets_little_where_there_is_little(self) -> None:
        assert step_of(Amount(21_600_000, 100)) == Amount(675_000, 3)
        assert step_of(Amount(-5, 0)) == NOTHING

    def test_what_was_told_beyond_the_need_is_given_back_with_the_next_question(self) -> None:
        """A holder of many tiny files runs out of inodes, and keeps no bytes for that."""
        told = Reservation().granted(Amount(4096, 1), Amount(16 * MIB, 512))

        assert told.aside == Amount(16 * MIB + 4096, 513)
        assert told.asking(Amount(9000, 513)).aside == Amount(9000, 513)

    def test_what_is_held_is_told_by_and_by(self) -> None:
        held = Reservation(held=Amount(100 * MIB, 9000))

        told = held.granted(Amount(1 * MIB, 10), NOTHING).told

        assert told.fits(held.held)
        assert Amount(1 * MIB, 10).fits(told)
        assert told.size < 3 * MIB


class TestEstimate:
    @pytest.mark.parametrize(
        ("taken", "total", "expected"),
        [
            (10, 100, Amount(400, 70)),
            (100, 100, Amount(40, 7)),
            (0, 100, Amount(40, 7)),
            (10, None, Amount(40, 7)),
        ],
    )
    def test_the_rest_goes_on_as_it_began(
        self, taken: int, total: int | None, expected: Amount
    ) -> None:
        assert estimated(Amount(40, 7), taken, total) == expected


class TestAnnotations:
    def test_what_is_written_is_read(self) -> None:
        assert annotated(annotations_of(Amount(12345, 67))) == Amount(12345, 67)

    @pytest.mark.parametrize("text", ["", "-1", "1.5", "1e9", "٣", "9" * 19, " 7", "0x7"])
    def test_what_is_no_number_says_nothing(self, text: str) -> None:
        annotations = dict.fromkeys(annotations_of(NOTHING), text)

        assert annotated(annotations) == NOTHING


amounts = st.builds(Amount, st.integers(0, 40), st.integers(0, 40))
items = st.lists(
    st.tuples(amounts, st.integers(0, 9), st.booleans(), st.booleans()), max_size=6
).map(
    lambda rows: [
        (is_own, item(f"i{number}", amount, age, goes_last=last))
        for number, (amount, age, last, is_own) in enumerate(rows)
    ]
)


@st.composite
def situations(draw: st.DrawFn) -> Situation[str]:
    unwritten = draw(amounts)
    found = draw(items)
    return Situation(
        free=draw(amounts),
        unwritten=unwritten,
        unsure=draw(amounts).at_most(unwritten),
        limit=draw(st.none() | st.integers(0, 60)),
        counted=unwritten.size + draw(st.integers(0, 30)),
        own=tuple(one for is_own, one in found if is_own),
        everyones=tuple(one for _, one in found),
    )


def total(found: object) -> Amount:
    return sum((one.amount for one in found), NOTHING)  # type: ignore[attr-defined]


def room_with(facts: Situation[str], gone: set[str], back: Amount, extra: Amount) -> bool:
    """Whether *extra* fits when these items are gone and *back* of the unsure part came back."""
    freed = total(one for one in facts.everyones if one.item_id in gone)
    own = total(one for one in facts.own if one.item_id in gone)
    left = facts.free + freed + back - facts.unwritten - extra
    within = (
        facts.limit is None
        or not extra.size
        or facts.counted - back.size - own.size + extra.size <= facts.limit
    )
    return within and (left.size >= 0 or not extra.size) and (left.inodes >= 0 or not extra.inodes)


@given(situations(), amounts, amounts)
def test_every_decision_is_right(facts: Situation[str], extra: Amount, likely: Amount) -> None:
    everything = {one.item_id for one in facts.everyones}
    match decide(facts, extra, likely):
        case Fits(spare):
            assert room_with(facts, set(), NOTHING, extra)
            assert spare.fits((facts.free - facts.unwritten - extra).at_least(NOTHING))
        case Refuse():
            assert not room_with(facts, everything, facts.unsure, extra)
        case Evict(victims):
            gone = {one.item_id for one in victims}
            assert victims
            # It is needed, whatever comes back, and it is certain that it helps in the end.
            assert not room_with(facts, set(), facts.unsure, extra)
            assert room_with(facts, everything, NOTHING, extra)
            assert room_with(facts, gone, facts.unsure, extra)
            if likely.fits(extra):
                assert not room_with(facts, gone - {victims[-1].item_id}, facts.unsure, extra)
        case Wait():
            assert not room_with(facts, set(), NOTHING, extra)
            assert room_with(facts, everything, facts.unsure, extra)
            assert facts.unsure != NOTHING


@dataclass
class Holder:
    """A layer that grows: what it was told, and what it has really written."""

    reservation: Reservation = field(default_factory=Reservation)
    written: Amount = NOTHING


class Disk(RuleBasedStateMachine):
    """Holders that write what they may, at any time; the core sees only what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Amount(3000, 300)
        self.holders: list[Holder] = []
        self.files: dict[str, Amount] = {}
        self.names = 0

    @property
    def free(self) -> Amount:
        """What the file system says: it knows what is written, not what was told."""
        on_disk = sum((one.written for one in self.holders), NOTHING) + total_of(self.files)
        return self.total - on_disk

    def ask(self, holder: Holder, needed: Amount) -> None:
        while True:
            others = [one.reservation for one in self.holders if one is not holder]
            everyones = tuple(
                Item("us", name, amount, day(number))
                for number, (name, amount) in enumerate(self.files.items())
            )
            everybody = [*others, holder.reservation]
            facts = Situation(
                free=self.free,
                unwritten=sum((one.unwritten for one in everybody), NOTHING),
                unsure=sum((one.unsure for one in others), NOTHING),
                limit=None,
                counted=0,
                own=everyones,
                everyones=everyones,
            )
            extra = (needed - holder.reservation.held).at_least(NOTHING)
            match decide(facts, extra):
                case Fits(spare):
                    holder.reservation = holder.reservation.granted(needed, step_of(spare))
                    return
                case Evict(victims):
                    for victim in victims:
                        del self.files[victim.item_id]
                case Wait():
                    self.let_others_ask(holder)
                case Refuse():
                    # What the others were told they may have written, and need no more.
                    needed_by_others = sum(
                        ((one.held - one.told).at_least(NOTHING) for one in others), NOTHING
                    )
                    left = self.free + total_of(self.files) - needed_by_others
                    own = (holder.reservation.held - holder.written).at_least(NOTHING)
                    assert not (extra + own).fits(left)
                    return

    def let_others_ask(self, holder: Holder) -> None:
        """What was waited for: each other holder says what it has written."""
        before = [one.reservation for one in self.holders]
        for one in self.holders:
            if one is not holder:
                one.reservation = one.reservation.asking(one.written)
        assert before != [one.reservation for one in self.holders]

    @rule()
    def begin(self) -> None:
        if len(self.holders) < 4:
            self.holders.append(Holder())

    @precondition(lambda self: self.holders)
    @rule(choice=st.integers(0, 3), more=st.builds(Amount, st.integers(0, 900), st.integers(0, 90)))
    def need_more(self, choice: int, more: Amount) -> None:
        holder = self.holders[choice % len(self.holders)]
        holder.reservation = holder.reservation.asking(holder.written)
        self.ask(holder, holder.written + more)

    @precondition(lambda self: self.holders)
    @rule(choice=st.integers(0, 3), share=st.integers(0, 4))
    def write(self, choice: int, share: int) -> None:
        """Write without saying so."""
        holder = self.holders[choice % len(self.holders)]
        left = (holder.reservation.told - holder.written).at_least(NOTHING)
        holder.written += Amount(left.size * share // 4, left.inodes * share // 4)

    @precondition(lambda self: self.holders)
    @rule(choice=st.integers(0, 3), is_kept=st.booleans())
    def end(self, choice: int, is_kept: bool) -> None:
        holder = self.holders.pop(choice % len(self.holders))
        if is_kept:
            self.names += 1
            self.files[f"layer {self.names}"] = holder.written

    @invariant()
    def nobody_was_promised_what_is_not_there(self) -> None:
        may_come = sum(
            ((one.reservation.told - one.written).at_least(NOTHING) for one in self.holders),
            NOTHING,
        )
        assert may_come.fits(self.free)


def total_of(files: dict[str, Amount]) -> Amount:
    return sum(files.values(), NOTHING)


TestDisk = Disk.TestCase
