"""The same archives read by GNU tar, by Python's ``tarfile`` and by us.

Where readers rightly differ, the archives leave it out or the comparison does:

- Directories that an archive does not list get its time 0 from us, the time of unpacking from GNU
  tar.
- A member of a path through a symlink, or of a marker's name, means something else in a layer.
- A directory that has members may become a file in a layer; GNU tar refuses, or with
  ``--recursive-unlink`` empties directories that stay directories, too.
- Other names of a fifo or a device are hard links in a layer, and files of their own to GNU tar.
- Directories get their modes and times at the end, for which GNU tar needs
  ``--delay-directory-restore``.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile.archives import honest_archives
from hostile.cases import Case
from layermanager.model import Limits
from layermanager.testing.trees import snapshot
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import EntryKind, TarReader

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from hostile.archives import Archive
    from hostile.world import World
    from layermanager.testing.trees import FileState
    from layermanager.unpack.tar import Entry

_LINKED_BY_GNU_TAR: Final = (stat.S_IFREG, stat.S_IFLNK)
_IS_ROOT: Final = os.geteuid() == 0
_ARCHIVES: Final = honest_archives(with_devices=_IS_ROOT)
_settings = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _gnu_unpack(tar: bytes, directory: Path) -> None:
    options = ["--same-permissions", "--numeric-owner", "--delay-directory-restore"]
    options += ["--absolute-names", "--xattrs", "--xattrs-include=*"]
    command = ["tar", "--extract", *options, f"--directory={directory}"]
    done = subprocess.run(command, input=tar, check=False, capture_output=True, umask=0o022)
    assert done.returncode == 0, done.stderr


def _ours(world: World, tar: bytes) -> dict[bytes, FileState]:
    with world.watched() as place:
        world.unpack(Case("random", lambda: tar, {}), place)
        return _comparable(place)


def _comparable(place: Path) -> dict[bytes, FileState]:
    states = snapshot(place)
    del states[b"."]
    return states


@_settings
@given(archive=_ARCHIVES)
def test_unpacks_what_gnu_tar_unpacks(
    archive: Archive, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs = tmp_path_factory.mktemp("gnu")
    _gnu_unpack(archive.tar, theirs)
    ours, expected = _ours(world, archive.tar), _comparable(theirs)
    for path in archive.model.paths("directory"):
        if path not in archive.model.listed:
            expected[path] = replace(expected[path], mtime_ns=0)
    assert ours == expected


_PIECES: Final = st.lists(st.tuples(st.booleans(), st.integers(1, 30_000)), max_size=8)


@_settings
@given(
    archive=_ARCHIVES,
    tar_format=st.sampled_from(
        (
            "gnu",
            "oldgnu",
            "posix --xattrs --sparse-version=0.0",
            "posix --xattrs --sparse-version=0.1",
            "posix --xattrs",
        )
    ),
    pieces=_PIECES,
)
def test_unpacks_what_gnu_tar_packs(
    archive: Archive,
    tar_format: str,
    pieces: list[tuple[bool, int]],
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("packed")
    _gnu_unpack(archive.tar, directory)
    with (directory / "sparse").open("wb") as file:
        for is_hole, size in pieces:
            if is_hole:
                file.seek(size, os.SEEK_CUR)
            else:
                file.write(b"x" * size)
        file.truncate()
    os.utime(directory / "sparse", (5, 5))
    options = f"--sparse --hole-detection=raw --numeric-owner --format={tar_format}"
    command = f"tar --create {options} --directory={directory} ."
    packed = subprocess.run(command.split(), check=False, capture_output=True)
    assert packed.returncode == 0, packed.stderr
    is_posix = tar_format.startswith("posix")
    expected = {
        path: replace(
            state,
            mtime_ns=state.mtime_ns if is_posix else state.mtime_ns // 10**9 * 10**9,
            xattrs=state.xattrs if is_posix else {},
            names=state.names if state.type in _LINKED_BY_GNU_TAR else (path,) * bool(state.names),
        )
        for path, state in _comparable(directory).items()
    }
    assert _ours(world, packed.stdout) == expected


_TYPES: Final = {
    tarfile.REGTYPE: EntryKind.FILE,
    tarfile.GNUTYPE_SPARSE: EntryKind.FILE,
    tarfile.DIRTYPE: EntryKind.DIRECTORY,
    tarfile.SYMTYPE: EntryKind.SYMLINK,
    tarfile.LNKTYPE: EntryKind.HARD_LINK,
    tarfile.FIFOTYPE: EntryKind.FIFO,
    tarfile.CHRTYPE: EntryKind.CHARACTER_DEVICE,
    tarfile.BLKTYPE: EntryKind.BLOCK_DEVICE,
}


@_settings
@given(archive=honest_archives(with_devices=True))
def test_reads_what_tarfile_reads(archive: Archive) -> None:
    reader = TarReader(ByteReader(iter([archive.tar])), Limits())
    ours = [(entry, b"".join(reader.content(entry))) for entry in reader]
    with tarfile.open(fileobj=io.BytesIO(archive.tar), errors="surrogateescape") as theirs:
        members = theirs.getmembers()
        assert len(members) == len(ours)
        for member, (entry, content) in zip(members, ours, strict=True):
            assert _facts_of_entry(entry) == _facts_of_member(member)
            if member.isreg():
                file = theirs.extractfile(member)
                assert file is not None
                assert content == file.read()


def _facts_of_entry(entry: Entry) -> tuple[object, ...]:
    is_link = entry.kind in (EntryKind.SYMLINK, EntryKind.HARD_LINK)
    return (
        entry.path.rstrip(b"/"),
        entry.kind,
        entry.mode,
        (entry.uid, entry.gid),
        entry.size,
        entry.mtime_ns / 10**9,  # tarfile has it as a float, too
        entry.link if is_link else b"",
        entry.device,
        dict(entry.xattrs),
    )


def _facts_of_member(member: tarfile.TarInfo) -> tuple[object, ...]:
    has_device = member.ischr() or member.isblk()
    return (
        _bytes(member.name),
        _TYPES[member.type],
        member.mode,
        (member.uid, member.gid),
        member.size,
        member.mtime,
        _bytes(member.linkname),
        (member.devmajor, member.devminor) if has_device else (0, 0),
        {
            _bytes(key.removeprefix("SCHILY.xattr.")): _bytes(value)
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        },
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
