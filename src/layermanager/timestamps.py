"""Timestamps as Aos writes them into its database, and all the spellings that it reads.

Aos is written in Go; its database driver, go-sqlite3, writes a point in time as text in UTC with
up to nine digits of a second and reads more than that. Python's ``datetime`` holds microseconds,
so that a Go timestamp loses its last three digits when it is read.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_LARGEST_SECONDS: Final = 10**12
"""An integer beyond this counts milliseconds, for the driver; as seconds it would be in the
33rd millennium."""


def format_timestamp(moment: datetime) -> str:
    """Spell *moment* as Go does: ``2026-11-24 00:49:32.5866+00:00``.

    The fraction ends with its last digit that is not zero; without any it is left out.

    Raises:
        ValueError: *moment* has no time zone, so that it is no point in time.
    """
    if moment.tzinfo is None:
        raise ValueError(f"a timestamp needs a time zone: {moment!r}")
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    if "." in text:
        text = text.rstrip("0")
    return text + "+00:00"


def parse_timestamp(value: object) -> datetime:
    """Read what the timestamp column of a database may hold.

    That is the spelling of ``format_timestamp`` with any number of digits, RFC 3339, either with
    no time zone (then it is UTC), a date alone, and Unix time, an integer or its digits, in
    seconds or, beyond 10**12, in milliseconds. Other spellings of ISO 8601 that
    ``datetime.fromisoformat`` knows are read as well.

    Raises:
        ValueError: *value* is none of these, or out of the calendar's range.
    """
    match value:
        case str() if value.removeprefix("-").isdecimal():
            return _from_unix_time(int(value))
        case str():
            return _from_text(value)
        case int():
            return _from_unix_time(value)
        case _:
            raise ValueError(f"not a timestamp: {value!r:.80}")


def _from_text(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"not a timestamp: {text!r:.80}: {error}") from error


def _from_unix_time(number: int) -> datetime:
    unit = timedelta(milliseconds=1) if abs(number) > _LARGEST_SECONDS else timedelta(seconds=1)
    try:
        return _EPOCH + number * unit
    except OverflowError as error:
        raise ValueError(f"not a timestamp: {number}: {error}") from error
