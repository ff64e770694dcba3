"""What only a process of its own shows: signals, closed pipes, imports, a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import command, write_desired

from layermanager.cli.run import run
from layermanager.inventory import Inventory
from layermanager.testing.layers import desired
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import MIB, Node, descendants, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_SECONDS = 30
# More than the buffers between server and client hold: once so much was sent, much of it is read.
SENT = 16 * MIB


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children can be interrupted even if whoever started the tests ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The end to write of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def finished(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


@contextmanager
def watched(processes: set[int]) -> Iterator[list[int]]:
    """Descriptors that tell when *processes* have ended."""
    descriptors = [os.pidfd_open(process) for process in processes]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_an_installation_without_a_trace(
    node: Node, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    blob = layer_tar("large", 2 * SENT)
    stall = Stall(threading.Event(), after=SENT)
    with LayerServer() as server:
        url = server.answer("/large", Answer(blob, stall=stall))
        small = node.publish("small")
        with node.manager() as manager:
            manager.process_desired_layers([small])
        list_file = write_desired(tmp_path / "desired.json", [small, desired(blob, url)])
        with subprocess.Popen(
            command(node.config.working_dir, "apply", list_file),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert stall.reached.wait(PATIENCE_SECONDS)
            children = descendants(process.pid)
            assert children
            with watched(children) as descriptors:
                process.send_signal(number)
                out, err = process.communicate(timeout=PATIENCE_SECONDS)
                for descriptor in descriptors:
                    assert select.select([descriptor], [], [], PATIENCE_SECONDS)[0]

    assert process.returncode == status
    assert out == ""
    assert err.splitlines()[-1] == word
    assert "Traceback" not in err
    node.assert_has([small])


@pytest.mark.parametrize(
    "arguments", [["ls"], ["ls", "--json"], ["df"], ["show", "DIGEST", "--files"]]
)
def test_nobody_reads_the_output(node: Node, arguments: list[str]) -> None:
    layer = node.publish("base")
    with node.manager() as manager:
        manager.process_desired_layers([layer])
    arguments = [layer.digest if argument == "DIGEST" else argument for argument in arguments]

    with closed_pipe() as writer:
        process = subprocess.run(
            command(node.config.working_dir, *arguments),
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert process.returncode == 128 + signal.SIGPIPE
    assert process.stderr == b""


def test_nobody_reads_the_help(node: Node) -> None:
    with closed_pipe() as writer:
        process = subprocess.run(
            command(node.config.working_dir, "--help"),
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert process.stderr == b""


def imported(*arguments: str) -> set[str]:
    """The modules that a command imports."""
    process = finished([sys.executable, "-X", "importtime", "-m", "layermanager", *arguments])
    assert process.returncode == 0
    return {
        line.rpartition("|")[2].strip()
        for line in process.stderr.splitlines()
        if line.startswith("import time:")
    }


def test_help_imports_nothing_heavy() -> None:
    modules = imported("--help")

    assert "click" in modules
    assert modules.isdisjoint(
        {"sqlite3", "urllib3", "http.client", "ssl", "asyncio", "layermanager.manager", "isal"}
    )


def test_ls_imports_no_http_client(tmp_path: Path) -> None:
    modules = imported("--work-dir", str(tmp_path), "ls")

    assert "sqlite3" in modules
    assert modules.isdisjoint({"urllib3", "http.client", "ssl", "layermanager.manager"})


def test_what_nobody_expected_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Inventory) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Inventory, "layers", broken)

    with pytest.raises(RuntimeError, match="a bug"):
        run(["--work-dir", str(tmp_path), "ls"])


def test_the_log_does_not_reach_the_json(node: Node, tmp_path: Path) -> None:
    layer = node.publish("base")
    unknown = node.config.layers_dir / "sha256" / ("ab" * 32)
    unknown.mkdir(parents=True)

    process = finished(
        command(
            node.config.working_dir,
            *("--json", "apply", write_desired(tmp_path / "desired.json", [layer])),
        )
    )

    assert process.returncode == 0
    assert [one["digest"] for one in json.loads(process.stdout)["installed"]] == [layer.digest]
    assert process.stderr.splitlines() == [
        f"WARNING: removed the directory of layer sha256:{'ab' * 32}: it is not recorded",
        "base 1.0.0: installing, " + process.stderr.partition("installing, ")[2].splitlines()[0],
        "base 1.0.0: committing",
        "base 1.0.0: installed",
    ]


@pytest.mark.parametrize(("term", "is_drawn"), [("xterm", True), ("dumb", False)])
def test_progress_on_a_terminal(node: Node, tmp_path: Path, *, term: str, is_drawn: bool) -> None:
    layer = node.publish("base")
    master, slave = pty.openpty()
    try:
        process = subprocess.run(
            command(
                node.config.working_dir,
                *("apply", write_desired(tmp_path / "desired.json", [layer]), "--json"),
            ),
            stdout=subprocess.PIPE,
            stderr=slave,
            env={**os.environ, "TERM": term},
            check=True,
        )
        shown = os.read(master, 65536).decode()
    finally:
        os.close(slave)
        os.close(master)

    assert len(json.loads(process.stdout)["installed"]) == 1
    assert ("\x1b[" in shown) is is_drawn
    assert "installed" in shown.splitlines()[-1]


def test_the_status_is_that_of_the_process(tmp_path: Path) -> None:
    process = finished(command(tmp_path, "--json", "show", "abcd"))

    assert process.returncode == 1
    assert json.loads(process.stdout)["error"]["type"] == "LayerNotExistError"
    assert process.stderr == ""
