"""Out of descriptors: an operation fails by name and leaves none open, wherever that happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layermanager.testing.trees import snapshot

PATIENCE_SECONDS = 100
CHILD = Path(__file__).with_name("exhausted_child.py")
NAMED = {
    "StoreError",
    "StorageError",
    "SourceError",
    "UnpackerError",
    "ExhaustedError",
}


def walk(action: str, directory: Path) -> list[dict[str, Any]]:
    """What came of each try; the last one is the first that worked."""
    child = subprocess.run(
        [sys.executable, CHILD, action, directory],
        env={**os.environ, "PYTHONPATH": str(CHILD.parent)},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    return [json.loads(line) for line in child.stdout.splitlines()]


@pytest.mark.parametrize("action", ["apply", "open", "look"])
def test_every_place_at_which_descriptors_run_out(tmp_path: Path, action: str) -> None:
    *failures, last = walk(action, tmp_path)
    assert failures
    for one in (*failures, last):
        assert one["left"] == []
    for one in failures:
        for error in one["errors"]:
            assert error["type"] in NAMED
            assert any(
                words in error["message"]
                for words in ("Too many open files", "unable to open", "out of file descriptors")
            )
    assert last["errors"] == []
    if action == "apply":
        assert any(len(one["errors"]) == 1 for one in failures)  # one layer, and no other
        layers = [path for path in (tmp_path / "work/layers").glob("sha256/*") if path.is_dir()]
        assert len(layers) == 3
        assert all(b"data" in snapshot(layer) for layer in layers)
