"""What is to be done, is being done and was done: operations, in threads of their own.

There are two lanes. What changes the store takes turns in one of them, as the library would make
it wait anyway; what only looks at the store, for minutes maybe, has the other one, so that a new
desired state does not wait for that.
"""

from __future__ import annotations

import enum
import functools
import json
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from layermanager.boundary import Boundary
from layermanager.cancellation import Cancellation
from layermanager.daemon.http import encoded
from layermanager.errors import (
    CancelledError,
    LayerManagerError,
    LayersFailedError,
    StoreBusyError,
)
from layermanager.json_documents import error_json, progress_json, result_json, time_json
from layermanager.model import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from layermanager.daemon.events import Events
    from layermanager.inventory import CheckProgress
    from layermanager.living import LivingThreads
    from layermanager.model import Digest, LayerProgress
    from layermanager.protocols import Clock

    Work = Callable[["Run"], object]
    OnEnd = Callable[["Kind", "State", float], None]

_KEPT: Final = 50
_KEPT_RESULT_BYTES: Final = 4 * 1024 * 1024
_MAX_PENDING: Final = 16
_SECONDS_BETWEEN_EVENTS: Final = 0.5
_SECONDS_BETWEEN_TRIES: Final = 0.5
_LONGEST_HOLD_SECONDS: Final = 5.0


class Kind(enum.StrEnum):
    """What an operation does."""

    START = "start"
    APPLY = "apply"
    GC = "gc"
    CHECK = "check"
    ADOPT = "adopt"


class State(enum.StrEnum):
    """How far an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self not in {State.PENDING, State.RUNNING}


class Lane(enum.Enum):
    """What takes turns with each other."""

    CHANGING = enum.auto()
    LOOKING = enum.auto()


class NoSuchOperationError(Exception):
    """There is no operation of that id, or not any more."""


class QueueFullError(Exception):
    """Too much is to be done already."""


@dataclass(slots=True)
class _Operation:
    """An operation; everything but its result is guarded by the lock of ``Operations``."""

    id: str
    kind: Kind
    work: Work
    created: datetime
    cancellation: Cancellation = field(default_factory=Cancellation)
    state: State = State.PENDING
    started: datetime | None = None
    ended: datetime | None = None
    waits_for: str = ""
    layers: dict[Digest, LayerProgress] = field(default_factory=dict)
    check: CheckProgress | None = None
    failed_images: Mapping[str, object] = field(default_factory=dict)
    result: bytes | None = None
    error: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of an operation."""

    state: State
    result: bytes | None = None
    error: Mapping[str, object] | None = None
    failed_images: Mapping[str, object] = field(default_factory=dict)


class Run:
    """An operation as its work sees it.

    Attributes:
        cancellation: ends the work early.
    """

    def __init__(self, operations: Operations, operation: _Operation) -> None:
        self._operations = operations
        self._operation = operation
        self.cancellation = operation.cancellation

    def note_layer(self, progress: LayerProgress) -> None:
        """Show how far the installation of a layer is; from any thread."""
        self._operations.note_layer(self._operation, progress)

    def note_check(self, progress: CheckProgress) -> None:
        """Show how far a check is; from any thread."""
        self._operations.note_check(self._operation, progress)

    def note_wait(self, reason: str) -> None:
        """Show for what it waits; an empty text: it goes on."""
        self._operations.note_wait(self._operation, reason)


class Operations:
    """All operations of this run of the daemon that are kept; safe from any thread.

    Args:
        events: is told of every change.
        clock: the time.
        on_end: is told the kind, the outcome and the seconds of each.
        threads: watches the threads of the lanes.
    """

    def __init__(self, events: Events, clock: Clock, on_end: OnEnd, threads: LivingThreads) -> None:
        self._events = events
        self._clock = clock
        self._guard = threads.guard
        self._telling = self._guard.containing(Boundary.STREAM, "telling of an operation")
        self._on_end = self._guard.callback(Boundary.OPERATION, on_end)
        self._operations: dict[str, _Operation] = {}
        self._queues: dict[Lane, deque[_Operation]] = {lane: deque() for lane in Lane}
        self._is_closed = False
        self._changed = threading.Condition()
        self._told: dict[Digest | None, tuple[float, Phase | None]] = {}
        self._threads = [
            threads.thread(lane.name.lower(), functools.partial(self._work_off, lane))
            for lane in Lane
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Cancel everything, and return when it has ended."""
        with self._changed:
            self._is_closed = True
            operations = list(self._operations.values())
            self._changed.notify_all()
        for operation in operations:
            self._cancel(operation)
        for thread in self._threads:
            thread.close()

    @property
    def is_held_up(self) -> bool:
        """Whether a thread keeps all others from looking at operations, for seconds."""
        if not self._changed.acquire(timeout=_LONGEST_HOLD_SECONDS):
            return True
        self._changed.release()
        return False

    def submit(self, kind: Kind, work: Work, lane: Lane = Lane.CHANGING) -> dict[str, object]:
        """Have *work* done when it is its turn.

        Returns:
            The operation, as JSON.

        Raises:
            QueueFullError: too much is waiting already.
        """
        with self._changed:
            if len(self._queues[lane]) >= _MAX_PENDING:
                raise QueueFullError
            operation = _Operation(secrets.token_hex(6), kind, work, self._clock.now())
            self._operations[operation.id] = operation
            self._queues[lane].append(operation)
            self._publish(operation)
            self._changed.notify_all()
            return _json(operation)

    def summaries(self) -> Sequence[dict[str, object]]:
        """All of them as JSON, the latest one first, without their results."""
        with self._changed:
            return [_summary(operation) for operation in reversed(self._operations.values())]

    def current(self) -> Sequence[dict[str, object]]:
        """Those that have not ended as JSON, the oldest one first."""
        with self._changed:
            return [
                _json(operation)
                for operation in self._operations.values()
                if not operation.state.has_ended
            ]

    def get(self, operation_id: str) -> dict[str, object]:
        """One of them, as JSON.

        Raises:
            NoSuchOperationError: there is none.
        """
        with self._changed:
            return _json(self._find(operation_id))

    def state_of(self, operation_id: str) -> State:
        """How far one of them is.

        Raises:
            NoSuchOperationError: there is none.
        """
        with self._changed:
            return self._find(operation_id).state

    def layers_of(self, operation_id: str) -> Mapping[Digest, LayerProgress]:
        """How far the layers are that one of them installs; of one that has ended, what failed.

        Raises:
            NoSuchOperationError: there is none.
        """
        with self._changed:
            return dict(self._find(operation_id).layers)

    def failed_images_of(self, operation_id: str) -> Mapping[str, object]:
        """The errors of the images that one of them could not install, by their references."""
        with self._changed:
            operation = self._operations.get(operation_id)
            return {} if operation is None else operation.failed_images

    def cancel(self, operation_id: str) -> dict[str, object]:
        """Have one of them end early, if it has not ended.

        Raises:
            NoSuchOperationError: there is none.
        """
        with self._changed:
            operation = self._find(operation_id)
        self._cancel(operation)
        with self._changed:
            return _json(operation)

    def _cancel(self, operation: _Operation) -> None:
        with self._changed:
            for queue in self._queues.values():
                if operation in queue:
                    queue.remove(operation)
                    self._end(operation, State.CANCELLED)
                    return
        # Not under the lock: what it interrupts may want to tell how far it is.
        operation.cancellation.cancel()

    def _find(self, operation_id: str) -> _Operation:
        operation = self._operations.get(operation_id)
        if operation is None:
            raise NoSuchOperationError(operation_id)
        return operation

    # Working

    def _work_off(self, lane: Lane) -> None:
        queue = self._queues[lane]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._is_closed)
                if self._is_closed:
                    return
                operation = queue.popleft()
            try:
                self._work_on(operation)
            finally:
                self._make_sure_of_end(operation)

    def _work_on(self, operation: _Operation) -> None:
        began = self._clock.monotonic()
        with self._changed:
            operation.state = State.RUNNING
            operation.started = self._clock.now()
            self._told.clear()
            self._publish(operation)
        self._note_end(operation, self._done(operation))
        self._on_end(operation.kind, operation.state, self._clock.monotonic() - began)

    def _done(self, operation: _Operation) -> _Outcome:
        """Have the work done, and return what came of it; a bug fails the operation only."""
        try:
            with self._guard.failing(Boundary.OPERATION, f"operation {operation.id}"):
                return self._outcome_of(operation)
        except LayerManagerError as error:
            return _Outcome(State.FAILED, error=error_json(error))

    def _outcome_of(self, operation: _Operation) -> _Outcome:
        try:
            return _Outcome(State.SUCCEEDED, encoded(self._result_of(operation)))
        except CancelledError:
            return _Outcome(State.CANCELLED)
        except LayersFailedError as error:
            return _Outcome(
                State.FAILED,
                encoded(result_json(error.result)),
                error_json(error),
                {
                    failed.desired.reference: error_json(failed.error)
                    for failed in error.result.images.failed
                },
            )
        except LayerManagerError as error:
            return _Outcome(State.FAILED, error=error_json(error))

    def _result_of(self, operation: _Operation) -> object:
        """Do the work; again and again while another process changes the store."""
        run = Run(self, operation)
        while True:
            try:
                return operation.work(run)
            except StoreBusyError as error:
                run.note_wait(str(error))
                self._clock.wait(operation.cancellation.requested, _SECONDS_BETWEEN_TRIES)
                operation.cancellation.check()

    def _note_end(self, operation: _Operation, outcome: _Outcome) -> None:
        with self._changed:
            operation.result = outcome.result
            operation.error = outcome.error
            operation.failed_images = outcome.failed_images
            self._end(operation, outcome.state)

    def _make_sure_of_end(self, operation: _Operation) -> None:
        """End an operation of which not even the failure could be noted."""
        with self._changed:
            if not operation.state.has_ended:
                self._end(operation, State.FAILED)

    def _end(self, operation: _Operation, state: State) -> None:
        operation.state = state
        operation.ended = self._clock.now()
        operation.waits_for = ""
        operation.check = None
        operation.work = _nothing
        operation.layers = {
            digest: progress
            for digest, progress in operation.layers.items()
            if progress.phase is Phase.FAILED
        }
        self._forget_old()
        self._changed.notify_all()
        self._publish(operation)

    def _forget_old(self) -> None:
        """Keep the latest ones that have ended, as long as their results are not too large."""
        kept = size = 0
        for operation in list(reversed(self._operations.values())):
            if operation.state.has_ended:
                kept += 1
                size += len(operation.result or b"")
                if kept > 1 and (kept > _KEPT or size > _KEPT_RESULT_BYTES):
                    del self._operations[operation.id]

    # Telling

    def note_layer(self, operation: _Operation, progress: LayerProgress) -> None:
        """Show how far a layer is, as ``Run`` says."""
        with self._changed:
            operation.layers[progress.desired.digest] = progress
            if self._is_news(progress.desired.digest, progress.phase):
                with self._telling:
                    self._events.publish(
                        "progress", {"operation": operation.id, **progress_json(progress)}
                    )

    def note_check(self, operation: _Operation, progress: CheckProgress) -> None:
        """Show how far a check is, as ``Run`` says."""
        with self._changed:
            operation.check = progress
            if self._is_news(None, None):
                self._publish(operation)

    def note_wait(self, operation: _Operation, reason: str) -> None:
        """Show for what an operation waits, as ``Run`` says."""
        with self._changed:
            if reason != operation.waits_for:
                operation.waits_for = reason
                self._publish(operation)

    def _is_news(self, subject: Digest | None, phase: Phase | None) -> bool:
        """Whether to tell of it: of each phase, and else of what was not told just now."""
        now = self._clock.monotonic()
        told, last = self._told.get(subject, (-_SECONDS_BETWEEN_EVENTS, None))
        if phase == last and now - told < _SECONDS_BETWEEN_EVENTS:
            return False
        self._told[subject] = now, phase
        return True

    def _publish(self, operation: _Operation) -> None:
        with self._telling:
            self._events.publish("operation", _summary(operation))


def _nothing(_: Run) -> None:
    """What an operation has to do that has ended: it holds on to nothing."""


def _summary(operation: _Operation) -> dict[str, object]:
    document: dict[str, object] = {
        "id": operation.id,
        "kind": str(operation.kind),
        "state": str(operation.state),
        "created": time_json(operation.created),
    }
    if operation.started is not None:
        document["started"] = time_json(operation.started)
    if operation.ended is not None:
        document["ended"] = time_json(operation.ended)
    if operation.waits_for:
        document["waitsFor"] = operation.waits_for
    if operation.check is not None:
        document["check"] = {
            "layer": operation.check.number,
            "layers": operation.check.layers,
            "read": operation.check.read,
        }
    if operation.error is not None:
        document["error"] = operation.error
    return document


def _json(operation: _Operation) -> dict[str, object]:
    document = _summary(operation)
    if operation.layers:
        document["layers"] = [progress_json(progress) for progress in operation.layers.values()]
    if operation.result is not None:
        document["result"] = json.loads(operation.result)
    return document
