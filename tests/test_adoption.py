"""Indexes are made of, and markers removed from, trees that others change meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from deep_trees import comb
from layermanager import linux
from layermanager.adoption import remove_markers, write_index
from layermanager.cancellation import Cancellation
from layermanager.errors import StoreError
from layermanager.steps import Step, unannounced
from layermanager.unpack.index import read_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class ChangeAt(Cancellation):
    """Is asked once a file, and does something when it is asked for the Nth time."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        super().__init__()
        self._left = number
        self._action = action

    def check(self) -> None:
        super().check()
        self._left -= 1
        if self._left == 0:
            self._action()


def indexed(tree: Path, cancellation: Cancellation | None = None) -> list[str]:
    """The paths of the index that is made of *tree*."""
    with tempfile.TemporaryFile() as index:
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            write_index(root, index.fileno(), cancellation or Cancellation(), unannounced)
        finally:
            os.close(root)
        index.seek(0)
        return [os.fsdecode(entry.path) for entry in read_index(index, "index")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a directory ``c/d``, beside one outside with the same names."""
    for top in ("tree/c", "outside"):
        (tmp_path / top / "d/e").mkdir(parents=True)
        for name in ("1", "d/2", "d/e/3", "z"):
            (tmp_path / top / name).write_text(top)
    (tmp_path / "outside/secret").touch()
    return tmp_path / "tree"


def symlink_instead(path: Path, outside: Path) -> None:
    path.rename(outside.parent / "was here")
    path.symlink_to(outside)


TRICKS: dict[str, Callable[[Path, Path], object]] = {
    "moved away": lambda path, outside: path.rename(outside / "d/d"),
    "moved up": lambda path, _: path.rename(path.parent.parent.parent / "moved"),
    "replaced by a symlink": symlink_instead,
    "exchanged": lambda path, outside: linux.exchange(
        os.fsencode(path), os.fsencode(outside / "d")
    ),
}
IN_ORDER = [".", "c", "c/1", "c/d", "c/d/2", "c/d/e", "c/d/e/3", "c/z"]


class TestWritingAnIndex:
    def test_of_a_quiet_tree(self, tree: Path) -> None:
        assert indexed(tree) == IN_ORDER

    @pytest.mark.parametrize("trick", TRICKS)
    @pytest.mark.parametrize("at", range(1, len(IN_ORDER) + 5))  # once a part of a file, too
    def test_nothing_outside_is_read(self, trick: str, at: int, tree: Path) -> None:
        """Whenever a directory goes, also when the walk is in it or below it."""
        directory, outside = tree / "c/d", tree.parent / "outside"
        files = indexed(tree, ChangeAt(at, lambda: TRICKS[trick](directory, outside)))
        assert set(files) <= set(IN_ORDER)
        assert {".", "c", "c/1", "c/z"} <= set(files)
        assert files == sorted(files, key=IN_ORDER.index)

    def test_a_file_that_becomes_a_fifo(self, tree: Path) -> None:
        """It is neither opened nor waited for."""

        def replace() -> None:
            (tree / "c/1").unlink()
            os.mkfifo(tree / "c/1")

        at = IN_ORDER.index("c/1") + 1
        with pytest.raises(StoreError, match="c/1: changed while it was read; stop what"):
            indexed(tree, ChangeAt(at, replace))

    @pytest.mark.parametrize("size", [3, 30])
    def test_a_file_that_changes(self, size: int, tree: Path) -> None:
        at = IN_ORDER.index("c/1") + 1
        with pytest.raises(StoreError, match="c/1: changed while it was read"):
            indexed(tree, ChangeAt(at, lambda: (tree / "c/1").write_bytes(bytes(size))))

    def test_a_file_that_grows_without_end(self, tree: Path) -> None:
        """It is read up to the size that it had."""

        def grow() -> None:
            with (tree / "c/1").open("ab") as file:
                file.write(bytes(1 << 20))

        (tree / "c/1").write_bytes(bytes(3 << 20))
        at = IN_ORDER.index("c/1") + 2  # when the first part was read
        with pytest.raises(StoreError, match="c/1: changed while it was read"):
            indexed(tree, ChangeAt(at, grow))

    @pytest.mark.usefixtures("needs_root")
    def test_a_mount_in_the_tree(self, tree: Path) -> None:
        outside = tree.parent / "outside"
        subprocess.run(["mount", "--bind", outside, tree / "c/d"], check=True)
        try:
            with pytest.raises(StoreError, match="c/d: hidden by a mounted file system; unmount"):
                indexed(tree)
        finally:
            subprocess.run(["umount", tree / "c/d"], check=True)

    def test_a_symlink_that_becomes_a_file(self, tree: Path) -> None:
        (tree / "a").symlink_to("c")

        def replace() -> None:
            (tree / "a").unlink()
            (tree / "a").touch()

        with pytest.raises(StoreError, match="a: changed while it was read"):
            indexed(tree, ChangeAt(2, replace))

    def test_the_first_of_several_names_is_gone(self, tree: Path) -> None:
        """The index must not name it as the other path of a hard link."""
        os.link(tree / "c/1", tree / "c/0")
        with tempfile.TemporaryFile() as index:
            root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
            change = ChangeAt(3, (tree / "c/0").unlink)
            write_index(root, index.fileno(), change, unannounced)
            os.close(root)
            index.seek(0)
            entries = {entry.path: entry for entry in read_index(index, "index")}
        assert b"c/0" not in entries
        assert (entries[b"c/1"].hard_link, entries[b"c/1"].size) == (b"", len("tree/c"))

    def test_a_deep_tree(self, tmp_path: Path) -> None:
        (tmp_path / "tree").joinpath(*["d"] * 400).mkdir(parents=True)
        assert len(indexed(tmp_path / "tree")) == 401

    def test_a_path_without_end(self, tree: Path) -> None:
        """Users choose how deep their directories are."""
        with (
            comb(tree / "c/d/deep", 40, b"d" * 240),
            pytest.raises(StoreError, match=r"^c/d/deep/d+…d+: path longer than 4096 bytes"),
        ):
            indexed(tree)


@pytest.mark.usefixtures("needs_devices")
class TestRemovingMarkers:
    @pytest.fixture
    def marked(self, tree: Path) -> Path:
        """The same tree: each directory has a marker that is done, also outside."""
        for directory in (*tree.rglob("*"), *(tree.parent / "outside").rglob("*"), tree.parent):
            if directory.is_dir():
                (directory / ".wh.gone").touch()
                os.mknod(directory / "gone", stat.S_IFCHR)
        return tree

    @staticmethod
    def remove(tree: Path, action: Callable[[], object], *, at: int) -> int:
        """Remove markers, and act when those of the Nth directory are about to be removed."""
        left = at

        def on_step(step: Step) -> None:
            nonlocal left
            assert step is Step.REMOVE_MARKERS
            left -= 1
            if left == 0:
                action()

        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return remove_markers(root, Cancellation(), on_step)
        finally:
            os.close(root)

    @pytest.mark.parametrize("trick", ["moved away", "moved up", "replaced by a symlink"])
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_nothing_outside_is_removed(self, trick: str, at: int, marked: Path) -> None:
        directory, outside = marked / "c/d", marked.parent / "outside"
        before = sorted(path for path in outside.rglob(".wh.gone"))
        self.remove(marked, lambda: TRICKS[trick](directory, outside), at=at)
        left = [path for path in outside.rglob(".wh.gone") if "d/d" not in str(path)]
        assert sorted(left) == before
        assert (marked.parent / ".wh.gone").exists()
        assert not (marked / "c/.wh.gone").exists()

    def test_a_marker_that_is_gone_or_a_directory_by_then(self, marked: Path) -> None:
        def change() -> None:
            (marked / "c/.wh.gone").unlink()
            (marked / "c/.wh.gone").mkdir()

        assert self.remove(marked, change, at=1) == 2
        assert (marked / "c/.wh.gone").is_dir()
        assert self.remove(marked, lambda: None, at=1) == 0

    def test_directories_keep_their_times(self, marked: Path) -> None:
        os.utime(marked / "c/d", ns=(1, 2))
        assert self.remove(marked, lambda: None, at=1) == 3
        assert (marked / "c/d").stat().st_mtime_ns == 2

    def test_an_opaque_directory(self, tree: Path) -> None:
        (tree / "c/.wh..wh..opq").touch()
        (tree / "c/d/.wh..wh..opq").touch()
        os.setxattr(tree / "c", "trusted.overlay.opaque", b"y")
        assert self.remove(tree, lambda: None, at=1) == 1
        assert not (tree / "c/.wh..wh..opq").exists()
        assert (tree / "c/d/.wh..wh..opq").exists()

    def test_other_errors_are_raised(self, marked: Path) -> None:
        def fail() -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with pytest.raises(OSError, match="Input/output"):
            self.remove(marked, fail, at=1)
