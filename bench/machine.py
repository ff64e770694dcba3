"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import layermanager
from bench.setting import cores
from layermanager.testing import nginx

if TYPE_CHECKING:
    from bench.volumes import Volumes

_PEERS: Final = ("tar", "gzip", "zstd", "curl", "skopeo", "umoci", "podman", "containerd")


def facts(volumes: Volumes, scratch: Path, runs: int) -> dict[str, str]:
    """What a reader needs to know to compare the figures with others, name by name."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3
    return {
        "layermanager": layermanager.__version__,
        "processor": processor(),
        "memory": f"{memory:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "files": f"{volumes.description}; the scratch directory is on {_file_system(scratch)}",
        "Python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}, inflate: {_inflate()}",
        "peers": ", ".join(map(_first_line_of_version, filter(shutil.which, _PEERS))),
        "web server": _nginx(),
        "runs": f"medians of {runs}; load average at the start {os.getloadavg()[0]:.1f}",
    }


def processor() -> str:
    """The name of the processor, and how many cores there are."""
    return f"{_processor()}, {cores()} cores"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """The type of the file system that *path* is on."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return "an unknown file system"


def _inflate() -> str:
    try:
        return f"isal {version('isal')}"
    except ModuleNotFoundError:
        return "zlib"


def _nginx() -> str:
    program = nginx.find()
    if program is None:
        return "none"
    said = subprocess.run([program, "-v"], check=True, stderr=subprocess.PIPE, text=True).stderr
    return said.rpartition(" ")[2].strip()


def _first_line_of_version(program: str) -> str:
    output = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True)
    # Zstd wraps it in stars; curl tells of all its libraries.
    return output.stdout.splitlines()[0].strip("* ").partition(" libcurl/")[0]
