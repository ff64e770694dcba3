"""The same layers unpacked by GNU tar, by bsdtar, by umoci and by us.

``DIFFERENCES`` is the whole list of what they do otherwise; docs/formats.md says why.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from peer_cases import COMPRESSED, OVER_A_BASE, PLAIN
from peers import PEERS, RefusedError, tree, version

from hostile.cases import SOME_DIGEST
from layermanager.errors import ArchiveError
from layermanager.model import Limits
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job
from layermanager.use.opaque import visible_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from conftest import Overlay
    from layermanager.testing.trees import FileState

    Outcome = Mapping[str, FileState] | None

ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"

_NOT_LISTED: Final = "a: mtime_ns; a/b: mtime_ns"

DIFFERENCES: Final[Mapping[str, Mapping[str, str]]] = {
    "a global PAX header": {"bsdtar": "one: mtime_ns; three: mtime_ns", "umoci": REFUSED},
    "an access control list": {"tar": "file: xattrs", "bsdtar": "file: xattrs"},
    "directories that are not listed": dict.fromkeys(PEERS, _NOT_LISTED),
    "a full directory, then a file": {"tar": REFUSED, "bsdtar": REFUSED},
    "a full directory, then a symlink": {"tar": REFUSED, "bsdtar": REFUSED},
    "a directory twice": {"tar": "x: xattrs", "umoci": "x: xattrs"},
    "a path through a symlink": {"bsdtar": REFUSED},
    "a name with ..": {"umoci": ACCEPTED},
    "a sparse file by GNU tar": {"umoci": REFUSED},
    "one block of zeros amid": {"tar": ACCEPTED, "bsdtar": ACCEPTED},
    "a wrong checksum": {"bsdtar": ACCEPTED},
    "garbage after the gzip": {"bsdtar": ACCEPTED},
    "a directory made anew and removed": {"umoci": "d: mtime_ns"},
    "the root opaque, and a whiteout": {"umoci": "d: missing"},
    "a whiteout, and the root opaque": {"umoci": "d: mtime_ns"},
    "a volume label": {"umoci": REFUSED},
    "an incremental archive": {"umoci": REFUSED},
    "the continuation of a volume": {"bsdtar": ACCEPTED},
    "the owner -2 in base 256": {"tar": REFUSED},
    "an SELinux label": {"tar": "file: xattrs", "bsdtar": "file: xattrs"},
    "user attributes of a symlink": {"bsdtar": REFUSED, "umoci": REFUSED},
    "a default access control list": {"tar": "d: xattrs", "bsdtar": "d: xattrs"},
}
"""What a peer does otherwise: it accepts or refuses a layer, or the attributes of files differ."""

DIFFERENCES_SINCE: Final[Mapping[tuple[str, str], tuple[tuple[int, ...], str]]] = {
    ("a directory twice", "tar"): ((1, 35), ""),
}
"""Where a peer changed: the version from which on the difference for the case is another one."""

_SPACE_BYTES: Final = 64 * 1024 * 1024

pytestmark = pytest.mark.usefixtures("needs_root", "needs_trusted_xattrs", "needs_devices")


@pytest.fixture(scope="module")
def unpacker() -> Iterator[Unpacker]:
    with closing(Unpacker(timedelta(seconds=30))) as unpacker:
        yield unpacker


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_layer(name: str, peer: str, unpacker: Unpacker, tmp_path: Path) -> None:
    ours = _ours(unpacker, PLAIN[name], tmp_path / "ours")
    theirs = _theirs(peer, [PLAIN[name]], tmp_path / peer)
    assert _difference(ours, theirs) == _expected(name, peer)


@pytest.mark.parametrize("peer", ["tar", "bsdtar"])  # umoci compresses by itself
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_layer(name: str, peer: str, unpacker: Unpacker, tmp_path: Path) -> None:
    ours = _ours(unpacker, COMPRESSED[name], tmp_path / "ours")
    theirs = _theirs(peer, [COMPRESSED[name]], tmp_path / peer)
    assert _difference(ours, theirs) == _expected(name, peer)


@pytest.mark.parametrize("name", OVER_A_BASE)
def test_a_layer_over_another(
    name: str, unpacker: Unpacker, overlay: Overlay, tmp_path: Path
) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    base, layer = OVER_A_BASE[name]
    _ours(unpacker, base, lower)
    _ours(unpacker, layer, upper)
    theirs = _theirs("umoci", [base, layer], tmp_path / "umoci")
    visible, others = visible_layers([upper, lower]), tmp_path / "others"
    others.mkdir()
    for one in visible if len(visible) == 1 else ():
        # As our own mounts have them, so that the names of whiteouts are not listed.
        for directory in [path for path in one.rglob("*") if path.is_dir()]:
            (others / directory.relative_to(one)).mkdir(parents=True, exist_ok=True)
    with overlay([*visible, others]) as merged:
        ours = tree(merged)
    assert _difference(ours, theirs) == _expected(name, "umoci")


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith("a sparse file")])
def test_holes_stay_holes(name: str, unpacker: Unpacker, tmp_path: Path) -> None:
    assert _ours(unpacker, PLAIN[name], tmp_path / "ours") is not None
    assert (tmp_path / "ours/file").stat().st_size == 1024 * 1024
    assert (tmp_path / "ours/file").stat().st_blocks * 512 <= 64 * 1024


def test_the_list_names_cases_and_peers() -> None:
    assert set(DIFFERENCES) <= {*PLAIN, *COMPRESSED, *OVER_A_BASE}
    assert {name for name, _ in DIFFERENCES_SINCE} <= set(DIFFERENCES)
    assert {peer for differences in DIFFERENCES.values() for peer in differences} <= set(PEERS)


def _expected(name: str, peer: str) -> str:
    """The difference that is listed for the installed version of the peer."""
    if (name, peer) in DIFFERENCES_SINCE:
        since, difference = DIFFERENCES_SINCE[name, peer]
        if version(peer) >= since:
            return difference
    return DIFFERENCES.get(name, {}).get(peer, "")


def _ours(unpacker: Unpacker, layer: bytes, target: Path) -> Outcome:
    target.mkdir()
    job = Job(
        digest=SOME_DIGEST,
        is_package=False,
        limits=Limits(),
        granted=_SPACE_BYTES,
        block_bytes=4096,
    )
    with tempfile.TemporaryFile() as index:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with unpacker.start(job, root, index.fileno(), lambda need: need.wanted) as unpacking:
                unpacking.feed(layer)
                unpacking.finish()
        except ArchiveError:
            return None
        finally:
            os.close(root)
    return tree(target)


def _theirs(peer: str, layers: list[bytes], target: Path) -> Outcome:
    if shutil.which(peer) is None:
        (pytest.fail if os.environ.get("LAYERMANAGER_CI") == "1" else pytest.skip)(
            f"there is no program {peer}"
        )
    target.mkdir()
    paths = []
    for number, layer in enumerate(layers):
        paths.append(target.parent / f"{number}.tar")
        paths[-1].write_bytes(layer)
    try:
        PEERS[peer](paths, target)
    except RefusedError:
        return None
    return tree(target)


def _difference(ours: Outcome, theirs: Outcome) -> str:
    """What *theirs* has otherwise, in words; an empty text if nothing."""
    if ours is None or theirs is None:
        return "" if ours is theirs else REFUSED if theirs is None else ACCEPTED
    return "; ".join(
        f"{path}: {words}"
        for path in sorted({*ours, *theirs})
        if (words := _difference_of_files(ours.get(path), theirs.get(path)))
    )


def _difference_of_files(ours: FileState | None, theirs: FileState | None) -> str:
    if ours is None or theirs is None:
        return "" if ours is theirs else "missing" if theirs is None else "added"
    fields = (field.name for field in dataclasses.fields(ours))
    return ", ".join(name for name in fields if getattr(ours, name) != getattr(theirs, name))
