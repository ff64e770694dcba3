"""Following a source of the desired state: looking there again and again, taking what is good.

What cannot be had, or is not proved, is tried again with growing waits; what was had and cannot be
used is refused, and not looked at again until the source has something else. In both cases what
was desired before stays.
"""

from __future__ import annotations

import enum
import logging
import random
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager.boundary import Boundary
from layermanager.cancellation import Cancellation
from layermanager.daemon.alarm import Alarm
from layermanager.daemon.desired_state import DesiredState
from layermanager.daemon.verifying import verify
from layermanager.errors import (
    CancelledError,
    ExhaustedError,
    InputError,
    LayerManagerError,
    SourceError,
    UnexpectedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from layermanager.daemon.config import DesiredStateConfig
    from layermanager.daemon.state_sources import StateSource
    from layermanager.living import LivingThreads
    from layermanager.protocols import Clock
    from layermanager.transfer.addresses import Backoff

_LOGGER: Final = logging.getLogger(__name__)

_LONGEST_FIRST_WAIT_SECONDS: Final = 60.0
_LONGEST_POLL: Final = timedelta(hours=1)
"""More than all places of a document take that are silent as long as they may."""


class PollResult(enum.StrEnum):
    """What came of one look."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FollowStatus:
    """How the following goes.

    Attributes:
        source: what is followed.
        version: which version of the source was taken last; empty if none was.
        last_poll: when the source was looked at last, UTC; None if it never was.
        last_change: when it gave what was taken last, UTC; None if it gave nothing yet.
        failures: how many looks failed in a row.
        error: why the last look failed, or what it found was refused; None if all is well.
        is_refused: whether *error* says that it was refused.
    """

    source: str
    version: str = ""
    last_poll: datetime | None = None
    last_change: datetime | None = None
    failures: int = 0
    error: LayerManagerError | None = None
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """When to look again.

    Nodes that were started together must not ask together: every wait is spread by chance.

    Attributes:
        period: how long to wait, on average, after a look that went well.
        backoff: how long to wait after failures.
    """

    period: timedelta
    backoff: Backoff

    def first(self, chance: float) -> float:
        """Seconds until the first look, where something is desired already."""
        return chance * min(self.period.total_seconds(), _LONGEST_FIRST_WAIT_SECONDS)

    def next(self, chance: float) -> float:
        """Seconds after a look that went well: a quarter more or less than the period."""
        return self.period.total_seconds() * (0.75 + chance / 2)

    def after_failure(self, failures: int, error: LayerManagerError, chance: float) -> float:
        """Seconds after so many *failures* in a row; no fewer than the server asks for."""
        delay = self.backoff.delay(failures, chance)
        if isinstance(error, SourceError) and error.retry_after is not None:
            # Spread as well: a server asks all nodes for the same.
            asked = error.retry_after.total_seconds() * (1 + chance / 4)
            delay = max(delay, min(asked, self.backoff.longest_delay.total_seconds()))
        return delay


class Follower:
    """Looks at a source, by itself once it was started.

    Args:
        source: where; it is closed with this.
        config: how often to look, and who proves what is found.
        adopt: is given what is desired from now on.
        on_poll: is told what came of each look, and the status then.
        clock: the time.
        threads: watches the thread that looks.
        chance: gives numbers from 0 to 1.
    """

    def __init__(
        self,
        source: StateSource,
        config: DesiredStateConfig,
        *,
        adopt: Callable[[DesiredState], None],
        on_poll: Callable[[PollResult, FollowStatus], None],
        clock: Clock,
        threads: LivingThreads,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._threads = threads
        self._guard = threads.guard
        self._command = config.verify_command
        self._schedule = PollSchedule(config.poll_period, config.backoff)
        self._adopt = adopt
        self._on_poll = on_poll
        self._clock = clock
        self._chance = chance
        self._cancellation = Cancellation("the daemon ends")
        self._alarm = Alarm("state-source", self._poll, clock, threads, longest=_LONGEST_POLL)
        self._seen = ""
        self._refusal: InputError | None = None
        self._status = FollowStatus(source.name)
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def start(self, *, something_is_desired: bool) -> None:
        """Begin to look: at once where that costs nobody anything, or nothing is desired yet."""
        is_urgent = self._source.is_local or not something_is_desired
        self._alarm.set(0 if is_urgent else self._schedule.first(self._chance()))
        self._alarm.start()
        # Without word from the source it is looked at all the same.
        with self._guard.containing(Boundary.POLL, f"watching {self._source.name}"):
            self._stack.enter_context(self._source.watching(self.poll_now, self._threads))

    def close(self) -> None:
        """End a look that is under way, and look no more."""
        self._cancellation.cancel()
        for what, close in (
            ("the watch of", self._stack.close),
            ("the alarm of", self._alarm.close),
            ("closing", self._source.close),
        ):
            with self._guard.containing(Boundary.POLL, f"{what} {self._source.name}"):
                close()

    def poll_now(self) -> None:
        """Look as soon as possible."""
        self._alarm.set(0)

    @property
    def status(self) -> FollowStatus:
        """How it goes."""
        with self._lock:
            return self._status

    @property
    def next_poll(self) -> datetime | None:
        """When it looks next, UTC; None while it looks."""
        return self._alarm.time

    def _poll(self) -> None:
        try:
            wait = self.poll()
        except CancelledError:
            return  # by the end of the following
        self._alarm.set(wait)

    def poll(self) -> float:
        """Look once, here and now; return how many seconds to wait until the next look.

        Raises:
            CancelledError: the following has ended.
        """
        before = self.status
        try:
            with self._guard.failing(Boundary.POLL, f"the poll of {before.source}"):
                found = self._look()
        except CancelledError:
            raise
        except LayerManagerError as error:
            failures = before.failures + 1
            now = self._clock.now()
            status = replace(
                before, last_poll=now, failures=failures, error=error, is_refused=False
            )
            self._note(PollResult.FAILED, before, status)
            return self._schedule.after_failure(failures, error, self._chance())
        status = replace(before, last_poll=self._clock.now(), failures=0)
        match found:
            case InputError():
                status = replace(status, error=found, is_refused=True)
                self._note(PollResult.REFUSED, before, status)
            case None:
                # What was refused still is what the source has, and still is refused.
                refusal = self._refusal
                status = replace(status, error=refusal, is_refused=refusal is not None)
                self._note(PollResult.UNCHANGED, before, status)
            case version:
                _LOGGER.info("the desired state of %s has changed: %s", before.source, version)
                status = FollowStatus(before.source, version, status.last_poll, status.last_poll)
                self._note(PollResult.CHANGED, before, status)
        return self._schedule.next(self._chance())

    def _look(self) -> str | InputError | None:
        """Look once.

        Returns:
            The version that was taken; why what was found is refused; None if nothing is new.

        Raises:
            LayerManagerError: nothing can be had, or kept, or it is not proved.
        """
        fetched = self._source.fetch(self._seen, self._cancellation)
        if fetched is None:
            return None
        if self._command:
            verify(self._command, fetched, self._cancellation)
        try:
            state = DesiredState.read(fetched.document, self._source.name)
        except InputError as error:
            self._seen, self._refusal = fetched.refused_version or fetched.version, error
            return error
        self._adopt(state)
        self._seen, self._refusal = fetched.version, None
        return fetched.version

    def _note(self, result: PollResult, before: FollowStatus, status: FollowStatus) -> None:
        error = status.error
        is_logged = isinstance(error, UnexpectedError | ExhaustedError)  # with its traceback
        # Not at each look again: an outage lasts for many.
        is_new = before.error is None or result is PollResult.REFUSED
        if error is not None and is_new and not is_logged:
            what = "is refused" if status.is_refused else "cannot be had"
            _LOGGER.warning("the desired state of %s %s: %s", status.source, what, error)
        with self._lock:
            self._status = status
        with self._guard.containing(Boundary.POLL, "what is told of polls"):
            self._on_poll(result, status)
