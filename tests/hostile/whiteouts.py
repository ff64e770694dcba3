"""Markers of removals: misshapen, misplaced, and meeting what the same layer holds."""

from __future__ import annotations

from typing import Final

from hostile.cases import OUTSIDE, Case, Refusal, layer, raw_entry
from layermanager.errors import ArchiveError

_NAMELESS: Final = Refusal(ArchiveError, "a whiteout marker without a name")
_AS_DIRECTORY: Final = Refusal(ArchiveError, "a whiteout marker as a directory")

_NAMES: Final = (
    Case("whiteout of nothing", layer().file(".wh.").tar, _NAMELESS),
    Case("whiteout of nothing in a directory", layer().file("a/.wh.").tar, _NAMELESS),
    Case("whiteout of the directory itself", layer().file("a/.wh..").tar, _NAMELESS),
    Case("whiteout of the parent", layer().file("a/.wh...").tar, _NAMELESS),
    Case("whiteout of the root's parent", layer().file(".wh...").tar, _NAMELESS),
    Case("whiteout of three dots", layer().file(".wh....").tar, {"...": "whiteout"}),
    Case("whiteout of a path", layer().file(".wh.a/b").tar, _AS_DIRECTORY),
    Case("whiteout of a path above", layer().file(".wh.../secret").tar, _AS_DIRECTORY),
    Case(
        "whiteout of a path with parents",
        layer().file(".wh.a/../../secret").tar,
        Refusal(ArchiveError, "path leads out of the layer"),
    ),
    Case("whiteout of a directory's slash", layer().file(".wh.a/").tar, {"a": "whiteout"}),
    Case("whiteout of any bytes", layer().whiteout(b"\xff\n").tar, {"\udcff\n": "whiteout"}),
    Case("whiteout with a capital letter", layer().file(".WH.a").tar, {".WH.a": "file"}),
    Case("whiteout with blanks before it", layer().file(" .wh.a").tar, {" .wh.a": "file"}),
    Case("whiteout without the last dot", layer().file(".wha").tar, {".wha": "file"}),
    Case("whiteout of a whiteout", layer().file(".wh..wh.a").tar, {}),
    Case("bookkeeping of AUFS", layer().directory(".wh..wh.plnk").file(".wh..wh.aufs").tar, {}),
    Case("opaque marker and more", layer().file("a/.wh..wh..opqx").tar, {"a": "directory"}),
    Case(
        "whiteout without a slash before it",
        layer().file("a.wh.b").tar,
        {"a.wh.b": "file"},
    ),
)

_KINDS: Final = (
    Case(
        "whiteout that is a symlink",
        layer().symlink(".wh.a", OUTSIDE).file("a/secret").tar,
        {"a": "opaque directory", "a/secret": "file"},
    ),
    Case(
        "whiteout that is a hard link out",
        layer().hardlink(".wh.a", "../../secret").tar,
        {"a": "whiteout"},
    ),
    Case("whiteout that is a directory", layer().directory(".wh.a").tar, {"a": "whiteout"}),
    Case("whiteout that is a fifo", layer().fifo(".wh.a").tar, {"a": "whiteout"}),
    Case("whiteout that is a device", layer().block_device(".wh.a", 8, 0).tar, {"a": "whiteout"}),
    Case(
        "whiteout with content and attributes",
        layer()
        .file(".wh.a", bytes(2000), mode=0o6777, uid=5, gid=5, xattrs={"user.a": b"b"})
        .file("b")
        .tar,
        {"a": "whiteout", "b": "file"},
    ),
    Case(
        "opaque marker that is a symlink",
        layer().symlink("a/.wh..wh..opq", OUTSIDE).tar,
        {"a": "opaque directory"},
    ),
    Case(
        "opaque marker that is a directory with files",
        layer().directory("a/.wh..wh..opq").file("a/.wh..wh..opq/b").tar,
        _AS_DIRECTORY,
    ),
    Case("opaque root", layer().file(".wh..wh..opq").tar, {".": "opaque directory"}),
    Case("opaque root with a dot", layer().file("./.wh..wh..opq").tar, {".": "opaque directory"}),
    Case(
        "device that looks like a whiteout",
        layer().file("b").character_device("a", 0, 0).tar,
        {"b": "file"},
    ),
    Case(
        "device that looks like a whiteout, over a file",
        layer().file("a", b"x").character_device("a", 0, 0).tar,
        {"a": "file x"},
    ),
)

_PLACES: Final = (
    Case(
        "whiteout through a symlink out",
        layer().symlink("a", "../..").file("a/.wh.secret").tar,
        {"a": "symlink to ../..", "secret": "whiteout"},
    ),
    Case(
        "whiteout through an absolute symlink",
        layer().symlink("a", "/").file("a/.wh.etc").tar,
        {"a": "symlink to /", "etc": "whiteout"},
    ),
    Case(
        "opaque marker through a symlink out",
        layer().symlink("a", "../../directory").file("a/.wh..wh..opq").tar,
        {"a": "symlink to ../../directory", "directory": "opaque directory"},
    ),
    Case(
        "whiteout of a symlink to a directory outside",
        layer().symlink("a", OUTSIDE).whiteout("a").tar,
        {"a": f"symlink to {OUTSIDE}"},
    ),
    Case(
        "whiteout in a file",
        layer().file("a").whiteout("a/b").tar,
        Refusal(ArchiveError, "a file is in the place of a directory"),
    ),
    Case(
        "symlink through a whiteout",
        layer().whiteout("a").symlink("b", "a/c").file("b/d").tar,
        {
            "a": "opaque directory",
            "a/c": "directory",
            "a/c/d": "file",
            "b": "symlink to a/c",
        },
    ),
)

_MEETINGS: Final = (
    Case("file, then its whiteout", layer().file("a", b"x").whiteout("a").tar, {"a": "file x"}),
    Case("whiteout, then its file", layer().whiteout("a").file("a", b"x").tar, {"a": "file x"}),
    Case("whiteout twice", layer().whiteout("a").whiteout("a").tar, {"a": "whiteout"}),
    Case(
        "directory, then its whiteout",
        layer().file("a/b").whiteout("a").tar,
        {"a": "opaque directory", "a/b": "file"},
    ),
    Case(
        "whiteout, then a directory nobody listed",
        layer().whiteout("a").file("a/b/c").tar,
        {"a": "opaque directory", "a/b": "directory", "a/b/c": "file"},
    ),
    Case(
        "whiteout, file and directory of one name",
        layer().whiteout("a").file("a").file("a", b"x").directory("a").tar,
        {"a": "opaque directory"},
    ),
    Case(
        "file, its whiteout, then a directory",
        layer().file("a").whiteout("a").directory("a").tar,
        {"a": "opaque directory"},
    ),
    Case(
        "opaque marker after whiteouts",
        layer().whiteout("a/b").whiteout("a/c").file("a/d").opaque("a").tar,
        {"a": "opaque directory", "a/d": "file"},
    ),
    Case(
        "opaque marker before whiteouts",
        layer().opaque("a").whiteout("a/b").file("a/d").tar,
        {"a": "opaque directory", "a/d": "file"},
    ),
    Case(
        "opaque marker twice",
        layer().opaque("a").opaque("a").tar,
        {"a": "opaque directory"},
    ),
    Case(
        "opaque directory becomes a file",
        layer().opaque("a").file("a", b"x").tar,
        {"a": "file x"},
    ),
    Case(
        "hard link over a whiteout",
        layer().file("b", b"x").whiteout("a").hardlink("a", "b").tar,
        {"a": "file x", "b": "hard link to a"},
    ),
    Case(
        "markers of both kinds for a directory within a directory",
        layer().whiteout("a").opaque("a").whiteout("a/b").file("a/b/c").tar,
        {"a": "opaque directory", "a/b": "opaque directory", "a/b/c": "file"},
    ),
    Case(
        "whiteout by a long header of another name",
        layer().raw(raw_entry(b"L", b"a/.wh.b\0", b"L")).raw(raw_entry(b"c", b"x")).tar,
        {"a": "directory", "a/b": "whiteout"},
    ),
)

CASES: Final = (*_NAMES, *_KINDS, *_PLACES, *_MEETINGS)
