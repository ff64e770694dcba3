"""Layers over a link, and from servers, that fail: they arrive as they are, or fail by name."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import (
    IntegrityError,
    LayerError,
    LayersFailedError,
    SourceChangedError,
    SourceError,
    SourceTimeoutError,
)
from layermanager.model import Limits
from layermanager.sources import default_sources, opener
from layermanager.space import Partitions
from layermanager.testing.fault_server import BUFFER_BYTES, FaultServer
from layermanager.testing.faults import (
    CloseBeforeAnswer,
    Corrupt,
    Drip,
    Encoded,
    EndlessBody,
    EndlessContinue,
    EndlessHeaders,
    EndlessTrailers,
    FailTls,
    IgnoreRange,
    LyingLength,
    NewVersion,
    NoContentRange,
    OtherBytes,
    Redirect,
    Refuse,
    Reset,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)
from layermanager.testing.layers import build_package, compress, desired
from layermanager.transfer.fetcher import Fetcher
from layermanager.transfer.spool import Spools
from manager_fixtures import Node, layer_tar, names_in
from network.scripts import fault_scripts, interruptions

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from layermanager.model import DesiredLayer
    from layermanager.testing.faults import Fault
    from layermanager.testing.tls import Authority

DATA: Final = hashlib.shake_256(b"data").digest(1_000_000)
SIZE: Final = len(DATA)
HALF: Final = SIZE // 2
SOON: Final = 60.0
"""Seconds within which something has ended that must not hang."""

HASTY: Final = Network(
    connect_timeout=timedelta(seconds=0.4),
    read_timeout=timedelta(seconds=0.4),
    transfer_timeout=timedelta(seconds=30),
    attempts=12,
    retry_delay=timedelta(milliseconds=1),
    longest_retry_delay=timedelta(milliseconds=5),
)


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> ssl.SSLContext:
    return authority.server_context()


def fetch(layer: DesiredLayer, network: Network = HASTY) -> bytes:
    """Fetch as the installer does, with an unpacker that takes everything."""
    clock, cancellation = SystemClock(), Cancellation()
    sources = default_sources(network, clock)
    fetcher = Fetcher(
        open_stream=opener(sources),
        spools=Spools(Path("/nonexistent"), Partitions().new_allocator),
        network=network,
        limits=Limits(),
        clock=clock,
    )
    with closing(sources["http"]), closing(fetcher.begin(layer, cancellation)) as transfer:
        while True:
            try:
                data = b"".join(transfer.chunks())
                transfer.verify()
            except LayerError as error:
                transfer.start_over(error)
            else:
                return data


def fetch_from(server: FaultServer, network: Network = HASTY) -> bytes:
    """Fetch the data from *server*, in a thread that may not hang."""
    layer = desired(DATA, server.add("/a", DATA))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(fetch, layer, network).result(SOON)


# --- what breaks off --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(),
        CloseBeforeAnswer(),
        Reset(0),
        Reset(100_000),
        Truncate(0),
        Truncate(100_000),
        Stall(),
        Stall(100_000),
        Status(503),
        Status(429, retry_after=0),
    ],
    ids=str,
)
@pytest.mark.parametrize("times", [1, 4])
def test_what_breaks_off_goes_on_without_a_byte_twice(fault: Fault, times: int) -> None:
    faults: list[Fault] = [fault] * times
    with FaultServer(faults) as server:
        assert fetch_from(server) == DATA
        assert server.pending == ()
        assert server.sent <= SIZE + times * BUFFER_BYTES


def test_tls_goes_on_as_well(authority: Authority, certificate: ssl.SSLContext) -> None:
    faults: list[Fault] = [Refuse(), FailTls(), Reset(HALF), Stall(100_000)]
    with FaultServer(faults, tls=certificate) as server:
        assert fetch_from(server, replace(HASTY, ca_bundle=authority.bundle)) == DATA
        assert server.sent <= SIZE + len(faults) * BUFFER_BYTES


def test_an_answer_that_is_no_tls_is_final(
    authority: Authority, certificate: ssl.SSLContext
) -> None:
    with (
        FaultServer([FailTls(b"HTTP/1.1 400 Bad Request\r\n\r\n")], tls=certificate) as server,
        pytest.raises(SourceError, match=r"no answer: .*SSL") as caught,
    ):
        fetch_from(server, replace(HASTY, ca_bundle=authority.bundle))
    assert not caught.value.is_transient


@pytest.mark.parametrize("slow", [Drip(1, timedelta(hours=1)), Drip(7, timedelta(seconds=0.05))])
def test_a_drip_is_left_for_a_better_answer(slow: Drip) -> None:
    network = replace(HASTY, minimum_rate=10_000)
    with FaultServer([slow]) as server:
        assert fetch_from(server, network) == DATA
        assert server.exchanges[1].range is not None


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        IgnoreRange(),
        WrongContentRange(1),
        WrongContentRange(-1),
        NoContentRange(),
        LyingLength(-5),
        OtherBytes(),
        NewVersion(),
        Status(416),
        Corrupt(10),
    ],
    ids=str,
)
def test_a_wrong_answer_to_a_request_for_the_rest_is_mended(fault: Fault) -> None:
    with FaultServer([Reset(HALF), fault]) as server:
        assert fetch_from(server) == DATA
        assert server.pending == ()


@pytest.mark.parametrize("fault", [NewVersion(), OtherBytes(), Corrupt(HALF)], ids=str)
def test_a_wrong_file_in_one_piece_is_refused_at_once(fault: Fault) -> None:
    with FaultServer([fault]) as server:
        with pytest.raises(IntegrityError, match="layer digest"):
            fetch_from(server)
        assert len(server.exchanges) == 1


@pytest.mark.parametrize("delta", [-5, 5])
def test_a_wrong_length_is_refused_at_once(delta: int) -> None:
    with FaultServer([LyingLength(delta)]) as server:
        with pytest.raises(IntegrityError, match="layer size"):
            fetch_from(server)
        assert len(server.exchanges) == 1


def test_a_file_that_changes_with_every_answer_is_given_up_by_name() -> None:
    faults: list[Fault] = [Reset(HALF), NewVersion()] * 40
    with FaultServer(faults) as server, pytest.raises(SourceChangedError):
        fetch_from(server)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(404), "404 Not Found"),
        (Status(401), "401 Unauthorized"),
        (Encoded(), "Content-Encoding"),
        (Redirect("gopher://127.0.0.1/"), "another scheme"),
    ],
)
def test_what_does_not_heal_is_asked_once(fault: Fault, words: str) -> None:
    with FaultServer([fault]) as server:
        with pytest.raises(SourceError, match=words):
            fetch_from(server)
        assert len(server.exchanges) == 1


# --- what never ends --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [EndlessContinue(), EndlessTrailers(), Stall()], ids=str)
def test_what_never_ends_is_ended_in_time(fault: Fault) -> None:
    network = replace(HASTY, attempts=1)
    with FaultServer([fault]) as server, ThreadPoolExecutor(1) as thread:
        layer = replace(desired(DATA, server.add("/a", DATA)), size=None)
        with pytest.raises(SourceTimeoutError):
            thread.submit(fetch, layer, network).result(SOON)


def test_headers_without_end_are_refused() -> None:
    with (
        FaultServer([EndlessHeaders()]) as server,
        pytest.raises(SourceError, match="more than 100 headers"),
    ):
        fetch_from(server, replace(HASTY, attempts=1))


def test_headers_without_end_are_a_reason_to_try_again() -> None:
    with FaultServer([EndlessHeaders()]) as server:
        assert fetch_from(server) == DATA


def test_a_body_without_end_is_no_longer_than_desired() -> None:
    with FaultServer([EndlessBody()]) as server:
        with pytest.raises(IntegrityError, match="layer size"):
            fetch_from(server)
        assert server.sent <= SIZE + 2 * BUFFER_BYTES + 256 * 1024


# --- any of it --------------------------------------------------------------------------------


def check_any_interruptions(faults: Sequence[Fault]) -> None:
    with FaultServer(faults) as server:
        assert fetch_from(server) == DATA
        assert server.sent <= SIZE + len(faults) * BUFFER_BYTES


def check_any_faults(faults: Sequence[Fault]) -> None:
    with FaultServer(faults) as server:
        try:
            data = fetch_from(server)
        except (SourceError, IntegrityError):
            return
        assert data == DATA


@settings(max_examples=15)
@given(st.lists(interruptions(SIZE), max_size=6))
def test_through_any_interruptions_a_layer_arrives(faults: list[Fault]) -> None:
    check_any_interruptions(faults)


@settings(max_examples=15)
@given(fault_scripts(SIZE, max_faults=6))
def test_through_any_faults_a_layer_arrives_or_fails_by_name(faults: list[Fault]) -> None:
    check_any_faults(faults)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=150)
@given(st.lists(interruptions(SIZE), max_size=10))
def test_through_many_interruptions_a_layer_arrives(faults: list[Fault]) -> None:
    check_any_interruptions(faults)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=150)
@given(fault_scripts(SIZE))
def test_through_many_faults_a_layer_arrives_or_fails_by_name(faults: list[Fault]) -> None:
    check_any_faults(faults)


# --- with the manager -------------------------------------------------------------------------


class TestInstalling:
    BLOB: Final = compress(layer_tar("one", 1_000_000), "gzip")
    PACKAGE: Final = build_package(BLOB)

    @pytest.fixture
    def node(self, tmp_path: Path) -> Node:
        return Node(tmp_path, network=HASTY)

    def layer(self, server: FaultServer) -> DesiredLayer:
        url = server.add("/one", self.PACKAGE)
        return desired(self.BLOB, url, package=self.PACKAGE, layer_id="one")

    @pytest.mark.parametrize(
        "faults",
        [
            [Reset(300_000), Reset(300_000), Stall(200_000)],
            [Reset(300_000), IgnoreRange()],
            [Reset(300_000), OtherBytes()],
            [Reset(300_000), Corrupt(5)],
            [NewVersion(), Status(503)],
        ],
        ids=str,
    )
    def test_a_layer_is_installed_whole_or_not_at_all(
        self, node: Node, faults: list[Fault]
    ) -> None:
        with FaultServer(faults) as server, node.manager() as manager:
            layer = self.layer(server)
            if isinstance(faults[0], NewVersion):
                with pytest.raises(LayersFailedError):
                    manager.process_desired_layers([layer])
                node.assert_has([])
            assert names_in(manager.process_desired_layers([layer]).installed) == ["one"]
            assert server.pending == ()
        node.assert_has([layer])

    def test_a_stick_with_the_package_makes_good_for_the_link(self, tmp_path: Path) -> None:
        patient = timedelta(minutes=1)  # so that nobody would wait for the link
        network = replace(HASTY, retry_delay=patient, longest_retry_delay=patient)
        node = Node(tmp_path, network=network)
        (tmp_path / "stick").write_bytes(self.PACKAGE)
        with FaultServer([Reset(300_000)]) as server, node.manager() as manager:
            layer = replace(self.layer(server), mirrors=((tmp_path / "stick").as_uri(),))
            assert names_in(manager.process_desired_layers([layer]).installed) == ["one"]
            assert len(server.exchanges) == 1
        node.assert_has([layer])
