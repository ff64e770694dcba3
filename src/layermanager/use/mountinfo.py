"""The table of mounts as the kernel tells it, line by line (proc_pid_mountinfo(5)). All pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.use.layer_places import layers_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

OVERLAY: Final = b"overlay"

_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
_DEVICE: Final = re.compile(rb"[0-9]{1,10}:[0-9]{1,10}")
_SHOWN_BYTES: Final = 200
_LINE_BYTES: Final = 1024 * 1024
"""More than the options of an overlay take: at most 500 directories of 256 bytes, escaped."""
_NAME_BYTES: Final = 130  # the longest name of a layer, and what is around it
_TOO_LONG: Final = b"too long: "

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_BACKSLASHED: Final = re.compile(rb"\\(.)", re.DOTALL)
_BETWEEN_DIRECTORIES: Final = re.compile(rb"(?:[^:\\]|\\.)+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the table; names are bytes, as file names are.

    Attributes:
        number: tells mounts apart, in all namespaces, as long as they last.
        device: tells file systems apart: the numbers of ``st_dev``, as ``major:minor``.
        root: which directory of the file system is mounted, as a path within it.
        mount_point: where it is mounted, seen from the root directory of the table's process.
        kind: the type of the file system.
        source: what it was mounted from; of an overlay any text.
        options: of the file system, as the kernel wrote them.
    """

    number: int
    device: str
    root: bytes
    mount_point: bytes
    kind: bytes
    source: bytes
    options: bytes


@dataclass(frozen=True, slots=True)
class MountLines:
    """A table of mounts, read line by line.

    Attributes:
        mounts: the mounts, in the order of the table.
        unreadable: the lines that are none, as they are.
    """

    mounts: tuple[Mount, ...]
    unreadable: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class TableExcerpt:
    """What is needed of a table.

    Attributes:
        text: the lines that are needed, and those that cannot be read.
        others: the numbers of the other mounts.
    """

    text: bytes
    others: frozenset[int] = frozenset()


def excerpt(pieces: Iterable[bytes], is_needed: Callable[[Mount], bool]) -> TableExcerpt:
    """Return what is needed of a table, which comes in *pieces* of any size.

    Other users make tables long. Of a mount that is not needed only the number is kept.
    """
    lines: list[bytes] = []
    others: set[int] = set()
    for line in _lines(pieces):
        try:
            mount = parse_line(line)
        except ValueError:
            lines.append(line)
            continue
        if is_needed(mount):
            lines.append(line)
        else:
            others.add(mount.number)
    return TableExcerpt(b"\n".join(lines), frozenset(others))


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return the lines in *pieces*.

    In place of a line that is too long come lines that cannot be read, with the layers in it.
    """
    begun = b""
    is_long = False
    for piece in pieces:
        first, *more = piece.split(b"\n")
        begun += first
        for following in more:
            yield _without_text(begun) if is_long else begun
            begun, is_long = following, False
        if len(begun) > _LINE_BYTES:
            yield _without_text(begun)
            begun, is_long = begun[-_NAME_BYTES:], True
    if begun:
        yield _without_text(begun) if is_long else begun


def _without_text(line: bytes) -> bytes:
    """Return what remains of a part of a line that is too long."""
    return _TOO_LONG + " ".join(layers_named(line)).encode("ascii")


def parse_table(text: bytes) -> MountLines:
    """Read all lines of a table. One that cannot be read has no effect on the others.

    Other users choose the names in it. The kernel escapes blanks, tabs, line feeds, backslashes
    and hashes there, but no other character, such as a carriage return.
    """
    mounts: list[Mount] = []
    unreadable: list[bytes] = []
    for line in text.split(b"\n"):
        if not line:
            continue
        try:
            mounts.append(parse_line(line))
        except ValueError:
            unreadable.append(line)
    return MountLines(tuple(mounts), tuple(unreadable))


def parse_line(line: bytes) -> Mount:
    """Read a line.

    Raises:
        ValueError: it is none.
    """
    fields, _, rest = line.partition(b" - ")
    try:
        number, _, device, root, mount_point, *_ = fields.split(b" ")
        kind, source, options = rest.split(b" ", 2)  # some file systems escape no blanks in there
    except ValueError:
        raise _not_a_line(line) from None
    if not _NUMBER.fullmatch(number) or not _DEVICE.fullmatch(device):
        raise _not_a_line(line)
    return Mount(
        number=int(number),
        device=device.decode("ascii"),
        root=_plain(root),
        mount_point=_plain(mount_point),
        kind=kind,
        source=_plain(source),
        options=options,
    )


def _not_a_line(line: bytes) -> ValueError:
    return ValueError(f"not a line of a table of mounts: {line[:_SHOWN_BYTES]!r}")


def lower_directories(options: bytes) -> tuple[bytes, ...]:
    """The lower directories that the *options* of an overlay name, as they were given to it.

    They are in one option ``lowerdir``, with colons between, which are escaped within a name; or,
    since Linux 6.7, in options ``lowerdir+`` and ``datadir+`` of their own, which escape nothing.
    """
    found: list[bytes] = []
    for option in options.split(b","):
        key, _, value = option.partition(b"=")
        match key:
            case b"lowerdir":
                found += map(_unescaped, _BETWEEN_DIRECTORIES.findall(_plain(value)))
            case b"lowerdir+" | b"datadir+":
                found.append(_plain(value))
    return tuple(found)


def escaped(directory: bytes) -> bytes:
    """The name of a *directory* so that it can stand in an option of an overlay."""
    return re.sub(rb"([\\:,])", rb"\\\1", directory)


def _plain(text: bytes) -> bytes:
    """What the kernel wrote without its escapes: three octal digits for what would mislead."""
    if b"\\" not in text:
        return text
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), text)


def _unescaped(directory: bytes) -> bytes:
    return _BACKSLASHED.sub(rb"\1", directory)
