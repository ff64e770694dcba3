"""When a lease is over, and what it is bound to as text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.leases import (
    Bond,
    HeldLayer,
    Holder,
    Lease,
    OverlayBond,
    ProcessBond,
    format_bond,
    is_over,
    parse_bond,
)
from layermanager.testing.layers import digest_of

NOW = datetime(2026, 11, 24, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = Lease("1f", "a test", (digest_of(b"one"),), NOW)
PROCESS = ProcessBond("boot", 4026531836, 7, 99)

NUMBERS = st.integers(min_value=0, max_value=1 << 63)
BOOTS = st.uuids().map(str)
BONDS = st.one_of(
    st.none(),
    st.builds(ProcessBond, BOOTS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(OverlayBond, BOOTS, st.builds("{}:{}".format, NUMBERS, NUMBERS)),
)


def alive(_lease: Lease, _bond: Bond) -> bool:
    return True


def dead(_lease: Lease, _bond: Bond) -> bool:
    return False


class TestBond:
    @given(BONDS)
    def test_is_read_as_it_was_written(self, bond: Bond | None) -> None:
        assert parse_bond(format_bond(bond)) == bond

    @pytest.mark.parametrize(
        "text", ["process a 1 2", "overlay a", "thread a 0:1", "process a b c d"]
    )
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"bound to|invalid literal"):
            parse_bond(text)


class TestIsOver:
    def test_without_an_end(self) -> None:
        assert not is_over(LEASE, timedelta.max, dead)

    @pytest.mark.parametrize(("age", "expected"), [(SECOND, False), (2 * SECOND, True)])
    def test_by_the_time(self, age: timedelta, *, expected: bool) -> None:
        lease = replace(LEASE, expires=NOW + 2 * SECOND)
        assert is_over(lease, age, alive) is expected

    @pytest.mark.parametrize("bond", [PROCESS, OverlayBond("boot", "0:42")])
    def test_with_what_it_is_bound_to(self, bond: Bond) -> None:
        lease = replace(LEASE, bond=bond, expires=NOW + SECOND)
        assert not is_over(lease, 0 * SECOND, alive)
        assert is_over(lease, 0 * SECOND, dead)
        assert is_over(lease, SECOND, alive)

    def test_is_asked_of_that_lease(self) -> None:
        asked: list[tuple[Lease, Bond]] = []

        def note(lease: Lease, bond: Bond) -> bool:
            asked.append((lease, bond))
            return True

        lease = replace(LEASE, bond=PROCESS)
        is_over(lease, 0 * SECOND, note)
        assert asked == [(lease, PROCESS)]


def test_who_holds_a_layer_in_words() -> None:
    held = HeldLayer(digest_of(b"one"), (Holder("lease 1f of me"), Holder("the overlay on /run")))
    assert str(held) == f"{digest_of(b'one')} by lease 1f of me and the overlay on /run"
