"""``layermanager serve`` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from layermanager.client import ApiError, Client
from layermanager.clock import SystemClock
from layermanager.errors import LayerManagerError
from layermanager.lock import StoreLock
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_SECONDS = 60


def configure(directory: Path, **daemon: Any) -> Path:
    """Write the configuration file of a daemon in *directory*."""
    config = directory / "config.json"
    daemon = {"socket": str(directory / "api.sock"), **daemon}
    working_dir = str(directory / "work")
    config.write_text(json.dumps({"workingDir": working_dir, "layerManager": {"daemon": daemon}}))
    return config


@contextmanager
def serve(
    directory: Path, *options: str, hand_over: int | None = None, **daemon: Any
) -> Iterator[subprocess.Popen[str]]:
    """A daemon with a configuration file, and maybe a socket; yields it when it listens."""
    command = [
        sys.executable,
        "-m",
        "layermanager",
        "--config",
        str(configure(directory, **daemon)),
    ]
    command += ["--log-level", "info", *options, "serve"]
    if hand_over is not None:  # the number of the process is its own
        words = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&"$0"'
        command = ["bash", "-c", words, str(hand_over), *command]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=() if hand_over is None else (hand_over,),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening at" in line:
                break
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def locked(working_dir: Path) -> Iterator[None]:
    """Another process that changes the store for the time of the context."""
    clock = SystemClock()
    with StoreLock(working_dir, clock).held(timedelta(0), threading.Event()):
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with serve(tmp_path) as process:
        client = Client.at_socket(tmp_path / "api.sock")
        assert client.layers() == ()
        events = client.events()
        assert next(events).kind == "open"  # a reader does not keep it from ending
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        assert "Traceback" not in err
        assert not (tmp_path / "api.sock").exists()
        events.close()


class TestReload:
    """SIGHUP."""

    @staticmethod
    def reload(process: subprocess.Popen[str], until: str) -> str:
        """Send the signal, and give the line of the log with these words."""
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        return next(line for line in process.stderr if until in line)

    def test_a_changed_configuration_is_taken_over(self, tmp_path: Path) -> None:
        with serve(tmp_path) as process:
            configure(tmp_path, maxBodyBytes=10)
            self.reload(process, "listening at")
            client = Client.at_socket(tmp_path / "api.sock")
            with pytest.raises(ApiError, match="maxBodyBytes: 10"):
                client.collect_garbage()
            configure(tmp_path, socket=str(tmp_path / "other.sock"))
            self.reload(process, "listening at")
            assert Client.at_socket(tmp_path / "other.sock").layers() == ()
            assert not (tmp_path / "api.sock").exists()

    def test_a_wrong_one_is_refused_and_the_old_one_stays(self, tmp_path: Path) -> None:
        with serve(tmp_path) as process:
            configure(tmp_path, maxBodyBytes="many")
            line = self.reload(process, "not taken over")
            assert "layerManager.daemon.maxBodyBytes: expected an integer" in line
            assert Client.at_socket(tmp_path / "api.sock").layers() == ()

    def test_nobody_is_refused_meanwhile(self, tmp_path: Path) -> None:
        ended = threading.Event()
        answers, failures = [], []

        def ask() -> None:
            client = Client.at_socket(tmp_path / "api.sock")
            while not ended.is_set():
                try:
                    answers.append(client.layers())
                except LayerManagerError as error:
                    failures.append(error)

        with serve(tmp_path) as process:
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(5):
                self.reload(process, "listening at")
            ended.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert len(answers) > 5

    def test_what_is_desired_goes_on(self, tmp_path: Path) -> None:
        node = Node(tmp_path, working_dir=tmp_path / "work")
        layer = node.publish("one")
        lost = node.published / "one"
        lost.rename(tmp_path / "kept")
        with serve(tmp_path) as process:
            client = Client.at_socket(tmp_path / "api.sock")
            assert client.wait(client.put_desired([layer]).id).state == "failed"
            (tmp_path / "kept").rename(lost)
            self.reload(process, "listening at")
            client.wait(client.desired_state().operation).raise_if_failed()


class Heard:
    """A service manager for one process."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE_SECONDS)

    def next(self, word: str) -> dict[str, str]:
        """What is told next that has this *word*."""
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            told = dict(line.split("=", 1) for line in lines)
            if word in told:
                return told


class TestSupervised:
    @pytest.fixture
    def heard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        heard = Heard(tmp_path / "notify")
        yield heard
        heard.socket.close()

    def test_it_tells_how_it_is_from_its_start_to_its_end(
        self, tmp_path: Path, heard: Heard
    ) -> None:
        with serve(tmp_path) as process:
            assert heard.next("READY")["STATUS"] == "0 layers"
            assert Client.at_socket(tmp_path / "api.sock").is_ready()
            for _ in range(3):
                assert heard.next("WATCHDOG")["STATUS"] == "0 layers"
            process.send_signal(signal.SIGHUP)
            heard.next("RELOADING")
            heard.next("READY")
            configure(tmp_path, maxBodyBytes=0)
            process.send_signal(signal.SIGHUP)
            heard.next("RELOADING")
            heard.next("READY")  # the old one
            process.terminate()
            heard.next("STOPPING")

    def test_it_is_not_ready_before_the_store_is(self, tmp_path: Path, heard: Heard) -> None:
        (tmp_path / "work").mkdir()
        with locked(tmp_path / "work"), serve(tmp_path):
            told = heard.next("STATUS")
            assert "READY" not in told
            assert int(told["EXTEND_TIMEOUT_USEC"]) > 0
            while "waits: " not in told["STATUS"]:
                told = heard.next("STATUS")
            assert not Client.at_socket(tmp_path / "api.sock").is_ready()

    def test_a_socket_that_is_handed_over_is_used(self, tmp_path: Path) -> None:
        path = tmp_path / "theirs"
        with closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind(str(path))
            listening.listen()
            with serve(tmp_path, hand_over=listening.fileno()):
                assert Client.at_socket(path).layers() == ()
        assert path.exists()


def test_it_comes_up_after_it_was_killed(tmp_path: Path) -> None:
    with serve(tmp_path) as process:
        process.kill()
        process.wait()
    assert (tmp_path / "api.sock").exists()
    with serve(tmp_path):
        assert Client.at_socket(tmp_path / "api.sock").layers() == ()


@pytest.mark.parametrize("by_option", [True, False])
def test_its_log_may_be_json(tmp_path: Path, by_option: bool) -> None:
    options = ["--log-format", "json"] if by_option else []
    daemon: dict[str, Any] = {} if by_option else {"logFormat": "json"}
    with serve(tmp_path, *options, **daemon) as process:
        Client.at_socket(tmp_path / "api.sock").collect_garbage()
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    lines = [json.loads(line) for line in err.splitlines()]
    asked = [line for line in lines if line["message"].startswith("POST /v1/gc: 202")]
    assert len(asked) == 1
    assert asked[0]["level"] == "info"
    assert f"user {os.geteuid()}, process {os.getpid()}" in asked[0]["message"]


def test_what_it_lacks_is_said(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['h11'] = None\n"
        "from layermanager.cli.run import run\n"
        f"sys.exit(run(['--work-dir', {str(tmp_path)!r}, 'serve']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "pip install 'layermanager[daemon]'" in ran.stderr


@pytest.mark.parametrize("module", ["layermanager", "layermanager.manager", "layermanager.client"])
def test_who_only_uses_the_library_loads_nothing_of_it(module: str) -> None:
    script = f"import {module}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ran.stdout.split()
    assert not [name for name in loaded if name.startswith(("h11", "layermanager.daemon"))]
    if module == "layermanager.client":
        assert not {"sqlite3", "urllib3", "click"} & set(loaded)
