"""Numbers and dates that another program wrote: a value in range, or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.header_numbers import (
    MAX_INTEGER,
    read_count,
    read_delay,
    read_etag,
    read_http_date,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)

anything = st.text() | st.text("0123456789 -+:,GMTJanFeb") | st.from_regex(r"\A[0-9]{1,6000}\Z")


@given(anything)
def test_anything_is_a_value_or_none(text: str) -> None:
    count = read_count(text)
    assert count is None or 0 <= count <= MAX_INTEGER
    delay = read_delay(text, NOW)
    assert delay is None or timedelta(0) <= delay
    moment = read_http_date(text, NOW)
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        (str(MAX_INTEGER), MAX_INTEGER),
        (str(MAX_INTEGER + 1), None),
        ("9" * 19, None),
        ("9" * 5000, None),
        ("0" * 5000, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        (" 1", None),
        ("1\n", None),
        ("1_0", None),
        ("1.5", None),
        ("\u0661", None),
        ("\u00b2", None),
    ],
)
def test_counts(text: str, number: int | None) -> None:
    assert read_count(text) == number


def test_a_count_has_the_bound_of_its_reader() -> None:
    assert read_count("10", at_most=10) == 10
    assert read_count("11", at_most=10) is None


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_the_forms_of_dates(text: str) -> None:
    assert read_http_date(text, NOW) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 0000 00:00:00 GMT",
        "Mon, 32 Jan 2026 00:00:00 GMT",
        "Mon, 01 Foo 2026 00:00:00 GMT",
        "Mon, 01 Jan 2026 25:00:00 GMT",
        "Mon, 01 Jan 2026 00:61:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999",
        "Mon, 01 Jan 2026 00:00:00 PST",
        "Mon, 01 Jan 99999999999999999999",
        "Thu, 99 Jan 2026",
        "\x00",
        "",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert read_http_date(text, NOW) is None
    assert read_delay(text, NOW) is None


def test_years_of_two_digits_are_at_most_50_years_ahead() -> None:
    for year, meant in ((76, 2076), (77, 1977), (26, 2026)):
        moment = read_http_date(f"Monday, 01-Jan-{year} 00:00:00 GMT", NOW)
        assert moment is not None
        assert moment.year == meant


def test_delays() -> None:
    assert read_delay("120", NOW) == timedelta(minutes=2)
    assert read_delay("9" * 10, NOW) is None
    assert read_delay("Thu, 01 Jan 2026 00:02:00 GMT", NOW) == timedelta(minutes=2)
    assert read_delay("Thu, 01 Jan 1970 00:00:00 GMT", NOW) == timedelta(0)
    last = read_delay("Fri, 31 Dec 9999 23:59:60 GMT", NOW)
    assert last is not None
    assert last > timedelta(days=365 * 7000)


@pytest.mark.parametrize("text", ['"a"', 'W/"a"', '""', '"' + "x" * 510 + '"'])
def test_entity_tags(text: str) -> None:
    assert read_etag(f" {text} ") == text


@pytest.mark.parametrize(
    "text", ["", "*", "a", '"a", *', '"a", "b"', '"a" "', '"a\rb"', '"' + "x" * 511 + '"', 'w/"a"']
)
def test_what_is_no_entity_tag(text: str) -> None:
    assert read_etag(text) == ""
