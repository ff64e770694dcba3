"""Which process is which, and whether it is still there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE
from layermanager.errors import UseError
from layermanager.use.processes import is_process_alive, process_bond

WAITING = "import sys; sys.stdin.read()"
AWKWARD_NAME = "open('/proc/self/comm', 'w').write(') Z 1 2 ('); print(flush=True);"
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def start(script: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if "print" in script:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    return process


def test_this_one() -> None:
    bond = process_bond(os.getpid())
    assert bond.process == os.getpid()
    assert is_process_alive(bond)


@pytest.mark.parametrize("script", [WAITING, AWKWARD_NAME + WAITING])
def test_one_that_is_killed(script: str) -> None:
    with start(script) as process:
        bond = process_bond(process.pid)
        assert is_process_alive(bond)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_process_alive(bond), "it has ended, though nobody has taken note of that"
    assert not is_process_alive(bond)


def test_one_whose_first_thread_has_ended() -> None:
    with start(WITHOUT_ITS_FIRST_THREAD) as process:
        bond = process_bond(process.pid)
        while b"State:\tZ" not in open_status(process.pid):
            threading.Event().wait(0.001)
        assert is_process_alive(bond)
        process.kill()


def open_status(process: int) -> bytes:
    return Path(f"/proc/{process}/status").read_bytes()


def test_another_one_of_the_same_number() -> None:
    bond = process_bond(os.getpid())
    assert not is_process_alive(replace(bond, started=bond.started - 1))


def test_one_of_another_boot() -> None:
    bond = process_bond(os.getpid())
    assert not is_process_alive(replace(bond, boot="another"))


def test_of_another_process_namespace_nothing_can_be_told() -> None:
    bond = process_bond(os.getpid())
    assert is_process_alive(replace(bond, namespace=1, started=0))


def test_one_that_is_not_there() -> None:
    with start(WAITING) as process:
        process.kill()
    with pytest.raises(UseError, match=f"no process {process.pid}"):
        process_bond(process.pid)


LOOKING = """
import sys
from layermanager.errors import UseError
from layermanager.leases import ProcessBond
from layermanager.use.processes import is_process_alive, process_bond
process = int(sys.stdin.readline())
bond = ProcessBond(*eval(sys.argv[1]))
print(is_process_alive(bond))
try:
    process_bond(process)
except UseError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "Input/output error"), (b"1 (x) R 2 3", "Bad message")]
)
def test_one_of_which_the_kernel_tells_nothing(
    needs_overlay: None,  # noqa: ARG001 - fixtures are asked for by argument
    tmp_path: Path,
    content: bytes | None,
    reason: str,
) -> None:
    """It counts as alive, and no lease can be bound to it."""
    (tmp_path / "stat").write_bytes(content or b"")
    # The memory of a process has nothing at its beginning: EIO.
    source = tmp_path / "stat" if content else "/proc/$$/mem"
    with start(WAITING) as process:
        bond = process_bond(process.pid)
        python = shlex.join([sys.executable, "-c", LOOKING, repr(astuple(bond))])
        script = f"mount --bind {source} /proc/{process.pid}/stat; {python}; true"
        done = subprocess.run(
            [*IN_A_MOUNT_NAMESPACE, "sh", "-e", "-c", script],
            check=True,
            capture_output=True,
            input=f"{process.pid}\n",
            text=True,
        )
        expected = f"cannot bind a lease to process {process.pid}: {reason}"
        assert done.stdout.splitlines() == ["True", expected]
        process.kill()
