from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from layermanager.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def base(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the directory in which something is removed."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used


def test_removes_files_of_all_kinds(tmp_path: Path, base: int) -> None:
    for name in ("file", "link", "fifo", "tree"):
        if name == "file":
            (tmp_path / name).write_text("x")
        elif name == "link":
            (tmp_path / name).symlink_to("/")
        elif name == "fifo":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name / "a" / "b").mkdir(parents=True)
            (tmp_path / name / "a" / "f").write_text("x")
            os.mkfifo(tmp_path / name / "a" / "b" / "fifo")
        remove_tree(name, dir_fd=base)
        assert list(tmp_path.iterdir()) == []


def test_what_is_gone_already_is_no_error(base: int) -> None:
    remove_tree("missing", dir_fd=base)
    remove_tree(b"missing", dir_fd=base)


def test_names_are_any_bytes(tmp_path: Path, base: int) -> None:
    name = b"\xff\n\xfe"
    os.mkdir(name, dir_fd=base)
    os.mkdir(name + b"/" + name, dir_fd=base)
    remove_tree(name, dir_fd=base)
    assert list(tmp_path.iterdir()) == []


def test_symlinks_are_not_followed(tmp_path: Path, base: int) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "absolute").symlink_to(kept)
    (tree / "relative").symlink_to("../kept")
    (tree / "itself").symlink_to(".")
    remove_tree("tree", dir_fd=base)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


def test_any_depth(tmp_path: Path, base: int) -> None:
    depth = 5_000
    assert depth > 4 * sys.getrecursionlimit()
    current = os.dup(base)
    os.mkdir("tree", dir_fd=base)
    name = "tree"
    for _ in range(depth):
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
        os.mkdir("d", dir_fd=current)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=current))
        name = "d"
    os.close(current)
    before = open_descriptors()
    remove_tree("tree", dir_fd=base)
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


def test_many_entries(tmp_path: Path, base: int) -> None:
    tree = tmp_path / "tree"
    for directory in range(5):
        (tree / str(directory)).mkdir(parents=True)
        for file in range(200):
            (tree / str(directory) / str(file)).touch()
            (tree / f"{directory}-{file}").touch()
    remove_tree("tree", dir_fd=base)
    assert not tree.exists()


def test_an_interrupted_removal_can_be_taken_up_again(tmp_path: Path, base: int) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "c").mkdir()
    remove_tree("a", dir_fd=(half := os.open(tree, os.O_RDONLY)))
    os.close(half)
    remove_tree("tree", dir_fd=base)
    remove_tree("tree", dir_fd=base)
    assert not tree.exists()


LOCKED = """
    import os, stat, sys
    from pathlib import Path
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    base = os.open(sys.argv[1], os.O_RDONLY)
    tree = Path(sys.argv[1], "tree")
    for name in ("none", "read", "write", "search", "a/b/c"):
        (tree / name / "below").mkdir(parents=True)
        (tree / name / "below" / "file").write_text("x")
    for name in ("none/below", "a/b/c", "a/b", "a", "none"):
        (tree / name).chmod(0)
    (tree / "read").chmod(0o444)
    (tree / "write").chmod(0o222)
    (tree / "search").chmod(0o111)
    tree.chmod(0o500)
    from layermanager.removal import remove_tree
    remove_tree("tree", dir_fd=base)
"""


def test_an_ordinary_user_removes_his_own_directories_whatever_their_modes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("locked")
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
        make_reachable(place)
    # What the user nobody may not read is imported before.
    program = "import layermanager.removal, shutil, pathlib\n" + textwrap.dedent(LOCKED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert list(place.iterdir()) == []


def make_reachable(path: Path) -> None:
    """Let others through the directories of pytest, which only their owner may enter."""
    for directory in path.parents:
        mode = directory.stat().st_mode
        if directory.stat().st_uid == os.geteuid() and not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)


def test_what_cannot_be_removed_is_an_error(tmp_path: Path, base: int) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    before = open_descriptors()
    with pytest.raises(OSError, match="too long"):
        remove_tree("n" * 300, dir_fd=base)
    with pytest.raises(NotADirectoryError):
        remove_tree("tree/d", dir_fd=(file := os.open(__file__, os.O_RDONLY)))
    os.close(file)
    assert open_descriptors() == before
