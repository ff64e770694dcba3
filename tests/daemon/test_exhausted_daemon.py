"""A daemon that runs out of descriptors goes on by itself when there are some again."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from test_serve_command import serve

from layermanager.client import Client
from layermanager.desired import desired_to_json
from manager_fixtures import Node

if TYPE_CHECKING:
    import subprocess

    from layermanager.model import DesiredLayer

PATIENCE_SECONDS = 60
_FAST = {"retryDelaySeconds": 0.05, "longestRetryDelaySeconds": 0.1}


def put(path: Path, *layers: DesiredLayer) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    new.replace(path)


def descriptors(process: subprocess.Popen[str]) -> int:
    return sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())


def read_until(process: subprocess.Popen[str], *words: str) -> None:
    """Read the log until each of these words came, whatever their order."""
    missing = set(words)
    assert process.stderr is not None
    while missing:
        line = process.stderr.readline()
        assert line, f"the log ended without {missing}"
        assert "Traceback" not in line
        missing = {one for one in missing if one not in line}


def wait_for(client: Client, digest: str) -> None:
    """Return when the layer is there; events tell when to look."""
    with closing(client.events()) as events:
        for event in events:
            if digest in {layer.digest for layer in client.layers() if not layer.cached}:
                return
            assert event.kind


def test_it_accepts_and_follows_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    one, two = node.publish("one"), node.publish("two")
    desired = tmp_path / "desired.json"
    put(desired, one)
    path = tmp_path / "api.sock"
    following = {"source": str(desired), "pollSeconds": 0.1, **_FAST}
    with serve(tmp_path, desiredState=following, heartbeatSeconds=0.1) as process:
        client = Client.at_socket(path)
        wait_for(client, one.digest)
        for operation in client.operations():
            client.wait(operation.id)
        before = descriptors(process)
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        with ExitStack() as stack:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, hard))  # not one more
            waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for connection in waiting:
                connection.connect(str(path))
                connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            put(desired, one, two)
            read_until(process, "cannot accept connections: Too many open files", "cannot be had")
            assert descriptors(process) <= before  # nothing leaks
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
            for connection in waiting:
                connection.settimeout(PATIENCE_SECONDS)
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        wait_for(client, two.digest)
        assert client.state_source().failures == 0
        metrics = client.metrics()
        assert 'layermanager_unexpected_errors_total{boundary="thread"} 0' in metrics
        assert process.poll() is None
