"""What a benchmark returns: figures with their peers and goals, as values."""

from __future__ import annotations

import enum
import statistics
from dataclasses import dataclass


class Unit(enum.Enum):
    """What is counted, and how it is written for people."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MEGABYTES = "MB"
    MEBIBYTES = "MiB"
    MEGABYTES_A_SECOND = "MB/s"
    SECONDS_A_GIGABYTE = "s/GB"
    CONNECTIONS = "connections"

    def text(self, value: float) -> str:
        """*value* with three significant digits or more, and the unit; what is counted whole."""
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
        if self is Unit.CONNECTIONS:
            digits = 0
        return f"{value:,.{digits}f} {self.value}"


@dataclass(frozen=True, slots=True)
class Series:
    """The values of several runs.

    Attributes:
        values: one a run.
        unit: what they count.
    """

    values: tuple[float, ...]
    unit: Unit

    @property
    def median(self) -> float:
        """The value that stands for all of them: an outlier, up or down, does not move it."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Peer:
    """What our figure is compared with, measured by turns with ours in the same run.

    Attributes:
        name: a short name of it.
        series: its values.
    """

    name: str
    series: Series


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        subject: what was done.
        measure: what was looked at.
        ours: our values.
        peer: what they are compared with, if anything.
        goal: the most that the ratio to the peer should be or, without a peer, our own figure.
    """

    subject: str
    measure: str
    ours: Series
    peer: Peer | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours by the peer's; below 1 we take less."""
        return None if self.peer is None else self.ours.median / self.peer.series.median
