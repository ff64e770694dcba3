from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layermanager.errors import ArchiveError, LayerError, LimitExceededError
from layermanager.model import Limits
from layermanager.testing.layers import LayerBuilder
from layermanager.testing.trees import FileState, snapshot
from layermanager.unpack.index import IndexWriter, read_index
from layermanager.unpack.rights import Rights
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import TarReader
from layermanager.unpack.tree import TreeWriter
from layermanager.use.opaque import visible_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from layermanager.unpack.index import IndexEntry

    Overlay = Callable[[Sequence[Path]], AbstractContextManager[Path]]

BLOCK = 4096
FILE_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # CAP_SYS_ADMIN, v2
BEHIND: Final = 1_600_000_000_123_456_789
UNPRIVILEGED = Rights(owner=(os.geteuid(), os.getegid()), is_privileged=False, keeps_owners=False)


@dataclass(frozen=True)
class Written:
    """What the writer said of a layer."""

    spent: int
    notes: Mapping[str, int]
    index: Sequence[IndexEntry]

    @property
    def implied(self) -> list[str]:
        """The directories that the archive does not list."""
        return sorted(os.fsdecode(entry.path) for entry in self.index if entry.is_implied)


def unpack(
    tar: bytes | LayerBuilder,
    directory: Path,
    *,
    limits: Limits | None = None,
    rights: Rights | None = None,
) -> Written:
    """Write the layer *tar* below *directory*, which is made if need be."""
    directory.mkdir(exist_ok=True)
    data = tar if isinstance(tar, bytes) else tar.tar()
    limits = limits or Limits()
    spent = 0

    def spend(size: int, inodes: int) -> None:
        nonlocal spent
        assert size >= 0
        assert inodes >= 0
        spent += size

    # As in the worker, which changes its working directory and has no mask.
    mask, working_directory = os.umask(0), Path.cwd()
    index = os.memfd_create("index")
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = TarReader(
            ByteReader(data[at : at + 65536] for at in range(0, len(data), 65536)), limits
        )
        index_writer = IndexWriter(index, limits)
        writer = TreeWriter(
            root,
            rights=rights or Rights.below(root),
            limits=limits,
            block_bytes=BLOCK,
            spend=spend,
            index=index_writer,
        )
        try:
            for entry in reader:
                writer.write(entry, reader)
            writer.finish()
            index_writer.finish()
        finally:
            writer.close()
        os.lseek(index, 0, os.SEEK_SET)
        with open(index, "rb", closefd=False) as file:
            entries = list(read_index(file, "index", limits))
    finally:
        os.close(root)
        os.close(index)
        os.umask(mask)
        os.chdir(working_directory)
    return Written(spent, writer.notes, entries)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "layer"


def kinds(directory: Path) -> dict[str, str]:
    """Names below *directory*: what they hold, where they lead, or what they are."""
    found = {}
    for name, state in snapshot(directory).items():
        path = directory / os.fsdecode(name)
        if state.is_whiteout:
            found[os.fsdecode(name)] = "whiteout"
        elif state.type == stat.S_IFREG:
            found[os.fsdecode(name)] = path.read_text()
        elif state.type == stat.S_IFLNK:
            found[os.fsdecode(name)] = "-> " + os.fsdecode(state.content)
        elif state.type == stat.S_IFDIR:
            is_opaque = any(xattr.endswith("overlay.opaque") for xattr in state.xattrs)
            found[os.fsdecode(name)] = "opaque" if is_opaque else "directory"
    del found["."]
    return found


# Files of all kinds and their attributes


@pytest.mark.usefixtures("needs_devices", "needs_trusted_xattrs")
def test_every_kind_with_every_attribute(root: Path) -> None:
    attributes = {"uid": 1234, "gid": 4321, "mtime_ns": BEHIND}
    xattrs = {"trusted.t": b"\0\xff"}
    builder = LayerBuilder()
    builder.directory(".", mode=0o2751, uid=7, gid=8, mtime_ns=BEHIND, xattrs=xattrs)
    builder.directory("d", mode=0o3705, uid=1234, gid=4321, mtime_ns=-BEHIND, xattrs=xattrs)
    builder.file("d/f", b"content", mode=0o6755, uid=1, gid=2, mtime_ns=BEHIND, xattrs=xattrs)
    builder.file("d/empty", mode=0o000, uid=0, gid=0, mtime_ns=1)
    builder.symlink("s", "d/f", uid=1234, gid=4321, mtime_ns=BEHIND, xattrs=xattrs)
    builder.character_device("c", 1, 3, mode=0o4666, uid=1234, gid=4321, mtime_ns=BEHIND)
    builder.block_device("b", 7, 300, mode=0o660, uid=0, gid=6, mtime_ns=BEHIND, xattrs=xattrs)
    builder.fifo("p", mode=0o1600, uid=1234, gid=4321, mtime_ns=BEHIND, xattrs=xattrs)
    builder.hardlink("h", "d/f")
    unpack(builder, root)
    assert attributes["uid"] == 1234
    found = snapshot(root)
    summary = {
        name: (stat.filemode(state.type | state.mode), state.owner, state.mtime_ns, state.device)
        for name, state in found.items()
    }
    assert summary == {
        b".": ("drwxr-s--x", (7, 8), BEHIND, 0),
        b"d": ("drwx--Sr-t", (1234, 4321), -BEHIND, 0),
        b"d/f": ("-rwsr-sr-x", (1, 2), BEHIND, 0),
        b"d/empty": ("----------", (0, 0), 1, 0),
        b"s": ("lrwxrwxrwx", (1234, 4321), BEHIND, 0),
        b"c": ("crwSrw-rw-", (1234, 4321), BEHIND, os.makedev(1, 3)),
        b"b": ("brw-rw----", (0, 6), BEHIND, os.makedev(7, 300)),
        b"p": ("prw------T", (1234, 4321), BEHIND, 0),
        b"h": ("-rwsr-sr-x", (1, 2), BEHIND, 0),
    }
    assert {name for name, state in found.items() if state.xattrs == xattrs} == set(summary) - {
        b"c",
        b"d/empty",
    }
    assert found[b"h"].names == (b"d/f", b"h")


@pytest.mark.usefixtures("needs_root")
def test_file_capabilities_outlive_the_change_of_the_owner(root: Path) -> None:
    xattrs = {"security.capability": FILE_CAPABILITY}
    unpack(LayerBuilder().file("f", b"x", mode=0o4755, uid=5, gid=6, xattrs=xattrs), root)
    state = snapshot(root)[b"f"]
    assert (state.xattrs, state.mode, state.owner) == (xattrs, 0o4755, (5, 6))


@pytest.mark.usefixtures("needs_root")
def test_the_group_of_the_root_is_not_handed_on(root: Path) -> None:
    root.mkdir()
    os.chown(root, 3, 4)
    root.chmod(0o2755)
    unpack(
        LayerBuilder().file("f").directory("d", uid=9, gid=9).file("d/f").symlink("s", "t"), root
    )
    states = snapshot(root)
    assert {states[name].owner for name in (b".", b"f", b"d/f", b"s")} == {(0, 0)}
    assert [oct(states[name].mode) for name in (b".", b"d")] == ["0o755", "0o755"]


def test_modes_of_files_and_times_to_the_nanosecond(root: Path) -> None:
    builder = LayerBuilder().directory("d", mode=0o1500, mtime_ns=BEHIND)
    builder.file("d/f", b"x", mode=0o4711, mtime_ns=BEHIND + 1).file("d/g", mode=0o222)
    builder.symlink("d/s", "nowhere", mtime_ns=BEHIND + 2)
    unpack(builder, root)
    states = snapshot(root) if os.geteuid() == 0 else None
    (root / "d" / "g").chmod(0o644)
    states = states or snapshot(root)
    assert (states[b"d"].mode, states[b"d"].mtime_ns) == (0o1500, BEHIND)
    assert (states[b"d/f"].mode, states[b"d/f"].mtime_ns) == (0o4711, BEHIND + 1)
    assert states[b"d/s"].mtime_ns == BEHIND + 2
    (root / "d").chmod(0o755)


def test_directories_that_the_archive_does_not_list(root: Path) -> None:
    unpack(LayerBuilder().file("a/b/c", b"x"), root)
    states = snapshot(root)
    for name in (b".", b"a", b"a/b"):
        assert (states[name].mode, states[name].mtime_ns) == (0o755, 0)


def test_a_read_only_directory_is_filled_all_the_same(root: Path) -> None:
    unpack(LayerBuilder().directory("d", mode=0o555).file("d/f", b"x"), root)
    assert snapshot(root)[b"d"].mode == 0o555
    (root / "d").chmod(0o755)


def test_hard_links_share_one_file(root: Path) -> None:
    builder = LayerBuilder().file("a", b"x").hardlink("d/b", "./a").hardlink("/c", "/d/b")
    builder.symlink("s", "a").hardlink("t", "s")
    unpack(builder, root)
    states = snapshot(root)
    assert states[b"a"].names == (b"a", b"c", b"d/b")
    assert states[b"s"].names == (b"s", b"t")
    assert states[b"t"].type == stat.S_IFLNK


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (LayerBuilder().hardlink("a", "b"), "a: a hard link to b, which is not in the layer"),
        (LayerBuilder().hardlink("a", "a"), "a: a hard link to itself"),
        (LayerBuilder().file("a").hardlink("a", "./a"), "a: a hard link to itself"),
        (LayerBuilder().directory("d").hardlink("a", "d"), "a: a hard link to a directory"),
        (LayerBuilder().hardlink("a", "/"), "a: a hard link to a directory"),
        (LayerBuilder().hardlink("a", "../b"), r"path leads out of the layer: \.\./b"),
        (LayerBuilder().hardlink("a", "/etc/passwd"), "not in the layer"),
        (LayerBuilder().whiteout("w").hardlink("a", "w"), "a: a hard link to w, which is not"),
        (LayerBuilder().file("d/f").hardlink("d", "d/f"), "d: a hard link to d/f, which is not"),
        (LayerBuilder().hardlink("a", ""), "a hard link to a directory"),
        (LayerBuilder().symlink("s", ""), "s: a symlink without a target"),
        (LayerBuilder().file("."), "the layer's root is a file"),
        (LayerBuilder().symlink("/", "x"), "the layer's root is a symlink"),
        (LayerBuilder().file("f").file("f/g"), "in the place of a directory on the way to f"),
    ],
)
def test_entries_that_make_no_sense_are_refused(
    root: Path, builder: LayerBuilder, message: str
) -> None:
    with pytest.raises(ArchiveError, match=message):
        unpack(builder, root)


# Later entries and earlier ones


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (LayerBuilder().file("a", b"1").file("a", b"2"), {"a": "2"}),
        (LayerBuilder().file("a", b"1").directory("a").file("a/b"), {"a": "directory", "a/b": ""}),
        (LayerBuilder().file("a/b/c").file("a/d").file("a", b"2"), {"a": "2"}),
        (LayerBuilder().file("a/b/c").symlink("a", "x"), {"a": "-> x"}),
        (
            LayerBuilder().file("x/f", b"1").symlink("a", "x").directory("a").file("a/f", b"2"),
            {"a": "directory", "a/f": "2", "x": "directory", "x/f": "1"},
        ),
        (LayerBuilder().symlink("a", "x").file("a", b"2"), {"a": "2"}),
        (LayerBuilder().file("x", b"1").symlink("a", "x").file("a", b"2"), {"a": "2", "x": "1"}),
        (LayerBuilder().file("a", b"1").symlink("a", "x"), {"a": "-> x"}),
        (LayerBuilder().symlink("a", "x").symlink("a", "y"), {"a": "-> y"}),
        (
            LayerBuilder().file("a", b"1").hardlink("b", "a").file("b", b"2"),
            {"a": "1", "b": "2"},
        ),
        (LayerBuilder().file("a", b"1").file("b").hardlink("b", "a"), {"a": "1", "b": "1"}),
        (LayerBuilder().file("a", b"1").file("b/c").hardlink("b", "a"), {"a": "1", "b": "1"}),
        (
            LayerBuilder().file("a", b"1").hardlink("b", "a").hardlink("b", "a"),
            {"a": "1", "b": "1"},
        ),
        (LayerBuilder().fifo("a").file("a", b"2"), {"a": "2"}),
        (LayerBuilder().file("a/b").fifo("a").directory("a"), {"a": "directory"}),
        (
            LayerBuilder()
            .file("a/b/c", b"1")
            .file("a", b"2")
            .file("b/c")
            .directory("a")
            .file("a/b/d"),
            {"a": "directory", "a/b": "directory", "a/b/d": "", "b": "directory", "b/c": ""},
        ),
    ],
)
def test_a_later_entry_replaces_an_earlier_one(
    root: Path, builder: LayerBuilder, expected: dict[str, str]
) -> None:
    unpack(builder, root)
    assert kinds(root) == expected


@pytest.mark.usefixtures("needs_root")
def test_a_directory_that_comes_again_keeps_its_content_and_takes_the_new_attributes(
    root: Path,
) -> None:
    builder = LayerBuilder().directory("d", mode=0o700, uid=1, gid=1, mtime_ns=1)
    builder.file("d/f", b"1").directory("d", mode=0o1777, uid=2, gid=3, mtime_ns=5)
    unpack(builder, root)
    state = snapshot(root)[b"d"]
    assert (state.mode, state.owner, state.mtime_ns) == (0o1777, (2, 3), 5)
    assert kinds(root) == {"d": "directory", "d/f": "1"}


# Paths that lead elsewhere


@pytest.mark.parametrize("name", ["../f", "a/../f", "a/..", "..", "/../f", "./a/../../f"])
def test_a_path_upwards_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="path leads out of the layer"):
        unpack(LayerBuilder().file(name), root)


def test_absolute_and_untidy_names_are_below_the_root(root: Path) -> None:
    unpack(LayerBuilder().file("/etc//./motd", b"1").directory("./a/.").file("//b", b"2"), root)
    assert kinds(root) == {"etc": "directory", "etc/motd": "1", "a": "directory", "b": "2"}


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("/", "f"),
        ("/x/y", "x/y/f"),
        ("x/y", "x/y/f"),
        ("..", "f"),
        ("../../../../etc", "etc/f"),
        ("/../../x", "x/f"),
        ("x/../y", "y/f"),
        ("./x/./", "x/f"),
        ("chain", "end/f"),
    ],
)
def test_paths_through_symlinks_stay_inside(root: Path, target: str, place: str) -> None:
    builder = LayerBuilder().symlink("chain", "/chain2").symlink("chain2", "end")
    unpack(builder.symlink("link", target).file("link/f", b"here"), root)
    assert (root / place).read_text() == "here"
    assert os.readlink(root / "link") == target  # noqa: PTH115 - as it was given


def test_symlinks_in_the_middle_of_a_path(root: Path) -> None:
    builder = LayerBuilder().directory("a/b").symlink("a/b/up", "../c").file("a/b/up/d/f", b"1")
    builder.symlink("usr/lib64", "lib").file("usr/lib64/x", b"2").hardlink("h", "usr/lib64/x")
    builder.hardlink("usr/lib64/h", "h")
    unpack(builder, root)
    assert (root / "a/c/d/f").read_text() == "1"
    assert snapshot(root)[b"h"].names == (b"h", b"usr/lib/h", b"usr/lib/x")


@pytest.mark.parametrize(
    "builder",
    [
        LayerBuilder().symlink("a", "a").file("a/f"),
        LayerBuilder().symlink("a", "b").symlink("b", "a").file("a/f"),
        LayerBuilder().symlink("a", "a/b").file("a/f"),
    ],
)
def test_loops_of_symlinks_are_refused(root: Path, builder: LayerBuilder) -> None:
    with pytest.raises(ArchiveError, match="too many symlinks on the way to a"):
        unpack(builder, root)


def test_nothing_outside_is_ever_touched(tmp_path: Path, root: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("mine")
    before = snapshot(outside)
    builder = LayerBuilder().symlink("abs", os.fsdecode(outside)).symlink("rel", "../outside")
    builder.file("abs/f", b"theirs").file("rel/f", b"theirs").whiteout("abs/g").opaque("rel")
    builder.hardlink("h", "abs/f").directory("abs", mode=0o777)
    unpack(builder, root)
    assert snapshot(outside) == before


# Removals


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (LayerBuilder().whiteout("a"), {"a": "whiteout"}),
        (LayerBuilder().whiteout("d/a"), {"d": "directory", "d/a": "whiteout"}),
        (LayerBuilder().whiteout("a").whiteout("a"), {"a": "whiteout"}),
        (LayerBuilder().whiteout("a").file("a", b"1"), {"a": "1"}),
        (LayerBuilder().file("a", b"1").whiteout("a"), {"a": "1"}),
        (LayerBuilder().whiteout("a").symlink("a", "x"), {"a": "-> x"}),
        (LayerBuilder().symlink("a", "x").whiteout("a"), {"a": "-> x"}),
        (LayerBuilder().whiteout("a").directory("a"), {"a": "opaque"}),
        (LayerBuilder().directory("a").whiteout("a"), {"a": "opaque"}),
        (LayerBuilder().whiteout("a").file("a/b", b"1"), {"a": "opaque", "a/b": "1"}),
        (LayerBuilder().file("a/b", b"1").whiteout("a"), {"a": "opaque", "a/b": "1"}),
        (LayerBuilder().whiteout("a").file("a").directory("a"), {"a": "opaque"}),
        (LayerBuilder().file("a").whiteout("a").directory("a"), {"a": "opaque"}),
        (LayerBuilder().directory("a").whiteout("a").file("a").directory("a"), {"a": "opaque"}),
        (LayerBuilder().file("x").whiteout("a").hardlink("a", "x"), {"a": "", "x": ""}),
        (LayerBuilder().opaque("d"), {"d": "opaque"}),
        (LayerBuilder().opaque("d").file("d/a", b"1"), {"d": "opaque", "d/a": "1"}),
        (LayerBuilder().file("d/a", b"1").opaque("d"), {"d": "opaque", "d/a": "1"}),
        (LayerBuilder().whiteout("d/a").opaque("d"), {"d": "opaque"}),
        (LayerBuilder().opaque("d").whiteout("d/a"), {"d": "opaque"}),
        (LayerBuilder().opaque("d").opaque("d"), {"d": "opaque"}),
        (
            LayerBuilder().whiteout("d/a").file("d/a", b"1").opaque("d"),
            {"d": "opaque", "d/a": "1"},
        ),
        (
            LayerBuilder().whiteout("d/e/a").opaque("d"),
            {"d": "opaque", "d/e": "directory"},
        ),
        (
            LayerBuilder().opaque("d").whiteout("d/e/a").whiteout("d/e"),
            {"d": "opaque"},
        ),
        (
            LayerBuilder().opaque("d").directory("d/a").whiteout("d/a"),
            {"d": "opaque", "d/a": "directory"},
        ),
        (
            LayerBuilder().opaque("d").whiteout("d/a").directory("d/a"),
            {"d": "opaque", "d/a": "opaque"},
        ),
        (
            LayerBuilder().symlink("s", "d").whiteout("s/a").opaque("s/e"),
            {"s": "-> d", "d": "directory", "d/a": "whiteout", "d/e": "opaque"},
        ),
        (LayerBuilder().whiteout("a.wh.b").file("x.wh.y"), {"a.wh.b": "whiteout", "x.wh.y": ""}),
        # Plain whiteouts stay at and below an opaque root, whose mark overlayfs does not look at.
        (
            LayerBuilder().opaque(".").whiteout("a").whiteout("etc/secret"),
            {"a": "whiteout", "etc": "directory", "etc/secret": "whiteout"},
        ),
        (
            LayerBuilder().whiteout("a").whiteout("etc/secret").opaque("."),
            {"a": "whiteout", "etc": "directory", "etc/secret": "whiteout"},
        ),
        (
            LayerBuilder().whiteout("d/e/a").opaque(".").opaque("d").whiteout("d/b").whiteout("a"),
            {"a": "whiteout", "d": "opaque", "d/e": "directory"},
        ),
        (
            LayerBuilder().opaque(".").directory("d").whiteout("d").whiteout("d/a"),
            {"d": "opaque"},
        ),
        # Old umoci: a directory that is there for markers only, and is hidden itself, is gone.
        (LayerBuilder().whiteout("test").whiteout("test/test"), {"test": "whiteout"}),
        (LayerBuilder().whiteout("test/test").whiteout("test"), {"test": "whiteout"}),
        (LayerBuilder().whiteout("a/b/c").whiteout("a"), {"a": "whiteout"}),
        (LayerBuilder().whiteout("a").opaque("a/b"), {"a": "whiteout"}),
        (LayerBuilder().whiteout("a/b/c").whiteout("a/b"), {"a": "directory", "a/b": "whiteout"}),
        (LayerBuilder().whiteout("a/b").whiteout("a").directory("a"), {"a": "opaque"}),
        (LayerBuilder().whiteout("a/b").directory("a").whiteout("a"), {"a": "opaque"}),
        (
            LayerBuilder().whiteout("a").whiteout("a/b/c").file("a/d/e", b"1"),
            {"a": "opaque", "a/b": "directory", "a/d": "directory", "a/d/e": "1"},
        ),
    ],
)
@pytest.mark.parametrize("is_privileged", [True, False])
def test_markers_take_the_form_of_overlayfs(
    root: Path, builder: LayerBuilder, expected: dict[str, str], is_privileged: bool
) -> None:
    if is_privileged and os.geteuid() != 0:
        pytest.skip("needs root: trusted extended attributes")
    unpack(builder, root, rights=None if is_privileged else UNPRIVILEGED)
    assert kinds(root) == expected
    prefix = "trusted" if is_privileged else "user"
    for state in snapshot(root).values():
        if state.type == stat.S_IFDIR and state.xattrs:
            assert state.xattrs == {f"{prefix}.overlay.opaque": b"y"}
        if state.is_whiteout:
            assert (state.mode, state.owner) == (0, (os.geteuid(), os.getegid()))


def test_the_root_can_be_opaque(root: Path) -> None:
    unpack(LayerBuilder().whiteout("a").file(".wh..wh..opq").file("b", b"1"), root)
    assert kinds(root) == {"a": "whiteout", "b": "1"}
    assert list(snapshot(root)[b"."].xattrs.values()) == [b"y"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..."])
def test_a_marker_without_a_name_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="whiteout marker without a name"):
        unpack(LayerBuilder().file(name), root)


@pytest.mark.parametrize("name", [".wh.a/f", "d/.wh..wh..opq/f", ".wh.a/.wh.b"])
def test_a_marker_as_a_directory_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="whiteout marker as a directory"):
        unpack(LayerBuilder().file(name), root)


def test_bookkeeping_of_aufs_is_left_out_and_noted(root: Path) -> None:
    builder = LayerBuilder().directory(".wh..wh.plnk").file(".wh..wh.aufs").file("a", b"1")
    assert unpack(builder, root).notes == {"AUFS bookkeeping left out": 2}
    assert kinds(root) == {"a": "1"}


@pytest.mark.usefixtures("needs_trusted_xattrs", "needs_devices")
def test_only_markers_can_hide_what_is_below(root: Path) -> None:
    xattrs = {"trusted.overlay.opaque": b"y", "user.overlay.redirect": b"/", "user.ok": b"1"}
    builder = LayerBuilder().directory("d", xattrs=xattrs).file("f", xattrs=xattrs)
    builder.character_device("c", 0, 0, mode=0o600)
    assert unpack(builder, root).notes == {
        "overlayfs attributes in the archive not honoured": 4,
        "whiteout devices in the archive not honoured": 1,
    }
    assert kinds(root) == {"d": "directory", "f": ""}
    assert snapshot(root)[b"d"].xattrs == snapshot(root)[b"f"].xattrs == {"user.ok": b"1"}


def test_without_rights_the_rest_is_left_out_and_noted(root: Path) -> None:
    builder = LayerBuilder().character_device("c", 1, 3).fifo("p").block_device("b", 7, 0)
    builder.file("f", b"1", uid=5, gid=6, xattrs={"user.a": b"1", "security.capability": b"x"})
    expected = {"devices left out": 2, "privileged extended attributes left out": 1}
    if os.geteuid() == 0:  # of root one expects more than of an ordinary user
        expected["owners that this process may not set: files belong to its own user"] = 1
    assert unpack(builder, root, rights=UNPRIVILEGED).notes == expected
    states = snapshot(root)
    assert set(states) == {b".", b"f", b"p"}
    assert (states[b"f"].owner, states[b"f"].xattrs) == (UNPRIVILEGED.owner, {"user.a": b"1"})


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize("rights", [None, UNPRIVILEGED])
def test_the_group_of_the_directory_above_goes_to_nothing(
    root: Path, rights: Rights | None
) -> None:
    root.mkdir()
    os.chown(root, 0, 1234)
    root.chmod(0o2775)
    unpack(LayerBuilder().directory("d", gid=0).file("d/f", gid=0).file("f"), root, rights=rights)
    assert {state.owner for state in snapshot(root).values()} == {UNPRIVILEGED.owner}
    assert snapshot(root)[b"d"].mode == 0o755


# Limits, space, and large trees


@pytest.mark.parametrize(
    ("builder", "limits", "message"),
    [
        (LayerBuilder().file("a" * 50 + "/b"), Limits(path_bytes=49), "path longer than 49 bytes"),
        (LayerBuilder().file("a/b/c/d/e"), Limits(path_depth=3), "path deeper than 3"),
        (LayerBuilder().hardlink("a", "b/" * 9), Limits(path_depth=3), "path deeper than 3"),
        (
            LayerBuilder().file("a", b"x" * 600).file("b", b"x" * 600),
            Limits(unpacked_bytes=1000),
            "exceed unpackedBytes: 1000",
        ),
        (
            LayerBuilder().file("s", b"", pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": "5000"}),
            Limits(unpacked_bytes=1000),
            "exceed unpackedBytes: 1000",
        ),
    ],
)
def test_limits(root: Path, builder: LayerBuilder, limits: Limits, message: str) -> None:
    with pytest.raises(LimitExceededError, match=message):
        unpack(builder, root, limits=limits)


def test_holes_stay_holes(root: Path) -> None:
    size = 64 * 1024 * 1024
    sparse = {"GNU.sparse.map": f"{size // 2},10,{size},0", "GNU.sparse.size": str(size)}
    builder = LayerBuilder().file("s", b"0123456789", pax=sparse)
    builder.file("only a hole", pax={"GNU.sparse.map": f"{size},0", "GNU.sparse.size": str(size)})
    written = unpack(builder, root)
    assert written.spent == BLOCK
    assert (root / "s").stat().st_size == size
    assert (root / "s").stat().st_blocks * 512 <= 4 * BLOCK
    with (root / "s").open("rb") as file:
        file.seek(size // 2 - 1)
        assert file.read(12) == b"\x000123456789\0"
    assert (root / "only a hole").stat().st_size == size


def test_segments_across_chunks(root: Path) -> None:
    content = bytes(range(256)) * 1024
    at = [0, 100_000, 100_001, 300_000]
    ends = [99_999, 100_001, 200_000, 462_146]
    numbers = ",".join(f"{start},{end - start}" for start, end in zip(at, ends, strict=True))
    total = sum(end - start for start, end in zip(at, ends, strict=True))
    sparse = {"GNU.sparse.map": numbers, "GNU.sparse.size": "500000"}
    content = (content * 2)[:total]
    unpack(LayerBuilder().file("s", content, pax=sparse), root)
    expected, position = bytearray(500_000), 0
    for start, end in zip(at, ends, strict=True):
        expected[start:end] = content[position : position + end - start]
        position += end - start
    assert (root / "s").read_bytes() == expected


def test_more_directories_at_once_than_are_kept_open(root: Path) -> None:
    builder = LayerBuilder()
    for turn in range(3):
        for number in range(300):
            builder.file(f"d{number}/s/f{turn}", b"%d" % number)
    before = len(list(Path("/proc/self/fd").iterdir()))
    unpack(builder, root)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for number in range(300):
        assert [(root / f"d{number}/s/f{turn}").read_text() for turn in range(3)] == [
            str(number)
        ] * 3


def test_a_directory_stays_usable_while_others_are_opened(root: Path) -> None:
    """Directories with attributes are opened besides the one that they are in."""
    builder = LayerBuilder().directory("p")
    for number in range(300):
        builder.directory(f"p/d{number}", xattrs={"user.n": b"%d" % number})
        builder.file(f"p/f{number}", b"x").hardlink(f"p/d{number}/h", f"p/f{number}")
    unpack(builder, root)
    assert len(list((root / "p").iterdir())) == 600
    assert os.getxattr(root / "p/d299", "user.n") == b"299"


def test_deep_paths(root: Path) -> None:
    names = ["d" * 14] * 250
    builder = LayerBuilder().file("/".join([*names, "f"]), b"deep")
    builder.directory("/".join(names), mode=0o700, mtime_ns=5)
    unpack(builder, root)
    deepest = str(Path(*names))
    directory = os.open(root, os.O_RDONLY)
    try:
        state = os.stat(deepest, dir_fd=directory)
        assert (stat.S_IMODE(state.st_mode), state.st_mtime_ns) == (0o700, 5)
        assert os.stat(f"{deepest}/f", dir_fd=directory).st_size == 4
    finally:
        os.close(directory)


def test_what_the_file_system_cannot_do_is_its_own_error(root: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        unpack(LayerBuilder().file("n" * 256), root)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_full_disk_surfaces(small_file_system: Path) -> None:
    builder = LayerBuilder().file("large", bytes(20 * 1024 * 1024))
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(builder, small_file_system / "layer")
    assert caught.value.errno == errno.ENOSPC


def test_what_is_spent_is_what_the_disk_gives(root: Path) -> None:
    builder = LayerBuilder()
    for number in range(100):
        builder.directory(f"d{number}")
        for size in (0, 1, 100, 4096, 5000, 100_000):
            builder.file(f"d{number}/f{size}", b"x" * size)
        builder.hardlink(f"d{number}/h", f"d{number}/f100000")
        builder.symlink(f"d{number}/s", "t" * 100).whiteout(f"d{number}/w")
    builder.file("large", b"x" * 3_000_000)
    spent = unpack(builder, root).spent
    used = sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.name != "h")
    assert 0.97 * used <= spent <= 1.03 * used


# What overlayfs makes of it


@dataclass
class Node:
    """A directory in a model of a layer: a child is a directory, or the content of a file."""

    children: dict[str, Node | str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    is_opaque: bool = False
    is_listed: bool = False

    @property
    def is_real(self) -> bool:
        """Whether it is there for more than markers."""
        children = self.children.values()
        return self.is_listed or any(isinstance(one, str) or one.is_real for one in children)


Operation = tuple[str, tuple[str, ...]]
PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["file", "directory", "whiteout", "opaque"]), PATHS)
    | st.just(("opaque", ())),
    max_size=12,
)


def directory_of(node: Node, names: Sequence[str]) -> Node | None:
    """Walk, making directories; None if a file is in the way."""
    for name in names:
        child = node.children.setdefault(name, Node())
        if isinstance(child, str):
            return None
        node = child
    return node


def modelled(operations: Sequence[Operation], label: str) -> tuple[Node, LayerBuilder]:
    """A layer as a model and as a tar; operations that make no sense are left out of both."""
    model, builder = Node(), LayerBuilder()
    for number, (what, path) in enumerate(operations):
        if not path:
            model.is_opaque = True
            builder.opaque(".")
            continue
        *parents, name = path
        joined = "/".join(path)
        depth = path if what == "opaque" else parents
        if not _is_free(model, depth):
            continue
        parent = directory_of(model, depth)
        assert parent is not None
        if what == "opaque":
            parent.is_opaque = True
            builder.opaque(joined)
        elif what == "whiteout":
            parent.hidden.add(name)
            builder.whiteout(joined)
        elif what == "file":
            parent.children[name] = f"{label}{number}"
            builder.file(joined, f"{label}{number}".encode())
        else:
            child = parent.children.get(name)
            if not isinstance(child, Node):
                child = parent.children[name] = Node()
            child.is_listed = True
            builder.directory(joined)
    return model, builder


def _is_free(node: Node, names: Sequence[str]) -> bool:
    for name in names:
        child = node.children.get(name, Node())
        if isinstance(child, str):
            return False
        node = child
    return True


Tree = dict[str, "Tree | str"]


def applied(below: Tree | str | None, layer: Node) -> Tree:
    """What *layer* shows above *below*, after the OCI image specification."""
    merged: Tree = {}
    if isinstance(below, dict) and not layer.is_opaque:
        merged = {name: node for name, node in below.items() if name not in layer.hidden}
    for name, child in layer.children.items():
        if isinstance(child, str):
            merged[name] = child
        elif child.is_real or name not in layer.hidden:
            merged[name] = applied(merged.get(name), child)
    return merged


def flat(tree: Tree, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, node in tree.items():
        if isinstance(node, str):
            found[prefix + name] = node
        else:
            found |= {prefix + name: "directory", **flat(node, f"{prefix}{name}/")}
    return found


def openable(directory: Path, prefix: str = "") -> dict[str, str]:
    """What a mount shows; what it lists and cannot open are whiteouts that had nothing to hide."""
    found: dict[str, str] = {}
    for path in directory.iterdir():
        if path.is_dir():
            found |= {prefix + path.name: "directory", **openable(path, f"{prefix}{path.name}/")}
        elif path.exists():
            found[prefix + path.name] = path.read_text()
    return found


@contextmanager
def temporary_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


@given(lower=OPERATIONS, upper=OPERATIONS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_mount_shows_what_applying_the_layers_shows(
    overlay: Overlay, lower: list[Operation], upper: list[Operation]
) -> None:
    tree: Tree = {}
    with temporary_directory() as base:
        paths: list[Path] = [base / "empty"]
        paths[0].mkdir()
        for label, operations in (("lower", lower), ("upper", upper)):
            model, builder = modelled(operations, label)
            unpack(builder, base / label)
            tree = applied(tree, model)
            paths.insert(0, base / label)
        bottom = base / "bottom"
        bottom.mkdir()  # there have to be two
        with overlay([*visible_layers(paths), bottom]) as merged:
            assert openable(merged) == flat(tree)


# What GNU tar makes of it


def unpacked_by_tar(tar: Path, directory: Path) -> dict[bytes, FileState]:
    directory.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run(["tar", *options, "-C", str(directory), "-xpf", str(tar)], check=True)
    return snapshot(directory)


def various_files(directory: Path) -> None:
    """Files of all kinds, for what the machine's own directories may lack."""
    directory.mkdir()
    (directory / "sparse").write_bytes(b"begin")
    os.truncate(directory / "sparse", 10_000_000)
    (directory / "linked").write_text("linked")
    (directory / "linked").chmod(0o4755)
    (directory / "second").hardlink_to(directory / "linked")
    (directory / ("long" * 50)).symlink_to("target" * 40)
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(directory / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    (directory / os.fsdecode(b"not utf-8 \xff")).mkdir(mode=0o1777)
    (directory / "new\nline").write_text("")
    os.setxattr(directory / "linked", "user.a", b"\0\n=")
    os.setxattr(directory / "linked", "security.capability", FILE_CAPABILITY)
    os.setxattr(directory / "second", "user.empty", b"")
    os.chown(directory / "fifo", 2**31, 70_000)
    os.utime(directory / "fifo", ns=(-1, -1_500_000_001))


@pytest.mark.usefixtures("needs_devices", "needs_trusted_xattrs")
@pytest.mark.parametrize("options", ["--format=pax --sparse --xattrs", "--format=gnu --sparse"])
def test_unpacks_files_of_this_machine_as_gnu_tar_does(tmp_path: Path, options: str) -> None:
    various_files(tmp_path / "various")
    archive = tmp_path / "archive.tar"
    library = Path(sysconfig.get_path("stdlib"))
    names = ["email", "encodings", "json", "os.py"]
    command = ["tar", *options.split(), "-P", "--transform=s,^/,,", "-cf", str(archive)]
    command += ["-C", str(library), *names]
    command += ["--no-recursion", "/etc", "--recursion", "/etc/alternatives"]
    command += ["-C", str(tmp_path / "various"), "."]
    subprocess.run(command, check=True)
    unpack(archive.read_bytes(), tmp_path / "ours")
    assert snapshot(tmp_path / "ours") == unpacked_by_tar(archive, tmp_path / "theirs")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_devices")
@pytest.mark.timeout(900)
def test_a_debian_system_and_a_layer_above_it(tmp_path: Path, overlay: Overlay) -> None:
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    system = tmp_path / "system"
    bootstrap = ["debootstrap", "--variant=minbase", "bookworm", str(system)]
    done = subprocess.run(bootstrap, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"debootstrap cannot fetch Debian: {done.stdout[-200:]}")
    base = archived(system, tmp_path / "base.tar")
    unpack(base.read_bytes(), tmp_path / "base")
    theirs = unpacked_by_tar(base, tmp_path / "base by tar")
    assert snapshot(tmp_path / "base") == theirs
    assert len(theirs) > 5000

    change(system)
    after = snapshot(system)
    layer = difference(theirs, after, system, tmp_path / "diff.tar")
    unpack(layer.read_bytes(), tmp_path / "diff")
    converted = converted_by_hand(layer, tmp_path / "diff by tar")
    assert without_times_of_whiteouts(snapshot(tmp_path / "diff")) == converted
    with overlay([tmp_path / "diff", tmp_path / "base"]) as mounted:
        merged = snapshot(mounted)
    assert without_links(merged) == without_links(after)


def archived(directory: Path, tar: Path, names: Path | None = None) -> Path:
    which = ["."] if names is None else ["--null", "--no-recursion", "-T", str(names)]
    options = ["--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run(["tar", *options, "-C", str(directory), "-rf", str(tar), *which], check=True)
    return tar


def change(system: Path) -> None:
    """What installing, removing and replacing do to a system."""
    shutil.rmtree(system / "usr/share/doc")
    shutil.rmtree(system / "usr/share/zoneinfo/Europe")
    (system / "usr/share/zoneinfo/Europe").write_text("now a file")
    (system / "etc/motd").unlink()
    (system / "etc/hostname").write_text("changed")
    (system / "usr/bin/newgrp").chmod(0o755)
    shutil.rmtree(system / "var/log")
    (system / "var/log").mkdir()
    (system / "var/log/new").write_text("in a directory of its own")
    (system / "etc/os-release").unlink()
    (system / "etc/os-release").mkdir()
    (system / "opt/link").symlink_to("/etc")


def difference(
    before: dict[bytes, FileState], after: dict[bytes, FileState], system: Path, tar: Path
) -> Path:
    """The layer that makes *before* to *after*, with markers, made without our own code."""
    changed = [name for name, state in after.items() if state != before.get(name)]
    gone = [
        name
        for name in before
        if name not in after
        and os.path.dirname(name) in {*after, b""}  # noqa: PTH120 - bytes
        and after.get(os.path.dirname(name) or b".", before[b"."]).type == stat.S_IFDIR  # noqa: PTH120
    ]
    parents = {parent for name in (*changed, *gone) for parent in _parents(name)}
    markers, listed = tar.parent / "markers", tar.with_suffix(".names")
    marked = []
    for name in gone:
        directory, slash, last = name.rpartition(b"/")
        marked.append(directory + slash + b".wh." + last)
        path = markers / os.fsdecode(marked[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # First the markers: the entries of their directories come later and so set the times.
    listed.write_bytes(b"".join(name + b"\0" for name in marked))
    archived(markers, tar, listed)
    listed.write_bytes(b"".join(name + b"\0" for name in sorted({b".", *changed, *parents})))
    return archived(system, tar, listed)


def _parents(name: bytes) -> list[bytes]:
    parts = name.split(b"/")[:-1]
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]


def converted_by_hand(layer: Path, directory: Path) -> dict[bytes, FileState]:
    """What tar unpacks, with the markers made to devices afterwards."""
    unpacked_by_tar(layer, directory)
    times = {path: path.lstat().st_mtime_ns for path in directory.rglob("*") if path.is_dir()}
    for marker in [path for path in directory.rglob(".wh.*") if path.is_file()]:
        marker.unlink()
        os.mknod(marker.with_name(marker.name.removeprefix(".wh.")), stat.S_IFCHR)
    for path, mtime_ns in times.items():
        if not path.is_symlink():
            os.utime(path, ns=(mtime_ns, mtime_ns))
    return without_times_of_whiteouts(snapshot(directory))


def without_times_of_whiteouts(states: dict[bytes, FileState]) -> dict[bytes, FileState]:
    return {
        name: replaced(state, mtime_ns=0) if state.is_whiteout else state
        for name, state in states.items()
    }


def without_links(states: dict[bytes, FileState]) -> dict[bytes, FileState]:
    """A changed file of a lower layer loses its other names: that is how overlayfs works."""
    return {name: replaced(state, names=()) for name, state in states.items()}


def replaced(state: FileState, **changes: object) -> FileState:
    values = {name: getattr(state, name) for name in FileState.__slots__}
    return FileState(**{**values, **changes})


@given(st.lists(st.binary(min_size=1, max_size=12), max_size=6))
def test_any_names_are_written_or_refused(names: list[bytes]) -> None:
    builder = LayerBuilder()
    for name in names:
        builder.file(name.replace(b"\0", b"/") or b"x", b"1")
    with temporary_directory() as base:
        try:
            unpack(builder, base / "layer", rights=UNPRIVILEGED)
        except LayerError:
            return
        assert set(base.iterdir()) == {base / "layer"}


@pytest.mark.usefixtures("needs_trusted_xattrs")
def test_attributes_of_a_directory_that_is_listed_often_are_limited(root: Path) -> None:
    builder = LayerBuilder()
    for value in (b"v" * 40, b"w" * 60, b"x" * 40):
        builder.directory("d", xattrs={"user.a": value})
    unpack(builder, root, limits=Limits(xattr_bytes=66))
    assert os.getxattr(root / "d", "user.a") == b"x" * 40
    builder.directory("d", xattrs={"user.b": b"v" * 21})
    with pytest.raises(LimitExceededError, match=r"d/: .*xattrBytes: 66"):
        unpack(builder, root.parent / "other", limits=Limits(xattr_bytes=66))


def test_directories_that_no_entry_lists_are_limited(root: Path) -> None:
    limits = Limits(entries=3, path_depth=5)
    builder = LayerBuilder().file("1/2/3/4/f").file("5/6/7/8/f")
    unpack(builder, root, limits=limits)
    with pytest.raises(LimitExceededError, match="more directories than entries may be: 3"):
        unpack(builder.file("9/f"), root.parent / "other", limits=limits)


def test_opaque_markers_may_come_in_any_order_and_often(root: Path) -> None:
    builder = LayerBuilder()
    for path in ("a", "a/b", "a/b/c"):
        builder.directory(path).whiteout(f"{path}/gone")
    builder.opaque("a/b").opaque("a/b").whiteout("a/b/late").whiteout("a/late")
    builder.opaque("a/b/c").opaque("a").opaque("a").whiteout("a/b/c/late")
    unpack(builder, root)
    assert kinds(root) == {"a": "opaque", "a/b": "opaque", "a/b/c": "opaque"}


# Directories that are not listed


IMPLIED_CASES: Final = {
    "parents of a file": (LayerBuilder().file("a/b/f"), [".", "a", "a/b"]),
    "listed before": (LayerBuilder().directory("a").file("a/b/f"), [".", "a/b"]),
    "listed after": (LayerBuilder().file("a/b/f").directory("a/b"), [".", "a"]),
    "a root": (LayerBuilder().directory("."), []),
    "parents of a whiteout": (LayerBuilder().whiteout("a/b"), [".", "a"]),
    "an opaque directory": (LayerBuilder().opaque("a"), [".", "a"]),
    "a new directory in the place of another one": (
        LayerBuilder().whiteout("a").file("a/b/f"),
        [".", "a/b"],
    ),
    "the same, the marker last": (LayerBuilder().file("a/b/f").whiteout("a"), [".", "a/b"]),
    "through a symlink": (LayerBuilder().symlink("l", "a/b").file("l/f"), [".", "a", "a/b"]),
    "a hard link": (LayerBuilder().file("a/f").hardlink("b/f", "a/f"), [".", "a", "b"]),
}


@pytest.mark.parametrize("case", IMPLIED_CASES)
def test_the_index_marks_directories_that_are_not_listed(root: Path, case: str) -> None:
    builder, expected = IMPLIED_CASES[case]
    assert unpack(builder, root).implied == expected
