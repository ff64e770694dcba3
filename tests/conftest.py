"""What tests need of the machine: present, or the test is skipped and says why.

On a developer's machine a missing capability skips a test. Where ``LAYERMANAGER_CI`` is set it
fails the test instead, so that nothing goes untested unnoticed; what only root can have does so
where the tests run as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import settings

from layermanager.testing import docker_registry, nginx
from layermanager.testing.tls import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    Overlay = Callable[[Sequence[Path]], AbstractContextManager[Path]]


# How long an example takes says more about the other users of a machine than about the code.
settings.register_profile("layermanager", deadline=None, print_blob=True)
settings.load_profile("layermanager")


def _require(capability: str, probe: Callable[[], object]) -> None:
    """Skip or fail the test that asks unless *probe* succeeds."""
    if os.geteuid() != 0:
        pytest.skip(f"needs root: {capability}")
    try:
        probe()
    except (OSError, subprocess.CalledProcessError) as error:
        _miss(f"{capability}: {error}")


def _miss(what: str) -> NoReturn:
    """Skip or fail the test that asks for *what*."""
    if os.environ.get("LAYERMANAGER_CI") == "1":
        pytest.fail(f"this machine lacks {what}")
    pytest.skip(f"this machine lacks {what}")


def _require_programs(*names: str) -> None:
    """Skip or fail the test that asks unless this machine has the programs."""
    for name in names:
        if shutil.which(name) is None:
            _miss(f"the program {name}")


# A shell has what it starts in the background ignore the one, and nohup(1) the other; and so would
# all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Set in many containers; where it is, no process that tests start ends with a full buffer.
os.environ.pop("PYTHONUNBUFFERED", None)

# Since version 2.39 mount(8) gives the kernel each option by fsconfig(2), which takes 255 bytes:
# less than two directories of pytest as lowerdir.
os.environ["LIBMOUNT_FORCE_MOUNT2"] = "always"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers on loopback are asked themselves, whatever this machine's environment says."""
    for scheme in ("http", "https", "no"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def needs_root() -> None:
    """The rights to give files to others."""
    _require("files of other owners", lambda: None)


@pytest.fixture(scope="session")
def needs_trusted_xattrs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Extended attributes that only root sees."""
    directory = tmp_path_factory.mktemp("xattrs")
    _require(
        "trusted extended attributes", lambda: os.setxattr(directory, "trusted.probe", b"value")
    )


@pytest.fixture(scope="session")
def needs_devices(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Device files."""
    path = tmp_path_factory.mktemp("devices") / "null"
    _require("device files", lambda: os.mknod(path, stat.S_IFCHR, os.makedev(1, 3)))


@pytest.fixture(scope="session")
def needs_openssl() -> None:
    """The program that makes certificates."""
    _require_programs("openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, needs_openssl: None) -> Authority:  # noqa: ARG001 - fixtures are asked for by argument
    """Somebody who issues certificates."""
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def needs_nginx(needs_openssl: None) -> None:  # noqa: ARG001 - fixtures are asked for by argument
    """The web server, and what hides its passwords."""
    if nginx.find() is None:
        _miss("the program nginx")


@pytest.fixture(scope="session")
def needs_docker_registry(needs_openssl: None) -> None:  # noqa: ARG001 - as above
    """A registry, what fills it, and what makes its certificate."""
    if docker_registry.find() is None:
        _miss("the program docker-registry")
    if shutil.which("skopeo") is None:
        _miss("the program skopeo")


@pytest.fixture(scope="session")
def needs_crun() -> None:
    """The container runtime."""
    _require_programs("crun")


@pytest.fixture(scope="session")
def needs_programs_of_pages() -> None:
    """What the documentation's examples use besides."""
    _require_programs("bash", "curl", "fuser", "jq")


@pytest.fixture(scope="session")
def needs_systemd_analyze() -> None:
    """What checks systemd's units."""
    _require_programs("systemd-analyze")


@pytest.fixture(scope="session")
def needs_groff() -> None:
    """What formats manual pages."""
    _require_programs("groff")


@pytest.fixture(scope="session")
def needs_dpkg() -> None:
    """What builds Debian's packages."""
    _require_programs("dpkg-deb")


@pytest.fixture(scope="session")
def needs_debootstrap() -> None:
    """What makes a Debian in a directory."""
    _require(
        "a Debian of its own", lambda: subprocess.run(["debootstrap", "--version"], check=True)
    )


@pytest.fixture(scope="session")
def needs_chromium() -> None:
    """The browser, and what drives it."""
    _require_programs("chromium", "chromedriver")


@contextmanager
def _overlay(lower: Sequence[Path], mount_point: Path) -> Iterator[Path]:
    directories = ":".join(str(path) for path in lower)
    mount = ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={directories}"]
    subprocess.run([*mount, str(mount_point)], check=True, capture_output=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.fixture(scope="session")
def needs_mount_namespace() -> None:
    """Mount namespaces that keep their mounts; in a chroot whose root is no mount point none do."""
    command = ["unshare", "--mount", "--propagation", "private", "true"]
    _require(
        "mount namespaces (is the root directory a mount point?)",
        lambda: subprocess.run(command, check=True, capture_output=True),
    )


@pytest.fixture(scope="session")
def needs_overlay(
    tmp_path_factory: pytest.TempPathFactory,
    needs_mount_namespace: None,  # noqa: ARG001 - fixtures are asked for by argument
    needs_trusted_xattrs: None,  # noqa: ARG001 - as above
) -> None:
    """Overlay mounts, also in a mount namespace of their own."""
    base = tmp_path_factory.mktemp("overlay")
    for name in ("upper", "lower", "merged"):
        (base / name).mkdir()

    def probe() -> None:
        with _overlay([base / "upper", base / "lower"], base / "merged"):
            pass

    _require("overlay mounts", probe)


@pytest.fixture
def overlay(tmp_path_factory: pytest.TempPathFactory, needs_overlay: None) -> Overlay:  # noqa: ARG001
    """Mounts layers, the uppermost first, for the time of a context."""
    return lambda lower: _overlay(lower, tmp_path_factory.mktemp("merged"))


@pytest.fixture
def target(tmp_path: Path, needs_overlay: None) -> Iterator[Path]:  # noqa: ARG001
    """A directory to mount layers on; what is mounted there at the end is unmounted."""
    path = tmp_path / "target"
    path.mkdir()
    yield path
    while path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="session")
def needs_user_namespace() -> list[str]:
    """How to run a program as the root of a new user namespace, with mounts of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("LAYERMANAGER_CI") == "1":
            pytest.fail(f"this machine lacks user namespaces: {error}")
        pytest.skip(f"this machine lacks user namespaces: {error}")
    return command


@pytest.fixture(scope="session")
def needs_fuse() -> None:
    """File systems of programs."""
    _require("FUSE", lambda: os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))


@pytest.fixture(scope="session")
def needs_nobody(needs_user_namespace: list[str]) -> tuple[str, ...]:
    """How to run a program as the user ``nobody``, as the root of a user namespace."""
    user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    command = (*user, *needs_user_namespace)
    _require("a user without rights", lambda: subprocess.run([*command, "true"], check=True))
    return command


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 8 MiB."""
    image, mount_point = tmp_path / "small.img", tmp_path / "small"
    mount_point.mkdir()

    def make() -> None:
        with image.open("wb") as file:
            file.truncate(8 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, mount_point], check=True, capture_output=True)

    _require("loop devices with ext4", make)
    yield mount_point
    subprocess.run(["umount", mount_point], check=True)
