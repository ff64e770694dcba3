from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.unpack.streams import (
    ByteReader,
    EndOfStreamError,
    HashedChunks,
    PrefetchedChunks,
    chunks_of_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNKS = st.lists(st.binary(max_size=8), max_size=12)


@given(CHUNKS, st.lists(st.tuples(st.sampled_from(["take", "pieces", "skip", "peek", "some"]),
                                  st.integers(0, 20)), max_size=20))  # fmt: skip
def test_any_sequence_of_reads_sees_the_bytes_in_order(
    chunks: list[bytes], reads: list[tuple[str, int]]
) -> None:
    left = b"".join(chunks)
    reader = ByteReader(iter(chunks))
    for how, size in reads:
        if how == "peek":
            assert reader.peek(size) == left[:size]
            continue
        if how == "some":
            some = reader.some(size + 1)
            assert len(some) <= size + 1
            assert bool(some) == bool(left)
            assert left.startswith(some)
            left = left[len(some) :]
            continue
        if size > len(left):
            with pytest.raises(EndOfStreamError):
                b"".join(reader.pieces(size))
            return
        if how == "take":
            assert reader.take(size) == left[:size]
        elif how == "pieces":
            assert b"".join(reader.pieces(size)) == left[:size]
        else:
            reader.skip(size)
        left = left[size:]
    assert reader.at_end() == (not left)
    assert b"".join(reader.rest()) == left
    assert reader.at_end()


@pytest.mark.parametrize("read", ["take", "skip"])
def test_more_than_there_is_ends_the_stream(read: str) -> None:
    reader = ByteReader(iter([b"abc"]))
    with pytest.raises(EndOfStreamError):
        getattr(reader, read)(4)


@given(CHUNKS)
def test_hashed_chunks_pass_on_what_they_count(chunks: list[bytes]) -> None:
    hashed = HashedChunks(iter(chunks), "sha512")
    whole = b"".join(hashed)
    assert whole == b"".join(chunks)
    assert hashed.size == len(whole)
    assert hashed.digest == f"sha512:{hashlib.sha512(whole).hexdigest()}"


def test_reads_a_pipe_to_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        os.write(writing, b"some")
        os.write(writing, b"thing")
        os.close(writing)
        assert b"".join(chunks_of_file(pipe.fileno())) == b"something"


@given(CHUNKS)
def test_prefetching_changes_nothing(chunks: list[bytes]) -> None:
    with PrefetchedChunks(iter(chunks)) as prefetched:
        assert list(prefetched) == chunks


def test_an_error_comes_after_the_chunks_before_it() -> None:
    def failing() -> Iterator[bytes]:
        yield b"first"
        raise ValueError("afterwards")

    with PrefetchedChunks(failing()) as prefetched:
        assert next(prefetched) == b"first"
        with pytest.raises(ValueError, match="afterwards"):
            next(prefetched)


def test_leaving_early_ends_the_thread_that_works_ahead() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"

    before = threading.active_count()
    with PrefetchedChunks(endless()) as prefetched:
        assert next(prefetched) == b"x"
    assert threading.active_count() == before


def test_what_is_made_ahead_is_bounded() -> None:
    made = 0
    enough = threading.Event()

    def counted() -> Iterator[bytes]:
        nonlocal made
        for made in range(1000):
            if made == 3:
                enough.set()
            yield b"x"

    with PrefetchedChunks(counted()):
        assert enough.wait(30)
        assert made < 6
