from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import InvalidReferenceError
from layermanager.model import Digest
from layermanager.oci.reference import (
    FileReference,
    RegistryReference,
    Transport,
    parse_reference,
)

HEX = "ab" * 32
DIGEST = Digest(f"sha256:{HEX}")

_part = st.from_regex(r"[a-z0-9]+(?:(?:[._]|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True)
_registries = st.from_regex(
    r"(?:[a-z0-9]{1,8}\.[a-z]{2,4}|localhost|\[[0-9a-f]{0,4}::?[0-9a-f]{0,4}\])(?::[0-9]{1,5})?",
    fullmatch=True,
).filter(lambda registry: registry != "docker.io")
_tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
_digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(f"sha256:{raw.hex()}"))
_registry_references = st.builds(
    RegistryReference,
    registry=_registries,
    repository=st.lists(_part, min_size=1, max_size=3).map("/".join),
    tag=_tags,
    digest=st.none() | _digests,
)
_paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":\0"), min_size=1)
_file_references = st.builds(
    FileReference,
    transport=st.sampled_from([Transport.LAYOUT, Transport.LAYOUT_ARCHIVE]),
    path=_paths,
    name=st.just("") | st.from_regex(r"[A-Za-z0-9]+(?:[-._:@+/][A-Za-z0-9]+){0,3}", fullmatch=True),
).filter(lambda reference: "@sha" not in str(reference))


@given(_registry_references | _file_references)
def test_a_reference_is_written_as_it_is_read(reference: RegistryReference | FileReference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.url) == reference


@given(_file_references, _digests)
def test_what_is_in_the_same_file_is_read_again(reference: FileReference, digest: Digest) -> None:
    assert parse_reference(reference.at(digest).url) == reference.at(digest)


@given(st.text() | st.from_regex(r"[a-zA-Z0-9:/@._\[\]-]{0,40}", fullmatch=True))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReferenceError:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1"),
        ("registry:5000/app:1.2", "registry:5000/app:1.2"),
        ("registry.example.com/team/app", "registry.example.com/team/app:latest"),
        ("localhost/app:1", "localhost/app:1"),
        ("Registry/app:1", "Registry/app:1"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("docker://registry:5000/app:1.2", "registry:5000/app:1.2"),
        ("docker://debian", "docker.io/library/debian:latest"),
        ("docker:12", "docker.io/library/docker:12"),
        (f"app@sha256:{HEX}", f"docker.io/library/app@sha256:{HEX}"),
        (f"r.io/a/b:1@sha256:{HEX}", f"r.io/a/b:1@sha256:{HEX}"),
        ("docker-archive:/media/app.tar", "docker-archive:/media/app.tar"),
        (
            "docker-archive:/media/app.tar:app:1",
            "docker-archive:/media/app.tar:docker.io/library/app:1",
        ),
        ("oci:/srv/layout:registry/app:1.2", "oci:/srv/layout:registry/app:1.2"),
        (f"oci:/srv/layout@sha256:{HEX}", f"oci:/srv/layout@sha256:{HEX}"),
    ],
)
def test_what_is_left_out_is_filled_in_as_docker_does(text: str, meant: str) -> None:
    assert str(parse_reference(text)) == meant


def test_the_parts_of_a_reference_in_a_registry() -> None:
    assert parse_reference(f"registry:5000/team/app:1.2@{DIGEST}") == RegistryReference(
        "registry:5000", "team/app", "1.2", DIGEST
    )


def test_the_parts_of_a_reference_in_a_file() -> None:
    assert parse_reference("oci-archive:app.tar:v1") == FileReference(
        Transport.LAYOUT_ARCHIVE, "app.tar", "v1"
    )


def test_a_blob_has_an_address_beside_its_image() -> None:
    assert parse_reference("registry:5000/app:1").at(DIGEST).url == (
        f"docker://registry:5000/app@{DIGEST}"
    )
    assert parse_reference("oci:/srv/layout:1").at(DIGEST).url == f"oci:/srv/layout@{DIGEST}"


def test_a_relative_path_counts_from_a_directory() -> None:
    relative = FileReference(Transport.LAYOUT, "images/app", "1")
    assert str(relative.within("/srv")) == "oci:/srv/images/app:1"
    assert relative.within("/srv").within("/other") == relative.within("/srv")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a repository"),
        ("App", "not a repository, which is written in lower case: 'library/App'"),
        ("app:", "not a tag: ''"),
        (f"app:{'t' * 129}", "not a tag"),
        ("app@", "not a digest: ''"),
        ("app@sha256:short", "a sha256 digest has 64"),
        (f"app@md5:{HEX}", "digest algorithm 'md5' is not supported"),
        (HEX, "64 hex digits are no name"),
        ("registry:port/app", "not a registry: 'registry:port'"),
        ("-host.io/app", "not a registry: '-host.io'"),
        ("a//b", "not a repository"),
        ("https://registry/app", "not a registry"),
        (f"r.io/{'a' * 251}", "at most 255 characters"),
        ("oci:", "it names no file"),
        ("oci::1", "it names no file"),
        ("oci:/srv/layout:", "not the name of an image in a layout: ''"),
        ("oci:/srv/layout:a b", "not the name of an image in a layout: 'a b'"),
        ("docker-archive:/a.tar:App", "not a repository"),
        (f"oci:/srv/layout@md5:{HEX}", "digest algorithm"),
        ("app\0", "not a reference"),
        ("oci:/srv/\udcff", "not a reference"),
    ],
)
def test_what_is_no_reference_is_refused_with_its_reason(text: str, complaint: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        parse_reference(text)
    assert complaint in str(caught.value)
