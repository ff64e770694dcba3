from __future__ import annotations

import io
import os
import pty
import select
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cli.progress import PlainDisplay, Row, TerminalDisplay, frame, plain_line
from layermanager.cli.tables import columns_of, escaped
from layermanager.errors import LayerManagerError
from layermanager.model import DesiredLayer, Digest, LayerProgress, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

MIB = 1024 * 1024


def layer(name: str, version: str = "1.0.0") -> DesiredLayer:
    return DesiredLayer(
        digest=Digest("sha256:" + name.encode().hex().ljust(64, "0")[:64]),
        url="file:///layer",
        layer_id=name,
        version=version,
    )


def rows_of(*moments: LayerProgress, since: float = 0.0) -> dict[Digest, Row]:
    return {moment.desired.digest: Row(moment, since) for moment in moments}


def test_a_line_a_layer_with_bar_amount_and_rate() -> None:
    rows = rows_of(
        LayerProgress(layer("done"), Phase.INSTALLED),
        LayerProgress(layer("half"), Phase.INSTALLING, transferred=5 * MIB, size=10 * MIB),
        LayerProgress(layer("unknown"), Phase.INSTALLING, transferred=5 * MIB),
        LayerProgress(layer("ready"), Phase.COMMITTING),
        LayerProgress(layer("later"), Phase.PENDING),
    )

    assert frame(rows, 2.0, columns=80, lines=24) == [
        "done 1.0.0                installed",
        "half 1.0.0                [########........] 5.00 MiB of 10.0 MiB 2.50 MiB/s",
        "unknown 1.0.0             5.00 MiB 2.50 MiB/s",
        "ready 1.0.0               committing",
        "later 1.0.0               pending",
    ]


def test_there_is_no_rate_before_time_has_passed() -> None:
    rows = rows_of(LayerProgress(layer("new"), Phase.INSTALLING, 0, size=MIB), since=7.0)

    assert frame(rows, 7.0, columns=80, lines=24) == [
        "new 1.0.0                 [................] 0 B of 1.00 MiB"
    ]


def test_a_server_that_sends_more_than_it_should_does_not_burst_the_bar() -> None:
    rows = rows_of(LayerProgress(layer("big"), Phase.INSTALLING, transferred=9 * MIB, size=MIB))

    assert "[################] 9.00 MiB of 1.00 MiB" in frame(rows, 1.0, columns=80, lines=24)[0]


def test_a_layer_without_a_name_is_shown_by_its_digest() -> None:
    unnamed = DesiredLayer(digest=Digest("sha256:" + "ab" * 32), url="file:///layer")

    assert plain_line(LayerProgress(unnamed, Phase.INSTALLED)) == "sha256:abababababab: installed"


@given(st.text(st.characters()), st.text(st.characters()))
def test_whatever_fails_is_one_line(name: str, message: str) -> None:
    named = DesiredLayer(Digest("sha256:" + "ab" * 32), "file:///layer", layer_id=name)
    error = LayerManagerError(message)
    assert plain_line(LayerProgress(named, Phase.FAILED, error=error)).isprintable()


def test_a_long_list_is_summarised() -> None:
    rows = rows_of(
        *(LayerProgress(layer(f"done-{number}"), Phase.INSTALLED) for number in range(50)),
        LayerProgress(layer("broken"), Phase.FAILED),
        LayerProgress(layer("at-work"), Phase.INSTALLING, transferred=MIB),
        *(LayerProgress(layer(f"later-{number}"), Phase.PENDING) for number in range(48)),
    )

    assert frame(rows, 1.0, columns=80, lines=10) == [
        "at-work 1.0.0             1.00 MiB 1.00 MiB/s",
        "100 layers: 48 pending, 1 installing, 50 installed, 1 failed",
    ]


moments = st.builds(
    LayerProgress,
    desired=st.builds(layer, st.text(max_size=60).map(escaped), st.text(max_size=20)),
    phase=st.sampled_from(Phase),
    transferred=st.integers(0, 2**60),
    size=st.none() | st.integers(0, 2**60),
)


@given(
    moments=st.lists(moments, max_size=30),
    now=st.floats(0.0, 1e6),
    columns=st.integers(80, 200),
    lines=st.integers(1, 25),
)
def test_a_frame_never_leaves_its_terminal(
    moments: list[LayerProgress], now: float, columns: int, lines: int
) -> None:
    drawn = frame(rows_of(*moments), now, columns=columns, lines=lines)

    assert len(drawn) <= lines
    assert all(columns_of(line) < columns for line in drawn)
    assert all(line.isprintable() for line in drawn)


@given(st.lists(moments, min_size=1, max_size=3), st.integers(2, 79))
def test_a_narrow_terminal_gets_the_beginnings_of_lines(
    moments: list[LayerProgress], columns: int
) -> None:
    drawn = frame(rows_of(*moments), 1.0, columns=columns, lines=5)

    assert all(columns_of(line) < columns for line in drawn)


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (LayerProgress(layer("a"), Phase.INSTALLING, size=MIB), "a 1.0.0: installing, 1.00 MiB"),
        (LayerProgress(layer("a"), Phase.INSTALLING), "a 1.0.0: installing"),
        (LayerProgress(layer("a"), Phase.COMMITTING), "a 1.0.0: committing"),
        (LayerProgress(layer("a", ""), Phase.INSTALLED), "a: installed"),
        (
            LayerProgress(layer("a"), Phase.FAILED, error=LayerManagerError("no such host")),
            "a 1.0.0: failed: no such host",
        ),
        (LayerProgress(layer("a\x1b[2J"), Phase.INSTALLED), "a\\x1b[2J 1.0.0: installed"),
    ],
)
def test_plain_lines(progress: LayerProgress, line: str) -> None:
    assert plain_line(progress) == line


def test_a_plain_display_prints_a_line_a_phase() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)

    display.update(LayerProgress(layer("a"), Phase.PENDING))
    for transferred in range(100):
        display.update(LayerProgress(layer("a"), Phase.INSTALLING, transferred, size=100))
    display.write("WARNING: something\n")
    display.update(LayerProgress(layer("a"), Phase.COMMITTING))
    display.update(LayerProgress(layer("a"), Phase.INSTALLED))
    display.end()

    assert stream.getvalue().splitlines() == [
        "a 1.0.0: installing, 100 B",
        "WARNING: something",
        "a 1.0.0: committing",
        "a 1.0.0: installed",
    ]


class Screen:
    """Understands what a ``TerminalDisplay`` says to a terminal; ``lines`` is what a person sees.

    Only what the display uses is known: line feeds, "up" and "clear all below".
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.received = ""
        self.lines: list[str] = []
        self._row = 0

    def read(self) -> list[str]:
        while select.select([self._descriptor], [], [], 0)[0]:
            text = os.read(self._descriptor, 65536).decode()
            self.received += text
            self._obey(text)
        return self.lines

    def _obey(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            content = line
            while content.startswith("\x1b["):
                code = content[2:].lstrip("0123456789")[0]
                number, _, content = content[2:].partition(code)
                if code == "A":
                    self._row -= int(number)
                else:
                    assert code == "J"
                    del self.lines[self._row :]
            assert content.endswith("\r\n") or not content  # a terminal adds the carriage return
            if content:
                self.lines[self._row :] = [content.removesuffix("\r\n")]
                self._row += 1


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, Screen]]:
    master, slave = pty.openpty()
    try:
        with open(slave, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
            yield stream, Screen(master)
    finally:
        os.close(master)


@pytest.fixture
def now() -> list[float]:
    """The time, which a test moves."""
    return [0.0]


@pytest.fixture
def make_display(
    terminal: tuple[TextIO, Screen], now: list[float]
) -> Callable[[int], TerminalDisplay]:
    return lambda lines: TerminalDisplay(terminal[0], now=lambda: now[0], size=lambda: (80, lines))


def test_a_terminal_shows_the_lines_in_place(
    terminal: tuple[TextIO, Screen],
    now: list[float],
    make_display: Callable[[int], TerminalDisplay],
) -> None:
    screen, display = terminal[1], make_display(24)
    for name in ("a", "b"):
        now[0] += 1
        display.update(LayerProgress(layer(name), Phase.PENDING))
    assert screen.read() == [
        "a 1.0.0                   pending",
        "b 1.0.0                   pending",
    ]

    now[0] += 1
    display.update(LayerProgress(layer("b"), Phase.INSTALLING, 0, size=2 * MIB))
    now[0] += 1
    display.update(LayerProgress(layer("b"), Phase.INSTALLING, MIB, size=2 * MIB))
    assert screen.read() == [
        "a 1.0.0                   pending",
        "b 1.0.0                   [########........] 1.00 MiB of 2.00 MiB 1.00 MiB/s",
    ]

    display.update(LayerProgress(layer("a"), Phase.INSTALLED))
    display.update(LayerProgress(layer("b"), Phase.INSTALLED))
    display.end()
    assert screen.read() == [
        "a 1.0.0                   installed",
        "b 1.0.0                   installed",
    ]


def test_the_terminal_is_not_drawn_for_every_piece(
    terminal: tuple[TextIO, Screen],
    now: list[float],
    make_display: Callable[[int], TerminalDisplay],
) -> None:
    screen, display = terminal[1], make_display(24)
    now[0] = 1.0
    for transferred in range(1000):
        display.update(LayerProgress(layer("a"), Phase.INSTALLING, transferred, size=1000))
    screen.read()

    assert screen.received.count("\n") == 1


def test_what_is_logged_stays_above_the_lines(
    terminal: tuple[TextIO, Screen],
    now: list[float],
    make_display: Callable[[int], TerminalDisplay],
) -> None:
    screen, display = terminal[1], make_display(24)
    now[0] = 1.0
    display.update(LayerProgress(layer("a"), Phase.COMMITTING))

    display.write("WARNING: something\n")
    display.update(LayerProgress(layer("a"), Phase.INSTALLED))
    display.end()
    display.write("WARNING: after the end\n")
    display.end()

    assert screen.read() == [
        "WARNING: something",
        "a 1.0.0                   installed",
        "WARNING: after the end",
    ]


def test_no_line_of_a_longer_frame_stays(
    terminal: tuple[TextIO, Screen],
    now: list[float],
    make_display: Callable[[int], TerminalDisplay],
) -> None:
    screen, display = terminal[1], make_display(5)
    for number in range(3):
        now[0] += 1
        display.update(LayerProgress(layer(f"a{number}"), Phase.INSTALLING))
    assert len(screen.read()) == 3

    for number in range(8):
        now[0] += 1
        display.update(LayerProgress(layer(f"a{number}"), Phase.INSTALLED))

    assert screen.read() == ["8 layers: 8 installed"]
