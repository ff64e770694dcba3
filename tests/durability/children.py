"""Processes that may be killed: forked from one that has loaded everything and runs nothing else.

Starting an interpreter for each takes a hundred times as long, and the process of the tests has
threads, so that it cannot be forked.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from reaping import become_subreaper, reap_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    Work = Callable[..., int]

_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from durability.children import serve; serve(int(sys.argv[1]))"
)
_MESSAGE_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        status: its exit status, or the negative number of the signal that ended it.
        lines: what it and its descendants wrote to their standard output and standard error.
    """

    status: int
    lines: list[str]

    @property
    def was_killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Child:
    """A process that is at work; it leads a session and a process group of its own."""

    def __init__(self, server: Children, process: int, output: int) -> None:
        self.process = process
        self._server = server
        self._output = output

    def lines(self) -> Iterator[str]:
        """What it writes, line by line, until no descendant is left that could write."""
        with open(self._output, encoding="utf-8", errors="replace", closefd=False) as output:
            for line in output:
                yield line.rstrip("\n")

    def wait(self) -> Ended:
        """Return when the process and all that it started have ended."""
        lines = list(self.lines())
        os.close(self._output)
        return Ended(self._server.reap(self.process), lines)


class Children:
    """Forks children; a context manager, used by one thread."""

    def __enter__(self) -> Self:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                pass_fds=(theirs.fileno(),),
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._control.close()
        self._server.wait()

    def start(self, work: Work, *arguments: str | int) -> Child:
        """Fork a child that calls the function *work* and ends with the status that it returns."""
        output, theirs = os.pipe()
        try:
            request = {"fork": [work.__module__, work.__name__, *arguments]}
            process = self._ask(request, theirs)
        finally:
            os.close(theirs)
        return Child(self, process, output)

    def run(self, work: Work, *arguments: str | int) -> Ended:
        """Fork a child and wait for its end."""
        return self.start(work, *arguments).wait()

    def reap(self, process: int) -> int:
        """Wait for a child's end and return its exit code."""
        return self._ask({"reap": process})

    def _ask(self, request: Mapping[str, object], *descriptors: int) -> int:
        socket.send_fds(self._control, [json.dumps(request).encode()], list(descriptors))
        answer = self._control.recv(_MESSAGE_BYTES)
        assert answer, "the server that forks is gone"
        return int(answer)


def serve(descriptor: int) -> None:
    """Fork and reap what the other end of the socket *descriptor* asks for, until it is closed."""
    # Loaded before the first fork, so that no child has to.
    from durability import scenarios, users  # noqa: F401, PLC0415

    become_subreaper()
    # What is logged is none of a child's output.
    logging.getLogger().addHandler(logging.NullHandler())
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
            if not message:
                return
            request = json.loads(message)
            if "reap" in request:
                _, status = os.waitpid(request["reap"], 0)
                reap_group(request["reap"])
                answer = os.waitstatus_to_exitcode(status)
            else:
                answer = os.fork()
                if answer == 0:
                    control.close()
                    _work(descriptors[0], *request["fork"])
                os.close(descriptors[0])
            control.send(str(answer).encode())


def _work(output: int, module: str, name: str, *arguments: str | int) -> None:
    """Be a child: call a function and end, whatever happens in it."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    status = 1
    try:
        status = getattr(sys.modules[module], name)(*arguments)
    except BaseException:  # noqa: BLE001 - the process ends here; the test looks at what it wrote
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
