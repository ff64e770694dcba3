from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.timestamps import format_timestamp, parse_timestamp


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 24, 0, 49, 32, 586646, UTC), "2026-11-24 00:49:32.586646+00:00"),
        (datetime(2026, 11, 24, 0, 49, 5, 500000, UTC), "2026-11-24 00:49:05.5+00:00"),
        (datetime(2026, 11, 24, 0, 49, 5, 10, UTC), "2026-11-24 00:49:05.00001+00:00"),
        (datetime(2026, 11, 24, 0, 49, 10, 0, UTC), "2026-11-24 00:49:10+00:00"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01 00:00:00+00:00"),
        (
            datetime(2026, 11, 24, 1, 0, tzinfo=timezone(timedelta(hours=2))),
            "2026-11-23 23:00:00+00:00",
        ),
    ],
)
def test_format_is_the_spelling_of_gos_driver(moment: datetime, text: str) -> None:
    assert format_timestamp(moment) == text


def test_format_refuses_a_moment_without_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        format_timestamp(datetime(2026, 11, 24))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-11-24 00:49:32.586646591+00:00", datetime(2026, 11, 24, 0, 49, 32, 586646, UTC)),
        ("2026-11-24 00:49:05.5+00:00", datetime(2026, 11, 24, 0, 49, 5, 500000, UTC)),
        ("2026-11-24 00:49:05+00:00", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        ("2026-11-24 02:49:05+02:00", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        ("2026-11-24T00:49:05Z", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        ("2026-11-24T00:49:05.123456789Z", datetime(2026, 11, 24, 0, 49, 5, 123456, UTC)),
        ("2026-11-23T19:19:05.25-05:30", datetime(2026, 11, 24, 0, 49, 5, 250000, UTC)),
        ("2026-11-24 00:49:05.75", datetime(2026, 11, 24, 0, 49, 5, 750000, UTC)),
        ("2026-11-24T00:49:05", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        ("2026-11-24 00:49", datetime(2026, 11, 24, 0, 49, 0, 0, UTC)),
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("0001-01-01 00:00:00+00:00", datetime(1, 1, 1, tzinfo=UTC)),
        (1795481345, datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        ("1795481345", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
        (1795481345586, datetime(2026, 11, 24, 0, 49, 5, 586000, UTC)),
        ("1795481345586", datetime(2026, 11, 24, 0, 49, 5, 586000, UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 0, UTC)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, 0, UTC)),
        (-1795481345586, datetime(1913, 2, 7, 23, 10, 54, 414000, UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_every_spelling_that_go_reads_is_read(value: object, moment: datetime) -> None:
    parsed = parse_timestamp(value)
    assert parsed == moment
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"2026-11-24",
        1795481345.5,
        "",
        "-",
        "yesterday",
        "2026-13-01",
        "2026-11-24 25:00:00",
        "0001-01-01 00:00:00+05:00",
        "9999-12-31 23:59:59-05:00",
        10**12,
        10**18,
        -(10**30),
        "9" * 30,
        "9" * 5000,
    ],
)
def test_what_is_no_timestamp_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_timestamp(value)


@given(st.datetimes(timezones=st.just(UTC)))
def test_what_was_formatted_reads_the_same(moment: datetime) -> None:
    assert parse_timestamp(format_timestamp(moment)) == moment


@given(
    st.datetimes(
        min_value=datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis wants bounds without a zone
        max_value=datetime(9998, 1, 1),  # noqa: DTZ001 - likewise
        timezones=st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m))),
    ),
    st.sampled_from(" T"),
)
def test_any_offset_reads_as_the_same_moment(moment: datetime, separator: str) -> None:
    assert parse_timestamp(moment.isoformat(separator)) == moment


@given(
    st.one_of(
        st.text(),
        st.text("0123456789-+:.TZ "),
        st.integers(),
        st.floats(),
        st.binary(),
        st.none(),
    )
)
def test_anything_reads_as_utc_or_is_a_value_error(value: object) -> None:
    try:
        parsed = parse_timestamp(value)
    except ValueError:
        return
    assert parsed.tzinfo is UTC
    assert parse_timestamp(format_timestamp(parsed)) == parsed
