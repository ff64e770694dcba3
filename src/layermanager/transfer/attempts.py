"""Asking one address after the other, with the waits between, until one gives what is wanted."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from layermanager.errors import SourceTimeoutError
from layermanager.transfer.addresses import Addresses, Backoff, Retrying
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.errors import SourceError
    from layermanager.protocols import Clock

_LOGGER: Final = logging.getLogger(__name__)


class Attempts:
    """The attempts to get one thing; for one thread.

    Args:
        what: what is wanted, for the log.
        urls: where it can be had, best first, at least one; each counts once.
        network: how patient to be.
        clock: the time.
        cancellation: ends a wait.
        chance: gives numbers from 0 to 1.

    Attributes:
        urls: the addresses.
        deadline: when it has to be there, by the monotonic clock.
    """

    def __init__(
        self,
        what: str,
        urls: Iterable[str],
        *,
        network: Network,
        clock: Clock,
        cancellation: Cancellation,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._what = what
        self._clock = clock
        self._cancellation = cancellation
        now = clock.monotonic()
        self.deadline = now + network.transfer_timeout.total_seconds()
        self.urls = tuple(dict.fromkeys(urls))
        self._addresses = Addresses(
            self.urls,
            Retrying(network.attempts, Backoff(network.retry_delay, network.longest_retry_delay)),
            began=now,
            chance=chance,
        )

    def next(self) -> str:
        """The address to ask now, after the wait that it needs.

        Raises:
            SourceError: none is left, or the time is over; it tells of everything that failed.
            CancelledError: it was cancelled.
        """
        now = self._clock.monotonic()
        choice = self._addresses.next(now)
        if now + choice.wait >= self.deadline:
            late = SourceTimeoutError(
                "not there within transferTimeoutSeconds",
                url=shown(choice.url),
                is_transient=True,
            )
            raise self._addresses.failure(now, late)
        if choice.wait:
            self._clock.wait(self._cancellation.requested, choice.wait)
        self._cancellation.check()
        return choice.url

    def failed(self, url: str, error: SourceError) -> None:
        """Note that *url* failed; return if something may be asked again.

        Raises:
            SourceError: nothing may; it tells of everything that failed.
            CancelledError: it was cancelled.
        """
        self._cancellation.check()
        now = self._clock.monotonic()
        self._addresses.failed(url, error, now)
        if now >= self.deadline:
            raise self._addresses.failure(now)
        wait = self._addresses.next(now).wait
        _LOGGER.warning("%s: %s; next try in %.1f s", self._what, error, wait)

    def gave_bytes(self, url: str) -> None:
        """Note that bytes came from *url*: its earlier failures count no more."""
        self._addresses.gave_bytes(url)

    def give_up(self, url: str) -> bool:
        """Do not ask *url* again, since what it gives is wrong; return whether others are left."""
        return self._addresses.give_up(url)
