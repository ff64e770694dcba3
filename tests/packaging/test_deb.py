"""The .deb: built, installed in a Debian, booted with systemd there, used, and removed."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from debian_image import debootstrap
from layermanager.client import UnreachableError
from layermanager.desired import desired_to_json
from layermanager.testing.layers import LayerBuilder, compress, desired
from machine import Machine, booted, in_root
from pages import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager import DesiredLayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]
# Debian's without a network, as it is on a device.
PACKAGES = "systemd,systemd-sysv,python3"
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


def build() -> bytes:
    """Build the package; its bytes."""
    subprocess.run([PROJECT / "packaging/build-deb", sys.executable], check=True)
    (package,) = (PROJECT / "dist").glob("layermanager_*.deb")
    return package.read_bytes()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, needs_dpkg: None) -> Path:  # noqa: ARG001
    """The package."""
    path = tmp_path_factory.mktemp("package") / "layermanager.deb"
    path.write_bytes(build())
    return path


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory,
    package: Path,
    needs_debootstrap: None,  # noqa: ARG001
) -> Iterator[Path]:
    """A small Debian's root file system, in which the package and a layer were installed."""
    root = tmp_path_factory.mktemp("machine") / "root"
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    debootstrap(release, root, f"--include={PACKAGES}")
    shutil.copy(package, root / "root/layermanager.deb")
    in_root(root, "dpkg", "--install", "/root/layermanager.deb")
    layer = publish(root, "first", LayerBuilder().file("motd", b"hello").tar())
    (root / "srv/desired.json").write_text(json.dumps([desired_to_json(layer)]))
    in_root(root, "layermanager", "apply", "/srv/desired.json")
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def machine(root: Path) -> Iterator[Machine]:
    """The machine of that root file system, booted."""
    with booted(root) as machine:
        yield machine


@pytest.fixture
def service(machine: Machine) -> Machine:
    """The machine with its service running, whatever a test before did with it."""
    machine.call("systemctl", "restart", "layermanager")
    return machine


def publish(root: Path, name: str, tar: bytes) -> DesiredLayer:
    """A layer in a file of the machine."""
    path = root / "srv" / name
    blob = compress(tar, "gzip")
    path.write_bytes(blob)
    return desired(blob, f"file:///srv/{name}", layer_id=name)


def install(machine: Machine, *layers: DesiredLayer) -> None:
    """Have *layers* be the desired ones, and installed."""
    client = machine.client
    client.wait(client.put_desired(layers).id).raise_if_failed()


@contextmanager
def overridden(machine: Machine, *settings: str) -> Iterator[None]:
    """The service with other settings, restarted."""
    override = machine.root / "etc/systemd/system/layermanager.service.d/test.conf"
    override.parent.mkdir(parents=True)
    override.write_text("\n".join(["[Service]", *settings, ""]))
    machine.call("systemctl", "daemon-reload")
    machine.call("systemctl", "restart", "layermanager")
    try:
        yield
    finally:
        shutil.rmtree(override.parent)
        machine.call("systemctl", "daemon-reload")


def test_the_same_commit_gives_the_same_bytes(package: Path) -> None:
    assert build() == package.read_bytes()


def test_installed_where_an_image_is_built(root: Path) -> None:
    """Nothing runs there, and what will run is enabled."""
    assert in_root(root, "layermanager", "--version").startswith("layermanager, version ")
    assert in_root(root, "systemctl", "is-enabled", "layermanager.service") == "enabled"
    assert in_root(root, "systemctl", "is-enabled", "layermanager.socket") == "enabled"


def test_layers_that_were_installed_where_the_image_was_built(machine: Machine) -> None:
    assert "first" in machine.call("layermanager", "ls")
    machine.call("layermanager", "check")


def test_ready_after_the_boot(machine: Machine) -> None:
    machine.until_service("ActiveState", "active")
    assert machine.service("StatusText") == "1 layers"
    assert machine.call("systemctl", "list-units", "--failed", "--quiet") == ""
    assert machine.client.is_ready()


def test_a_layer_under_the_hardening_of_the_service(service: Machine) -> None:
    tar = (
        LayerBuilder()
        .directory(".")
        .character_device("null", 1, 3, mode=0o666)
        .file("tool", b"#!", uid=1000, gid=1001, mode=0o4755)
        .file("server", b"", xattrs={"security.capability": CAPABILITY})
        .whiteout("gone")
        .directory("etc")
        .opaque("etc")
        .tar()
    )
    layer = publish(service.root, "special", tar)
    install(service, layer)

    path = service.root / service.client.layer(layer.digest).path.relative_to("/")
    assert stat.S_ISCHR((path / "null").stat().st_mode)
    tool = (path / "tool").stat()
    assert (tool.st_uid, tool.st_gid, stat.S_IMODE(tool.st_mode)) == (1000, 1001, 0o4755)
    assert os.getxattr(path / "server", "security.capability") == CAPABILITY
    assert os.getxattr(path / "etc", "trusted.overlay.opaque") == b"y"
    assert (path / "gone").stat().st_rdev == 0
    # A jail that is not whole says so.
    assert service.journal("--priority=warning") == ""


def test_what_it_mounts_is_seen_by_others(service: Machine) -> None:
    layer = publish(service.root, "plain", LayerBuilder().file("motd", b"hello").tar())
    install(service, layer)
    service.call("mkdir", "/run/app")
    service.client.mount("app", [layer.digest], target=Path("/run/app"))
    assert service.call("cat", "/run/app/motd") == "hello"

    service.call("systemctl", "restart", "layermanager")
    assert service.call("cat", "/run/app/motd") == "hello"
    assert [mount["name"] for mount in service.client.mounts()] == ["app"]
    service.client.umount("app")
    assert service.run("cat", "/run/app/motd").returncode == 1


def test_a_changed_configuration_is_taken_over(service: Machine) -> None:
    path = service.root / "etc/layermanager/config.json"
    before = path.read_text()
    process = service.service("MainPID")
    path.write_text('{"workingDir": "/srv/elsewhere"}')
    try:
        service.call("systemctl", "reload", "layermanager")
        service.until_service("ActiveState", "active")
        while not (service.root / "srv/elsewhere/servicemanager.db").exists():
            assert service.service("MainPID") == process
        # The operator sees the store of the service.
        assert service.call("layermanager", "ls") == "no layers are installed"
    finally:
        path.write_text(before)
    assert service.service("MainPID") == process


def test_a_request_starts_it(service: Machine) -> None:
    service.call("systemctl", "stop", "layermanager.service")
    assert service.service("ActiveState") == "inactive"
    service.client.layers()
    service.until_service("ActiveState", "active")


def test_it_ends_in_time(service: Machine) -> None:
    service.call("systemctl", "stop", "layermanager.service")
    assert service.service("Result") == "success"
    assert service.service("ExecMainStatus") == "0"


def test_one_that_hangs_is_started_anew(service: Machine) -> None:
    with overridden(service, "WatchdogSec=2", "RestartSec=0"):
        before = service.service("MainPID")
        service.call("sh", "-c", f"kill -STOP {before}")
        service.until_service("NRestarts", "1")
        service.until_service("ActiveState", "active")
        assert service.service("MainPID") != before
        assert "Watchdog timeout" in service.call("journalctl", "--unit=layermanager")


def test_what_a_node_without_mounts_may_have_besides(service: Machine) -> None:
    """Of ``docs/deployment.md``."""
    document = (PROJECT / "docs/deployment.md").read_text().rpartition("may have ")[2]
    found = re.findall(r"`([A-Z]\w+=[^`]*)`", document.replace("\n", " "))
    assert len(found) == 4
    layer = publish(service.root, "inside", LayerBuilder().file("motd", b"jailed").tar())
    with overridden(service, *found):
        install(service, layer)
        assert service.run("sh", "-c", f"> /proc/{service.service('MainPID')}/root/x").returncode
        assert service.client.layer(layer.digest).layer_id == "inside"
        assert service.journal("--priority=warning", f"_PID={service.service('MainPID')}") == ""


def test_the_commands_of_the_page(service: Machine) -> None:
    """Of ``docs/deployment.md``, as far as they are the node's."""
    shown = [
        command.replace("layermanager_0.1.0_amd64.deb", "/root/layermanager.deb")
        for command in commands("docs/deployment.md")
        if not command.startswith("make ")
    ]
    assert len(shown) == 4
    for command in shown:
        service.call("sh", "-c", command)


def test_an_upgrade_goes_on_with_what_was(service: Machine) -> None:
    layer = publish(service.root, "kept", LayerBuilder().file("motd", b"hello").tar())
    install(service, layer)
    service.call("mkdir", "/run/kept")
    service.client.mount("kept", [layer.digest], target=Path("/run/kept"))
    process = service.service("MainPID")
    service.call("dpkg", "--install", "/root/layermanager.deb")
    assert service.service("MainPID") != process
    assert service.client.desired_state().is_complete
    assert service.call("cat", "/run/kept/motd") == "hello"
    service.client.umount("kept")


def test_removed_it_leaves_the_layers(service: Machine) -> None:
    layer = publish(service.root, "left", LayerBuilder().file("motd", b"hello").tar())
    install(service, layer)
    path = service.client.layer(layer.digest).path
    try:
        service.call("dpkg", "--purge", "layermanager")
        assert service.run("systemctl", "is-active", "layermanager.socket").stdout == "inactive\n"
        with pytest.raises(UnreachableError):
            service.client.layers()
        left = service.call("find", "/etc", "/usr", "/lib", "/run", "-name", "*layermanager*")
        assert left == ""
        assert service.call("cat", f"{path}/motd") == "hello"
    finally:
        service.call("dpkg", "--install", "/root/layermanager.deb")
    assert service.client.layer(layer.digest).path == path
