"""Showing progress in a thread of its own, so that no terminal holds up an installation.

A terminal that was stopped with Ctrl-S, or a pipe that nobody empties, blocks who writes to it;
one that was closed fails. Neither is a reason for a layer to fail, or to wait.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

    from layermanager.cli.progress import Display
    from layermanager.model import LayerProgress

_SECONDS_BETWEEN_LOOKS: Final = 0.1


class BackgroundDisplay:
    """Has *display* show what it is told, within its context, in the order in which it was told.

    Its methods never block and never fail. When the stream of *display* fails nothing is shown
    any more: those who might be told are gone.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._untold: deque[LayerProgress | str] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def update(self, progress: LayerProgress) -> None:
        """Have a moment of one installation shown."""
        self._untold.append(progress)

    def write(self, text: str) -> None:
        """Have *text*, whole lines, printed; makes this a stream that logs can go to."""
        self._untold.append(text)

    def _show(self) -> None:
        try:
            while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
                self._tell()
                self._display.refresh()
            self._tell()
            self._display.end()
        except OSError:
            self._untold = deque(maxlen=0)

    def _tell(self) -> None:
        while self._untold:
            told = self._untold.popleft()
            if isinstance(told, str):
                self._display.write(told)
            else:
                self._display.update(told)
