"""Processes with mounts of their own, which nobody told the layer manager of."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

IN_A_MOUNT_NAMESPACE: Final = ("unshare", "--mount", "--propagation", "private")


@contextmanager
def shell(script: str, *, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A shell that has run *script* and waits, until the end of the context or a kill."""
    with subprocess.Popen(
        [*prefix, "sh", "-e", "-c", f"{script}\necho ready\nread line"],
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
