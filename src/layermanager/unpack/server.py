"""The server: a small process without threads that forks a worker for each layer.

Forking from here costs a few milliseconds, where starting an interpreter costs tens; and it is
safe, since nothing runs here but this loop. When the client goes away, however it ends, the
server ends, and the kernel ends the workers with it: no unpacker outlives its manager.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from layermanager import linux
from layermanager.unpack import jail, worker
from layermanager.unpack.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Packet


class _Worker(NamedTuple):
    """A worker's parent, and the channel on which its end, the worker's end, is told."""

    process: int
    process_descriptor: int
    channel: Channel


def main(control_descriptor: int) -> None:
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
            packet = control.receive()
            if packet is None:
                return
            started = _start_worker(packet)
            workers[started.process_descriptor] = started
            poll.register(started.process_descriptor, select.POLLIN)


def _start_worker(packet: Packet) -> _Worker:
    """Fork a worker for the pipe, directory, index and channel that came with *packet*."""
    data, root, index, channel_descriptor = packet.descriptors
    channel = Channel.of_descriptor(channel_descriptor)
    server = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        _exit_after(lambda: _keep_worker(server, data, root, index, channel))
    for descriptor in (data, root, index):
        os.close(descriptor)
    return _Worker(keeper, os.pidfd_open(keeper), channel)


def _keep_worker(server: int, data: int, root: int, index: int, channel: Channel) -> int:
    """Be a worker's parent: only what is forked from here can be alone in a process namespace."""
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != server:
        return 1  # it ended before that was asked for
    _close_all_but(data, root, index, channel.fileno())
    namespaces = jail.leave_namespaces()
    process = os.fork()
    if process == 0:
        _exit_after(lambda: _be_worker(data, root, index, channel, namespaces))
    for descriptor in (data, root, index):
        os.close(descriptor)
    process_descriptor = os.pidfd_open(process)
    _tell(channel, {"type": "started"}, process_descriptor)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))  # end as it ended
    return os.waitstatus_to_exitcode(status)


def _be_worker(
    data: int, root: int, index: int, channel: Channel, namespaces: Sequence[JailMeasure]
) -> int:
    linux.die_with_parent(signal.SIGKILL)
    worker.run(data, root, index, channel, namespaces)
    return 0


def _exit_after(work: Callable[[], int]) -> NoReturn:
    """Do *work* in a forked process and end it: nothing may return into the server's loop."""
    status = 1
    try:
        status = work()
    except (BrokenPipeError, ConnectionResetError):
        status = 1  # the client is gone, and with it whom this was for
    except BaseException:  # noqa: BLE001 - the process ends here; the client is told by its status
        sys.excepthook(*sys.exc_info())  # needs no import of traceback, which costs every start
    finally:
        os._exit(status)


def _close_all_but(*descriptors: int) -> None:
    """Close what belongs to the server and to other layers; standard error stays for a crash."""
    kept = sorted((0, 1, 2, *descriptors))
    for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(below + 1, above)


def _report_end(ended: _Worker) -> None:
    """Tell the client, if it still listens, how a worker ended."""
    _, status = os.waitpid(ended.process, 0)
    os.close(ended.process_descriptor)
    _tell(ended.channel, {"type": "ended", "status": os.waitstatus_to_exitcode(status)})
    ended.channel.close()


def _tell(channel: Channel, message: Mapping[str, object], *descriptors: int) -> None:
    try:
        channel.send(message, descriptors)
    except (BrokenPipeError, ConnectionResetError):
        return  # the client gave up on this layer and closed the channel
