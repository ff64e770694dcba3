"""Processes that enter the jail, or one measure of it, and then misbehave.

A misdeed is a function that raises ``OSError`` where it is stopped. It runs in a process forked
for it, which tells by a pipe how it went.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.model import Digest, Limits
from layermanager.unpack import jail, seccomp, server
from layermanager.unpack.client import Unpacking
from layermanager.unpack.messages import Channel, Job, jail_message
from layermanager.unpack.stderr import ErrorPipe

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import JailMeasure

    Measure = Callable[[int], object]
    """A part of the jail, built by the calling process around a directory's descriptor."""

SUCCEEDED: Final = "succeeded"
LIMITS: Final = Limits(unpacked_bytes=64 * 1024, zstd_window_bytes=1024 * 1024)
# A worker is small; what is forked here is as large as all tests before have made this process.
ROOMY: Final = Limits(zstd_window_bytes=16 * 1024**3)
JOB: Final = Job(
    digest=Digest("sha256:" + "0" * 64),
    is_package=False,
    limits=ROOMY,
    granted=0,
    block_bytes=4096,
)
ORDINARY_USER: Final = 4321  # not 65534, which the kernel also says of users it cannot name


def in_child(work: Callable[[], object]) -> object:
    """What *work* returns, as JSON keeps it, when it runs in a process forked for it.

    ``SUCCEEDED`` if another program took that process over.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _tell_and_exit(work, writable)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    if not answer:
        return SUCCEEDED if exit_code == 0 else f"ended by {exit_code}"
    result = json.loads(answer)
    assert "traceback" not in result, result["traceback"]
    return result["value"]


def _tell_and_exit(work: Callable[[], object], writable: int) -> None:
    os.set_inheritable(writable, False)
    try:
        result = {"value": work()}
    except BaseException:  # noqa: BLE001 - the parent raises it
        result = {"traceback": traceback.format_exc()}
    os.write(writable, json.dumps(result).encode())
    os._exit(0)


def outcome(misdeed: Callable[[], object]) -> str:
    """``SUCCEEDED``, or the name of the error that stopped *misdeed*."""
    try:
        misdeed()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return SUCCEEDED


def confined(root: Path, work: Callable[[int], object], limits: Limits = LIMITS) -> object:
    """What *work* returns in the whole jail, which is entered as a worker enters it."""

    def enter() -> object:
        jail.confine(descriptor, limits)
        return work(descriptor)

    def keep() -> object:
        jail.leave_namespaces()
        return in_child(enter)

    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return in_child(keep)
    finally:
        os.close(descriptor)


def behind(root: Path, measures: tuple[Measure, ...], work: Callable[[int], object]) -> object:
    """What *work* returns behind *measures* alone; it is given the descriptor of *root*."""

    def enter() -> object:
        for measure in measures:
            measure(descriptor)
        return in_child(lambda: work(descriptor)) if must_fork else work(descriptor)

    must_fork = process_namespace in measures
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return in_child(enter)
    finally:
        os.close(descriptor)


def measures_of_jail(root: Path, before: Callable[[], object]) -> dict[str, str]:
    """Why the measures that are not in force are not, in a jail that is built after *before*."""

    def enter() -> object:
        before()
        namespaces = jail.leave_namespaces()
        return in_child(lambda: why_not([*namespaces, *jail.confine(descriptor, LIMITS)]))

    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reasons = in_child(enter)
    finally:
        os.close(descriptor)
    assert isinstance(reasons, dict)
    return reasons


def why_not(measures: list[JailMeasure]) -> dict[str, str]:
    """The reasons of those that are not in force."""
    return {measure.name: measure.why_not for measure in measures if not measure.is_in_force}


def network_namespace(_root: int) -> None:
    linux.unshare(linux.CLONE_NEWNET)


def process_namespace(_root: int) -> None:
    linux.unshare(linux.CLONE_NEWPID)


def mount_namespace(root: int) -> None:
    jail._leave_mount_namespace(root)


def root_directory(root: int) -> None:
    jail._change_root(root)


def resource_limits(_root: int) -> None:
    jail._limit_resources(LIMITS)


def no_new_privileges(_root: int) -> None:
    linux.set_no_new_privileges()


def landlock(root: int) -> None:
    linux.set_no_new_privileges()
    jail._restrict_by_landlock(root)


def capabilities(_root: int) -> None:
    linux.keep_capabilities(jail._KEPT_CAPABILITIES if os.geteuid() == 0 else ())


def system_call_filter(_root: int) -> None:
    linux.set_no_new_privileges()
    linux.install_system_call_filter(seccomp.filter_program())


def answer_by(number: int, error: int, first_argument: int | None = None) -> None:
    """Have the kernel answer the system call *number* with *error*, as one that lacks it."""
    allow = seccomp._instruction(seccomp._RETURN, seccomp._ALLOW)
    refuse = seccomp._instruction(seccomp._RETURN, 0x00050000 | error)
    matches = [seccomp._instruction(seccomp._JUMP_IF_EQUAL, number, if_false=1), refuse]
    if first_argument is not None:
        matches = [
            seccomp._instruction(seccomp._JUMP_IF_EQUAL, number, if_false=3),
            seccomp._instruction(seccomp._LOAD, seccomp._ARGUMENTS),
            seccomp._instruction(seccomp._JUMP_IF_EQUAL, first_argument, if_false=1),
            refuse,
        ]
    load = seccomp._instruction(seccomp._LOAD, seccomp._NUMBER)
    linux.set_no_new_privileges()
    linux.install_system_call_filter(b"".join([load, *matches, allow]))


def lose(*lost: int) -> None:
    """Have no longer the capabilities *lost*, as root in a container."""
    linux.keep_capabilities(set(range(64)) - set(lost))


Misbehave = Callable[[int, Channel], None]
"""What a worker does that was taken over, given the descriptor of its root and its channel."""


class Stolen:
    """A server whose workers do *misbehave* once they are confined, as if an archive had told them.

    Args:
        misbehave: runs in each worker.
        before: is done in the server's process before it begins.
    """

    def __init__(self, misbehave: Misbehave, before: Callable[[], object] = lambda: None) -> None:
        self._control, theirs = Channel.pair()
        self.process = os.fork()
        if self.process == 0:
            status = 1
            try:
                self._control.close()
                # As in a new interpreter; that of the tests keeps what is written.
                sys.stderr = os.fdopen(2, "w", closefd=False)
                before()
                server.main(theirs.fileno(), functools.partial(_confined_work, misbehave))
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def connect(self, root: int, index: int) -> tuple[Channel, int, ErrorPipe]:
        """Start a worker; its channel, the pipe to it and its standard error."""
        data_out, data_in = os.pipe()
        ours, theirs = Channel.pair()
        errors = ErrorPipe()
        self._control.send({}, (theirs.fileno(), data_out, root, index, errors.writing))
        os.close(data_out)
        theirs.close()
        errors.close_writing()
        return ours, data_in, errors

    @contextlib.contextmanager
    def unpacking(
        self, root: Path, *, timeout: timedelta = timedelta(seconds=60)
    ) -> Iterator[Unpacking]:
        """Unpack nothing below *root* by a worker."""
        with contextlib.ExitStack() as stack:
            directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            index = os.open(f"{root}.index", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            stack.callback(os.close, index)
            channel, data, errors = self.connect(directory, index)
            unpacking = Unpacking(
                JOB,
                channel,
                data,
                errors,
                lambda need: need.wanted,
                free_bytes=lambda: 0,
                on_jail=lambda _: None,
                timeout=timeout,
            )
            stack.enter_context(unpacking)
            unpacking.begin()
            yield unpacking

    def close(self) -> None:
        """End it."""
        self._control.close()
        os.waitpid(self.process, 0)


def _confined_work(
    misbehave: Misbehave,
    _data: int,
    root: int,
    _index: int,
    channel: Channel,
    namespaces: Sequence[JailMeasure],
) -> None:
    assert channel.receive() is not None  # the job
    channel.send(jail_message([*namespaces, *jail.confine(root, ROOMY)]))
    misbehave(root, channel)
