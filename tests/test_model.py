from __future__ import annotations

import copy
import hashlib
import pickle
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import DesiredStateError, InvalidDigestError
from layermanager.model import (
    DesiredImage,
    DesiredLayer,
    Digest,
    LayerInfo,
    Limits,
    layers_and_images,
)

SHA256 = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 64), ("sha384", 96), ("sha512", 128)])
def test_a_digest_is_its_text_and_knows_its_parts(algorithm: str, length: int) -> None:
    digest = Digest(f"{algorithm}:{'a' * length}")
    assert digest == f"{algorithm}:{'a' * length}"
    assert digest.algorithm == algorithm
    assert digest.encoded == "a" * length


def test_a_digest_of_a_digest_is_the_same_object() -> None:
    digest = Digest(SHA256)
    assert Digest(digest) is digest


def test_a_digest_can_be_copied_and_pickled() -> None:
    digest = Digest(SHA256)
    for other in (copy.deepcopy(digest), pickle.loads(pickle.dumps(digest))):  # noqa: S301 - ours
        assert isinstance(other, Digest)
        assert other == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        ":" + "a" * 64,
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha256:../../" + "a" * 58,
        "sha256:" + "٣" * 64,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256+b64u:" + "a" * 64,
        "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigestError):
        Digest(text)


def test_an_algorithm_that_is_not_supported_is_named() -> None:
    with pytest.raises(InvalidDigestError, match="algorithm 'md5' is not supported"):
        Digest("md5:" + "a" * 32)


def test_the_message_about_an_endless_text_is_short() -> None:
    with pytest.raises(InvalidDigestError) as caught:
        Digest("a" * 1_000_000)
    assert len(str(caught.value)) < 300


@given(st.binary(), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_every_real_digest_is_one(content: bytes, algorithm: str) -> None:
    encoded = hashlib.new(algorithm, content).hexdigest()
    digest = Digest(f"{algorithm}:{encoded}")
    assert (digest.algorithm, digest.encoded) == (algorithm, encoded)


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"[a-z0-9+._-]{1,9}:[a-zA-Z0-9=_/.-]{0,130}"),
        st.from_regex(r"sha(256|384|512):[0-9a-fA-F]{60,130}"),
    )
)
def test_what_passes_as_a_digest_is_safe_as_a_file_name(text: str) -> None:
    try:
        digest = Digest(text)
    except InvalidDigestError:
        return
    assert digest == text
    assert digest.algorithm in {"sha256", "sha384", "sha512"}
    assert set(digest.encoded) <= set("0123456789abcdef")
    assert len(digest.encoded) == 2 * hashlib.new(digest.algorithm).digest_size


def test_a_desired_layer_checks_its_digest() -> None:
    desired = DesiredLayer(digest=SHA256, url="file:///x")  # type: ignore[arg-type] # from a caller without types
    assert isinstance(desired.digest, Digest)
    with pytest.raises(InvalidDigestError):
        DesiredLayer(digest="sha256:../x", url="file:///x")  # type: ignore[arg-type] # likewise


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"url": ""}, "url is empty"),
        ({"sha256": b"x" * 31}, "sha256 must be 32 bytes, not 31"),
        ({"sha256": b"x" * 33}, "sha256 must be 32 bytes, not 33"),
        ({"size": -1}, "size is negative: -1"),
        ({"mirrors": ("file:///y", "")}, "an address in mirrors is empty"),
    ],
)
def test_a_desired_layer_names_its_digest_and_what_is_wrong(
    members: dict[str, object], message: str
) -> None:
    with pytest.raises(DesiredStateError, match=message) as caught:
        DesiredLayer(**({"digest": Digest(SHA256), "url": "file:///x"} | members))  # type: ignore[arg-type] # a table of wrong members
    assert SHA256 in str(caught.value)


def test_a_desired_layer_checks_its_diff_id() -> None:
    with pytest.raises(InvalidDigestError):
        DesiredLayer(Digest(f"sha256:{'0' * 64}"), "file:///a", diff_id="sha256:short")  # type: ignore[arg-type] # what a careless caller does


def test_the_addresses_of_a_layer_are_its_url_and_then_its_mirrors_each_once() -> None:
    layer = DesiredLayer(Digest(SHA256), "file:///x", mirrors=("file:///y", "file:///x"))
    assert layer.addresses == ("file:///x", "file:///y")


def test_only_with_a_checksum_it_is_a_package() -> None:
    assert DesiredLayer(Digest(SHA256), "file:///x", sha256=bytes(32)).is_package
    assert not DesiredLayer(Digest(SHA256), "file:///x").is_package


def test_an_installed_layer_checks_its_digest_and_is_a_value() -> None:
    def info(digest: str) -> LayerInfo:
        return LayerInfo(
            digest=digest,  # type: ignore[arg-type] # from a caller without types
            layer_id="a",
            version="1",
            path=Path("/x"),
            os_version="",
            timestamp=datetime(2026, 11, 24, tzinfo=UTC),
            cached=False,
            size=1,
        )

    assert isinstance(info(SHA256).digest, Digest)
    assert info(SHA256) == info(SHA256)
    with pytest.raises(InvalidDigestError):
        info("")
    with pytest.raises(FrozenInstanceError):
        info(SHA256).size = 2  # type: ignore[misc] # that it cannot be set is the point


def test_every_limit_admits_an_ordinary_layer() -> None:
    limits = Limits()
    assert all(getattr(limits, limit.name) > 0 for limit in fields(limits))
    assert limits.unpacked_bytes >= limits.package_bytes >= 2**30


def test_what_is_desired_by_kind() -> None:
    layers = [
        DesiredLayer(Digest(SHA256), "file:///one"),
        DesiredLayer(Digest(SHA256), "file:///two"),
    ]
    image = DesiredImage("registry.example/image:1")
    assert layers_and_images((layers[0], image, layers[1])) == (layers, [image])


def test_nothing_is_left_out_of_what_is_desired() -> None:
    document = {"digest": SHA256, "url": "file:///one"}
    with pytest.raises(
        TypeError, match=r"expected a DesiredLayer or a DesiredImage, found .*digest"
    ):
        layers_and_images([document])  # type: ignore[list-item] # which is the point
