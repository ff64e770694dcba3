from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.config import Registry
from layermanager.oci.reference import parse_registry_reference
from layermanager.transfer.mirrors import addresses, base_url, places

DIGEST = f"sha256:{'0' * 64}"
REGISTRIES = {
    "docker.io": Registry(mirrors=("https://m.example", "http://n.example/cache/hub")),
    "plain.example:5000": Registry(is_plain=True),
}


def test_mirrors_come_before_the_registry() -> None:
    found = places(parse_registry_reference("debian:12"), REGISTRIES)
    assert list(map(str, found)) == [
        "m.example/library/debian:12",
        "n.example:80/cache/hub/library/debian:12",
        "docker.io/library/debian:12",
    ]


def test_layers_have_as_many_addresses() -> None:
    assert addresses(f"docker://docker.io/library/debian@{DIGEST}", REGISTRIES) == (
        f"docker://m.example/library/debian@{DIGEST}",
        f"docker://n.example:80/cache/hub/library/debian@{DIGEST}",
        f"docker://docker.io/library/debian@{DIGEST}",
    )


@pytest.mark.parametrize(
    "url",
    [
        f"docker://other.example/debian@{DIGEST}",
        "https://docker.io/library/debian",
        f"oci:/path@{DIGEST}",
        "docker://",
        "docker://Not/A/Repository",
    ],
)
def test_all_else_has_the_one_that_it_has(url: str) -> None:
    assert addresses(url, REGISTRIES) == (url,)


@given(st.text())
def test_no_address_is_an_error(text: str) -> None:
    assert addresses(f"docker://{text}", REGISTRIES)[-1].startswith("docker://")
    assert addresses(text, {}) == (text,) or text.startswith("docker://")


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("m.example", "https://m.example"),
        ("n.example:80", "http://n.example:80"),
        ("n.example", "https://n.example"),
        ("plain.example:5000", "http://plain.example:5000"),
        ("localhost", "https://localhost"),
    ],
)
def test_http_is_spoken_only_where_it_was_said(registry: str, expected: str) -> None:
    assert base_url(registry, REGISTRIES) == expected
