"""Processes with mounts of their own, which nobody told the layer manager of."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IN_A_MOUNT_NAMESPACE: Final = ("unshare", "--mount", "--propagation", "private")
IN_A_USER_NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--mount")


@contextmanager
def shell(script: str, *, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A shell that has run *script* and waits, until the end of the context or a kill."""
    command = ["sh", "-e", "-c", f"{script}\necho ready\nread line"]
    with waiting([*prefix, *command]) as process:
        yield process


@contextmanager
def silent_file_system(
    place: Path, script: str, *, prefix: Sequence[str]
) -> Iterator[subprocess.Popen[str]]:
    """A FUSE file system on *place* that answers while *script* runs, and then never again."""
    program = Path(__file__).with_name("silent_file_system.py")
    with waiting([*prefix, sys.executable, str(program), str(place), script]) as process:
        yield process


@contextmanager
def waiting(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that has said that it is ready, until the end of the context or a kill."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise AssertionError(process.stderr.read())
        yield process
        process.communicate()


def mount_command(lower: Sequence[Path | str], target: Path, options: str = "ro") -> str:
    """What a shell mounts the layers *lower* by."""
    directories = ":".join(str(path) for path in lower)
    return shlex.join(
        [
            "mount",
            "-t",
            "overlay",
            "foreign",
            "-o",
            f"{options},lowerdir={directories}",
            str(target),
        ]
    )
