from __future__ import annotations

import base64
import gzip
import io
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import assert_linear
from layermanager.errors import LimitExceededError, StoreError
from layermanager.model import Limits
from layermanager.unpack import index as module
from layermanager.unpack.index import (
    IMPLIED,
    Attributes,
    IndexEntry,
    IndexWriter,
    Occurrence,
    device_keywords,
    file_keywords,
    link_keywords,
    read_index,
    read_outline,
)
from layermanager.unpack.streams import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HEADER: Final = b"#mtree v2.0, layermanager index 1\n"
SHA256: Final = "ab" * 32
FILE: Final = Attributes(0o644, (0, 0), 1_700_000_000_000_000_001, {})
HOLDER: Final = b"./f type=file mode=0644 uid=0 gid=0 time=1.000000000"
SIZED: Final = b" size=1 sha256digest=" + SHA256.encode()


class Draft:
    """An index that is being written."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._file = os.memfd_create("index")
        self.writer = IndexWriter(self._file, limits or Limits())

    def file(self, path: bytes, size: int = 1) -> None:
        self.writer.add(path, b"file", FILE, file_keywords(size, SHA256))

    def finish(self) -> bytes:
        """Complete it; what is in the file."""
        self.writer.finish()
        with os.fdopen(self._file, "rb") as file:
            file.seek(0)
            return file.read()


def entries(data: bytes, limits: Limits | None = None) -> list[IndexEntry]:
    return list(read_index(io.BytesIO(data), "index", limits or Limits()))


def compressed(*lines: bytes) -> bytes:
    return gzip.compress(HEADER + b"".join(line + b"\n" for line in lines))


# What was written is read


COMPONENTS: Final = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
PATHS: Final = st.lists(COMPONENTS, min_size=1, max_size=5).map(b"/".join)
LINKS: Final = st.binary(min_size=1, max_size=30).filter(lambda link: b"\0" not in link)
NAMES: Final = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)
TIMES: Final = st.integers(min_value=-(2**62) * 10**9 + 10**9, max_value=2**62 * 10**9)
ATTRIBUTES: Final = st.builds(
    Attributes,
    mode=st.integers(min_value=0, max_value=0o7777),
    owner=st.tuples(*[st.integers(min_value=0, max_value=2**32 - 1)] * 2),
    mtime_ns=TIMES,
    xattrs=st.dictionaries(NAMES, st.binary(max_size=100), max_size=3),
)
DEVICES: Final = st.tuples(
    st.integers(min_value=0, max_value=2**12 - 1), st.integers(min_value=0, max_value=2**20 - 1)
)


class Written(NamedTuple):
    """A line for the writer, and the entry that is to come of it."""

    write: Callable[[IndexWriter], None]
    entry: IndexEntry


def written(path: bytes, kind: str, attributes: Attributes, value: object) -> Written:
    size, link, device, keywords = 0, b"", (0, 0), b""
    match value:
        case int():
            size, keywords = value, file_keywords(value, SHA256)
        case bytes():
            link, keywords = value, link_keywords(value)
        case (int(major), int(minor)):
            device, keywords = (major, minor), device_keywords((major, minor))
    return Written(
        lambda writer: writer.add(path, kind.encode(), attributes, keywords),
        IndexEntry(
            path,
            kind,
            attributes.mode,
            attributes.owner,
            attributes.mtime_ns,
            size,
            SHA256 if kind == "file" else "",
            link,
            b"",
            device,
            attributes.xattrs,
        ),
    )


def implied(path: bytes, attributes: Attributes) -> Written:
    entry = IndexEntry(path, "dir", *attributes[:3], 0, "", b"", b"", (0, 0), attributes.xattrs)
    return Written(
        lambda writer: writer.add(path, b"dir", attributes, IMPLIED),
        entry._replace(is_implied=True),
    )


def hard_link(path: bytes, other: bytes) -> Written:
    return Written(
        lambda writer: writer.add_hard_link(path, other),
        IndexEntry(path, "file", 0, (0, 0), 0, 0, "", b"", other, (0, 0), {}),
    )


WRITTEN: Final = st.one_of(
    st.builds(
        written, PATHS, st.just("file"), ATTRIBUTES, st.integers(min_value=0, max_value=2**63 - 1)
    ),
    st.builds(
        written, PATHS | st.just(b"."), st.sampled_from(["dir", "fifo"]), ATTRIBUTES, st.none()
    ),
    st.builds(implied, PATHS | st.just(b"."), ATTRIBUTES),
    st.builds(written, PATHS, st.just("link"), ATTRIBUTES, LINKS),
    st.builds(written, PATHS, st.sampled_from(["char", "block"]), ATTRIBUTES, DEVICES),
    st.builds(hard_link, PATHS, PATHS),
)


@given(st.lists(WRITTEN, max_size=20))
def test_everything_that_is_written_is_read(lines: list[Written]) -> None:
    draft = Draft()
    for line in lines:
        line.write(draft.writer)
    assert entries(draft.finish()) == [line.entry for line in lines]


@given(st.lists(WRITTEN, max_size=20))
def test_an_outline_has_the_directories_and_all_paths(lines: list[Written]) -> None:
    draft = Draft()
    for line in lines:
        line.write(draft.writer)
    assert list(read_outline(io.BytesIO(draft.finish()), "index")) == [
        Occurrence(
            line.entry.path,
            line.entry if line.entry.kind == "dir" else None,
            is_whiteout=line.entry.kind == "char" and line.entry.device == (0, 0),
        )
        for line in lines
    ]


def test_an_index_of_an_earlier_version_marks_no_directory() -> None:
    line = b"./etc type=dir mode=0755 uid=0 gid=0 time=0.000000000"
    (entry,) = entries(compressed(line))
    assert not entry.is_implied


@pytest.mark.parametrize(
    "line",
    [
        HOLDER.replace(b"type=file", b"type=fifo") + b" optional",
        HOLDER + SIZED + b" optional",
        HOLDER.replace(b"type=file", b"type=dir") + b" optional optional",
        HOLDER.replace(b"type=file", b"type=dir") + b" xattr.a=YQ== optional",
    ],
)
def test_only_directories_are_marked_and_once(line: bytes) -> None:
    with pytest.raises(StoreError, match="damaged in line 2"):
        entries(compressed(line))


@pytest.mark.parametrize(
    "line", [b"./d type=dir mode=0755", b"./d type=dir ", b"./.. type=dir mode=0755 uid=0 gid=0"]
)
def test_an_outline_refuses_malformed_directories(line: bytes) -> None:
    with pytest.raises(StoreError, match="damaged in line 2"):
        list(read_outline(io.BytesIO(compressed(line)), "index"))


def test_lines_lie_across_chunks() -> None:
    draft = Draft()
    value = os.urandom(CHUNK_BYTES)
    for number in range(4):
        attributes = FILE._replace(xattrs={b"user.large": value})
        draft.writer.add(b"f%d" % number, b"file", attributes, file_keywords(1, SHA256))
    found = entries(draft.finish())
    assert [entry.path for entry in found] == [b"f0", b"f1", b"f2", b"f3"]
    assert all(entry.xattrs == {b"user.large": value} for entry in found)


# What was replaced is left out


class Model:
    """The meaning of removals, without any care for cost."""

    def __init__(self) -> None:
        self.paths: dict[bytes, int] = {}

    def remove(self, path: bytes) -> None:
        for one in list(self.paths):
            if one == path or one.startswith(path + b"/"):
                del self.paths[one]


OLD_PATHS: Final = st.sampled_from([b"a", b"a/b", b"a/b/c", b"ab", b"d", b"d/e"])
CHANGES: Final = st.lists(
    st.tuples(st.sampled_from(["file", "remove", "link"]), OLD_PATHS, OLD_PATHS), max_size=25
)


@given(CHANGES)
def test_what_a_later_entry_replaced_is_left_out(changes: list[tuple[str, bytes, bytes]]) -> None:
    draft = Draft()
    model = Model()
    for number, (kind, path, other) in enumerate(changes):
        match kind:
            case "remove":
                draft.writer.remove(path)
                model.remove(path)
            case "file" if path not in model.paths:
                draft.file(path, number)
                model.paths[path] = number
            case "link" if path not in model.paths and other in model.paths:
                draft.writer.add_hard_link(path, other)
                model.paths[path] = model.paths[other]
    found = {entry.path: entry for entry in entries(draft.finish())}
    assert found.keys() == model.paths.keys()
    for path, size in model.paths.items():
        entry = found[path]
        # A hard link has either a path that is still there, or the attributes themselves.
        assert (found[entry.hard_link] if entry.hard_link else entry) is not None
        assert resolved(found, entry).size == size


def resolved(found: dict[bytes, IndexEntry], entry: IndexEntry) -> IndexEntry:
    while entry.hard_link:
        entry = found[entry.hard_link]
    return entry


def test_a_long_index_is_cut_to_what_is_left() -> None:
    draft = Draft()
    for number in range(20_000):
        draft.file(b"d%d/f" % (number % 100) + os.urandom(20).hex().encode(), number)
    for number in range(0, 100, 2):
        draft.writer.remove(b"d%d" % number)
    left = entries(draft.finish())
    assert len(left) == 10_000
    assert {entry.size % 2 for entry in left} == {1}


# What cannot have been written is refused


BAD_PATHS: Final = (
    b"",
    b"/",
    b"/etc/passwd",
    b"..",
    b"../f",
    b"a/../b",
    b"a/..",
    b"a/./b",
    b"./a",
    b"a/.",
    b"a//b",
    b"a/",
    b"a\\000b",
    b"\\056\\056/f",  # ".." escaped
    b"\\057f",  # "/" escaped
    b"a\\057\\056\\056\\057b",
    b"x" * 5000,
    b"a/" * 3000 + b"b",
    b"caf\xc3\xa9",
    b"a\\400",
    b"a\\12",
    b"a\\",
    b"a=b",
    b"a\x1b",
)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_out_of_the_layer_is_refused(path: bytes) -> None:
    with pytest.raises(StoreError, match=r"index: the index is damaged in line 2: "):
        entries(compressed(HOLDER.replace(b"./f", b"./" + path) + SIZED))
    with pytest.raises(StoreError, match="damaged"):
        entries(compressed(b"./f type=file hardlink=./" + path))


def test_names_with_dots_are_names() -> None:
    for path in (b"...", b"..a", b"a..", b".a", b"a/.../b", b".wh"):
        found = entries(compressed(HOLDER.replace(b"./f", b"./" + path) + SIZED))
        assert [entry.path for entry in found] == [path]


BAD_LINES: Final = {
    "nothing": b"",
    "blank": b" ",
    "a comment": b"# comment",
    "a second header": HEADER.strip(),
    "a default": b"/set type=file",
    "no path": b"type=file mode=0644",
    "no place": HOLDER[2:] + SIZED,
    "no type": b"./f mode=0644 uid=0 gid=0 time=1.000000000" + SIZED,
    "unknown type": HOLDER.replace(b"file", b"socket"),
    "a file without a size": HOLDER,
    "a directory with a size": HOLDER.replace(b"file", b"dir") + SIZED,
    "a device without a number": HOLDER.replace(b"file", b"char"),
    "a symlink without a target": HOLDER.replace(b"file", b"link"),
    "an empty target": HOLDER.replace(b"file", b"link") + b" link=",
    "NUL in a target": HOLDER.replace(b"file", b"link") + b" link=a\\000",
    "a long target": HOLDER.replace(b"file", b"link") + b" link=" + b"x" * 4097,
    "a target of a file": HOLDER + SIZED + b" link=a",
    "hard link and size": b"./f type=file hardlink=./g" + SIZED,
    "hard link of a directory": b"./f type=dir hardlink=./g",
    "hard link without a place": b"./f type=file hardlink=g",
    "unknown keyword": HOLDER + SIZED + b" flags=uchg",
    "keyword twice": HOLDER + SIZED + SIZED,
    "another order": b"./f mode=0644 type=file uid=0 gid=0 time=1.000000000" + SIZED,
    "two blanks": HOLDER.replace(b" mode", b"  mode") + SIZED,
    "a blank at the end": HOLDER + SIZED + b" ",
    "carriage return": HOLDER + SIZED + b"\r",
    "short mode": HOLDER.replace(b"0644", b"644") + SIZED,
    "long mode": HOLDER.replace(b"0644", b"00644") + SIZED,
    "mode of a kind": HOLDER.replace(b"0644", b"100644") + SIZED,
    "mode that is not octal": HOLDER.replace(b"0644", b"0894") + SIZED,
    "negative user": HOLDER.replace(b"uid=0", b"uid=-1") + SIZED,
    "user with a sign": HOLDER.replace(b"uid=0", b"uid=+1") + SIZED,
    "user with an underscore": HOLDER.replace(b"uid=0", b"uid=1_0") + SIZED,
    "user in other digits": HOLDER.replace(b"uid=0", "uid=\u0661".encode()) + SIZED,
    "user too large": HOLDER.replace(b"uid=0", b"uid=4294967296") + SIZED,
    "group too large": HOLDER.replace(b"gid=0", b"gid=4294967296") + SIZED,
    "many digits": HOLDER.replace(b"uid=0", b"uid=" + b"1" * 5000) + SIZED,
    "time without a fraction": HOLDER.replace(b"1.000000000", b"1") + SIZED,
    "short fraction": HOLDER.replace(b"1.000000000", b"1.0") + SIZED,
    "time too large": HOLDER.replace(b"time=1", b"time=9999999999999999999") + SIZED,
    "time too small": HOLDER.replace(b"time=1", b"time=-4611686018427387905") + SIZED,
    "negative size": HOLDER + SIZED.replace(b"=1 ", b"=-1 "),
    "size too large": HOLDER + SIZED.replace(b"=1 ", b"=9223372036854775808 "),
    "size of 2**70": HOLDER + SIZED.replace(b"=1 ", b"=1180591620717411303424 "),
    "short digest": HOLDER + SIZED[:-1],
    "long digest": HOLDER + SIZED + b"a",
    "digest in capitals": HOLDER + SIZED.replace(b"ab", b"AB"),
    "digest that is not hex": HOLDER + SIZED.replace(b"ab", b"xy"),
    "major too large": HOLDER.replace(b"file", b"char") + b" device=native,4096,0",
    "minor too large": HOLDER.replace(b"file", b"block") + b" device=native,0,1048576",
    "device of another system": HOLDER.replace(b"file", b"char") + b" device=linux,0,0",
    "device with three numbers": HOLDER.replace(b"file", b"char") + b" device=native,0,0,0",
    "attribute without a name": HOLDER + SIZED + b" xattr.=YQ==",
    "NUL in the name of an attribute": HOLDER + SIZED + b" xattr.a\\000=YQ==",
    "long name of an attribute": HOLDER + SIZED + b" xattr." + b"x" * 256 + b"=YQ==",
    "attribute twice": HOLDER + SIZED + b" xattr.a=YQ== xattr.\\141=YQ==",
    "attribute without a value": HOLDER + SIZED + b" xattr.a",
    "damaged base64": HOLDER + SIZED + b" xattr.a=YQ=",
    "base64 with more behind": HOLDER + SIZED + b" xattr.a=YQ==YQ==",
    "attribute before the size": HOLDER + b" xattr.a=YQ==" + SIZED,
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_line_that_is_never_written_is_refused(what: str) -> None:
    good = HOLDER + SIZED
    assert len(entries(compressed(good, good))) == 2
    with pytest.raises(StoreError, match=r"index: the index is damaged in line 3: "):
        entries(compressed(good, BAD_LINES[what], good))


NO_INDEXES: Final = {
    "nothing": b"",
    "the mark of gzip": b"\x1f\x8b",
    "not compressed": HEADER,
    "nothing, compressed": gzip.compress(b""),
    "half a header": gzip.compress(HEADER[:-1]),
    "another version": gzip.compress(HEADER.replace(b"1\n", b"2\n")),
    "cut off": gzip.compress(HEADER)[:-1],
    "more behind": gzip.compress(HEADER) + b"more",
    "cut off in a line": compressed(HOLDER + SIZED)[:-9],
    "a line without an end": gzip.compress(HEADER + HOLDER + SIZED),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "zeros behind": gzip.compress(HEADER) + bytes(20),
    "another member": gzip.compress(HEADER) + gzip.compress(b""),
}


@pytest.mark.parametrize("what", NO_INDEXES)
def test_a_file_that_is_no_index_is_refused(what: str) -> None:
    with pytest.raises(StoreError, match=r"^index: "):
        entries(NO_INDEXES[what])


# Costs are bounded


class Bomb(io.RawIOBase):
    """A file whose reads are counted."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        chunk = self._data.read(min(len(buffer), 4096))
        buffer[: len(chunk)] = chunk
        self.taken += len(chunk)
        return len(chunk)


def test_a_line_without_an_end_is_given_up_early() -> None:
    data = gzip.compress(HEADER + b"./" + bytes([ord("x")]) * (64 * 1024 * 1024))
    bomb = Bomb(data)
    with pytest.raises(StoreError, match="a line is longer than"):
        list(read_index(io.BufferedReader(bomb), "index"))
    assert bomb.taken < len(data) / 3


EMPTY_BLOCK: Final = b"\x00\x00\x00\xff\xff"  # of deflate (RFC 1951), stored, not the last


@pytest.mark.parametrize(
    "tail",
    [bytes(64 * 1024 * 1024), gzip.compress(b"") * 500_000],
    ids=["zeros", "empty members"],
)
def test_nothing_is_read_far_behind_the_end(tail: bytes) -> None:
    bomb = Bomb(gzip.compress(HEADER) + tail)
    with pytest.raises(StoreError, match="something follows its end"):
        list(read_index(io.BufferedReader(bomb), "index"))
    assert bomb.taken < 2 * 1024**2


def test_data_that_holds_nothing_is_given_up_early() -> None:
    bomb = Bomb(gzip.compress(b"")[:10] + EMPTY_BLOCK * 4_000_000)
    with pytest.raises(StoreError, match="larger than its content"):
        list(read_index(io.BufferedReader(bomb), "index"))
    assert bomb.taken < 4 * 1024**2


@pytest.mark.parametrize(
    ("lines", "total_bytes"), [(3, 1000), (100, 3 * len(HOLDER)), (3, 3 * len(HOLDER))]
)
def test_more_lines_or_bytes_than_a_layer_needs_are_refused(lines: int, total_bytes: int) -> None:
    bounds = module._Bounds(path_bytes=100, lines=lines, total_bytes=total_bytes)
    chunks = [HOLDER + b"\n"] * 4
    with pytest.raises(ValueError, match="larger than that of a layer within the limits"):
        drain(module._lines(chunks, bounds))
    drain(module._lines(chunks[:2], bounds))


def test_higher_limits_allow_a_larger_index() -> None:
    usual = module._Bounds.of(Limits())
    assert usual == module._Bounds.of(Limits(entries=10, path_bytes=10, path_depth=1))
    larger = module._Bounds.of(Limits(entries=8_000_000, path_bytes=8192))
    assert larger.lines >= 16_000_000
    assert larger.path_bytes >= 8192
    assert larger.total_bytes > usual.total_bytes


def test_a_writer_makes_no_index_that_its_reader_refuses() -> None:
    draft = Draft()
    with pytest.raises(LimitExceededError, match="path longer than"):
        draft.file(b"x/" * 3000 + b"y")
    attributes = FILE._replace(xattrs={b"user.large": bytes(5 * 1024 * 1024)})
    with pytest.raises(LimitExceededError, match="too large"):
        draft.writer.add(b"f", b"file", attributes)
    draft.finish()


def lines_of(count: int) -> Iterator[bytes]:
    for number in range(count):
        name = b"./d%d/f%d" % (number % 7, number)
        yield HOLDER.replace(b"./f", name) + SIZED + b" xattr.user.a=" + base64.b64encode(b"v")


def drain(items: Iterable[object]) -> None:
    for _ in items:
        pass


def test_reading_costs_as_many_steps_as_there_are_lines() -> None:
    def reading(lines: int) -> Callable[[], object]:
        data = compressed(*lines_of(lines))
        return lambda: drain(read_index(io.BytesIO(data), "index"))

    assert_linear(reading, 200)


def prepared(changes: Callable[[Draft, int], None]) -> Callable[[int], Callable[[], object]]:
    def finishing(size: int) -> Callable[[], object]:
        draft = Draft()
        changes(draft, size)
        return draft.finish

    return finishing


def replace_one_path(draft: Draft, times: int) -> None:
    for _ in range(times):
        draft.file(b"d/f")
        draft.writer.remove(b"d/f")


def link_to_replaced(draft: Draft, times: int) -> None:
    for number in range(times):
        draft.file(b"d/f")
        draft.writer.add_hard_link(b"d/l%d" % number, b"d/f")
        draft.writer.remove(b"d/f")


def chain_of_links(draft: Draft, length: int) -> None:
    draft.file(b"l0")
    for number in range(length):
        draft.writer.add_hard_link(b"l%d" % (number + 1), b"l%d" % number)
    for number in range(length):
        draft.writer.remove(b"l%d" % number)


def remove_many_of_many(draft: Draft, count: int) -> None:
    for number in range(count):
        draft.file(b"d%d/f" % number)
    for number in range(count):
        draft.writer.remove(b"d%d" % number)


@pytest.mark.parametrize(
    "changes", [replace_one_path, link_to_replaced, chain_of_links, remove_many_of_many]
)
def test_leaving_out_costs_as_many_steps_as_there_are_lines(
    changes: Callable[[Draft, int], None],
) -> None:
    assert_linear(prepared(changes), 300)


def test_what_remains_of_a_chain_of_links_is_right() -> None:
    draft = Draft()
    chain_of_links(draft, 50)
    (last,) = entries(draft.finish())
    assert (last.path, last.size, last.hard_link) == (b"l50", 1, b"")


# Anything


@given(st.binary(max_size=300))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    for one in (data, gzip.compress(data), gzip.compress(HEADER + data)):
        require_read_or_refused(one)


TOKENS: Final = st.sampled_from(
    [*BAD_PATHS[:12], b"./", b" type=", b"file", b"dir", b" mode=0644", b" uid=", b"0", b" gid=0",
     b" time=1.000000000", SIZED, b" link=a", b" hardlink=./", b" device=native,1,2", b" xattr.a=",
     b"YQ==", b"\n", b"f"]
)  # fmt: skip


@given(st.lists(TOKENS, max_size=20).map(b"".join))
def test_any_lines_are_read_or_refused(text: bytes) -> None:
    require_read_or_refused(gzip.compress(HEADER + text))


def require_read_or_refused(data: bytes) -> None:
    try:
        found = entries(data)
    except StoreError:
        return
    for entry in found:
        for path in (entry.path, entry.hard_link):
            assert path == b"." or b"\0" not in path
            assert path in (b".", b"") or not {b"", b".", b".."} & set(path.split(b"/"))
