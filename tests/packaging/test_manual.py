"""The manual page and the completion that the package brings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "packaging/manual.py"
DATE = "2026-11-27"


def manual() -> str:
    """The page as troff."""
    done = subprocess.run([sys.executable, PAGE, DATE], check=True, capture_output=True, text=True)
    return done.stdout


def layermanager(*arguments: str, **environment: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "layermanager", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def test_it_has_every_command_and_option() -> None:
    page = manual().replace(r"\-", "-")
    names = re.findall(
        r"^  ([a-z]+) ", layermanager("--help").partition("Commands:")[2], re.MULTILINE
    )
    assert "apply" in names
    for name in names:
        assert f"layermanager {name}" in page
        for option in re.findall(r"^  (--[a-z-]+)", layermanager(name, "--help"), re.MULTILINE):
            assert option in page


def test_troff_has_nothing_to_complain_of(needs_groff: None) -> None:  # noqa: ARG001
    formatted = subprocess.run(
        # For the terminal's driver: no colours, and neither bold nor underlined.
        ["groff", "-man", "-ww", "-Tutf8", "-K", "utf8", "-P", "-cbou"],
        check=True,
        capture_output=True,
        text=True,
        input=manual(),
    )
    assert formatted.stderr == ""
    assert "LAYERMANAGER(1)" in formatted.stdout
    assert DATE in formatted.stdout


def test_a_shell_completes_it() -> None:
    words = {"COMP_WORDS": "layermanager ch", "COMP_CWORD": "1"}
    assert layermanager(_LAYERMANAGER_COMPLETE="bash_complete", **words) == "plain,check\n"
    words = {"COMP_WORDS": "layermanager check --ind", "COMP_CWORD": "2"}
    assert layermanager(_LAYERMANAGER_COMPLETE="bash_complete", **words) == "plain,--index\n"
