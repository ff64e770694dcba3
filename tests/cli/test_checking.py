"""``check``: what it prints, what it mends, with which status it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine

from layermanager.store import Store
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.model import Digest, LayerInfo


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def layermanager(node: Node, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(node.config.working_dir, capfd)


@pytest.fixture
def layers(node: Node) -> tuple[LayerInfo, ...]:
    with node.manager() as manager:
        desired = [node.publish("one"), node.publish("two")]
        return manager.process_desired_layers(desired).installed


def short(layer: LayerInfo) -> str:
    return layer.digest[:19]


def test_nothing_is_installed(layermanager: CommandLine) -> None:
    done = layermanager("check")
    assert (done.status, done.lines) == (0, ["no layers are installed"])


def test_intact_layers(layermanager: CommandLine, layers: tuple[LayerInfo, ...]) -> None:
    done = layermanager("check")
    assert done.status == 0
    assert [line.split()[0] for line in done.lines[1:]] == ["intact", "intact"]
    assert len(layers) == len(done.lines) - 1


def test_damage_is_told_file_by_file(
    layermanager: CommandLine, layers: tuple[LayerInfo, ...]
) -> None:
    (layers[0].path / "etc/name").chmod(0o644)
    done = layermanager("check")
    assert done.status == 1
    assert f"{short(layers[0])}  etc/name: mode: expected 0600, found 0644" in done.lines
    assert f"hint: {short(layers[0])} can be installed anew" in done.err
    assert layermanager("check", layers[1].digest).status == 0
    assert layermanager("check", short(layers[0])).status == 1


class TestOpenStore:
    """A store that other users can enter, as that of another program."""

    @pytest.fixture
    def directory(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name)
            (path / "layers").mkdir()
            for one in (path, path / "layers"):
                one.chmod(0o755)
            yield path

    def test_is_warned_of(self, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
        layermanager = CommandLine(directory, capfd)
        for done in (layermanager("check"), layermanager("--json", "check")):
            assert done.status == 0
            assert f"warning: other users can enter {directory} and hold locks" in done.err
            assert f"warning: other users can enter {directory}/layers and run setuid" in done.err
        assert layermanager("--json", "check").document == []

    def test_is_shown_with_the_jail(
        self, directory: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        measure = {"name": "closed directories", "whyNot": ""}
        layermanager = CommandLine(directory, capfd)
        found = layermanager("--json", "show", "--jail").document[-1]
        assert found["name"] == measure["name"]
        assert found["whyNot"].count("other users can enter") == 2
        directory.chmod(0o700)
        assert layermanager("--json", "show", "--jail").document[-1] == measure
        assert layermanager("check").err == ""


def test_quickly(layermanager: CommandLine, layers: tuple[LayerInfo, ...]) -> None:
    damage(layers[0])
    assert layermanager("check", "--quick").status == 0
    assert layermanager("check").status == 1


def test_repair(layermanager: CommandLine, node: Node, layers: tuple[LayerInfo, ...]) -> None:
    before = node.files()
    damage(layers[0])
    shutil.rmtree(layers[1].path)
    done = layermanager("check", "--repair")
    assert done.status == 0
    assert [line.split()[0] for line in done.lines[1:3]] == ["repaired", "repaired"]
    assert node.files() == before
    assert set(node.rows()) == set(layers)
    assert layermanager("check").status == 0


def test_a_layer_that_cannot_be_repaired(
    layermanager: CommandLine, node: Node, layers: tuple[LayerInfo, ...]
) -> None:
    damage(layers[0])
    damage(layers[1])
    (node.published / "one").unlink()
    done = layermanager("check", "--repair")
    assert done.status == 1
    assert sorted(line.split()[0] for line in done.lines[1:3]) == ["damaged", "repaired"]
    assert f"error: {short(layers[0])}: " in done.err


def test_a_repair_that_does_not_help(
    layermanager: CommandLine,
    layers: tuple[LayerInfo, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk gives other bytes than were written, now and ever."""
    place = Store._place_index

    def place_and_damage(self: Store, path: Path, digest: Digest) -> None:
        place(self, path, digest)
        if digest == layers[0].digest:
            damage(layers[0])

    monkeypatch.setattr(Store, "_place_index", place_and_damage)
    damage(layers[0])
    damage(layers[1])
    done = layermanager("check", "--repair")
    assert done.status == 1
    assert sorted(line.split()[0] for line in done.lines[1:3]) == ["damaged", "repaired"]
    assert f"error: {short(layers[0])}: the repair did not help" in done.err
    assert layermanager("check").status == 1


def test_a_layer_of_another_program(
    layermanager: CommandLine, node: Node, layers: tuple[LayerInfo, ...]
) -> None:
    (node.config.index_dir / "sha256" / f"{layers[0].digest.encoded}.mtree.gz").unlink()
    done = layermanager("check", layers[0].digest)
    assert done.status == 1
    assert done.lines[1].split()[0] == "unverified"
    assert "another program" in done.err


def test_json(layermanager: CommandLine, layers: tuple[LayerInfo, ...]) -> None:
    (layers[0].path / "new").touch()
    done = layermanager("check", "--json", layers[0].digest)
    (report,) = done.document
    assert done.status == 1
    assert {key: report[key] for key in ("digest", "layerId", "status", "differenceCount")} == {
        "digest": layers[0].digest,
        "layerId": "one",
        "status": "damaged",
        "differenceCount": 2,
    }
    assert {
        "path": "new",
        "problem": "added",
        "expected": "nothing",
        "found": "",
    } in report["differences"]


@pytest.mark.parametrize("digest", ["zz", "f" * 64])
def test_a_digest_that_is_not_installed(layermanager: CommandLine, digest: str) -> None:
    assert layermanager("check", digest).status in (1, 2)


def damage(layer: LayerInfo) -> None:
    """Change a file's content and nothing else."""
    path = layer.path / "etc/name"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
