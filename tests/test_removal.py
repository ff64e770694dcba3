from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layermanager import linux
from layermanager.removal import RemovalRefusedError, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


ATTACKER = 65534


@pytest.fixture
def base(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the directory in which something is removed."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users reach: those of pytest are closed to them."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


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
        os.setgroups([])  # a login of root has the group of root's directories
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
    place: Path,
) -> None:
    if os.geteuid() == 0:
        os.chown(place, ATTACKER, ATTACKER)
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


def test_what_cannot_be_removed_is_an_error(tmp_path: Path, base: int) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    before = open_descriptors()
    with pytest.raises(OSError, match="too long"):
        remove_tree("n" * 300, dir_fd=base)
    with pytest.raises(NotADirectoryError):
        remove_tree("tree/d", dir_fd=(file := os.open(__file__, os.O_RDONLY)))
    os.close(file)
    assert open_descriptors() == before


class Outside:
    """A tree of root's beside the one that is removed, in a directory where all may write.

    It has the names of the tree's own, so a removal that came here would go on here.
    """

    def __init__(self, base: Path, names: Iterable[str]) -> None:
        self.path = base / "outside"
        self.path.mkdir()
        self.path.chmod(0o777)
        self._names = list(names)
        for name in self._names:
            (self.path / name / "below").mkdir(parents=True)
            (self.path / name / "below/file").write_text(name)

    def is_complete(self) -> bool:
        return all(
            (self.path / name / "below/file").read_text() == name
            and (self.path / name).stat().st_uid == os.geteuid()
            for name in self._names
        )


class OnEntering:
    """Does something once a removal has entered a directory, between its way down and up."""

    def __init__(self, name: bytes, action: Callable[[], object]) -> None:
        self._name = name
        self._action = action
        self.is_done = False

    def __call__(self, name: bytes) -> None:
        if name == self._name and not self.is_done:
            self.is_done = True
            self._action()


def symlink_instead(path: Path, target: Path) -> None:
    path.rename(path.with_name("was here"))
    path.symlink_to(target)


def exchange(path: Path, other: Path) -> None:
    linux.exchange(os.fsencode(path), os.fsencode(other))


def file_instead(path: Path, outside: Path) -> None:
    path.rename(outside / "d")
    path.touch()


TRICKS: dict[str, Callable[[Path, Path], object]] = {
    "moved away": lambda path, outside: path.rename(outside / "d"),
    "moved up": lambda path, _: path.rename(path.parent.parent.parent / "e"),
    "replaced by a symlink": symlink_instead,
    "exchanged": lambda path, outside: exchange(path, outside / "1"),
    "replaced by a file": file_instead,
    "gone": lambda path, _: shutil.rmtree(path),
}


class TestOthersChangeTheTree:
    @pytest.mark.parametrize("trick", TRICKS)
    @pytest.mark.parametrize("entered", ["c", "d", "e"])
    def test_nothing_outside_is_removed(
        self, trick: str, entered: str, tmp_path: Path, base: int
    ) -> None:
        """The directory ``d`` changes when the removal is above, in and below it."""
        for name in ("1", "2", "3"):
            (tmp_path / "tree/c" / name / "below").mkdir(parents=True)
        (tmp_path / "tree/c/d/e/f").mkdir(parents=True)
        outside = Outside(tmp_path, ["1", "2", "3", "e", "f"])
        directory = tmp_path / "tree/c/d"
        is_exchanged = trick == "exchanged"
        if is_exchanged:  # what comes into the tree goes with it
            (outside.path / "1").rename(outside.path / "kept")
            (outside.path / "1").mkdir()
        change = OnEntering(entered.encode(), lambda: TRICKS[trick](directory, outside.path))
        before = open_descriptors()
        remove_tree("tree", dir_fd=base, on_enter=change)
        assert change.is_done
        assert not (tmp_path / "tree").exists()
        if is_exchanged:
            shutil.rmtree(outside.path / "1")
            (outside.path / "kept").rename(outside.path / "1")
        assert outside.is_complete()
        assert open_descriptors() == before

    @pytest.mark.parametrize("trick", ["moved away", "replaced by a symlink", "gone"])
    def test_far_above_the_present_directory(self, trick: str, tmp_path: Path, base: int) -> None:
        """Where the descriptors of the way down were too many to be kept."""
        depth = 200
        (tmp_path / "tree/c/d").mkdir(parents=True)
        deep = (tmp_path / "tree/c/d").joinpath(*["x"] * depth, "last")
        deep.mkdir(parents=True)
        (tmp_path / "tree/c/x").mkdir()
        outside = Outside(tmp_path, ["x", "c"])
        directory = tmp_path / "tree/c/d"
        change = OnEntering(b"last", lambda: TRICKS[trick](directory, outside.path))
        remove_tree("tree", dir_fd=base, on_enter=change)
        assert change.is_done
        assert not (tmp_path / "tree").exists()
        assert outside.is_complete()

    def test_files_that_appear_are_removed(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "tree/a/b").mkdir(parents=True)
        held = os.open(tmp_path / "tree/a", os.O_RDONLY)

        def add() -> None:
            os.mkdir("new", dir_fd=held)
            os.close(os.open("new/file", os.O_CREAT | os.O_WRONLY, dir_fd=held))

        remove_tree("tree", dir_fd=base, on_enter=OnEntering(b"b", add))
        os.close(held)
        assert list(tmp_path.iterdir()) == []

    def test_files_that_appear_for_ever(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "tree/a").mkdir(parents=True)
        (tmp_path / "tree/kept/empty").mkdir(parents=True)
        count = 0
        directories: list[int] = []

        def add_below(name: bytes) -> None:
            """Make the parent of a directory that was entered not empty, each time again."""
            nonlocal count
            if name == b"a" or name.startswith(b"new"):
                count += 1
                os.mkdir(f"new{count}", dir_fd=directories[0])

        directories.append(os.open(tmp_path / "tree", os.O_RDONLY))
        with pytest.raises(RemovalRefusedError, match="tree: other processes keep changing it"):
            remove_tree("tree", dir_fd=base, on_enter=add_below)
        os.close(directories[0])
        assert 100 < count < 10_000
        assert not (tmp_path / "tree/kept").exists()
        remove_tree("tree", dir_fd=base)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("needs_root")
    def test_directories_are_closed_to_others_from_the_top(self, tmp_path: Path, base: int) -> None:
        (tmp_path / "tree/tmp/user/d").mkdir(parents=True)
        (tmp_path / "tree/tmp").chmod(0o1777)
        for name in ("tree/tmp/user", "tree/tmp/user/d"):
            os.chown(tmp_path / name, ATTACKER, ATTACKER)
        seen: list[tuple[int, int]] = []

        def look() -> None:
            for name in ("tree/tmp", "tree/tmp/user"):
                state = (tmp_path / name).stat()
                seen.append((state.st_uid, stat.S_IMODE(state.st_mode)))

        remove_tree("tree", dir_fd=base, on_enter=OnEntering(b"d", look))
        assert seen == [(0, 0o700), (0, 0o700)]

    @pytest.mark.usefixtures("needs_root")
    def test_a_directory_that_a_user_has_open_cannot_be_filled_any_more(self, place: Path) -> None:
        (place / "tree/user/d").mkdir(parents=True)
        os.chown(place / "tree/user", ATTACKER, ATTACKER)
        outcome: list[str] = []

        def attack() -> None:
            for attempt in ("os.mkdir('new')", "os.rename('d', '../d')", "os.chmod('.', 0o777)"):
                program = f"import os; os.setgid({ATTACKER}); os.setuid({ATTACKER}); {attempt}"
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    preexec_fn=lambda: os.fchdir(held),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                outcome.append(done.stderr.splitlines()[-1])

        held = os.open(place / "tree/user", os.O_RDONLY)
        base = os.open(place, os.O_RDONLY)
        remove_tree("tree", dir_fd=base, on_enter=OnEntering(b"d", attack))
        os.close(held)
        os.close(base)
        assert [line.partition(":")[0] for line in outcome] == ["PermissionError"] * 3
        assert list(place.iterdir()) == []


RACE = """
    import os, sys
    tree, outside = sys.argv[1:]
    os.setgid(65534)
    os.setuid(65534)
    directories = {name: os.stat(f"{tree}/{name}/d").st_mtime_ns for name in os.listdir(tree)}
    print("ready", flush=True)
    while os.path.exists(tree):
        for name, before in directories.items():
            try:
                if os.stat(f"{tree}/{name}/d").st_mtime_ns != before:  # it is being removed
                    os.rename(f"{tree}/{name}/d", f"{outside}/d")
            except OSError:
                continue
"""


@pytest.mark.usefixtures("needs_root")
def test_a_user_who_moves_directories_away_while_they_are_removed(place: Path) -> None:
    """A removal that goes up by ``..`` empties the tree outside in most rounds."""
    base = os.open(place, os.O_RDONLY)
    for _ in range(3):
        outside = Outside(place, map(str, range(20)))
        home = place / "tree/home"
        for number in range(5):
            directory = home / str(number)
            (directory / "d").mkdir(parents=True)
            for name in range(20):
                (directory / str(name)).mkdir()
            for name in range(1_000):
                (directory / f"d/{name}").touch()
            for path in (directory, directory / "d"):
                os.chown(path, ATTACKER, ATTACKER)
        attacker = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACE), home, outside.path],
            stdout=subprocess.PIPE,
            text=True,
        )
        with attacker:
            assert attacker.stdout is not None
            try:
                assert attacker.stdout.readline() == "ready\n"
                remove_tree("tree", dir_fd=base)
            except BaseException:
                attacker.kill()
                raise
        assert attacker.returncode == 0
        assert not (place / "tree").exists()
        assert outside.is_complete()
        shutil.rmtree(outside.path)
    os.close(base)


class TestRefusals:
    """What one part refuses keeps that part only."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for name in ("tree/a/mount", "tree/a/other", "tree/b/c"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "file").touch()
        return tmp_path / "tree"

    @staticmethod
    def left(tmp_path: Path) -> list[str]:
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))

    @pytest.mark.usefixtures("needs_root")
    def test_a_mount_is_neither_entered_nor_changed(
        self, tree: Path, tmp_path: Path, base: int
    ) -> None:
        """A bind mount has the same device."""
        source = tmp_path / "source"
        source.mkdir()
        source.chmod(0o777)
        (source / "precious").touch()
        subprocess.run(["mount", "--bind", source, tree / "a/mount"], check=True)
        try:
            with pytest.raises(RemovalRefusedError) as caught:
                remove_tree("tree", dir_fd=base)
        finally:
            subprocess.run(["umount", tree / "a/mount"], check=True)
        assert str(caught.value) == "tree/a/mount: a file system is mounted on it; unmount it"
        assert stat.S_IMODE(source.stat().st_mode) == 0o777
        shutil.move(source / "precious", tmp_path / "precious")
        source.rmdir()
        assert self.left(tmp_path) == [
            *("precious", "tree", "tree/a", "tree/a/mount", "tree/a/mount/file")
        ]
        remove_tree("tree", dir_fd=base)
        assert self.left(tmp_path) == ["precious"]

    @pytest.mark.usefixtures("needs_root")
    def test_a_file_on_which_one_is_mounted(self, tree: Path, tmp_path: Path, base: int) -> None:
        (tmp_path / "precious").write_text("kept")
        subprocess.run(["mount", "--bind", tmp_path / "precious", tree / "b/c/file"], check=True)
        try:
            with pytest.raises(RemovalRefusedError, match="tree/b/c/file: a file system is mount"):
                remove_tree("tree", dir_fd=base)
        finally:
            subprocess.run(["umount", tree / "b/c/file"], check=True)
        assert (tmp_path / "precious").read_text() == "kept"
        assert self.left(tree) == ["b", "b/c", "b/c/file"]

    @pytest.mark.usefixtures("needs_root")
    def test_the_tree_itself_is_a_mount(self, tree: Path, tmp_path: Path, base: int) -> None:
        (tmp_path / "mount").mkdir()
        subprocess.run(["mount", "--bind", tree, tmp_path / "mount"], check=True)
        try:
            with pytest.raises(RemovalRefusedError, match=r"^mount: a file system is mounted"):
                remove_tree("mount", dir_fd=base)
        finally:
            subprocess.run(["umount", tmp_path / "mount"], check=True)
        assert (tree / "a/other/file").exists()

    @pytest.mark.usefixtures("needs_root")
    def test_an_immutable_file(self, small_file_system: Path) -> None:
        (small_file_system / "tree/a").mkdir(parents=True)
        (small_file_system / "tree/b").mkdir(parents=True)
        file = small_file_system / "tree/a/file"
        file.touch()
        subprocess.run(["chattr", "+i", file], check=True)
        base = os.open(small_file_system, os.O_RDONLY)
        with pytest.raises(RemovalRefusedError, match="tree/a/file: it may not be removed; clear"):
            remove_tree("tree", dir_fd=base)
        assert self.left(small_file_system / "tree") == ["a", "a/file"]
        subprocess.run(["chattr", "-i", file], check=True)
        remove_tree("tree", dir_fd=base)
        os.close(base)

    def test_long_paths_are_cut_in_messages(self) -> None:
        error = RemovalRefusedError(errno.EBUSY, b"first/" + b"d/" * 5000 + b"last")
        assert len(str(error)) < 400
        assert str(error).startswith("first/d/")
        assert "/last: a file system" in str(error)


def test_a_symlink_that_takes_the_place_of_an_unreadable_directory_is_not_followed(
    place: Path,
) -> None:
    """Not even by the call that lets a user into directories of its own."""
    if os.geteuid() == 0:
        os.chown(place, ATTACKER, ATTACKER)
    program = "import layermanager.removal, shutil, pathlib\n" + textwrap.dedent(UNREADABLE)
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert [path.name for path in place.iterdir()] == ["victim"]
    assert stat.S_IMODE((place / "victim").stat().st_mode) == 0o500


UNREADABLE = """
    import os, sys
    from pathlib import Path
    from layermanager import linux
    from layermanager.removal import remove_tree
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    place = Path(sys.argv[1])
    (place / "tree/locked").mkdir(parents=True)
    (place / "tree/locked").chmod(0)
    (place / "victim").mkdir(mode=0o500)
    base = os.open(place, os.O_RDONLY)
    open_on_mount = linux.open_on_mount

    def swap_after_the_first_refusal(directory, name, flags):
        try:
            return open_on_mount(directory, name, flags)
        except PermissionError:
            (place / "tree/locked").rmdir()
            (place / "tree/locked").symlink_to(place / "victim")
            raise

    linux.open_on_mount = swap_after_the_first_refusal
    remove_tree("tree", dir_fd=base)
"""
