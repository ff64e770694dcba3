"""The command line as a test calls it: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layermanager.cli.run import run
from layermanager.desired import desired_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pytest

    from layermanager import DesiredLayer

HOLDER = """
import sys, threading
from datetime import timedelta
from pathlib import Path
from layermanager.clock import SystemClock
from layermanager.lock import StoreLock
with StoreLock(Path(sys.argv[1]), SystemClock()).held(timedelta(0), threading.Event()):
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Standard output, line by line."""
        return self.out.splitlines()


@dataclass(frozen=True)
class CommandLine:
    """Runs commands on one store, in this process."""

    working_dir: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path) -> Finished:
        return self.bare("--work-dir", self.working_dir, *arguments)

    def bare(self, *arguments: str | Path) -> Finished:
        """Run without naming the store."""
        self.capture.readouterr()
        status = run([str(argument) for argument in arguments])
        return Finished(status, *self.capture.readouterr())


def write_desired(path: Path, layers: Iterable[DesiredLayer]) -> Path:
    """Write a list of desired layers to *path*."""
    path.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    return path


@contextmanager
def busy(working_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the store until its standard input ends."""
    working_dir.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, working_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate()


def command(working_dir: Path, *arguments: str | Path) -> list[str]:
    """The arguments of a process of its own."""
    return [
        sys.executable,
        *("-m", "layermanager", "--work-dir", str(working_dir)),
        *(os.fspath(argument) for argument in arguments),
    ]
