"""What the daemon counts, and the text in which Prometheus fetches it.

The format is version 0.0.4 of Prometheus' text exposition; names follow its conventions: base
units, ``_total`` for what only grows, a label for what is summed up sensibly.
"""

from __future__ import annotations

import bisect
import resource
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager.boundary import Boundary
from layermanager.daemon.following import PollResult
from layermanager.daemon.operations import Kind, State
from layermanager.model import Phase
from layermanager.observer import Removal
from layermanager.readable import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from layermanager.model import Digest, InodeUsage, LayerInfo, LayerProgress, StoreUsage
    from layermanager.protocols import Clock

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_INSTALL_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

Labels: TypeAlias = "tuple[tuple[str, str], ...]"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is not counted but looked at, when somebody asks.

    Attributes:
        layers: the installed layers.
        usage: where the space went.
        event_readers: how many read events.
        is_ready: whether operations are done.
    """

    layers: Sequence[LayerInfo]
    usage: StoreUsage
    event_readers: int
    is_ready: bool


@dataclass(slots=True)
class _Histogram:
    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """Counts; an ``Observer`` of the library. Safe from any thread.

    Args:
        clock: the time.
        version: of the package.
    """

    def __init__(self, clock: Clock, version: str) -> None:
        self._clock = clock
        self._version = version
        self._lock = threading.Lock()
        self._counters: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}
        self._begun: dict[Digest, float] = {}
        self._last_apply: datetime | None = None
        self._last_poll: datetime | None = None
        # What is there from the start shows its first increase.
        for name in _UNLABELLED:
            self._counters[name, ()] = 0
        for result in ("installed", "failed"):
            self._counters["layermanager_installs_total", (("result", result),)] = 0
        for boundary in Boundary:
            self._counters[_UNEXPECTED, (("boundary", boundary),)] = 0
        for reason in Removal:
            self._counters["layermanager_removals_total", (("reason", reason),)] = 0

    # What is told

    def fetched(self, size: int) -> None:
        """Count bytes that came from a source."""
        self._add("layermanager_fetched_bytes_total", size)

    def written(self, size: int) -> None:
        """Count bytes that layers take on disk."""
        self._add("layermanager_written_bytes_total", size)

    def retried(self) -> None:
        """Count a further try."""
        self._add("layermanager_fetch_retries_total", 1)

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """Count a layer that is gone, and its bytes."""
        labels = (("reason", str(why)),)
        self._add("layermanager_removals_total", 1, labels)
        self._add("layermanager_removed_bytes_total", layer.size, labels)

    def progressed(self, progress: LayerProgress) -> None:
        """Count installations, and how long they take from their first byte on."""
        digest = progress.desired.digest
        now = self._clock.monotonic()
        with self._lock:
            match progress.phase:
                case Phase.INSTALLING:
                    self._begun.setdefault(digest, now)
                case Phase.INSTALLED:
                    self._counters["layermanager_installs_total", (("result", "installed"),)] += 1
                    self._observe(
                        "layermanager_install_duration_seconds",
                        now - self._begun.pop(digest, now),
                        _INSTALL_BUCKETS,
                    )
                case Phase.FAILED:
                    self._begun.pop(digest, None)
                    self._counters["layermanager_installs_total", (("result", "failed"),)] += 1
                    name = type(progress.error).__name__
                    self._counters["layermanager_install_errors_total", (("error", name),)] += 1

    def ended(self, kind: Kind, state: State, seconds: float) -> None:
        """Count an operation that has ended."""
        with self._lock:
            self._begun.clear()
            labels = (("kind", str(kind)), ("result", str(state)))
            self._counters["layermanager_operations_total", labels] += 1
            self._observe(
                "layermanager_operation_duration_seconds",
                seconds,
                _INSTALL_BUCKETS,
                (("kind", str(kind)),),
            )
            if kind is Kind.APPLY and state is State.SUCCEEDED:
                self._last_apply = self._clock.now()

    def polled(self, result: PollResult) -> None:
        """Count a look at the source of the desired state."""
        with self._lock:
            labels = (("result", str(result)),)
            self._counters["layermanager_desired_state_polls_total", labels] += 1
            if result is not PollResult.FAILED:
                self._last_poll = self._clock.now()

    def unexpected(self, boundary: Boundary) -> None:
        """Count an exception that was not foreseen; its traceback is in the log."""
        self._add(_UNEXPECTED, 1, (("boundary", str(boundary)),))

    def found_damaged(self, layers: int) -> None:
        """Count layers that a check has found damaged."""
        self._add("layermanager_check_failures_total", layers)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered; of a stream, when it began."""
        labels = (("endpoint", endpoint), ("code", str(status)))
        with self._lock:
            self._counters["layermanager_http_requests_total", labels] += 1
            self._observe("layermanager_http_request_duration_seconds", seconds, _REQUEST_BUCKETS)

    def _add(self, name: str, value: float, labels: Labels = ()) -> None:
        with self._lock:
            self._counters[name, labels] += value

    def _observe(
        self, name: str, value: float, bounds: Sequence[float], labels: Labels = ()
    ) -> None:
        self._histograms.setdefault((name, labels), _Histogram(bounds)).add(value)

    # What is told of

    def text(self, snapshot: Snapshot) -> str:
        """All metrics, one below the other."""
        with self._lock:
            counters = dict(self._counters)
            histograms = {
                key: (one.bounds, list(one.counts), one.sum)
                for key, one in self._histograms.items()
            }
            last_apply, last_poll = self._last_apply, self._last_poll
        gauges = dict(_gauges(snapshot))
        gauges["layermanager_build_info", (("version", self._version),)] = 1
        if last_apply is not None:
            gauges["layermanager_last_successful_apply_timestamp_seconds", ()] = (
                last_apply.timestamp()
            )
        if last_poll is not None:
            gauges["layermanager_desired_state_last_successful_poll_timestamp_seconds", ()] = (
                last_poll.timestamp()
            )
        counters |= {(name, ()): value for name, value in _process_counters()}
        lines = [
            *_families(_COUNTERS, "counter", counters),
            *_families(_GAUGES, "gauge", gauges),
            *_histogram_families(histograms),
        ]
        return "\n".join(lines) + "\n"


_UNEXPECTED: Final = "layermanager_unexpected_errors_total"
_COUNTERS: Final[Mapping[str, str]] = {
    "layermanager_installs_total": "Installations of layers that ended.",
    "layermanager_install_errors_total": "Installations that failed, by class of the error.",
    "layermanager_fetched_bytes_total": "Bytes that came from sources, of use or not.",
    "layermanager_written_bytes_total": "Bytes of files that were unpacked, of use or not.",
    "layermanager_fetch_retries_total": "Further tries after a source failed.",
    "layermanager_removals_total": "Cached layers that were removed, by reason.",
    "layermanager_removed_bytes_total": "Bytes on disk of cached layers that were removed.",
    "layermanager_check_failures_total": "Layers that a check found damaged.",
    "layermanager_operations_total": "Operations that ended.",
    "layermanager_desired_state_polls_total": "Looks at the source of the desired state.",
    "layermanager_http_requests_total": "Requests that were answered.",
    _UNEXPECTED: "Exceptions that were not foreseen, by where they stopped.",
    "process_cpu_seconds_total": "Time of processors spent, that of unpackers included.",
}
_GAUGES: Final[Mapping[str, str]] = {
    "layermanager_layers": "Installed layers.",
    "layermanager_layers_bytes": "Bytes on disk of installed layers.",
    "layermanager_reclaimable_bytes": "Bytes of cached layers that nobody uses.",
    "layermanager_held_bytes": "Bytes of cached layers that stay since they are in use.",
    "layermanager_limit_bytes": "Bytes that layers may take in all; 0 for no limit.",
    "layermanager_partition_size_bytes": "Size of the layers' partition.",
    "layermanager_partition_free_bytes": "Bytes that anybody may still write on it.",
    "layermanager_layers_inodes": "Inodes of installed layers, where the file system counts them.",
    "layermanager_reclaimable_inodes": "Inodes of cached layers that are not in use.",
    "layermanager_held_inodes": "Inodes of cached layers that stay since they are in use.",
    "layermanager_partition_inodes": "Inodes of the layers' partition.",
    "layermanager_partition_free_inodes": "Inodes that are free on it.",
    "layermanager_last_successful_apply_timestamp_seconds": (
        "When the layers on disk last became the desired ones."
    ),
    "layermanager_desired_state_last_successful_poll_timestamp_seconds": (
        "When the source of the desired state last gave an answer."
    ),
    "layermanager_ready": "Whether the store is clean and operations are done.",
    "layermanager_event_readers": "Clients that have events open.",
    "layermanager_build_info": "1, with the version.",
    "process_resident_memory_bytes": "Memory in use, without that of unpackers.",
    "process_open_fds": "Open file descriptors.",
    "process_start_time_seconds": "When the process began.",
}
_HISTOGRAMS: Final[Mapping[str, str]] = {
    "layermanager_install_duration_seconds": "From the first byte of a layer until it counts.",
    "layermanager_operation_duration_seconds": "How long operations took.",
    "layermanager_http_request_duration_seconds": "From a request until its answer is known.",
}
_UNLABELLED: Final = (
    "layermanager_fetched_bytes_total",
    "layermanager_written_bytes_total",
    "layermanager_fetch_retries_total",
    "layermanager_check_failures_total",
)
_STARTED: Final = time.time()


def _gauges(snapshot: Snapshot) -> Iterator[tuple[tuple[str, Labels], float]]:
    usage = snapshot.usage
    for state, is_cached in (("desired", False), ("cached", True)):
        layers = [layer for layer in snapshot.layers if layer.cached is is_cached]
        yield ("layermanager_layers", (("state", state),)), len(layers)
        size = sum(layer.size for layer in layers)
        yield ("layermanager_layers_bytes", (("state", state),)), size
    yield ("layermanager_reclaimable_bytes", ()), usage.reclaimable
    yield ("layermanager_held_bytes", ()), usage.held
    yield ("layermanager_limit_bytes", ()), usage.limit
    yield ("layermanager_partition_size_bytes", ()), usage.total
    yield ("layermanager_partition_free_bytes", ()), usage.free
    if usage.inodes is not None:
        yield from _inode_gauges(usage.inodes)
    yield ("layermanager_ready", ()), snapshot.is_ready
    yield ("layermanager_event_readers", ()), snapshot.event_readers
    yield ("process_resident_memory_bytes", ()), _resident_bytes()
    yield ("process_open_fds", ()), sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield ("process_start_time_seconds", ()), _STARTED


def _inode_gauges(usage: InodeUsage) -> Iterator[tuple[tuple[str, Labels], float]]:
    name = "layermanager_layers_inodes"
    yield (name, (("state", "desired"),)), usage.desired
    yield (name, (("state", "cached"),)), usage.reclaimable + usage.held
    yield ("layermanager_reclaimable_inodes", ()), usage.reclaimable
    yield ("layermanager_held_inodes", ()), usage.held
    yield ("layermanager_partition_inodes", ()), usage.total
    yield ("layermanager_partition_free_inodes", ()), usage.free


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _process_counters() -> Iterator[tuple[str, float]]:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    yield "process_cpu_seconds_total", sum(one.ru_utime + one.ru_stime for one in spent)


def _families(
    known: Mapping[str, str], kind: str, values: Mapping[tuple[str, Labels], float]
) -> Iterator[str]:
    for name, help_text in known.items():
        samples = sorted((labels, value) for (of, labels), value in values.items() if of == name)
        if samples:
            yield from _head(name, help_text, kind)
        for labels, value in samples:
            yield f"{name}{_labels_text(labels)} {_number_text(value)}"


def _histogram_families(
    histograms: Mapping[tuple[str, Labels], tuple[Sequence[float], Sequence[int], float]],
) -> Iterator[str]:
    for name, help_text in _HISTOGRAMS.items():
        found = sorted((labels, one) for (of, labels), one in histograms.items() if of == name)
        if found:
            yield from _head(name, help_text, "histogram")
        for labels, (bounds, counts, total) in found:
            seen = 0
            for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
                seen += count
                yield f"{name}_bucket{_labels_text((*labels, ('le', bound)))} {seen}"
            yield f"{name}_sum{_labels_text(labels)} {_number_text(total)}"
            yield f"{name}_count{_labels_text(labels)} {seen}"


def _head(name: str, help_text: str, kind: str) -> Iterable[str]:
    return f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"


def _labels_text(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_label_text(value)}"' for name, value in labels)
    return "{" + ",".join(pairs) + "}"


def _label_text(value: str) -> str:
    """Return a label's value: what is not printable first, then as the format wants it."""
    return escaped(value).replace("\\", r"\\").replace('"', r"\"")


def _number_text(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
