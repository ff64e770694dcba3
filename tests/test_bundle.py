"""Images are run by a real runtime, from the bundles that are made of them."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from debian_image import debian_layout
from layermanager import linux
from layermanager.cli.run import run
from layermanager.errors import ImageError, ImageNotExistError, MountError
from layermanager.model import DesiredImage
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from layermanager import LayerManager

PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n"

# A runtime wants one kind of control groups; machines have both, or none that may be changed.
ALONE = ("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c")
WITH_ONE_KIND_OF_CGROUPS = """
    umount --recursive /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    exec "$0" --cgroup-manager=disabled "$@"
"""

pytestmark = pytest.mark.usefixtures("needs_overlay")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def manager(node: Node) -> Iterator[LayerManager]:
    with node.manager() as manager:
        yield manager
        for mount in manager.mounts():
            manager.umount(mount.name, lazy=True)


def shell_layer() -> LayerBuilder:
    """A layer with this machine's shell and the libraries that it needs."""
    shell = Path("/bin/sh").resolve()
    listed = subprocess.run(["ldd", shell], check=False, capture_output=True, text=True).stdout
    files = {"/bin/sh": shell}
    files |= {path: Path(path).resolve() for path in re.findall(r"(/\S+) \(0x", listed)}
    builder = LayerBuilder().directory(".")
    made = {"/"}
    for name, content in files.items():
        for parent in reversed(Path(name).parents):
            if str(parent) not in made:
                made.add(str(parent))
                builder = builder.directory(str(parent).lstrip("/"))
        builder = builder.file(name.lstrip("/"), content.read_bytes(), mode=0o755)
    return builder


def install(
    manager: LayerManager,
    base: Path,
    layers: Sequence[LayerBuilder],
    config: Mapping[str, Any],
) -> str:
    """Install an image that runs as *config* says; return its reference."""
    image = build_image([layer.tar() for layer in layers], config={"os": None, "config": config})
    write_files(base / "image", layout_files({"": image}))
    reference = f"oci:{base / 'image'}"
    manager.process_desired_layers([DesiredImage(reference)])
    return reference


def output_of(bundle: Path, name: str) -> str:
    """What the container prints."""
    done = subprocess.run(
        [*ALONE, WITH_ONE_KIND_OF_CGROUPS, "crun", "run", "--bundle", bundle, name],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("needs_crun")
class TestRunning:
    def test_a_program_of_an_image(self, manager: LayerManager, tmp_path: Path) -> None:
        script = 'echo "$GREETING from $PWD of $HOME" > /srv/said; read x < /srv/said; echo "$x"'
        upper = LayerBuilder().directory(".").directory("etc").file("etc/passwd", PASSWD)
        upper = upper.directory("srv", uid=1000)
        config = {
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": [script],
            "Env": ["GREETING=hello"],
            "WorkingDir": "/srv",
            "User": "app",
        }
        reference = install(manager, tmp_path, [shell_layer(), upper], config)
        with manager.bundle("app", reference, directory=tmp_path / "bundle") as mounted:
            assert (
                output_of(tmp_path / "bundle", f"app-{os.getpid()}") == "hello from /srv of /srv\n"
            )
            assert mounted.mount.upper is not None
            assert (mounted.mount.upper / "srv/said").exists()
        assert manager.mounts() == ()

    def test_other_arguments(self, manager: LayerManager, tmp_path: Path) -> None:
        reference = install(manager, tmp_path, [shell_layer()], {"Cmd": ["/bin/sh"]})
        command = ["/bin/sh", "-c", "echo read-only > /new || echo refused"]
        bundle = tmp_path / "bundle"
        with manager.bundle("app", reference, directory=bundle, arguments=command, read_only=True):
            assert output_of(bundle, f"other-{os.getpid()}") == "refused\n"

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_a_program_of_debian(
        self, node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = ["--work-dir", str(node.config.working_dir)]
        reference = f"oci:{debian_layout(tmp_path)}:1"
        bundle = tmp_path / "bundle"
        assert run([*store, "apply", reference]) == 0
        command = ["sh", "-c", "dpkg --print-architecture; cat /etc/debian_version"]
        assert run([*store, "bundle", reference, str(bundle), "--", *command]) == 0
        try:
            printed = output_of(bundle, f"debian-{os.getpid()}")
        finally:
            assert run([*store, "umount", "bundle"]) == 0
        assert re.fullmatch(r"\w+\n12\.\d+\n", printed)
        assert "made a bundle" in capsys.readouterr().out


class Renames:
    """Opens as the kernel does while something else renames so many times."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._open_inside = linux.open_inside

    def open_inside(self, root: int, path: bytes, flags: int) -> int:
        if self.left:
            self.left -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._open_inside(root, path, flags)


SPECIAL_FILES: Mapping[str, Callable[[LayerBuilder, str], LayerBuilder]] = {
    "fifo": lambda layer, name: layer.fifo(name),
    "char that exists": lambda layer, name: layer.character_device(name, 1, 3),
    # Had it been opened, the error would be that it has no driver.
    "char without a driver": lambda layer, name: layer.character_device(name, 511, 7),
    "block": lambda layer, name: layer.block_device(name, 511, 7),
    "dir": lambda layer, name: layer.directory(name),
}


class TestMaking:
    def test_what_may_steer_a_runtime_is_left_out_and_said(
        self, manager: LayerManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = {"run.oci.handler": "krun", "org.opencontainers.image.title": "t"}
        config = {"Cmd": ["sh"], "Labels": labels}
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], config)
        with manager.bundle("app", reference, directory=tmp_path / "bundle"):
            document = json.loads((tmp_path / "bundle/config.json").read_text())
        assert "run.oci.handler" not in document["annotations"]
        assert document["annotations"]["org.opencontainers.image.title"] == "t"
        (said,) = [one for one in caplog.messages if "steer a runtime" in one]
        assert said.startswith(f"{reference}: ")
        assert said.endswith(": 'run.oci.handler'")

    def test_a_configuration_is_replaced_and_not_written_through(
        self, manager: LayerManager, tmp_path: Path
    ) -> None:
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], {"Cmd": ["sh"]})
        (tmp_path / "other").write_text("other")
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle/config.json").symlink_to(tmp_path / "other")
        with manager.bundle("app", reference, directory=tmp_path / "bundle"):
            assert json.loads((tmp_path / "bundle/config.json").read_text())
        assert (tmp_path / "other").read_text() == "other"

    def test_a_symlink_leads_nowhere_outside(self, manager: LayerManager, tmp_path: Path) -> None:
        """To the image ``/etc/passwd`` is its own, whatever it links to."""
        secret = tmp_path / "secret"
        secret.write_text("app:x:7:7::/:\n")
        layer = LayerBuilder().directory(".").directory("etc")
        layer = layer.symlink("etc/passwd", str(secret)).symlink("etc/group", "../../../etc/group")
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "app"})
        with pytest.raises(ImageError, match="'app'"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert manager.mounts() == ()
        assert not (tmp_path / "bundle/config.json").exists()

    def test_renames_meanwhile(
        self, manager: LayerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel refuses to follow ``..`` for a moment when anything at all is renamed."""
        layer = LayerBuilder().directory(".").directory("etc").file("passwd", b"app:x:7:7::/:\n")
        layer = layer.symlink("etc/passwd", "../passwd")
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "app"})
        renamed_thrice = Renames(3)
        monkeypatch.setattr(linux, "open_inside", renamed_thrice.open_inside)
        with manager.bundle("app", reference, directory=tmp_path / "bundle"):
            document = json.loads((tmp_path / "bundle/config.json").read_text())
        assert document["process"]["user"]["uid"] == 7
        assert renamed_thrice.left == 0

    def test_renames_without_end(
        self, manager: LayerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], {"Cmd": ["sh"]})
        monkeypatch.setattr(linux, "open_inside", Renames(1_000_000).open_inside)
        with pytest.raises(MountError, match="temporarily unavailable"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert manager.mounts() == ()

    @pytest.mark.parametrize("kind", SPECIAL_FILES)
    @pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
    def test_what_is_no_file_is_not_opened(
        self, kind: str, name: str, manager: LayerManager, tmp_path: Path
    ) -> None:
        """Opening a device, if only to look at it, may start a watchdog or rewind a tape."""
        layer = LayerBuilder().directory(".").directory("etc")
        layer = SPECIAL_FILES[kind](layer, name)
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "7"})
        with pytest.raises(ImageError) as caught:
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert str(caught.value) == (
            f"cannot read /{name} of the image {reference}: "
            f"not a regular file but of type `{kind.partition(' ')[0]}`"
        )
        assert manager.mounts() == ()
        assert not (tmp_path / "bundle/config.json").exists()

    def test_a_socket_is_not_opened(self, manager: LayerManager, tmp_path: Path) -> None:
        """No archive brings one, but a mount may have written it."""
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], {"Cmd": ["sh"]})
        (layer,) = manager.get_layers_info()
        (layer.path / "etc").mkdir()
        os.mknod(layer.path / "etc/passwd", stat.S_IFSOCK | 0o666)
        with pytest.raises(ImageError, match="not a regular file but of type `socket`"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")

    @pytest.mark.parametrize(
        "target", ["passwd", "/etc/passwd", "../etc/passwd", "/dev/null", "../../../dev/watchdog"]
    )
    def test_symlinks_that_lead_nowhere_in_the_image(
        self, target: str, manager: LayerManager, tmp_path: Path
    ) -> None:
        """To itself, or to the machine's devices, of which the image has none."""
        layer = LayerBuilder().directory(".").directory("etc").symlink("etc/passwd", target)
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "7"})
        with manager.bundle("app", reference, directory=tmp_path / "bundle"):
            document = json.loads((tmp_path / "bundle/config.json").read_text())
        assert document["process"]["user"]["uid"] == 7

    @pytest.mark.parametrize("target", ["/proc/self/fd/0", "/proc/1/root/etc/passwd"])
    def test_symlinks_to_the_kernel_s_links(
        self, target: str, manager: LayerManager, tmp_path: Path
    ) -> None:
        layer = LayerBuilder().directory(".").directory("etc").symlink("etc/passwd", target)
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "root:root"})
        with pytest.raises(ImageError, match="'root'"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")

    @pytest.mark.parametrize("target", ["/proc/self/fd/8", "../proc/self", "on", "/"])
    def test_a_working_directory_that_leads_into_proc(
        self, target: str, manager: LayerManager, tmp_path: Path
    ) -> None:
        layer = LayerBuilder().directory(".").symlink("data", target).symlink("on", "proc")
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "WorkingDir": "/data"})
        if target == "/":
            manager.bundle("app", reference, directory=tmp_path / "bundle").umount()
            return
        with pytest.raises(ImageError, match="leads into /proc: '/data'"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert not manager.mounts()

    def test_a_symlink_to_a_device_of_the_image(
        self, manager: LayerManager, tmp_path: Path
    ) -> None:
        layer = LayerBuilder().directory(".").directory("etc").directory("dev")
        layer = layer.character_device("dev/null", 1, 3).symlink("etc/passwd", "/dev/null")
        reference = install(manager, tmp_path, [layer], {"Cmd": ["sh"], "User": "7"})
        with pytest.raises(ImageError, match="not a regular file but of type `char`"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")

    def test_a_file_that_is_too_large(self, manager: LayerManager, tmp_path: Path) -> None:
        """A part of it could name another user than the whole."""
        layer = LayerBuilder().directory(".").directory("etc")
        most = b"app:x:7:7::/:\n" + b"#" * ((1 << 20) - 14)
        reference = install(
            manager,
            tmp_path / "1",
            [layer.file("etc/passwd", most)],
            {"Cmd": ["sh"], "User": "app"},
        )
        with manager.bundle("app", reference, directory=tmp_path / "bundle"):
            pass
        layer = LayerBuilder().directory(".").directory("etc").file("etc/passwd", most + b"#")
        reference = install(manager, tmp_path / "2", [layer], {"Cmd": ["sh"], "User": "app"})
        with pytest.raises(ImageError) as caught:
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert str(caught.value) == (
            f"cannot read /etc/passwd of the image {reference}: larger than 1048576 bytes"
        )

    def test_a_directory_that_cannot_be_used(self, manager: LayerManager, tmp_path: Path) -> None:
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], {"Cmd": ["sh"]})
        (tmp_path / "file").touch()
        with pytest.raises(MountError, match="file"):
            manager.bundle("app", reference, directory=tmp_path / "file")
        (tmp_path / "bundle/config.json").mkdir(parents=True)
        with pytest.raises(MountError, match=r"config\.json"):
            manager.bundle("app", reference, directory=tmp_path / "bundle")
        assert manager.mounts() == ()

    def test_an_image_that_is_not_installed(self, manager: LayerManager, tmp_path: Path) -> None:
        with pytest.raises(ImageNotExistError, match="other"):
            manager.bundle("app", "oci:/other", directory=tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_at_the_command_line(
        self,
        node: Node,
        manager: LayerManager,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        reference = install(manager, tmp_path, [LayerBuilder().directory(".")], {"Cmd": ["sh"]})
        store = ["--work-dir", str(node.config.working_dir), "--json"]
        bundle = tmp_path / "bundle"
        assert run([*store, "bundle", reference, str(bundle), "--name", "one", "--", "-x"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert (made["name"], made["target"]) == ("one", str(bundle / "rootfs"))
        assert json.loads((bundle / "config.json").read_text())["process"]["args"] == ["-x"]
        assert run([*store, "umount", "one"]) == 0
