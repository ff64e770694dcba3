"""All that a store consists of is made for real, and compared with the table of the docs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from daemon_fixtures import daemon

from layermanager.config import Config
from layermanager.inventory import Inventory
from layermanager.model import DesiredImage
from layermanager.testing.fault_server import FaultServer
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, build_package, desired
from manager_fixtures import IMPATIENT, Node, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS: Final = Path(__file__).parents[2] / "docs/operations.md"
SPOOLED: Final = replace(IMPATIENT, spool_bytes=1)
CONTENT: Final = re.compile(
    r"<layersDir>/(<algorithm>|\.staging|\.trash)/[^/]+/.*"
    r"|<workingDir>/mounts/<lease>/(upper|work|bottom)/.*|<bundle>/rootfs/.*"
)
"""What archives and programs in mounts brought, or the kernel made."""


def documented() -> dict[str, str]:
    """The modes of the table, by path."""
    _, _, text = DOCS.read_text().partition("## Who can read what\n")
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE)
    return {path: mode for paths, mode in rows for path in re.findall(r"`([^`]+)`", paths)}


@dataclass
class Seen:
    """The modes that were seen at any moment.

    Attributes:
        places: the directories that the table has names for, the innermost first.
        modes: all modes by the names of the table.
    """

    places: dict[Path, str]
    modes: dict[str, set[str]] = field(default_factory=dict)

    def look(self, _: object = None) -> None:
        for place, name in self.places.items():
            for path in (place, *self._below(place)):
                try:
                    mode = f"{stat.S_IMODE(path.lstat().st_mode):04o}"
                except FileNotFoundError:
                    continue
                shown = self._named(path, place, name)
                if not CONTENT.fullmatch(shown):
                    self.modes.setdefault(shown, set()).add(mode)

    def _below(self, place: Path) -> Iterator[Path]:
        for directory, directories, files in os.walk(place):
            below = [Path(directory, one) for one in (*directories, *files)]
            directories[:] = [one for one in directories if Path(directory, one) not in self.places]
            yield from (path for path in below if path not in self.places)

    def _named(self, path: Path, place: Path, name: str) -> str:
        text = f"{name}/{path.relative_to(place)}" if path != place else name
        for pattern, shown in (
            (r"\bsha256\b", "<algorithm>"),
            (r"[0-9a-f]{64}", "<hex>"),
            (r"(?<=mounts/)[0-9a-f]{8}", "<lease>"),
            (r"(<hex>|json)\.[0-9a-f]{8,16}$", r"\1.<random>"),
            (r"^<socket directory>/api\.sock", "<socket>"),
        ):
            text = re.sub(pattern, shown, text)
        return text


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A directory that all users can enter, which that of pytest is not."""
    with tempfile.TemporaryDirectory(prefix=tmp_path.name[:20]) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def make_everything(base: Path, seen: Seen, node: Node) -> None:
    with FaultServer() as server:
        blob = layer_tar("spooled", 1 << 20)
        package = build_package(blob)
        url = server.add("/spooled", package)
        spooled = desired(blob, url, package=package, layer_id="spooled")
        image = build_image([layer_tar("image")], config={"os": None, "config": {"Cmd": ["sh"]}})
        write_files(base / "image", layout_files({"": image}))
        wanted = DesiredImage(f"oci:{base / 'image'}")
        with node.manager(on_step=seen.look) as manager:
            manager.process_desired_layers([spooled, wanted])
            with (
                manager.bundle("app", wanted.reference, directory=base / "bundle"),
                manager.mount("ro", ["spooled"], target=node.published, read_only=True),
            ):
                seen.look()
            manager.process_desired_layers([wanted])
            manager.remove_expired_layers(timedelta(0))
            seen.look()
    with daemon(node.config, base / "run") as served:
        served.client.wait(served.client.put_desired([wanted]).id)
        seen.look()


@pytest.mark.usefixtures("needs_overlay", "umask")
def test_they_are_those_of_the_docs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(base)
    work = base / "work"
    node.config = Config(
        work, layers_dir=base / "layers", download_dir=base / "download", network=SPOOLED
    )
    seen = Seen(
        {
            base / "layers": "<layersDir>",
            base / "download": "<downloadDir>",
            base / "bundle": "<bundle>",
            base / "run": "<socket directory>",
            work: "<workingDir>",
        }
    )
    replace_path = Path.replace

    def look_and_replace(path: Path, target: Path) -> Path:
        seen.look()
        return replace_path(path, target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    make_everything(base, seen, node)
    table = documented()
    assert set(seen.modes) == set(table)
    for path, modes in seen.modes.items():
        found = re.match(r"[0-7]{4}", table[path])
        if found and "until" not in table[path] and path != "<bundle>/rootfs":
            assert modes == {found[0]}, path


@pytest.mark.usefixtures("needs_overlay", "needs_root")
def test_other_users_reach_a_mount_and_not_its_layers(base: Path) -> None:
    layer = LayerBuilder().directory(".").file("said", b"hello", mode=0o644)
    node = Node(base)
    one = node.publish_bytes("one", layer.tar())
    with node.manager() as manager:
        (installed,) = manager.process_desired_layers([one]).installed
        (base / "target").mkdir()
        (base / "target").chmod(0o755)
        with manager.mount("app", ["one"], target=base / "target"):
            assert as_nobody("cat", base / "target/said") == (0, "hello")
            assert as_nobody("cat", installed.path / "said") == (1, "")
    assert (installed.path / "said").read_text() == "hello"


def as_nobody(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
    )
    return done.returncode, done.stdout


class TestExposure:
    """The warning about a store that others can enter."""

    @pytest.fixture
    def config(self, base: Path) -> Config:
        return Config(base / "work")

    def test_none_of_a_new_store(self, config: Config) -> None:
        assert Inventory(config).exposures() == ()
        assert Inventory(replace(config, working_dir=Path("/missing/x"))).exposures() == ()

    def test_one_that_was_taken_over_keeps_its_modes(self, base: Path) -> None:
        for name in ("work", "work/layers"):
            (base / name).mkdir()
            (base / name).chmod(0o755)
        node = Node(base)
        with node.manager():
            pass
        assert stat.S_IMODE(node.config.layers_dir.stat().st_mode) == 0o755
        found = [exposure.path for exposure in Inventory(node.config).exposures()]
        assert found == [node.config.layers_dir, node.config.working_dir]

    @pytest.mark.parametrize("closed", ["work", "."])
    def test_a_closed_directory_closes_what_is_below(
        self, base: Path, config: Config, closed: str
    ) -> None:
        config.layers_dir.mkdir(parents=True)
        for path in (config.layers_dir, config.working_dir):
            path.chmod(0o755)
        assert len(Inventory(config).exposures()) == 2
        (base / closed).chmod(0o750)
        assert Inventory(config).exposures() == ()

    def test_layers_elsewhere(self, base: Path) -> None:
        config = Config(base / "work", layers_dir=base / "layers")
        config.working_dir.mkdir(mode=0o700)
        config.layers_dir.mkdir()
        config.layers_dir.chmod(0o711)
        (exposure,) = Inventory(config).exposures()
        assert str(exposure) == (
            f"other users can enter {base}/layers and run setuid programs of the layers by"
            " their paths: make its mode 0700"
        )
