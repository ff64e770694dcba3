"""``scripts/matrix`` refuses rows that it cannot run before it makes anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MATRIX = Path(__file__).parents[1] / "scripts/matrix"


def matrix(*rows: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MATRIX, *rows], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("row", ["bookworm", "bookworm:", "bookworm:daemon", "../x:root", "-h"])
def test_what_is_no_row_is_refused(row: str) -> None:
    done = matrix("trixie:root", row)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"scripts/matrix: not a row: {row}\nusage: scripts/matrix [ROW…]")
    assert "bookworm:user" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make systems")
def test_an_ordinary_user_is_refused() -> None:
    done = matrix("trixie:root")
    assert done.returncode == 2
    assert "needs root" in done.stderr
