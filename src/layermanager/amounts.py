"""Amounts of space: bytes and inodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_ANNOTATION: Final = "io.layermanager.layer.content-bytes"
"""The bytes of all files of a layer, without the holes of sparse ones; decimal."""
INODES_ANNOTATION: Final = "io.layermanager.layer.inodes"
"""The files, directories, symlinks, devices and whiteouts of a layer; decimal."""

_LARGEST_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class Amount:
    """Space on a partition.

    Attributes:
        size: bytes, in whole blocks where they are on a disk.
        inodes: files, directories, symlinks and devices; a hard link takes none.
    """

    size: int = 0
    inodes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.size + other.size, self.inodes + other.inodes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.size - other.size, self.inodes - other.inodes)

    def at_least(self, other: Amount) -> Amount:
        """Return the larger number of each kind."""
        return Amount(max(self.size, other.size), max(self.inodes, other.inodes))

    def at_most(self, other: Amount) -> Amount:
        """Return the smaller number of each kind."""
        return Amount(min(self.size, other.size), min(self.inodes, other.inodes))

    def fits(self, other: Amount) -> bool:
        """Return whether *other* is at least as much of each kind."""
        return self.size <= other.size and self.inodes <= other.inodes


def annotated(annotations: Mapping[str, str]) -> Amount:
    """Return what a publisher says of a layer: its content and inodes; 0 for what is not said."""
    return Amount(
        _number(annotations.get(CONTENT_ANNOTATION, "")),
        _number(annotations.get(INODES_ANNOTATION, "")),
    )


def annotations_of(content: Amount) -> dict[str, str]:
    """Return the annotations of a layer with this content and so many inodes."""
    return {CONTENT_ANNOTATION: str(content.size), INODES_ANNOTATION: str(content.inodes)}


def _number(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= _LARGEST_DIGITS
    return int(text) if is_number else 0


NOTHING: Final = Amount()
UNCOUNTED: Final = 2**62
"""The inodes of a file system that does not count them, such as btrfs."""
