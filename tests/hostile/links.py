"""Links by which later entries should be led out of the layer, and entries that change places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hostile.cases import OUTSIDE, SECRET, Case, Refusal, layer, raw_entry
from layermanager.errors import ArchiveError

if TYPE_CHECKING:
    from layermanager.testing.layers import LayerBuilder

_DANGLING: Final = Refusal(ArchiveError, "which is not in the layer")
_IN_THE_WAY: Final = Refusal(ArchiveError, "a file is in the place of a directory")
_TOO_MANY: Final = Refusal(ArchiveError, "too many symlinks on the way")


def _absolute(below: str) -> dict[str, str]:
    """What an absolute path makes inside the layer: its directories."""
    names = below.strip("/").split("/")
    return {"/".join(names[: count + 1]): "directory" for count in range(len(names))}


def _many_directories() -> LayerBuilder:
    builder = layer()
    for number in range(200):
        builder.file(f"d{number}/d/file")
    return builder


_SYMLINKS: Final = (
    Case(
        "write through a relative symlink",
        layer().symlink("link", "../../directory").file("link/file", b"x").tar,
        {
            "link": "symlink to ../../directory",
            "directory": "directory",
            "directory/file": "file x",
        },
    ),
    Case(
        "write through an absolute symlink",
        layer().symlink("link", OUTSIDE).file("link/secret", b"x").tar,
        {"link": f"symlink to {OUTSIDE}", **_absolute(OUTSIDE), SECRET[1:]: "file x"},
    ),
    Case(
        "write through a symlink to the root",
        layer().symlink("link", "/").file("link/etc/passwd", b"x").tar,
        {"link": "symlink to /", "etc": "directory", "etc/passwd": "file x"},
    ),
    Case(
        "write through a symlink to the parent",
        layer().symlink("link", "..").file("link/layer/a", b"x").tar,
        {"link": "symlink to ..", "layer": "directory", "layer/a": "file x"},
    ),
    Case(
        "write through a chain of symlinks",
        layer()
        .symlink("a", "b")
        .symlink("b", "c")
        .symlink("c", "../..")
        .file("a/secret", b"x")
        .tar,
        {
            "a": "symlink to b",
            "b": "symlink to c",
            "c": "symlink to ../..",
            "secret": "file x",
        },
    ),
    Case(
        "climb step by step",
        layer()
        .symlink("a/up", "..")
        .symlink("a/up/up", "..")
        .symlink("out", "a/up/up/../..")
        .file("out/secret", b"x")
        .tar,
        {
            "a": "directory",
            "a/up": "symlink to ..",
            "up": "symlink to ..",
            "out": "symlink to a/up/up/../..",
            "secret": "file x",
        },
    ),
    Case(
        "dots after a symlink to a directory",
        layer()
        .directory("a/b/c")
        .symlink("link", "a/b/c")
        .symlink("out", "link/../../../../secret")
        .file("out/x")
        .tar,
        {
            "a": "directory",
            "a/b": "directory",
            "a/b/c": "directory",
            "link": "symlink to a/b/c",
            "out": "symlink to link/../../../../secret",
            "secret": "directory",
            "secret/x": "file",
        },
    ),
    Case(
        "file over a symlink to a file outside",
        layer().symlink("a", "../../secret").file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "file over an absolute symlink",
        layer().symlink("a", SECRET).file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "large file over a symlink",
        layer().symlink("a", SECRET).file("a", bytes(600_000)).tar,
        {"a": "file of 600000 bytes"},
    ),
    Case(
        "fifo over a symlink",
        layer().symlink("a", SECRET).fifo("a").tar,
        {"a": "fifo"},
    ),
    Case(
        "directory over a symlink to a directory outside",
        layer().symlink("a", "../../directory").directory("a", mode=0o777).file("a/file").tar,
        {"a": "directory", "a/file": "file"},
    ),
    Case(
        "attributes through a symlink",
        layer().symlink("a", SECRET, mode=0o777, uid=1000, gid=1000, mtime_ns=5).tar,
        {"a": f"symlink to {SECRET}"},
    ),
    Case(
        "symlink to itself",
        layer().symlink("a", "a").file("a/b").tar,
        _TOO_MANY,
    ),
    Case(
        "two symlinks to each other",
        layer().symlink("a", "b").symlink("b", "a").file("a/c").tar,
        _TOO_MANY,
    ),
    Case(
        "symlink into itself, longer each time",
        layer().symlink("a", "a/a").file("a/b").tar,
        _TOO_MANY,
    ),
    Case(
        "symlinks that double each other",
        layer()
        .symlink("a0", ".")
        .symlink("a1", "a0/a0")
        .symlink("a2", "a1/a1")
        .symlink("a3", "a2/a2")
        .symlink("a4", "a3/a3")
        .symlink("a5", "a4/a4")
        .symlink("a6", "a5/a5")
        .file("a6/b")
        .tar,
        _TOO_MANY,
    ),
    Case(
        "symlink to a process's files",
        layer().symlink("a", "/proc/self/root").file("a/tmp/b", b"x").tar,
        {
            "a": "symlink to /proc/self/root",
            "proc": "directory",
            "proc/self": "directory",
            "proc/self/root": "directory",
            "proc/self/root/tmp": "directory",
            "proc/self/root/tmp/b": "file x",
        },
    ),
    Case(
        "symlink through a file",
        layer().file("a").symlink("b", "a/c").file("b/d").tar,
        _IN_THE_WAY,
    ),
    Case(
        "symlink to a marker's name",
        layer().symlink("a", ".wh.b").file("a/c").tar,
        Refusal(ArchiveError, "a whiteout marker as a directory"),
    ),
    Case(
        "symlink without a target",
        layer().symlink("a", "").tar,
        Refusal(ArchiveError, "a symlink without a target"),
    ),
    Case(
        "symlink with a NUL at once",
        layer().raw(raw_entry(b"a", b"", b"2", linkname=b"\0/etc/passwd")).tar,
        Refusal(ArchiveError, "a symlink without a target"),
    ),
    Case(
        "symlink with the longest target",
        layer().symlink("a", "t" * 4095).tar,
        {"a": "symlink to " + "t" * 4095},
    ),
    Case(
        "symlink with a target that is too long",
        layer().symlink("a", "t" * 4096).tar,
        Refusal(ArchiveError, "File name too long"),
    ),
    Case(
        "symlink with a target of any bytes",
        layer().symlink("a", b"\xff\n\x1b").tar,
        {"a": "symlink to \udcff\n\x1b"},
    ),
)

_HARD_LINKS: Final = (
    Case(
        "hard link to a file outside",
        layer().hardlink("a", "../../secret").tar,
        Refusal(ArchiveError, "path leads out of the layer"),
    ),
    Case("hard link to an absolute path", layer().hardlink("a", SECRET).tar, _DANGLING),
    Case(
        "hard link through a symlink",
        layer().symlink("b", "../..").hardlink("a", "b/secret").tar,
        _DANGLING,
    ),
    Case(
        "hard link through an absolute symlink",
        layer().symlink("b", OUTSIDE).hardlink("a", "b/secret").tar,
        _DANGLING,
    ),
    Case(
        "hard link to a symlink, then a write",
        layer().symlink("b", SECRET).hardlink("a", "b").file("a", b"x").tar,
        {"a": "file x", "b": f"symlink to {SECRET}"},
    ),
    Case(
        "hard link to a symlink",
        layer().symlink("b", "../../secret").hardlink("a", "b").tar,
        {"a": "symlink to ../../secret", "b": "hard link to a"},
    ),
    Case(
        "hard link to a symlink to a directory, then into it",
        layer().symlink("b", "../../directory").hardlink("a", "b").file("a/file", b"x").tar,
        {
            "a": "symlink to ../../directory",
            "b": "hard link to a",
            "directory": "directory",
            "directory/file": "file x",
        },
    ),
    Case("hard link to nothing", layer().hardlink("a", "b").tar, _DANGLING),
    Case("hard link to what comes later", layer().hardlink("a", "b").file("b").tar, _DANGLING),
    Case(
        "hard link to itself",
        layer().file("a").hardlink("a", "a").tar,
        Refusal(ArchiveError, "a hard link to itself"),
    ),
    Case(
        "hard link to itself by another spelling",
        layer().file("d/a").symlink("l", "d").hardlink("l/./a", "/d//a").tar,
        Refusal(ArchiveError, "a hard link to itself"),
    ),
    Case(
        "hard link to a directory",
        layer().directory("b").hardlink("a", "b").tar,
        Refusal(ArchiveError, "a hard link to a directory"),
    ),
    Case(
        "hard link to the root",
        layer().hardlink("a", ".").tar,
        Refusal(ArchiveError, "a hard link to a directory"),
    ),
    Case(
        "hard link to no name",
        layer().hardlink("a", "").tar,
        Refusal(ArchiveError, "a hard link to a directory"),
    ),
    Case(
        "hard link to a whiteout",
        layer().whiteout("b").hardlink("a", "b").tar,
        _DANGLING,
    ),
    Case(
        "hard link over the directory that holds its target",
        layer().file("d/e/f").hardlink("d", "d/e/f").tar,
        _DANGLING,
    ),
    Case(
        "hard link below its own target",
        layer().file("a").hardlink("a/b", "a").tar,
        _IN_THE_WAY,
    ),
    Case(
        "hard link to a path through a file",
        layer().file("b").hardlink("a", "b/c").tar,
        _IN_THE_WAY,
    ),
    Case(
        "two names of one file change places",
        layer().file("a", b"x").hardlink("b", "a").hardlink("a", "b").hardlink("b", "a").tar,
        {"a": "file x", "b": "hard link to a"},
    ),
    Case(
        "write to one of two names",
        layer().file("a", b"one").hardlink("b", "a").file("b", b"two").tar,
        {"a": "file one", "b": "file two"},
    ),
    Case(
        "hard link with content",
        layer()
        .file("a", b"one")
        .raw(raw_entry(b"b", b"", b"1", size=b"00000000003\0", linkname=b"a"))
        .file("c", b"x")
        .tar,
        {"a": "file one", "b": "hard link to a", "c": "file x"},
    ),
    Case(
        "hard link to a fifo",
        layer().fifo("a").hardlink("b", "a").tar,
        {"a": "fifo", "b": "hard link to a"},
    ),
    Case(
        "hard link to a device",
        layer().character_device("a", 1, 3).hardlink("b", "a").tar,
        {"a": "character device 1:3", "b": "hard link to a"},
        needs_root=True,
    ),
)

_SWAPS: Final = (
    Case(
        "directory becomes a symlink",
        layer()
        .directory("a")
        .file("a/one")
        .symlink("a", "../../directory")
        .file("a/file", b"x")
        .tar,
        {
            "a": "symlink to ../../directory",
            "directory": "directory",
            "directory/file": "file x",
        },
    ),
    Case(
        "symlink, directory and symlink in turn",
        layer()
        .symlink("a", "../../directory")
        .directory("a")
        .file("a/one", b"1")
        .symlink("a", OUTSIDE)
        .directory("a")
        .file("a/two", b"2")
        .tar,
        {"a": "directory", "a/two": "file 2"},
    ),
    Case(
        "symlink to another directory each time",
        layer().symlink("a", "one").file("a/f", b"1").symlink("a", "two").file("a/f", b"2").tar,
        {
            "a": "symlink to two",
            "one": "directory",
            "one/f": "file 1",
            "two": "directory",
            "two/f": "file 2",
        },
    ),
    Case(
        "inner directory becomes a symlink",
        layer().file("a/b/c/d").symlink("a/b", "../../../directory").file("a/b/c/file", b"x").tar,
        {
            "a": "directory",
            "a/b": "symlink to ../../../directory",
            "directory": "directory",
            "directory/c": "directory",
            "directory/c/file": "file x",
        },
    ),
    Case(
        "outer directory becomes a symlink while an inner one is open",
        layer().file("a/b/c/one").symlink("a", "e").file("a/b/c/two", b"x").tar,
        {
            "a": "symlink to e",
            "e": "directory",
            "e/b": "directory",
            "e/b/c": "directory",
            "e/b/c/two": "file x",
        },
    ),
    Case(
        "directory becomes a file, then a directory is wanted",
        layer().file("a/b").file("a", b"x").file("a/c").tar,
        _IN_THE_WAY,
    ),
    Case(
        "file becomes a directory",
        layer().file("a", b"x").directory("a").file("a/b", b"y").tar,
        {"a": "directory", "a/b": "file y"},
    ),
    Case(
        "directory becomes a hard link to a symlink",
        layer().symlink("s", "../..").directory("a").hardlink("a", "s").file("a/secret", b"x").tar,
        {"a": "symlink to ../..", "s": "hard link to a", "secret": "file x"},
    ),
    Case(
        "full directory becomes a fifo",
        layer().file("a/b/c").file("a/d").fifo("a").tar,
        {"a": "fifo"},
    ),
    Case(
        "fifo becomes a file",
        layer().fifo("a").file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "device becomes a file",
        layer().character_device("a", 1, 3).file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "disk becomes a file",
        layer().block_device("a", 8, 0).file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "file becomes a device",
        layer().file("a", b"x").character_device("a", 1, 3).tar,
        {"a": "character device 1:3"},
        needs_root=True,
    ),
    Case(
        "file becomes a hard link to a device",
        layer().block_device("b", 8, 0).file("a", b"x").hardlink("a", "b").tar,
        {"a": "block device 8:0", "b": "hard link to a"},
        needs_root=True,
    ),
    Case(
        "directory below a device",
        layer().fifo("a").file("a/b").tar,
        _IN_THE_WAY,
    ),
    Case(
        "file becomes a symlink to itself",
        layer().file("a").symlink("a", "a").tar,
        {"a": "symlink to a"},
    ),
    Case(
        "one of more directories than are kept open becomes a symlink",
        _many_directories()
        .file("d199/d/more")
        .symlink("d199", "../../directory")
        .file("d199/d/file", b"x")
        .file("d0/d/file", b"x")
        .symlink("d0", "d1")
        .file("d0/d/more", b"x")
        .tar,
        {
            **{f"d{number}": "directory" for number in range(1, 199)},
            **{f"d{number}/d": "directory" for number in range(1, 199)},
            **{f"d{number}/d/file": "file" for number in range(1, 199)},
            "d0": "symlink to d1",
            "d1/d/more": "file x",
            "d199": "symlink to ../../directory",
            "directory": "directory",
            "directory/d": "directory",
            "directory/d/file": "file x",
        },
    ),
)

CASES: Final = (*_SYMLINKS, *_HARD_LINKS, *_SWAPS)
