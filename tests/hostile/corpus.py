"""All hostile cases."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from hostile import (
    compressed,
    desired_states,
    headers,
    links,
    mount_tables,
    packages,
    paths,
    sparse_files,
    whiteouts,
    worker_output,
)

if TYPE_CHECKING:
    from hostile.cases import Case

CASES: Final[tuple[Case, ...]] = (
    *paths.CASES,
    *links.CASES,
    *whiteouts.CASES,
    *headers.CASES,
    *sparse_files.CASES,
    *compressed.CASES,
    *packages.CASES,
)

SMALL_BYTES: Final = 32 * 1024


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    """What is fuzzed as *target* begins with these. Some take their time to be built."""
    if target == "desired":
        return desired_states.STATES
    if target == "mounts":
        return mount_tables.TABLES
    if target == "index":
        return worker_output.INDEXES
    if target == "messages":
        return worker_output.CONVERSATIONS
    return tuple(data for _, data in small_inputs())


def small_inputs() -> list[tuple[str, bytes]]:
    """The names and bytes of the cases that are small enough to be changed at random."""
    inputs = [(case.name, case.data()) for case in CASES]
    return [(name, data) for name, data in inputs if len(data) <= SMALL_BYTES]
