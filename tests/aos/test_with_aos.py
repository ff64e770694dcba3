"""Aos's own layer manager and this one take turns on a working directory.

It is built from its sources as ``docs/aos.md`` says; ``AOS_PEER`` names the program, and
``AOS_MIGRATION`` the directory ``database/migration`` of the sources.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from aos_node import extract, unpack_as_aos

from layermanager.cli.run import run
from layermanager.config import load_config
from layermanager.desired import desired_to_json
from layermanager.inventory import Inventory
from layermanager.testing.layers import LayerBuilder, build_package, compress
from layermanager.testing.trees import snapshot
from manager_fixtures import Node

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager import DesiredLayer

pytestmark = [
    pytest.mark.skipif(
        "AOS_PEER" not in os.environ, reason="AOS_PEER names no layer manager of Aos"
    ),
    pytest.mark.usefixtures("needs_trusted_xattrs", "needs_devices"),
]


class Site:
    """A working directory on which both work, and what is published for them."""

    def __init__(self, base: Path) -> None:
        self.publisher = Node(base)
        self.config = base / "aos_servicemanager.cfg"
        self.working_dir = base / "sm"
        self.working_dir.mkdir()
        document = {
            "workingDir": str(self.working_dir),
            "migration": {
                "migrationPath": os.environ["AOS_MIGRATION"],
                "mergedMigrationPath": str(base / "merged"),
            },
        }
        self.config.write_text(json.dumps(document))

    def publish(self, name: str) -> DesiredLayer:
        """A package with a layer of its own, that has all that differs between the two."""
        blob = compress(tar_of(name), "gzip")
        return self.publisher.publish_bytes(name, blob, build_package(blob))

    def withdraw(self) -> None:
        """Have nothing be there to be fetched any more."""
        for path in self.publisher.published.iterdir():
            path.unlink()

    def aos(self, *layers: DesiredLayer) -> dict[str, dict[str, Any]]:
        """Have Aos see to these layers; what it says of all of them, by their names."""
        document = self.working_dir / "desired.json"
        document.write_text(json.dumps([of_aos(layer) for layer in layers]))
        command = [os.environ["AOS_PEER"], str(self.config), str(document)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {one["LayerID"]: one for one in json.loads(done.stdout)}

    def ours(self, *layers: DesiredLayer) -> dict[str, dict[str, Any]]:
        """Have us see to them; what we say of them, in the words of Aos."""
        document = self.working_dir / "desired.json"
        document.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
        assert run(["--config", str(self.config), "apply", str(document)]) == 0
        return {
            one.layer_id: {
                "Digest": str(one.digest),
                "LayerID": one.layer_id,
                "Version": one.version,
                "Path": str(one.path),
                "OSVersion": one.os_version,
                "Timestamp": one.timestamp,
                "Cached": one.cached,
                "Size": one.size,
            }
            for one in self.inventory.layers()
        }

    def check(self, *options: str) -> int:
        """The status of our check."""
        return run(["--config", str(self.config), "check", *options])

    @property
    def inventory(self) -> Inventory:
        """What we see."""
        return Inventory(load_config(self.config))

    def trees(self) -> dict[str, object]:
        """All layers, file by file, by their names."""
        return {one.layer_id: snapshot(one.path) for one in self.inventory.layers()}


def tar_of(name: str) -> bytes:
    """A layer of which the one makes something else than the other."""
    moment = 1_700_000_000_000_000_000
    return (
        LayerBuilder()
        .directory(".", mtime_ns=moment)
        .directory("etc", mtime_ns=moment)
        .whiteout("etc/gone")
        .file("etc/name", name.encode(), uid=1000, gid=1001, mode=0o4755)
        .directory("opaque", mtime_ns=moment)
        .opaque("opaque")
        .file("opaque/new", b"new")
        .tar()
    )


def of_aos(layer: DesiredLayer) -> dict[str, object]:
    """A desired layer as Aos is told of it."""
    known = {"layerId", "digest", "version", "url", "sha256", "size"}
    return {key: value for key, value in desired_to_json(layer).items() if key in known}


def same(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What both say, with times as both can say them: to the microsecond."""

    def moment(value: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        return datetime.fromisoformat(value)

    return {name: {**one, "Timestamp": moment(one["Timestamp"])} for name, one in layers.items()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_taken_over_and_given_back(site: Site) -> None:
    """Nothing is fetched twice, and each reads what the other wrote."""
    one, two = site.publish("one"), site.publish("two")
    by_aos = site.aos(one, two)
    trees = site.trees()
    site.withdraw()

    by_us = site.ours(one)
    assert by_us["one"] == same(by_aos)["one"]
    assert (by_aos["two"]["Cached"], by_us["two"]["Cached"]) == (False, True)
    assert site.trees() == trees
    assert site.check() == 1
    assert site.check("--index") == 0
    assert site.check() == 0

    three = site.publish("three")
    by_us = site.ours(one, three)
    trees = site.trees()
    site.withdraw()

    by_aos = same(site.aos(one, two, three))
    assert by_aos["three"] == by_us["three"]
    assert by_aos["one"] == by_us["one"]
    assert by_aos["two"] == {
        **by_us["two"],
        "Cached": False,
        "Timestamp": by_aos["two"]["Timestamp"],
    }
    assert site.trees() == trees

    assert same(site.ours(one, two, three)) == by_aos
    assert site.check() == 0


def test_what_we_cached_aos_removes_when_it_expires(site: Site) -> None:
    one, two = site.publish("one"), site.publish("two")
    site.ours(one, two)
    site.ours(one)
    settings = json.loads(site.config.read_text())
    site.config.write_text(json.dumps({**settings, "layerTtlDays": 0}))
    assert set(site.aos(one)) == {"one"}
    assert set(site.trees()) == {"one"}
    assert not (site.working_dir / "layers/sha256" / two.digest.encoded).exists()
    assert set(site.ours(one)) == {"one"}
    assert site.check() == 0


def test_the_markers_of_aos_are_cleaned(site: Site) -> None:
    one = site.publish("one")
    site.aos(one)
    directory = site.inventory.layers()[0].path
    assert {path.name for path in directory.rglob(".wh.*")} == {".wh.gone", ".wh..wh..opq"}
    assert site.check("--index", "--clean-markers") == 0
    assert list(directory.rglob(".wh.*")) == []
    assert (directory / "etc/gone").stat().st_rdev == 0
    assert os.getxattr(directory / "opaque", "trusted.overlay.opaque") == b"y"
    assert site.check() == 0
    assert set(site.aos(one)) == {"one"}
    assert site.check() == 0


def test_the_tests_know_what_aos_makes_of_whiteouts(site: Site, tmp_path: Path) -> None:
    site.aos(site.publish("one"))
    directory = site.inventory.layers()[0].path
    tree = tmp_path / "tree"
    tree.mkdir()
    extract(tar_of("one"), tree)
    unpack_as_aos(tree)

    def known(root: Path) -> dict[bytes, object]:
        # Of directories and devices Aos has the times of its own work.
        return {
            name: (state.type, state.mode, state.device, state.content, state.xattrs)
            for name, state in snapshot(root).items()
        }

    assert known(directory) == known(tree)
