from __future__ import annotations

import io
import subprocess
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ArchiveError, LayerError, LimitExceededError
from layermanager.model import Limits
from layermanager.testing.layers import END_OF_ARCHIVE, LayerBuilder, header_block
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import Entry, EntryKind, TarReader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ZERO_BLOCK = bytes(512)


def read(tar: bytes, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    """All entries of *tar* with their contents."""
    reader = TarReader(ByteReader(iter([tar])), limits or Limits())
    return [(entry, b"".join(reader.content(entry))) for entry in reader]


def only(tar: bytes) -> Entry:
    ((entry, _),) = read(tar)
    return entry


def pax(records: Iterable[tuple[bytes, bytes]], typeflag: bytes = b"x") -> bytes:
    """A PAX header of *records* in any order, also with doubles."""
    data = b"".join(record(key, value) for key, value in records)
    return extension(typeflag, data)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest)
    while size != len(str(size)) + len(rest):
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def extension(typeflag: bytes, data: bytes) -> bytes:
    header = header_block(b"././@Extension", typeflag, size=b"%011o\0" % len(data))
    return header + data + bytes(-len(data) % 512)


# What a header block says


def test_reads_all_fields() -> None:
    tar = (
        LayerBuilder(tarfile.USTAR_FORMAT)
        .file("etc/motd", b"hello", mode=0o4755, uid=1000, gid=100, mtime_ns=1_700_000_000 * 10**9)
        .tar()
    )
    assert read(tar) == [
        (
            Entry(
                path=b"etc/motd",
                kind=EntryKind.FILE,
                mode=0o4755,
                uid=1000,
                gid=100,
                size=5,
                mtime_ns=1_700_000_000 * 10**9,
                link=b"",
                device=(0, 0),
                xattrs={},
                segments=None,
                file_size=5,
            ),
            b"hello",
        )
    ]


def test_reads_all_kinds() -> None:
    tar = (
        LayerBuilder()
        .directory("d")
        .symlink("s", "../target")
        .hardlink("h", "d/f")
        .character_device("c", 4095, 1048575)
        .block_device("b", 8, 1)
        .fifo("p")
        .tar()
    )
    entries = [entry for entry, _ in read(tar)]
    assert [(entry.kind, entry.link, entry.device) for entry in entries] == [
        (EntryKind.DIRECTORY, b"", (0, 0)),
        (EntryKind.SYMLINK, b"../target", (0, 0)),
        (EntryKind.HARD_LINK, b"d/f", (0, 0)),
        (EntryKind.CHARACTER_DEVICE, b"", (4095, 1048575)),
        (EntryKind.BLOCK_DEVICE, b"", (8, 1)),
        (EntryKind.FIFO, b"", (0, 0)),
    ]


def test_the_prefix_of_ustar_comes_before_the_name() -> None:
    assert only(header_block(b"name", prefix=b"some/where")).path == b"some/where/name"
    full = header_block(b"n" * 100, prefix=b"p" * 155)
    assert only(full).path == b"p" * 155 + b"/" + b"n" * 100


def test_the_prefix_of_star_is_shorter() -> None:
    rest = b"p" * 131 + b"00000000001\0" + b"00000000002\0" + bytes(8) + b"tar\0"
    assert only(header_block(b"name", rest=rest)).path == b"p" * 131 + b"/name"


def test_gnu_headers_have_no_prefix() -> None:
    # GNU tar keeps times in that place.
    block = header_block(b"name", magic=b"ustar  \0", prefix=b"14532105612\0")
    assert only(block).path == b"name"


def test_headers_from_before_posix() -> None:
    v7 = {"magic": bytes(8), "prefix": b"junk"}
    assert only(header_block(b"file", b"\0", **v7)).kind is EntryKind.FILE
    assert only(header_block(b"file", b"\0", **v7)).path == b"file"
    assert only(header_block(b"directory/", b"\0", **v7)).kind is EntryKind.DIRECTORY


def test_a_contiguous_file_is_a_file() -> None:
    block = header_block(b"name", b"7", size=b"00000000003\0")
    ((entry, content),) = read(block + b"abc".ljust(512, b"\0"))
    assert (entry.kind, content) == (EntryKind.FILE, b"abc")


def test_binary_numbers() -> None:
    block = header_block(
        b"name",
        b"5",
        uid=b"\x80\0\0\0\xff\xff\xff\xfe",
        gid=b"\x80\0\0\0\0\x20\0\0",
        mtime=b"\xff" * 11 + b"\xfe",
    )
    entry = only(block)
    assert (entry.uid, entry.gid, entry.mtime_ns) == (2**32 - 2, 2**21, -2 * 10**9)


def test_content_longer_than_octal_digits_can_say() -> None:
    block = header_block(b"huge", size=b"\x80" + bytes(5) + (2**40).to_bytes(6, "big"))
    reader = TarReader(ByteReader(iter([block])), Limits())
    assert next(iter(reader)).size == 2**40


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_only_files_have_content(kind: bytes) -> None:
    # As Go's archive/tar has it: what a size says of another kind is not followed by content.
    tar = header_block(b"a", kind, size=b"00000001000\0", linkname=b"t") + header_block(b"b")
    assert [entry.path for entry, _ in read(tar)] == [b"a", b"b"]


@pytest.mark.parametrize("typeflag", [b"N", b"X", b"A", b"\xff", b" "])
def test_an_unknown_kind_is_refused_by_name(typeflag: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"^odd: unknown kind of tar entry"):
        read(header_block(b"odd", typeflag))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"size": b"\xff" * 12}, "impossible size -1"),
        ({"size": b"\x80" + b"\xff" * 11}, "impossible size"),
        ({"size": b"0000000000x\0"}, "no number"),
        ({"uid": b"\xff" * 8}, "impossible owner -1"),
        ({"gid": b"\x80\0\0\0\xff\xff\xff\xff"}, "impossible owner"),
        ({"mode": b"rwxr-xr-"}, "no number"),
    ],
)
def test_impossible_numbers_are_refused(fields: dict[str, bytes], what: str) -> None:
    with pytest.raises(ArchiveError, match=what):
        read(header_block(b"name", **fields))


def test_impossible_devices_are_refused() -> None:
    with pytest.raises(ArchiveError, match="impossible device 4096:0"):
        read(header_block(b"name", b"3", devmajor=b"0010000\0"))


# Checksums


def test_checksums_of_signed_bytes_are_accepted() -> None:
    block = bytearray(header_block(b"\xff\xfe name"))
    unsigned = sum(block[:148] + block[156:]) + 8 * ord(" ")
    block[148:156] = b"%06o\0 " % (unsigned - 2 * 256)
    assert only(bytes(block)).path == b"\xff\xfe name"


@pytest.mark.parametrize("at", [0, 99, 100, 300, 511])
def test_a_wrong_checksum_is_refused(at: int) -> None:
    block = bytearray(header_block(b"name"))
    block[at] ^= 1
    with pytest.raises(ArchiveError, match="wrong header checksum"):
        read(bytes(block))


def test_no_tar_at_all() -> None:
    with pytest.raises(ArchiveError, match=r"no tar, or damaged|no number"):
        read(b"#!/bin/sh\n" * 100)


# GNU's long names


def test_long_names_and_links_of_gnu() -> None:
    tar = LayerBuilder(tarfile.GNU_FORMAT).symlink("n" * 300, "t" * 400).file("next").tar()
    first, second = (entry for entry, _ in read(tar))
    assert (first.path, first.link) == (b"n" * 300, b"t" * 400)
    assert (second.path, second.link) == (b"next", b"")


# PAX records


def test_records_speak_of_the_next_entry_only() -> None:
    records = [
        (b"path", b"other/\xff"),
        (b"linkpath", b"else/\xfe"),
        (b"mtime", b"-1.25"),
        (b"uid", b"4294967294"),
        (b"gid", b"70000"),
        (b"hdrcharset", b"BINARY"),
        (b"comment", b"nothing"),
    ]
    tar = pax(records) + header_block(b"a", b"2", linkname=b"b") + header_block(b"second")
    first, second = (entry for entry, _ in read(tar))
    assert (first.path, first.link) == (b"other/\xff", b"else/\xfe")
    assert (first.mtime_ns, first.uid, first.gid) == (-1_250_000_000, 4294967294, 70000)
    assert (second.path, second.link, second.mtime_ns, second.uid) == (b"second", b"", 0, 0)


def test_the_size_in_a_record_is_the_size() -> None:
    content = b"abc".ljust(512, b"\0")
    tar = pax([(b"size", b"3")]) + header_block(b"a") + content + header_block(b"b")
    assert [(entry.path, content) for entry, content in read(tar)] == [(b"a", b"abc"), (b"b", b"")]


def test_extended_attributes_are_any_bytes() -> None:
    xattrs = {"user.empty": b"", "security.capability": bytes(range(256)), "user.x": b"\n=\n"}
    tar = LayerBuilder().file("a", xattrs=xattrs).file("b").tar()
    first, second = (entry for entry, _ in read(tar))
    assert first.xattrs == {name.encode(): value for name, value in xattrs.items()}
    assert second.xattrs == {}


def test_global_records_speak_of_all_entries_after_them() -> None:
    tar = (
        header_block(b"before")
        + pax([(b"uid", b"7"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.g", b"1")], b"g")
        + header_block(b"after")
        + pax([(b"uid", b"8")])
        + header_block(b"overridden")
        + pax([(b"uid", b"")])
        + header_block(b"taken back", uid=b"0000011\0")
        + pax([(b"uid", b"")], b"g")
        + header_block(b"at the end")
    )
    assert [(entry.uid, entry.mtime_ns, dict(entry.xattrs)) for entry, _ in read(tar)] == [
        (0, 0, {}),
        (7, 1_500_000_000, {b"user.g": b"1"}),
        (8, 1_500_000_000, {b"user.g": b"1"}),
        (9, 1_500_000_000, {b"user.g": b"1"}),
        (0, 1_500_000_000, {b"user.g": b"1"}),
    ]


def test_a_later_record_wins() -> None:
    tar = pax([(b"path", b"first"), (b"path", b"second")]) + header_block(b"name")
    assert only(tar).path == b"second"


@pytest.mark.parametrize(
    "data",
    [
        b"7 a=b\n",  # too long
        b"5 a=b\n",  # too short
        b"x a=b\n",
        b" a=b\n",
        b"6a=bc\n",
        b"6 a=bc",  # no newline in that place
        b"5 ab\n",  # no equals sign
        b"4 =\n",  # no key
        b"0 a=b\n",
        b"-6 a=b\n",
        b"2 ",
        b"9" * 30 + b" a=b\n",
        record(b"path", b"a\0b"),
        record(b"linkpath", b"a\0b"),
        record(b"a\0b", b"value"),
        record(b"mtime", b"soon"),
        record(b"uid", b"-1"),
        record(b"size", b"1k"),
        record(b"uid", b"4294967295"),
        record(b"size", b"9223372036854775808"),
    ],
)
def test_malformed_records_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(extension(b"x", data) + header_block(b"name"))


@pytest.mark.parametrize("typeflag", [b"x", b"L", b"K"])
def test_an_extended_header_without_its_entry_is_refused(typeflag: bytes) -> None:
    data = record(b"path", b"name") if typeflag == b"x" else b"name\0"
    for end in (b"", ZERO_BLOCK, END_OF_ARCHIVE):
        with pytest.raises(ArchiveError, match="ends after an extended header"):
            read(extension(typeflag, data) + end)


# The end


def test_the_end_of_the_archive() -> None:
    one = header_block(b"name")
    for end in (b"", ZERO_BLOCK, END_OF_ARCHIVE, END_OF_ARCHIVE + b"not read any more"):
        assert only(one + end).path == b"name"
    assert read(END_OF_ARCHIVE) == []
    assert read(b"") == []


def test_what_follows_the_end_stays_in_the_reader() -> None:
    reader = ByteReader(iter([header_block(b"name"), END_OF_ARCHIVE, b"trailing", b" bytes"]))
    assert len(list(TarReader(reader, Limits()))) == 1
    assert b"".join(reader.rest()) == b"trailing bytes"


def test_a_lone_zero_block_is_refused() -> None:
    with pytest.raises(ArchiveError, match="lone zero block"):
        read(header_block(b"a") + ZERO_BLOCK + header_block(b"b"))


def small_archive() -> tuple[bytes, set[int]]:
    """A tar with one of each, and the offsets at which it could have ended."""
    parts = [
        header_block(b"directory/", b"5"),
        pax([(b"path", b"long"), (b"mtime", b"1.5")])
        + header_block(b"file", size=b"00000000003\0")
        + b"abc".ljust(512, b"\0"),
        extension(b"L", b"n" * 200) + header_block(b"n"),
        pax([(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9")])
        + header_block(b"sparse", size=b"00000000001\0")
        + b"x".ljust(512, b"\0"),
    ]
    ends = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    tar = b"".join(parts)
    return tar + END_OF_ARCHIVE, ends | {len(tar) + 512}


def test_truncated_anywhere() -> None:
    tar, ends = small_archive()
    whole = [entry.path for entry, _ in read(tar)]
    for size in range(len(tar)):
        if size in ends:
            paths = [entry.path for entry, _ in read(tar[:size])]
            assert paths == whole[: len(paths)]
        else:
            with pytest.raises(ArchiveError):
                read(tar[:size])


def test_truncation_is_noticed_when_content_is_passed_over() -> None:
    tar = header_block(b"file", size=b"00000001000\0") + bytes(511)
    with pytest.raises(ArchiveError, match="file: the tar ends within this entry"):
        list(TarReader(ByteReader(iter([tar])), Limits()))
    reader = TarReader(ByteReader(iter([tar])), Limits())
    with pytest.raises(ArchiveError, match="file: the tar ends within this entry"):
        reader.whole_content(next(iter(reader)))


# Limits


def test_the_number_of_entries_is_limited() -> None:
    tar = header_block(b"a") + header_block(b"b") + header_block(b"c")
    assert len(read(tar, Limits(entries=3))) == 3
    with pytest.raises(LimitExceededError, match="more than 2 entries"):
        read(tar, Limits(entries=2))


def test_an_extended_header_of_a_negative_size_is_refused() -> None:
    with pytest.raises(ArchiveError, match="impossible size -1"):
        read(header_block(b"", b"x", size=b"\xff" * 12))


def test_records_of_global_headers_are_few() -> None:
    few = pax([(b"%d" % key, b"v") for key in range(100)], b"g")
    assert len(read(few + header_block(b"a"))) == 1
    with pytest.raises(LimitExceededError, match="more than 100 records in global headers"):
        read(few + pax([(b"comment", b"v")], b"g") + header_block(b"a"))


@pytest.mark.parametrize(
    "headers",
    [
        pax([(b"a", b"v" * 2500)], b"g") + pax([(b"b", b"v" * 2500)], b"g"),
        pax([(b"a" * 2500, b"v")], b"g") + pax([(b"b" * 2500, b"v")], b"g"),
        pax([(b"GNU.sparse.map", b"1,1," * 1100)], b"g"),
        pax([(b"SCHILY.xattr.user.a", b"v" * 5000)], b"g"),
    ],
)
def test_global_headers_are_small(headers: bytes) -> None:
    """All entries pay for them, however little each takes in the archive."""
    with pytest.raises(LimitExceededError, match="global headers of more than 4096 bytes"):
        read(headers + header_block(b"name"))


@pytest.mark.parametrize(
    "headers",
    [
        extension(b"L", b"n" * 5000),
        extension(b"K", b"n" * 5000),
        pax([(b"comment", b"c" * 5000)]),
        pax([(b"comment", b"c" * 5000)], b"g"),
        pax([(b"comment", b"c")]) * 10,
        header_block(b"", b"x", size=b"77777777777\0"),
    ],
)
def test_extended_headers_are_limited(headers: bytes) -> None:
    with pytest.raises(LimitExceededError, match="headerBytes"):
        read(headers + header_block(b"name"), Limits(header_bytes=4096))


def test_extended_attributes_are_limited() -> None:
    tar = LayerBuilder().file("name", xattrs={"user.a": b"v" * 94}).tar()
    assert read(tar, Limits(xattr_bytes=100))
    with pytest.raises(LimitExceededError, match=r"name: .*xattrBytes: 99"):
        read(tar, Limits(xattr_bytes=99))


# Properties


@dataclass(frozen=True)
class Member:
    name: bytes
    content: bytes
    mtime_ns: int
    mode: int
    owner: int
    xattrs: dict[str, bytes]


NAMES = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and not name.endswith(b"/")
)
MEMBERS = st.builds(
    Member,
    name=NAMES,
    content=st.binary(max_size=2000),
    mtime_ns=st.integers(-(10**18), 10**19),
    mode=st.integers(0, 0o7777),
    owner=st.integers(0, 2**32 - 2),
    xattrs=st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(max_size=50)),
)


@given(st.lists(MEMBERS, max_size=5))
def test_what_tarfile_writes_as_pax_reads_back(members: list[Member]) -> None:
    builder = LayerBuilder()
    for member in members:
        builder.file(
            member.name,
            member.content,
            mode=member.mode,
            uid=member.owner,
            gid=member.owner,
            mtime_ns=member.mtime_ns,
            xattrs=member.xattrs,
        )
    assert [
        Member(
            entry.path,
            content,
            entry.mtime_ns,
            entry.mode,
            entry.uid,
            {name.decode(): value for name, value in entry.xattrs.items()},
        )
        for entry, content in read(builder.tar())
    ] == members


@given(st.sampled_from([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]), st.lists(MEMBERS, max_size=5))
def test_what_tarfile_writes_in_other_formats_reads_back(
    tar_format: Literal[0, 1], members: list[Member]
) -> None:
    is_gnu = tar_format == tarfile.GNU_FORMAT
    builder = LayerBuilder(tar_format)
    expected = []
    for member in members:
        name = member.name if is_gnu else member.name[:100].rstrip(b"/") or b"x"
        owner = member.owner if is_gnu else member.owner % 2**21
        seconds = member.mtime_ns // 10**9 if is_gnu else abs(member.mtime_ns) // 10**9 % 2**33
        builder.file(
            name, member.content, mode=member.mode, uid=owner, gid=owner, mtime_ns=seconds * 10**9
        )
        expected.append((name, member.content, member.mode, owner, seconds * 10**9))
    assert [
        (entry.path, content, entry.mode, entry.uid, entry.mtime_ns)
        for entry, content in read(builder.tar())
    ] == expected


@given(st.binary(max_size=3000), st.lists(st.integers(1, 700), min_size=1, max_size=10))
def test_any_bytes_are_read_or_refused(data: bytes, sizes: list[int]) -> None:
    chunks = iter([data[at : at + sizes[0]] for at in range(0, len(data), sizes[0])])
    reader = TarReader(ByteReader(chunks), Limits())
    with suppress(LayerError):
        for entry in reader:
            b"".join(reader.content(entry))


@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    """Damage behind a right checksum, since that is what an attacker would write."""
    tar = bytearray(small_archive()[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at] = data.draw(st.integers(0, 255))
    for block in range(0, len(tar), 512):
        if tar[block + 257 : block + 262] == b"ustar":
            tar[block + 148 : block + 156] = b" " * 8
            checksum = sum(tar[block : block + 512])
            tar[block + 148 : block + 156] = b"%06o\0 " % checksum
    with suppress(LayerError):
        read(bytes(tar))


@given(st.binary(min_size=512, max_size=512))
def test_the_quick_checksum_agrees_with_the_sum(block: bytes) -> None:
    header = bytearray(block)
    unsigned = sum(header[:148] + header[156:]) + 8 * ord(" ")
    header[148:156] = b"%06o\0 " % unsigned
    header[156] = ord("N")
    header[148:156] = b"%06o\0 " % (sum(header[:148] + header[156:]) + 8 * ord(" "))
    with pytest.raises(ArchiveError, match="unknown kind"):
        read(bytes(header))
    wrong = bytes(header[:148]) + b"%06o\0 " % (unsigned + 70_000) + bytes(header[156:])
    with pytest.raises(ArchiveError, match="wrong header checksum"):
        read(wrong)


def test_python_agrees_with_the_builders_of_these_tests() -> None:
    tar, _ = small_archive()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = [member.name.encode() for member in archive]
    assert names == [entry.path.rstrip(b"/") for entry, _ in read(tar)]


# GNU tar's own kinds


def test_a_volume_label_is_passed_over() -> None:
    label = header_block(b"label", b"V", size=bytes(12))
    assert only(label + header_block(b"a")).path == b"a"
    with_content = header_block(b"label", b"V", size=b"00000000003\0") + b"abc".ljust(512, b"\0")
    assert only(with_content + header_block(b"a")).path == b"a"


def test_what_is_said_of_a_label_is_not_said_of_the_next_entry() -> None:
    label = extension(b"L", b"n" * 150 + b"\0") + header_block(b"label", b"V")
    assert only(label + header_block(b"a")).path == b"a"
    assert read(label + ZERO_BLOCK * 2) == []


@pytest.mark.parametrize(("size", "match"), [(b"\xff" * 12, "impossible"), (b"777\0", "within")])
def test_a_volume_label_that_is_none(size: bytes, match: str) -> None:
    with pytest.raises(ArchiveError, match=match):
        read(header_block(b"label", b"V", size=size))


def test_the_list_of_files_of_an_incremental_directory_is_passed_over() -> None:
    names = b"Yfile\0\0"
    directory = header_block(b"d/", b"D", size=b"%011o\0" % len(names))
    tar = directory + names.ljust(512, b"\0") + header_block(b"d/file")
    reader = TarReader(ByteReader(iter([tar])), Limits())
    assert [(entry.path, entry.kind) for entry in reader] == [
        (b"d/", EntryKind.DIRECTORY),
        (b"d/file", EntryKind.FILE),
    ]


def test_the_continuation_of_a_volume_is_refused_by_name() -> None:
    with pytest.raises(ArchiveError, match=r"^odd: the continuation of a file in another volume"):
        read(header_block(b"odd", b"M"))


@pytest.mark.parametrize(
    ("options", "kinds"), [(["--label=backup"], b"V0"), (["--listed-incremental"], b"D0")]
)
def test_archives_by_gnu_tar(tmp_path: Path, options: list[str], kinds: bytes) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"content")
    option, *rest = options[0].split("=")
    value = rest[0] if rest else str(tmp_path / "snapshot")
    command = ["tar", "--create", "--format=gnu", f"{option}={value}", "--file=-", "d"]
    if kinds.startswith(b"V"):
        command[-1] = "d/file"
    tar = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    assert bytes([tar[156]]) == kinds[:1]
    found = {entry.path: content for entry, content in read(tar)}
    assert found[b"d/file"] == b"content"
    assert set(found) <= {b"d/", b"d/file"}


# Owners that C programs take for signed numbers


@pytest.mark.parametrize(
    ("owner", "expected"), [(-2, 2**32 - 2), (-5, 2**32 - 5), (-(2**31), 2**31)]
)
def test_negative_owners_wrap_around(owner: int, expected: int) -> None:
    field = owner.to_bytes(8, "big", signed=True)
    assert (only(header_block(b"f", uid=field, gid=field)).uid,) == (expected,)
    said = pax([(b"uid", b"%d" % owner), (b"gid", b"%d" % owner)]) + header_block(b"f")
    assert (only(said).uid, only(said).gid) == (expected, expected)


@pytest.mark.parametrize("owner", [-1, -(2**31) - 1])
def test_owners_that_there_cannot_be(owner: int) -> None:
    with pytest.raises(ArchiveError, match="impossible owner"):
        only(header_block(b"f", uid=owner.to_bytes(8, "big", signed=True)))
