"""The manager's side of the unpacker: starts workers, feeds them, and reads their verdicts.

Here no archive is parsed. What a worker says is compared with what is desired by the caller; the
digest of what was transferred is the caller's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from layermanager.documents import DocumentError
from layermanager.errors import UnpackerError
from layermanager.model import Digest, Limits
from layermanager.unpack.messages import (
    Channel,
    Job,
    job_message,
    read_done,
    read_failed,
    read_jail,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType

    from layermanager.documents import JsonObject
    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Unpacked

    Grant = Callable[[int, int], int]
    OnJail = Callable[[tuple[JailMeasure, ...]], None]

_LOGGER: Final = logging.getLogger(__name__)
_PIPE_BYTES: Final = 1024 * 1024
# Loading modules leaves no garbage worth looking for, and at the end the kernel takes back all
# memory at once: Python's own ways would be a fifth of the CPU time of a server.
_BOOT: Final = (
    "import gc, os, sys; gc.disable(); sys.path[:] = sys.argv[2:]; "
    "from layermanager.unpack.server import main; main(int(sys.argv[1])); os._exit(0)"
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
        timeout: how long a worker may take in nothing and say nothing before it is given up.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: Channel | None = None
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
            root: file descriptor of an empty directory.
            index: file descriptor of an empty file, which gets the index of the layer.
            grant: is told how many bytes are on disk and how many more are needed, and returns
                how many there may be in all; it may raise, which ends the unpacking.

        Raises:
            UnpackerError: no process can be started.
        """
        data_out, data_in = os.pipe()
        ours, theirs = Channel.pair()
        try:
            self._send((data_out, root, index, theirs.fileno()))
        except OSError as error:
            os.close(data_in)
            ours.close()
            raise UnpackerError(f"cannot start the unpacker: {error}", digest=job.digest) from error
        finally:
            os.close(data_out)
            theirs.close()
        unpacking = Unpacking(
            job, ours, data_in, grant, on_jail=self._note_jail, timeout=self._timeout
        )
        with contextlib.ExitStack() as stack:
            stack.push(unpacking)
            unpacking.begin()
            stack.pop_all()
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
                with self.start(_NO_LAYER, root, index.fileno(), lambda *_: 0) as unpacking:
                    return unpacking.jail_measures()
            finally:
                os.close(root)

    def close(self) -> None:
        """End the server, and with it all workers."""
        with self._lock:
            if self._server is None or self._control is None:
                return
            self._control.close()
            self._server.wait()
            self._server = self._control = None

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
            self._running_server().send({}, descriptors)

    def _running_server(self) -> Channel:
        """The way to the server, which is started if it does not run."""
        if self._server is not None and self._server.poll() is not None:
            self._server = None
        if self._control is not None and self._server is None:
            self._control.close()
            self._control = None
        if self._control is None:
            self._control = self._start_server()
        return self._control

    def _start_server(self) -> Channel:
        ours, theirs = Channel.pair()
        # -I: nothing of the environment and of the working directory is looked at. -S and the
        # path: modules come from where this process has them, without looking for .pth files.
        path = [entry for entry in sys.path if Path(entry).is_absolute()]
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours


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
        grant: Grant,
        *,
        on_jail: OnJail,
        timeout: timedelta,
    ) -> None:
        self._job = job
        self._channel = channel
        self._data: int | None = data
        self._grant = grant
        self._on_jail = on_jail
        self._timeout = timeout
        self._process_descriptor: int | None = None
        self._has_ended = False
        self._jail: tuple[JailMeasure, ...] | None = None
        self._verdict: Unpacked | None = None
        self._error: Exception | None = None
        self._process_lock = threading.Lock()
        with contextlib.suppress(PermissionError):  # too many pages in pipes: slower, no worse
            fcntl.fcntl(data, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(data, False)

    def begin(self) -> None:
        """Give the worker its job.

        Raises:
            UnpackerError: there is no worker.
        """
        # The server's word comes first, before the worker has read anything that strangers wrote.
        self._receive()
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
        while self._jail is None and not self._has_ended:
            self._receive()
        if self._jail is None:
            raise self._failure()
        return self._jail

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
                rest = rest[os.write(self._data, rest) :]
            except BlockingIOError:
                ready = [descriptor for descriptor, _ in self._wait(poll)]
                if self._channel.fileno() in ready:
                    self._receive()
            except BrokenPipeError:
                self._wait_for_end()
                raise self._failure() from None

    def finish(self) -> Unpacked:
        """End the input, wait for the worker's end and return its verdict.

        Raises:
            LayerManagerError: the worker gave up, or *grant* refused space.
            OSError: the worker's file system refused something.
        """
        self._close_data()
        self._wait_for_end()
        if self._verdict is None or self._error is not None:
            raise self._failure()
        return self._verdict

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

    def _wait_for_end(self) -> None:
        while not self._has_ended:
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
        packet = self._channel.receive()
        if packet is None:
            self._has_ended = True
            return
        try:
            self._take_descriptors(packet.descriptors)
            self._handle(packet.message)
        except DocumentError as error:
            self._has_ended = True
            self._error = UnpackerError(
                f"the unpacker broke its protocol: {error}", digest=self._job.digest
            )

    def _wait(self, poll: select.poll) -> list[tuple[int, int]]:
        ready = poll.poll(self._timeout.total_seconds() * 1000)
        if not ready:
            raise UnpackerError(
                f"the unpacker took in nothing and said nothing for {self._timeout}",
                digest=self._job.digest,
            )
        return ready

    def _take_descriptors(self, descriptors: list[int]) -> None:
        """Take the worker's process from the server; from the worker itself, take none."""
        if len(descriptors) == 1 and self._process_descriptor is None:
            self._process_descriptor = descriptors.pop()
        if descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            raise DocumentError("file descriptors that nobody asked for")

    def _handle(self, message: JsonObject) -> None:
        match message.text("type", ""):
            case "started":
                return
            case "jail":
                self._jail = read_jail(message)
                self._on_jail(self._jail)
            case "needs":
                written = message.integer("written", 0)
                granted = self._grant(written, message.integer("bytes", 0))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is next
                    self._channel.send({"granted": granted})
            case "done":
                self._verdict = read_done(message)
            case "failed":
                self._error = read_failed(message, self._job.digest)
            case "os_error":
                number = message.integer("errno", 0)
                self._error = OSError(number, message.required_text("message"))
            case "ended":
                self._has_ended = True
                status = message.integer("status", 0, minimum=-255)
                if status != 0:
                    self._error = self._error or self._crash(status)
            case other:
                raise DocumentError(f"unknown message {other!r:.80}")

    def _failure(self) -> Exception:
        return self._error or UnpackerError(
            "the unpacker ended without a verdict", digest=self._job.digest
        )

    def _crash(self, status: int) -> UnpackerError:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return UnpackerError(f"the unpacker {how}", digest=self._job.digest)

    def _close_data(self) -> None:
        if self._data is not None:
            os.close(self._data)
            self._data = None
