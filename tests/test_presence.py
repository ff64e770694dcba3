"""An error of the disk is no answer to whether a file exists, whichever Python asks."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

import layermanager
from layermanager.presence import exists, is_directory

SOURCES: Final = Path(layermanager.__file__).parent
ASKING: Final = {"exists", "is_dir", "is_file", "is_symlink", "is_mount", "is_socket", "is_fifo"}
"""Methods of ``Path`` that say no to any error since Python 3.14."""


def questions(source: str) -> list[int]:
    """Return the lines that ask so; entries of directories and ``os.path`` never changed."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ASKING
        and ast.unparse(node.func.value) not in {"entry", "os.path"}
    ]


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    assert [exists(tmp_path / name) for name in (".", "file", "link")] == [True] * 3
    assert [is_directory(tmp_path / name) for name in (".", "file", "link")] == [True, False, True]
    for name in ("nothing", "file/below", "loop", "dangling"):
        assert not exists(tmp_path / name)
        assert not is_directory(tmp_path / name)


@pytest.mark.parametrize("ask", [exists, is_directory])
def test_what_cannot_be_told_is_an_error(tmp_path: Path, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(OSError, match="too long"):
        ask(tmp_path / ("x" * 300))


def test_no_module_asks_a_path_itself() -> None:
    assert questions("path.exists()\nif entry.is_dir(): Path(x).is_dir()") == [1, 2]
    found = [
        f"{path.relative_to(SOURCES)}:{line}"
        for path in SOURCES.rglob("*.py")
        if "testing" not in path.parts
        for line in questions(path.read_text())
        if path.name != "presence.py"
    ]
    assert found == []
