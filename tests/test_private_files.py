from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from layermanager.private_files import (
    PRIVATE_DIRECTORY,
    make_directories,
    make_directory,
    replace_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UMASKS = pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
REPLACING = """
    import sys
    from pathlib import Path
    from layermanager.private_files import replace_file
    sys.stdin.read(1)
    for number in range(100):
        replace_file(Path(sys.argv[1]), f"{sys.argv[2]}{number}".encode() * 1000)
"""
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from layermanager.private_files import replace_file
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    replace_file(Path(sys.argv[1]), b"never")
"""
STOPPED = """
    import os, signal, sys
    from pathlib import Path
    from layermanager.private_files import replace_file
    sync = os.fsync
    def stop(_):
        os.fsync = sync
        os.kill(os.getpid(), signal.SIGSTOP)
    os.fsync = stop
    replace_file(Path(sys.argv[1]), b"of the other")
"""


@contextmanager
def umask_of(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def start(code: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def names_in(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


class TestDirectories:
    @UMASKS
    @pytest.mark.parametrize("mode", [0o700, 0o755])
    def test_the_mode_is_the_one_that_was_asked_for(
        self, tmp_path: Path, umask: int, mode: int
    ) -> None:
        with umask_of(umask):
            make_directories(tmp_path / "a/b/c", mode)
        assert mode_of(tmp_path / "a/b/c") == mode
        assert mode_of(tmp_path / "a/b") == mode_of(tmp_path / "a") == 0o755

    def test_one_that_is_there_keeps_its_mode(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o751)
        make_directory(tmp_path, PRIVATE_DIRECTORY)
        make_directories(tmp_path, PRIVATE_DIRECTORY)
        assert mode_of(tmp_path) == 0o751

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError):
            make_directory(tmp_path / "file", PRIVATE_DIRECTORY)


class TestReplacing:
    @UMASKS
    def test_only_its_owner_may_read_it(self, tmp_path: Path, umask: int) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        path.chmod(0o644)
        with umask_of(umask):
            replace_file(path, b"new")
        assert (path.read_bytes(), mode_of(path)) == (b"new", 0o600)
        assert names_in(tmp_path) == ["file"]

    def test_several_processes_may_do_it_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        processes = [start(REPLACING, path, name) for name in "abcd"]
        for process in processes:  # they have loaded all that they need
            assert process.stdin is not None
            process.stdin.write(b"!")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0, 0, 0, 0]
        for process in processes:
            process.communicate()
        assert path.read_bytes() in [f"{name}99".encode() * 1000 for name in "abcd"]
        assert names_in(tmp_path) == ["file"]

    def test_a_failure_leaves_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            replace_file(path, b"new")
        assert names_in(tmp_path) == ["file"]

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with start(KILLED, path) as process:
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert len(names_in(tmp_path)) == 1
        (tmp_path / ".file.swp").touch()  # an editor's
        replace_file(path, b"new")
        assert names_in(tmp_path) == [".file.swp", "file"]

    def test_what_a_living_process_writes_is_not_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with start(STOPPED, path) as process:
            os.waitpid(process.pid, os.WUNTRACED)
            replace_file(path, b"of this one")
            assert path.read_bytes() == b"of this one"
            process.send_signal(signal.SIGCONT)
            process.wait()
        assert process.returncode == 0
        assert path.read_bytes() == b"of the other"
        assert names_in(tmp_path) == ["file"]
