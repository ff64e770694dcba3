from __future__ import annotations

import tracemalloc
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile.corpus import SMALL_BYTES, seeds
from hostile.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB: Final = 1024 * 1024
_LARGEST_MEMORY: Final = 16 * _MIB
_INTERESTING: Final = (
    b"\0",
    b"\xff",
    b"\x80" + bytes(11),
    b"77777777777\0",
    b"9",
    b"-",
    b" ",
    b"\n",
    b"=",
    b"..",
    b"/",
    b"ustar",
    b"x",
    b"L",
    b"S",
    b"1\n",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
)


def _mutate(data: bytes, change: str, at: int, size: int, value: bytes) -> bytes:
    """*data* with one change at the position *at*, which may concern *size* bytes."""
    at %= len(data) + 1
    before, piece, after = data[:at], data[at : at + size], data[at + size :]
    match change:
        case "cut":
            return before
        case "remove":
            return before + after
        case "double":
            return before + piece + piece + after
        case "insert":
            return before + value + piece + after
        case _:
            return before + value + data[at + len(value) :]


_CHANGES: Final = st.lists(
    st.tuples(
        st.sampled_from(("cut", "remove", "double", "insert", "overwrite", "overwrite")),
        st.integers(0, SMALL_BYTES),
        st.sampled_from((1, 2, 12, 512, 1024)),
        st.one_of(st.sampled_from(_INTERESTING), st.binary(min_size=1, max_size=3)),
    ),
    max_size=4,
)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_soon_and_in_little_memory(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=200, deadline=timedelta(seconds=10))
    @given(data=st.sampled_from(seeds(name)), changes=_CHANGES)
    def check(data: bytes, changes: list[tuple[str, int, int, bytes]]) -> None:
        for change in changes:
            data = _mutate(data, *change)
        tracemalloc.start()
        try:
            target(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < _LARGEST_MEMORY

    check()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@given(data=st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(target: Callable[[bytes], None], data: bytes) -> None:
    target(data)
