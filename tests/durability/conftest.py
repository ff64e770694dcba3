from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from durability.children import Children
from durability.scenarios import NEED_MOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    """Forks processes that may be killed."""
    with Children() as children:
        yield children


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one.

    What a killed process wrote is in the kernel's memory, whatever the file system, so nothing is
    lost by that but the time for syncing.
    """
    if not _IN_MEMORY.is_dir():
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir=_IN_MEMORY, prefix="layermanager-"))
    yield path
    # Only root removes files from a directory without write permission, which some layers have.
    subprocess.run(["chmod", "--recursive", "u+rwX", path], check=True)
    shutil.rmtree(path)


@pytest.fixture
def needs_of_scenario(name: str, request: pytest.FixtureRequest) -> None:
    """Whatever the scenario *name* needs of the machine."""
    if name in NEED_MOUNTS:
        request.getfixturevalue("needs_overlay")


@pytest.fixture(scope="session")
def needs_strace() -> None:
    """The tracer of system calls."""
    if shutil.which("strace") is not None:
        return
    if os.environ.get("LAYERMANAGER_CI") == "1":
        pytest.fail("this machine lacks strace")
    pytest.skip("this machine lacks strace")
