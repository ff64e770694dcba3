"""What a mounted image of ours shows, and what umoci and buildah show of the same image.

The images are made by umoci, by buildah, and by writers of layers with the quirks of tools that
assemble layers without a file system: few or no directory entries, times of 0 and 1, hard links,
names of owners. buildah mounts by the library that podman mounts by. ``DIFFERENCES`` is the whole
list of what others show otherwise; docs/formats.md says why.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import subprocess
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from test_image_peers import change, fill

from debian_image import call, debian_layout
from layermanager.model import DesiredImage
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder
from layermanager.testing.trees import snapshot
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from layermanager.testing.trees import FileState

    Tree = Mapping[str, FileState]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("needs_overlay", "needs_devices"),
]

SECOND: Final = 10**9
EPOCH: Final = 1_700_000_000 * SECOND

UMOCI: Final = "umoci"
VFS: Final = "buildah on vfs"
OVERLAY: Final = "buildah on overlay"

DIFFERENCES: Final[Mapping[tuple[str, str], str]] = {
    # Directories that no layer lists have the time of unpacking with umoci, and 0 with us. So has
    # a directory in which umoci makes one of these, also if it is listed.
    ("apko", UMOCI): ".: mtime_ns; bin: mtime_ns; etc: mtime_ns; etc/apk: mtime_ns",
    ("nix", UMOCI): "nix/store/b-hello: mtime_ns; nix/store/b-hello/bin: mtime_ns",
    ("no directories", UMOCI): ".: mtime_ns; home: mtime_ns; ko-app: mtime_ns",
    ("new directory", UMOCI): ".: mtime_ns; etc: mtime_ns; new: mtime_ns",
    # The root directory is 0555 where no layer lists it.
    ("buildah", VFS): ".: mode",
    ("apko", VFS): ".: mode",
    ("new directory", VFS): ".: mode",
    # On overlay each layer is unpacked for itself: directories that upper layers do not list lose
    # what lower ones say of them.
    ("umoci", OVERLAY): ".: mode",
    ("buildah", OVERLAY): ".: mode",
    ("apko", OVERLAY): ".: mode; home/nonroot: mode, owner; tmp: mode",
    ("nix", OVERLAY): (
        ".: mode; nix: mode; nix/store: mode; nix/store/a-glibc: mode; nix/store/a-glibc/lib: mode"
    ),
    ("no directories", OVERLAY): (
        ".: mode; cleared: mode; home/app: mode, owner; secret: mode; tmp: mode, xattrs"
    ),
}
"""What a peer shows otherwise, by image and peer.

buildah does not restore the time of a directory in which it makes or removes something, so the
times of directories are compared with umoci only.
"""

NOT_TRIED: Final = {
    # It cannot unpack a file after a whiteout of the directory that it is in.
    ("new directory", OVERLAY),
    # Too much of it would differ, as above.
    ("debootstrap", OVERLAY),
}


# Images


def by_umoci(base: Path) -> Path:
    """Two layers of umoci, which lists no directory in which something changed."""
    layout, bundle = base / "layout", base / "bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:1")
    call("umoci", "unpack", "--image", f"{layout}:1", bundle)
    for step in (fill, change):
        step(bundle / "rootfs")
        call("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:1", bundle)
    return layout


def by_buildah(base: Path) -> Path:
    """Two layers of buildah, which lists directories in which something changed."""
    layout = base / "layout"
    store = ("buildah", "--storage-driver", "vfs", "--root", base / "s", "--runroot", base / "r")
    image = "scratch"
    for number, step in enumerate((fill, change)):
        container = call(*store, "from", image)
        step(base / os.path.relpath(call(*store, "mount", container), base))
        call(*store, "unmount", container)
        image = f"oci:{layout}:{number}"
        call(*store, "commit", container, image)
        call(*store, "rm", container)
    return layout


def as_apko(base: Path) -> Path:
    """Owners by name as well, one time for all, hard links; upper layers list no parents."""
    lower = LayerBuilder()
    for name, mode in (("etc", 0o755), ("home", 0o755), ("home/nonroot", 0o750), ("tmp", 0o1777)):
        lower.member(_named(name, tarfile.DIRTYPE, mode, "nonroot" if "non" in name else "root"))
    lower.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mtime_ns=EPOCH)
    lower.file("bin/busybox", b"\x7fELF", mode=0o755, mtime_ns=EPOCH)
    for name in ("ash", "ls", "sh"):
        lower.hardlink(f"bin/{name}", "bin/busybox", mode=0o755, mtime_ns=EPOCH)
    upper = LayerBuilder()
    upper.file("home/nonroot/.profile", b"umask 022\n", uid=65532, gid=65532, mtime_ns=EPOCH)
    upper.file("tmp/.keep", mtime_ns=EPOCH).file("etc/apk/world", b"busybox\n", mtime_ns=EPOCH)
    return _layout(base, lower, upper)


def as_nix(base: Path) -> Path:
    """Names that begin with ./, read-only trees, the time 1; links into the lower layers."""
    store = "./nix/store"
    lower = LayerBuilder()
    for name in ("./nix", store):
        lower.directory(name, mode=0o555, mtime_ns=SECOND)
    for name in ("a-glibc", "a-glibc/lib"):
        lower.directory(f"{store}/{name}", mode=0o555, mtime_ns=SECOND)
    lower.file(f"{store}/a-glibc/lib/libc.so", b"libc", mode=0o444, mtime_ns=SECOND)
    library = f"{store}/a-glibc/lib/libc.so"
    lower.hardlink(f"{library}.6", library, mode=0o444, mtime_ns=SECOND)
    middle = LayerBuilder().directory(f"{store}/b-hello", mode=0o555, mtime_ns=SECOND)
    middle.file(f"{store}/b-hello/bin/hello", b"hello", mode=0o555, mtime_ns=SECOND)
    upper = LayerBuilder().directory(".", mode=0o755, mtime_ns=SECOND)
    upper.symlink("./bin", f"{store[1:]}/b-hello/bin", mtime_ns=SECOND)
    upper.file(f"{store}/a-glibc/lib/late", b"late", mode=0o444, mtime_ns=SECOND)
    return _layout(base, lower, middle, upper)


def without_directories(base: Path) -> Path:
    """Files alone, at the time 0, over a base that lists its directories, as ko makes them."""
    lower = LayerBuilder().directory(".", mode=0o755, mtime_ns=EPOCH)
    lower.directory("secret", mode=0o700, mtime_ns=EPOCH + 7)
    lower.directory("tmp", mode=0o1777, mtime_ns=EPOCH, xattrs={"user.note": b"a note"})
    lower.directory("home/app", mode=0o700, uid=1000, gid=1000, mtime_ns=EPOCH)
    lower.directory("gone", mode=0o700).file("gone/x")
    lower.directory("cleared", mode=0o711, mtime_ns=EPOCH).file("cleared/x")
    upper = LayerBuilder().file("secret/new").file("tmp/x").file("home/app/cfg", uid=1000, gid=1000)
    upper.whiteout("gone").opaque("cleared").file("cleared/new").file("ko-app/app")
    return _layout(base, lower, upper)


def with_a_new_directory(base: Path) -> Path:
    """A directory that is removed and made again, and not listed: it inherits nothing."""
    lower = LayerBuilder().directory("new", mode=0o700).file("new/x").directory("kept", mode=0o700)
    upper = LayerBuilder().whiteout("new").file("new/y").file("kept/y").file("etc/z").file("z")
    return _layout(base, lower, upper)


def by_debootstrap(base: Path) -> Path:
    """The smallest Debian, with an upper layer that removes its documentation."""
    return debian_layout(base)


IMAGES: Final[Mapping[str, Callable[[Path], Path]]] = {
    "umoci": by_umoci,
    "buildah": by_buildah,
    "apko": as_apko,
    "nix": as_nix,
    "no directories": without_directories,
    "new directory": with_a_new_directory,
    "debootstrap": by_debootstrap,
}


def _named(name: str, kind: bytes, mode: int, owner: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, EPOCH // SECOND
    info.uname = info.gname = owner
    info.uid = info.gid = 65532 if owner == "nonroot" else 0
    return info


def _layout(base: Path, *layers: LayerBuilder) -> Path:
    image = build_image([layer.tar() for layer in layers], config={"os": None})
    write_files(base / "layout", layout_files({"1": image}))
    return base / "layout"


# Peers


@contextmanager
def ours(layout: Path, base: Path) -> Iterator[Path]:
    target = base / "target"
    target.mkdir()
    node = Node(base)
    image = DesiredImage(f"oci:{layout}:1")
    with node.manager() as manager:
        manager.process_desired_layers([image])
        with manager.mount("image", image.reference, target=target, read_only=True):
            yield target


@contextmanager
def umoci(layout: Path, base: Path) -> Iterator[Path]:
    call("umoci", "raw", "unpack", "--image", f"{layout}:1", base / "umoci")
    yield base / "umoci"


@contextmanager
def buildah(layout: Path, base: Path, driver: str = "vfs") -> Iterator[Path]:
    directories = ("--root", base / "store", "--runroot", base / "run")
    command = ("buildah", "--storage-driver", driver, *directories)
    container = call(*command, "from", "--pull-never", f"oci:{layout}:1")
    try:
        yield base / os.path.relpath(call(*command, "mount", container), base)
    finally:
        subprocess.run([*command, "rm", container], check=True, capture_output=True)
        if (base / "store/overlay").is_mount():
            subprocess.run(["umount", base / "store/overlay"], check=True)


PEERS: Final[Mapping[str, Callable[[Path, Path], AbstractContextManager[Path]]]] = {
    UMOCI: umoci,
    VFS: buildah,
    OVERLAY: functools.partial(buildah, driver="overlay"),
}
PAIRS: Final = [
    (image, peer) for image in IMAGES for peer in PEERS if (image, peer) not in NOT_TRIED
]


@pytest.mark.parametrize(("image", "peer"), PAIRS)
def test_a_mounted_image_shows_what_others_show(image: str, peer: str, tmp_path: Path) -> None:
    layout = IMAGES[image](tmp_path)
    with ours(layout, tmp_path) as root:
        here = tree(root, peer)
    with PEERS[peer](layout, tmp_path) as root:
        there = tree(root, peer)
    assert len(here) > 5
    assert difference(here, there) == DIFFERENCES.get((image, peer), "")


def tree(root: Path, peer: str) -> Tree:
    """What is below *root*, as far as it is compared with *peer*."""

    def compared(state: FileState) -> FileState:
        if state.type == stat.S_IFDIR and peer != UMOCI:
            return dataclasses.replace(state, mtime_ns=0)
        return state

    return {os.fsdecode(path): compared(state) for path, state in snapshot(root).items()}


def difference(here: Tree, there: Tree) -> str:
    """How *there* differs from *here*: the paths, and in which attributes."""
    found = []
    for path in sorted({*here, *there}):
        if path not in there:
            found.append(f"{path}: missing")
        elif path not in here:
            found.append(f"{path}: more")
        else:
            names = [field.name for field in dataclasses.fields(here[path])]
            other = [n for n in names if getattr(here[path], n) != getattr(there[path], n)]
            found += [f"{path}: {', '.join(other)}"] if other else []
    return "; ".join(found)
