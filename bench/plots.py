"""Pictures of figures, as SVG: bars for shares, a line for growth.

They are plain enough to be written here: a library for plots would be the largest dependency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.figures import Figure

_WIDTH: Final = 720
_FONT: Final = "font-family: sans-serif; font-size: 13px"
_OURS: Final = "#2a6f97"
_GUIDE: Final = "#b0b0b0"
_LINE_HEIGHT: Final = 26
_LABELS: Final = 330
_BY_KIND: Final = "by kind of work"
_NOTHING: Final = "nothing to do, "
_TOTALS: Final = frozenset({"all", "the floor"})


@dataclass(frozen=True, slots=True)
class _Point:
    x: float
    y: float
    label: str


def plots(figures: Sequence[Figure]) -> dict[str, str]:
    """The pictures that can be drawn of *figures*, SVG documents by their file names."""
    drawn = {}
    kinds = [
        figure
        for figure in figures
        if figure.subject.endswith(_BY_KIND) and figure.measure not in _TOTALS
    ]
    if kinds:
        drawn["cost-by-kind.svg"] = _bars(kinds)
    growth = [figure for figure in figures if figure.subject.startswith(_NOTHING)]
    if growth:
        drawn["cost-by-layers.svg"] = _line(growth)
    return drawn


def _bars(figures: Sequence[Figure]) -> str:
    """A bar a figure, as long as its value."""
    longest = max(figure.ours.median for figure in figures)
    room = _WIDTH - _LABELS - 80
    parts = [_text(10, 24, figures[0].subject, weight="bold")]
    for number, figure in enumerate(figures):
        y = 44 + number * _LINE_HEIGHT
        length = max(1.0, room * figure.ours.median / longest)
        label = figure.measure.partition(":")[2].strip() or figure.measure
        parts += [
            _text(_LABELS - 8, y + 14, label.partition(",")[0], anchor="end"),
            f'<rect x="{_LABELS}" y="{y}" width="{length:.1f}" height="18" fill="{_OURS}"/>',
            _text(_LABELS + length + 6, y + 14, figure.ours.unit.text(figure.ours.median)),
        ]
    return _document(44 + len(figures) * _LINE_HEIGHT + 10, parts)


def _line(figures: Sequence[Figure]) -> str:
    """A point a figure against the number in its subject, both logarithmic; and what is linear."""
    left, top, width, height = 60, 44, _WIDTH - 160, 240
    counts = [_count(figure) for figure in figures]
    values = [figure.ours.median for figure in figures]
    linear = [values[0] * count / counts[0] for count in counts]
    low, high = min(values), max(*values, *linear)

    def place(count: float, value: float) -> tuple[float, float]:
        x = left + width * math.log(count / counts[0]) / math.log(counts[-1] / counts[0])
        return x, top + height - height * math.log(value / low) / math.log(high / low)

    points = [
        _Point(*place(count, value), figure.ours.unit.text(value))
        for count, value, figure in zip(counts, values, figures, strict=True)
    ]
    guide = [_Point(*place(*pair), "") for pair in zip(counts, linear, strict=True)]
    parts = [
        _text(
            10, 24, "Being told to have what is there already, by number of layers", weight="bold"
        ),
        _path(guide, _GUIDE),
        _text(guide[-1].x + 8, guide[-1].y + 12, "if linear"),
        _path(points, _OURS),
    ]
    for point, count in zip(points, counts, strict=True):
        parts += [
            f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="4" fill="{_OURS}"/>',
            _text(point.x + 8, point.y - 6, point.label),
            _text(point.x, top + height + 24, f"{count:,}", anchor="middle"),
        ]
    return _document(top + height + 40, parts)


def _count(figure: Figure) -> int:
    return int(figure.subject.removeprefix(_NOTHING).split()[0].replace(",", ""))


def _path(points: Sequence[_Point], colour: str) -> str:
    corners = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in points)
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _document(height: int, parts: Sequence[str]) -> str:
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{_FONT}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *parts,
        "</svg>",
    )
    return "\n".join(lines) + "\n"
