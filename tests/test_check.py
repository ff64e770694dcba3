"""Damage of every kind is found, and nothing else is."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layermanager.cancellation import Cancellation
from layermanager.check import MAX_DIFFERENCES, Depth, Problem, Status
from layermanager.errors import CancelledError
from layermanager.inventory import Inventory
from layermanager.model import Repair
from layermanager.testing.layers import LayerBuilder
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layermanager.check import LayerReport
    from layermanager.inventory import CheckProgress
    from layermanager.model import LayerInfo

LARGE = b"0123456789abcdef" * 200_000
LAYER = (
    LayerBuilder()
    .directory(".", mtime_ns=5)
    .directory("d", mode=0o750, mtime_ns=5)
    .file("d/file", b"content", mode=0o640, mtime_ns=5, xattrs={"user.a": b"1"})
    .hardlink("d/again", "d/file")
    .file("large", LARGE, mtime_ns=5)
    .file("empty", mtime_ns=5)
    .symlink("link", "d/file", mtime_ns=5)
    .fifo("fifo", mtime_ns=5)
    .whiteout("gone")
    .directory("opaque", mtime_ns=5)
    .opaque("opaque")
    .file(b"\xff name\n", b"1", mtime_ns=5)
    .tar()
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def layer(node: Node) -> LayerInfo:
    return install(node)


def install(node: Node, name: str = "one", tar: bytes = LAYER) -> LayerInfo:
    with node.manager() as manager:
        return manager.process_desired_layers([node.publish_bytes(name, tar)]).installed[0]


def check(node: Node, depth: Depth = Depth.CONTENT) -> LayerReport:
    inventory = Inventory(node.config)
    (report,) = inventory.check(inventory.layers(), depth)
    return report


def found(report: LayerReport) -> list[tuple[str, Problem]]:
    assert report.count == len(report.differences)
    return sorted((os.fsdecode(one.path), one.problem) for one in report.differences)


def write(path: Path, content: bytes) -> None:
    """Change a file's content and nothing else, as a bad disk does."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def symlink_for_directory(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, Problem]]]] = {
    "a bit": (
        lambda root: write(root / "large", b"1" + LARGE[1:]),
        [("large", Problem.CONTENT)],
    ),
    "a longer file": (
        lambda root: write(root / "empty", b"1"),
        [("empty", Problem.SIZE)],
    ),
    "a mode": (lambda root: (root / "d").chmod(0o755), [("d", Problem.MODE)]),
    "a time": (lambda root: os.utime(root / "large", ns=(0, 6)), [("large", Problem.TIME)]),
    "the root's time": (lambda root: os.utime(root, ns=(0, 6)), [(".", Problem.TIME)]),
    "a file that is gone": (lambda root: (root / "large").unlink(), [("large", Problem.MISSING)]),
    "a directory that is gone": (
        lambda root: shutil.rmtree(root / "d"),
        [("d", Problem.MISSING)],
    ),
    "an added file": (
        lambda root: (root / "d/new").write_bytes(b""),
        [("d/new", Problem.ADDED)],
    ),
    "an added directory": (
        lambda root: (root / "new/sub").mkdir(parents=True),
        [("new", Problem.ADDED)],
    ),
    "a link elsewhere": (
        lambda root: replace(root / "link", lambda path: path.symlink_to("other")),
        [("link", Problem.LINK), ("link", Problem.TIME)],
    ),
    "a symlink for a file": (
        lambda root: replace(root / "empty", lambda path: path.symlink_to("/etc/passwd")),
        [("empty", Problem.KIND)],
    ),
    "a fifo for a file": (
        lambda root: replace(root / "empty", os.mkfifo),
        [("empty", Problem.KIND)],
    ),
    "a symlink for a directory": (
        lambda root: symlink_for_directory(root / "d"),
        [("d", Problem.KIND)],
    ),
    "a file for a whiteout": (
        lambda root: replace(root / "gone", lambda path: path.write_bytes(b"back")),
        [("gone", Problem.KIND)],
    ),
    "a copy for a hard link": (
        lambda root: replace(root / "d/again", lambda path: shutil.copy2(root / "d/file", path)),
        [("d/again", Problem.HARD_LINK)],
    ),
    "an xattr": (
        lambda root: os.setxattr(root / "d/file", "user.a", b"2"),
        [("d/file", Problem.XATTRS)],
    ),
    "an added xattr": (
        lambda root: os.setxattr(root / "large", "user.b", b""),
        [("large", Problem.XATTRS)],
    ),
    "a removed xattr": (
        lambda root: os.removexattr(root / "d/file", "user.a"),
        [("d/file", Problem.XATTRS)],
    ),
}


class TestDifferences:
    def test_an_intact_layer(self, node: Node, layer: LayerInfo) -> None:
        report = check(node)
        assert (report.layer, report.status, report.differences) == (layer, Status.INTACT, ())

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damage_is_named(self, damage: str, node: Node, layer: LayerInfo) -> None:
        change, expected = DAMAGES[damage]
        before = {path: path.stat() for path in (layer.path, layer.path / "d")}
        change(layer.path)
        if damage != "the root's time":
            for path, status in before.items():
                if path.exists():
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        report = check(node)
        assert found(report) == expected
        assert report.status is Status.DAMAGED

    def test_owners(self, node: Node, layer: LayerInfo, needs_root: None) -> None:  # noqa: ARG002 - a fixture
        os.chown(layer.path / "large", 7, 8)
        (difference,) = check(node).differences
        assert (difference.problem, difference.expected, difference.found) == (
            Problem.OWNER,
            "0:0",
            "7:8",
        )

    def test_devices(self, node: Node, needs_devices: None) -> None:  # noqa: ARG002 - a fixture
        layer = install(node, tar=LayerBuilder().character_device("null", 1, 3).tar())
        replace(
            layer.path / "null",
            lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5)),
        )
        os.utime(layer.path / "null", ns=(0, 0))
        os.utime(layer.path, ns=(0, 0))
        (difference,) = check(node).differences
        assert (difference.problem, difference.expected, difference.found) == (
            Problem.DEVICE,
            "1:3",
            "1:5",
        )

    def test_quickly_all_but_the_content(self, node: Node, layer: LayerInfo) -> None:
        write(layer.path / "large", b"1" + LARGE[1:])
        (layer.path / "d").chmod(0o755)
        assert found(check(node, Depth.ATTRIBUTES)) == [("d", Problem.MODE)]

    def test_a_filled_hole_is_no_difference(self, node: Node) -> None:
        layer = install(node, tar=LayerBuilder().file("zeros", bytes(1 << 20), mtime_ns=5).tar())
        write(layer.path / "zeros", bytes(1 << 20))
        assert check(node).status is Status.INTACT

    def test_only_the_first_of_very_many_are_kept(self, node: Node) -> None:
        builder = LayerBuilder()
        for number in range(MAX_DIFFERENCES + 5):
            builder.file(f"{number}")
        layer = install(node, tar=builder.tar())
        shutil.rmtree(layer.path)
        layer.path.mkdir(mode=0o755)
        os.utime(layer.path, ns=(0, 0))
        report = check(node)
        assert len(report.differences) == MAX_DIFFERENCES
        assert report.count == MAX_DIFFERENCES + 5

    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(at=st.integers(0, len(LARGE) - 1), bit=st.integers(0, 7))
    def test_any_bit_counts(self, at: int, bit: int, node: Node, layer: LayerInfo) -> None:
        flipped = LARGE[:at] + bytes([LARGE[at] ^ 1 << bit]) + LARGE[at + 1 :]
        write(layer.path / "large", flipped)
        assert found(check(node)) == [("large", Problem.CONTENT)]


class TestLayers:
    def test_a_directory_that_is_gone(self, node: Node, layer: LayerInfo) -> None:
        shutil.rmtree(layer.path)
        assert found(check(node)) == [(".", Problem.MISSING)]

    def test_a_layer_without_an_index_cannot_be_verified(
        self, node: Node, layer: LayerInfo
    ) -> None:
        index(node, layer).unlink()
        report = check(node)
        assert (report.status, report.has_index) == (Status.UNVERIFIED, False)

    def test_an_index_that_is_damaged(self, node: Node, layer: LayerInfo) -> None:
        path = index(node, layer)
        path.write_bytes(path.read_bytes()[:-20])
        report = check(node)
        assert report.status is Status.DAMAGED
        assert Problem.INDEX in {one.problem for one in report.differences}

    def test_a_layer_that_is_removed_meanwhile_is_left_out(
        self, node: Node, layer: LayerInfo
    ) -> None:
        inventory = Inventory(node.config)
        layers = inventory.layers()
        with node.manager() as manager:
            manager.process_desired_layers([])
            manager.remove_cached_layers(1)
        assert not layer.path.exists()
        assert inventory.check(layers) == ()

    def test_a_layer_that_is_replaced_meanwhile_is_looked_at_again(
        self, node: Node, layer: LayerInfo
    ) -> None:
        def mend(progress: CheckProgress) -> None:
            if progress.read and not repaired:
                repaired.append(True)
                with node.manager() as manager:
                    manager.repair_layers([Repair(layer, source)])

        source = Inventory(node.config).sources()[layer.digest]
        repaired: list[bool] = []
        (layer.path / "d").chmod(0o755)
        (report,) = Inventory(node.config).check([layer], on_progress=mend)
        assert repaired
        assert report.status is Status.INTACT

    def test_a_check_can_be_cancelled(self, node: Node, layer: LayerInfo) -> None:
        cancellation = Cancellation()
        with pytest.raises(CancelledError):
            Inventory(node.config).check(
                [layer], cancellation=cancellation, on_progress=lambda _: cancellation.cancel()
            )

    def test_progress_tells_layers_and_bytes(self, node: Node, layer: LayerInfo) -> None:
        moments: list[CheckProgress] = []
        Inventory(node.config).check([layer], on_progress=moments.append)
        assert (moments[-1].number, moments[-1].layers) == (1, 1)
        assert moments[-1].read == len(LARGE) + len(b"content") + 1
        assert [one.read for one in moments] == sorted(one.read for one in moments)


def index(node: Node, layer: LayerInfo) -> Path:
    return node.config.index_dir / "sha256" / f"{layer.digest.encoded}.mtree.gz"
