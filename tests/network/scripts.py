"""Scripts of faults, as hypothesis makes them up."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from layermanager.testing.faults import (
    CloseBeforeAnswer,
    Corrupt,
    Drip,
    Encoded,
    EndlessBody,
    EndlessContinue,
    EndlessHeaders,
    EndlessTrailers,
    FailTls,
    Fault,
    IgnoreRange,
    LyingLength,
    NewVersion,
    NoContentRange,
    OtherBytes,
    Redirect,
    Refuse,
    Reset,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_PAST: Final = "Mon, 01 Jan 2024 00:00:00 GMT"
_MAX_BURST: Final = 5


def fault_scripts(size: int, *, max_faults: int = 10) -> SearchStrategy[list[Fault]]:
    """Scripts against the transfer of a file of *size* bytes, at least one; some come in bursts."""
    faults = st.one_of(interruptions(size), lies(size), endless())
    bursts = st.tuples(faults, st.integers(1, _MAX_BURST))
    return st.lists(bursts, max_size=max_faults).map(
        lambda script: [fault for fault, times in script for _ in range(times)][:max_faults]
    )


def interruptions(size: int) -> SearchStrategy[Fault]:
    """What breaks off, delays or refuses the transfer of *size* bytes, but falsifies none of it."""
    positions = st.integers(0, size)
    return st.one_of(
        st.just(Refuse()),
        st.just(CloseBeforeAnswer()),
        st.just(FailTls()),
        st.builds(Reset, positions),
        st.builds(Truncate, positions),
        st.builds(Stall, st.none() | positions),
        st.builds(Drip, st.integers(max(1, size // 100), size)),
        st.builds(
            Status,
            st.sampled_from([500, 502, 503, 504]),
            st.sampled_from([None, 0, _PAST, "soon"]),  # nothing that makes a client wait
        ),
    )


def lies(size: int) -> SearchStrategy[Fault]:
    """What is wrong with an answer of up to *size* bytes."""
    shifts = st.integers(-size, size).filter(bool)
    return st.one_of(
        st.builds(Corrupt, st.integers(0, size - 1)),
        st.builds(WrongContentRange, shifts),
        st.builds(LyingLength, shifts),
        st.builds(Status, st.sampled_from([204, 206, 304, 400, 401, 403, 404, 410, 416, 429, 599])),
        st.sampled_from(
            [
                FailTls(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
                OtherBytes(),
                NewVersion(),
                IgnoreRange(),
                NoContentRange(),
                Encoded(),
                Redirect("/elsewhere"),
                Redirect("gopher://127.0.0.1/"),
            ]
        ),
    )


def endless() -> SearchStrategy[Fault]:
    """What never comes to an end."""
    return st.sampled_from(
        [
            EndlessBody(),
            EndlessHeaders(),
            EndlessContinue(),
            EndlessTrailers(),
            Drip(1, timedelta(hours=1)),
        ]
    )
