from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.readable import escaped, escaped_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("naïve 層 é ß", "naïve 層 é ß"),
        ("a\x1b[2J\x07", r"a\x1b[2J\x07"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\u202eevil\u202c\u2066\u200f\u061c", r"\u202eevil\u202c\u2066\u200f\u061c"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U000e0041", r"\U000e0041"),
        (r"C:\x", r"C:\x"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


@given(st.text(st.characters()))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped(escaped(text)) == escaped(text)
    escaped(text).encode()


@given(st.text(st.characters()))
def test_lines_stay_lines(text: str) -> None:
    lines = escaped_lines(text)
    assert lines.count("\n") == text.count("\n")
    assert lines.replace("\n", "").isprintable()
