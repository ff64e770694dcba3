"""A worker that was taken over by its archive, started by the server as workers are."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from prison import Stolen, in_child

from layermanager.errors import UnpackerError
from layermanager.testing.layers import LayerBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.unpack.messages import Channel

_DESCRIPTORS: Final = 1024
_OWNER: Final = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.mkdir()
    return path


@contextlib.contextmanager
def stolen(
    misbehave: Callable[[int, Channel], None], before: Callable[[], object] = lambda: None
) -> Iterator[Stolen]:
    server = Stolen(misbehave, before)
    try:
        yield server
    finally:
        server.close()


def report(root: int, value: object) -> None:
    """Leave *value* for the test, in the one place that a worker can write to."""
    file = os.open("report", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=root)
    os.write(file, json.dumps(value).encode())
    os.close(file)


def read_report(root: Path) -> object:
    return json.loads((root / "report").read_bytes())


def run(server: Stolen, root: Path) -> str:
    """Let one worker do its work; what the manager says of it."""
    with server.unpacking(root) as unpacking, pytest.raises(UnpackerError) as caught:
        unpacking.finish()
    return str(caught.value)


# What it holds


def open_numbers() -> list[int]:
    found = []
    for number in range(_DESCRIPTORS):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


def test_worker_holds_six_descriptors(root: Path) -> None:
    with stolen(lambda root, _: report(root, open_numbers())) as server:
        assert "without a verdict" in run(server, root)
    assert read_report(root) == [0, 1, 2, 3, 4, 5]


class Canaries:
    """A terminal, a log file and a device as standard files of the server; all may be watched."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.log.write_bytes(b"a line of before\n")
        self._master, self._terminal = os.openpty()
        self._device = os.open("/dev/null", os.O_RDWR)
        self._log = os.open(self.log, os.O_RDWR | os.O_APPEND)

    def become_standard_files(self) -> None:
        for number, descriptor in enumerate((self._device, self._terminal, self._log)):
            os.dup2(descriptor, number)

    def state(self) -> list[object]:
        """All that a holder of the descriptors could change."""
        found: list[object] = []
        for descriptor in (self._master, self._terminal, self._device, self._log):
            status = os.fstat(descriptor)
            found += [status.st_mode, status.st_uid, status.st_gid, status.st_size]
            found += [status.st_ctime_ns if descriptor == self._log else 0]
            found += [fcntl.fcntl(descriptor, fcntl.F_GETFL)]
        return [*found, self.log.read_bytes()]

    def close(self) -> None:
        for descriptor in (self._master, self._terminal, self._device, self._log):
            os.close(descriptor)


def meddle(number: int) -> list[str]:
    """Try all that can be done to an open file; the deeds that were not refused."""
    deeds: dict[str, Callable[[], object]] = {
        "chmod": lambda: os.fchmod(number, 0),
        "chown": lambda: os.fchown(number, _OWNER, _OWNER),
        "truncate": lambda: os.ftruncate(number, 0),
        "utime": lambda: os.utime(number, (0, 0)),
        "xattr": lambda: os.setxattr(number, b"user.meddled", b"x"),
        "seek": lambda: os.lseek(number, 0, os.SEEK_SET),
        "write": lambda: number != 5 and os.write(number, b"meddled"),
        "flags": lambda: fcntl.fcntl(number, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND),
        "owner": lambda: fcntl.fcntl(number, fcntl.F_SETOWN, 1),
        "lease": lambda: fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK),
        "notify": lambda: fcntl.fcntl(number, fcntl.F_NOTIFY, fcntl.DN_CREATE),
        "pipe size": lambda: fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, 4096),
        "lock": lambda: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB),
    }
    done = []
    for name, deed in deeds.items():
        with contextlib.suppress(OSError):
            deed()
            done.append(name)
    return done


@pytest.mark.usefixtures("needs_root")
def test_nothing_that_worker_does_to_its_descriptors_is_seen_outside(
    root: Path, tmp_path: Path
) -> None:
    canaries = Canaries(tmp_path)
    before = canaries.state()

    def meddle_with_all(root: int, _channel: Channel) -> None:
        report(root, [meddle(number) for number in range(_DESCRIPTORS)][:6])

    with stolen(meddle_with_all, canaries.become_standard_files) as server:
        run(server, root)
    done = read_report(root)
    assert canaries.state() == before
    canaries.close()
    assert isinstance(done, list)
    # What shows that the deeds are deeds: to its own pipe, directory and index it can do them.
    assert {"chmod", "chown"} <= set(done[0]) & set(done[3]) & set(done[4])
    assert "truncate" in done[4]
    for forbidden in ("flags", "owner", "lease", "notify", "pipe size", "lock"):
        assert not any(forbidden in deeds for deeds in done)


@pytest.mark.usefixtures("needs_root")
def test_deeds_are_seen_where_a_descriptor_is_shared(tmp_path: Path) -> None:
    canaries = Canaries(tmp_path)
    before = canaries.state()
    assert {"chmod", "truncate", "write", "flags"} <= set(meddle(canaries._log))
    assert canaries.state() != before
    canaries.close()


_CLOSED: Final = """
import os, sys
from datetime import timedelta
from layermanager.model import Limits
from layermanager.testing.layers import digest_of
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job

for number in (0, 1, 2):
    if str(number) in sys.argv[2]:
        os.close(number)
tar = open(sys.argv[1] + ".tar", "rb").read()
root = os.open(sys.argv[1], os.O_RDONLY)
index = os.open(sys.argv[1] + ".index", os.O_RDWR | os.O_CREAT)
unpacker = Unpacker(timedelta(seconds=60))
job = Job(digest_of(tar), False, Limits(), 10**9, 4096)
for _ in range(2):
    with unpacker.start(job, root, index, lambda need: need.wanted) as running:
        running.feed(tar)
        running.finish()
unpacker.close()
"""


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_manager_without_standard_files_unpacks_all_the_same(root: Path, closed: str) -> None:
    Path(f"{root}.tar").write_bytes(LayerBuilder().file("f", b"content").tar())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _CLOSED, str(root), closed]
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (root / "f").read_bytes() == b"content"


# Standard error


def test_what_worker_writes_to_standard_error_is_logged_in_part_and_escaped(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def shout(_root: int, _channel: Channel) -> None:
        line = b"\x1b[2J\r\x07forged\n"
        for _ in range(100_000):
            with contextlib.suppress(BlockingIOError):
                os.write(2, line)

    with stolen(shout) as server:
        run(server, root)
    messages = [record.getMessage() for record in caplog.records]
    assert 1 < len(messages) <= 20
    assert all(message.isprintable() for message in messages)
    assert sum(map(len, messages)) < 20 * 400
    assert "forged" in messages[0]


def test_a_crash_of_the_worker_is_explained_in_the_log(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(_root: int, _channel: Channel) -> None:
        raise RuntimeError("for this reason")

    with stolen(crash) as server:
        assert "ended with status 1" in run(server, root)
    assert "RuntimeError: for this reason" in caplog.messages[-1]


def test_a_crash_deep_down_is_explained_by_its_cause(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def descend(depth: int) -> None:
        if depth:
            descend(depth - 1)
        raise RuntimeError("for this reason")

    def crash(_root: int, _channel: Channel) -> None:
        try:
            descend(200)
        except RuntimeError as error:
            raise ValueError("because of that") from error

    with stolen(crash) as server:
        assert "ended with status 1" in run(server, root)
    assert any("RuntimeError: for this reason" in one for one in caplog.messages)
    assert "ValueError: because of that" in caplog.messages[-1]


# What it can do to others


def test_worker_that_fills_its_channel_holds_up_no_other_layer(root: Path) -> None:
    """The server must not wait until a manager, which waits for the network, reads."""

    def fill_and_die(_root: int, channel: Channel) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                channel.send({"type": "needs", "padding": "x" * 1000}, waits=False)
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)  # the first process of its namespace is deaf to itself

    with stolen(fill_and_die) as server:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        index = os.open(f"{root}.index", os.O_RDWR | os.O_CREAT)
        stuck, data, errors = server.connect(directory, index)
        started = stuck.receive()
        assert started is not None
        stuck.send({})  # the job
        process = started.descriptors[0]
        require(process, select.POLLIN)  # it ended, and nothing of what it said was read
        require(stuck.fileno(), select.POLLHUP)  # the server is done with it
        with server.unpacking(root) as unpacking, pytest.raises(UnpackerError):
            unpacking.finish()
        for descriptor in (directory, index, data, process):
            os.close(descriptor)
        stuck.close()
        errors.close()


def require(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event & ~select.POLLHUP)  # which is always told
    ((_, happened),) = poll.poll(30_000)
    assert happened & event


def test_worker_that_asks_without_reading_answers_is_ended(root: Path) -> None:
    def ask(_root: int, channel: Channel) -> None:
        for asked in range(1_000_000):
            channel.send({"type": "needs", "written": 4096 * asked, "bytes": 4096})

    with (
        stolen(ask) as server,
        server.unpacking(root) as unpacking,
        pytest.raises(UnpackerError, match="does not read its answers"),
    ):
        unpacking.finish()


# What starting one may lack


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize("processes", [0, 2])
def test_server_that_cannot_fork_says_so_and_recovers(tmp_path: Path, processes: int) -> None:
    """The server as an ordinary user with too few processes: none at all, or just a parent."""
    user = 1_000_000 + os.getpid()  # who has no other processes
    root = tmp_path / "layer"
    root.mkdir()

    def become_user() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, 1000))
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)

    def give_processes() -> None:
        become_user()
        resource.prlimit(server.process, resource.RLIMIT_NPROC, (1000, 1000))

    with stolen(lambda root, _: os.close(root), become_user) as server:
        with (
            pytest.raises(UnpackerError, match="cannot start the unpacker: Resource temporarily"),
            server.unpacking(root),
        ):
            pass
        in_child(give_processes)
        assert "without a verdict" in run(server, root)


def test_server_that_has_too_few_descriptors_says_so_and_recovers(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = set()
    with stolen(lambda root, _: os.close(root)) as server:
        first = len(list(Path(f"/proc/{server.process}/fd").iterdir()))
        for free in range(16):
            resource.prlimit(server.process, resource.RLIMIT_NOFILE, (first + free, hard))
            outcomes.add(attempt(server, root))
            resource.prlimit(server.process, resource.RLIMIT_NOFILE, (soft, hard))
            assert attempt(server, root) == "started"
            assert len(list(Path(f"/proc/{server.process}/fd").iterdir())) <= first + 3
    assert {"started", "cannot start the unpacker"} <= outcomes


def attempt(server: Stolen, root: Path) -> str:
    try:
        with server.unpacking(root):
            return "started"
    except UnpackerError as error:
        return str(error).partition(":")[0]
