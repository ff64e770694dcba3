from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ArchiveError
from layermanager.unpack import fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0\0\0\0\0", 0o644),
        (b"77777777", 0o77777777),
        (b"\0" * 8, 0),
        (b" " * 8, 0),
        (b"644\0junk", 0o644),
        (b"\x80\0\0\0\0\0\x01\x00", 256),
        (b"\xff" * 8, -1),
        (b"\xff\xff\xff\xff\xff\xff\xff\x00", -256),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 2**63 - 1),
    ],
)
def test_reads_octal_and_binary_numbers(field: bytes, value: int) -> None:
    assert fields.number(field) == value


@pytest.mark.parametrize("field", [b"00008\0\0\0", b"-0000001", b"0x10\0\0\0\0", b"6 4\0\0\0\0\0"])
def test_refuses_what_is_no_number(field: bytes) -> None:
    with pytest.raises(ArchiveError, match="no number"):
        fields.number(field)


@given(st.integers(min_value=-(2**94), max_value=2**94 - 1))
def test_any_binary_number_reads_back(value: int) -> None:
    field = bytearray((value & (2**96 - 1)).to_bytes(12, "big"))
    field[0] |= 0x80
    assert fields.number(bytes(field)) == value


@given(st.integers(min_value=0, max_value=2**33 - 1))
def test_any_octal_number_reads_back(value: int) -> None:
    assert fields.number(b"%011o\0" % value) == value


@given(st.binary(min_size=8, max_size=12))
def test_any_field_is_a_number_or_refused(field: bytes) -> None:
    with contextlib.suppress(ArchiveError):
        assert isinstance(fields.number(field), int)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"0", 0),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1.5", 1_500_000_000),
        (b"1.", 1_000_000_000),
        (b"1.1234567899", 1_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-0.000000001", -1),
        (b"-12345678901.000000001", -12_345_678_901_000_000_001),
    ],
)
def test_reads_times(text: bytes, nanoseconds: int) -> None:
    assert fields.time_ns(text) == nanoseconds


@pytest.mark.parametrize("text", [b"", b".5", b"1e9", b"+1", b"1,5", b"--1", b"1.5\n", b"9" * 31])
def test_refuses_what_is_no_time(text: bytes) -> None:
    with pytest.raises(ArchiveError, match="no time"):
        fields.time_ns(text)


@pytest.mark.parametrize("text", [b"", b"-1", b"1 ", b"0x1", "\u0661".encode(), b"9" * 31])
def test_refuses_what_is_no_decimal_number(text: bytes) -> None:
    with pytest.raises(ArchiveError, match="no decimal number"):
        fields.decimal(text)


def test_a_name_ends_at_the_first_nul() -> None:
    assert fields.text(b"name\0rest") == b"name"
    assert fields.text(b"x" * 100) == b"x" * 100


@given(st.binary(max_size=1000))
def test_any_name_is_shown_on_one_readable_line(name: bytes) -> None:
    shown = fields.shown(name)
    assert shown.isprintable()
    assert len(shown) <= 301


def test_what_would_move_the_cursor_is_escaped() -> None:
    assert fields.shown(b"a\x1b[2J\n\xe2\x80\xae\xff") == r"a\x1b[2J\n\u202e\xff"
