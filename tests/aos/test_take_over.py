"""A node of Aos is taken over without a byte fetched, and given back."""

from __future__ import annotations

import json
import os
import re
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from aos_node import AosNode, extract, unpack_as_aos

from layermanager import Config, LayerManager, UseError
from layermanager.check import Status
from layermanager.cli.run import run
from layermanager.config import load_config
from layermanager.desired import desired_to_json
from layermanager.inventory import Inventory
from layermanager.testing.layers import LayerBuilder, compress
from layermanager.testing.trees import snapshot
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager import DesiredLayer, LayerInfo
    from layermanager.unpack.index import IndexEntry

GO = "2026-11-24 00:49:32.586646591+00:00"
SPELLINGS = {
    "fraction": (GO, datetime(2026, 11, 24, 0, 49, 32, 586646, UTC)),
    "cut": ("2026-11-24 00:49:05.5+00:00", datetime(2026, 11, 24, 0, 49, 5, 500000, UTC)),
    "whole": ("2026-11-24 00:49:05+00:00", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
    "rfc3339": ("2026-11-24T02:49:05+02:00", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
    "no zone": ("2026-11-24 00:49:05", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
    "date": ("2026-11-24", datetime(2026, 11, 24, 0, 0, 0, 0, UTC)),
    "unix": (1795481345, datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
}
WHITEOUTS = (
    LayerBuilder()
    .directory(".", mtime_ns=1_700_000_000_000_000_000)
    .directory("etc", mtime_ns=1_700_000_000_000_000_000)
    .whiteout("etc/gone")
    .file("etc/kept", b"kept")
    .directory("opaque", mtime_ns=1_700_000_000_000_000_000)
    .opaque("opaque")
    .file("opaque/new", b"new")
    .directory("below", mtime_ns=1_700_000_000_000_000_000)
    .whiteout("below/gone")
    .tar()
)


@pytest.fixture
def node(tmp_path: Path) -> AosNode:
    return AosNode.make(tmp_path)


def filled(
    node: AosNode, name: str, timestamp: object = GO, *, cached: bool = False
) -> DesiredLayer:
    layer = node.add(name, layer_tar(name), timestamp=timestamp, cached=cached)
    extract(layer_tar(name), node.path_of(layer))
    return layer


def apply(node: AosNode, *layers: DesiredLayer) -> int:
    path = node.config.with_name("desired.json")
    path.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    return run(["--config", str(node.config), "apply", str(path)])


def inventory(node: AosNode) -> Inventory:
    return Inventory(load_config(node.config))


@pytest.mark.parametrize("has_log", [False, True])
def test_layers_are_taken_over_as_they_are(node: AosNode, has_log: bool) -> None:
    layers = {name: filled(node, name) for name in ("kept", "dropped")}
    layers["restored"] = filled(node, "restored", cached=True)
    if has_log:
        node.leave_log()
    others = node.others()
    before = {name: snapshot(node.path_of(layer)) for name, layer in layers.items()}

    assert apply(node, layers["kept"], layers["restored"]) == 0

    assert {name: snapshot(node.path_of(layer)) for name, layer in layers.items()} == before
    assert {name: row[6] for name, row in node.rows().items()} == {
        "kept": 0,
        "dropped": 1,
        "restored": 0,
    }
    assert (node.rows()["kept"][3] == "2.0.0") == has_log
    assert node.rows()["kept"][5] == GO
    assert node.others() == others
    statuses = {
        one.layer.layer_id: one.status for one in inventory(node).check(inventory(node).layers())
    }
    assert set(statuses.values()) == {Status.UNVERIFIED}


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_of_a_time_is_read_and_left_as_it_is(node: AosNode, name: str) -> None:
    spelling, moment = SPELLINGS[name]
    layer = filled(node, "one", spelling)
    (row,) = inventory(node).layers()
    assert row.timestamp == moment
    assert apply(node, layer) == 0
    assert node.rows()["one"][5] == spelling


def test_a_cached_layer_of_aos_expires_by_its_own_time(node: AosNode) -> None:
    kept = filled(node, "kept")
    filled(node, "old", "2026-01-01 00:00:00+00:00", cached=True)
    assert apply(node, kept) == 0
    assert run(["--config", str(node.config), "gc"]) == 0
    assert list(node.rows()) == ["kept"]


def test_what_we_write_is_as_aos_writes_it(node: AosNode, tmp_path: Path) -> None:
    """So that it reads it right when it is given the node back."""
    publisher = Node(tmp_path)
    layer = publisher.publish("new")
    schema = node.others()
    assert apply(node, layer) == 0
    digest, layer_id, path, os_version, version, timestamp, cached, size = node.rows()["new"]
    assert (digest, layer_id, version) == (layer.digest, "new", "1.0.0")
    assert path == str(node.path_of(layer))
    assert (os_version, cached) == ("", 0)
    assert isinstance(size, int)
    assert size > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\+00:00", str(timestamp))
    assert node.others() == schema
    # Aos removes what it does not know at this depth, so that nothing else may be there.
    deep = {one.name for one in (node.working_dir / "layers").glob("*/*")}
    assert deep == {layer.digest.encoded}
    for directory in (node.working_dir / "layers", node.path_of(layer).parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_what_aos_did_with_it_meanwhile_is_taken_as_it_is(node: AosNode, tmp_path: Path) -> None:
    """Aos removes a layer of ours, and installs another: nothing of it is known any more."""
    publisher = Node(tmp_path)
    ours = publisher.publish("ours")
    assert apply(node, ours) == 0
    with node.connect() as database:
        database.execute("DELETE FROM layers")
    database.close()
    node.path_of(ours).rename(tmp_path / "removed")
    theirs = filled(node, "theirs")

    assert apply(node, theirs) == 0
    assert list(node.rows()) == ["theirs"]
    assert inventory(node).sources()[theirs.digest] == theirs


class TestAdoption:
    """Layers of Aos get an index."""

    def test_by_the_command(self, node: AosNode, capsys: pytest.CaptureFixture[str]) -> None:
        layer = filled(node, "one")
        config = ["--config", str(node.config)]
        assert run([*config, "check"]) == 1
        told = capsys.readouterr().err
        assert f"`layermanager check --index {layer.digest[:19]}` makes one" in told

        assert run([*config, "check", "--index"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "indexed"
        assert run([*config, "check"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "intact"
        assert run([*config, "--json", "check", "--index"]) == 0
        assert [one["status"] for one in json.loads(capsys.readouterr().out)] == ["intact"]

        (node.path_of(layer) / "etc/name").write_text("two")
        assert run([*config, "check", "--index"]) == 1
        assert "etc/name" in capsys.readouterr().out

    def test_it_is_known_as_well_as_one_that_we_install(self, tmp_path: Path) -> None:
        tar = (
            LayerBuilder()
            .directory(".", mode=0o750)
            .directory("etc", uid=3, gid=4)
            .file("etc/a file", b"content", mode=0o4755, uid=1, gid=2, mtime_ns=1_234_567_890)
            .hardlink("etc/b", "etc/a file")
            .symlink("link", "etc/a file")
            .character_device("null", 1, 3)
            .fifo("fifo")
            .file("etc/caps", b"x", xattrs={"user.a": b"\0\xff"})
            .whiteout("etc/gone")
            .opaque("etc")
            .tar()
        )
        publisher = Node(tmp_path)
        layer = publisher.publish_bytes("one", compress(tar, "gzip"))
        with publisher.manager() as manager:
            (installed,) = manager.process_desired_layers([layer]).installed
            before = entries(publisher.config, installed)
            (publisher.config.index_dir / f"sha256/{layer.digest.encoded}.mtree.gz").unlink()

            (adopted,) = manager.adopt_layers([installed])

            assert entries(publisher.config, installed) == before
            assert manager.adopt_layers([installed]) == ()
            blocks = {
                (one.stat().st_ino, os.lstat(one).st_blocks * 512)
                for one in (installed.path, *installed.path.rglob("*"))
                if not one.is_symlink()
            }
            assert adopted.layer.size >= sum(size for _, size in blocks)
            assert publisher.rows() == (adopted.layer,)
        (report,) = Inventory(publisher.config).check([installed])
        assert report.status is Status.INTACT

    def test_a_socket_is_refused(self, node: AosNode) -> None:
        layer = filled(node, "one")
        os.mknod(node.path_of(layer) / "socket", stat.S_IFSOCK)
        assert run(["--config", str(node.config), "check", "--index"]) == 1
        assert not list((node.working_dir / "index").glob("**/*.gz"))
        assert not list((node.working_dir / "index/.staging").iterdir())

    def test_only_sensible_options(self, node: AosNode) -> None:
        config = ["--config", str(node.config), "check"]
        assert run([*config, "--clean-markers"]) == 2
        assert run([*config, "--index", "--repair"]) == 2


@pytest.mark.usefixtures("needs_trusted_xattrs", "needs_devices")
class TestMarkers:
    """What Aos leaves of whiteouts is cleaned up on request."""

    def test_the_layer_is_then_as_we_would_have_unpacked_it(
        self, node: AosNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        layer = self.unpacked(node)
        assert (node.path_of(layer) / "etc/.wh.gone").exists()
        blob = compress(WHITEOUTS, "gzip")
        publisher = Node(tmp_path)
        with publisher.manager() as manager:
            ours = publisher.publish_bytes("one", blob)
            (installed,) = manager.process_desired_layers([ours]).installed

        config = ["--config", str(node.config)]
        assert run([*config, "check", "--index", "--clean-markers"]) == 0
        assert "removed 3 marker files" in capsys.readouterr().err
        assert without_times_of_whiteouts(node.path_of(layer)) == without_times_of_whiteouts(
            installed.path
        )
        assert run([*config, "check"]) == 0

    def test_not_unasked(self, node: AosNode) -> None:
        layer = self.unpacked(node)
        before = snapshot(node.path_of(layer))
        assert run(["--config", str(node.config), "check", "--index"]) == 0
        assert snapshot(node.path_of(layer)) == before

    def test_a_device_that_has_the_name_of_a_marker_goes_too(self, node: AosNode) -> None:
        """Aos makes it of ``.wh..wh.plnk``, which means something to AUFS only."""
        tar = LayerBuilder().directory(".").file(".wh..wh.plnk").tar()
        layer = self.unpacked(node, tar)
        assert (node.path_of(layer) / ".wh.plnk").is_char_device()
        config = ["--config", str(node.config)]
        assert run([*config, "check", "--index", "--clean-markers"]) == 0
        assert list(node.path_of(layer).iterdir()) == []

    def test_a_marker_that_nothing_was_made_of_stays(
        self, node: AosNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        layer = node.add("one", WHITEOUTS, timestamp=GO)
        extract(WHITEOUTS, node.path_of(layer))
        before = snapshot(node.path_of(layer))
        config = ["--config", str(node.config)]
        assert run([*config, "check", "--index", "--clean-markers"]) == 0
        assert snapshot(node.path_of(layer)) == before
        assert "etc/.wh.gone is kept" in caplog.text

    def test_not_while_the_layer_is_in_use(self, node: AosNode) -> None:
        layer = self.unpacked(node)
        before = snapshot(node.path_of(layer))
        with LayerManager(load_config(node.config)) as manager:
            layers = inventory(node).layers()
            with manager.lease(layer.digest, owner="somebody"):
                with pytest.raises(UseError, match="somebody"):
                    manager.adopt_layers(layers, clean_markers=True)
                assert snapshot(node.path_of(layer)) == before
            (adopted,) = manager.adopt_layers(layers, clean_markers=True)
        assert adopted.markers == 3

    def unpacked(self, node: AosNode, tar: bytes = WHITEOUTS) -> DesiredLayer:
        layer = node.add("one", tar, timestamp=GO)
        extract(tar, node.path_of(layer))
        unpack_as_aos(node.path_of(layer))
        os.utime(node.path_of(layer), ns=(1_700_000_000_000_000_000,) * 2)
        for path in node.path_of(layer).rglob("*"):
            if path.is_dir():
                os.utime(path, ns=(1_700_000_000_000_000_000,) * 2)
        return layer


def without_times_of_whiteouts(root: Path) -> dict[bytes, object]:
    """A tree, but for the times of whiteouts, which nobody sees."""
    return {
        name: "whiteout" if state.is_whiteout else state for name, state in snapshot(root).items()
    }


def entries(config: Config, layer: LayerInfo) -> dict[bytes, IndexEntry]:
    """The index of a layer by paths."""
    return {entry.path: entry for entry in Inventory(config).files(layer.digest)}
