"""From which address the next bytes of a layer come, how long to wait first, when to give up.

Nothing here waits or connects: time is an argument, and so is chance.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final

from layermanager.errors import SourceError, SourceTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SHOWN_GROUPS: Final = 4
_LARGEST_EXPONENT: Final = 62
_KEPT_ATTEMPTS: Final = 32


@dataclass(frozen=True, slots=True)
class Backoff:
    """How patiently something that fails is tried again.

    Attributes:
        first_delay: about how long to wait after the first failure; doubled for each further one.
        longest_delay: what the doubling ends at.
    """

    first_delay: timedelta
    longest_delay: timedelta

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many *failures* in a row.

        Between half of the delay and all of it, as *chance*, 0 to 1, decides: nodes that failed
        together must not come back together.
        """
        doubled = self.first_delay.total_seconds() * 2.0 ** min(failures - 1, _LARGEST_EXPONENT)
        return min(doubled, self.longest_delay.total_seconds()) * (0.5 + chance / 2)


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often and how patiently a failing address is tried again.

    Attributes:
        attempts: failures in a row, without a byte in between, after which it is given up.
        backoff: the waits in between.
    """

    attempts: int
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class NextAddress:
    """What to ask next.

    Attributes:
        url: the address.
        wait: seconds to wait before.
    """

    url: str
    wait: float


class Addresses:
    """The addresses of one file and how well they do.

    The first that may be asked now is the one to ask; where all have failed of late, the one that
    may be asked soonest. So the order is kept while all is well, and an address that fails makes
    way for the others without anybody waiting.

    Args:
        urls: the addresses, best first; at least one.
        retrying: how often to try each.
        began: the time, in seconds of a monotonic clock.
        chance: gives numbers from 0 to 1.
    """

    def __init__(
        self, urls: Iterable[str], retrying: Retrying, *, began: float, chance: Callable[[], float]
    ) -> None:
        self._states = [_State(url) for url in urls]
        self._retrying = retrying
        self._began = began
        self._chance = chance
        self._attempts: deque[SourceError] = deque(maxlen=_KEPT_ATTEMPTS)
        self._failures = 0

    def next(self, now: float) -> NextAddress:
        """The address to ask next.

        Raises:
            SourceError: none is left; it tells of everything that failed.
        """
        usable = [state for state in self._states if not state.is_given_up]
        if not usable:
            raise self.failure(now)
        best = min(usable, key=lambda state: max(now, state.not_before))
        return NextAddress(best.url, max(0.0, best.not_before - now))

    def failed(self, url: str, error: SourceError, now: float) -> None:
        """Note that *url* did not give what it was asked for."""
        self._attempts.append(error)
        self._failures += 1
        state = self._state_of(url)
        state.failures += 1
        if not error.is_transient or state.failures >= self._retrying.attempts:
            state.is_given_up = True
            return
        delay = self._retrying.backoff.delay(state.failures, self._chance())
        if error.retry_after is not None:
            delay = max(delay, error.retry_after.total_seconds())
        state.not_before = now + delay

    def gave_bytes(self, url: str) -> None:
        """Note that bytes came from *url*: its earlier failures count no more."""
        self._state_of(url).failures = 0

    def give_up(self, url: str) -> bool:
        """Do not ask *url* again, since what it gives is wrong; return whether others are left."""
        self._state_of(url).is_given_up = True
        return not all(state.is_given_up for state in self._states)

    def failure(self, now: float, last: SourceError | None = None) -> SourceError:
        """The error that tells of what failed; *last* is what failed at the end.

        Of very many failures it holds the last ones, and their number. A single failure is its
        own best description.
        """
        attempts = [*self._attempts] if last is None else [*self._attempts, last]
        count = self._failures if last is None else self._failures + 1
        final = attempts[-1]
        if count == 1:
            return final
        duration = timedelta(seconds=round(now - self._began))
        kind = SourceTimeoutError if isinstance(final, SourceTimeoutError) else SourceError
        return kind(
            f"gave up after {count} attempts in {duration}: {_history(attempts)}",
            url=final.url,
            is_transient=final.is_transient,
            retry_after=final.retry_after,
            attempts=attempts,
        )

    def _state_of(self, url: str) -> _State:
        return next(state for state in self._states if state.url == url)


@dataclass(slots=True)
class _State:
    """One address.

    Attributes:
        url: the address.
        failures: how often in a row it failed.
        not_before: when it may be asked again.
        is_given_up: whether it is not to be asked again.
    """

    url: str
    failures: int = 0
    not_before: float = float("-inf")
    is_given_up: bool = False


def _history(attempts: Sequence[SourceError]) -> str:
    """What failed, equal failures in a row counted; of many the last ones."""
    groups = [
        (reason, url, len(list(group)))
        for (reason, url), group in groupby(attempts, lambda error: (error.reason, error.url))
    ]
    several = len({url for _, url, _ in groups}) > 1
    parts = [
        f"{reason}{f' at {url}' if several else ''}{f' ({count} times)' if count > 1 else ''}"
        for reason, url, count in groups[-_SHOWN_GROUPS:]
    ]
    if len(groups) > _SHOWN_GROUPS:
        parts.insert(0, "…")
    return "; ".join(parts)
