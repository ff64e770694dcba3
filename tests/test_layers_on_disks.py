"""Layers on real file systems: what the disk makes of them is what their indexes say."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import layermanager
from conftest import _require
from layermanager import Inventory
from layermanager.errors import LayersFailedError, StoreError
from layermanager.model import Repair
from layermanager.steps import Step
from layermanager.store import index_path
from layermanager.testing.layers import LayerBuilder, compress
from layermanager.testing.trees import snapshot
from layermanager.unpack.index import read_index
from layermanager.xattrs import ACL_ACCESS, ACL_DEFAULT
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layermanager import DesiredLayer, LayerInfo
    from layermanager.testing.trees import FileState
    from layermanager.unpack.index import IndexEntry

SECOND: Final = 1_000_000_000
YEAR_1754: Final = -6_795_364_578 * SECOND - 871_345_152
YEAR_1960: Final = -315_619_200 * SECOND + 500
YEAR_2040: Final = 2_208_988_800 * SECOND + 123_456_789
YEAR_9999: Final = 253_402_300_799 * SECOND + 999_999_999
NOW: Final = 1_700_000_000_123_456_789
BEFORE_ALL: Final = -(2**63 - 1) * SECOND
AFTER_ALL: Final = (2**63 - 1) * SECOND
TIMES: Final = (BEFORE_ALL, YEAR_1754, YEAR_1960, 0, NOW, YEAR_2040, YEAR_9999, AFTER_ALL)
_ANY_TIME: Final = (-(2**62) * SECOND, 2**62 * SECOND)  # of those that are set
_32_BITS: Final = (-(2**31) * SECOND, (2**31 - 1) * SECOND)


@dataclass(frozen=True)
class Disk:
    """A file system to make, and what it does to times.

    Attributes:
        make: the command that makes it, without the device; None: a tmpfs.
        earliest: the first time that it holds.
        latest: the last one.
        grain: between two times that it holds.
    """

    make: Sequence[str] | None
    earliest: int
    latest: int
    grain: int = 1


DISKS: Final[Mapping[str, Disk]] = {
    "ext4-128": Disk(("mkfs.ext4", "-q", "-F", "-I", "128"), *_32_BITS, SECOND),
    "ext4-256": Disk(
        ("mkfs.ext4", "-q", "-F", "-I", "256"), _32_BITS[0], (2**34 - 2**31 - 1) * SECOND
    ),
    "ext4-1024": Disk(
        ("mkfs.ext4", "-q", "-F", "-I", "1024"), _32_BITS[0], (2**34 - 2**31 - 1) * SECOND
    ),
    "ext3": Disk(("mkfs.ext3", "-q", "-F", "-I", "128"), *_32_BITS, SECOND),
    "xfs-32-bits": Disk(
        ("mkfs.xfs", "-q", "-f", "-m", "bigtime=0"), _32_BITS[0], (2**31 - 1) * SECOND
    ),
    "xfs": Disk(("mkfs.xfs", "-q", "-f", "-m", "bigtime=1"), _32_BITS[0], 16_299_260_424 * SECOND),
    "btrfs": Disk(("mkfs.btrfs", "-q", "-f"), *_ANY_TIME),
    "tmpfs": Disk(None, *_ANY_TIME),
}


@contextmanager
def mounted(disk: Disk, directory: Path, options: str = "") -> Iterator[Path]:
    """Make the file system and mount it."""
    image, mount_point = directory / "disk.img", directory / "disk"
    mount_point.mkdir()

    def make() -> None:
        if disk.make is None:
            command = ["mount", "-t", "tmpfs", "tmpfs", str(mount_point)]
        else:
            with image.open("wb") as file:
                file.truncate(320 * 1024 * 1024)
            subprocess.run([*disk.make, str(image)], check=True, capture_output=True)
            command = ["mount", "-o", f"loop{options}", str(image), str(mount_point)]
        subprocess.run(command, check=True, capture_output=True)

    _require("loop devices with this file system", make)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


def install(node: Node, builder: LayerBuilder) -> LayerInfo:
    """Install one layer."""
    with node.manager() as manager:
        (layer,) = manager.process_desired_layers([publish(node, builder)]).installed
    return layer


def publish(node: Node, builder: LayerBuilder, name: str = "layer") -> DesiredLayer:
    return node.publish_bytes(name, compress(builder.tar(), "gzip"))


def check(node: Node) -> dict[str, str]:
    """What a check finds: path and problem."""
    inventory = Inventory(node.config)
    reports = inventory.check(inventory.layers())
    return {os.fsdecode(one.path): one.problem for report in reports for one in report.differences}


def index_of(node: Node, layer: LayerInfo) -> dict[bytes, IndexEntry]:
    with index_path(node.config.index_dir, layer.digest).open("rb") as file:
        return {entry.path: entry for entry in read_index(file, "index")}


def states(layer: LayerInfo) -> Mapping[bytes, FileState]:
    return snapshot(layer.path)


# Times


@pytest.mark.parametrize("name", DISKS)
def test_times_that_a_disk_cannot_hold(name: str, tmp_path: Path) -> None:
    disk = DISKS[name]
    builder = LayerBuilder().directory(".", mtime_ns=YEAR_9999)
    for time_ns in TIMES:
        builder.directory(f"d{time_ns}", mtime_ns=time_ns).file(f"f{time_ns}", mtime_ns=time_ns)
        builder.symlink(f"s{time_ns}", "t", mtime_ns=time_ns).fifo(f"p{time_ns}", mtime_ns=time_ns)
    builder.file("not/listed", mtime_ns=NOW)
    with mounted(disk, tmp_path) as directory:
        node = Node(tmp_path, working_dir=directory / "work")
        layer = install(node, builder)
        # From the disk, and not from what the kernel remembers.
        with mounted_anew(directory, tmp_path, disk):
            found = states(layer)
            index = index_of(node, layer)
            assert check(node) == {}
        for time_ns in TIMES:
            nearest = min(max(time_ns, disk.earliest), disk.latest)
            nearest -= nearest % disk.grain
            for kind in "dfsp":
                path = f"{kind}{time_ns}".encode()
                assert (path, found[path].mtime_ns) == (path, nearest)
                assert index[path].mtime_ns == found[path].mtime_ns


@contextmanager
def mounted_anew(mount_point: Path, directory: Path, disk: Disk) -> Iterator[None]:
    """Unmount a disk and mount it again; a tmpfs is what it is."""
    if disk.make is not None:
        subprocess.run(["umount", mount_point], check=True)
        image = directory / "disk.img"
        subprocess.run(["mount", "-o", "loop", image, mount_point], check=True)
    yield


# Repairs


def test_a_repair_that_does_not_help_has_failed(tmp_path: Path) -> None:
    """What is placed gets damaged at once, as by a disk that is failing."""

    def damage(step: Step) -> None:
        if step is Step.PLACE_INDEX and is_failing:
            (layer.path / "file").write_bytes(b"damaged")

    node = Node(tmp_path)
    desired = publish(node, LayerBuilder().file("file", b"content", mtime_ns=NOW))
    is_failing = False
    with node.manager(on_step=damage) as manager:
        (layer,) = manager.process_desired_layers([desired]).installed
        (layer.path / "file").write_bytes(b"damaged")
        is_failing = True
        with pytest.raises(LayersFailedError) as caught:
            manager.repair_layers([Repair(layer, desired)])
        assert caught.value.result.installed == ()
        (failed,) = caught.value.result.failed
        assert isinstance(failed.error, StoreError)
        assert "the repair did not help: 2 differences are left, the first in file" in str(
            failed.error
        )
        is_failing = False
        assert manager.repair_layers([Repair(layer, desired)]) == (layer,)
    assert check(node) == {}


# Access control lists: the `acl` package is the peer


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list of tags, permissions and IDs, as it is in an extended attribute."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_UNDEFINED: Final = 2**32 - 1
_CLOSED: Final = acl(  # user::r--, user:1234:rwx, group::---, mask::rwx, other::---
    (0x01, 4, _UNDEFINED),
    (0x02, 7, 1234),
    (0x04, 0, _UNDEFINED),
    (0x10, 7, _UNDEFINED),
    (0x20, 0, _UNDEFINED),
)
_NAMED: Final = acl(
    (0x01, 5, _UNDEFINED),
    (0x02, 5, 1234),
    (0x04, 5, _UNDEFINED),
    (0x10, 5, _UNDEFINED),
    (0x20, 5, _UNDEFINED),
)
_ACL_OF_755: Final = acl((0x01, 7, _UNDEFINED), (0x04, 5, _UNDEFINED), (0x20, 5, _UNDEFINED))


def files_of_all_kinds(builder: LayerBuilder) -> LayerBuilder:
    return (
        builder.file("d/file", b"1", mode=0o755)
        .file("d/secret", b"1", mode=0o600)
        .file("d/setuid", b"1", mode=0o4755)
        .directory("d/sub", mode=0o750)
        .file("d/sub/file", b"1", mode=0o644)
        .file("d/implied/file", b"1", mode=0o644)
        .symlink("d/link", "file")
        .fifo("d/fifo", mode=0o622)
    )


_MODES: Final = {
    b"d/file": 0o755,
    b"d/secret": 0o600,
    b"d/setuid": 0o4755,
    b"d/sub": 0o750,
    b"d/sub/file": 0o644,
    b"d/implied": 0o755,
    b"d/implied/file": 0o644,
    b"d/fifo": 0o622,
}


def assert_plain(layer: LayerInfo) -> None:
    found = states(layer)
    assert {path: found[path].mode for path in _MODES} == _MODES
    assert {path: found[path].xattrs for path in _MODES} == {path: {} for path in _MODES}
    acls = subprocess.run(
        ["getfacl", "--skip-base", "--recursive", "--physical", layer.path / "d/sub"],
        check=True,
        capture_output=True,
    )
    assert acls.stdout == b""


@pytest.fixture
def needs_acls(tmp_path: Path) -> None:
    _require("access control lists", lambda: os.setxattr(tmp_path, ACL_ACCESS, _CLOSED))
    os.removexattr(tmp_path, ACL_ACCESS)


@pytest.mark.usefixtures("needs_acls", "needs_trusted_xattrs")
class TestAccessControlLists:
    def test_an_archives_default_list_is_not_inherited(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        builder = LayerBuilder().directory(
            ".", mode=0o711, xattrs={"system.posix_acl_default": _CLOSED}
        )
        builder.directory("d", mode=0o2755, xattrs={"system.posix_acl_default": _CLOSED})
        layer = install(node, files_of_all_kinds(builder))
        assert_plain(layer)
        for path in (layer.path, layer.path / "d"):
            assert os.getxattr(path, ACL_DEFAULT) == _CLOSED
            assert ACL_ACCESS.decode() not in os.listxattr(path)
        assert states(layer)[b"d"].mode == 0o2755
        assert check(node) == {}

    def test_a_list_that_comes_after_the_files(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        builder = files_of_all_kinds(LayerBuilder())
        builder.directory("d", mode=0o500, xattrs={"system.posix_acl_default": _CLOSED})
        layer = install(node, builder)
        assert_plain(layer)
        assert check(node) == {}

    @pytest.mark.parametrize("where", ["work", "work/layers", "work/layers/.staging"])
    def test_a_list_of_the_stores_own_directories(self, where: str, tmp_path: Path) -> None:
        node = Node(tmp_path)
        (tmp_path / where).mkdir(parents=True)
        for option in ("--modify=u:1234:rwx", "--modify=m:rwx"):
            subprocess.run(["setfacl", "--default", option, tmp_path / where], check=True)
        layer = install(node, files_of_all_kinds(LayerBuilder().directory(".", mode=0o755)))
        assert_plain(layer)
        assert states(layer)[b"."].mode == 0o755
        assert states(layer)[b"."].xattrs == {}
        assert check(node) == {}

    def test_lists_of_files_are_as_the_disk_has_them(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        layer = install(
            node,
            LayerBuilder()
            .file("named", mode=0o640, uid=7, xattrs={"system.posix_acl_access": _NAMED})
            .file("setuid", mode=0o6751, xattrs={"system.posix_acl_access": _NAMED})
            .file(
                "no more than the mode", mode=0o755, xattrs={"system.posix_acl_access": _ACL_OF_755}
            )
            .directory("d", mode=0o751, xattrs={"system.posix_acl_access": _NAMED})
            .directory("empty", xattrs={"system.posix_acl_default": acl()})
            .fifo("fifo", mode=0o640, xattrs={"system.posix_acl_access": _NAMED})
            .symlink("link", "d", xattrs={"system.posix_acl_access": _NAMED})
            .file("default", xattrs={"system.posix_acl_default": _NAMED}),
        )
        found = states(layer)
        modes = {path: found[path].mode for path in (b"named", b"setuid", b"d", b"fifo")}
        assert modes == {b"named": 0o640, b"setuid": 0o6751, b"d": 0o751, b"fifo": 0o640}
        having = {
            path for path, state in found.items() if "system.posix_acl_access" in state.xattrs
        }
        assert having == {b"named", b"setuid", b"d", b"fifo"}
        assert check(node) == {}

    @pytest.mark.usefixtures("needs_overlay")
    def test_a_mounts_upper_directory_inherits_nothing(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        node.config.working_dir.mkdir()
        subprocess.run(
            ["setfacl", "--default", "--modify=u:1234:rwx", node.config.working_dir], check=True
        )
        own = {"system.posix_acl_access": _NAMED}
        layer = install(node, LayerBuilder().directory(".", mode=0o750, xattrs=own))
        target = tmp_path / "target"
        target.mkdir()
        with node.manager() as manager, manager.mount("m", layer.digest, target=target):
            (target / "new").touch(0o644)
            assert os.listxattr(target / "new") == []
            assert os.getxattr(target, ACL_ACCESS) == os.getxattr(layer.path, ACL_ACCESS)
            assert target.stat().st_mode & 0o7777 == 0o750


# Attributes that an image has no say in, or that Linux refuses

_LABEL: Final = b"system_u:object_r:etc_t:s0\0"


@pytest.mark.usefixtures("needs_trusted_xattrs")
class TestOtherAttributes:
    def test_labels_of_selinux_are_left_out_and_noted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        node = Node(tmp_path)
        builder = LayerBuilder()
        builder.directory("d", xattrs={"security.selinux": _LABEL, "user.a": b"1"})
        builder.file("f", xattrs={"security.selinux": _LABEL})
        layer = install(node, builder.symlink("s", "f", xattrs={"security.selinux": _LABEL}))
        assert {name: state.xattrs for name, state in states(layer).items()} == {
            b".": {}, b"d": {"user.a": b"1"}, b"f": {}, b"s": {}
        }  # fmt: skip
        assert "SELinux labels left out: the host's policy or the mount gives them: 3 times" in (
            caplog.text
        )
        assert [entry.xattrs for entry in index_of(node, layer).values() if entry.xattrs] == [
            {b"user.a": b"1"}
        ]
        assert check(node) == {}

    def test_labels_that_the_host_gives_are_no_damage(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        layer = install(node, LayerBuilder().file("f", xattrs={"security.ima": b"signature"}))
        for attribute in ("security.selinux", "security.SMACK64", "security.ima"):
            assert check(node) == {}
            os.setxattr(layer.path / "f", attribute, b"other")
        assert check(node) == {"f": "xattrs"}  # the layer brought this one

    def test_an_index_by_an_older_version_holds_a_label(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        layer = install(node, LayerBuilder().file("f"))
        path = index_path(node.config.index_dir, layer.digest)
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        value = base64.b64encode(_LABEL)
        path.write_bytes(
            gzip.compress(
                b"".join(
                    line[:-1] + b" xattr.security.selinux=" + value + b"\n"
                    if line.startswith(b"./f ")
                    else line
                    for line in lines
                )
            )
        )
        assert check(node) == {}
        os.setxattr(layer.path / "f", "security.selinux", _LABEL)
        assert check(node) == {}

    def test_what_linux_refuses_is_left_out_and_noted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        node = Node(tmp_path)
        own = {"user.a": b"1", "trusted.b": b"2"}
        layer = install(
            node,
            LayerBuilder()
            .symlink("s", "t", xattrs=own)
            .fifo("p", xattrs=own)
            .character_device("c", 1, 3, xattrs=own)
            .file("f", xattrs=own)
            .directory("d", mode=0o1777, xattrs=own),
        )
        expected = {b"s": 1, b"p": 1, b"c": 1, b"f": 2, b"d": 2}
        assert {name: len(states(layer)[name].xattrs) for name in expected} == expected
        assert "user.* attributes of symlinks, devices and fifos left out: 3 times" in caplog.text
        assert check(node) == {}


# AUFS


@pytest.mark.usefixtures("needs_root")
def test_hard_links_into_the_bookkeeping_of_aufs(tmp_path: Path) -> None:
    node = Node(tmp_path)
    layer = install(
        node,
        LayerBuilder()
        .file(".wh..wh.aufs")
        .directory(".wh..wh.orph", mode=0o700)
        .file(".wh..wh.orph/lost", b"lost")
        .directory(".wh..wh.plnk", mode=0o700)
        .file(".wh..wh.plnk/174.3", b"program", mode=0o4755, uid=7, mtime_ns=NOW)
        .file(".wh..wh.plnk/175.3", b"unused")
        .directory("bin", mtime_ns=NOW)
        .hardlink("bin/one", ".wh..wh.plnk/174.3")
        .hardlink("bin/two", "/.wh..wh.plnk/174.3")
        .hardlink("bin/three", "bin/two"),
    )
    found = states(layer)
    assert set(found) == {b".", b"bin", b"bin/one", b"bin/two", b"bin/three"}
    for name in (b"bin/one", b"bin/two", b"bin/three"):
        state = found[name]
        assert (state.content, state.mode, state.owner, state.mtime_ns) == (
            hashlib.sha256(b"program").digest(), 0o4755, (7, 0), NOW
        )  # fmt: skip
    assert (layer.path / "bin/one").stat().st_nlink == 3
    assert check(node) == {}


def test_a_hard_link_to_what_aufs_did_not_keep(tmp_path: Path) -> None:
    node = Node(tmp_path)
    builder = LayerBuilder().file(".wh..wh.plnk/1.2").hardlink("a", ".wh..wh.plnk/2.2")
    with pytest.raises(LayersFailedError) as caught:
        install(node, builder)
    assert "a hard link to .wh..wh.plnk/2.2, which is not in the layer" in str(
        caught.value.exceptions[0]
    )


# Rights


_APPLY: Final = """
import logging, sys
from pathlib import Path
from layermanager import Config, LayerManager, read_desired_state

logging.basicConfig(format="%(message)s")
state = read_desired_state(Path(sys.argv[2]).read_bytes(), "desired")
with LayerManager(Config(Path(sys.argv[1]))) as manager:
    manager.process_desired_layers(state)
"""


def apply_in_a_process(node: Node, builder: LayerBuilder, *wrapper: str) -> str:
    """Install a layer in a process of its own; return what it logs."""
    desired = publish(node, builder)
    document = node.published / "desired.json"
    document.write_text(json.dumps([{"digest": desired.digest, "url": desired.url}]))
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", _APPLY, node.config.working_dir, document],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(layermanager.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


_OWNED: Final = (
    LayerBuilder()
    .directory("d", mode=0o750, uid=1000, gid=1000, mtime_ns=NOW)
    .file("d/file", b"1", mode=0o640, uid=1000, gid=42, mtime_ns=NOW)
    .file("d/setuid", b"1", mode=0o6755, uid=1000, gid=42, mtime_ns=NOW)
    .symlink("d/link", "file", uid=1000, gid=1000, mtime_ns=NOW)
    .fifo("d/fifo", uid=5, gid=6, mtime_ns=NOW)
)


@pytest.mark.usefixtures("needs_trusted_xattrs")
@pytest.mark.parametrize(
    ("dropped", "keeps_owners"),
    [
        ("-sys_admin", True),
        ("-sys_admin,-mknod,-setfcap,-sys_ptrace", True),
        ("-sys_admin,-chown", False),
        ("-chown", False),
        ("-sys_admin,-fowner", False),
        ("-sys_admin,-dac_override", False),
    ],
)
def test_root_with_some_of_its_rights(dropped: str, keeps_owners: bool, tmp_path: Path) -> None:
    node = Node(tmp_path)
    wrapper = ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")
    log = apply_in_a_process(node, _OWNED, *wrapper)
    (layer,) = node.rows()
    found = states(layer)
    owners = {name: state.owner for name, state in found.items()}
    assert (owners == {
        b".": (0, 0), b"d": (1000, 1000), b"d/file": (1000, 42), b"d/setuid": (1000, 42),
        b"d/link": (1000, 1000), b"d/fifo": (5, 6),
    }) is keeps_owners  # fmt: skip
    assert ("owners that this process may not set" in log) is not keeps_owners
    assert keeps_owners or set(owners.values()) == {(0, 0)}
    assert {name: found[name].mode for name in (b"d", b"d/file", b"d/setuid")} == {
        b"d": 0o750, b"d/file": 0o640, b"d/setuid": 0o6755
    }  # fmt: skip
    assert check(node) == {}


def test_root_of_a_user_namespace_keeps_the_owners_that_it_maps(
    tmp_path: Path, needs_user_namespace: list[str]
) -> None:
    _require("owners of a user namespace", lambda: None)
    node = Node(tmp_path)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    del needs_user_namespace
    wrapper = ("unshare", "--user", "--map-root-user", "--mount")
    log = apply_in_a_process(node, _OWNED, *wrapper)
    (layer,) = node.rows()
    assert {state.owner for state in states(layer).values()} == {(0, 0)}
    assert "owners that this process may not set" in log
    assert check(node) == {}


# Where layers cannot be


@pytest.mark.usefixtures("needs_overlay")
def test_a_store_on_overlayfs_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "merged")]
    subprocess.run(command, check=True)
    try:
        node = Node(tmp_path, working_dir=tmp_path / "merged/store")
        desired = publish(node, LayerBuilder().whiteout("gone"))
        with node.manager() as manager:
            with pytest.raises(StoreError, match=r"is on overlayfs, which can hold no whiteouts"):
                manager.process_desired_layers([desired])
            assert manager.process_desired_layers([]).installed == ()
            assert manager.remove_cached_layers(1) == ()
        elsewhere = Node(
            tmp_path / "upper",
            working_dir=tmp_path / "merged/other",
            layers_dir=tmp_path / "layers",
        )
        with elsewhere.manager() as manager:
            manager.process_desired_layers([publish(elsewhere, LayerBuilder().whiteout("gone"))])
        assert check(elsewhere) == {}
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)
