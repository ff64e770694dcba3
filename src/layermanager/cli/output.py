"""Printing: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from layermanager.cli import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class OutputError(Exception):
    """Standard output cannot be written to; as an ``OSError`` click would not let it through."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write to standard output: {reason.strerror}")
        self.reason = reason


def write(text: str) -> None:
    """Print a line of the result.

    Raises:
        OutputError: nobody reads it, or it cannot be kept.
    """
    try:
        click.echo(text)
    except OSError as error:
        raise OutputError(error) from error


def write_json(document: object) -> None:
    """Print the result as JSON, in ASCII: names of files may be no UTF-8."""
    write(json.dumps(document, indent=2))


def write_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]
) -> None:
    """Print a table that fits the terminal."""
    for line in tables.table(head, rows, width=shutil.get_terminal_size().columns, right=right):
        write(line)


def write_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one below the other."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        write(f"{name.ljust(width)}  {tables.printable(value)}")


def tell(text: str) -> None:
    """Print a line on standard error; where nobody reads it the exit status still says it."""
    with suppress(OSError):
        click.echo(tables.printable(text), err=True)
