"""Figures for people, as Markdown, and for programs, as JSON."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bench.figures import Figure

BEGIN: Final = "<!-- results: written by `make bench` -->"
END: Final = "<!-- end of results -->"
_HEADINGS: Final = ("measure", "ours", "compared with", "ratio", "goal")


def markdown(
    facts: Mapping[str, str], figures: Iterable[Figure], left_out: Mapping[str, str]
) -> str:
    """The facts of the machine, a table for each subject, and what was left out and why."""
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    lines += [f"- left out: `{name}`: {reason}" for name, reason in left_out.items()]
    for subject, about_it in itertools.groupby(figures, lambda figure: figure.subject):
        lines += ["", f"**{subject}**", "", *_table([_HEADINGS, *map(_cells, about_it)])]
    return "\n".join(lines) + "\n"


def document(
    facts: Mapping[str, str], figures: Iterable[Figure], left_out: Mapping[str, str]
) -> str:
    """The same as JSON, with the value of every run."""
    return json.dumps(
        {
            "machine": facts,
            "figures": [
                {
                    "subject": figure.subject,
                    "measure": figure.measure,
                    "unit": figure.ours.unit.value,
                    "ours": figure.ours.values,
                    "peer": figure.peer and figure.peer.name,
                    "peers": figure.peer and figure.peer.series.values,
                    "ratio": figure.ratio,
                    "goal": figure.goal,
                }
                for figure in figures
            ],
            "left_out": left_out,
        },
        indent=2,
    )


def update_page(page: Path, results: str) -> None:
    """Put *results* between the two marks in the Markdown *page*.

    Raises:
        ValueError: the marks are not there.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: no place for results: it lacks {BEGIN} or {END}")
    page.write_text(f"{before}{BEGIN}\n\n{results}\n{END}{after}", encoding="utf-8")


def _cells(figure: Figure) -> tuple[str, ...]:
    unit = figure.ours.unit
    compared = goal = ratio = ""
    if figure.peer is not None:
        compared = f"{figure.peer.name}: {unit.text(figure.peer.series.median)}"
    if figure.ratio is not None:
        ratio = f"{figure.ratio:.2f}"
    if figure.goal is not None:
        goal = "≤ " + (unit.text(figure.goal) if figure.ratio is None else f"{figure.goal:.2f}")
    return (figure.measure, unit.text(figure.ours.median), compared, ratio, goal)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]
