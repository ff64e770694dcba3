"""Layers that an ordinary user unpacks, mounts and removes: a real one, in processes of his own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pytest
from prison import ORDINARY_USER

import layermanager
from layermanager.testing.layers import LayerBuilder, compress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_NANOSECOND: Final = 1_600_000_000_000_000_001
_UNPACK: Final = """
import contextlib, datetime, json, os, sys
from layermanager.model import Digest, Limits
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job

blob_path, root_path, digest = sys.argv[1:]
measures = {}
with contextlib.ExitStack() as stack:
    unpacker = stack.enter_context(contextlib.closing(Unpacker(datetime.timedelta(seconds=60))))
    root = os.open(root_path, os.O_RDONLY | os.O_DIRECTORY)
    index = os.open(root_path + ".index", os.O_RDWR | os.O_CREAT)
    job = Job(
        digest=Digest(digest), is_package=False, limits=Limits(), granted=1 << 40, block_bytes=4096
    )
    unpacking = stack.enter_context(unpacker.start(job, root, index, lambda need: need.wanted))
    with open(blob_path, "rb") as blob:
        unpacking.feed(blob.read())
    unpacked = unpacking.finish()
    measures = {measure.name: measure.why_not for measure in unpacking.jail_measures()}
print(json.dumps({"notes": dict(unpacked.notes), "measures": measures}))
"""
_REMOVE: Final = """
import os, sys
from layermanager.removal import remove_tree

directory = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
remove_tree(sys.argv[2], dir_fd=directory)
"""


class Run(Protocol):
    """Runs a program as the ordinary user and returns what it prints."""

    def __call__(self, *command: str | Path) -> str: ...


def _run(environment: Mapping[str, str], *command: str | Path) -> str:
    is_root = os.geteuid() == 0
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        cwd="/",
        env=environment,
        user=ORDINARY_USER if is_root else None,
        group=ORDINARY_USER if is_root else None,
        extra_groups=[] if is_root else None,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the ordinary user."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, ORDINARY_USER, ORDINARY_USER)
    yield path
    for below in path.rglob("*"):
        if below.is_dir() and not below.is_symlink():
            below.chmod(0o700)
    shutil.rmtree(path)


@pytest.fixture
def run(directory: Path) -> Run:
    """Runs programs as the ordinary user, who can import ``layermanager``."""
    source = directory / "source"
    package = Path(layermanager.__file__).parent
    shutil.copytree(
        package, source / "layermanager", ignore=shutil.ignore_patterns("__pycache__", "cli")
    )
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return functools.partial(_run, {"PYTHONPATH": str(source), "PATH": os.environ["PATH"]})


@pytest.fixture
def python(run: Run) -> str:
    """An interpreter that the ordinary user can run; a developer's own may be in /root."""
    tried = []
    for interpreter in (sys.executable, "/usr/bin/python3"):
        try:
            run(interpreter, "-c", "import layermanager.unpack.server, layermanager.removal")
        except (AssertionError, OSError) as error:
            tried.append(f"{interpreter}: {error}")
        else:
            return interpreter
    pytest.skip(f"needs an interpreter that everybody can run: {'; '.join(tried)}")


@pytest.fixture
def unpack(directory: Path, python: str, run: Run) -> Callable[[str, bytes], Mapping[str, object]]:
    """Unpacks a tar as the ordinary user; returns notes and the measures of the jail."""

    def unpack_as_user(name: str, tar: bytes) -> Mapping[str, object]:
        blob = compress(tar, "gzip")
        (directory / f"{name}.blob").write_bytes(blob)
        run("mkdir", directory / name)
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        answer = run(python, "-c", _UNPACK, directory / f"{name}.blob", directory / name, digest)
        result = json.loads(answer)
        assert isinstance(result, dict)
        return result

    return unpack_as_user


_UPPER: Final = (
    LayerBuilder()
    .directory("etc", uid=1, gid=2, mode=0o751, mtime_ns=_NANOSECOND)
    .file("etc/shadow", b"secret", uid=0, gid=42, mode=0o640, mtime_ns=_NANOSECOND)
    .file("setuid", b"program", uid=0, mode=0o4755)
    .file("setgid", b"program", gid=7, mode=0o2755)
    .directory("sticky", mode=0o1777)
    .file("attributes", b"", xattrs={"user.kept": b"value", "security.capability": b"\1" * 20})
    .file("trusted", b"", xattrs={"trusted.left.out": b"value"})
    .file("forbidden", b"", xattrs={"user.overlay.metacopy": b""})
    .character_device("null", 1, 3)
    .block_device("disk", 8, 0)
    .fifo("fifo", mode=0o600)
    .symlink("symlink", "etc/shadow", uid=5)
    .hardlink("hard", "etc/shadow")
    .whiteout("gone")
    .directory("hidden")
    .opaque("hidden")
    .file("hidden/new", b"new")
    .directory("locked", mode=0o555)
    .file("locked/file", b"content", mode=0o444)
    .directory("closed", mode=0)
    .file("closed/file", b"content", mode=0)
    .tar()
)
_LOWER: Final = (
    LayerBuilder()
    .file("gone", b"old")
    .file("stays", b"old")
    .directory("hidden")
    .file("hidden/old", b"old")
    .tar()
)


def test_layer_of_an_ordinary_user(
    directory: Path, unpack: Callable[[str, bytes], Mapping[str, object]]
) -> None:
    result = unpack("layer", _UPPER)
    assert result["notes"] == {
        "devices left out": 2,
        "overlayfs attributes in the archive not honoured": 1,
        "privileged extended attributes left out": 2,
    }
    layer = directory / "layer"
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (layer, *layer.rglob("*"))}
    me = (directory.stat().st_uid, directory.stat().st_gid)
    assert owners == {me}
    modes = {
        name: stat.S_IMODE((layer / name).lstat().st_mode)
        for name in ("etc", "etc/shadow", "setuid", "setgid", "sticky", "fifo", "locked", "closed")
    }
    assert modes == {
        "etc": 0o751,
        "etc/shadow": 0o640,
        "setuid": 0o4755,
        "setgid": 0o2755,
        "sticky": 0o1777,
        "fifo": 0o600,
        "locked": 0o555,
        "closed": 0,
    }
    assert (layer / "etc").stat().st_mtime_ns == _NANOSECOND
    assert (layer / "etc/shadow").stat().st_mtime_ns == _NANOSECOND
    assert (layer / "etc/shadow").samefile(layer / "hard")
    assert (layer / "symlink").readlink() == Path("etc/shadow")
    assert os.listxattr(layer / "attributes") == ["user.kept"]
    assert os.listxattr(layer / "forbidden") == os.listxattr(layer / "trusted") == []
    assert os.getxattr(layer / "hidden", "user.overlay.opaque") == b"y"
    whiteout = (layer / "gone").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == os.makedev(0, 0)
    assert not (layer / "null").exists()
    assert not (layer / "disk").exists()


def test_overlay_of_an_ordinary_user(
    directory: Path, run: Run, unpack: Callable[[str, bytes], Mapping[str, object]]
) -> None:
    unpack("upper", _UPPER)
    unpack("lower", _LOWER)
    run("mkdir", directory / "merged")
    options = f"ro,userxattr,lowerdir={directory}/upper:{directory}/lower"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(directory / "merged")]
    try:
        run("unshare", "--user", "--map-root-user", "--mount", *mount)
    except AssertionError as error:
        pytest.skip(f"needs overlay mounts in user namespaces (Linux 5.11): {error}")
    script = f'"$@" && cd {directory}/merged && ls -A . hidden'
    listed = run("unshare", "-Urm", "sh", "-ec", script, "sh", *mount).split()
    assert "stays" in listed
    assert "gone" not in listed
    assert listed[listed.index("hidden:") :] == ["hidden:", "new"]


def test_layer_of_an_ordinary_user_can_be_removed(
    directory: Path, python: str, run: Run, unpack: Callable[[str, bytes], Mapping[str, object]]
) -> None:
    unpack("layer", _UPPER)
    run(python, "-c", _REMOVE, directory, "layer")
    assert not (directory / "layer").exists()


def test_what_needs_no_namespaces_is_in_force_for_everybody(
    unpack: Callable[[str, bytes], Mapping[str, object]],
) -> None:
    measures = unpack("layer", _LOWER)["measures"]
    assert isinstance(measures, dict)
    for name in ("resource limits", "no new privileges", "capabilities"):
        assert measures[name] == ""


def test_worker_keeps_what_an_unpacker_needs_in_every_interpreter(
    directory: Path, unpack: Callable[[str, bytes], Mapping[str, object]]
) -> None:
    """Thousands of entries, so that directories are closed again, queues fill and arenas grow."""
    builder = LayerBuilder()
    for number in range(400):
        builder.directory(f"d{number}").file(f"d{number}/file", bytes(number) * 50)
    for number in range(0, 400, 7):
        builder.file(f"d{number}", b"replaced")
    unpack("layer", builder.tar())
    assert len(list((directory / "layer").iterdir())) == 400


def test_lists_of_the_parent_directory_change_no_modes(
    directory: Path, run: Run, unpack: Callable[[str, bytes], Mapping[str, object]]
) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("needs the program setfacl")
    run("setfacl", "--default", "--modify=u:1234:rwx,g::---,m:rwx,o::r-x", directory)
    tar = LayerBuilder().directory("d", mode=0o755).file("d/file", b"1", mode=0o755)
    unpack("layer", tar.file("d/private", b"1", mode=0o640).tar())
    layer = directory / "layer"
    names = (".", "d", "d/file", "d/private")
    modes = [stat.S_IMODE((layer / name).stat().st_mode) for name in names]
    assert modes == [0o755, 0o755, 0o755, 0o640]
    assert [os.listxattr(layer / name) for name in names] == [[], [], [], []]
