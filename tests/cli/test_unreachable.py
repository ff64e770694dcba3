"""Stores that cannot be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("arguments", [["ls"], ["df"], ["show", "abcd"]])
def test_a_store_that_cannot_be_reached_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    # Of a directory that may not be searched, root would not mind.
    finished = CommandLine(tmp_path / ("x" * 300), capfd)(*arguments)

    assert finished.status == 1
    assert finished.err.startswith("error: cannot reach the database: ")
    assert finished.out == ""
