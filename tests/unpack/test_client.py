from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from layermanager.amounts import Amount
from layermanager.cancellation import Cancellation
from layermanager.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    LayerError,
    LimitExceededError,
    NotEnoughSpaceError,
    PackageError,
    UnpackerError,
)
from layermanager.model import Limits
from layermanager.testing.layers import (
    LayerBuilder,
    build_package,
    compress,
    digest_of,
)
from layermanager.unpack.client import Unpacker, Unpacking
from layermanager.unpack.messages import Channel, Job, Need, Unpacked
from layermanager.unpack.stderr import ErrorPipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENCE = timedelta(seconds=60)
TAR = LayerBuilder().directory("etc").file("etc/motd", b"hello").whiteout("gone").tar()
BLOB = compress(TAR, "gzip")
MUCH = 10**12


@pytest.fixture
def unpacker() -> Iterator[Unpacker]:
    made = Unpacker(PATIENCE)
    yield made
    made.close()


def job(
    blob: bytes, *, is_package: bool = False, limits: Limits | None = None, granted: int = MUCH
) -> Job:
    return Job(digest_of(blob), is_package, limits or Limits(), granted, 4096)


def refuse(need: Need) -> Amount:
    raise AssertionError(f"asked for more: {need}")


def grant_all(need: Need) -> Amount:
    return need.wanted


@contextmanager
def unpacking(
    unpacker: Unpacker,
    root: Path,
    what: Job,
    grant: Callable[[Need], Amount] = refuse,
) -> Iterator[Unpacking]:
    """Start to unpack below *root*."""
    root.mkdir()
    with ExitStack() as stack:
        index = os.memfd_create("index")
        stack.callback(os.close, index)
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, directory)
        yield stack.enter_context(unpacker.start(what, directory, index, grant))


def unpack(unpacker: Unpacker, root: Path, what: Job, data: bytes) -> Unpacked:
    with unpacking(unpacker, root, what) as running:
        for at in range(0, len(data), 100_000):
            running.feed(data[at : at + 100_000])
        return running.finish()


def descendants(process: int) -> list[int]:
    """The processes below *process*, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended while we looked
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def require_gone(processes: list[int], watched: list[int]) -> None:
    """Wait until the *processes*, of which *watched* are descriptors, have ended."""
    for process, descriptor in zip(processes, watched, strict=True):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(30_000), f"process {process} lives"
        os.close(descriptor)


def open_descriptors() -> set[str]:
    """The numbers of this process's descriptors."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def watch(processes: list[int]) -> list[int]:
    return [os.pidfd_open(process) for process in processes]


def processes_of_unpacker() -> list[int]:
    """The server, the worker's parent and the worker of this process, where there are any."""
    return descendants(os.getpid())


# What goes well


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_unpacks_a_bare_layer(
    unpacker: Unpacker, tmp_path: Path, compression: Literal["gzip", "zstd", "none"]
) -> None:
    blob = compress(TAR, compression)
    verdict = unpack(unpacker, tmp_path / "layer", job(blob), blob)
    assert (verdict.blob_digest, verdict.entries, verdict.os_version) == ("", 3, "")
    assert verdict.size >= 2 * 4096
    assert (tmp_path / "layer/etc/motd").read_text() == "hello"
    assert (tmp_path / "layer/gone").lstat().st_rdev == 0


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_unpacks_a_package(
    unpacker: Unpacker, tmp_path: Path, compression: Literal["gzip", "none"]
) -> None:
    package = build_package(BLOB, {"platform": {"os.version": "6.1"}}) + bytes(20_000)
    data = compress(package, compression)
    verdict = unpack(unpacker, tmp_path / "layer", job(BLOB, is_package=True), data)
    assert verdict.blob_digest == digest_of(BLOB)
    assert (verdict.os_version, verdict.entries) == ("6.1", 3)
    assert (tmp_path / "layer/etc/motd").read_text() == "hello"


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("is_package", [False, True])
def test_the_digest_of_the_tar_is_compared_where_it_is_known(
    unpacker: Unpacker,
    tmp_path: Path,
    compression: Literal["none", "gzip", "zstd"],
    is_package: bool,
) -> None:
    trailer = bytes(1024 * 1024)  # also what follows the end of the tar is part of it
    blob = compress(TAR + trailer, compression)
    data = build_package(blob) if is_package else blob
    right = replace(job(blob, is_package=is_package), diff_id=digest_of(TAR + trailer))
    wrong = replace(right, diff_id=digest_of(TAR))
    with unpacking(unpacker, tmp_path / "right", right) as layer:
        layer.feed(data)
        layer.finish()
    with pytest.raises(IntegrityError) as caught:
        unpack(unpacker, tmp_path / "wrong", wrong, data)
    assert caught.value.subject == "diff ID"
    assert caught.value.expected == digest_of(TAR)
    assert caught.value.found == digest_of(TAR + trailer)


def test_what_was_left_out_is_told(unpacker: Unpacker, tmp_path: Path) -> None:
    tar = LayerBuilder().directory(".wh..wh.plnk").tar()
    verdict = unpack(unpacker, tmp_path / "layer", job(tar), tar)
    assert verdict.notes == {"AUFS bookkeeping left out": 1}


def test_more_after_the_end_than_a_pipe_holds(unpacker: Unpacker, tmp_path: Path) -> None:
    package = build_package(BLOB) + bytes(8 * 1024 * 1024)
    unpack(unpacker, tmp_path / "package", job(BLOB, is_package=True), package)
    tar = TAR + bytes(8 * 1024 * 1024)
    verdict = unpack(unpacker, tmp_path / "layer", job(tar), tar)
    assert verdict.entries == 3


def test_space_is_asked_for_as_the_layer_grows(unpacker: Unpacker, tmp_path: Path) -> None:
    asked = []

    def grant(need: Need) -> Amount:
        asked.append((need.written, need.more))
        return need.wanted + Amount(100_000, 100)

    tar = LayerBuilder().file("large", os.urandom(2_000_000)).tar()
    with unpacking(unpacker, tmp_path / "layer", job(tar, granted=0), grant) as running:
        running.feed(tar)
        size = running.finish().size
    assert asked[0][0] == 0
    assert [written for written, _ in asked] == sorted(written for written, _ in asked)
    assert size - 400_000 < asked[-1][0] + asked[-1][1] <= size


def test_several_at_once(unpacker: Unpacker, tmp_path: Path) -> None:
    tars = [LayerBuilder().file("f", b"%d" % number * 500_000).tar() for number in range(8)]

    def one(number: int) -> bytes:
        tar = tars[number]
        unpack(unpacker, tmp_path / str(number), job(tar), tar)
        return (tmp_path / str(number) / "f").read_bytes()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, range(8))) == [b"%d" % one * 500_000 for one in range(8)]


def test_many_layers_leave_no_descriptor_and_no_process(tmp_path: Path) -> None:
    unpacker = Unpacker(PATIENCE)
    unpack(unpacker, tmp_path / "first", job(BLOB), BLOB)
    before = sorted(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists())  # noqa: PTH115
    (server,) = [process for process in processes_of_unpacker() if is_server(process)]
    held = len(list(Path(f"/proc/{server}/fd").iterdir()))
    for number in range(50):
        data = BLOB if number % 3 else BLOB[:50]
        with suppress(ArchiveError):
            unpack(unpacker, tmp_path / str(number), job(BLOB), data)
    after = sorted(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists())  # noqa: PTH115
    assert len(after) == len(before)
    # The server closes what belonged to the last worker once it has told of its end.
    assert len(list(Path(f"/proc/{server}/fd").iterdir())) <= held + 2
    unpacker.close()
    assert processes_of_unpacker() == []


def is_server(process: int) -> bool:
    parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
    return int(parent) == os.getpid()


def test_the_server_can_be_there_before_it_is_needed(unpacker: Unpacker, tmp_path: Path) -> None:
    unpacker.prepare()
    server = processes_of_unpacker()
    assert len(server) == 1
    unpacker.prepare()
    unpack(unpacker, tmp_path / "layer", job(BLOB), BLOB)
    assert [process for process in processes_of_unpacker() if is_server(process)] == server


def test_closing_may_be_repeated_and_starting_again_works(tmp_path: Path) -> None:
    unpacker = Unpacker(PATIENCE)
    unpacker.close()
    unpack(unpacker, tmp_path / "one", job(BLOB), BLOB)
    unpacker.close()
    unpacker.close()
    unpack(unpacker, tmp_path / "two", job(BLOB), BLOB)
    unpacker.close()


# What goes wrong with the layer


@pytest.mark.parametrize(
    ("what", "data", "error", "message"),
    [
        (job(BLOB), BLOB[:-10], ArchiveError, "truncated gzip"),
        (job(b"no tar"), b"no tar" * 1000, ArchiveError, "no tar"),
        (job(b""), LayerBuilder().file("../f").tar(), ArchiveError, "leads out of the layer"),
        (job(b"", limits=Limits(entries=1)), TAR, LimitExceededError, "more than 1 entries"),
        (job(BLOB, is_package=True), TAR, PackageError, "unknown member etc/"),
        (job(b"other", is_package=True), build_package(BLOB), IntegrityError, "layer.json"),
    ],
)
def test_the_layers_faults_are_told_by_class(
    unpacker: Unpacker,
    tmp_path: Path,
    what: Job,
    data: bytes,
    error: type[ArchiveError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        unpack(unpacker, tmp_path / "layer", what, data)
    assert caught.value.digest == what.digest


def test_a_fault_at_the_beginning_is_told_while_much_is_still_to_come(
    unpacker: Unpacker, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="no number"):
        unpack(unpacker, tmp_path / "layer", job(b""), b"x" * 20_000_000)


def test_a_name_that_the_file_system_refuses_is_the_layers_fault(
    unpacker: Unpacker, tmp_path: Path
) -> None:
    tar = LayerBuilder().file("n" * 256).tar()
    with pytest.raises(ArchiveError, match="nnnn: File name too long"):
        unpack(unpacker, tmp_path / "layer", job(tar), tar)


def test_space_that_is_refused_ends_the_worker(unpacker: Unpacker, tmp_path: Path) -> None:
    error = NotEnoughSpaceError(needed=2, free=1, limit=0, reclaimable=0, limit_reached=False)

    def grant(_: Need) -> Amount:
        raise error

    before = processes_after_warming_up(unpacker, tmp_path)
    with unpacking(unpacker, tmp_path / "layer", job(TAR, granted=0), grant) as running:
        running.feed(TAR)
        with pytest.raises(NotEnoughSpaceError) as caught:
            running.finish()
    assert caught.value is error
    require_only(before)


def processes_after_warming_up(unpacker: Unpacker, tmp_path: Path) -> list[int]:
    """The server alone."""
    unpack(unpacker, tmp_path / "warm", job(BLOB), BLOB)
    return [process for process in processes_of_unpacker() if is_server(process)]


def require_only(processes: list[int]) -> None:
    """Besides *processes*, whatever is left below us is about to end, and does."""
    for process in processes_of_unpacker():
        if process not in processes:
            with suppress(ProcessLookupError):
                require_gone([process], watch([process]))


# What goes wrong with the processes


def test_a_killed_worker_is_told(unpacker: Unpacker, tmp_path: Path) -> None:
    server = processes_after_warming_up(unpacker, tmp_path)
    with unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        running.feed(TAR[:1000])
        worker = processes_of_unpacker()[-1]
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UnpackerError, match="killed by signal 9") as caught:
            running.finish()
    assert caught.value.digest == digest_of(TAR)
    require_only(server)
    unpack(unpacker, tmp_path / "next", job(BLOB), BLOB)


def test_a_worker_killed_while_it_is_fed(unpacker: Unpacker, tmp_path: Path) -> None:
    large = LayerBuilder().file("large", bytes(64 * 1024 * 1024)).members()

    def feed_and_kill() -> None:
        for at in range(0, len(large), 1_000_000):
            running.feed(large[at : at + 1_000_000])
            if at == 10_000_000:
                os.kill(processes_of_unpacker()[-1], signal.SIGKILL)

    with (
        unpacking(unpacker, tmp_path / "layer", job(large)) as running,
        pytest.raises(UnpackerError, match="killed by signal 9"),
    ):
        feed_and_kill()


def test_kill_from_another_thread_ends_the_wait(unpacker: Unpacker, tmp_path: Path) -> None:
    with unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        running.feed(TAR[:700])
        killer = threading.Thread(target=running.kill)
        killer.start()
        with pytest.raises(UnpackerError, match="killed by signal 9"):
            running.finish()
        killer.join()
        running.kill()


def test_the_next_layer_works_after_the_server_was_killed(
    unpacker: Unpacker, tmp_path: Path
) -> None:
    (server,) = processes_after_warming_up(unpacker, tmp_path)
    with unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        running.feed(TAR[:1000])
        workers = [process for process in processes_of_unpacker() if process != server]
        watched = watch(workers)
        os.kill(server, signal.SIGKILL)
        with pytest.raises(LayerError):  # killed, or quick enough to tell that its input ended
            running.finish()
    require_gone(workers, watched)
    unpack(unpacker, tmp_path / "next", job(BLOB), BLOB)


def test_nobody_writes_after_the_context(unpacker: Unpacker, tmp_path: Path) -> None:
    server = processes_after_warming_up(unpacker, tmp_path)
    with unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        running.feed(TAR[:1200])
        workers = [process for process in processes_of_unpacker() if process not in server]
        assert workers
    worker = workers[-1]
    status = Path(f"/proc/{worker}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()
    require_only(server)


def test_no_unpacker_outlives_its_manager(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, sys
        from datetime import timedelta
        from layermanager.model import Limits
        from layermanager.testing.layers import LayerBuilder, digest_of
        from layermanager.unpack.client import Unpacker
        from layermanager.unpack.messages import Job
        tar = LayerBuilder().file("f", b"content").tar()
        job = Job(digest_of(tar), False, Limits(), 10**9, 4096)
        root = os.open(sys.argv[1], os.O_RDONLY)
        unpacker = Unpacker(timedelta(seconds=60))
        with unpacker.start(job, root, os.memfd_create("index"), lambda n: n.wanted) as running:
            running.feed(tar[:600])
            print("feeding", flush=True)
            sys.stdin.read()
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as manager:
        assert manager.stdout is not None
        assert manager.stdout.readline() == b"feeding\n"
        below = descendants(manager.pid)
        assert len(below) >= 2
        watched = watch(below)
        manager.kill()
        manager.wait()
        require_gone(below, watched)


@pytest.mark.usefixtures("needs_root")
def test_a_worker_inherits_nothing(
    unpacker: Unpacker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "secret")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with secret.open() as file, unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        os.set_inheritable(file.fileno(), True)
        with unpacking(unpacker, tmp_path / "other", job(TAR)) as other:
            running.feed(TAR[:600])
            other.feed(TAR[:600])
            for process in processes_of_unpacker():
                assert Path(f"/proc/{process}/environ").read_bytes() == b""
                links = [
                    os.readlink(link)  # noqa: PTH115 - some name no file
                    for link in Path(f"/proc/{process}/fd").iterdir()
                    if int(link.name) > 2
                ]
                assert str(secret) not in links
                if process == processes_of_unpacker()[-1]:
                    # The root, the index and the channel, and nothing of the other one.
                    assert len(links) == 3
                    assert sum(link.startswith("socket:") for link in links) == 1


def test_feeding_after_the_end_is_a_mistake(unpacker: Unpacker, tmp_path: Path) -> None:
    with unpacking(unpacker, tmp_path / "layer", job(BLOB)) as running:
        running.feed(BLOB)
        running.finish()
        with pytest.raises(ValueError, match=r"after finish\(\)"):
            running.feed(b"more")


def test_a_python_that_cannot_be_started_is_told(
    unpacker: Unpacker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    unpacker.prepare()
    with (
        pytest.raises(UnpackerError, match="cannot start the unpacker"),
        unpacking(unpacker, tmp_path / "layer", job(BLOB)),
    ):
        pass


# Cancelling


def pause(running: Unpacking) -> None:
    """Stop the worker, so that it neither reads nor ends."""
    running.jail_measures()
    os.kill(processes_of_unpacker()[-1], signal.SIGSTOP)


def cancel_meanwhile(running: Unpacking, wait: Callable[[Unpacking], None]) -> None:
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as threads, cancellation.interrupting(running.kill):
        waiting = threads.submit(wait, running)
        cancellation.cancel()
        waiting.result(60)


def feed_much(running: Unpacking) -> None:
    running.feed(bytes(16 * 1024 * 1024))


def finish(running: Unpacking) -> None:
    running.finish()


@pytest.mark.parametrize("wait", [feed_much, finish])
def test_every_wait_for_a_worker_can_be_ended(
    unpacker: Unpacker, tmp_path: Path, wait: Callable[[Unpacking], None]
) -> None:
    with unpacking(unpacker, tmp_path / "layer", job(TAR)) as running:
        pause(running)
        with pytest.raises(CancelledError):
            cancel_meanwhile(running, wait)


# What starting a worker may lack


_SCARCE = """
import os, resource, sys
from datetime import timedelta
from pathlib import Path
from layermanager.errors import UnpackerError
from layermanager.model import Limits
from layermanager.testing.layers import LayerBuilder, digest_of
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job

warm = sys.argv[2] == "warm"
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
tar = LayerBuilder().file("f", b"content").tar()
job = Job(digest_of(tar), False, Limits(), 10**9, 4096)

def unpack(name):
    place = Path(sys.argv[1], name)
    place.mkdir()
    root, index = os.open(place, os.O_RDONLY), os.open(f"{place}.index", os.O_RDWR | os.O_CREAT)
    try:
        with_descriptors(root, index)
    finally:
        os.close(root)
        os.close(index)
    assert (place / "f").read_bytes() == b"content"

def with_descriptors(root, index):
    with unpacker.start(job, root, index, lambda need: need.wanted) as running:
        running.feed(tar)
        running.finish()

def taken():
    found = []
    try:
        while True:
            found.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return found

place = Path(sys.argv[1], "scarce")
place.mkdir()
root = os.open(place, os.O_RDONLY)
index = os.open(f"{place}.index", os.O_RDWR | os.O_CREAT)
unpacker = Unpacker(timedelta(seconds=60))
refused = 0
for free in range(20):
    if warm:
        unpack(f"warm{free}")
    before = sorted(os.listdir("/proc/self/fd"))
    held = taken()
    for _ in range(free):
        os.close(held.pop())
    try:
        with_descriptors(root, index)
    except UnpackerError as error:
        assert "cannot start the unpacker: " in str(error) or "not all there" in str(error), error
        refused += 1
    except OSError as error:
        raise AssertionError(f"{free}: {error!r}")
    finally:
        for descriptor in held:
            os.close(descriptor)
    if not warm:
        unpacker.close()
    (place / "f").unlink(missing_ok=True)
    os.ftruncate(index, 0)
    os.lseek(index, 0, os.SEEK_SET)
    after = sorted(os.listdir("/proc/self/fd"))
    assert after == before, (free, before, after)
    unpack(f"after{free}")
    if not warm:
        unpacker.close()
assert 5 < refused < 20, refused
unpacker.close()
"""


@pytest.mark.parametrize("state", ["warm", "cold"])
def test_a_lack_of_descriptors_fails_one_layer_and_leaks_none(tmp_path: Path, state: str) -> None:
    """With any number of free descriptors, whether the server runs already or not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _SCARCE, str(tmp_path), state]
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# A worker that was taken over


@pytest.fixture
def imposter() -> Iterator[Imposter]:
    made = Imposter()
    yield made
    made.close()


class Imposter:
    """Plays the worker: a process that does nothing, and whatever messages the test likes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        self._ours, self._theirs = Channel.pair()
        self.data_out, self._data_in = os.pipe()
        self.errors = ErrorPipe()
        process_descriptor = os.pidfd_open(self.process.pid)
        self._theirs.send({"type": "started"}, (process_descriptor,))
        os.close(process_descriptor)

    def start(
        self,
        timeout: timedelta = PATIENCE,
        *,
        what: Job | None = None,
        grant: Callable[[Need], Amount] = grant_all,
        free_bytes: Callable[[], int] = lambda: 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Unpacking:
        """Begin, and tell of a jail."""
        running = Unpacking(
            what or job(BLOB, granted=0),
            self._ours,
            self._data_in,
            self.errors,
            grant,
            free_bytes=free_bytes,
            on_jail=lambda measures: None,  # noqa: ARG005
            timeout=timeout,
            monotonic=monotonic,
        )
        running.begin()
        assert self._theirs.receive() is not None  # the job
        self.say({"type": "jail", "measures": {}})
        running.jail_measures()
        return running

    def say(self, message: Mapping[str, object], *descriptors: int) -> None:
        self._theirs.send(message, descriptors)

    def read_answer(self) -> None:
        assert self._theirs.receive() is not None

    def say_raw(self, data: bytes) -> None:
        os.write(self._theirs.fileno(), data)

    def hang_up(self) -> None:
        self._theirs.close()

    def close(self) -> None:
        self._theirs.close()
        os.close(self.data_out)
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "unheard of"},
        {"type": 5},
        {"type": "done"},
        {"type": "done", "blob_digest": 1},
        {"type": "failed"},
        {"type": "needs", "written": -1},
        {"type": "needs", "bytes": "many"},
        {"type": "os_error", "errno": 5},
        {"type": "ended", "status": "well"},
        {"type": "jail", "measures": []},
    ],
)
def test_a_worker_that_breaks_the_protocol_is_ended(
    imposter: Imposter, message: dict[str, object]
) -> None:
    with imposter.start() as running:
        imposter.say(message)
        with pytest.raises(UnpackerError, match="broke its protocol") as caught:
            running.finish()
    assert caught.value.digest == digest_of(BLOB)
    assert imposter.process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("data", [b"garbage", b"{" * 9000, b"[1]"])
def test_a_worker_that_sends_no_messages_is_ended(imposter: Imposter, data: bytes) -> None:
    with imposter.start() as running:
        imposter.say_raw(data)
        with pytest.raises(UnpackerError, match="no message"):
            running.finish()
    assert imposter.process.wait(30) == -signal.SIGKILL


def test_a_worker_that_says_it_ended_is_ended(imposter: Imposter) -> None:
    with imposter.start() as running:
        imposter.say({"type": "ended", "status": 0})
        with pytest.raises(UnpackerError, match="without a verdict"):
            running.finish()
        assert imposter.process.wait(30) == -signal.SIGKILL


def test_a_worker_that_hangs_up_is_ended(imposter: Imposter) -> None:
    with imposter.start() as running:
        imposter.hang_up()
        with pytest.raises(UnpackerError, match="without a verdict"):
            running.finish()
        assert imposter.process.wait(30) == -signal.SIGKILL


def test_a_worker_that_asks_and_hangs_up_is_ended(imposter: Imposter) -> None:
    with imposter.start() as running:
        imposter.say({"type": "needs", "written": 0, "bytes": 4096})
        imposter.hang_up()
        with pytest.raises(UnpackerError, match="without a verdict"):
            running.finish()


def test_a_worker_that_is_silent_is_given_up(imposter: Imposter) -> None:
    start = time.monotonic()
    with imposter.start(timedelta(milliseconds=50)) as running:
        with pytest.raises(UnpackerError, match="too little progress"):
            running.feed(bytes(8 * 1024 * 1024))
        with pytest.raises(UnpackerError, match="too little progress"):
            running.finish()
    assert time.monotonic() - start < 30
    assert imposter.process.wait(30) == -signal.SIGKILL


class Ticking:
    """A clock by which each look at it takes a while."""

    def __init__(self, seconds: float = 0.1) -> None:
        self._seconds = seconds
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._seconds
        return self._now


def test_a_broken_protocol_ends_the_feeding(imposter: Imposter) -> None:
    with imposter.start() as running:
        imposter.say({"type": "unheard of"})
        with pytest.raises(UnpackerError, match="broke its protocol"):
            running.feed(bytes(64 * 1024 * 1024))
    assert imposter.process.wait(30) == -signal.SIGKILL


def test_messages_do_not_extend_the_deadline(imposter: Imposter) -> None:
    """Each asks for one block more, as often as the worker likes."""
    granted: list[int] = []

    def grant(need: Need) -> Amount:
        granted.append(need.wanted.size)
        imposter.say({"type": "needs", "written": need.wanted.size, "bytes": 4096})
        return need.wanted

    with imposter.start(timedelta(seconds=10), grant=grant, monotonic=Ticking()) as running:
        imposter.say({"type": "needs", "written": 0, "bytes": 4096})
        with pytest.raises(UnpackerError, match="too little progress for 10 s"):
            running.finish()
    assert 20 < len(granted) < 200
    assert imposter.process.wait(30) == -signal.SIGKILL


def test_what_appears_on_the_disk_extends_the_deadline(imposter: Imposter) -> None:
    granted: list[int] = []

    def grant(need: Need) -> Amount:
        granted.append(need.wanted.size)
        if len(granted) > 1:
            imposter.read_answer()
        if len(granted) < 500:
            imposter.say({"type": "needs", "written": need.wanted.size, "bytes": 8 * 4096})
        else:
            imposter.say({**DONE, "size": need.wanted.size})
            imposter.hang_up()
        return need.wanted

    with (
        imposter.start(
            timedelta(seconds=10),
            grant=grant,
            monotonic=Ticking(0.025),  # 12.5 s in all
            free_bytes=lambda: 10**9 - sum(granted[-1:]),
        ) as running
    ):
        imposter.say({"type": "needs", "written": 0, "bytes": 8 * 4096})
        assert running.finish().size == 500 * 8 * 4096


def test_a_worker_that_takes_in_its_input_drop_by_drop_is_given_up(imposter: Imposter) -> None:
    """A page in a third of a second is less than any disk writes."""
    clock = Ticking(0.3)
    taken = 0

    def grant(need: Need) -> Amount:
        nonlocal taken
        if taken:
            imposter.read_answer()
        taken += len(os.read(imposter.data_out, 4096))
        imposter.say({"type": "needs", "written": need.wanted.size, "bytes": 4096})
        return need.wanted

    with imposter.start(timedelta(seconds=10), grant=grant, monotonic=clock) as running:
        imposter.say({"type": "needs", "written": 0, "bytes": 4096})
        with pytest.raises(UnpackerError, match="too little progress"):
            running.feed(bytes(64 * 1024 * 1024))
    assert taken < 4 * 1024 * 1024


DONE = {"type": "done", "size": 0, "entries": 1, "notes": {}}


@pytest.mark.parametrize("size", [1, 2**63 - 1, 2**63, 2**70, -1])
def test_a_size_that_was_never_granted_is_not_believed(imposter: Imposter, size: int) -> None:
    with imposter.start() as running:
        imposter.say({**DONE, "size": size})
        imposter.say({"type": "ended", "status": 0})
        with pytest.raises(
            UnpackerError, match=r"(broke its protocol: (message\.)?size|is no message)"
        ):
            running.finish()


@pytest.mark.parametrize("kind", ["done", "jail", "needs", "failed", "started"])
def test_nothing_is_taken_after_the_verdict(imposter: Imposter, kind: str) -> None:
    with imposter.start() as running:
        imposter.say(DONE)
        imposter.say({**DONE, "type": kind, "written": 0, "bytes": 4096})
        with pytest.raises(UnpackerError, match="broke its protocol: unexpected message"):
            running.finish()


def test_a_worker_that_wants_more_than_its_input_can_become_gets_nothing(
    imposter: Imposter,
) -> None:
    """Granting it would evict all cached layers."""
    with imposter.start(grant=refuse) as running:
        imposter.say({"type": "needs", "written": 0, "bytes": 2**40})
        with pytest.raises(LimitExceededError, match="may become"):
            running.finish()


@pytest.mark.parametrize("count", [1, 3, 5, 9])
@pytest.mark.parametrize("kind", ["needs", "started", "done"])
def test_descriptors_that_were_not_asked_for_are_closed(
    imposter: Imposter, count: int, kind: str
) -> None:
    with imposter.start() as running:
        before = open_descriptors()
        imposter.say({"type": kind, "written": 0, "bytes": 4096}, *[0] * count)
        with pytest.raises(UnpackerError, match=r"broke its protocol|not all there"):
            running.finish()
        assert open_descriptors() < before  # the pipe, and the process that was ended
