from __future__ import annotations

import itertools
import os
from collections import deque
from typing import TYPE_CHECKING

import pytest

from layermanager.unpack.stderr import ErrorPipe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def errors() -> Iterator[ErrorPipe]:
    pipe = ErrorPipe()
    yield pipe
    pipe.close()


def test_nothing_was_said(errors: ErrorPipe) -> None:
    assert errors.last_lines() == []
    errors.close_writing()
    assert errors.last_lines() == []


def test_lines_are_readable(errors: ErrorPipe) -> None:
    os.write(errors.writing, b"first\n\n\x1b[31msecond\r\nlast \xff")
    assert errors.last_lines() == ["first", "\\x1b[31msecond\\r", "last \\xff"]


def test_writing_never_blocks_and_little_is_kept(errors: ErrorPipe) -> None:
    line = b"x" * 100 + b"\n"
    with pytest.raises(BlockingIOError):
        deque((os.write(errors.writing, line) for _ in itertools.count()), maxlen=0)
    lines = errors.last_lines()
    assert 1 < len(lines) <= 20


def test_a_long_line_is_cut(errors: ErrorPipe) -> None:
    os.write(errors.writing, b"x" * 16_000)
    (line,) = errors.last_lines()
    assert len(line) < 400


def test_closing_may_be_repeated(errors: ErrorPipe) -> None:
    errors.close_writing()
    errors.close_writing()
    errors.close()
    errors.close()
