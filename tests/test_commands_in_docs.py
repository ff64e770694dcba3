"""Every command that the documentation shows is run, in the order in which it is shown."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from layermanager.client import Client, UnreachableError
from layermanager.desired import desired_to_json
from layermanager.testing import docker_registry
from layermanager.testing.images import build_image, layout_files, write_files
from manager_fixtures import Node, layer_tar
from pages import PAGES, PROJECT, commands
from test_bundle import ALONE, WITH_ONE_KIND_OF_CGROUPS, shell_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

RUN_BELOW: Final = {"README.md", "docs/mounts.md", "docs/operations.md", "docs/aos.md"}
ELSEWHERE: Final = {
    "make run": "CI runs it",
    "make test": "CI runs it",
    "make deb": "tests/packaging",
    "pip install": "it takes what is published",
    "dpkg --install": "tests/packaging",
    "systemctl": "tests/packaging, but for Aos's own service",
    "journalctl": "tests/packaging",
    "git clone": "a network",
    "mkdir cmd/peer": "a network, as above",
    "go build": "a network, as above",
    "cd …": "a network, as above",
    "AOS_PEER=…": "a network, as above",
    "layermanager serve": "it does not end; the daemon of `ask` is it",
}
"""Commands that are run by others, or cannot be run here: how they begin, and why."""


def reason(command: str) -> str | None:
    """Why a command is not run here; None if it is."""
    return next((why for begin, why in ELSEWHERE.items() if command.startswith(begin)), None)


class Desk:
    """A shell in a directory in which things are as a page takes for granted.

    Args:
        base: the directory.
        registry: the name of a registry.
    """

    def __init__(self, base: Path, registry: str) -> None:
        self.base = base
        self.node = Node(base, working_dir=base / "store")
        self.words = {
            "registry.example": registry,
            "registry:5000": registry,
            "/media/usb": str(base / "usb"),
            "/run/app": str(base / "run/app"),
            "/run/tools": str(base / "run/tools"),
            "/run/layermanager/api.sock": str(base / "api.sock"),
            "/etc/aos/": f"{base}/",
        }
        for directory in ("bin", "usb", "run/app", "run/tools", "rootfs/bin"):
            (base / directory).mkdir(parents=True)
        (base / "examples").symlink_to(PROJECT / "examples")
        self._shim("layermanager", [sys.executable, "-m", "layermanager"])
        self._shim("python", [sys.executable])
        # Which wants one kind of control groups; machines have both, or none that may be changed.
        self._shim("crun", [*ALONE, WITH_ONE_KIND_OF_CGROUPS, shutil.which("crun") or "crun"])
        network = {"registries": {registry: {"http": True}}}
        settings = {"workingDir": str(base / "store"), "layerManager": {"network": network}}
        for name in ("config.json", "aos_servicemanager.cfg"):
            (base / name).write_text(json.dumps(settings))
        (base / "rootfs/bin/app").write_text("#!/bin/sh\n")
        self._environment = {
            **os.environ,
            "PATH": f"{base}/bin:{os.environ['PATH']}",
            "LAYERMANAGER_CONFIG": str(base / "config.json"),
            "REGISTRY_AUTH_FILE": str(base / "auth.json"),
        }

    def run(self, command: str) -> str:
        """What a command prints, which must go well."""
        for word, here in self.words.items():
            command = command.replace(word, here)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.base,
            env=self._environment,
        )
        # head(1) may have ended before all was written.
        well = {0, 128 + signal.SIGPIPE} if "| head" in command else {0}
        assert done.returncode in well, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def run_page(self, page: str, before: Mapping[str, Callable[[], object]]) -> None:
        """Run all commands of a page; *before* those that begin so something is done."""
        for command in commands(page):
            if reason(command) is not None:
                continue
            for begin, prepare in before.items():
                if command.startswith(begin):
                    prepare()
            printed = self.run(command)
            if command.startswith("layermanager lease add"):
                self.words["3fa2c1d0"] = printed.strip()

    def install(self, *names: str) -> None:
        """Have layers of these names be installed, and be what ``desired.json`` says."""
        layers = [self.node.publish(name) for name in names]
        document = json.dumps([desired_to_json(layer) for layer in layers])
        for name in ("desired.json", "desired-layers.json"):
            (self.base / name).write_text(document)
        self.run("layermanager apply desired.json")
        self.words["dd5e247da2aa"] = layers[0].digest.encoded[:12]

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """A daemon of the store, for the time of the context."""
        command = [str(self.base / "bin/layermanager"), "serve"]
        socket = self.base / "api.sock"
        arguments = [*command, "--socket", str(socket)]
        with subprocess.Popen(arguments, env=self._environment, cwd=self.base) as process:
            try:
                client = Client.at_socket(socket)
                while not is_ready(client):
                    assert process.poll() is None
                yield
            finally:
                process.terminate()

    def _shim(self, name: str, words: Sequence[str]) -> None:
        path = self.base / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(0o755)


def is_ready(client: Client) -> bool:
    try:
        return client.is_ready()
    except UnreachableError:
        return False


@pytest.fixture
def desk(
    tmp_path: Path,
    needs_docker_registry: None,  # noqa: ARG001
    needs_programs_of_pages: None,  # noqa: ARG001
) -> Iterator[Desk]:
    (tmp_path / "registry").mkdir()
    with docker_registry.serve(tmp_path / "registry") as registry:
        desk = Desk(tmp_path, registry)
        yield desk
        with desk.node.manager() as manager:
            for mount in manager.mounts():
                manager.umount(mount.name, lazy=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run(page: str) -> None:
    """Here by the test of its page, or elsewhere, for a reason."""
    left = [command for command in commands(page) if reason(command) is None]
    assert not left or page in RUN_BELOW


def test_no_reason_is_without_a_command() -> None:
    shown = [command for page in PAGES for command in commands(page)]
    assert [
        begin for begin in ELSEWHERE if not any(command.startswith(begin) for command in shown)
    ] == []


def test_readme(desk: Desk) -> None:
    desk.run_page(
        "README.md",
        {
            "layermanager apply oci-archive": lambda: desk.run("tar -C images -cf usb/app.tar ."),
            "layermanager apply registry": lambda: desk.run(
                "layermanager push images:1.2 registry.example/app:1.2"
            ),
        },
    )
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    (desk.base / "program.py").write_text(
        program.replace("/var/lib/layermanager", str(desk.base / "store"))
    )
    assert "/layers/sha256/" in desk.run("python program.py")


@pytest.mark.usefixtures("needs_overlay", "needs_crun")
def test_mounts(desk: Desk) -> None:
    config = {"os": None, "config": {"Cmd": ["/bin/sh", "-c", "exit 0"]}}
    image = build_image([shell_layer().tar(), layer_tar("two")], config=config)
    write_files(desk.base / "images", layout_files({"1.2": image}))
    desk.install("base", "top", "one")
    # An image is desired beside the layers, so that they are still there.
    desk.run("layermanager push images:1.2 registry:5000/app:1.2")
    desk.run("layermanager apply registry:5000/app:1.2")
    desk.run_page("docs/mounts.md", {})


@pytest.mark.usefixtures("needs_overlay")
def test_operations(desk: Desk) -> None:
    desk.install("base", "app")
    desk.run("layermanager mount app /run/app app")
    with desk.daemon():
        desk.run_page("docs/operations.md", {})


def test_aos(desk: Desk) -> None:
    desk.install("base", "app")
    desk.run_page("docs/aos.md", {})
