"""The cost of what servers and environments say grows at most linearly with its length."""

from __future__ import annotations

import io
from http.client import parse_headers
from typing import TYPE_CHECKING

import pytest

from counting import assert_linear
from layermanager.readable import escaped
from layermanager.registry.challenge import ChallengeError, parse_challenges
from layermanager.sources.proxies import parse_no_proxy
from layermanager.urls import redacted

if TYPE_CHECKING:
    from collections.abc import Callable


def read_challenges(header: str) -> None:
    try:
        parse_challenges(header)
    except ChallengeError:
        return


@pytest.mark.parametrize(
    ("one", "end"),
    [
        ("Basic, ", ""),
        ('Basic realm="a", ', ""),
        ("a b ", ""),
        ("a b c=d, ", ""),
        ('a b="\\\\", ', ""),
        ("a YWJj==, ", ""),
    ],
)
def test_challenges(one: str, end: str) -> None:
    def prepare(count: int) -> Callable[[], None]:
        header = one * count + end
        return lambda: read_challenges(header)

    assert_linear(prepare, 200)


def test_parameters_of_a_challenge() -> None:
    def prepare(count: int) -> Callable[[], None]:
        parameters = ", ".join(f'p{number}="{number}"' for number in range(count))
        return lambda: read_challenges(f"Bearer {parameters}")

    assert_linear(prepare, 200)


@pytest.mark.parametrize(
    "entry",
    [
        "host{0}.example",
        "*.host{0}.example:80",
        "10.0.0.{0}",
        "10.0.{0}.0/24",
        "[::{0}]:1",
        ",{0},",
    ],
)
def test_lists_of_hosts_without_a_proxy(entry: str) -> None:
    def prepare(count: int) -> Callable[[], object]:
        text = ",".join(entry.format(number % 200) for number in range(count))
        return lambda: parse_no_proxy(text).includes("other.example", 443)

    assert_linear(prepare, 100)


@pytest.mark.parametrize(
    "line", [b"A: b\r\n", b"Link: <a>; rel=next\r\n", b" folded\r\n", b"no\r\n"]
)
def test_blocks_of_headers(line: bytes) -> None:
    def prepare(count: int) -> Callable[[], object]:
        block = b"A: b\r\n" + line * count + b"\r\n"
        return lambda: parse_headers(io.BytesIO(block)).items()

    assert_linear(prepare, 20)  # of at most 100 lines


@pytest.mark.parametrize("text", ["\x1b", "?a ", "//a@", "Bearer a ", "cookie: a\n", "x-"])
def test_text_that_is_escaped_and_redacted(text: str) -> None:
    def prepare(count: int) -> Callable[[], str]:
        hostile = f"{text * count}\x00"
        return lambda: escaped(redacted(hostile))

    assert_linear(prepare, 500)
