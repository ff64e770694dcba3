"""The node as the API sees it: reads at once, changes as operations."""

from __future__ import annotations

import logging
import random
import threading
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from layermanager import __version__
from layermanager.boundary import Boundary, Guard
from layermanager.check import Depth, Status
from layermanager.daemon.alarm import Alarm
from layermanager.daemon.desired_state import FILE_NAME, DesiredState, RememberedState
from layermanager.daemon.following import Follower, FollowStatus, PollResult
from layermanager.daemon.metrics import Metrics
from layermanager.daemon.operations import (
    Kind,
    Lane,
    NoSuchOperationError,
    Operations,
    QueueFullError,
    State,
)
from layermanager.daemon.problems import RefusedError
from layermanager.daemon.reading import CurrentLayers, Recent
from layermanager.errors import (
    CancelledError,
    InputError,
    LayerManagerError,
    LayerNotExistError,
    LayersFailedError,
    StoreBusyError,
    StoreError,
)
from layermanager.inventory import Inventory
from layermanager.json_documents import (
    adopted_json,
    error_json,
    held_json,
    layer_json,
    report_json,
    result_json,
)
from layermanager.living import LivingThreads
from layermanager.manager import LayerManager
from layermanager.model import Repair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set
    from datetime import datetime

    from layermanager.check import LayerReport
    from layermanager.config import Config
    from layermanager.daemon.config import DesiredStateConfig
    from layermanager.daemon.events import Events
    from layermanager.daemon.operations import Run, Work
    from layermanager.daemon.state_sources import StateSource
    from layermanager.model import Digest, FailedLayer, LayerInfo, LayerProgress, StoreUsage
    from layermanager.observer import Removal
    from layermanager.protocols import Clock
    from layermanager.use.layer_use import Users

_LOGGER: Final = logging.getLogger(__name__)
_SECONDS_BETWEEN_STARTS: Final = 5.0
_LONGEST_TRY: Final = timedelta(minutes=10)


class Node:
    """A store, what is done with it, and what is told of it.

    Reading takes no lock and waits for nobody. Changing goes through the one ``LayerManager`` of
    the daemon, which its first operation makes: until the store is clean the node is not ready, but
    can be looked at. Other processes may use the store as well; operations wait for them.

    Attributes:
        config: of the store.
        inventory: looks at the store.
        layers: what is installed.
        events: what happens.
        operations: what is done.
        metrics: what is counted.
        guard: notes unexpected exceptions.
        threads: watches the threads that must live.
        clock: the time.
        follower: looks where the desired state comes from; None where nothing is followed.

    Args:
        config: of the store.
        clock: the time.
        events: where to tell what happens.
        desired_state: how patiently the desired state is seen to, and who proves it.
        source: where it comes from; None where whoever uses the API says what is desired. It is
            closed with the node.
        chance: gives numbers from 0 to 1, by which waits are spread.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        events: Events,
        desired_state: DesiredStateConfig,
        *,
        source: StateSource | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.metrics = Metrics(clock, __version__)
        self.guard = Guard(self.metrics.unexpected)
        self.inventory = Inventory(config, guard=self.guard, clock=clock)
        self.layers = CurrentLayers(self.inventory, config)
        self._users = Recent(self.inventory.users, clock)
        self.events = events
        self.threads = LivingThreads(self.guard, clock)
        self.operations = Operations(events, clock, self.metrics.ended, self.threads)
        self.clock = clock
        self._remembered = RememberedState(config.working_dir / FILE_NAME)
        self._changing_desired = threading.Lock()
        self._desired: tuple[DesiredState | None, str] = None, ""
        self._backoff = desired_state.backoff
        self._chance = chance
        self._failures = 0
        self._is_unread = False
        self._next_try = Alarm(
            "next-try", self._try_again, clock, self.threads, longest=_LONGEST_TRY
        )
        self.follower: Follower | None = None
        if source is not None:
            self.follower = Follower(
                source,
                desired_state,
                adopt=self._adopt,
                on_poll=self._note_poll,
                clock=clock,
                threads=self.threads,
                chance=chance,
            )
        self._manager: LayerManager | None = None
        self._installing: Run | None = None

    def start(self) -> None:
        """Clean the store, and make what was desired last be there, in the background."""
        self.operations.start()
        self._next_try.start()
        self._submit(Kind.START, self._open)
        state = self._last_desired()
        if state is not None:
            with self._changing_desired:
                self._apply(state)
        if self.follower is not None:
            self.follower.start(something_is_desired=state is not None)

    def close(self) -> None:
        """Cancel what is under way, and release the store."""
        if self.follower is not None:
            self.follower.close()
        self._next_try.close()
        self.events.close()
        self.operations.close()
        if self._manager is not None:
            self._manager.close()

    @property
    def is_ready(self) -> bool:
        """Whether the store is clean and operations are done."""
        return self._manager is not None

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is dead or stuck of what must live, each with what is wrong with it; no waits."""
        held_up = ("operations are held up",) if self.operations.is_held_up else ()
        return (*self.threads.troubles(), *held_up)

    def usage(self) -> StoreUsage:
        """Where the space went; who uses it, about a second ago.

        Raises:
            StoreError, StorageError: the directory or the database cannot be read.
        """
        return self.inventory.usage_by(self.layers.get(), self.users())

    def users(self) -> Users:
        """Who uses layers, about a second ago.

        Raises:
            StoreError, StorageError: it cannot be told what is mounted; the database cannot be
                read.
        """
        return self._users.get()

    # The desired state

    @property
    def desired(self) -> tuple[DesiredState | None, str]:
        """What was desired last, and the id of the operation that sees to it."""
        return self._desired

    @property
    def next_try(self) -> datetime | None:
        """When what is desired is seen to again, as that has failed, UTC; None if it is not."""
        return self._next_try.time

    def put_desired(self, document: bytes) -> dict[str, object]:
        """Make what is desired be there from now on, also after a restart.

        What was desired before is not seen to any more: its operation is cancelled. The same once
        more, while it is being seen to, changes nothing.

        Returns:
            The operation, as JSON.

        Raises:
            DesiredStateError, InvalidDigestError, InvalidReferenceError: it cannot be used; the
                last one stays.
            StoreError: it cannot be kept for the time after a restart; the last one stays.
            RefusedError: the desired state comes from elsewhere, or too much is to be done already.
        """
        if self.follower is not None:
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"the desired state comes from {self.follower.status.source}: change it there, or"
                " remove desiredState.source from the configuration",
            )
        state = DesiredState.read(document, "the body")
        with self._changing_desired:
            before, operation_id = self._desired
            if state == before and not self._has_ended(operation_id):
                return self.operations.get(operation_id)
            self._remembered.keep(state)
            return self._apply(state)

    def _last_desired(self) -> DesiredState | None:
        try:
            with self.guard.failing(Boundary.OPERATION, "reading the last desired state"):
                return self._remembered.load()
        except InputError as error:
            # The daemon must come up, so that a better one can be given to it.
            _LOGGER.error("the last desired state is not used: %s", error)  # noqa: TRY400 - no bug
        except LayerManagerError as error:
            _LOGGER.error("the last desired state is read later: %s", error)  # noqa: TRY400 - no bug
            self._is_unread = True
            self._next_try.set(self._backoff.delay(1, self._chance()))
        return None

    def _adopt(self, state: DesiredState) -> None:
        """Make what a source gives be there, unless it is already or will be.

        Raises:
            StoreError: it cannot be kept for the time after a restart; the last one stays.
        """
        with self._changing_desired:
            before, operation_id = self._desired
            if state == before and not self._is_in_vain(operation_id):
                return
            self._remembered.keep(state)
            try:
                self._apply(state)
            except RefusedError:  # too much is to be done already
                self._desired = state, ""
                self._next_try.set(self._backoff.delay(1, self._chance()))

    def _is_in_vain(self, operation_id: str) -> bool:
        try:
            return self.operations.state_of(operation_id) in {State.FAILED, State.CANCELLED}
        except NoSuchOperationError:
            return True

    def _note_poll(self, result: PollResult, status: FollowStatus) -> None:
        self.metrics.polled(result)
        if result is PollResult.UNCHANGED:
            return
        data: dict[str, object] = {"source": status.source, "result": str(result)}
        if status.error is not None:
            data["error"] = error_json(status.error)
        self.events.publish("desired-state", data)

    def _try_again(self) -> None:
        """See to what is desired once more, in the thread of the alarm."""
        with self._changing_desired:
            state, operation_id = self._desired
            if state is None and self._is_unread:
                self._is_unread = False
                state = self._last_desired()
            if state is None or not self._has_ended(operation_id):
                return
            self._desired = state, operation_id
            try:
                self._apply(state, self._failures)
            except RefusedError:  # too much is to be done already
                self._next_try.set(self._backoff.delay(1, self._chance()))

    def _apply(self, state: DesiredState, failures: int = 0) -> dict[str, object]:
        """See to *state*, which could not be made so many times already."""
        _, before = self._desired
        self._failures = failures
        self._next_try.clear()
        if not self._has_ended(before):
            self.operations.cancel(before)
        operation = self._submit(Kind.APPLY, lambda run: self._make_desired(state, run))
        self._desired = state, str(operation["id"])
        return operation

    def _has_ended(self, operation_id: str) -> bool:
        try:
            return self.operations.state_of(operation_id).has_ended
        except NoSuchOperationError:
            return True

    # Operations

    def collect_garbage(self, time_to_live: timedelta, free: int) -> dict[str, object]:
        """Remove cached layers past *time_to_live*, and more until *free* bytes are freed."""
        return self._submit(Kind.GC, lambda run: self._remove_cached(run, time_to_live, free))

    def check(self, digests: Sequence[Digest], depth: Depth, *, repair: bool) -> dict[str, object]:
        """Compare layers with their indexes; all of them if there are no *digests*.

        Raises:
            LayerNotExistError: one of them is not installed.
        """
        layers = self._chosen(digests)
        if not repair:
            return self._submit(
                Kind.CHECK, lambda run: self._look(run, layers, depth), Lane.LOOKING
            )
        return self._submit(Kind.CHECK, lambda run: self._repair(run, layers, depth))

    def adopt(self, digests: Sequence[Digest], *, clean_markers: bool) -> dict[str, object]:
        """Take layers of another program for what they are; all of them if there are no *digests*.

        Raises:
            LayerNotExistError: one of them is not installed.
        """
        layers = self._chosen(digests)
        return self._submit(
            Kind.ADOPT, lambda run: self._adopt_layers(run, layers, clean_markers=clean_markers)
        )

    def _submit(self, kind: Kind, work: Work, lane: Lane = Lane.CHANGING) -> dict[str, object]:
        try:
            return self.operations.submit(kind, work, lane)
        except QueueFullError:
            raise RefusedError.for_now("too many operations are waiting already") from None

    def _chosen(self, digests: Sequence[Digest]) -> Sequence[LayerInfo]:
        layers = self.layers.get()
        if not digests:
            return layers
        by_digest = {layer.digest: layer for layer in layers}
        for digest in digests:
            if digest not in by_digest:
                raise LayerNotExistError(f"layer {digest} is not installed", digest=digest)
        return [by_digest[digest] for digest in dict.fromkeys(digests)]

    # What operations do, in the threads of their lanes

    def _open(self, run: Run) -> object:
        """Make the manager, which cleans the store; what is in the way may be mended meanwhile."""
        while True:
            try:
                with self.guard.failing(Boundary.OPERATION, "opening the store"):
                    self._manager = LayerManager(
                        self.config,
                        clock=self.clock,
                        on_progress=self._note_progress,
                        observer=_Telling(self.metrics, self.events),
                        threads=self.threads,
                    )
            except StoreBusyError:
                raise  # it is tried again
            except LayerManagerError as error:
                _LOGGER.error("the store cannot be used: %s", error)  # noqa: TRY400 - no bug
                run.note_wait(str(error))
                self.clock.wait(run.cancellation.requested, _SECONDS_BETWEEN_STARTS)
                run.cancellation.check()
            else:
                self.events.publish("ready", {})
                return {}

    def _opened(self) -> LayerManager:
        if self._manager is None:
            raise StoreError("the store could not be opened when the daemon started; see its log")
        return self._manager

    def _make_desired(self, state: DesiredState, run: Run) -> object:
        manager = self._opened()
        try:
            with (
                self.guard.failing(Boundary.OPERATION, "applying the desired state"),
                self._shown_in(run),
            ):
                result = manager.process_desired_layers(
                    (*state.layers, *state.images), cancellation=run.cancellation
                )
        except (CancelledError, StoreBusyError):
            raise  # somebody else has the say now, or it is tried again at once
        except LayerManagerError:
            self._failures += 1
            self._next_try.set(self._backoff.delay(self._failures, self._chance()))
            raise
        return result_json(result)

    def _remove_cached(self, run: Run, time_to_live: timedelta, free: int) -> object:
        manager = self._opened()
        removed = manager.remove_expired_layers(time_to_live)
        freed = sum(layer.size for layer in removed)
        run.cancellation.check()
        removed += manager.remove_cached_layers(max(0, free - freed))
        return {
            "removed": [layer_json(layer) for layer in removed],
            "freed": sum(layer.size for layer in removed),
            "held": [held_json(layer) for layer in manager.held_layers()],
        }

    def _look(self, run: Run, layers: Sequence[LayerInfo], depth: Depth) -> object:
        return _check_json(self._compare(run, layers, depth), frozenset(), ())

    def _compare(
        self, run: Run, layers: Sequence[LayerInfo], depth: Depth
    ) -> Sequence[LayerReport]:
        reports = self.inventory.check(
            layers, depth, cancellation=run.cancellation, on_progress=run.note_check
        )
        self.metrics.found_damaged(sum(one.status is Status.DAMAGED for one in reports))
        return reports

    def _repair(self, run: Run, layers: Sequence[LayerInfo], depth: Depth) -> object:
        reports = self._compare(run, layers, depth)
        sources = self.inventory.sources()
        repairs = [
            Repair(report.layer, sources[report.layer.digest])
            for report in reports
            if report.status is not Status.INTACT and report.layer.digest in sources
        ]
        failed: Sequence[FailedLayer] = ()
        try:
            with self._shown_in(run):
                repaired = self._opened().repair_layers(repairs, cancellation=run.cancellation)
        except LayersFailedError as error:
            if error.result.images.failed:
                raise
            repaired = error.result.installed
            failed = error.result.failed
        return _check_json(reports, {layer.digest for layer in repaired}, failed)

    def _adopt_layers(
        self, run: Run, layers: Sequence[LayerInfo], *, clean_markers: bool
    ) -> object:
        adopted = self._opened().adopt_layers(
            layers, clean_markers=clean_markers, cancellation=run.cancellation
        )
        return {"adopted": [adopted_json(one) for one in adopted]}

    @contextmanager
    def _shown_in(self, run: Run) -> Iterator[None]:
        """Show the installations within the context as those of *run*."""
        self._installing = run
        try:
            yield
        finally:
            self._installing = None

    def _note_progress(self, progress: LayerProgress) -> None:
        self.metrics.progressed(progress)
        if self._installing is not None:
            self._installing.note_layer(progress)


def _check_json(
    reports: Sequence[LayerReport], repaired: Set[Digest], failed: Sequence[FailedLayer]
) -> dict[str, object]:
    return {
        "reports": [
            report_json(one, "repaired" if one.layer.digest in repaired else "") for one in reports
        ],
        "failed": [
            {"digest": layer.desired.digest, "error": error_json(layer.error)} for layer in failed
        ],
    }


class _Telling:
    """The ``Observer`` of the manager: counts everything, and tells readers of removals."""

    def __init__(self, metrics: Metrics, events: Events) -> None:
        self._metrics = metrics
        self._events = events
        self.fetched = metrics.fetched
        self.written = metrics.written
        self.retried = metrics.retried
        self.unexpected = metrics.unexpected

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        self._metrics.removed(layer, why)
        self._events.publish("removed", {**layer_json(layer), "reason": str(why)})
