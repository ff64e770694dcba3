from __future__ import annotations

import json

import pytest

from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    LayerError,
    LimitExceededError,
    PackageError,
)
from layermanager.model import Digest, Limits
from layermanager.testing.layers import (
    LayerBuilder,
    build_package,
    compress,
    descriptor,
    digest_of,
)
from layermanager.unpack.package import PackageReader

BLOB = compress(LayerBuilder().file("motd", b"hello " * 1000).tar(), "gzip")
NAME = digest_of(BLOB).encoded
DESCRIPTOR = descriptor(BLOB)


def read(package: bytes, limits: Limits | None = None, *, digest: Digest | None = None) -> bytes:
    """The blob in *package*."""
    return b"".join(reader(package, limits, digest=digest).blob())


def reader(
    package: bytes, limits: Limits | None = None, *, digest: Digest | None = None
) -> PackageReader:
    chunks = (package[at : at + 1000] for at in range(0, len(package), 1000))
    return PackageReader(chunks, digest or digest_of(BLOB), limits or Limits())


@pytest.mark.parametrize(
    "package",
    [
        LayerBuilder().file("layer.json", DESCRIPTOR).file(NAME, BLOB),
        LayerBuilder().file(NAME, BLOB).file("layer.json", DESCRIPTOR),
        LayerBuilder().directory("./").file("./layer.json", DESCRIPTOR).file("./" + NAME, BLOB),
        LayerBuilder().directory(".").file("/layer.json", DESCRIPTOR).file(".//" + NAME, BLOB),
    ],
)
def test_the_members_may_come_in_any_order(package: LayerBuilder) -> None:
    assert read(package.tar()) == BLOB
    assert read(compress(package.tar(), "gzip")) == BLOB
    assert read(package.members()) == BLOB


@pytest.mark.parametrize("os_version", ["6.1.0", ""])
def test_the_descriptor_may_tell_the_version_of_the_system(os_version: str) -> None:
    package = reader(build_package(BLOB, {"platform": {"os.version": os_version}}))
    assert b"".join(package.blob()) == BLOB
    assert package.os_version == os_version


def test_other_members_of_the_descriptor_are_no_matter() -> None:
    assert read(build_package(BLOB, {"annotations": {"a": "b"}, "mediaType": None})) == BLOB


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (LayerBuilder(), "holds no layer.json"),
        (LayerBuilder().file("layer.json", DESCRIPTOR), f"holds no blob {NAME}"),
        (LayerBuilder().file(NAME, BLOB), "holds no layer.json"),
        (
            LayerBuilder().file("layer.json", DESCRIPTOR).file("layer.json", DESCRIPTOR),
            "holds layer.json twice",
        ),
        (LayerBuilder().file(NAME, BLOB).file(NAME, BLOB), "holds the blob twice"),
        (LayerBuilder().file("layer.json", DESCRIPTOR).file("extra"), "unknown member extra"),
        (LayerBuilder().file("evil\n\x1b[2J"), r"unknown member evil\\n\\x1b\[2J in"),
        (LayerBuilder().directory("sub"), "unknown member sub"),
        (LayerBuilder().file("."), r"unknown member \."),
        (LayerBuilder().file("../layer.json", DESCRIPTOR), "unknown member"),
        (LayerBuilder().symlink("layer.json", "/etc/passwd"), "layer.json in the package is no"),
        (LayerBuilder().hardlink(NAME, "layer.json"), f"{NAME} in the package is no plain file"),
        (LayerBuilder().symlink(NAME, "/etc/passwd"), f"{NAME} in the package is no plain file"),
        (LayerBuilder().directory(NAME), f"{NAME}/ in the package is no plain file"),
        (LayerBuilder().file("layer.json", b" " * 70_000), "layer.json is larger than 65536"),
        (LayerBuilder().file("layer.json", b"{"), "layer.json: "),
        (LayerBuilder().file("layer.json", b"[]"), "layer.json: "),
        (LayerBuilder().file("layer.json", b"{}"), "layer.json: .*digest"),
        (LayerBuilder().file("layer.json", b"\xff"), "layer.json: "),
        (LayerBuilder().file("layer.json", b"[" * 60_000), "layer.json: "),
    ],
)
def test_what_is_no_package_is_refused_by_name(package: LayerBuilder, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        read(package.tar())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": None}, "size: is missing"),
        ({"size": "1"}, "size"),
        ({"size": -1}, "size"),
        ({"platform": []}, "platform"),
        ({"platform": {"os.version": 1}}, r"os\.version"),
        ({"digest": 1}, "digest"),
    ],
)
def test_a_descriptor_that_is_none_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PackageError, match=rf"layer\.json: .*{message}"):
        read(build_package(BLOB, changes))


def test_a_sparse_blob_is_refused() -> None:
    sparse = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}
    with pytest.raises(PackageError, match="no plain file"):
        read(LayerBuilder().file(NAME, b"x", pax=sparse).tar())


def test_the_descriptor_of_another_layer_is_refused_before_its_blob_is_read() -> None:
    other = digest_of(b"another")
    package = reader(build_package(BLOB, {"digest": other}))
    with pytest.raises(IntegrityError) as caught:
        next(package.blob())
    assert (caught.value.expected, caught.value.found) == (digest_of(BLOB), other)


def test_another_size_than_the_descriptor_says_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        read(build_package(BLOB, {"size": 5}))
    assert str(len(BLOB)) in caught.value.expected
    assert caught.value.found == "5"


def test_errors_of_the_outer_archive_say_so() -> None:
    package = build_package(BLOB)
    with pytest.raises(ArchiveError, match=r"^the package: "):
        read(package[: len(package) // 2])
    with pytest.raises(ArchiveError, match=r"^the package: "):
        read(compress(package, "gzip")[:-20])
    with pytest.raises(LimitExceededError, match=r"^the package: "):
        read(package, Limits(entries=1))


def test_truncated_anywhere() -> None:
    package = LayerBuilder().file(NAME, BLOB).file("layer.json", DESCRIPTOR).tar()
    for size in range(0, len(package) - 1024, 37):
        with pytest.raises(LayerError):
            read(package[:size])
    outer = compress(package, "gzip")
    for size in range(0, len(outer), 7):
        with pytest.raises(LayerError):
            read(outer[:size])


def test_all_of_the_package_is_read_and_checked() -> None:
    # GNU tar fills its last record with zeros, and the checksum of gzip comes after them.
    padded = build_package(BLOB) + bytes(1_000_000)
    chunks = iter([padded[:100_000], padded[100_000:]])
    assert b"".join(PackageReader(chunks, digest_of(BLOB), Limits()).blob()) == BLOB
    assert next(chunks, None) is None
    damaged = bytearray(compress(padded, "gzip"))
    damaged[-5] ^= 1
    with pytest.raises(ArchiveError, match=r"^the package: damaged gzip data"):
        read(bytes(damaged))


def test_the_descriptor_that_the_builder_writes_is_json() -> None:
    assert json.loads(DESCRIPTOR)["digest"] == digest_of(BLOB)
