"""Damage of every kind is found, and nothing else is."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layermanager import linux
from layermanager.boundary import Boundary, Guard
from layermanager.cancellation import Cancellation
from layermanager.check import MAX_DIFFERENCES, Depth, Problem, Status, compare
from layermanager.errors import CancelledError
from layermanager.inventory import Inventory
from layermanager.model import Repair
from layermanager.testing.layers import LayerBuilder
from layermanager.unpack.index import IndexEntry
from manager_fixtures import Node
from surprises import SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from layermanager.check import Difference, LayerReport
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

    @pytest.mark.parametrize("surprise", SURPRISES)
    def test_whatever_its_listener_raises_all_is_checked(
        self, node: Node, layer: LayerInfo, surprise: str
    ) -> None:
        def on_progress(_: CheckProgress) -> None:
            raise made(surprise)

        counted: list[Boundary] = []
        inventory = Inventory(node.config, guard=Guard(counted.append))
        (report,) = inventory.check([layer], on_progress=on_progress)
        assert report.status is Status.INTACT
        assert {*counted} == {Boundary.PROGRESS}

    def test_progress_tells_layers_and_bytes(self, node: Node, layer: LayerInfo) -> None:
        moments: list[CheckProgress] = []
        Inventory(node.config).check([layer], on_progress=moments.append)
        assert (moments[-1].number, moments[-1].layers) == (1, 1)
        assert moments[-1].read == len(LARGE) + len(b"content") + 1
        assert [one.read for one in moments] == sorted(one.read for one in moments)


def index(node: Node, layer: LayerInfo) -> Path:
    return node.config.index_dir / "sha256" / f"{layer.digest.encoded}.mtree.gz"


# What is fed to it directly


def entry(path: str, kind: str = "dir", **attributes: Any) -> IndexEntry:
    """An entry of an index that was made by hand."""
    made = IndexEntry(
        path=os.fsencode(path),
        kind=kind,
        mode=0o755,
        owner=(0, 0),
        mtime_ns=5,
        size=0,
        sha256="",
        link=b"",
        hard_link=b"",
        device=(0, 0),
        xattrs={},
    )
    return made._replace(**attributes)


def compared(
    root: Path, entries: Iterable[IndexEntry], depth: Depth = Depth.CONTENT
) -> list[Difference]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with ThreadPoolExecutor(1) as threads:
            return list(
                compare(
                    descriptor,
                    entries,
                    depth,
                    threads=threads,
                    cancellation=Cancellation(),
                    on_bytes=lambda _: None,
                )
            )
    finally:
        os.close(descriptor)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree ``c/d/e`` in which directories have files, beside one outside with the same names."""
    for top in ("tree/c", "outside"):
        (tmp_path / top / "d/e").mkdir(parents=True)
        for name in ("1", "d/2", "d/e/3", "z"):
            (tmp_path / top / name).write_text(top)
    (tmp_path / "outside/secret").write_text("secret")
    for path in (tmp_path / "outside").rglob("*"):
        os.utime(path, ns=(1, 1))
    return tmp_path / "tree"


class TestIndexesThatLeadOut:
    @pytest.mark.parametrize(
        "path",
        [
            *("..", "../outside", "c/..", "c/../..", "c/../../outside/secret", "c/d/../../../x"),
            *("", "/", "/etc", "/etc/passwd", "c//d", "c/", "./c", "c/./d", ".//", "c/d\0e"),
        ],
    )
    @pytest.mark.parametrize("kind", ["dir", "file"])
    def test_a_path_is_a_difference_and_not_looked_at(
        self, path: str, kind: str, tree: Path
    ) -> None:
        bad = entry(path, kind, size=6, sha256="0" * 64)
        good = [entry("."), entry("c")]
        found = [one for one in compared(tree, [*good, bad]) if one.path == bad.path]
        assert [(one.problem, one.expected, one.found) for one in found] == [
            (Problem.INDEX, "a path inside the layer", path)
        ]
        told = {one.path for one in compared(tree, [*good, bad])}
        assert told == {bad.path, b".", b"c", b"c/1", b"c/d", b"c/z"}

    @pytest.mark.parametrize("other", ["../outside/1", "/etc/passwd", "c/../../outside/1", ".."])
    def test_the_other_path_of_a_hard_link(self, other: str, tree: Path) -> None:
        """Otherwise it would tell whether two files outside are the same."""
        (tree / "c/1").unlink()
        os.link(tree.parent / "outside/1", tree / "c/1")
        link = entry("c/1", "file", hard_link=os.fsencode(other))
        found = [one for one in compared(tree, [link]) if one.path == b"c/1"]
        assert [(one.problem, one.found) for one in found] == [(Problem.INDEX, other)]

    def test_nothing_of_a_layer_is_hidden_by_it(self, tree: Path) -> None:
        entries = [entry("."), entry("c/../c/1", "file")]
        assert (b"c", Problem.ADDED) in [(one.path, one.problem) for one in compared(tree, entries)]


def symlink_instead(path: Path, outside: Path) -> None:
    path.rename(outside.parent / "was here")
    path.symlink_to(outside)


TRICKS: dict[str, Callable[[Path, Path], object]] = {
    "moved away": lambda path, outside: path.rename(outside / "d/d"),
    "moved up": lambda path, _: path.rename(path.parent.parent / "moved"),
    "replaced by a symlink": symlink_instead,
    "exchanged": lambda path, outside: linux.exchange(
        os.fsencode(path), os.fsencode(outside / "d")
    ),
}
IN_ORDER = (".", "c", "c/1", "c/d", "c/d/2", "c/d/e", "c/d/e/3", "c/z")


class TestOthersChangeTheLayer:
    @pytest.mark.parametrize("trick", TRICKS)
    @pytest.mark.parametrize("at", IN_ORDER)
    def test_nothing_outside_is_looked_at(self, trick: str, at: str, tree: Path) -> None:
        """The directory ``c/d`` goes before the entry *at* is compared."""
        outside = tree.parent / "outside"
        before = {path: path.stat().st_atime_ns for path in outside.rglob("*") if path.is_file()}

        def entries() -> Iterator[IndexEntry]:
            for path in IN_ORDER:
                if path == at:
                    TRICKS[trick](tree / "c/d", outside)
                is_directory = (path.rpartition("/")[2] or ".") in ".cde"
                yield entry(path, "dir" if is_directory else "file", size=6, sha256="0" * 64)

        told = {os.fsdecode(one.path) for one in compared(tree, entries())}
        known = {*IN_ORDER, "moved", "c/was here"}
        if trick == "exchanged":
            known |= {"c/d/2", "c/d/e"}  # what was brought in
        assert told <= known
        after = {path: path.stat().st_atime_ns for path in before if path.exists()}
        if trick != "exchanged":
            assert after == before

    def test_a_file_becomes_a_fifo_before_it_is_opened(self, tree: Path) -> None:
        """It was a file when its attributes were read; the fifo is not opened."""

        class Swapping(dict[bytes, bytes]):
            """Is asked for between the two."""

            def __len__(self) -> int:
                (tree / "c/1").unlink()
                os.mkfifo(tree / "c/1")
                return super().__len__()

        size = (tree / "c/1").stat().st_size
        one = entry("c/1", "file", size=size, sha256="0" * 64, xattrs=Swapping())
        found = [one.found for one in compared(tree, [one]) if one.problem is Problem.CONTENT]
        assert found == ["not a regular file but of type `fifo`"]

    def test_a_file_that_grows_is_read_to_its_size_only(self, tree: Path) -> None:
        read = 0

        def grow(size: int) -> None:
            nonlocal read
            read += size
            with (tree / "c/1").open("ab") as file:
                file.write(bytes(size))

        content = (tree / "c/1").read_bytes()
        one = entry("c/1", "file", size=len(content), sha256=hashlib.sha256(content).hexdigest())
        root = os.open(tree, os.O_RDONLY)
        with ThreadPoolExecutor(1) as threads:
            found = compare(
                root,
                [one],
                Depth.CONTENT,
                threads=threads,
                cancellation=Cancellation(),
                on_bytes=grow,
            )
            problems = {one.problem for one in found if one.path == b"c/1"}
        os.close(root)
        assert read <= len(content) + 1
        assert Problem.CONTENT in problems

    @pytest.mark.usefixtures("needs_root")
    def test_what_is_mounted_in_a_layer_is_not_looked_at(self, tree: Path) -> None:
        outside = tree.parent / "outside"
        subprocess.run(["mount", "--bind", outside, tree / "c/d"], check=True)
        try:
            told = compared(tree, [entry("."), entry("c"), entry("c/d"), entry("c/d/2", "file")])
        finally:
            subprocess.run(["umount", tree / "c/d"], check=True)
        hidden = {one.path: one.found for one in told if one.problem is Problem.UNREADABLE}
        assert hidden == {
            b"c/d": "hidden by a mounted file system",
            b"c/d/2": "hidden by a mounted file system",
        }
        assert b"c/d/secret" not in {one.path for one in told}

    def test_a_layer_deeper_than_descriptors_are_many(self, tmp_path: Path) -> None:
        depth = 300
        tmp_path.joinpath(*["d"] * depth).mkdir(parents=True)
        entries = [entry("/".join(["d"] * number)) for number in range(1, depth + 1)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = len(os.listdir("/proc/self/fd")) + 90  # noqa: PTH208 - counted, not used
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        try:
            told = compared(tmp_path, entries)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        # The entries are root's, who need not be this user.
        assert {one.problem for one in told} - {Problem.OWNER} == {Problem.TIME}
