from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest

from layermanager.testing.layers import (
    END_OF_ARCHIVE,
    LayerBuilder,
    build_package,
    compress,
    descriptor,
    desired,
    digest_of,
)


def members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        return archive.getmembers()


def test_members_come_in_the_order_of_the_calls() -> None:
    tar = (
        LayerBuilder()
        .directory(".")
        .directory("dev", mode=0o700)
        .file("dev/a", b"content", uid=7, gid=8)
        .symlink("dev/b", "a")
        .hardlink("dev/c", "dev/a")
        .character_device("dev/null", 1, 3)
        .block_device("dev/sda", 8, 0)
        .fifo("dev/pipe")
        .whiteout("dev/gone")
        .opaque("dev")
        .tar()
    )

    found = members(tar)

    assert [(one.name, one.type) for one in found] == [
        (".", tarfile.DIRTYPE),
        ("dev", tarfile.DIRTYPE),
        ("dev/a", tarfile.REGTYPE),
        ("dev/b", tarfile.SYMTYPE),
        ("dev/c", tarfile.LNKTYPE),
        ("dev/null", tarfile.CHRTYPE),
        ("dev/sda", tarfile.BLKTYPE),
        ("dev/pipe", tarfile.FIFOTYPE),
        ("dev/.wh.gone", tarfile.REGTYPE),
        ("dev/.wh..wh..opq", tarfile.REGTYPE),
    ]
    assert found[1].mode == 0o700
    assert (found[2].uid, found[2].gid, found[2].size) == (7, 8, 7)
    assert [found[3].linkname, found[4].linkname] == ["a", "dev/a"]
    assert (found[5].devmajor, found[5].devminor) == (1, 3)


@pytest.mark.parametrize(
    ("mtime_ns", "seconds"),
    [(1_500_000_001, "1.500000001"), (-1, "-0.000000001"), (-1_250_000_000, "-1.250000000")],
)
def test_times_are_exact(mtime_ns: int, seconds: str) -> None:
    [member] = members(LayerBuilder().file("a", mtime_ns=mtime_ns).tar())

    assert member.pax_headers["mtime"] == seconds


def test_names_and_attributes_may_be_any_bytes() -> None:
    tar = LayerBuilder().file(b"\xff\xfe", xattrs={"user.a": b"\0\xff="}).tar()

    [member] = members(tar)

    assert member.name.encode("utf-8", "surrogateescape") == b"\xff\xfe"
    value = member.pax_headers["SCHILY.xattr.user.a"]
    assert value.encode("utf-8", "surrogateescape") == b"\0\xff="


def test_pax_records_may_contradict_the_header() -> None:
    [member] = members(LayerBuilder().file("a", pax={"path": "../b"}).tar())

    assert member.name == "../b"


def test_a_tar_may_be_of_another_format() -> None:
    tar = LayerBuilder(tarfile.GNU_FORMAT).file("n" * 300).tar()

    assert b"././@LongLink" in tar
    assert members(tar)[0].name == "n" * 300


def test_raw_bytes_and_broken_ends() -> None:
    builder = LayerBuilder().file("a").raw(b"\xff" * 512)

    assert builder.members().endswith(b"\xff" * 512)
    assert builder.tar() == builder.members() + END_OF_ARCHIVE


def test_a_header_made_by_hand_may_lie_about_the_size() -> None:
    info = tarfile.TarInfo("a")
    info.size = 10**9

    tar = LayerBuilder().member(info, b"short").tar()

    assert len(tar) == 2 * 512 + len(END_OF_ARCHIVE)


def test_compresses() -> None:
    assert gzip.decompress(compress(b"data", "gzip")) == b"data"
    assert compress(b"data", "zstd").startswith(b"\x28\xb5\x2f\xfd")
    assert compress(b"data", "none") == b"data"


def test_a_package_holds_its_descriptor_and_its_blob() -> None:
    package = build_package(b"blob")

    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        assert archive.getnames() == ["layer.json", hashlib.sha256(b"blob").hexdigest()]
        content = archive.extractfile("layer.json")
        assert content is not None
        assert json.load(content) == {
            "mediaType": "application/vnd.aos.image.layer.v1.tar+gzip",
            "digest": digest_of(b"blob"),
            "size": 4,
        }


def test_a_descriptor_can_be_wrong() -> None:
    assert json.loads(descriptor(b"blob", {"size": 9, "digest": None})) == {
        "mediaType": "application/vnd.aos.image.layer.v1.tar+gzip",
        "size": 9,
    }


def test_the_desired_entry_of_a_package_and_of_a_bare_blob() -> None:
    package = build_package(b"blob")

    layer = desired(b"blob", "file:///p", package=package)

    assert layer.digest == digest_of(b"blob")
    assert layer.sha256 == hashlib.sha3_256(package).digest()
    assert layer.size == len(package)
    assert desired(b"blob", "file:///p") == replace(layer, sha256=b"", size=4)
