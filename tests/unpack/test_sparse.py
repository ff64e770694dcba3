from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.model import Limits
from layermanager.testing.layers import LayerBuilder, header_block
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import TarReader

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.unpack.sparse import Segment

FORMATS = [
    ("gnu", "--format=gnu"),
    ("pax 0.0", "--format=pax --sparse-version=0.0"),
    ("pax 0.1", "--format=pax --sparse-version=0.1"),
    ("pax 1.0", "--format=pax --sparse-version=1.0"),
]


def read(tar: bytes, limits: Limits | None = None) -> list[tuple[bytes, bytes]]:
    """The names and the whole contents of the files in *tar*, holes filled with zeros."""
    reader = TarReader(ByteReader(iter([tar])), limits or Limits())
    files = []
    for entry in reader:
        content = b"".join(reader.content(entry))
        if entry.segments is not None:
            content = _filled(content, entry.segments, entry.file_size)
        assert len(content) == entry.file_size
        files.append((entry.path, content))
    return files


def _filled(content: bytes, segments: tuple[Segment, ...], file_size: int) -> bytes:
    whole = bytearray(file_size)
    at = 0
    for segment in segments:
        whole[segment.offset : segment.offset + segment.size] = content[at : at + segment.size]
        at += segment.size
    assert at == len(content)
    return bytes(whole)


def number(value: int) -> bytes:
    return b"%011o\0" % value


@pytest.mark.parametrize("options", [options for _, options in FORMATS], ids=dict(FORMATS))
@pytest.mark.parametrize("segments", [0, 1, 4, 5, 30, 60])
def test_reads_what_gnu_tar_writes(tmp_path: Path, options: str, segments: int) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for index in range(segments):
            file.seek(index * 65536 + 32768)
            file.write(b"%d" % index * 100)
        file.truncate(segments * 65536 + 100_000)
    if path.stat().st_blocks * 512 >= path.stat().st_size:
        pytest.skip("this file system keeps no holes")
    (tmp_path / "next").write_bytes(b"plain")
    command = ["tar", "--sparse", *options.split(), "-cf", "-", "sparse", "next"]
    tar = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    assert read(tar) == [(b"sparse", path.read_bytes()), (b"next", b"plain")]
    assert len(tar) < path.stat().st_size


def old_gnu(segments: bytes, *, real_size: int, size: int, extended: bytes = b"\0") -> bytes:
    rest = bytearray(167)
    rest[41 : 41 + len(segments)] = segments
    rest[137:138] = extended
    rest[138:150] = number(real_size)
    return header_block(b"s", b"S", size=number(size), magic=b"ustar  \0", rest=bytes(rest))


def test_an_old_gnu_map_is_extended_by_blocks() -> None:
    header = b"".join(number(at) + number(1) for at in (0, 10, 20, 30))
    first = b"".join(number(at) + number(1) for at in range(40, 250, 10)).ljust(504) + b"\1"
    second = number(250) + number(2)
    content = bytes(range(1, 28))
    tar = (
        old_gnu(header, real_size=300, size=27, extended=b"\1")
        + first.ljust(512, b"\0")
        + second.ljust(512, b"\0")
        + content.ljust(512, b"\0")
        + header_block(b"next")
    )
    (name, whole), (following, _) = read(tar)
    assert (name, following) == (b"s", b"next")
    assert len(whole) == 300
    assert (whole[0], whole[240], whole[250:253]) == (1, 25, b"\x1a\x1b\0")


@pytest.mark.parametrize(
    "tar",
    [
        old_gnu(number(0) + number(5), real_size=4, size=5) + bytes(512),
        old_gnu(number(0) + number(5), real_size=9, size=4) + bytes(512),
        old_gnu(number(9) + number(0) + number(5) + number(1), real_size=9, size=1) + bytes(512),
        old_gnu(number(0) + number(5) + number(4) + number(1), real_size=9, size=6) + bytes(512),
        old_gnu(number(0) + b"\xff" * 12, real_size=9, size=0) + bytes(512),
        old_gnu(b"\xff" * 12 + number(1), real_size=9, size=1) + bytes(512),
        old_gnu(b"not a number" + number(1), real_size=9, size=1) + bytes(512),
        old_gnu(number(0) + number(1), real_size=9, size=1, extended=b"\1"),
        old_gnu(number(0) + number(1), real_size=9, size=1, extended=b"\1") + bytes(100),
    ],
)
def test_malformed_old_gnu_maps_are_refused(tar: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(tar)


def test_old_gnu_maps_are_limited() -> None:
    block = b"\0" * 504 + b"\1" + bytes(7)
    tar = old_gnu(number(0) + number(1), real_size=9, size=1, extended=b"\1") + block * 100
    with pytest.raises(LimitExceededError, match="headerBytes: 4096"):
        read(tar, Limits(header_bytes=4096))


def in_pax(records: dict[str, str], content: bytes) -> bytes:
    builder = LayerBuilder().file("GNUSparseFile.0/s", content, pax=records)
    return builder.file("next", b"plain").tar()


def format_1_0(text: bytes, content: bytes = b"", size: str = "9") -> bytes:
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": size}
    return in_pax({**records, "GNU.sparse.name": "s"}, text + bytes(-len(text) % 512) + content)


def format_0_1(map_text: str, content: bytes = b"", size: str = "9") -> bytes:
    return in_pax(
        {"GNU.sparse.map": map_text, "GNU.sparse.size": size, "GNU.sparse.name": "s"}, content
    )


def test_pax_1_0_keeps_the_map_at_the_head_of_the_content() -> None:
    assert read(format_1_0(b"2\n1\n2\n5\n3\n", b"abcde")) == [
        (b"s", b"\0ab\0\0cde\0"),
        (b"next", b"plain"),
    ]
    many = b"100\n" + b"".join(b"%d\n1\n" % at for at in range(0, 100000, 1000))
    assert len(many) > 512
    (_, whole), _ = read(format_1_0(many, bytes(range(100, 200)), size="100000"))
    assert whole[99000] == 199


def test_pax_0_1_keeps_the_map_in_one_record() -> None:
    assert read(format_0_1("1,2,5,3", b"abcde"))[0] == (b"s", b"\0ab\0\0cde\0")
    assert read(format_0_1("9,0"))[0] == (b"s", bytes(9))


@pytest.mark.parametrize(
    "tar",
    [
        format_0_1("1,2,5", b"abcde"),
        format_0_1("1,2,5,x", b"ab"),
        format_0_1("1,,2", b"ab"),
        format_0_1("-1,2", b"ab"),
        format_0_1("0,2,1,2", b"abcd"),
        format_0_1("8,2", b"ab"),
        format_0_1("0,3", b"ab"),
        format_0_1("0,1", b"ab"),
        format_0_1("0,2", b"ab", size="x"),
        format_0_1("0,2", b"ab", size=""),
        format_1_0(b"1\n0\n", b""),
        format_1_0(b"x\n", b""),
        format_1_0(b"1\n0\n2\n", b"abc"),
        format_1_0(b"9" * 29 + b"\n", b""),
        format_1_0(b"1\n8\n2\n", b"ab"),
        format_1_0(b"1\n0\n2\n", b"ab", size=""),
        in_pax({"GNU.sparse.major": "2", "GNU.sparse.minor": "0"}, b""),
        in_pax({"GNU.sparse.major": "1"}, b""),
        in_pax({"GNU.sparse.offset": "0", "GNU.sparse.size": "9"}, b""),
    ],
)
def test_malformed_pax_maps_are_refused(tar: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(tar)


def test_pax_1_0_maps_are_limited() -> None:
    with pytest.raises(LimitExceededError, match="headerBytes: 4096"):
        read(format_1_0(b"9000\n" + b"1\n" * 5000), Limits(header_bytes=4096))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8), st.integers(0, 50))
def test_any_map_that_is_in_order_is_read(gaps: list[tuple[int, int]], hole: int) -> None:
    expected = bytearray()
    content = b""
    numbers: list[int] = []
    for gap, size in gaps:
        expected += bytes(gap)
        numbers += [len(expected), size]
        expected += b"x" * size
        content += b"x" * size
    expected += bytes(hole)
    size_text = str(len(expected))
    lines = [len(gaps), *numbers]
    text = b"".join(b"%d\n" % line for line in lines)
    assert read(format_1_0(text, content, size=size_text))[0] == (b"s", bytes(expected))
    if numbers:
        map_text = ",".join(map(str, numbers))
        assert read(format_0_1(map_text, content, size=size_text))[0] == (b"s", bytes(expected))
