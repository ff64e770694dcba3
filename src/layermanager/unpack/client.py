"""The manager's side of the unpacker: starts workers, feeds them, and reads their verdicts.

Here no archive is parsed. A worker may have been taken over by its archive: ``conversation`` bounds
what it may say, ``deadline`` how long it may take, and its process is ended whatever it says. What
it unpacked is compared with what is desired by the caller; the digest of what was transferred is
the caller's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from layermanager.amounts import NOTHING
from layermanager.documents import DocumentError
from layermanager.errors import UnpackerError
from layermanager.model import Digest, Limits
from layermanager.unpack.conversation import Conversation
from layermanager.unpack.deadline import Deadline, DiskGrowth
from layermanager.unpack.messages import Channel, Job, close_all, granted_message, job_message
from layermanager.unpack.stderr import ErrorPipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType

    from layermanager.amounts import Amount
    from layermanager.documents import JsonObject
    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Need, Packet, Unpacked

    Grant = Callable[[Need], Amount]
    OnJail = Callable[[tuple[JailMeasure, ...]], None]

_LOGGER: Final = logging.getLogger(__name__)
_PIPE_BYTES: Final = 1024 * 1024
_INODE_BYTES: Final = 512
_LOOKS_PER_TIMEOUT: Final = 32
# Loading modules leaves no garbage worth looking for, and at the end the kernel takes back all
# memory at once: Python's own ways would be a fifth of the CPU time of a server.
_BOOT: Final = (
    "import gc, os, sys; gc.disable(); sys.path[:] = sys.argv[1:]; "
    "from layermanager.unpack.server import main; main(0); os._exit(0)"
)
_NO_LAYER: Final = Job(
    digest=Digest("sha256:" + "0" * 64),
    is_package=False,
    limits=Limits(),
    granted=0,
    block_bytes=1,
)


class Unpacker:
    """Unpacks layers, each in a process of its own; any thread may start one.

    The server that forks these processes is started when it is first needed, and again if it has
    died.

    Args:
        timeout: how long a worker may make no progress before it is given up.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._jail: tuple[JailMeasure, ...] = ()

    def prepare(self) -> None:
        """Start the server if none runs, and do not wait for it: it takes a while to load.

        That a process cannot be started is told when one is needed.
        """
        with self._lock, contextlib.suppress(OSError):
            self._running_server()

    def start(self, job: Job, root: int, index: int, grant: Grant) -> Unpacking:
        """Start to unpack one layer below the empty directory *root*, a file descriptor.

        Args:
            job: what to expect and what to refuse.
            root: file descriptor of an empty directory, open until the unpacking ends.
            index: file descriptor of an empty file, which gets the index of the layer.
            grant: is told what is on disk and what more is needed, and returns what there may be in
                all; it may raise, which ends the unpacking.

        Raises:
            UnpackerError: no process can be started; nothing is left of the attempt.
        """
        try:
            unpacking = self._connect(job, root, index, grant)
        except OSError as error:
            raise UnpackerError(f"cannot start the unpacker: {error}", digest=job.digest) from error
        with contextlib.ExitStack() as stack:
            stack.push(unpacking)
            unpacking.begin()
            stack.pop_all()
        return unpacking

    def _connect(self, job: Job, root: int, index: int, grant: Grant) -> Unpacking:
        """Have the server start a worker, and return what controls it from here."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            data_out, data_in = os.pipe()
            ours.callback(os.close, data_in)
            theirs.callback(os.close, data_out)
            channel, their_channel = Channel.pair()
            ours.callback(channel.close)
            theirs.callback(their_channel.close)
            errors = ErrorPipe()
            ours.callback(errors.close)
            theirs.callback(errors.close_writing)
            unpacking = Unpacking(
                job,
                channel,
                data_in,
                errors,
                grant,
                free_bytes=functools.partial(_free_bytes, root),
                on_jail=self._note_jail,
                timeout=self._timeout,
            )
            self._send((their_channel.fileno(), data_out, root, index, errors.writing))
            ours.pop_all()
        return unpacking

    def jail_measures(self, directory: Path) -> tuple[JailMeasure, ...]:
        """What confines the workers that write below *directory*: asks one without a layer.

        Raises:
            UnpackerError: no process can be started.
            OSError: nothing can be written in *directory*.
        """
        with (
            tempfile.TemporaryDirectory(dir=directory) as empty,
            tempfile.TemporaryFile(dir=directory) as index,
        ):
            root = os.open(empty, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with self.start(_NO_LAYER, root, index.fileno(), lambda _: NOTHING) as unpacking:
                    return unpacking.jail_measures()
            finally:
                os.close(root)

    def close(self) -> None:
        """End the server, and with it all workers."""
        with self._lock:
            if self._server is not None:
                self._server.end()
                self._server = None

    def _note_jail(self, measures: tuple[JailMeasure, ...]) -> None:
        """Log what workers are confined by, once unless it changes."""
        if measures == self._jail:
            return
        self._jail = measures
        in_force = ", ".join(measure.name for measure in measures if measure.is_in_force)
        _LOGGER.info("layers are unpacked in a jail: %s", in_force or "none of its measures")
        for measure in measures:
            if not measure.is_in_force:
                _LOGGER.warning(
                    "the unpacker's jail lacks its %s: %s", measure.name, measure.why_not
                )

    def _send(self, descriptors: tuple[int, ...]) -> None:
        with self._lock:
            try:
                self._running_server().control.send({}, descriptors)
            except (BrokenPipeError, ConnectionResetError):  # it ended just now
                self._running_server().control.send({}, descriptors)

    def _running_server(self) -> _Server:
        """The server, which is started if it does not run."""
        if self._server is not None and not self._server.is_alive():
            self._server.end()
            self._server = None
        if self._server is None:
            self._server = _Server.start()
        return self._server


class _Server:
    """The process that forks workers, and the connection to it."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: Channel, errors: ErrorPipe
    ) -> None:
        self._process = process
        self.control = control
        self._errors = errors

    @classmethod
    def start(cls) -> Self:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            control, their_control = Channel.pair()
            ours.callback(control.close)
            theirs.callback(their_control.close)
            errors = ErrorPipe()
            ours.callback(errors.close)
            theirs.callback(errors.close_writing)
            # -I: nothing of the environment and of the working directory is looked at. -S and the
            # path: modules come from where this process has them, without looking for .pth files.
            path = [entry for entry in sys.path if Path(entry).is_absolute()]
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, *path],
                stdin=their_control.fileno(),
                stdout=errors.writing,
                stderr=errors.writing,
                env={},
            )
            ours.pop_all()
        return cls(process, control, errors)

    def is_alive(self) -> bool:
        """Whether it runs and has not begun to end."""
        poll = select.poll()
        poll.register(self.control, 0)
        return not poll.poll(0) and self._process.poll() is None

    def end(self) -> None:
        """End it, and with it all workers; log what it said at its end."""
        self.control.close()
        self._process.wait()
        for line in self._errors.last_lines():
            _LOGGER.warning("the unpackers' server: %s", line)
        self._errors.close()


def _free_bytes(root: int) -> int:
    """What is left of the file system of *root*; an inode counts as its usual size."""
    state = os.fstatvfs(root)
    return state.f_bfree * state.f_frsize + state.f_ffree * _INODE_BYTES


class Unpacking:
    """One layer that is being unpacked; used by one thread, as a context manager.

    At the end of the context the process is no more, whether it had finished or not, so that
    nobody writes into the directory any longer.
    """

    def __init__(
        self,
        job: Job,
        channel: Channel,
        data: int,
        errors: ErrorPipe,
        grant: Grant,
        *,
        free_bytes: Callable[[], int],
        on_jail: OnJail,
        timeout: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._channel = channel
        self._data: int | None = data
        self._errors = errors
        self._grant = grant
        self._free_bytes = free_bytes
        self._on_jail = on_jail
        self._timeout = timeout
        self._monotonic = monotonic
        self._deadline = Deadline(timeout.total_seconds())
        self._growth = DiskGrowth(free_bytes())
        self._looked_at_disk = monotonic()
        self._conversation = Conversation(job)
        self._fed = 0
        self._process_descriptor: int | None = None
        self._process_lock = threading.Lock()
        with contextlib.suppress(OSError):  # too many pages in pipes: slower, no worse
            fcntl.fcntl(data, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(data, False)

    def begin(self) -> None:
        """Give the worker its job.

        Raises:
            UnpackerError: there is no worker.
        """
        # The server's word comes first, before the worker has read anything that strangers wrote.
        self._receive()
        if self._conversation.has_ended:
            raise self._conversation.error or UnpackerError(
                "cannot start the unpacker: its server gave no answer; it may lack memory or file "
                "descriptors",
                digest=self._job.digest,
            )
        try:
            self._channel.send(job_message(self._job))
        except OSError as error:
            self._wait_for_end()
            raise self._failure() from error

    def jail_measures(self) -> tuple[JailMeasure, ...]:
        """Wait until the worker is confined, and return by what.

        Raises:
            UnpackerError: it ended before.
        """
        while self._conversation.jail is None and not self._conversation.has_ended:
            self._receive()
        if self._conversation.jail is None:
            raise self._failure()
        return self._conversation.jail

    def feed(self, data: bytes) -> None:
        """Hand on the next bytes of the package or blob.

        Raises:
            LayerManagerError: the worker gave up, or *grant* refused space.
            OSError: the worker's file system refused something.
        """
        if self._data is None:
            raise ValueError("feed() after finish()")
        poll = select.poll()
        poll.register(self._data, select.POLLOUT)
        poll.register(self._channel, select.POLLIN)
        rest = memoryview(data)
        while rest:
            try:
                taken = os.write(self._data, rest)
            except BlockingIOError:
                ready = [descriptor for descriptor, _ in self._wait(poll)]
                if self._channel.fileno() in ready:
                    self._receive()
                if self._conversation.has_ended:
                    self._end_process()
                    raise self._failure() from None
            except BrokenPipeError:
                self._wait_for_end()
                raise self._failure() from None
            else:
                rest = rest[taken:]
                self._fed += taken
                self._deadline.note_taken(taken)

    def finish(self) -> Unpacked:
        """End the input, wait for the worker's end and return its verdict.

        Raises:
            LayerManagerError: the worker gave up, or *grant* refused space.
            OSError: the worker's file system refused something.
        """
        self._close_data()
        self._wait_for_end()
        verdict = self._conversation.verdict
        if verdict is None or self._conversation.error is not None:
            raise self._failure()
        return verdict

    def kill(self) -> None:
        """End the worker at once; safe from any thread, and when it has already ended."""
        with self._process_lock:
            if self._process_descriptor is None:
                return
            try:
                signal.pidfd_send_signal(self._process_descriptor, signal.SIGKILL)
            except ProcessLookupError:
                return  # it ended, and the server knows already

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_data()
        self._end_process()
        self._channel.close()
        for line in self._errors.last_lines():
            _LOGGER.warning("layer %s: the unpacker: %s", self._job.digest, line)
        self._errors.close()

    def _wait_for_end(self) -> None:
        while not self._conversation.has_ended:
            self._receive()
        self._end_process()

    def _end_process(self) -> None:
        """Make sure that the process is no more: its own word for that would not be enough."""
        self.kill()
        with self._process_lock:
            if self._process_descriptor is None:
                return
            poll = select.poll()
            poll.register(self._process_descriptor, select.POLLIN)
            poll.poll()
            os.close(self._process_descriptor)
            self._process_descriptor = None

    def _receive(self) -> None:
        """Wait for one message and do what it asks for."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        self._wait(poll)
        try:
            packet = self._channel.receive()
            if packet is None:
                self._conversation.end()
                return
            self._take_descriptors(packet)
            self._handle(packet.message)
        except DocumentError as error:
            self._conversation.end(
                UnpackerError(f"the unpacker broke its protocol: {error}", digest=self._job.digest)
            )

    def _take_descriptors(self, packet: Packet) -> None:
        """Take the worker's process from its parent; from the worker itself, take none."""
        descriptors = packet.descriptors
        is_start = self._conversation.is_starting and packet.message.text("type", "") == "started"
        if is_start and len(descriptors) == 1:
            self._process_descriptor = descriptors.pop()
        elif is_start or descriptors:
            close_all(descriptors)
            raise DocumentError(f"unexpected number of file descriptors: {len(descriptors)}")

    def _handle(self, message: JsonObject) -> None:
        is_unconfined = self._conversation.jail is None
        need = self._conversation.hear(message, self._fed)
        if is_unconfined and self._conversation.jail is not None:
            self._on_jail(self._conversation.jail)
        if need is None:
            return
        granted = self._grant(need)
        self._conversation.granted = granted.size
        self._conversation.granted_inodes = granted.inodes
        try:
            self._channel.send(granted_message(granted), waits=False)
        except BlockingIOError:
            raise DocumentError("it does not read its answers") from None
        except (BrokenPipeError, ConnectionResetError):
            return  # its end is next

    def _wait(self, poll: select.poll) -> list[tuple[int, int]]:
        """Wait until something is ready; messages do not extend the deadline, progress does."""
        while True:
            self._look_at_disk()
            if self._deadline.left <= 0:
                raise UnpackerError(
                    f"the unpacker made too little progress for {self._timeout.total_seconds():g} "
                    "s: raise unpackTimeoutSeconds if the disk is that slow",
                    digest=self._job.digest,
                )
            longest = min(self._deadline.left, self._look_seconds())
            start = self._monotonic()
            ready = poll.poll(longest * 1000)
            # No more than was asked for: this process itself may have been stopped meanwhile.
            self._deadline.wait(min(self._monotonic() - start, longest))
            if ready:
                return ready

    def _look_at_disk(self) -> None:
        """Count what appeared on the disk; not more often than a few times in the time-out."""
        now = self._monotonic()
        if now - self._looked_at_disk < self._look_seconds() and self._deadline.left > 0:
            return
        self._looked_at_disk = now
        grown = self._growth.grown_to(self._free_bytes(), self._conversation.granted)
        self._deadline.note_growth(grown)

    def _look_seconds(self) -> float:
        return self._timeout.total_seconds() / _LOOKS_PER_TIMEOUT

    def _failure(self) -> Exception:
        return self._conversation.error or UnpackerError(
            "the unpacker ended without a verdict", digest=self._job.digest
        )

    def _close_data(self) -> None:
        if self._data is not None:
            os.close(self._data)
            self._data = None
