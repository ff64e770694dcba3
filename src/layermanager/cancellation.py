"""Ending what is under way, at once, from another thread."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from layermanager.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancellation:
    """Tells operations that they are to end, and interrupts what they wait for.

    Args:
        why: what the error says of the reason.

    Attributes:
        requested: set once ``cancel`` was called.
    """

    def __init__(self, why: str = "the operation is not wanted any more") -> None:
        self._why = why
        self.requested = threading.Event()
        self._lock = threading.Lock()
        self._interrupts: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Have everything end that looks here; may be repeated."""
        with self._lock, ExitStack() as stack:
            self.requested.set()
            for interrupt in reversed(self._interrupts):
                stack.callback(interrupt)  # all are called, also where one raises

    def check(self) -> None:
        """Raise ``CancelledError`` if it is time to end."""
        if self.requested.is_set():
            raise CancelledError(f"cancelled: {self._why}")

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call *interrupt*, which must not block, if ``cancel`` is called within the context.

        Raises:
            CancelledError: it was called before; or the context failed after it was called, most
                likely for that reason.
        """
        with self._lock:
            self.check()
            self._interrupts.append(interrupt)
        try:
            yield
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)
