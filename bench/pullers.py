"""The programs that pull an image from a registry and unpack it: ours, and its peers.

Each puts all that it keeps below one directory, which is empty at its start. What it needs to have
there of its own, as a database, it makes; that is part of a first installation. The mounts that
some of them make for themselves go away with a namespace.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.documents import write_configuration
from bench.layers import GZIP, ZSTD
from bench.processes import measure, measure_with_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.layers import Compression
    from bench.processes import Usage

_ALONE: Final = ("unshare", "--mount")
_LOOK_AGAIN_SECONDS: Final = 0.01

# The first argument is the directory, the second the reference.
_SKOPEO_AND_UMOCI: Final = """
cd "$1"
skopeo copy --quiet --src-tls-verify=false "docker://$2" oci:layout:image
umoci --log error raw unpack --image layout:image tree
"""
_SKOPEO: Final = """
cd "$1"
mkdir temporary
TMPDIR=$1/temporary skopeo copy --quiet --src-tls-verify=false "docker://$2" \
    "containers-storage:[overlay@$1/root+$1/run]image"
"""
_PODMAN: Final = """
cd "$1"
mkdir temporary
TMPDIR=$1/temporary podman --root "$1/root" --runroot "$1/run" --storage-driver overlay \
    pull --quiet --tls-verify=false "docker://$2"
"""
_CONTAINERD: Final = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{address}"
[debug]
level = "error"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
"""


@dataclass(frozen=True, slots=True)
class Puller:
    """A way to pull.

    Attributes:
        name: for people.
        programs: what has to be installed for it.
        pull: pulls what a reference names into an empty directory, and tells what that used.
        compressions: what it knows.
    """

    name: str
    programs: tuple[str, ...]
    pull: Callable[[Path, str], Usage]
    compressions: tuple[Compression, ...] = (GZIP, ZSTD)


def ours(scratch: Path, registry: str, *, is_durable: bool) -> Puller:
    """``layermanager apply``, with everything on disk at its end if it *is_durable*."""
    configuration = write_configuration(
        scratch / f"pull-durable-{is_durable}.json",
        {"durable": is_durable, "network": {"registries": {registry: {"http": True}}}},
    )
    command = (sys.executable, "-m", "layermanager", "--config", configuration, "--work-dir")
    return Puller(
        "layermanager",
        (),
        lambda directory, reference: measure((*command, directory / "store", "apply", reference)),
    )


def peers(compression: Compression) -> tuple[Puller, ...]:
    """Those of the others that are here and know *compression*."""
    known = (
        Puller(
            "skopeo + umoci",
            ("skopeo", "umoci"),
            _pulling_by(_SKOPEO_AND_UMOCI),
            compressions=(GZIP,),  # zstd needs umoci 0.5
        ),
        Puller("skopeo to containers-storage", ("skopeo",), _pulling_by(_SKOPEO)),
        Puller("podman pull", ("podman",), _pulling_by(_PODMAN)),
        Puller("containerd", ("containerd", "ctr"), _pull_by_containerd),
    )
    return tuple(
        peer
        for peer in known
        if compression in peer.compressions and all(map(shutil.which, peer.programs))
    )


def _pulling_by(script: str) -> Callable[[Path, str], Usage]:
    return lambda directory, reference: measure(
        (*_ALONE, "sh", "-ec", script, "sh", directory, reference)
    )


def _pull_by_containerd(directory: Path, reference: str) -> Usage:
    """Pull by a daemon that is there already, as it is on a node."""
    address = directory / "socket"
    pull = ("ctr", "--address", address, "images", "pull", "--plain-http")
    with _containerd(directory, address) as daemon:
        command = (*pull, "--snapshotter", "overlayfs", reference)
        return measure_with_server(command, daemon.pid)


@contextmanager
def _containerd(directory: Path, address: Path) -> Iterator[subprocess.Popen[bytes]]:
    configuration, log = directory / "containerd.toml", directory / "containerd.log"
    configuration.write_text(_CONTAINERD.format(directory=directory, address=address))
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*_ALONE, "containerd", "--config", configuration),
            stdin=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        _wait_for(address, process, log)
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(address))
            except (FileNotFoundError, ConnectionRefusedError):
                if process.poll() is not None:
                    raise RuntimeError(f"containerd does not run: {log.read_text()}") from None
                time.sleep(_LOOK_AGAIN_SECONDS)
            else:
                return
