"""What `make run` shows works, and again on what the first run left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOUR = Path(__file__).parent.parent / "examples" / "tour.py"


def tour(directory: Path) -> str:
    return subprocess.run(
        [sys.executable, TOUR], cwd=directory, check=True, capture_output=True, text=True
    ).stdout


def states(directory: Path) -> dict[str, str]:
    """State by layer, as `ls` tells of the store that the tour left."""
    command = [sys.executable, "-m", "layermanager", "--work-dir", "var/store", "ls"]
    listed = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    return {row[1]: row[3] for row in rows}


def actions(told: str) -> list[tuple[str, str]]:
    """What the tables of the story say was done to which layer, in order."""
    words = [line.split() for line in told.splitlines()]
    return [
        (row[0], row[1])
        for row in words
        if len(row) == 6 and row[3].startswith("sha256:") and row[0] != "$"
    ]


def test_the_tour_tells_its_story_twice(tmp_path: Path) -> None:
    for _ in range(2):
        told = tour(tmp_path)

        assert actions(told) == [
            ("installed", "encodings"),
            ("installed", "email"),
            ("kept", "encodings"),
            ("cached", "email"),
            ("installed", "asyncio"),
            ("kept", "encodings"),
            ("kept", "asyncio"),
            ("restored", "email"),
        ]
        assert states(tmp_path) == dict.fromkeys(("encodings", "email", "asyncio"), "desired")


def test_the_tour_removes_no_directory_of_somebody_else(tmp_path: Path) -> None:
    kept = tmp_path / "var" / "precious"
    kept.parent.mkdir()
    kept.write_text("mine")

    finished = subprocess.run(
        [sys.executable, TOUR], cwd=tmp_path, check=False, capture_output=True, text=True
    )

    assert finished.returncode == 1
    assert "was not made by the tour" in finished.stderr
    assert kept.read_text() == "mine"
    assert list(kept.parent.iterdir()) == [kept]
