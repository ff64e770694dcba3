from __future__ import annotations

import dataclasses
import hashlib
import logging
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cancellation import Cancellation
from layermanager.config import Network
from layermanager.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    LayerError,
    LimitExceededError,
    SourceChangedError,
    SourceError,
    SourceTimeoutError,
    UnpackerError,
)
from layermanager.model import DesiredLayer, Digest, Limits
from layermanager.sources import opener
from layermanager.space import Partitions
from layermanager.testing.clock import PassingClock
from layermanager.testing.layers import build_package, compress, desired, digest_of
from layermanager.testing.observer import RecordingObserver
from layermanager.testing.sources import Asked, MemorySource, Mishap
from layermanager.transfer.fetcher import CHUNK_BYTES, Fetcher, Transfer
from layermanager.transfer.spool import Spools

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOB = compress(b"some layer", "gzip")
PACKAGE = build_package(BLOB)
URL = "memory://host/layer"
MIRROR = "memory://mirror/layer"
DATA: Final = hashlib.shake_256(b"data").digest(5 * CHUNK_BYTES // 2)
BREAK: Final = Mishap(breaks_after=CHUNK_BYTES + 5)
BUSY: Final = Mishap(refused="503 Service Unavailable")
GONE: Final = Mishap(refused="404 Not Found", is_transient=False)
BEGIN_ANEW: Final = Mishap(begins_anew=True)


class Fetching:
    """Fetches from a source of files in memory, and notes how the time passes."""

    def __init__(
        self,
        files: dict[str, bytes],
        *mishaps: Mishap,
        network: Network | None = None,
        limits: Limits | None = None,
        chance: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.source = MemorySource(files, list(mishaps), is_local=False)
        self.clock = PassingClock()
        self.cancellation = Cancellation()
        self.observer = RecordingObserver()
        self.fetcher = Fetcher(
            open_stream=opener({"memory": self.source}),
            spools=Spools(Path("/nonexistent"), Partitions().new_allocator),
            network=network or Network(),
            limits=limits or Limits(),
            clock=self.clock,
            observer=self.observer,
            chance=chance,
        )

    def begin(self, layer: DesiredLayer) -> Transfer:
        return self.fetcher.begin(layer, self.cancellation)

    def fetch(self, layer: DesiredLayer) -> bytes:
        """As the installer does it, with an unpacker that takes everything."""
        transfer = self.begin(layer)
        with closing(transfer):
            while True:
                try:
                    data = b"".join(transfer.chunks())
                    transfer.verify()
                except LayerError as error:
                    transfer.start_over(error)
                else:
                    assert transfer.transferred == len(data)
                    return data

    @property
    def offsets(self) -> list[int]:
        """Where the requests began."""
        return [asked.offset for asked in self.source.asked]


def of_package(sha256: bytes, size: int | None = len(PACKAGE)) -> DesiredLayer:
    return DesiredLayer(digest_of(BLOB), URL, sha256=sha256, size=size)


def with_mirrors(layer: DesiredLayer, *mirrors: str) -> DesiredLayer:
    return dataclasses.replace(layer, mirrors=mirrors)


def of_unknown_size(layer: DesiredLayer) -> DesiredLayer:
    return dataclasses.replace(layer, size=None)


# --- what is checked ----------------------------------------------------------------------------


class TestChecks:
    @pytest.mark.parametrize("algorithm", ["sha3_256", "sha256"])
    def test_either_checksum_of_a_package_is_accepted(self, algorithm: str) -> None:
        checksum = hashlib.new(algorithm, PACKAGE).digest()
        assert Fetching({URL: PACKAGE}).fetch(of_package(checksum)) == PACKAGE

    @pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
    def test_a_bare_layer_is_checked_by_its_digest(self, algorithm: str) -> None:
        digest = Digest(f"{algorithm}:{hashlib.new(algorithm, BLOB).hexdigest()}")
        layer = DesiredLayer(digest, URL, size=len(BLOB))
        assert Fetching({URL: BLOB}).fetch(layer) == BLOB
        with pytest.raises(IntegrityError) as caught:
            Fetching({URL: BLOB[:-1] + b"x"}).fetch(layer)
        error = caught.value
        assert (error.subject, error.expected, error.digest) == ("layer digest", digest, digest)
        assert error.found.startswith(f"{algorithm}:")

    def test_a_wrong_checksum_names_expected_and_found(self) -> None:
        with pytest.raises(IntegrityError) as caught:
            Fetching({URL: PACKAGE}).fetch(of_package(b"\x11" * 32))
        error = caught.value
        assert (error.subject, error.expected) == ("package checksum", "11" * 32)
        assert hashlib.sha3_256(PACKAGE).hexdigest() in error.found
        assert hashlib.sha256(PACKAGE).hexdigest() in error.found
        assert error.digest == digest_of(BLOB)

    def test_the_checksum_counts_all_bytes(self) -> None:
        layer = of_unknown_size(desired(BLOB, URL, package=PACKAGE))
        for damaged in (PACKAGE[:-1], PACKAGE + b"x", b"x" + PACKAGE[1:], b""):
            with pytest.raises(IntegrityError, match="package checksum"):
                Fetching({URL: damaged}).fetch(layer)

    @pytest.mark.parametrize("package", [PACKAGE, None])
    def test_a_size_that_the_source_announces_is_compared_before_a_byte_is_read(
        self, package: bytes | None
    ) -> None:
        layer = desired(BLOB, URL, package=package)
        fetching = Fetching({URL: b"12345"})
        with pytest.raises(IntegrityError) as caught:
            fetching.fetch(layer)
        assert caught.value.subject == ("package size" if package else "layer size")
        assert (caught.value.expected, caught.value.found) == (f"{layer.size} bytes", "5")
        assert fetching.source.bytes_read == 0
        assert len(fetching.source.asked) == 1

    def test_fewer_bytes_than_desired(self) -> None:
        ends = Mishap(ends_after=len(BLOB) - 1, knows_size=False)
        with pytest.raises(IntegrityError, match="layer size") as caught:
            Fetching({URL: BLOB[:-1]}, *[ends] * 9).fetch(desired(BLOB, URL))
        assert caught.value.found == str(len(BLOB) - 1)

    def test_more_bytes_than_desired_end_the_transfer(self) -> None:
        endless = BLOB + bytes(100 * CHUNK_BYTES)
        fetching = Fetching({URL: endless}, *[Mishap(knows_size=False)] * 9)
        transfer = fetching.begin(desired(BLOB, URL))
        passed_on: list[bytes] = []
        with pytest.raises(IntegrityError, match="at least"):
            passed_on += transfer.chunks()
        assert fetching.source.bytes_read == CHUNK_BYTES
        assert passed_on == []

    def test_a_size_that_nobody_knows(self) -> None:
        layer = of_unknown_size(desired(BLOB, URL))
        fetching = Fetching({URL: BLOB}, Mishap(knows_size=False))
        assert fetching.begin(layer).size is None
        assert fetching.fetch(layer) == BLOB

    def test_a_size_that_only_the_source_knows(self) -> None:
        transfer = Fetching({URL: BLOB}).begin(of_unknown_size(desired(BLOB, URL)))
        chunks = transfer.chunks()
        next(chunks)
        assert transfer.size == len(BLOB)
        chunks.close()

    def test_the_limit_ends_the_transfer(self) -> None:
        layer = of_unknown_size(desired(BLOB, URL))
        limits = Limits(package_bytes=len(BLOB))
        assert Fetching({URL: BLOB}, limits=limits).fetch(layer) == BLOB
        fetching = Fetching({URL: bytes(100 * CHUNK_BYTES)}, limits=Limits(package_bytes=300_000))
        with pytest.raises(LimitExceededError, match="packageBytes: 300000") as caught:
            fetching.fetch(layer)
        assert caught.value.digest == layer.digest
        assert fetching.source.bytes_read == 2 * CHUNK_BYTES


# --- going on -----------------------------------------------------------------------------------


class TestGoingOn:
    def test_a_transfer_goes_on_where_it_broke_off(self) -> None:
        fetching = Fetching({URL: DATA}, BREAK)
        assert fetching.fetch(desired(DATA, URL)) == DATA
        assert fetching.source.asked == [Asked(URL, 0, ""), Asked(URL, CHUNK_BYTES + 5, '"1"')]
        assert fetching.source.bytes_read == len(DATA)

    def test_again_and_again(self) -> None:
        fetching = Fetching({URL: DATA}, *[Mishap(breaks_after=1000)] * 300)
        assert fetching.fetch(desired(DATA, URL)) == DATA
        assert fetching.source.bytes_read == len(DATA)

    def test_one_chunks_generator_outlives_the_break(self) -> None:
        transfer = Fetching({URL: DATA}, BREAK, BREAK).begin(desired(DATA, URL))
        assert b"".join(transfer.chunks()) == DATA

    def test_a_body_that_ends_too_early_goes_on_as_well(self) -> None:
        ends = Mishap(ends_after=1000, knows_size=False)
        fetching = Fetching({URL: DATA}, ends, ends)
        assert fetching.fetch(desired(DATA, URL)) == DATA
        assert fetching.offsets == [0, 1000, 2000]

    def test_a_source_that_begins_anew_is_compared_and_gone_on_with(self) -> None:
        fetching = Fetching({URL: DATA}, BREAK, BEGIN_ANEW)
        transfer = fetching.begin(desired(DATA, URL))
        assert b"".join(transfer.chunks()) == DATA
        assert fetching.source.bytes_read == len(DATA) + CHUNK_BYTES + 5

    def test_another_file_is_not_mixed_with_the_first_one(self) -> None:
        other = bytes(len(DATA))
        fetching = Fetching({URL: DATA}, Mishap(other_bytes=other, breaks_after=5), BEGIN_ANEW)
        transfer = fetching.begin(desired(DATA, URL))
        chunks = transfer.chunks()
        assert next(chunks) == other[:5]
        with pytest.raises(SourceChangedError, match="changed while it was fetched") as caught:
            next(chunks)
        transfer.start_over(caught.value)
        assert b"".join(transfer.chunks()) == DATA
        transfer.verify()

    def test_another_size_of_a_file_of_unknown_size_is_another_file(self) -> None:
        fetching = Fetching(
            {URL: DATA}, Mishap(other_bytes=DATA + b"x", breaks_after=5), BEGIN_ANEW
        )
        assert fetching.fetch(of_unknown_size(desired(DATA, URL))) == DATA
        assert fetching.offsets == [0, 5, 0]

    def test_a_file_that_changes_all_the_time_is_an_error_in_the_end(self) -> None:
        mishaps = [
            Mishap(other_bytes=bytes([number]) * len(DATA), breaks_after=5, begins_anew=True)
            for number in range(100)
        ]
        with pytest.raises(SourceChangedError, match="changed while it was fetched"):
            Fetching({URL: DATA}, *mishaps).fetch(desired(DATA, URL))

    def test_a_part_of_another_file_is_noticed_at_the_end_and_fetched_whole(self) -> None:
        fetching = Fetching({URL: DATA}, BREAK, Mishap(other_bytes=bytes(len(DATA))))
        assert fetching.fetch(desired(DATA, URL)) == DATA
        assert fetching.offsets == [0, CHUNK_BYTES + 5, 0]

    def test_nor_does_the_unpacker_stumbling_over_it_end_the_layer(self) -> None:
        fetching = Fetching({URL: DATA}, BREAK, Mishap(other_bytes=bytes(len(DATA))))
        transfer = fetching.begin(desired(DATA, URL))
        chunks = transfer.chunks()
        while transfer.transferred <= CHUNK_BYTES + 5:
            next(chunks)
        chunks.close()
        transfer.start_over(ArchiveError("not gzip"))
        assert b"".join(transfer.chunks()) == DATA

    def test_after_a_mixture_that_was_wrong_nothing_is_mixed_any_more(self) -> None:
        wrong = Mishap(other_bytes=bytes(len(DATA)))
        fetching = Fetching({URL: DATA}, BREAK, wrong, BREAK, BREAK)
        assert fetching.fetch(desired(DATA, URL)) == DATA
        assert fetching.offsets == [0, CHUNK_BYTES + 5, 0, 0, 0]

    def test_what_one_answer_got_wrong_is_not_asked_for_again(self) -> None:
        fetching = Fetching({URL: bytes(len(DATA))})
        with pytest.raises(IntegrityError):
            fetching.fetch(desired(DATA, URL))
        assert fetching.offsets == [0]

    def test_errors_that_are_not_of_the_bytes_are_raised_at_once(self) -> None:
        transfer = Fetching({URL: DATA}).begin(desired(DATA, URL))
        error = UnpackerError("killed")
        with pytest.raises(UnpackerError) as caught:
            transfer.start_over(error)
        assert caught.value is error


class TestGivingUp:
    def test_what_does_not_heal_fails_at_once(self) -> None:
        fetching = Fetching({URL: DATA}, GONE)
        with pytest.raises(SourceError, match=f"^404 Not Found: {URL}$") as caught:
            fetching.fetch(desired(DATA, URL))
        assert caught.value.attempts == ()
        assert fetching.clock.waits == []

    def test_waits_grow_and_end(self) -> None:
        network = Network(
            attempts=6, retry_delay=timedelta(seconds=2), longest_retry_delay=timedelta(seconds=20)
        )
        fetching = Fetching({URL: DATA}, *[BUSY] * 6, network=network)
        with pytest.raises(SourceError) as caught:
            fetching.fetch(desired(DATA, URL))
        assert fetching.clock.waits == [2, 4, 8, 16, 20]
        assert str(caught.value) == (
            f"gave up after 6 attempts in 0:00:50: 503 Service Unavailable (6 times): {URL}"
        )
        assert [attempt.reason for attempt in caught.value.attempts] == [BUSY.refused] * 6

    @pytest.mark.parametrize(("chance", "first"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
    def test_chance_spreads_them(self, chance: float, first: float) -> None:
        network = Network(retry_delay=timedelta(seconds=2))
        fetching = Fetching({URL: DATA}, BUSY, network=network, chance=lambda: chance)
        fetching.fetch(desired(DATA, URL))
        assert fetching.clock.waits == [first]

    def test_bytes_make_earlier_failures_forgotten(self) -> None:
        network = Network(attempts=3)
        mishaps = [mishap for _ in range(5) for mishap in (BUSY, Mishap(breaks_after=1))]
        assert Fetching({URL: DATA}, *mishaps, network=network).fetch(desired(DATA, URL)) == DATA

    def test_a_server_may_ask_for_more_time(self) -> None:
        later = dataclasses.replace(BUSY, retry_after=timedelta(minutes=10))
        fetching = Fetching({URL: DATA}, later)
        fetching.fetch(desired(DATA, URL))
        assert fetching.clock.waits == [600]

    def test_but_not_for_more_than_there_is(self) -> None:
        later = dataclasses.replace(BUSY, retry_after=timedelta(minutes=10))
        network = Network(transfer_timeout=timedelta(minutes=5))
        fetching = Fetching({URL: DATA}, later, network=network)
        with pytest.raises(SourceTimeoutError, match=r"503.*transferTimeoutSeconds") as caught:
            fetching.fetch(desired(DATA, URL))
        assert fetching.clock.waits == []
        assert len(caught.value.attempts) == 2

    def test_all_attempts_together_have_a_deadline(self) -> None:
        network = Network(transfer_timeout=timedelta(minutes=5))
        fetching = Fetching({URL: DATA}, *[Mishap(breaks_after=1)] * 10_000, network=network)
        with pytest.raises(SourceTimeoutError, match="transferTimeoutSeconds") as caught:
            fetching.fetch(desired(DATA, URL))
        assert 299 <= sum(fetching.clock.waits) <= 300
        assert len(caught.value.attempts) < 40
        assert "gave up after 3" in str(caught.value)

    def test_each_failure_is_logged_when_it_is_tried_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        layer = desired(DATA, URL)
        Fetching({URL: DATA}, BUSY).fetch(layer)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == (
            f"layer {layer.digest}: 503 Service Unavailable: {URL}; next try in 1.0 s"
        )

    def test_a_cancelled_transfer_waits_for_nothing(self) -> None:
        fetching = Fetching({URL: DATA}, *[BUSY] * 3)
        fetching.clock.on_wait = fetching.cancellation.cancel
        with pytest.raises(CancelledError):
            fetching.fetch(desired(DATA, URL))
        assert len(fetching.source.asked) == 1


# --- mirrors ------------------------------------------------------------------------------------


class TestMirrors:
    LAYER: Final = with_mirrors(desired(DATA, URL), MIRROR)

    def asked(self, fetching: Fetching) -> list[str]:
        return [asked.url for asked in fetching.source.asked]

    def test_are_not_asked_as_long_as_all_is_well(self) -> None:
        fetching = Fetching({URL: DATA, MIRROR: DATA})
        assert fetching.fetch(self.LAYER) == DATA
        assert self.asked(fetching) == [URL]

    @pytest.mark.parametrize("mishap", [BUSY, GONE])
    def test_are_asked_without_waiting(self, mishap: Mishap) -> None:
        fetching = Fetching({URL: DATA, MIRROR: DATA}, mishap)
        assert fetching.fetch(self.LAYER) == DATA
        assert self.asked(fetching) == [URL, MIRROR]
        assert fetching.clock.waits == []

    def test_go_on_where_the_other_broke_off(self) -> None:
        fetching = Fetching({URL: DATA, MIRROR: DATA}, BREAK)
        assert fetching.fetch(self.LAYER) == DATA
        assert fetching.source.asked[1] == Asked(MIRROR, CHUNK_BYTES + 5, "")
        assert fetching.source.bytes_read == len(DATA)

    def test_take_turns_while_they_fail(self) -> None:
        fetching = Fetching({URL: DATA, MIRROR: DATA}, BUSY, BUSY, BUSY, BUSY)
        assert fetching.fetch(self.LAYER) == DATA
        assert self.asked(fetching) == [URL, MIRROR, URL, MIRROR, URL]

    def test_make_good_for_wrong_bytes(self) -> None:
        fetching = Fetching({URL: bytes(len(DATA)), MIRROR: DATA})
        assert fetching.fetch(self.LAYER) == DATA
        assert self.asked(fetching) == [URL, MIRROR]

    def test_make_good_for_a_wrong_size(self) -> None:
        fetching = Fetching({URL: b"<html>log in first</html>", MIRROR: DATA})
        assert fetching.fetch(self.LAYER) == DATA
        assert fetching.source.bytes_read == len(DATA)

    def test_when_all_fail_the_error_tells_of_each(self) -> None:
        fetching = Fetching({}, GONE, Mishap(refused="403 Forbidden", is_transient=False))
        with pytest.raises(SourceError) as caught:
            fetching.fetch(self.LAYER)
        assert "404 Not Found at memory://host/layer" in str(caught.value)
        assert "403 Forbidden at memory://mirror/layer" in str(caught.value)
        assert [attempt.url for attempt in caught.value.attempts] == [URL, MIRROR]

    def test_the_same_address_twice_is_one(self) -> None:
        fetching = Fetching({}, GONE)
        with pytest.raises(SourceError, match=r"^404"):
            fetching.fetch(with_mirrors(desired(DATA, URL), URL))
        assert self.asked(fetching) == [URL]


# --- all together -------------------------------------------------------------------------------

MISHAPS: Final = st.one_of(
    st.builds(Mishap, refused=st.just("503"), retry_after=st.none() | st.just(timedelta(1))),
    st.builds(Mishap, breaks_after=st.integers(0, 600), begins_anew=st.booleans()),
    st.builds(Mishap, ends_after=st.integers(0, 600), knows_size=st.booleans()),
    st.builds(Mishap, other_bytes=st.binary(max_size=600), begins_anew=st.booleans()),
    st.builds(Mishap, validator=st.sampled_from(["", '"2"', 'W/"1"'])),
)


@given(st.binary(max_size=500), st.lists(MISHAPS, max_size=12), st.booleans(), st.booleans())
def test_whatever_goes_wrong_the_layer_arrives_whole_or_fails_by_name(
    data: bytes, mishaps: Sequence[Mishap], knows_size: bool, has_mirror: bool
) -> None:
    layer = desired(data, URL)
    if has_mirror:
        layer = with_mirrors(layer, MIRROR)
    fetching = Fetching({URL: data, MIRROR: data}, *mishaps)
    try:
        fetched = fetching.fetch(layer if knows_size else of_unknown_size(layer))
    except (SourceError, IntegrityError):
        return
    assert fetched == data


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5))
def test_no_byte_is_fetched_twice(data: bytes, breaks: Sequence[int]) -> None:
    fetching = Fetching({URL: data}, *[Mishap(breaks_after=after) for after in breaks])
    assert fetching.fetch(desired(data, URL)) == data
    assert fetching.source.bytes_read == len(data)
