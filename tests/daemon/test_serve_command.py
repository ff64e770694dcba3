"""``layermanager serve`` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from layermanager.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_SECONDS = 60


@contextmanager
def serve(directory: Path, *options: str, **daemon: Any) -> Iterator[subprocess.Popen[str]]:
    """A daemon with a configuration file; yields it when it listens."""
    config = directory / "config.json"
    daemon = {"socket": str(directory / "api.sock"), **daemon}
    working_dir = str(directory / "work")
    config.write_text(json.dumps({"workingDir": working_dir, "layerManager": {"daemon": daemon}}))
    command = [sys.executable, "-m", "layermanager", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--log-level", "info", *options, "serve"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening at" in line:
                break
        try:
            yield process
        finally:
            process.kill()


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


def test_it_comes_up_after_it_was_killed(tmp_path: Path) -> None:
    with serve(tmp_path) as process:
        process.kill()
        process.wait()
    assert (tmp_path / "api.sock").exists()
    with serve(tmp_path):
        assert Client.at_socket(tmp_path / "api.sock").layers() == ()


@pytest.mark.parametrize("by_option", [True, False])
def test_its_log_may_be_json(tmp_path: Path, by_option: bool) -> None:
    options, daemon = (["--log-format", "json"], {}) if by_option else ([], {"logFormat": "json"})
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
