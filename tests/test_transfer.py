from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import IntegrityError, LimitExceededError, SourceError
from layermanager.model import DesiredLayer, Digest, Limits
from layermanager.testing.layers import build_package, compress, desired, digest_of
from layermanager.transfer import CHUNK_BYTES, Transfer

if TYPE_CHECKING:
    from layermanager.protocols import ByteStream

BLOB = compress(b"some layer", "gzip")
PACKAGE = build_package(BLOB)
URL = "https://example.com/layer"


class FixedStream:
    """A stream of what is given, in pieces of at most *piece* bytes."""

    def __init__(self, data: bytes, *, size: int | None = None, piece: int = CHUNK_BYTES) -> None:
        self.size = size
        self.reads = 0
        self._left = data
        self._piece = piece

    def read(self, size: int) -> bytes:
        self.reads += 1
        size = min(size, self._piece)
        data, self._left = self._left[:size], self._left[size:]
        return data

    def abort(self) -> None:
        raise AssertionError("nobody aborts here")

    def close(self) -> None:
        raise AssertionError("who opened it closes it")


def transferred(layer: DesiredLayer, stream: ByteStream, limits: Limits | None = None) -> bytes:
    transfer = Transfer(layer, stream, limits or Limits())
    data = b"".join(transfer.chunks())
    transfer.verify()
    assert transfer.transferred == len(data)
    return data


def of_package(sha256: bytes, size: int | None = len(PACKAGE)) -> DesiredLayer:
    return DesiredLayer(digest_of(BLOB), URL, sha256=sha256, size=size)


@pytest.mark.parametrize("algorithm", ["sha3_256", "sha256"])
def test_either_checksum_of_a_package_is_accepted(algorithm: str) -> None:
    checksum = hashlib.new(algorithm, PACKAGE).digest()
    assert transferred(of_package(checksum), FixedStream(PACKAGE)) == PACKAGE


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_bare_layer_is_checked_by_its_digest(algorithm: str) -> None:
    digest = Digest(f"{algorithm}:{hashlib.new(algorithm, BLOB).hexdigest()}")
    layer = DesiredLayer(digest, URL, size=len(BLOB))
    assert transferred(layer, FixedStream(BLOB)) == BLOB
    with pytest.raises(IntegrityError) as caught:
        transferred(layer, FixedStream(BLOB[:-1] + b"x"))
    error = caught.value
    assert (error.subject, error.expected, error.digest) == ("layer digest", digest, digest)
    assert error.found.startswith(f"{algorithm}:")


def test_a_wrong_checksum_names_expected_and_found() -> None:
    with pytest.raises(IntegrityError) as caught:
        transferred(of_package(b"\x11" * 32), FixedStream(PACKAGE))
    error = caught.value
    assert (error.subject, error.expected) == ("package checksum", "11" * 32)
    assert hashlib.sha3_256(PACKAGE).hexdigest() in error.found
    assert hashlib.sha256(PACKAGE).hexdigest() in error.found
    assert error.digest == digest_of(BLOB)


def test_the_checksum_counts_all_bytes() -> None:
    layer = dataclasses.replace(desired(BLOB, URL, package=PACKAGE), size=None)
    for damaged in (PACKAGE[:-1], PACKAGE + b"x", b"x" + PACKAGE[1:], b""):
        with pytest.raises(IntegrityError, match="package checksum"):
            transferred(layer, FixedStream(damaged))


@pytest.mark.parametrize("package", [PACKAGE, None])
def test_a_size_that_the_source_announces_is_compared_before_a_byte_is_read(
    package: bytes | None,
) -> None:
    layer = desired(BLOB, URL, package=package)
    stream = FixedStream(package or BLOB, size=5)
    with pytest.raises(IntegrityError) as caught:
        transferred(layer, stream)
    assert caught.value.subject == ("package size" if package else "layer size")
    assert caught.value.expected == f"{layer.size} bytes"
    assert caught.value.found.startswith("5")
    assert stream.reads == 0


def test_fewer_bytes_than_desired() -> None:
    with pytest.raises(IntegrityError, match="layer size") as caught:
        transferred(desired(BLOB, URL), FixedStream(BLOB[:-1]))
    assert caught.value.found.startswith(str(len(BLOB) - 1))


def test_more_bytes_than_desired_end_the_transfer() -> None:
    stream = FixedStream(BLOB + bytes(100 * CHUNK_BYTES))
    passed_on = []
    transfer = Transfer(desired(BLOB, URL), stream, Limits())
    with pytest.raises(IntegrityError, match="at least"):
        passed_on += list(transfer.chunks())
    assert stream.reads == 1
    assert passed_on == []


def test_a_size_that_nobody_knows() -> None:
    layer = dataclasses.replace(desired(BLOB, URL), size=None)
    transfer = Transfer(layer, FixedStream(BLOB), Limits())
    assert transfer.size is None
    assert transferred(layer, FixedStream(BLOB)) == BLOB


def test_a_size_that_only_the_source_knows() -> None:
    layer = dataclasses.replace(desired(BLOB, URL), size=None)
    assert Transfer(layer, FixedStream(BLOB, size=len(BLOB)), Limits()).size == len(BLOB)
    with pytest.raises(IntegrityError, match="layer size"):
        transferred(layer, FixedStream(BLOB, size=len(BLOB) + 1))


def test_the_limit_ends_the_transfer() -> None:
    layer = dataclasses.replace(desired(BLOB, URL), size=None)
    assert transferred(layer, FixedStream(BLOB), Limits(package_bytes=len(BLOB))) == BLOB
    stream = FixedStream(bytes(100 * CHUNK_BYTES))
    with pytest.raises(LimitExceededError, match="packageBytes: 300000") as caught:
        transferred(layer, stream, Limits(package_bytes=300_000))
    assert caught.value.digest == layer.digest
    assert stream.reads == 2


def test_errors_of_the_source_pass_through() -> None:
    class Failing(FixedStream):
        def read(self, size: int) -> bytes:
            if self.reads:
                raise SourceError("connection reset", url=URL)
            return super().read(size)

    transfer = Transfer(desired(BLOB, URL), Failing(BLOB, piece=5), Limits())
    chunks = transfer.chunks()
    assert next(chunks) == BLOB[:5]
    with pytest.raises(SourceError, match="connection reset"):
        next(chunks)
    assert transfer.transferred == 5


@given(st.binary(max_size=500), st.integers(1, 100))
def test_any_split_is_the_same_transfer(data: bytes, piece: int) -> None:
    assert transferred(desired(data, URL), FixedStream(data, piece=piece)) == data
