"""Times of files as an archive may claim them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cli.files import file_line
from layermanager.unpack.index import IndexEntry

SECOND = 1_000_000_000


def line(mtime_ns: int) -> str:
    return file_line(
        IndexEntry(b"motd", "file", 0o644, (0, 0), mtime_ns, 0, "", b"", b"", (0, 0), {})
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01 00:00"),
        (-1, "1969-12-31 23:59"),
        (-62_135_596_800, "0001-01-01 00:00"),
        (253_402_300_799, "9999-12-31 23:59"),
        (-62_135_596_801, "    @-62135596801"),
        (253_402_300_800, "   @253402300800"),
    ],
)
def test_a_time_that_no_calendar_has_is_a_number(seconds: int, text: str) -> None:
    assert line(seconds * SECOND).endswith(f" {text.strip()} motd")


@given(st.integers(-(2**95), 2**95))
def test_any_time_can_be_shown(mtime_ns: int) -> None:
    assert line(mtime_ns).endswith(" motd")
