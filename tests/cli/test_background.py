"""Progress that is shown in the background: whatever the terminal does, installing goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, command, write_desired

from layermanager.cli.background import BackgroundDisplay
from layermanager.cli.progress import TerminalDisplay
from layermanager.model import DesiredLayer, Digest, LayerProgress, Phase
from manager_fixtures import Node

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS = 30
LAYER = DesiredLayer(digest=Digest("sha256:" + "ab" * 32), url="file:///layer", layer_id="app")


def progress(transferred: int) -> LayerProgress:
    return LayerProgress(LAYER, Phase.INSTALLING, transferred, size=1000)


@dataclass
class Recording:
    """A display that notes what it is told, once it may; it may be told to fail."""

    told: list[LayerProgress | str] = field(default_factory=list)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    refreshed: threading.Event = field(default_factory=threading.Event)
    fails: bool = False
    ended: bool = False

    def update(self, progress: LayerProgress) -> None:
        self._note(progress)

    def write(self, text: str) -> None:
        self._note(text)

    def refresh(self) -> None:
        self.refreshed.set()

    def end(self) -> None:
        self.ended = True

    def _note(self, told: LayerProgress | str) -> None:
        self.may_go_on.wait()
        self.told.append(told)
        if self.fails:
            raise BrokenPipeError(errno.EPIPE, "nobody reads")


def test_all_is_shown_in_order_and_then_the_end() -> None:
    display = Recording()
    display.may_go_on.set()

    with BackgroundDisplay(display) as background:
        background.update(progress(1))
        background.write("a line\n")
        background.update(progress(2))

    assert display.told == [progress(1), "a line\n", progress(2)]
    assert display.ended


def test_who_tells_does_not_wait_for_the_terminal() -> None:
    display = Recording()

    with BackgroundDisplay(display) as background:
        for transferred in range(1000):
            background.update(progress(transferred))
        display.may_go_on.set()

    assert len(display.told) == 1000


def test_time_passes_though_nothing_is_told() -> None:
    display = Recording()

    with BackgroundDisplay(display):
        assert display.refreshed.wait(PATIENCE_SECONDS)


def test_a_terminal_that_went_away_ends_the_showing_and_nothing_else() -> None:
    display = Recording(fails=True)
    display.may_go_on.set()

    with BackgroundDisplay(display) as background:
        background.update(progress(1))
        background.update(progress(2))
        background.write("a line\n")

    assert display.told == [progress(1)]


def test_the_rate_of_a_transfer_that_stalls_goes_down() -> None:
    reader, writer = os.pipe()
    seconds = iter([0.0, 1.0, 10.0])
    with open(reader), open(writer, "w") as stream:  # noqa: PTH123 - descriptors have no path
        display = TerminalDisplay(stream, now=lambda: next(seconds), size=lambda: (80, 24))
        display.update(progress(0))
        display.update(progress(1000))
        display.refresh()
        drawn = os.read(reader, 4096).decode()

    before, _, after = drawn.rpartition("\x1b")
    assert "0.98 KiB of 0.98 KiB 0.98 KiB/s\n" in before
    assert after.endswith("0.98 KiB of 0.98 KiB 100 B/s\n")


@pytest.mark.parametrize("is_json", [False, True])
def test_nobody_reads_the_progress(tmp_path: Path, *, is_json: bool) -> None:
    node = Node(tmp_path)
    layer = node.publish("app")
    path = write_desired(tmp_path / "desired.json", [layer])
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["apply", str(path), *(["--json"] if is_json else [])]

    try:
        finished = subprocess.run(
            command(node.config.working_dir, *arguments),
            stdout=subprocess.PIPE,
            stderr=writer,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    finally:
        os.close(writer)

    assert finished.returncode == 0
    assert b"app" in finished.stdout
    node.assert_has([layer])


def test_errors_that_nobody_reads_are_in_the_status(tmp_path: Path) -> None:
    node = Node(tmp_path)
    layer, lost = node.publish("app"), node.publish("lost")
    (node.published / "lost").unlink()
    path = write_desired(tmp_path / "desired.json", [layer, lost])
    reader, writer = os.pipe()
    os.close(reader)

    try:
        finished = subprocess.run(
            command(node.config.working_dir, "apply", path),
            stdout=subprocess.PIPE,
            stderr=writer,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    finally:
        os.close(writer)

    assert finished.returncode == 1
    assert b"failed" in finished.stdout
    node.assert_has([layer])


def test_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        finished = subprocess.run(
            command(tmp_path, "ls"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    assert finished.returncode == 1
    assert finished.stderr == "error: cannot write to standard output: No space left on device\n"
    assert CommandLine(tmp_path, capfd)("ls").status == 0
