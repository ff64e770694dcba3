"""A machine booted by systemd from a root file system: namespaces, with PID 1 and all."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_SECONDS: Final = 60.0
_ALONE: Final = (
    "unshare",
    "--mount",
    "--pid",
    "--uts",
    "--ipc",
    "--cgroup",
    "--fork",
    "--kill-child",
)
# pivot_root and not chroot, for nsenter goes to the root of the mount namespace.
_BOOT: Final = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
umount -R /sys/fs/cgroup || true
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
mount --rbind /dev "$1/dev"
cd "$1"
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted machine.

    Attributes:
        root: its root file system, as it was before the boot: without what is mounted since then.
        pid: its first process, seen from outside.
    """

    root: Path
    pid: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine; what it printed, and its status."""
        enter = ("nsenter", "--target", str(self.pid), "--all", "--root", "--wd")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [*enter, *command],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_PATIENCE_SECONDS,
        )

    def call(self, *command: str) -> str:
        """What a command prints, which has to go well."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def service(self, key: str) -> str:
        """What systemd says of the service."""
        return self.call("systemctl", "show", "--value", f"--property={key}", "layermanager")

    def until_service(self, key: str, value: str) -> None:
        """Return when systemd says of the service that *key* is *value*."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := self.service(key)) != value:
            assert time.monotonic() < deadline, f"{key} is {found}, not {value}"

    def journal(self, *fields: str) -> str:
        """What the service has logged since the boot."""
        return self.call("journalctl", "--unit=layermanager", "--output=cat", *fields)

    @property
    def client(self) -> Client:
        """Asks the daemon of the machine."""
        return Client.at_socket(Path(f"/proc/{self.pid}/root/run/layermanager/api.sock"))


def in_root(root: Path, *command: str) -> str:
    """What a command prints in *root* that is not booted, as where an image is built."""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", root, *command],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """The machine of *root*, from when all its services are up until the end of the context."""
    with subprocess.Popen([*_ALONE, "sh", "-c", _BOOT, "boot", root]) as outside:
        try:
            machine = Machine(root, _first_process(outside))
            while not _answers(machine):
                assert outside.poll() is None, "systemd has ended"
            machine.run("systemctl", "is-system-running", "--wait")
            yield machine
        finally:
            outside.kill()  # and --kill-child sees to the rest


def _answers(machine: Machine) -> bool:
    # Before that the machine's root is this one's, whose systemd may well answer.
    name = Path(f"/proc/{machine.pid}/comm").read_text().strip()
    return name == "systemd" and machine.run("test", "-S", "/run/systemd/private").returncode == 0


def _first_process(outside: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
    while not (found := children.read_text().split()):
        assert outside.poll() is None, "unshare has ended"
    return int(found[0])
