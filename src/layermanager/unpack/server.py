"""The server: a small process without threads that forks a worker for each layer.

Forking from here costs a few milliseconds, where starting an interpreter costs tens; and it is
safe, since nothing runs here but this loop. When the client goes away, however it ends, the
server ends, and the kernel ends the workers with it: no unpacker outlives its manager.

A worker may be taken over by its archive. So neither the server nor a worker has an open file that
others use: standard input is the server's connection and the worker's pipe, and standard output and
error are a pipe of each one's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from layermanager import linux
from layermanager.errors import UnpackerError
from layermanager.unpack import jail, worker
from layermanager.unpack.messages import Channel, close_all, not_started_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Packet

    Work = Callable[[int, int, int, Channel, Sequence[JailMeasure]], None]
    """What a worker does: see ``worker.run``."""

# The descriptors of a worker and of its parent, which have no others. Those of standard input,
# output and error are taken, so that no file gets one of these numbers by accident.
_DATA: Final = 0
_ERRORS: Final = 2  # and 1
_ROOT: Final = 3
_INDEX: Final = 4
_CHANNEL: Final = 5


class _Worker(NamedTuple):
    """A worker's parent, and the channel on which its end, the worker's end, is told."""

    process: int
    process_descriptor: int
    channel: Channel


def main(control_descriptor: int, work: Work = worker.run) -> None:
    """Serve the client at the other end of *control_descriptor* until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the client to answer
    gc.freeze()  # what is loaded by now stays shared with the workers
    gc.enable()
    control = Channel.of_descriptor(control_descriptor)
    workers: dict[int, _Worker] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in workers:
                poll.unregister(descriptor)
                _report_end(workers.pop(descriptor))
                continue
            try:
                packet = control.receive()
            except UnpackerError:
                # Its descriptors did not all fit, and went: the client sees its channel closed.
                continue
            if packet is None:
                return
            started = _start_worker(packet, work)
            if started is not None:
                workers[started.process_descriptor] = started
                poll.register(started.process_descriptor, select.POLLIN)


def _start_worker(packet: Packet, work: Work) -> _Worker | None:
    """Fork a worker for the channel, pipe, directory, index and error pipe that came; or tell why.

    Neither a lack of processes nor one of descriptors or memory may end the server: other workers
    would end with it.
    """
    channel_descriptor, *others = packet.descriptors
    channel = Channel.of_descriptor(channel_descriptor)
    server = os.getpid()
    try:
        keeper = os.fork()
        if keeper == 0:
            _exit_after(lambda: _keep_worker(server, channel, others, work))
        return _Worker(keeper, _descriptor_of(keeper), channel)
    except (OSError, MemoryError) as error:
        _tell(channel, not_started_message(error))
        channel.close()
        return None
    finally:
        close_all(others)


def _descriptor_of(child: int) -> int:
    """Return a descriptor of the process *child*, which is ended if there is none."""
    try:
        return os.pidfd_open(child)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _keep_worker(server: int, channel: Channel, others: Sequence[int], work: Work) -> int:
    """Be a worker's parent: only what is forked from here can be alone in a process namespace."""
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != server:
        return 1  # it ended before that was asked for
    data, root, index, errors = others
    try:
        _number(data, errors, errors, root, index, channel.fileno())
    except OSError as error:
        _tell(channel, not_started_message(error))
        return 1
    numbered = Channel.of_descriptor(_CHANNEL)
    try:
        process, process_descriptor = _fork_worker(numbered, work)
    except (OSError, MemoryError) as error:
        _tell(numbered, not_started_message(error))
        return 1
    _tell(numbered, {"type": "started"}, process_descriptor)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))  # end as it ended
    return os.waitstatus_to_exitcode(status)


def _fork_worker(channel: Channel, work: Work) -> tuple[int, int]:
    """Fork the worker; return its number and a descriptor of it."""
    namespaces = jail.leave_namespaces()
    process = os.fork()
    if process == 0:
        _exit_after(lambda: _be_worker(channel, namespaces, work))
    # The worker alone may hold its pipe: the client notices its end by that.
    os.dup2(_ERRORS, _DATA)
    close_all((_ROOT, _INDEX))
    return process, _descriptor_of(process)


def _be_worker(channel: Channel, namespaces: Sequence[JailMeasure], work: Work) -> int:
    linux.die_with_parent(signal.SIGKILL)
    work(_DATA, _ROOT, _INDEX, channel, namespaces)
    return 0


def _exit_after(work: Callable[[], int]) -> NoReturn:
    """Do *work* in a forked process and end it: nothing may return into the server's loop."""
    status = 1
    try:
        status = work()
    except (BrokenPipeError, ConnectionResetError):
        status = 1  # the client is gone, and with it whom this was for
    except BaseException as error:  # noqa: BLE001 - the client is told by the status
        with contextlib.suppress(OSError):  # what it does not take is lost
            os.write(_ERRORS, _explained(error)[-select.PIPE_BUF :])
    finally:
        os._exit(status)


def _explained(error: BaseException) -> bytes:
    """Return a traceback of *error* and of what it came from.

    The module ``traceback`` would cost every start, and cannot be imported in the jail, where
    ``sys.excepthook`` of some versions of Python needs it.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    lines = []
    for one in reversed(chain):
        step = one.__traceback__
        while step is not None:
            code = step.tb_frame.f_code
            lines.append(f"{code.co_filename}:{step.tb_lineno}, in {code.co_qualname}")
            step = step.tb_next
        lines.append(f"{type(one).__qualname__}: {one}")
    return "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"


def _number(*descriptors: int) -> None:
    """Make *descriptors* those numbered 0, 1, 2 and so on, and close all others.

    These belong to the server and to other layers.
    """
    count = len(descriptors)
    above = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, count) for one in descriptors]
    for number, descriptor in enumerate(above):
        os.dup2(descriptor, number, inheritable=False)
    os.closerange(count, os.sysconf("SC_OPEN_MAX"))


def _report_end(ended: _Worker) -> None:
    """Tell the client, if it still listens, how a worker ended."""
    _, status = os.waitpid(ended.process, 0)
    os.close(ended.process_descriptor)
    _tell(ended.channel, {"type": "ended", "status": os.waitstatus_to_exitcode(status)})
    ended.channel.close()


def _tell(channel: Channel, message: Mapping[str, object], *descriptors: int) -> None:
    """Send what the client may want to know; if it does not, or has not for long, never mind.

    A worker that was taken over may have filled the channel: waiting for room would have all
    other layers wait. That the channel is closed next tells the client enough.
    """
    try:
        channel.send(message, descriptors, waits=False)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return
