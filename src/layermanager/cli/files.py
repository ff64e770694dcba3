"""The entries of a layer's index, as lines like those of ``ls -l``."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from layermanager.unpack.fields import shown

if TYPE_CHECKING:
    from layermanager.unpack.index import IndexEntry

_FIRST_SECOND: Final = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LAST_SECOND: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())

_TYPES: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def file_line(entry: IndexEntry) -> str:
    """One path on a line."""
    if entry.hard_link:
        return f"hard link {shown(entry.path)} to {shown(entry.hard_link)}"
    if entry.kind == "char" and entry.device == (0, 0):
        return f"whiteout  {shown(entry.path)}"
    size = "{},{}".format(*entry.device) if entry.kind in ("char", "block") else str(entry.size)
    target = f" -> {shown(entry.link)}" if entry.link else ""
    return (
        f"{stat.filemode(_TYPES[entry.kind] | entry.mode)} "
        f"{'{}:{}'.format(*entry.owner):>9} {size:>10} {_moment_text(entry.mtime_ns)} "
        f"{shown(entry.path)}{target}"
    )


def _moment_text(mtime_ns: int) -> str:
    """A time to the minute, in UTC; an archive may hold some that no calendar has."""
    seconds = mtime_ns // 1_000_000_000
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        return f"@{seconds}".rjust(16)
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "minutes")[:16]
