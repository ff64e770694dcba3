"""What a hostile archive costs: as many steps as it has bytes, whatever it repeats."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from counting import assert_linear
from hostile.cases import pax, pax_record, raw_entry
from layermanager.errors import LayerError
from layermanager.model import Limits
from layermanager.testing.layers import END_OF_ARCHIVE, LayerBuilder
from layermanager.unpack.index import IndexWriter, read_index
from layermanager.unpack.rights import Rights
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import TarReader
from layermanager.unpack.tree import TreeWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Archive = Callable[[int], bytes]
    """A tar in which something occurs so many times."""

_CHUNK_BYTES: Final = 64 * 1024


def _chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), _CHUNK_BYTES):
        yield data[at : at + _CHUNK_BYTES]


# Reading


def _many_entries(count: int) -> bytes:
    return b"".join(raw_entry(b"f%d" % number) for number in range(count))


def _many_records(count: int) -> bytes:
    return pax(*(pax_record(b"key%d" % number, b"v") for number in range(count))) + raw_entry(b"f")


def _one_record_repeated(count: int) -> bytes:
    return pax(*[pax_record(b"path", b"x")] * count) + raw_entry(b"f")


def _records_that_take_back(count: int) -> bytes:
    return pax(*[pax_record(b"path", b"x"), pax_record(b"path", b"")] * count) + raw_entry(b"f")


def _headers_repeated(count: int) -> bytes:
    return pax(pax_record(b"path", b"x")) * count + raw_entry(b"f")


def _records_of_many_entries(count: int) -> bytes:
    return (pax(pax_record(b"path", b"x"), pax_record(b"uid", b"1")) + raw_entry(b"f")) * count


def _global_headers_repeated(count: int) -> bytes:
    return (pax(pax_record(b"comment", b"x"), typeflag=b"g") + raw_entry(b"f")) * count


def _other_global_headers(count: int) -> bytes:
    headers = (
        pax(*(pax_record(b"%d" % key, b"x") for key in range(99)), typeflag=b"g"),
        b"".join(
            pax(pax_record(b"comment", b"%d" % number), typeflag=b"g") + raw_entry(b"f")
            for number in range(count)
        ),
    )
    return b"".join(headers)


def _long_names_repeated(count: int) -> bytes:
    return raw_entry(b"L", b"n\0", b"L") * count + raw_entry(b"f")


def _long_links_of_many(count: int) -> bytes:
    return (raw_entry(b"K", b"n" * 200, b"K") + raw_entry(b"f", typeflag=b"2")) * count


def _attributes(count: int) -> bytes:
    records = (pax_record(b"SCHILY.xattr.user.%d" % number, b"v") for number in range(count))
    return pax(*records) + raw_entry(b"f")


def _one_attribute_repeated(count: int) -> bytes:
    return pax(*[pax_record(b"SCHILY.xattr.user.a", b"v")] * count) + raw_entry(b"f")


def _sparse_pairs(count: int) -> Iterator[bytes]:
    yield pax_record(b"GNU.sparse.size", b"%d" % (count + 1))
    for number in range(count):
        yield pax_record(b"GNU.sparse.offset", b"%d" % number)
        yield pax_record(b"GNU.sparse.numbytes", b"1")


def _sparse_0_0(count: int) -> bytes:
    return pax(*_sparse_pairs(count)) + raw_entry(b"f", bytes(count))


def _sparse_0_1(count: int) -> bytes:
    numbers = b",".join(b"%d,1" % number for number in range(count))
    records = (
        pax_record(b"GNU.sparse.map", numbers),
        pax_record(b"GNU.sparse.size", b"%d" % (count + 1)),
    )
    return pax(*records) + raw_entry(b"f", bytes(count))


_SPARSE_1_0: Final = (
    pax_record(b"GNU.sparse.major", b"1"),
    pax_record(b"GNU.sparse.minor", b"0"),
    pax_record(b"GNU.sparse.realsize", b"1000000"),
)


def _sparse_1_0(count: int) -> bytes:
    numbers = b"%d\n" % count + b"".join(b"%d\n1\n" % number for number in range(count))
    padded = numbers + bytes(-len(numbers) % 512)
    return pax(*_SPARSE_1_0) + raw_entry(b"f", padded + bytes(count))


def _sparse_map_that_is_one_number(count: int) -> bytes:
    return pax(*_SPARSE_1_0) + raw_entry(b"f", b"1" * 512 * count)


def _blank_sparse_lines(count: int) -> bytes:
    return pax(*_SPARSE_1_0) + raw_entry(b"f", b"9999\n" + b"\n" * 512 * count)


_READ: Final = (
    _many_entries,
    _many_records,
    _one_record_repeated,
    _records_that_take_back,
    _headers_repeated,
    _records_of_many_entries,
    _global_headers_repeated,
    _other_global_headers,
    _long_names_repeated,
    _long_links_of_many,
    _attributes,
    _one_attribute_repeated,
    _sparse_0_0,
    _sparse_0_1,
    _sparse_1_0,
)


def _reading(archive: Archive) -> Callable[[int], Callable[[], object]]:
    def prepare(size: int) -> Callable[[], object]:
        data = archive(size) + END_OF_ARCHIVE

        def read() -> None:
            reader = TarReader(ByteReader(_chunks(data)), Limits())
            for entry in reader:
                for _ in reader.content(entry):
                    pass

        return read

    return prepare


@pytest.mark.parametrize("archive", _READ, ids=lambda archive: archive.__name__.strip("_"))
def test_reading_costs_as_many_steps_as_the_archive_has_parts(archive: Archive) -> None:
    assert_linear(_reading(archive), 100)


@pytest.mark.parametrize("archive", [_sparse_map_that_is_one_number, _blank_sparse_lines])
def test_a_sparse_map_that_is_none_is_given_up_early(archive: Archive) -> None:
    """A growing text would be copied for each block of it, which no count of steps shows."""
    data = archive(1000) + END_OF_ARCHIVE
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for at in range(0, len(data), 512):
            taken += 512
            yield data[at : at + 512]

    with suppress(LayerError):
        for _ in TarReader(ByteReader(chunks()), Limits()):
            pass
    assert taken < 100 * 512


# Writing


def _opaque_markers_repeated(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.directory(f"d/{number}")
    for _ in range(count):
        layer.opaque("d")
    return layer.tar()


def _opaque_markers_upwards(count: int) -> bytes:
    """In each directory of deep trees, the deepest first."""
    layer = LayerBuilder()
    for number in range(count // 10):
        paths = [f"{number}" + "/d" * depth for depth in range(10)]
        for path in paths:
            layer.directory(path).whiteout(f"{path}/gone")
        for path in reversed(paths):
            layer.opaque(path)
    return layer.tar()


def _opaque_markers_below_opaque(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.directory(f"d/e/{number}")
    layer.opaque("d").opaque("d/e")
    for number in range(count):
        layer.opaque(f"d/e/{number}")
    return layer.tar()


def _whiteouts_repeated(count: int) -> bytes:
    layer = LayerBuilder()
    for _ in range(count):
        layer.whiteout("gone")
    return layer.tar()


def _whiteouts_of_a_large_directory(count: int) -> bytes:
    """The directory is there, and its marker makes it opaque each time."""
    layer = LayerBuilder()
    for number in range(count):
        layer.directory(f"d/{number}")
    for _ in range(count):
        layer.whiteout("d")
    return layer.tar()


def _many_whiteouts(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.whiteout(f"d/{number}")
    return layer.opaque("d").tar()


def _one_file_replaced(count: int) -> bytes:
    layer = LayerBuilder()
    for _ in range(count):
        layer.file("f", b"x")
    return layer.tar()


def _one_tree_replaced(count: int) -> bytes:
    layer = LayerBuilder()
    for _ in range(count // 4):
        layer.directory("d").file("d/e/f").file("d")
    return layer.tar()


def _large_directory_replaced(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.file(f"d/{number}")
    for _ in range(count):
        layer.file("d")
    return layer.tar()


def _hard_links_to_replaced(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.file("f", b"x").hardlink(f"l{number}", "f")
    return layer.tar()


def _hard_link_replaced(count: int) -> bytes:
    layer = LayerBuilder().file("f", b"x")
    for _ in range(count):
        layer.hardlink("l", "f")
    return layer.tar()


def _deep_paths(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.file(f"{'d/' * 100}{number}")
    return layer.tar()


def _other_deep_paths(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count // 4):
        layer.file(f"{number}/{'d/' * 20}f")
    return layer.tar()


def _long_symlinks_followed(count: int) -> bytes:
    """Forty symlinks of two thousand names each, on the way to each entry."""
    layer = LayerBuilder().directory("d")
    for number in range(39):
        layer.symlink(f"l{number}", "d/../" * 800 + f"l{number + 1}")
    layer.symlink("l39", "d")
    for number in range(count):
        layer.file(f"l0/f{number}")
    return layer.tar()


def _directory_with_other_attributes(count: int) -> bytes:
    layer = LayerBuilder()
    for number in range(count):
        layer.directory("d", xattrs={f"trusted.{number}": b"v"})
    return layer.tar()


_WRITTEN: Final = (
    _opaque_markers_repeated,
    _opaque_markers_upwards,
    _opaque_markers_below_opaque,
    _whiteouts_repeated,
    _whiteouts_of_a_large_directory,
    _many_whiteouts,
    _one_file_replaced,
    _one_tree_replaced,
    _large_directory_replaced,
    _hard_links_to_replaced,
    _hard_link_replaced,
    _deep_paths,
    _other_deep_paths,
)


class _Writing:
    """Unpacks one archive to a directory of its own."""

    def __init__(self, data: bytes, directory: Path) -> None:
        self._data = data
        self._root = os.open(tempfile.mkdtemp(dir=directory), os.O_RDONLY | os.O_DIRECTORY)
        self._index = os.memfd_create("index")

    def __call__(self) -> None:
        reader = TarReader(ByteReader(_chunks(self._data)), Limits())
        index = IndexWriter(self._index)
        writer = TreeWriter(
            self._root,
            rights=Rights.below(self._root),
            limits=Limits(),
            block_bytes=4096,
            spend=lambda *_: None,
            index=index,
        )
        for entry in reader:
            writer.write(entry, reader)
        writer.finish()
        writer.close()
        index.finish()
        os.close(self._root)
        with os.fdopen(self._index, "rb") as file:
            file.seek(0)
            for _ in read_index(file, "index"):
                pass


@pytest.mark.parametrize("archive", _WRITTEN, ids=lambda archive: archive.__name__.strip("_"))
@pytest.mark.usefixtures("needs_devices", "needs_trusted_xattrs")
def test_writing_costs_as_many_steps_as_the_archive_has_entries(
    archive: Archive, tmp_path: Path
) -> None:
    assert_linear(lambda size: _Writing(archive(size), tmp_path), 80)


@pytest.mark.usefixtures("needs_trusted_xattrs")
def test_attributes_of_a_directory_are_set_once() -> None:
    """On tmpfs, which has room for many."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        assert_linear(
            lambda size: _Writing(_directory_with_other_attributes(size), Path(directory)), 80
        )


def test_following_symlinks_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="too many names on the way"):
        _Writing(_long_symlinks_followed(1), tmp_path)()
