"""The counter of steps tells linear from quadratic work."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest

from counting import assert_linear, count_steps

if TYPE_CHECKING:
    from collections.abc import Callable


def work(rounds: int) -> int:
    return sum(number for number in range(rounds))


def linear(size: int) -> Callable[[], object]:
    return partial(work, size)


def quadratic(size: int) -> Callable[[], object]:
    return partial(work, size * size)


def test_the_same_work_has_the_same_steps() -> None:
    assert count_steps(linear(100)) == count_steps(linear(100)) > 100


def test_linear_work_passes() -> None:
    assert_linear(linear, 100)


def test_quadratic_work_fails() -> None:
    with pytest.raises(AssertionError, match=r"steps for 100, but .* for 400"):
        assert_linear(quadratic, 100)


def test_work_that_ends_early_fails() -> None:
    with pytest.raises(AssertionError, match="not looked at"):
        assert_linear(lambda _: linear(1), 100)


def test_an_exception_is_passed_on_and_tracing_ends() -> None:
    def fail() -> NoReturn:
        raise RuntimeError("unexpected")

    before = sys.gettrace()
    with pytest.raises(RuntimeError, match="unexpected"):
        count_steps(fail)
    assert sys.gettrace() is before
