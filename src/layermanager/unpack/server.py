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
import traceback
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from layermanager import linux
from layermanager.unpack import worker
from layermanager.unpack.messages import Channel

if TYPE_CHECKING:
    from layermanager.unpack.messages import Packet


class _Worker(NamedTuple):
    """A worker that was forked: its process, and the channel on which its end is told."""

    process: int
    process_descriptor: int
    channel: Channel


def main(control_descriptor: int) -> None:
    """Serve the client at the other end of *control_descriptor* until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the client to answer
    gc.freeze()  # what is loaded by now stays shared with the workers
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
    """Fork a worker for the pipe, the directory and the channel that came with *packet*."""
    data, root, channel_descriptor = packet.descriptors
    channel = Channel.of_descriptor(channel_descriptor)
    process = os.fork()
    if process == 0:
        _run_worker(data, root, channel)
    os.close(data)
    os.close(root)
    process_descriptor = os.pidfd_open(process)
    channel.send({"type": "started"}, (process_descriptor,))
    return _Worker(process, process_descriptor, channel)


def _run_worker(data: int, root: int, channel: Channel) -> NoReturn:
    """Be the worker: nothing may return into the server's loop."""
    status = 1
    try:
        linux.die_with_parent(signal.SIGKILL)
        kept = sorted((0, 1, 2, data, root, channel.fileno()))
        for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(below + 1, above)
        worker.run(data, root, channel)
        status = 0
    except BaseException:  # noqa: BLE001 - the process ends here; the client is told by its status
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def _report_end(ended: _Worker) -> None:
    """Tell the client, if it still listens, how a worker ended."""
    _, status = os.waitpid(ended.process, 0)
    os.close(ended.process_descriptor)
    try:
        ended.channel.send({"type": "ended", "status": os.waitstatus_to_exitcode(status)})
    except BrokenPipeError:
        return  # it gave up on this layer and closed the channel
    finally:
        ended.channel.close()
