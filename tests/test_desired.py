from __future__ import annotations

import base64
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.desired import desired_to_json, read_desired, read_desired_state
from layermanager.errors import (
    DesiredStateError,
    InputError,
    InvalidDigestError,
    InvalidReferenceError,
)
from layermanager.model import DesiredImage, DesiredLayer, Digest

DIGEST = "sha256:" + "ab" * 32
CHECKSUM = bytes(range(32))

_digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(f"sha256:{raw.hex()}"))
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_layers = st.builds(
    DesiredLayer,
    digest=_digests,
    url=st.text(_characters, min_size=1),
    layer_id=st.text(_characters),
    version=st.text(_characters),
    sha256=st.just(b"") | st.binary(min_size=32, max_size=32),
    size=st.none() | st.integers(0, 2**63 - 1),
    mirrors=st.lists(st.text(_characters, min_size=1)).map(tuple),
    diff_id=st.none() | _digests,
)
_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: (
        st.lists(values)
        | st.dictionaries(st.sampled_from(["digest", "url", "sha256", "size", "version"]), values)
    ),
)


def document(**members: object) -> str:
    good: dict[str, object] = {"digest": DIGEST, "url": "file:///srv/layer"}
    return json.dumps([good, good | members])


def refusal(text: str | bytes) -> str | None:
    try:
        read_desired_state(text, "desired.json")
    except InputError as error:
        return str(error)
    return None


def state(**members: object) -> str:
    return json.dumps(members)


@given(st.lists(_layers))
def test_what_is_written_is_read_again(layers: list[DesiredLayer]) -> None:
    text = json.dumps([desired_to_json(layer) for layer in layers])

    assert read_desired(text, "desired.json") == layers


@given(_json_values.map(json.dumps) | st.text() | st.binary())
def test_any_document_is_read_or_refused_by_name(text: str | bytes) -> None:
    message = refusal(text)

    assert message is None or message.startswith("desired.json: ")


def test_reads_an_entry_as_aos_writes_it() -> None:
    entry = {
        "layerId": "base",
        "digest": DIGEST,
        "version": "1.2.3",
        "url": "https://example.com/base.tar",
        "sha256": base64.b64encode(CHECKSUM).decode(),
        "size": 4096,
        "decryptionInfo": {"what": "other parts of Aos know"},
    }

    assert read_desired(json.dumps([entry]).encode(), "desired.json") == [
        DesiredLayer(
            digest=Digest(DIGEST),
            url="https://example.com/base.tar",
            layer_id="base",
            version="1.2.3",
            sha256=CHECKSUM,
            size=4096,
        )
    ]


def test_writes_an_entry_as_aos_reads_it() -> None:
    layer = DesiredLayer(
        Digest(DIGEST), "file:///srv/p", layer_id="base", version="1", sha256=CHECKSUM, size=7
    )

    assert desired_to_json(layer) == {
        "layerId": "base",
        "digest": DIGEST,
        "version": "1",
        "url": "file:///srv/p",
        "sha256": base64.b64encode(CHECKSUM).decode(),
        "size": 7,
    }


def test_what_is_not_known_is_not_written() -> None:
    members = desired_to_json(DesiredLayer(Digest(DIGEST), "file:///srv/blob"))

    assert "sha256" not in members
    assert "size" not in members
    assert "mirrors" not in members
    assert "diffId" not in members


@pytest.mark.parametrize("text", [CHECKSUM.hex(), CHECKSUM.hex().upper()])
def test_a_checksum_may_be_hex(text: str) -> None:
    assert read_desired(document(sha256=text), "d")[1].sha256 == CHECKSUM


@pytest.mark.parametrize("absent", [None, ""])
def test_an_empty_checksum_is_none(absent: str | None) -> None:
    assert read_desired(document(sha256=absent), "d")[1].sha256 == b""


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"url": ""}, "[1].url: is missing or empty"),
        ({"url": 5}, "[1].url: expected a text, found a number"),
        ({"digest": None}, "[1].digest: is missing or empty"),
        ({"size": -1}, "[1].size: must be at least 0, not -1"),
        ({"size": "7"}, "[1].size: expected an integer, found a text"),
        ({"mirrors": "file:///b"}, "[1].mirrors: expected an array of texts"),
        ({"mirrors": ["file:///b", 5]}, "[1].mirrors[1]: expected a text, found a number"),
        ({"mirrors": [""]}, "[1].mirrors[0]: is missing or empty"),
        ({"layerId": []}, "[1].layerId: expected a text, found an array"),
        ({"sha256": "AAAA"}, "[1].sha256: expected 32 bytes in base64 or hex, found 'AAAA'"),
        ({"sha256": "!" * 44}, "[1].sha256: expected 32 bytes in base64 or hex, found '!!"),
        ({"sha256": "é"}, "[1].sha256: expected 32 bytes in base64 or hex, found 'é'"),
        ({"sha256": string.hexdigits[:9]}, "[1].sha256: expected 32 bytes"),
    ],
)
def test_a_bad_member_is_named(members: dict[str, object], complaint: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        read_desired(document(**members), "/etc/desired.json")

    assert str(caught.value).startswith(f"/etc/desired.json: {complaint}")


def test_a_bad_digest_is_named() -> None:
    with pytest.raises(InvalidDigestError) as caught:
        read_desired(document(digest="sha256:../../etc"), "d.json")

    assert str(caught.value).startswith("d.json: [1].digest: not a digest")


def test_a_bad_diff_id_is_named() -> None:
    with pytest.raises(InvalidDigestError) as caught:
        read_desired(document(diffId="sha256:short"), "d.json")

    assert str(caught.value).startswith("d.json: [1].diffId: a sha256 digest has")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("{}", "the document: expected an array, found an object"),
        ("[7]", "[0]: expected an object, found a number"),
    ],
)
def test_a_document_of_another_shape_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        read_desired(text, "d.json")

    assert str(caught.value).startswith(f"d.json: {complaint}")


@given(st.lists(_layers))
def test_a_list_of_layers_is_a_desired_state(layers: list[DesiredLayer]) -> None:
    members = [desired_to_json(layer) for layer in layers]
    assert read_desired_state(json.dumps(members), "d.json") == layers
    assert read_desired_state(state(layers=members), "d.json") == layers


def test_a_desired_state_names_layers_and_images() -> None:
    text = state(
        images=[{"ref": "registry:5000/app:1.2", "platform": "linux/arm64"}, {"ref": "debian"}],
        layers=[{"digest": DIGEST, "url": "file:///srv/layer"}],
    )
    assert read_desired_state(text, "d.json") == [
        DesiredLayer(Digest(DIGEST), "file:///srv/layer"),
        DesiredImage("registry:5000/app:1.2", "linux/arm64"),
        DesiredImage("debian"),
    ]
    assert read_desired_state(state(images=[]), "d.json") == []


@pytest.mark.parametrize(
    ("text", "error", "complaint"),
    [
        ("{}", DesiredStateError, "expected an array, or an object with layers or images"),
        ("7", DesiredStateError, "the document: expected an object, found a number"),
        (state(image=[]), DesiredStateError, "image: unknown key; known: images, layers"),
        (state(images={}), DesiredStateError, "images: expected an array of objects"),
        (state(images=[{}]), DesiredStateError, "images[0].ref: is missing or empty"),
        (state(layers=[{}]), DesiredStateError, "layers[0].digest: is missing or empty"),
        (
            state(images=[{"ref": "app", "tag": "1"}]),
            DesiredStateError,
            "images[0].tag: unknown key; known: platform, ref",
        ),
        (
            state(images=[{"ref": "App"}]),
            InvalidReferenceError,
            "images[0].ref: not a reference to an image: 'App'",
        ),
        (
            state(images=[{"ref": "app", "platform": "arm64"}]),
            InvalidReferenceError,
            "images[0].platform: not a platform: 'arm64'",
        ),
    ],
)
def test_a_bad_desired_state_is_refused_by_name(
    text: str, error: type[InputError], complaint: str
) -> None:
    with pytest.raises(error) as caught:
        read_desired_state(text, "d.json")

    assert str(caught.value).startswith(f"d.json: {complaint}")
