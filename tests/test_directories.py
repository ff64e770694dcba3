"""The walker of trees that others change: it never leaves them, and few descriptors are open."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tracemalloc
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counting import MOST_GROWTH, assert_linear
from deep_trees import comb
from layermanager import linux
from layermanager.directories import (
    MAX_PATH_BYTES,
    Directories,
    NotRegularError,
    Place,
    Trail,
    is_plain,
)
from layermanager.model import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def base(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the root of a tree."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used


def make_chain(base: int, depth: int) -> None:
    """Make directories ``d`` in one another, farther down than a path can lead."""
    current = os.dup(base)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def walk(root: int) -> int:
    """Return how many files a walk yields."""
    with closing(Directories(root)) as directories:
        return sum(1 for _ in directories.files())


def peak_memory(root: int) -> int:
    """Return the most bytes that a walk has at any time."""
    tracemalloc.start()
    try:
        walk(root)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def remove_chain(base: int, depth: int) -> None:
    """Remove what ``make_chain`` made: pytest could not."""
    with closing(Trail(base)) as trail:
        for _ in range(depth):
            trail.enter(b"d")
        for _ in range(depth):
            os.rmdir(trail.leave(), dir_fd=trail.descriptor)


def leave_all(trail: Trail) -> None:
    while trail.depth:
        trail.leave()


@contextmanager
def mounted(source: str | Path, target: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, source, target], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def as_without_openat2(_: int, __: bytes, ___: int) -> int:
    """What an old kernel says."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["openat2", "an old kernel"])
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "openat2":
        monkeypatch.setattr(linux, "open_on_mount", as_without_openat2)


class TestTrail:
    def test_goes_down_and_up(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        with closing(Trail(base)) as trail:
            assert (trail.depth, trail.path, trail.descriptor) == (0, b"", base)
            trail.enter(b"a")
            state = trail.enter(b"b")
            assert (trail.depth, trail.path) == (2, b"a/b")
            assert os.path.samestat(state, (tmp_path / "a/b").stat())
            assert os.path.samestat(state, os.fstat(trail.descriptor))
            assert trail.leave() == b"b"
            assert trail.leave() == b"a"
            assert trail.descriptor == base

    @pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b"])
    def test_takes_single_names_only(self, name: bytes, base: int) -> None:
        with closing(Trail(base)) as trail, pytest.raises(ValueError, match="not the name"):
            trail.enter(name)

    @pytest.mark.usefixtures("either_kernel")
    def test_enters_no_symlink(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "link").symlink_to("a")
        with closing(Trail(base)) as trail, pytest.raises(NotADirectoryError):
            trail.enter(b"link")

    @pytest.mark.usefixtures("either_kernel", "needs_root")
    @pytest.mark.parametrize("options", [("--bind",), ("-t", "tmpfs")])
    def test_enters_no_mount(self, options: tuple[str, ...], tmp_path: Path, base: int) -> None:
        """A bind mount has the same device, so only the kernel knows."""
        (tmp_path / "a").mkdir()
        (tmp_path / "b/c").mkdir(parents=True)
        before = open_descriptors()
        with mounted(tmp_path / "b", tmp_path / "a", *options), closing(Trail(base)) as trail:
            trail.enter(b"b")
            trail.leave()
            with pytest.raises(OSError, match="cross-device"):
                trail.enter(b"a")
            assert trail.depth == 0
            assert open_descriptors() == before
        with (
            mounted(tmp_path / "b", tmp_path / "a", *options),
            closing(Trail(base, crosses_mounts=True)) as trail,
        ):
            trail.enter(b"a")
            assert os.path.samestat(os.fstat(trail.descriptor), (tmp_path / "a").stat())

    @pytest.mark.usefixtures("either_kernel")
    def test_the_way_up_is_the_way_down_wherever_a_directory_has_gone(
        self, tmp_path: Path, base: int
    ) -> None:
        (tmp_path / "tree/a/b").mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir()
        with closing(Trail(base)) as trail:
            for name in (b"tree", b"a", b"b"):
                trail.enter(name)
            (tmp_path / "tree/a/b").rename(tmp_path / "elsewhere/b")
            (tmp_path / "tree/a").rename(tmp_path / "elsewhere/a")
            assert trail.leave() == b"b"
            assert os.path.samestat(os.fstat(trail.descriptor), (tmp_path / "elsewhere/a").stat())
            assert trail.leave() == b"a"
            assert os.path.samestat(os.fstat(trail.descriptor), (tmp_path / "tree").stat())

    @pytest.mark.parametrize("replacement", ["nothing", "a symlink", "a directory", "a file"])
    def test_a_directory_that_is_not_found_again_counts_as_removed(
        self, replacement: str, tmp_path: Path, base: int
    ) -> None:
        """Of a long way not all descriptors are kept; what is opened again must be the same."""
        depth = 200
        make_chain(base, depth)
        with closing(Trail(base)) as trail:
            for _ in range(depth):
                trail.enter(b"d")
            (tmp_path / "d/d").rename(tmp_path / "moved")
            match replacement:
                case "a symlink":
                    (tmp_path / "d/d").symlink_to("../moved")
                case "a directory":
                    (tmp_path / "d/d/d/d").mkdir(parents=True)
                case "a file":
                    (tmp_path / "d/d").touch()
            depths = []
            while trail.depth:
                assert trail.leave() == b"d"
                depths.append(trail.depth)
            assert depths[-2:] == [1, 0]
            assert len(depths) < depth  # it never came to the directories that are closed
            assert trail.descriptor == base
        moved = os.open(tmp_path / "moved", os.O_RDONLY)
        remove_chain(moved, depth - 2)
        os.close(moved)

    def test_few_descriptors_and_linear_cost(
        self, base: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = 0
        open_on_mount = linux.open_on_mount

        def count(directory: int, name: bytes, flags: int) -> int:
            nonlocal opened
            opened += 1
            return open_on_mount(directory, name, flags)

        monkeypatch.setattr(linux, "open_on_mount", count)
        before = open_descriptors()
        costs = []
        for depth in (1_000, 4_000):
            make_chain(base, depth)
            opened = most = 0
            with closing(Trail(base)) as trail:
                for number in range(depth):
                    trail.enter(b"d")
                    if number % 50 == 0:
                        most = max(most, open_descriptors() - before)
                for number in range(depth):
                    assert os.fstat(trail.descriptor)
                    os.rmdir(trail.leave(), dir_fd=trail.descriptor)
                    if number % 50 == 0:
                        most = max(most, open_descriptors() - before)
                assert trail.depth == 0
            assert most < 110
            costs.append(opened)
        assert costs[1] < 5 * costs[0]
        assert open_descriptors() == before

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(moves=st.lists(st.integers(-60, 60), max_size=30))
    def test_any_way_up_and_down(self, moves: list[int], tmp_path: Path, base: int) -> None:
        if not (tmp_path / "d").exists():
            make_chain(base, 300)
        depth = 0
        inodes: dict[int, int] = {}
        with closing(Trail(base)) as trail:
            for move in moves:
                for _ in range(abs(move)):
                    if move > 0 and depth < 300:
                        trail.enter(b"d")
                        depth += 1
                    elif move < 0 and depth > 0:
                        trail.leave()
                        depth -= 1
                    assert trail.depth == depth
                    inode = os.fstat(trail.descriptor).st_ino
                    assert inodes.setdefault(depth, inode) == inode

    def test_an_error_on_the_way_up_leaves_a_way_that_can_be_used(
        self, base: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        depth = 100
        make_chain(base, depth)
        open_on_mount = linux.open_on_mount

        def fail(_: int, __: bytes, ___: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with closing(Trail(base)) as trail:
            for _ in range(depth):
                trail.enter(b"d")
            monkeypatch.setattr(linux, "open_on_mount", fail)
            with pytest.raises(OSError, match="Too many open files"):
                leave_all(trail)
            monkeypatch.setattr(linux, "open_on_mount", open_on_mount)
            assert 0 <= trail.depth < depth
            os.fstat(trail.descriptor)
            leave_all(trail)

    def test_tells_of_each_directory_that_it_enters(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        entered: list[bytes] = []
        with closing(Trail(base, on_enter=entered.append)) as trail:
            trail.enter(b"a")
            trail.enter(b"b")
        assert entered == [b"a", b"b"]


@pytest.mark.parametrize("path", [b".", b"a", b"a/b", b"...", b"a/..b", b"\xff\n", b"..a"])
def test_plain_paths(path: bytes) -> None:
    assert is_plain(path)


@pytest.mark.parametrize(
    "path", [b"", b"/", b"/a", b"a/", b"a//b", b"..", b"../a", b"a/..", b"a/../b", b"./a", b"a\0"]
)
def test_paths_that_lead_anywhere(path: bytes, base: int) -> None:
    assert not is_plain(path)
    with closing(Directories(base)) as directories, pytest.raises(ValueError, match="not a path"):
        directories.place_of(path)


class TestDirectories:
    def test_a_path_deeper_than_descriptors_are_many(self, base: int) -> None:
        depth = 1_500
        make_chain(base, depth)
        before = open_descriptors()
        with closing(Directories(base)) as directories:
            for at in (depth, 1, depth - 1, depth // 2, depth):
                place = directories.place_of(b"/".join([b"d"] * at))
                assert place is not None
                state = place.state()
                assert state is not None
                assert stat.S_ISDIR(state.st_mode)
                assert open_descriptors() - before < 110
            assert directories.place_of(b"/".join([b"d"] * (depth + 2))) is None
            assert sum(1 for _ in directories.files()) == depth + 1
        assert open_descriptors() == before
        remove_chain(base, depth)

    def test_walks_in_the_order_of_names(self, tmp_path: Path, base: int) -> None:
        for directory in ("b/x/y", "a", "c"):
            (tmp_path / directory).mkdir(parents=True)
        for file in ("b/x/1", "b/0", "a/2"):
            (tmp_path / file).touch()
        with closing(Directories(base)) as directories:
            paths = [file.path for file in directories.files()]
        assert paths == [b".", b"a", b"a/2", b"b", b"b/0", b"b/x", b"b/x/1", b"b/x/y", b"c"]

    def test_leaves_out_what_is_removed_meanwhile(self, tmp_path: Path, base: int) -> None:
        for name in ("a", "b/c", "d"):
            (tmp_path / name).mkdir(parents=True)
        outside = tmp_path.parent / f"{tmp_path.name} outside"
        outside.mkdir()
        (outside / "secret").touch()
        paths = []
        with closing(Directories(base)) as directories:
            for file in directories.files():
                paths.append(file.path)
                if file.path == b"a":
                    (tmp_path / "d").rmdir()
                elif file.path == b"b":
                    (tmp_path / "b").rename(outside / "b")
                    (tmp_path / "b").symlink_to(outside)
        assert paths == [b".", b"a", b"b"]

    def test_goes_on_beside_what_is_deep(self, tmp_path: Path) -> None:
        with (
            comb(tmp_path / "tree", 3, b"d") as root,
            closing(Directories(root)) as directories,
        ):
            paths = [file.path for file in directories.files()]
        assert paths == [b".", b"d", b"d/d", b"d/d/d", b"d/d/d~", b"d/d~", b"d~"]

    def test_others_may_use_the_directories_meanwhile(self, tmp_path: Path) -> None:
        with (
            comb(tmp_path / "tree", 40, b"d") as root,
            closing(Directories(root)) as directories,
        ):
            found = 0
            for number, _ in enumerate(directories.files()):
                assert directories.names(b"/".join([b"d"] * (7 * number % 40))) == [b"d", b"d~"]
                found += 1
        assert found == 81

    def test_memory_and_steps_are_linear_in_the_depth(self, tmp_path: Path) -> None:
        """What is left to do above is kept as names; paths would need the square of the depth."""
        depth, name = 75, b"twelve bytes"
        with (
            comb(tmp_path / "few", depth, name) as few,
            comb(tmp_path / "many", 4 * depth, name) as many,
        ):
            roots = {depth: few, 4 * depth: many}
            assert walk(few) == 2 * depth + 1
            assert walk(many) == 8 * depth + 1
            assert peak_memory(many) <= MOST_GROWTH * peak_memory(few)
            assert_linear(lambda size: lambda: walk(roots[size]), depth)

    def test_goes_no_farther_than_the_longest_path(self, tmp_path: Path) -> None:
        """Each of the files beyond is told of, and what is below them not looked at."""
        name = b"d" * 240
        deepest = b"/".join([name] * 17)
        assert len(deepest) == MAX_PATH_BYTES
        told: list[tuple[bytes, int | None]] = []
        with comb(tmp_path / "tree", 40, name) as root:
            with closing(Directories(root)) as directories:
                found = directories.files(lambda path, error: told.append((path, error.errno)))
                paths = [file.path for file in found]
            with (
                closing(Directories(root)) as directories,
                pytest.raises(OSError, match="File name too long"),
            ):
                list(directories.files())
        beyond = [deepest + b"/" + name, deepest + b"/" + name + b"~", deepest + b"~"]
        assert told == [(path, errno.ENAMETOOLONG) for path in beyond]
        assert paths[17] == deepest
        assert len(paths) == 1 + 17 + 16

    def test_the_longest_path_is_that_of_packages(self) -> None:
        """What can be unpacked can be packed again."""
        assert Limits().path_bytes == MAX_PATH_BYTES

    def test_an_error_is_raised_or_told(
        self,
        tmp_path: Path,
        base: int,
        needs_root: None,  # noqa: ARG002 - a fixture
    ) -> None:
        for name in ("a/b", "c"):
            (tmp_path / name).mkdir(parents=True)
        with mounted("none", tmp_path / "a", "-t", "tmpfs"):
            with closing(Directories(base)) as directories:
                with pytest.raises(OSError, match="cross-device"):
                    list(directories.files())
                told: list[tuple[bytes, int | None]] = []
                found = directories.files(lambda path, error: told.append((path, error.errno)))
                assert [file.path for file in found] == [b".", b"a", b"c"]
            assert told == [(b"a", errno.EXDEV)]


def make_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


NOT_REGULAR: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "char": make_device,
    "dir": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


class TestOpening:
    def test_a_regular_file(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "file").write_bytes(b"content")
        descriptor = Place(base, b"file").open()
        assert os.read(descriptor, 100) == b"content"
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)

    @pytest.mark.parametrize("kind", NOT_REGULAR)
    @pytest.mark.usefixtures("needs_devices")
    def test_nothing_else_is_opened(self, kind: str, tmp_path: Path, base: int) -> None:
        NOT_REGULAR[kind](tmp_path / "file")
        before = open_descriptors()
        with pytest.raises(NotRegularError, match=f"not a regular file but of type `{kind}`"):
            Place(base, b"file").open()
        assert open_descriptors() == before

    def test_a_symlink_is_not_followed(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("file")
        with pytest.raises(NotRegularError, match="`link`"):
            Place(base, b"link").open()

    def test_a_fifo_s_writer_does_not_notice(self, tmp_path: Path, base: int) -> None:
        """A writer that waits for a reader goes on waiting."""
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(NotRegularError):
            Place(base, b"fifo").open()
        # Had it been opened and closed, or were it open, this would be another error, or none.
        with pytest.raises(OSError, match="No such device or address"):
            os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)

    def test_a_device_without_a_driver_is_not_asked_for(
        self,
        tmp_path: Path,
        base: int,
        needs_devices: None,  # noqa: ARG002 - a fixture
    ) -> None:
        """Opening it would be the error that there is none."""
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(511, 7))
        with pytest.raises(OSError, match="No such device"):
            os.open(tmp_path / "device", os.O_RDONLY)
        with pytest.raises(NotRegularError, match="`char`"):
            Place(base, b"device").open()
