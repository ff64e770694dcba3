from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cli.tables import (
    age_text,
    columns_of,
    cut,
    escaped,
    parse_size,
    short_digest,
    size_text,
    table,
)

HEAD = ("ACTION", "LAYER", "VERSION", "SIZE")
RIGHT = frozenset({3})
NARROWEST = len("ACTION  LAYER  VERSION") + 2
POWERS = {"": 0, "k": 1, "K": 1, "m": 2, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (123 * 1024**2, "123 MiB"),
        (5 * 1024**3, "5.00 GiB"),
        (2 * 1024**6, "2.00 EiB"),
    ],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(0, 2**70 - 1))
def test_a_size_is_short_and_about_right(size: int) -> None:
    text = size_text(size)

    assert len(text) <= 9
    number, unit = text.split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(Fraction(number) * factor - size) <= Fraction(size, 100)


@given(st.integers(0, 2**64))
def test_what_is_written_as_a_size_is_read_as_one(size: int) -> None:
    read = parse_size(size_text(size))

    assert abs(read - size) <= size // 100 + 1


@given(
    whole=st.integers(0, 10**6),
    fraction=st.sampled_from(["", ".0", ".5", ".25", ".001"]),
    prefix=st.sampled_from(sorted(POWERS)),
    ending=st.sampled_from(["", "B", "b"]),
    is_iec=st.booleans(),
    gap=st.sampled_from(["", " "]),
)
def test_all_forms_of_a_size(
    whole: int, fraction: str, prefix: str, ending: str, *, is_iec: bool, gap: str
) -> None:
    unit = prefix + ("i" if is_iec and prefix else "") + ending
    exact = Fraction(f"{whole}{fraction}") * 1024 ** POWERS[prefix]

    assert parse_size(f"{whole}{fraction}{gap}{unit}") == int(exact)


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5.2", "1,5G", "5iB", "1 XB", ".5G", "5\u212a", "٣M", "1e9", "5 G B"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_none(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError:
        return

    assert size >= 0


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=119), "119 s"),
        (timedelta(minutes=2), "2 min"),
        (timedelta(hours=1, minutes=59), "119 min"),
        (timedelta(hours=2), "2 h"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=2), "2 d"),
        (timedelta(days=800), "800 d"),
    ],
)
def test_ages_are_in_the_unit_that_says_enough(age: timedelta, text: str) -> None:
    assert age_text(age) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10**6)))
def test_an_age_is_never_exaggerated(age: timedelta) -> None:
    number, unit = age_text(age).split()
    length = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]

    assert int(number) * length <= age.total_seconds() < (int(number) + 1) * length


def test_a_short_digest_names_the_algorithm() -> None:
    assert short_digest("sha512:" + "0123456789" * 12) == "sha512:012345678901"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert escaped("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"
    assert escaped("naïve 層") == "naïve 層"


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    assert escaped(text).isprintable()


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("層", 2), ("e\u0301", 1), ("", 0)])
def test_columns_of_wide_and_combining_characters(text: str, columns: int) -> None:
    assert columns_of(text) == columns


@given(st.text().map(escaped), st.integers(1, 40))
def test_a_cut_text_fits_and_is_a_beginning(text: str, width: int) -> None:
    fitting = cut(text, width)

    assert columns_of(fitting) <= width
    assert fitting == text or (fitting.endswith("…") and text.startswith(fitting[:-1]))


def test_a_table_aligns_text_to_the_left_and_numbers_to_the_right() -> None:
    rows = [("kept", "base", "1.0.0", "1.00 KiB"), ("installed", "層", "2", "9 B")]

    assert list(table(HEAD, rows, width=80, right=RIGHT)) == [
        "ACTION     LAYER  VERSION      SIZE",
        "kept       base   1.0.0    1.00 KiB",
        "installed  層     2             9 B",
    ]


def test_where_there_is_no_room_the_widest_column_gives() -> None:
    rows = [("kept", "a-layer-with-a-long-name", "1.0.0", "1.00 KiB")]

    assert list(table(HEAD, rows, width=40, right=RIGHT)) == [
        "ACTION  LAYER          VERSION      SIZE",
        "kept    a-layer-with…  1.0.0    1.00 KiB",
    ]


cells = st.text(max_size=40)
numbers = st.integers(0, 2**64).map(size_text)


@given(
    rows=st.lists(st.tuples(st.sampled_from(["kept", "installed"]), cells, cells, numbers)),
    width=st.integers(1, 100),
)
def test_a_table_fits_whenever_it_can(rows: list[tuple[str, ...]], width: int) -> None:
    lines = list(table(HEAD, rows, width=width, right=RIGHT))

    whole = sum(
        max(map(len, column), default=0)
        for column in ([r[i] for r in (HEAD, *rows)] for i in (0, 3))
    )
    least = whole + len("LAYER") + len("VERSION") + 6
    assert len(lines) == len(rows) + 1
    assert all(columns_of(line) <= max(width, least) for line in lines)
    for row, line in zip(rows, lines[1:], strict=True):
        assert line.startswith(row[0])
        assert line.endswith(row[3])
