"""A layer as Debian's own images are: its smallest system, without what apt has fetched."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.layers import GZIP, in_zstd, read_layer
from bench.setting import UnavailableError, require_program

if TYPE_CHECKING:
    from bench.layers import Layer
    from bench.setting import Setting

_SUITE: Final = "stable"
_LONGEST_SECONDS: Final = 300
_LEFT_OUT: Final = ("./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")


@cache
def debian(setting: Setting) -> Layer:
    """The smallest Debian, made once by debootstrap and kept for the next run.

    Raises:
        UnavailableError: it cannot be made here.
    """
    blob = setting.kept / "debian-minbase.tar.gz"
    if not blob.exists():
        setting.kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=setting.kept) as directory:
            unfinished = Path(directory, "unfinished.tar.gz")
            _bootstrap(Path(directory, "root"))
            _pack(Path(directory, "root"), unfinished)
            unfinished.rename(blob)
    return read_layer(blob, GZIP)


@cache
def debian_in_zstd(setting: Setting) -> Layer:
    """The same, compressed by zstd.

    Raises:
        UnavailableError: it cannot be made here.
    """
    return in_zstd(debian(setting), setting.scratch)


def _bootstrap(target: Path) -> None:
    require_program("debootstrap")
    if os.geteuid() != 0:
        raise UnavailableError("debootstrap needs root")
    # What it mounts and starts goes away with the namespaces, whichever way it ends.
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    command: tuple[str | Path, ...] = (*alone, "debootstrap", "--variant=minbase", _SUITE, target)
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stdout.splitlines() or [""])[-1]
        raise UnavailableError(f"debootstrap failed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"debootstrap took more than {_LONGEST_SECONDS} s") from error


def _pack(root: Path, blob: Path) -> None:
    excluded = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    options: tuple[str | Path, ...] = (
        "--create",
        "--numeric-owner",
        "--sort=name",
        *excluded,
        "--directory",
        root,
        ".",
    )
    with (
        blob.open("xb") as target,
        subprocess.Popen(("tar", *options), stdout=subprocess.PIPE) as tar,
    ):
        subprocess.run(GZIP.command, check=True, stdin=tar.stdout, stdout=target)
    if tar.returncode != 0:
        raise subprocess.CalledProcessError(tar.returncode, "tar")
