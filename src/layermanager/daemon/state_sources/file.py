"""A desired state in a file of this node, which the kernel tells of (inotify(7))."""

from __future__ import annotations

import logging
import os
import select
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.daemon.state_sources import Fetched
from layermanager.errors import ExhaustedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from layermanager.cancellation import Cancellation
    from layermanager.living import LivingThread, LivingThreads

_LOGGER: Final = logging.getLogger(__name__)

_SUFFIX: Final = ".sig"
_MOST_SIGNATURE_BYTES: Final = 64 * 1024
_EVENT_BYTES: Final = 64 * 1024
_LONGEST_CALL: Final = timedelta(minutes=1)


class FileStateSource:
    """Looks at a file; its signature is in a file of the same name and ``.sig``.

    The file should be replaced by a rename: one that is written in place may be looked at half
    way, and is refused then until it is whole.

    Args:
        path: the file.
        most_bytes: how large it may be.
        with_signature: whether the signature is wanted.
    """

    is_local: Final = True

    def __init__(self, path: Path, *, most_bytes: int, with_signature: bool) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._signature = path.with_name(path.name + _SUFFIX) if with_signature else None

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
        """What is in the file now, as ``StateSource`` has it."""
        cancellation.check()
        # Before the files are read: what changes meanwhile is another version the next time.
        version = self._version(self._path)
        if self._signature is not None:
            version += f" {self._version(self._signature)}"
        if version == known:
            return None
        document = _read(self._path, self._most_bytes)
        if self._signature is None:
            return Fetched(version, document)
        return Fetched(version, document, _read(self._signature, _MOST_SIGNATURE_BYTES))

    @contextmanager
    def watching(self, on_change: Callable[[], None], threads: LivingThreads) -> Iterator[None]:
        """Tell of what happens in the file's directory, as ``StateSource`` has it."""
        with ExitStack() as stack:
            try:
                self._watch(stack, on_change, threads)
            except (OSError, ExhaustedError) as error:
                _LOGGER.warning(
                    "%s is not watched, only polled: %s: %s",
                    self._path,
                    error.strerror if isinstance(error, OSError) else error,
                    self._path.parent,
                )
            yield

    def _watch(
        self, stack: ExitStack, on_change: Callable[[], None], threads: LivingThreads
    ) -> None:
        """Begin to watch, until *stack* is closed."""
        with ExitStack() as begun:
            events = linux.open_events()
            begun.callback(os.close, events)
            linux.watch_directory(events, os.fsencode(self._path.parent))
            end = os.eventfd(0, os.EFD_CLOEXEC)
            begun.callback(os.close, end)

            def pass_on() -> None:
                _pass_on(events, end, on_change, thread)

            thread = threads.thread("state-watch", pass_on, longest=_LONGEST_CALL)
            thread.start()
            begun.callback(thread.close)
            begun.callback(os.eventfd_write, end, 1)
            stack.push(begun.pop_all())

    def close(self) -> None:
        """Do nothing: nothing is open."""

    @staticmethod
    def _version(path: Path) -> str:
        try:
            status = path.stat()
        except OSError as error:
            raise _failure(path, error) from error
        return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            document = file.read(most_bytes + 1)
    except OSError as error:
        raise _failure(path, error) from error
    if len(document) > most_bytes:
        raise SourceError(f"larger than {most_bytes} bytes", url=str(path))
    return document


def _failure(path: Path, error: OSError) -> SourceError:
    return SourceError(f"cannot be read: {error.strerror}", url=str(path), is_transient=True)


def _pass_on(events: int, end: int, on_change: Callable[[], None], thread: LivingThread) -> None:
    """Call *on_change* whenever there are *events*, until *end* can be read."""
    poll = select.poll()
    poll.register(events, select.POLLIN)
    poll.register(end, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if end in ready:
            return
        with thread.working():
            os.read(events, _EVENT_BYTES)
            on_change()
