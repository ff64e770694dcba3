from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.daemon.following import PollResult
from layermanager.daemon.metrics import Metrics, Snapshot
from layermanager.daemon.operations import Kind, State
from layermanager.errors import SourceError
from layermanager.model import DesiredLayer, Digest, LayerInfo, LayerProgress, Phase, StoreUsage
from layermanager.observer import Removal
from layermanager.testing.clock import FakeClock

NOW = datetime(2026, 11, 25, tzinfo=UTC)
DIGEST = Digest("sha256:" + "a" * 64)
LAYER = LayerInfo(DIGEST, "one", "1", Path("/x"), "", NOW, cached=True, size=4096)
DESIRED = DesiredLayer(DIGEST, "file:///x")
SNAPSHOT = Snapshot([LAYER], StoreUsage(Path("/x"), 100, 50, 0, 10, 20, 5), 3, is_ready=True)
SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def metrics(clock: FakeClock) -> Metrics:
    return Metrics(clock, "1.2.3")


def samples(metrics: Metrics) -> dict[str, str]:
    lines = metrics.text(SNAPSHOT).splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_every_line_is_as_prometheus_reads_it(metrics: Metrics) -> None:
    metrics.answered('a"b\\c', 200, 0.002)
    metrics.ended(Kind.GC, State.SUCCEEDED, 1.0)
    told: set[str] = set()
    for line in metrics.text(SNAPSHOT).splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in told
            told.add(name)
            assert (kind == "counter") == name.endswith("_total")
        elif not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            assert name in told or re.sub("_(bucket|sum|count)$", "", name) in told
            assert SAMPLE.fullmatch(line.replace(r"\"", "").replace(r"\\", ""))


@given(st.text(st.characters(), max_size=20))
def test_a_label_is_one_line_of_text(value: str) -> None:
    metrics = Metrics(FakeClock(), "1.0")
    metrics.answered(value, 200, 0.002)
    text = metrics.text(SNAPSHOT)
    text.encode()
    (line,) = (line for line in text.split("\n") if 'code="200"' in line)
    assert line.isprintable()
    assert re.search(r'endpoint="(?:[^"\\]|\\[\\"])*",code="200"', line)


def test_what_is_there_is_told(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found['layermanager_layers{state="cached"}'] == "1"
    assert found['layermanager_layers_bytes{state="cached"}'] == "4096"
    assert found["layermanager_reclaimable_bytes"] == "20"
    assert found["layermanager_held_bytes"] == "5"
    assert found["layermanager_event_readers"] == "3"
    assert found["layermanager_ready"] == "1"
    assert found['layermanager_build_info{version="1.2.3"}'] == "1"
    assert int(found["process_resident_memory_bytes"]) > 1_000_000
    assert "layermanager_last_successful_apply_timestamp_seconds" not in found


def test_what_the_library_does_is_counted(metrics: Metrics) -> None:
    metrics.fetched(10)
    metrics.fetched(5)
    metrics.written(7)
    metrics.retried()
    metrics.removed(LAYER, Removal.EVICTED)
    found = samples(metrics)
    assert found["layermanager_fetched_bytes_total"] == "15"
    assert found["layermanager_written_bytes_total"] == "7"
    assert found["layermanager_fetch_retries_total"] == "1"
    assert found['layermanager_removals_total{reason="evicted"}'] == "1"
    assert found['layermanager_removed_bytes_total{reason="evicted"}'] == "4096"
    assert found['layermanager_removals_total{reason="expired"}'] == "0"


def test_an_installation_takes_from_its_first_byte_until_it_counts(
    metrics: Metrics, clock: FakeClock
) -> None:
    metrics.progressed(LayerProgress(DESIRED, Phase.PENDING))
    clock.advance(timedelta(seconds=100))
    metrics.progressed(LayerProgress(DESIRED, Phase.INSTALLING))
    clock.advance(timedelta(seconds=2))
    metrics.progressed(LayerProgress(DESIRED, Phase.INSTALLING))
    clock.advance(timedelta(seconds=1))
    metrics.progressed(LayerProgress(DESIRED, Phase.INSTALLED))
    found = samples(metrics)
    assert found["layermanager_install_duration_seconds_sum"] == "3"
    assert found['layermanager_install_duration_seconds_bucket{le="2.5"}'] == "0"
    assert found['layermanager_install_duration_seconds_bucket{le="5.0"}'] == "1"
    assert found['layermanager_install_duration_seconds_bucket{le="+Inf"}'] == "1"
    assert found["layermanager_install_duration_seconds_count"] == "1"
    assert found['layermanager_installs_total{result="installed"}'] == "1"


def test_a_failure_is_counted_by_its_class(metrics: Metrics) -> None:
    error = SourceError("gone", url="file:///x")
    metrics.progressed(LayerProgress(DESIRED, Phase.FAILED, error=error))
    found = samples(metrics)
    assert found['layermanager_installs_total{result="failed"}'] == "1"
    assert found['layermanager_install_errors_total{error="SourceError"}'] == "1"


def test_looks_at_the_source_of_the_desired_state(metrics: Metrics, clock: FakeClock) -> None:
    metrics.polled(PollResult.FAILED)
    last = "layermanager_desired_state_last_successful_poll_timestamp_seconds"
    assert last not in samples(metrics)
    clock.advance(timedelta(seconds=5))
    metrics.polled(PollResult.UNCHANGED)
    clock.advance(timedelta(seconds=5))
    metrics.polled(PollResult.FAILED)
    found = samples(metrics)
    assert found[last] == str(int(NOW.timestamp()) + 5)
    assert found['layermanager_desired_state_polls_total{result="failed"}'] == "2"
    assert found['layermanager_desired_state_polls_total{result="unchanged"}'] == "1"


@pytest.mark.parametrize(
    ("kind", "state", "is_noted"),
    [
        (Kind.APPLY, State.SUCCEEDED, True),
        (Kind.APPLY, State.FAILED, False),
        (Kind.GC, State.SUCCEEDED, False),
    ],
)
def test_the_last_successful_apply_is_noted(
    metrics: Metrics, kind: Kind, state: State, is_noted: bool
) -> None:
    metrics.ended(kind, state, 1.0)
    found = samples(metrics)
    noted = found.get("layermanager_last_successful_apply_timestamp_seconds")
    assert (noted == str(int(NOW.timestamp()))) == is_noted
    assert found[f'layermanager_operations_total{{kind="{kind}",result="{state}"}}'] == "1"
