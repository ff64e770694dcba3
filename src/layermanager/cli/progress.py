"""How far the installations are: a line a layer on a terminal, plain lines elsewhere.

What is shown is computed by pure functions. A library would draw more beautifully; rich and what
it needs take 12 MB of a device's disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from layermanager.cli.tables import cut, escaped, padded, short_digest, size_text
from layermanager.model import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TextIO

    from layermanager.model import Digest, LayerProgress

_SECONDS_BETWEEN_FRAMES: Final = 0.1
_BAR_CELLS: Final = 16
_NAME_COLUMNS: Final = 24
_UP: Final = "\x1b[{}A"
_CLEAR_BELOW: Final = "\x1b[J"
_RUNNING: Final = (Phase.INSTALLING, Phase.COMMITTING)


class Display(Protocol):
    """Shows progress, and what is logged meanwhile; for one thread.

    Every method raises ``OSError`` when the stream cannot be written to.
    """

    def update(self, progress: LayerProgress) -> None:
        """Take note of a moment of one installation."""

    def write(self, text: str) -> None:
        """Print *text*, whole lines, so that it stays readable."""

    def refresh(self) -> None:
        """Show how much time has passed; to be called every now and then."""

    def end(self) -> None:
        """Show the last state; from then on progress is not shown."""


@dataclass(frozen=True, slots=True)
class Row:
    """One layer on the display.

    Attributes:
        progress: its last moment.
        since: when it began to be installed, on a clock of seconds.
    """

    progress: LayerProgress
    since: float


def frame(rows: Mapping[Digest, Row], now: float, *, columns: int, lines: int) -> list[str]:
    """The lines that show *rows* at the time *now*, no more of them than *lines*.

    Where there are too many layers those that are being installed are shown, and a summary.
    """
    shown = list(rows.values())
    if len(shown) > lines:
        running = [row for row in shown if row.progress.phase in _RUNNING]
        shown = running[: max(0, lines - 1)]
        return [*(_line(row, now, columns) for row in shown), _summary(rows.values(), columns)]
    return [_line(row, now, columns) for row in shown]


def plain_line(progress: LayerProgress) -> str:
    """A moment of one installation as a line for a log."""
    name = _name(progress)
    match progress.phase:
        case Phase.FAILED:
            return f"{name}: failed: {escaped(str(progress.error))}"
        case Phase.INSTALLING if progress.size:
            return f"{name}: installing, {size_text(progress.size)}"
        case phase:
            return f"{name}: {phase}"


def _line(row: Row, now: float, columns: int) -> str:
    progress = row.progress
    details = str(progress.phase)
    if progress.phase is Phase.INSTALLING:
        parts = (_bar(progress), _amount(progress), _rate(row, now))
        details = " ".join(part for part in parts if part)
    room = max(8, columns - len(details) - 3)
    name = padded(cut(_name(progress), room), min(room, _NAME_COLUMNS))
    return cut(f"{name}  {details}", columns - 1)


def _summary(rows: Iterable[Row], columns: int) -> str:
    phases = [row.progress.phase for row in rows]
    counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in Phase if phase in phases)
    return cut(f"{len(phases)} layers: {counts}", columns - 1)


def _name(progress: LayerProgress) -> str:
    desired = progress.desired
    if not desired.layer_id:
        return short_digest(desired.digest)
    return escaped(f"{desired.layer_id} {desired.version}".rstrip())


def _bar(progress: LayerProgress) -> str:
    if not progress.size:
        return ""
    filled = min(_BAR_CELLS, progress.transferred * _BAR_CELLS // progress.size)
    return f"[{'#' * filled}{'.' * (_BAR_CELLS - filled)}]"


def _amount(progress: LayerProgress) -> str:
    if not progress.size:
        return size_text(progress.transferred)
    return f"{size_text(progress.transferred)} of {size_text(progress.size)}"


def _rate(row: Row, now: float) -> str:
    seconds = now - row.since
    if seconds < _SECONDS_BETWEEN_FRAMES:
        return ""  # of so short a time it would say nothing
    return f"{size_text(int(row.progress.transferred / seconds))}/s"


class PlainDisplay:
    """A line for each change of phase, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phases: dict[Digest, Phase] = {}

    def update(self, progress: LayerProgress) -> None:
        """Print a line if the layer's phase changed."""
        digest = progress.desired.digest
        if self._phases.get(digest) is progress.phase or progress.phase is Phase.PENDING:
            return
        self._phases[digest] = progress.phase
        print(plain_line(progress), file=self._stream, flush=True)

    def write(self, text: str) -> None:
        """Print *text* between the lines of the layers."""
        print(text, end="", file=self._stream, flush=True)

    def refresh(self) -> None:
        """Do nothing: time alone changes no phase."""

    def end(self) -> None:
        """Do nothing: all was printed when it happened."""


class TerminalDisplay:
    """A line a layer, drawn anew in place.

    Args:
        stream: the terminal.
        now: a clock of seconds.
        size: tells the terminal's columns and lines.
    """

    def __init__(
        self, stream: TextIO, *, now: Callable[[], float], size: Callable[[], tuple[int, int]]
    ) -> None:
        self._stream = stream
        self._now = now
        self._size = size
        self._rows: dict[Digest, Row] = {}
        self._drawn_lines = 0
        self._drawn_at = 0.0

    def update(self, progress: LayerProgress) -> None:
        """Note it, and draw unless something was drawn just now."""
        now = self._now()
        row = self._rows.get(progress.desired.digest)
        if row is None or row.progress.phase is Phase.PENDING:
            row = Row(progress, since=now)
        self._rows[progress.desired.digest] = replace(row, progress=progress)
        self._draw_if_due(now)

    def write(self, text: str) -> None:
        """Print *text* above the lines of the layers."""
        self._stream.write(self._erasure() + text)
        self._drawn_lines = 0
        self._draw(self._now())

    def refresh(self) -> None:
        """Draw the rates as they are by now, unless something was drawn just now."""
        if self._rows:
            self._draw_if_due(self._now())

    def end(self) -> None:
        """Draw the last state, and leave it."""
        self._draw(self._now())
        self._rows.clear()
        self._drawn_lines = 0

    def _draw_if_due(self, now: float) -> None:
        if now - self._drawn_at >= _SECONDS_BETWEEN_FRAMES:
            self._draw(now)

    def _draw(self, now: float) -> None:
        columns, lines = self._size()
        drawn = frame(self._rows, now, columns=columns, lines=max(1, lines - 1))
        self._stream.write(self._erasure() + "".join(f"{line}\n" for line in drawn))
        self._stream.flush()
        self._drawn_lines = len(drawn)
        self._drawn_at = now

    def _erasure(self) -> str:
        """What takes the lines of the layers away from the terminal."""
        return _UP.format(self._drawn_lines) + _CLEAR_BELOW if self._drawn_lines else ""
