"""Numbers, dates and tags in headers that another program wrote: bounded before they are used.

``int`` refuses more than 4,300 digits, ``timedelta`` and ``datetime`` overflow, and the date reader
of ``email`` raises whatever its parts raise. Here a text is a value in range or it is none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

MAX_INTEGER: Final = 2**63 - 1
"""The largest integer that SQLite and the kernel take."""

_MOST_DIGITS: Final = len(str(MAX_INTEGER))
_MOST_DELAY_DIGITS: Final = 9
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_ZONE: Final = r"(?:GMT|UTC|UT|[+-]0000)"
# The three forms of RFC 9110, 5.6.7. The names of days say nothing that the date does not.
_DATES: Final = (
    re.compile(
        rf"[A-Za-z]{{3}}, (?P<day>[0-9]{{1,2}}) (?P<month>[A-Za-z]{{3}}) (?P<year>[0-9]{{4}}) "
        rf"{_TIME}(?: {_ZONE})?"
    ),
    re.compile(
        rf"[A-Za-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>[A-Za-z]{{3}})-(?P<year>[0-9]{{2}}) "
        rf"{_TIME} {_ZONE}"
    ),
    re.compile(
        rf"[A-Za-z]{{3}} (?P<month>[A-Za-z]{{3}}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"
    ),
)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
        start=1,
    )
}
# One tag, and no list of them or "*", which would match every file (RFC 9110, 8.8.3 and 13.1.2).
_ETAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]{0,510}"')
_LAST_SECOND: Final = 59
_CENTURY: Final = 100
_LONGEST_AHEAD_YEARS: Final = 50


def read_count(text: str, *, at_most: int = MAX_INTEGER) -> int | None:
    """Return the number that *text* consists of, digits only; None if it is none in range."""
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        return None
    number = int(text)
    return number if number <= at_most else None


def read_delay(text: str, now: datetime) -> timedelta | None:
    """Return how long to wait from *now* on, as ``Retry-After`` says it (RFC 9110, 10.2.3).

    It is a number of seconds or a date; None if *text* is neither.
    """
    if len(text) <= _MOST_DELAY_DIGITS and (seconds := read_count(text)) is not None:
        return timedelta(seconds=seconds)
    moment = read_http_date(text, now)
    return None if moment is None else max(moment - now, timedelta(0))


def read_etag(text: str) -> str:
    """Return the entity tag that *text* is, to be sent back; empty if it is not exactly one.

    A tag that is too long, or a list, would make each later request fail, or match every file.
    """
    tag = text.strip()
    return tag if _ETAG.fullmatch(tag) else ""


def read_http_date(text: str, now: datetime) -> datetime | None:
    """Return the date that *text* names, in one of the forms of RFC 9110; None if it names none.

    Args:
        text: the value of a header.
        now: chooses the century of a year of two digits.
    """
    match = next((match for form in _DATES if (match := form.fullmatch(text))), None)
    month = None if match is None else _MONTHS.get(match["month"].lower())
    if match is None or month is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += now.year // _CENTURY * _CENTURY
        year -= _CENTURY if year > now.year + _LONGEST_AHEAD_YEARS else 0
    try:
        return datetime(
            year,
            month,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            min(int(match["second"]), _LAST_SECOND),  # a leap second
            tzinfo=UTC,
        )
    except ValueError:  # no such day, or the year 0
        return None
