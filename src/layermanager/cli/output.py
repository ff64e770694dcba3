"""Printing: results on standard output, all else on standard error.

Here all text is escaped, wherever it came from: those who call need not.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from layermanager.cli import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO


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
    _print(tables.escaped(text))


def write_json(document: object) -> None:
    """Print the result as JSON, in ASCII: names of files may be no UTF-8."""
    _print(json.dumps(document, indent=2))


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
        write(f"{name.ljust(width)}  {value}")


def tell(text: str) -> None:
    """Print a line on standard error; where nobody reads it the exit status still says it."""
    with suppress(OSError):
        click.echo(tables.escaped(text), err=True)


def tell_lines(text: str) -> None:
    """Print lines that are structured by this program on standard error."""
    for line in text.removesuffix("\n").split("\n"):
        tell(line)


def _print(text: str) -> None:
    try:
        click.echo(text)
    except OSError as error:
        raise OutputError(error) from error


def drop_unwritten(stream: TextIO | None) -> None:
    """Drop what *stream* still buffers because its reader is gone or its disk is full.

    Python would try once more to write it at its end, and make that failure the exit status.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
