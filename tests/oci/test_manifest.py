from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ManifestError
from layermanager.model import Digest
from layermanager.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DOCUMENT_BYTES,
    MAX_LAYERS,
    MAX_MANIFESTS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    descriptor_members,
    read_config,
    read_index,
    read_manifest_or_index,
    require_layers,
    write_config,
    write_manifest,
)
from layermanager.oci.platform import parse_platform

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: (
        st.lists(values)
        | st.dictionaries(
            st.sampled_from(
                ["manifests", "layers", "config", "mediaType", "digest", "size", "platform", "os"]
            ),
            values,
        )
    ),
)


def digest_of(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def descriptor(number: int, media_type: str, **members: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(number), "size": number, **members}


def manifest(**changes: object) -> dict[str, object]:
    members = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(1, OCI_CONFIG),
        "layers": [descriptor(2, f"{OCI_LAYER}+gzip"), descriptor(3, f"{OCI_LAYER}+zstd")],
        **changes,
    }
    return {key: value for key, value in members.items() if value is not None}


def index(*platforms: str | None, **changes: object) -> dict[str, object]:
    manifests = [
        descriptor(number, OCI_MANIFEST, **({} if name is None else {"platform": platform(name)}))
        for number, name in enumerate(platforms)
    ]
    return {"schemaVersion": 2, "manifests": manifests, **changes}


def platform(name: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))


def config(**changes: object) -> dict[str, object]:
    return {
        "os": "linux",
        "architecture": "arm64",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(8), digest_of(9)]},
        **changes,
    }


def read(document: object, media_type: str = "") -> ImageIndex | ImageManifest:
    return read_manifest_or_index(json.dumps(document).encode(), media_type)


def read_image(document: object) -> ImageManifest:
    found = read(document)
    assert isinstance(found, ImageManifest)
    return found


def choose(document: object, name: str) -> Descriptor:
    found = read(document)
    assert isinstance(found, ImageIndex)
    return found.choose(parse_platform(name))


def test_a_manifest_names_its_configuration_and_layers() -> None:
    assert read(manifest()) == ImageManifest(
        Descriptor(OCI_CONFIG, digest_of(1), 1),
        (
            Descriptor(f"{OCI_LAYER}+gzip", digest_of(2), 2),
            Descriptor(f"{OCI_LAYER}+zstd", digest_of(3), 3),
        ),
    )


def test_a_manifest_of_docker_is_the_same_in_other_words() -> None:
    docker = manifest(
        mediaType=DOCKER_MANIFEST,
        config=descriptor(1, DOCKER_CONFIG),
        layers=[descriptor(2, f"{DOCKER_LAYER}.gzip")],
    )
    found = read_image(docker)
    require_layers(found)
    assert [layer.digest for layer in found.layers] == [digest_of(2)]


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, f"{OCI_INDEX}; charset=utf-8", ""])
def test_an_index_lists_manifests(media_type: str) -> None:
    found = read(index("linux/arm64", "linux/arm/v7"), media_type)
    assert isinstance(found, ImageIndex)
    assert [str(one.platform) for one in found.manifests] == ["linux/arm64", "linux/arm"]
    assert read_index(json.dumps(index("linux/arm64", "linux/arm/v7")).encode()) == found


@pytest.mark.parametrize(
    ("platforms", "wanted", "chosen"),
    [
        (("linux/amd64", "linux/arm64"), "linux/arm64", 1),
        (("linux/arm64", "linux/arm64"), "linux/arm64", 0),
        (("linux/arm/v5", "linux/arm/v6", "linux/arm64"), "linux/arm/v7", 1),
        (("linux/amd64", None), "linux/arm64", 1),
        (("linux/arm64", "unknown/unknown"), "linux/arm64", 0),
    ],
)
def test_the_best_of_an_index_is_chosen(
    platforms: tuple[str | None, ...], wanted: str, chosen: int
) -> None:
    assert choose(index(*platforms), wanted).digest == digest_of(chosen)


@pytest.mark.parametrize(
    ("platforms", "complaint"),
    [
        (("linux/amd64", "linux/386"), "no image for linux/arm64, but for: linux/amd64, linux/386"),
        ((), "no image for linux/arm64, but for: none"),
        ((None, None), "2 manifests of the index do not say"),
    ],
)
def test_an_index_without_the_platform_says_what_it_has(
    platforms: tuple[str | None, ...], complaint: str
) -> None:
    with pytest.raises(ManifestError, match=complaint):
        choose(index(*platforms), "linux/arm64")


@pytest.mark.parametrize(
    ("document", "media_type", "complaint"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "", "schema 1"),
        (
            manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
            "",
            "schema 1",
        ),
        ({}, "", "neither a manifest nor an index"),
        ({}, "text/html", "its type is 'text/html'"),
        (manifest(manifests=[]), "", "contradict each other: a manifest and an index"),
        (manifest(), OCI_INDEX, "contradict each other"),
        (manifest(mediaType=OCI_INDEX), "", "contradict each other"),
        (index(mediaType=DOCKER_MANIFEST), OCI_INDEX, "contradict each other"),
        (manifest(layers={}), "", "layers: expected an array of objects, found an object"),
        (manifest(layers=[7]), "", r"layers\[0\]: expected an object"),
        (manifest(layers=[{}]), "", r"layers\[0\].mediaType: is missing or empty"),
        (manifest(config=descriptor(1, OCI_CONFIG, digest="sha256:x")), "", "config.digest: "),
        (manifest(config=descriptor(1, OCI_CONFIG, size=-1)), "", "config.size: must be"),
        (manifest(config=None), "", "config.mediaType: is missing"),
        ([], "", "expected an object"),
        (
            manifest(layers=[descriptor(2, OCI_LAYER)] * (MAX_LAYERS + 1)),
            "",
            "layers: more than 500",
        ),
        (index(*["linux/arm64"] * (MAX_MANIFESTS + 1)), "", "manifests: more than 1000"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_reason(
    document: object, media_type: str, complaint: str
) -> None:
    with pytest.raises(ManifestError, match=complaint):
        read(document, media_type)


def test_a_document_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(ManifestError, match="larger than 4194304 bytes"):
        read_manifest_or_index(b"[" * (MAX_DOCUMENT_BYTES + 1))


@given(_json_values.map(json.dumps).map(str.encode) | st.binary())
def test_any_document_is_read_or_refused(document: bytes) -> None:
    for reader in (
        read_manifest_or_index,
        read_index,
        lambda some: read_config(some, 0),
    ):
        try:
            found: Any = reader(document)
        except ManifestError:
            continue
        assert isinstance(found, ImageIndex | ImageManifest | ImageConfig)


@pytest.mark.parametrize(
    "media_type",
    [
        OCI_LAYER,
        f"{OCI_LAYER}+gzip",
        f"{OCI_LAYER}+zstd",
        DOCKER_LAYER,
        f"{DOCKER_LAYER}.gzip",
        f"{DOCKER_LAYER}.zstd",
    ],
)
def test_layers_that_can_be_unpacked_are_taken(media_type: str) -> None:
    require_layers(read_image(manifest(layers=[descriptor(2, media_type)])))


@pytest.mark.parametrize(
    ("media_type", "complaint"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is a foreign layer"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "is a foreign layer"),
        (f"{OCI_LAYER}+gzip+encrypted", "is encrypted"),
        (f"{OCI_LAYER}+encrypted", "is encrypted"),
        ("application/vnd.in-toto+json", "is of an unknown type: 'application/vnd.in-toto"),
        (f"{OCI_LAYER}+bzip2", "is of an unknown type"),
    ],
)
def test_other_layers_are_refused_by_name(media_type: str, complaint: str) -> None:
    found = read_image(manifest(layers=[descriptor(2, OCI_LAYER), descriptor(3, media_type)]))
    with pytest.raises(ManifestError, match=f"layer {digest_of(3)} {complaint}"):
        require_layers(found)


def test_an_artifact_is_no_image() -> None:
    found = read_image(manifest(config=descriptor(1, "application/vnd.cncf.helm.config.v1+json")))
    with pytest.raises(ManifestError, match=r"artifact of type 'application/vnd\.cncf\.helm"):
        require_layers(found)


def test_an_image_without_layers_is_refused() -> None:
    with pytest.raises(ManifestError, match="no layers"):
        require_layers(read_image(manifest(layers=[])))


def test_a_configuration_says_how_the_image_is_run() -> None:
    document = config(
        created="2026-11-24T00:00:00Z",
        config={
            "Env": ["PATH=/bin", "A="],
            "Entrypoint": ["/bin/app"],
            "Cmd": ["--serve", ""],
            "WorkingDir": "/srv",
            "User": "1000:1000",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": {"/data": {}},
            "Labels": {"vendor": "us"},
            "StopSignal": "SIGINT",
        },
    )
    assert read_config(json.dumps(document).encode(), 2) == ImageConfig(
        platform=parse_platform("linux/arm64"),
        diff_ids=(digest_of(8), digest_of(9)),
        created="2026-11-24T00:00:00Z",
        environment=("PATH=/bin", "A="),
        entrypoint=("/bin/app",),
        arguments=("--serve", ""),
        working_directory="/srv",
        user="1000:1000",
        exposed_ports=("53/udp", "80/tcp"),
        volumes=("/data",),
        labels={"vendor": "us"},
        stop_signal="SIGINT",
    )


def test_what_a_configuration_leaves_out_is_empty() -> None:
    document = config(config=None, os=None, architecture="")
    found = read_config(json.dumps(document).encode(), 2)
    assert found == ImageConfig(None, (digest_of(8), digest_of(9)))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rootfs": {"diff_ids": [digest_of(8)]}}, "names 1 layers, the image has 2"),
        ({"rootfs": None}, "names 0 layers, the image has 2"),
        ({"rootfs": {"diff_ids": ["x"]}}, r"rootfs.diff_ids\[0\]: not a digest"),
        ({"config": {"Env": "A=B"}}, "config.Env: expected an array of texts, found a text"),
        ({"config": {"Cmd": [1]}}, r"config.Cmd\[0\]: expected a text"),
        ({"config": {"Cmd": [None]}}, r"config.Cmd\[0\]: expected a text, found null"),
        ({"config": {"Labels": {"a": 1}}}, "config.Labels.a: expected a text"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_reason(
    changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ManifestError, match=complaint):
        read_config(json.dumps(config(**changes)).encode(), 2)


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_some_digests = st.integers(0, 99).map(digest_of)
_platforms = st.sampled_from(["linux/amd64", "linux/arm/v6", "linux/arm64"]).map(parse_platform)
_descriptors = st.builds(
    Descriptor,
    media_type=_texts.filter(bool),
    digest=_some_digests,
    size=st.integers(0, 2**63 - 1),
)
_configs = st.builds(
    ImageConfig,
    platform=st.none() | _platforms,
    diff_ids=st.lists(_some_digests).map(tuple),
    created=_texts,
    environment=st.lists(_texts).map(tuple),
    entrypoint=st.lists(_texts).map(tuple),
    arguments=st.lists(_texts).map(tuple),
    working_directory=_texts,
    user=_texts,
    exposed_ports=st.lists(_texts, unique=True).map(sorted).map(tuple),
    volumes=st.lists(_texts, unique=True).map(sorted).map(tuple),
    labels=st.dictionaries(_texts, _texts),
    stop_signal=_texts,
)


@given(st.builds(ImageManifest, _descriptors, st.lists(_descriptors).map(tuple)))
def test_a_manifest_is_written_as_it_is_read(found: ImageManifest) -> None:
    assert read_manifest_or_index(write_manifest(found), OCI_MANIFEST) == found


@given(_configs)
def test_a_configuration_is_written_as_it_is_read(found: ImageConfig) -> None:
    assert read_config(write_config(found), len(found.diff_ids)) == found


@given(
    st.builds(
        replace,
        _descriptors,
        platform=st.none() | _platforms,
        annotations=st.dictionaries(_texts, _texts),
    )
)
def test_a_descriptor_is_written_as_it_is_read(found: Descriptor) -> None:
    document = json.dumps({"manifests": [descriptor_members(found)]}).encode()
    assert read_index(document) == ImageIndex((found,))
