from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip_lib

from layermanager.errors import ArchiveError
from layermanager.testing.layers import compress
from layermanager.unpack import compression
from layermanager.unpack.streams import CHUNK_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOW_BYTES = 8 * 1024 * 1024
TEXT = b"".join(b"line %d\n" % line for line in range(200))
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0skips"


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def plain(data: bytes, *, chunk: int = CHUNK_BYTES, window: int = WINDOW_BYTES) -> bytes:
    return b"".join(compression.decompressed(chunks_of(data, chunk), zstd_window_bytes=window))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: compress(data, "gzip"),
    "zstd": lambda data: zstd.compress(
        data, options={zstd.CompressionParameter.checksum_flag: True}
    ),
}
both = pytest.mark.parametrize("kind", ["gzip", "zstd"])


def test_anything_else_is_passed_on_as_it_is() -> None:
    for data in (b"", b"\x1f", b"\x28\xb5\x2f", b"BZ", b"plain" * 1000):
        assert plain(data) == data
        assert plain(data, chunk=1) == data


@both
@pytest.mark.parametrize("chunk", [1, 7, CHUNK_BYTES])
def test_several_members_follow_one_another(kind: str, chunk: int) -> None:
    data = b"".join(COMPRESSORS[kind](text) for text in (b"one, ", b"", b"two, ", TEXT))
    assert plain(data, chunk=chunk) == b"one, two, " + TEXT


@pytest.mark.parametrize("chunk", [1, CHUNK_BYTES])
def test_skippable_frames_are_skipped(chunk: int) -> None:
    frame = compress(TEXT, "zstd")
    empty = b"\x50\x2a\x4d\x18\0\0\0\0"
    data = SKIPPABLE + empty + frame + SKIPPABLE + frame + empty
    assert plain(data, chunk=chunk) == TEXT * 2
    assert plain(SKIPPABLE, chunk=chunk) == b""


def gzip_member(flags: int) -> bytes:
    """TEXT with those optional fields in its header that *flags* asks for (RFC 1952)."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    for bit, field in ((4, b"\x04\0abcd"), (8, b"name\0"), (16, b"comment\0")):
        header += field if flags & bit else b""
    if flags & 2:
        header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    return header + compress(TEXT, "gzip")[10:]


@pytest.mark.parametrize("flags", range(32))
def test_any_optional_fields_of_a_gzip_header_in_any_two_inputs(flags: int) -> None:
    member = gzip_member(flags)
    assert plain(member, chunk=1) == TEXT
    for cut in range(1, 40):
        chunks = iter([member[:cut], member[cut:] + member[:cut], member[cut:]])
        found = compression.decompressed(chunks, zstd_window_bytes=WINDOW_BYTES)
        assert b"".join(found) == TEXT * 2


@both
@pytest.mark.parametrize("chunk", [1, 100, CHUNK_BYTES])
def test_zero_bytes_may_pad_the_end(kind: str, chunk: int) -> None:
    assert plain(COMPRESSORS[kind](TEXT) + bytes(1000), chunk=chunk) == TEXT


@both
@pytest.mark.parametrize("follows", [b"garbage", b"\0" * 1000 + b"g", b"\x1f", b"\x28\xb5", b"x"])
def test_nothing_else_may_follow(kind: str, follows: bytes) -> None:
    for chunk in (1, CHUNK_BYTES):
        with pytest.raises(ArchiveError, match=f"something else follows the {kind} data"):
            plain(COMPRESSORS[kind](TEXT) + follows, chunk=chunk)


@pytest.mark.parametrize("follows", [b"\x1f\x8b", b"\x1f\x8b\x08\0\0"])
def test_a_member_that_only_begins_is_truncated(follows: bytes) -> None:
    with pytest.raises(ArchiveError, match="truncated gzip"):
        plain(compress(TEXT, "gzip") + follows)


@both
def test_truncated_anywhere(kind: str) -> None:
    data = COMPRESSORS[kind](b"some text, " * 5)
    for size in range(6, len(data)):
        for chunk in (1, CHUNK_BYTES):
            with pytest.raises(ArchiveError, match=f"truncated {kind}"):
                plain(data[:size], chunk=chunk)


@both
def test_a_flipped_bit_in_the_trailing_checksum_is_noticed(kind: str) -> None:
    data = COMPRESSORS[kind](TEXT)
    for at in range(1, 9 if kind == "gzip" else 5):  # CRC-32 and length; XXH64's low half
        damaged = bytearray(data)
        damaged[-at] ^= 0x10
        with pytest.raises(ArchiveError, match=f"damaged {kind} data"):
            plain(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bz2.compress(TEXT), "bzip2"),
        (lzma.compress(TEXT), "xz"),
        (lzma.compress(TEXT, format=lzma.FORMAT_ALONE), "lzma"),
        (b"\x04\x22\x4d\x18rest of it", "lz4"),
    ],
)
def test_other_compressions_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(ArchiveError, match=f"compressed with {name}"):
        plain(data)


def with_window(log: int) -> bytes:
    """A zstd frame that asks for a window of 2**log bytes, without content."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, (log - 10) << 3]) + b"\x01\0\0"


@pytest.mark.parametrize("window", [1, 1000, 1024, 2**20, 2**20 + 1, 2**31, 2**40])
def test_the_window_of_zstd_is_limited(window: int) -> None:
    # zstd itself knows windows of 1 KiB to 2 GiB.
    largest = min(max(window.bit_length() - 1, 10), 31)
    assert plain(with_window(largest), window=window) == b""
    if largest < 31:
        with pytest.raises(ArchiveError, match="damaged zstd data"):
            plain(with_window(largest + 1), window=window)


@both
def test_a_bomb_comes_in_bounded_pieces(kind: str) -> None:
    bomb = COMPRESSORS[kind](bytes(64 * 1024 * 1024))
    pieces = compression.decompressed(iter([bomb]), zstd_window_bytes=WINDOW_BYTES)
    sizes = [len(piece) for piece in pieces]
    assert sum(sizes) == 64 * 1024 * 1024
    assert max(sizes) <= CHUNK_BYTES


@both
def test_many_tiny_members_take_linear_time(kind: str) -> None:
    member = COMPRESSORS[kind](b"x")

    def seconds(chunk: int) -> float:
        start = time.process_time()
        assert len(plain(member * 30_000, chunk=chunk)) == 30_000
        return time.process_time() - start

    # The same work whether what is left of a chunk is small or large.
    assert seconds(CHUNK_BYTES) < 3 * seconds(4096) + 0.1


class Decompressor(Protocol):
    """What both inflaters have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def isal_decompressor() -> Decompressor:
    decompressor: Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return decompressor


ISAL_ERROR: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # a class, say what its stub will
INFLATE_ERRORS = (ISAL_ERROR, zlib.error)
INFLATERS: list[Callable[[], Decompressor]] = [isal_decompressor, compression._ZlibDecompressor]


@pytest.mark.parametrize("new", INFLATERS)
class TestInflaters:
    """What is expected of ISA-L and of the standard library in its place."""

    @pytest.mark.parametrize("max_length", [1, 10, 100_000])
    @pytest.mark.parametrize("chunk", [1, 13, 100_000])
    def test_inflates_one_member(
        self, new: Callable[[], Decompressor], chunk: int, max_length: int
    ) -> None:
        member = new()
        output = b""
        inputs = chunks_of(compress(TEXT, "gzip") + b"follows", chunk)
        while not member.eof:
            data = next(inputs) if member.needs_input else b""
            piece = member.decompress(data, max_length)
            assert len(piece) <= max_length
            output += piece
        assert output == TEXT
        assert b"follows".startswith(member.unused_data)
        assert member.unused_data + b"".join(inputs) == b"follows"

    def test_verifies_checksum_and_length(self, new: Callable[[], Decompressor]) -> None:
        for at in range(1, 9):
            damaged = bytearray(compress(TEXT, "gzip"))
            damaged[-at] ^= 1
            with pytest.raises(INFLATE_ERRORS):
                new().decompress(bytes(damaged), 100_000)

    @pytest.mark.parametrize(
        "data", [b"\x1f\x8b\x07" + bytes(20), b"\x1f\x8b\x08\0" + b"\xff" * 20]
    )
    def test_refuses_what_is_damaged(self, new: Callable[[], Decompressor], data: bytes) -> None:
        with pytest.raises(INFLATE_ERRORS):
            new().decompress(data, 100_000)

    def test_waits_for_the_rest(self, new: Callable[[], Decompressor]) -> None:
        member = new()
        member.decompress(compress(TEXT, "gzip")[:-1], 100_000)
        assert not member.eof
        assert member.needs_input


@given(
    st.sampled_from(["gzip", "zstd", "none"]),
    st.lists(st.binary(max_size=2000), min_size=1, max_size=4),
    st.integers(0, 10),
    st.integers(1, 50),
)
def test_any_split_into_chunks_gives_the_same(
    kind: str, texts: list[bytes], padding: int, chunk: int
) -> None:
    if kind == "none":
        data = b"plain" + b"".join(texts)
        assert plain(data, chunk=chunk) == data
        return
    data = b"".join(COMPRESSORS[kind](text) for text in texts) + bytes(padding)
    assert plain(data, chunk=chunk) == b"".join(texts)


@given(st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", SKIPPABLE]), st.binary(max_size=200))
def test_any_bytes_are_decompressed_or_refused(magic: bytes, data: bytes) -> None:
    with suppress(ArchiveError):
        plain(magic + data)


@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["gzip", "zstd"]))
    damaged = bytearray(COMPRESSORS[kind](TEXT))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    with suppress(ArchiveError):
        found = plain(bytes(damaged))
        # Only what is no content may differ: a field of the header, or the kind itself.
        assert found in (TEXT, bytes(damaged))


def test_gzip_agrees() -> None:
    assert gzip.decompress(compress(TEXT, "gzip")) == TEXT
