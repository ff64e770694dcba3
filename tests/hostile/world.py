"""Where a case runs: a directory for the layer among files that must stay as they are."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hostile.cases import OUTSIDE, SOME_DIGEST
from layermanager.amounts import UNCOUNTED, Amount
from layermanager.errors import NotEnoughSpaceError
from layermanager.removal import remove_tree
from layermanager.testing.trees import snapshot
from layermanager.unpack.index import read_index
from layermanager.unpack.messages import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hostile.cases import Case
    from layermanager.testing.trees import FileState
    from layermanager.unpack.client import Unpacker
    from layermanager.unpack.index import IndexEntry
    from layermanager.unpack.messages import Need

_SPACE_BYTES: Final = 8 * 1024 * 1024
_SHOWN_BYTES: Final = 64
_FED_BYTES: Final = 64 * 1024
_SYSTEM_FILES: Final = ("/etc/passwd", "/etc/group", "/dev/null", "/dev/zero")


class _Seen(NamedTuple):
    """Everything about a file that meddling with it would change, even if it were put back."""

    mode: int
    owner: tuple[int, int]
    links: int
    size: int
    device: int
    modified_ns: int
    changed_ns: int
    content: bytes
    xattrs: Mapping[str, bytes]


class World:
    """A directory tree of canaries, with a place for one layer at a time in it."""

    def __init__(self, unpacker: Unpacker) -> None:
        self._unpacker = unpacker
        self._root = Path(OUTSIDE)
        self._layers = self._root / "layers"

    def build(self) -> None:
        """Make the canaries, one of each kind."""
        self._layers.mkdir(parents=True)
        secret = self._root / "secret"
        secret.write_bytes(b"known to nobody")
        secret.chmod(0o600)
        program = self._root / "program"
        program.write_bytes(b"#!/bin/false\n")
        program.chmod(0o4755)
        (self._root / "directory").mkdir(mode=0o700)
        (self._root / "directory" / "file").write_bytes(b"in a directory")
        (self._root / "symlink").symlink_to("secret")
        os.mkfifo(self._root / "fifo")

    def demolish(self) -> None:
        """Remove it all."""
        _remove(self._root)

    @contextmanager
    def watched(self) -> Iterator[Path]:
        """An empty directory for a layer; fails if anything beside it changes meanwhile."""
        place = self._layers / "layer"
        place.mkdir()
        before, identity = self._seen(), place.stat().st_ino
        try:
            yield place
            assert place.stat().st_ino == identity, "the layer's directory was replaced"
            assert self._seen() == before, "something outside the layer changed"
        finally:
            _remove(place)

    def unpack(self, case: Case, place: Path) -> list[IndexEntry]:
        """Unpack the case by a real worker, in as much space as a test may take; its index."""
        job = Job(
            digest=case.package_of or SOME_DIGEST,
            is_package=case.package_of is not None,
            limits=case.limits,
            granted=0,
            block_bytes=4096,
        )
        data = case.data()
        with tempfile.TemporaryFile() as index:
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with self._unpacker.start(job, root, index.fileno(), _grant) as unpacking:
                    for at in range(0, len(data), _FED_BYTES):
                        unpacking.feed(data[at : at + _FED_BYTES])
                    unpacking.finish()
            finally:
                os.close(root)
            index.seek(0)
            return list(read_index(index, case.name))

    def _seen(self) -> dict[str, _Seen]:
        paths = []
        for directory, subdirectories, files in os.walk(self._root):
            if Path(directory) == self._layers:
                subdirectories.remove("layer")
            paths += [Path(directory, name) for name in (*subdirectories, *files)]
        system = {path: _look(Path(path))._replace(modified_ns=0) for path in _SYSTEM_FILES}
        return {str(path): _look(path) for path in (self._root, *paths)} | system


def _remove(directory: Path) -> None:
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_tree(directory.name, dir_fd=parent)
    finally:
        os.close(parent)


def _grant(need: Need) -> Amount:
    if need.wanted.size > _SPACE_BYTES:
        raise NotEnoughSpaceError(
            needed=need.wanted.size, free=0, limit=_SPACE_BYTES, reclaimable=0, limit_reached=True
        )
    return Amount(_SPACE_BYTES, UNCOUNTED)


def _look(path: Path) -> _Seen:
    status = path.lstat()
    content = b""
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    return _Seen(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        links=status.st_nlink,
        size=status.st_size,
        device=status.st_rdev,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        content=content,
        xattrs={
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    )


def described(place: Path) -> dict[str, str]:
    """What is below *place*, a line a path; the root itself only if it is opaque."""
    states = snapshot(place)
    lines = {os.fsdecode(path): _line(place, path, state) for path, state in states.items()}
    if lines["."] == "directory":
        del lines["."]
    return lines


def _line(place: Path, path: bytes, state: FileState) -> str:
    if not stat.S_ISDIR(state.type) and path != state.names[0]:
        return f"hard link to {os.fsdecode(state.names[0])}"
    if state.is_whiteout:
        return "whiteout"
    match state.type:
        case stat.S_IFDIR:
            is_opaque = any(name.endswith(".overlay.opaque") for name in state.xattrs)
            line = "opaque directory" if is_opaque else "directory"
        case stat.S_IFLNK:
            line = f"symlink to {os.fsdecode(state.content)}"
        case stat.S_IFIFO:
            line = "fifo"
        case stat.S_IFCHR | stat.S_IFBLK:
            kind = "character" if state.type == stat.S_IFCHR else "block"
            line = f"{kind} device {os.major(state.device)}:{os.minor(state.device)}"
        case _ if state.size > _SHOWN_BYTES:
            line = f"file of {state.size} bytes"
        case _:
            line = f"file {os.fsdecode((place / os.fsdecode(path)).read_bytes())}".rstrip()
    return line
