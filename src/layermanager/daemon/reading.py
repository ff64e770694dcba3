"""What is installed, for many readers a second."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from layermanager.model import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layermanager.config import Config
    from layermanager.inventory import Inventory
    from layermanager.model import LayerInfo
    from layermanager.protocols import Clock

_State: TypeAlias = "tuple[tuple[int, int, int] | None, ...]"

Value = TypeVar("Value")

_RECENT_SECONDS: Final = 1.0
_OLDEST_SECONDS: Final = 10.0
_SETTLED_NANOSECONDS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class _Reading:
    layers: Sequence[LayerInfo]
    state: _State
    is_settled: bool
    began: int


class CurrentLayers:
    """The installed layers, read anew only after the database has changed.

    Another process may change it, so what counts is the file and its log, by their sizes and
    times. So do the directories that hold layers and indexes: on a full disk layers are removed
    before their rows. The kernel's times have a grain of some milliseconds: two changes within one
    look like one, so that files that were changed just now are read again all the same.

    Args:
        inventory: reads them.
        config: says where they are read from.
    """

    def __init__(self, inventory: Inventory, config: Config) -> None:
        self._inventory = inventory
        self._files = (
            os.fspath(config.database),
            f"{config.database}-wal",
            *(
                os.fspath(directory / algorithm)
                for directory in (config.layers_dir, config.index_dir)
                for algorithm in ALGORITHMS
            ),
        )
        self._lock = threading.Lock()
        self._last: _Reading | None = None

    def get(self) -> Sequence[LayerInfo]:
        """All installed layers, ordered by digest.

        Raises:
            StorageError: the database cannot be read.
        """
        asked = time.monotonic_ns()
        with self._lock:
            last = self._last
            # One that began since then is as good as one of its own: all that waited share it.
            if last is not None and last.began >= asked:
                return last.layers
            began, state = time.monotonic_ns(), self._state()
            if last is not None and last.is_settled and last.state == state:
                return last.layers
            layers = self._inventory.layers()
            is_settled = self._state() == state and _is_settled(state)
            self._last = _Reading(layers, state, is_settled, began)
            return layers

    def _state(self) -> _State:
        return tuple(map(_state_of, self._files))


def _state_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - it is asked for a thousand times a second
    except OSError:
        return None  # most often it is not there; else reading it says what is wrong
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_settled(state: _State) -> bool:
    newest = max((one[2] for one in state if one is not None), default=0)
    return newest < time.time_ns() - _SETTLED_NANOSECONDS


class Recent(Generic[Value]):
    """Cache of an expensive read: at most one a second, shared between threads.

    While one thread reads, the others get the last value, unless that is older than ten seconds:
    then they wait for the new one.

    Args:
        read: reads it.
        clock: the time.
    """

    def __init__(self, read: Callable[[], Value], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Value] | None = None

    def get(self) -> Value:
        """Return the value, a second old at most, or ten while it is read again."""
        last = self._last
        if last is not None:
            longest = _OLDEST_SECONDS if self._lock.locked() else _RECENT_SECONDS
            if self._age(last[0]) < longest:
                return last[1]
        with self._lock:
            last = self._last
            if last is not None and self._age(last[0]) < _RECENT_SECONDS:
                return last[1]
            now = self._clock.monotonic()
            value = self._read()
            self._last = now, value
            return value

    def _age(self, then: float) -> float:
        return self._clock.monotonic() - then
