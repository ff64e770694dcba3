from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.registry.challenge import Challenge, ChallengeError, parse_challenges

WORDS = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", fullmatch=True)
NAMES = WORDS.map(str.lower)
VALUES = st.text(st.characters(max_codepoint=255))
CHALLENGES = st.builds(Challenge, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


def quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def written(challenge: Challenge) -> str:
    parameters = (f"{name}={quoted(value)}" for name, value in challenge.parameters.items())
    return f"{challenge.scheme} {', '.join(parameters)}".rstrip(" ")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ()),
        (" , ,", ()),
        ("Basic", (Challenge("basic"),)),
        ("Negotiate, Basic", (Challenge("negotiate"), Challenge("basic"))),
        ('Basic realm="a"', (Challenge("basic", {"realm": "a"}),)),
        ("Basic REALM = a", (Challenge("basic", {"realm": "a"}),)),
        (
            'Bearer realm="https://auth.example/token?a=b",service="s",scope="r:app:pull,push"',
            (
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.example/token?a=b",
                        "service": "s",
                        "scope": "r:app:pull,push",
                    },
                ),
            ),
        ),
        (
            'Negotiate YWJj==, Basic realm="a, b=\\"c\\"", charset=UTF-8, Bearer realm="r"',
            (
                Challenge("negotiate"),
                Challenge("basic", {"realm": 'a, b="c"', "charset": "UTF-8"}),
                Challenge("bearer", {"realm": "r"}),
            ),
        ),
    ],
)
def test_a_header_says_which_logins_will_do(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('"Basic"', "not a scheme"),
        ('Bearer realm="a', "not a scheme: 'realm="),
        ('Bearer realm="a" service="b"', "not a scheme"),
        ("Bearer realm=a, Realm=b", "parameter 'realm' occurs twice"),
        ("Bearer =a", "not a scheme"),
    ],
)
def test_what_does_not_follow_the_grammar_is_refused(header: str, message: str) -> None:
    with pytest.raises(ChallengeError, match=message):
        parse_challenges(header)


@given(st.lists(CHALLENGES, max_size=4))
def test_what_is_written_is_read(challenges: list[Challenge]) -> None:
    assert parse_challenges(", ".join(map(written, challenges))) == tuple(challenges)


@given(st.text(st.characters(max_codepoint=255)) | st.text('Ba ="\\,', max_size=30))
def test_nothing_else_is_raised(header: str) -> None:
    try:
        challenges = parse_challenges(header)
    except ChallengeError:
        return
    assert all(challenge.scheme == challenge.scheme.lower() for challenge in challenges)
