from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import InvalidReferenceError
from layermanager.oci.platform import Platform, host_platform, parse_platform

_words = st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True)
_platforms = st.builds(
    Platform,
    st.just("linux"),
    st.sampled_from(["amd64", "arm", "arm64", "386", "riscv64"]),
    st.sampled_from(["", *(f"v{number}" for number in range(1, 10)), "7", "v8.1", "z14"]),
)


@given(st.builds(Platform, _words, _words, st.just("") | _words))
def test_a_platform_is_written_as_it_is_read(platform: Platform) -> None:
    assert parse_platform(str(platform)) == platform


@given(_platforms)
def test_nothing_suits_a_machine_better_than_its_own_kind(platform: Platform) -> None:
    assert platform.rank(platform) == 0


@given(_platforms, _platforms, _platforms)
def test_what_runs_on_an_older_machine_runs_on_a_newer_one(
    newest: Platform, newer: Platform, old: Platform
) -> None:
    if newest.rank(newer) is not None and newer.rank(old) is not None:
        assert newest.rank(old) is not None


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm/7", "linux/arm"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
    ],
)
def test_spellings_of_the_same(text: str, same: str) -> None:
    assert parse_platform(text) == parse_platform(same)
    assert str(parse_platform(text)) == same


@pytest.mark.parametrize(
    ("machine", "offered", "rank"),
    [
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v9", "linux/arm64", 1),
        ("linux/arm64", "linux/arm64/v9", None),
        ("linux/arm/v7", "linux/arm", 0),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v7", "linux/arm/v5", 2),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64", "linux/386", None),
        ("linux/arm64", "linux/arm", None),
        ("linux/amd64", "windows/amd64", None),
        ("linux/s390x/z14", "linux/s390x/z14", 0),
        ("linux/s390x/z14", "linux/s390x", None),
        ("linux/amd64", "unknown/unknown", None),
    ],
)
def test_how_well_an_image_suits_a_machine(machine: str, offered: str, rank: int | None) -> None:
    assert parse_platform(machine).rank(parse_platform(offered)) == rank


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tejl", "linux/arm/v5"),
        ("armv8l", "linux/arm/v8"),
        ("i686", "linux/386"),
        ("riscv64", "linux/riscv64"),
        ("ppc64le", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_the_platform_of_a_machine(machine: str, platform: str) -> None:
    assert str(host_platform("Linux", machine)) == platform


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d", "linux/ arm", "linux/a\0"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match="not a platform"):
        parse_platform(text)
