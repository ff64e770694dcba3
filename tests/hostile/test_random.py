"""Random layers: whatever they say, nothing beside them changes, and the index says what is."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, given, settings

from hostile.archives import honest_archives, hostile_archives
from hostile.cases import Case
from layermanager.errors import ArchiveError
from layermanager.testing.trees import snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hostile.archives import Archive
    from hostile.world import World
    from layermanager.testing.trees import FileState
    from layermanager.unpack.index import IndexEntry

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}

_settings = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_settings
@given(tar=hostile_archives())
def test_no_layer_reaches_beyond_its_directory(tar: bytes, world: World) -> None:
    with world.watched() as place:
        try:
            index = world.unpack(Case("random", lambda: tar, {}), place)
        except ArchiveError:
            return
        _assert_index_is(index, place)
        assert not any(
            name.startswith(b".wh.") for path in snapshot(place) for name in path.split(b"/")
        )


@_settings
@given(archive=honest_archives(with_devices=os.geteuid() == 0))
def test_the_index_says_what_is_on_disk(archive: Archive, world: World) -> None:
    with world.watched() as place:
        index = world.unpack(Case("random", lambda: archive.tar, {}), place)
        _assert_index_is(index, place)


def _assert_index_is(index: Sequence[IndexEntry], place: Path) -> None:
    states = snapshot(place)
    assert sorted(entry.path for entry in index) == sorted(states)
    for entry in index:
        state = states[entry.path]
        if entry.hard_link:
            assert entry.hard_link in state.names
        else:
            assert _said(entry) == _found(state), entry.path


def _said(entry: IndexEntry) -> tuple[object, ...]:
    is_whiteout = entry.kind == "char" and entry.device == (0, 0)
    return (
        entry.kind,
        entry.mode,
        entry.owner,
        0 if is_whiteout else entry.mtime_ns,
        entry.size,
        entry.device,
        entry.link or bytes.fromhex(entry.sha256),
        {os.fsdecode(name): value for name, value in entry.xattrs.items()},
    )


def _found(state: FileState) -> tuple[object, ...]:
    return (
        _KINDS[state.type],
        state.mode,
        state.owner,
        0 if state.is_whiteout else state.mtime_ns,
        state.size,
        (os.major(state.device), os.minor(state.device)),
        state.content,
        state.xattrs,
    )
