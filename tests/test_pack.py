from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import logging
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_trees import comb
from layermanager.errors import PackError
from layermanager.model import DesiredLayer, Digest, Limits
from layermanager.pack import Compression, pack_layer
from layermanager.pack.layer_tar import _content, open_layer_tar
from layermanager.testing.layers import LayerBuilder, compress
from layermanager.unpack.compression import decompressed
from layermanager.unpack.streams import ByteReader
from layermanager.unpack.tar import Entry, TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root makes devices and trusted attributes")
needs_user = pytest.mark.skipif(ROOT, reason="root may read and write everything")

ACL_ENTRIES = [(0x01, 6, -1), (0x02, 4, 65534), (0x04, 4, -1), (0x10, 4, -1), (0x20, 0, -1)]
ACCESS_ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in ACL_ENTRIES)
"""user::rw- user:65534:r-- group::r-- mask::r-- other::---"""
NET_RAW_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """What a package holds, read without the code under test."""

    descriptor: Mapping[str, object]
    names: list[str]
    blob: bytes

    @property
    def tar(self) -> bytes:
        chunks = decompressed(iter([self.blob]), zstd_window_bytes=Limits().zstd_window_bytes)
        return b"".join(chunks)

    def entries(self) -> dict[bytes, Entry]:
        reader = TarReader(ByteReader(iter([self.tar])), Limits())
        return {entry.path: entry for entry in reader}


def read_package(path: Path) -> Package:
    with tarfile.open(path, "r:") as archive:
        contents = [archive.extractfile(member) for member in archive.getmembers()]
        descriptor, blob = (content.read() for content in contents if content is not None)
        return Package(json.loads(descriptor), archive.getnames(), blob)


def packed(
    source: Path, output: Path, *, compression: Compression = Compression.NONE
) -> tuple[DesiredLayer, Package]:
    layer = pack_layer(source, output, layer_id="base", version="1.0", compression=compression)
    return layer, read_package(output)


def packed_entries(source: Path, output: Path) -> dict[bytes, Entry]:
    return packed(source, output)[1].entries()


def set_xattr_or_skip(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip(f"the file system of {path} has no attribute {name}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory / "layer.tar"


class TestPackage:
    def test_holds_the_descriptor_and_the_blob(self, tree: Path, output: Path) -> None:
        (tree / "motd").write_bytes(b"hello")

        layer, package = packed(tree, output, compression=Compression.GZIP)

        digest = hashlib.sha256(package.blob).hexdigest()
        assert package.names == ["layer.json", digest]
        assert package.descriptor == {
            "mediaType": "application/vnd.aos.image.layer.v1.tar+gzip",
            "digest": f"sha256:{digest}",
            "size": len(package.blob),
            "annotations": {
                "io.layermanager.layer.content-bytes": "5",
                "io.layermanager.layer.inodes": "1",
            },
        }
        assert layer == DesiredLayer(
            digest=Digest(f"sha256:{digest}"),
            url=output.as_uri(),
            layer_id="base",
            version="1.0",
            sha256=hashlib.sha3_256(output.read_bytes()).digest(),
            size=output.stat().st_size,
        )

    def test_names_the_os_version_and_the_url_that_it_is_told(
        self, tree: Path, output: Path
    ) -> None:
        layer = pack_layer(
            tree, output, layer_id="a", version="1", os_version="12.4", url="https://example.com/a"
        )

        assert layer.url == "https://example.com/a"
        assert read_package(output).descriptor["platform"] == {
            "os": "linux",
            "os.version": "12.4",
        }

    def test_a_relative_output_has_an_absolute_url(
        self, tree: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(output.parent)

        layer, _ = packed(tree, Path("layer.tar"))

        assert layer.url == output.resolve().as_uri()

    @pytest.mark.parametrize(
        ("compression", "media_type", "magic"),
        [
            (Compression.GZIP, "application/vnd.aos.image.layer.v1.tar+gzip", b"\x1f\x8b"),
            (Compression.ZSTD, "application/vnd.aos.image.layer.v1.tar+zstd", b"\x28\xb5\x2f\xfd"),
            (Compression.NONE, "application/vnd.aos.image.layer.v1.tar", b"./"),
        ],
    )
    def test_the_blob_is_compressed_as_wanted(
        self, tree: Path, output: Path, compression: Compression, media_type: str, magic: bytes
    ) -> None:
        (tree / "motd").write_bytes(b"hello")
        plain = packed(tree, output)[1].tar

        _, package = packed(tree, output, compression=compression)

        assert package.descriptor["mediaType"] == media_type
        assert package.blob.startswith(magic)
        assert package.tar == plain

    def test_a_gzip_header_names_no_file_and_no_time(self, tree: Path, output: Path) -> None:
        _, package = packed(tree, output, compression=Compression.GZIP)

        assert package.blob[3:8] == bytes(5)

    def test_gnu_tar_reads_it(self, tree: Path, output: Path) -> None:
        (tree / "motd").write_bytes(b"hello")
        layer, _ = packed(tree, output)

        listing = subprocess.run(["tar", "-tf", output], capture_output=True, check=True)

        assert listing.stdout.decode().split() == ["layer.json", layer.digest.encoded]
        assert listing.stderr == b""

    def test_takes_the_place_of_an_earlier_one(self, tree: Path, output: Path) -> None:
        output.write_bytes(b"an earlier package")

        layer, _ = packed(tree, output)

        assert output.stat().st_size == layer.size
        assert list(output.parent.iterdir()) == [output]

    def test_has_the_permissions_of_any_new_file(self, tree: Path, output: Path) -> None:
        ordinary = output.with_name("ordinary")
        ordinary.touch()

        packed(tree, output)

        assert output.stat().st_mode == ordinary.stat().st_mode


class TestTarSource:
    def test_a_plain_tar_is_compressed(self, tmp_path: Path, output: Path) -> None:
        tar = LayerBuilder().file("etc/motd", b"hello").tar()
        source = tmp_path / "layer"
        source.write_bytes(tar)

        _, package = packed(source, output, compression=Compression.GZIP)

        assert gzip.decompress(package.blob) == tar

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_a_compressed_tar_is_taken_as_it_is(
        self, tmp_path: Path, output: Path, compression: Literal["gzip", "zstd"]
    ) -> None:
        source = tmp_path / "layer"
        source.write_bytes(compress(LayerBuilder().file("etc/motd", b"hello").tar(), compression))

        _, package = packed(source, output, compression=Compression.NONE)

        assert package.blob == source.read_bytes()
        assert package.descriptor["mediaType"] == (
            f"application/vnd.aos.image.layer.v1.tar+{compression}"
        )

    def test_zstd_may_begin_with_a_skippable_frame(self, tmp_path: Path, output: Path) -> None:
        source = tmp_path / "layer"
        source.write_bytes(b"\x5a\x2a\x4d\x18\0\0\0\0" + compress(LayerBuilder().tar(), "zstd"))

        _, package = packed(source, output)

        assert package.blob == source.read_bytes()

    def test_a_tar_without_members_is_a_layer(self, tmp_path: Path, output: Path) -> None:
        source = tmp_path / "layer"
        source.write_bytes(LayerBuilder().tar())

        assert packed_entries(source, output) == {}

    @pytest.mark.parametrize("content", [b"", b"text", bytes(100), b"PK\x03\x04" + bytes(1000)])
    def test_what_is_no_tar_is_refused(self, tmp_path: Path, output: Path, content: bytes) -> None:
        source = tmp_path / "layer"
        source.write_bytes(content)

        with pytest.raises(PackError, match=rf"^{source}: not a layer tar"):
            packed(source, output)

        assert list(output.parent.iterdir()) == []


class TestDirectorySource:
    def test_parents_come_first_and_names_in_the_order_of_their_bytes(
        self, tree: Path, output: Path
    ) -> None:
        for name in ("b", "a", "a/z", "a-", "Z", "é"):
            (tree / name).mkdir()
        (tree / "a" / "file").touch()

        names = [*packed_entries(tree, output)]

        assert names == [b"./", b"Z/", b"a/", b"a/file", b"a/z/", b"a-/", b"b/", "é/".encode()]

    def test_the_order_of_creation_does_not_matter(self, tmp_path: Path, output: Path) -> None:
        names = [f"file-{number}" for number in range(50)]
        packages = []
        for source, order in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
            source.mkdir()
            for name in order:
                (source / name).write_bytes(name.encode())
                os.utime(source / name, ns=(0, 1))
            os.utime(source, ns=(0, 1))
            packed(source, output, compression=Compression.GZIP)
            packages.append(output.read_bytes())

        assert packages[0] == packages[1]

    def test_metadata_is_exact(self, tree: Path, output: Path) -> None:
        program = tree / "program"
        program.write_bytes(b"#!")
        program.chmod(0o6755)
        os.utime(program, ns=(0, 1_700_000_000_123_456_780))
        tree.chmod(0o1751)

        entries = packed_entries(tree, output)

        assert entries[b"program"].mode == 0o6755
        assert entries[b"program"].mtime_ns == 1_700_000_000_123_456_780
        assert (entries[b"program"].uid, entries[b"program"].gid) == (os.getuid(), os.getgid())
        assert entries[b"./"].mode == 0o1751

    @given(mtime_ns=st.integers(min_value=-(2**31) * 10**9, max_value=2**33 * 10**9))
    @settings(max_examples=30)
    def test_any_time_is_kept(self, mtime_ns: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name, "tree")
            source.mkdir()
            os.utime(source, ns=(0, mtime_ns))
            kept = source.stat().st_mtime_ns

            entries = packed_entries(source, Path(name, "package"))

        assert entries[b"./"].mtime_ns == kept

    def test_owners_are_numbers(self, tree: Path, output: Path) -> None:
        _, package = packed(tree, output)

        with (
            tarfile.open(output) as outer,
            tarfile.open(fileobj=io.BytesIO(package.tar)) as layer,
        ):
            assert {(one.uname, one.gname) for one in [*outer, *layer]} == {("", "")}
            assert {(one.uid, one.gid) for one in outer} == {(0, 0)}

    @given(
        files=st.dictionaries(
            st.binary(min_size=1, max_size=255)
            .map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"-"))
            .filter(lambda name: name not in {b".", b".."} and not name.startswith(b".wh.")),
            st.binary(max_size=2000),
            max_size=5,
        )
    )
    @settings(max_examples=30)
    def test_names_and_contents_are_kept_byte_by_byte(self, files: dict[bytes, bytes]) -> None:
        with tempfile.TemporaryDirectory() as name:
            source = os.path.join(os.fsencode(name), b"tree")  # noqa: PTH118 - a Path has no bytes
            os.mkdir(source)  # noqa: PTH102 - likewise
            for file, content in files.items():
                Path(os.fsdecode(source + b"/" + file)).write_bytes(content)
            _, package = packed(Path(name, "tree"), Path(name, "package"))

        reader = TarReader(ByteReader(iter([package.tar])), Limits())
        assert {entry.path: reader.whole_content(entry) for entry in reader} == {
            b"./": b"",
            **files,
        }

    def test_long_names_and_targets_are_kept(self, tree: Path, output: Path) -> None:
        directory = tree / ("d" * 200)
        directory.mkdir()
        (directory / ("f" * 200)).touch()
        (tree / "link").symlink_to("t" * 1000)

        entries = packed_entries(tree, output)

        assert b"d" * 200 + b"/" + b"f" * 200 in entries
        assert entries[b"link"].link == b"t" * 1000

    def test_a_target_is_not_tidied_up(self, tree: Path, output: Path) -> None:
        os.symlink("./a//b/../", tree / "link")  # noqa: PTH211 - a Path would tidy it up

        assert packed_entries(tree, output)[b"link"].link == b"./a//b/../"

    def test_links_are_not_followed(self, tmp_path: Path, tree: Path, output: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").touch()
        (tree / "link").symlink_to(tmp_path / "outside")

        assert set(packed_entries(tree, output)) == {b"./", b"link"}

    def test_the_source_itself_may_be_a_link(
        self, tmp_path: Path, tree: Path, output: Path
    ) -> None:
        (tree / "file").touch()
        link = tmp_path / "link"
        link.symlink_to(tree)

        assert set(packed_entries(link, output)) == {b"./", b"file"}

    def test_files_of_several_names_are_written_once(self, tree: Path, output: Path) -> None:
        (tree / "b").write_bytes(b"content")
        (tree / "a").hardlink_to(tree / "b")
        (tree / "c").hardlink_to(tree / "b")

        entries = packed_entries(tree, output)

        assert entries[b"a"].size == len(b"content")
        assert [(entries[name].kind.value, entries[name].link) for name in (b"b", b"c")] == [
            ("hard link", b"a"),
            ("hard link", b"a"),
        ]

    def test_a_name_outside_the_source_does_not_matter(
        self, tmp_path: Path, tree: Path, output: Path
    ) -> None:
        (tree / "a").write_bytes(b"content")
        (tmp_path / "outside").hardlink_to(tree / "a")

        assert packed_entries(tree, output)[b"a"].size == len(b"content")

    def test_a_socket_is_left_out_and_logged(
        self,
        tree: Path,
        output: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tree)  # the address of a socket must be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")

        with caplog.at_level(logging.WARNING):
            entries = packed_entries(tree, output)

        assert set(entries) == {b"./"}
        assert caplog.messages == [f"{tree}/socket: is a socket and is left out"]

    def test_xattrs_are_kept(self, tree: Path, output: Path) -> None:
        (tree / "file").touch()
        set_xattr_or_skip(tree / "file", "user.binary", b"\0\xff=\n")
        os.setxattr(tree / "file", "user.empty", b"")
        set_xattr_or_skip(tree / "file", "system.posix_acl_access", ACCESS_ACL)

        assert packed_entries(tree, output)[b"file"].xattrs == {
            b"user.binary": b"\0\xff=\n",
            b"user.empty": b"",
            b"system.posix_acl_access": ACCESS_ACL,
        }

    def test_an_xattr_that_no_tar_can_name_is_refused(self, tree: Path, output: Path) -> None:
        set_xattr_or_skip(tree, "user.a=b", b"value")

        with pytest.raises(PackError, match=r"'user\.a=b' fits in no tar"):
            packed(tree, output)

    def test_memory_is_bounded(self, tree: Path, output: Path) -> None:
        with (tree / "large").open("wb") as file:
            file.truncate(64 * 1024 * 1024)

        tracemalloc.start()
        try:
            pack_layer(tree, output, layer_id="a", version="1", compression=Compression.ZSTD)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 8 * 1024 * 1024


class TestOverlaySource:
    """What overlayfs has in an upper directory becomes the markers of OCI layers."""

    def test_a_device_of_no_number_is_a_whiteout(self, tree: Path, output: Path) -> None:
        (tree / "etc").mkdir()
        os.mknod(tree / "etc" / "gone", stat.S_IFCHR)
        (tree / "gone").hardlink_to(tree / "etc" / "gone")  # overlayfs shares one device

        entries = packed_entries(tree, output)

        assert list(entries) == [b"./", b"etc/", b"etc/.wh.gone", b".wh.gone"]
        assert {entries[name].kind.value for name in (b"etc/.wh.gone", b".wh.gone")} == {"file"}

    def test_a_file_may_be_a_whiteout_by_its_xattr(self, tree: Path, output: Path) -> None:
        (tree / "gone").touch()
        set_xattr_or_skip(tree / "gone", "user.overlay.whiteout", b"")

        assert list(packed_entries(tree, output)) == [b"./", b".wh.gone"]

    def test_an_opaque_directory_begins_with_its_marker(self, tree: Path, output: Path) -> None:
        (tree / "var").mkdir()
        (tree / "var" / "!").touch()
        set_xattr_or_skip(tree / "var", "user.overlay.opaque", b"y")
        os.setxattr(tree / "var", "user.overlay.origin", b"\xff")
        os.setxattr(tree / "var", "user.kept", b"1")

        entries = packed_entries(tree, output)

        assert list(entries) == [b"./", b"var/", b"var/.wh..wh..opq", b"var/!"]
        assert entries[b"var/"].xattrs == {b"user.kept": b"1"}

    @needs_root
    def test_an_opaque_directory_of_a_privileged_overlay(self, tree: Path, output: Path) -> None:
        set_xattr_or_skip(tree, "trusted.overlay.opaque", b"y")
        os.setxattr(tree, "trusted.other", b"1")

        entries = packed_entries(tree, output)

        assert list(entries) == [b"./", b".wh..wh..opq"]
        assert entries[b"./"].xattrs == {b"trusted.other": b"1"}

    @pytest.mark.parametrize("key", ["redirect", "metacopy"])
    def test_what_lacks_its_content_is_refused(self, tree: Path, output: Path, key: str) -> None:
        (tree / "moved").mkdir()
        set_xattr_or_skip(tree / "moved", f"user.overlay.{key}", b"/before")

        with pytest.raises(PackError, match=rf"^{tree}/moved: .*overlay\.{key}.*another layer"):
            packed(tree, output)

    @needs_root
    def test_what_overlayfs_itself_wrote(self, tmp_path: Path, output: Path) -> None:
        lower, upper, work, merged = (tmp_path / name for name in ("l", "u", "w", "m"))
        for directory in (lower / "replaced", upper, work, merged):
            directory.mkdir(parents=True)
        (lower / "replaced" / "below").touch()
        (lower / "gone").touch()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, merged],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"overlayfs cannot be mounted: {mounted.stderr.decode()}")
        try:
            (merged / "gone").unlink()
            (merged / "replaced" / "below").unlink()
            (merged / "replaced").rmdir()
            (merged / "replaced").mkdir()
            (merged / "replaced" / "new").touch()
        finally:
            subprocess.run(["umount", merged], check=True)

        entries = packed_entries(upper, output)

        assert list(entries) == [
            b"./",
            b".wh.gone",
            b"replaced/",
            b"replaced/.wh..wh..opq",
            b"replaced/new",
        ]
        assert not any(entry.xattrs for entry in entries.values())


class TestGnuTar:
    """GNU tar makes the same tree of the blob that was packed."""

    def extracted(self, package: Package, directory: Path) -> Path:
        directory.mkdir()
        options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--preserve-permissions"]
        quiet = "--warning=no-unknown-keyword"  # it does not know POSIX's hdrcharset
        subprocess.run(
            ["tar", "-x", quiet, *options, "-C", directory], input=package.tar, check=True
        )
        return directory

    def test_makes_the_same_tree(self, tmp_path: Path, tree: Path, output: Path) -> None:
        fill(tree)

        _, package = packed(tree, output)

        assert snapshot(self.extracted(package, tmp_path / "extracted")) == snapshot(tree)

    @needs_root
    def test_makes_the_same_tree_of_what_only_root_can_make(
        self, tmp_path: Path, tree: Path, output: Path
    ) -> None:
        fill(tree)
        os.chown(tree / "etc" / "motd", 70_000, 3_000_000)
        os.mknod(tree / "tty", stat.S_IFCHR | 0o620, os.makedev(4, 64))
        os.mknod(tree / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_000_000))
        (tree / "ping").touch(0o755)
        set_xattr_or_skip(tree / "ping", "security.capability", NET_RAW_CAPABILITY)

        _, package = packed(tree, output)

        assert snapshot(self.extracted(package, tmp_path / "extracted")) == snapshot(tree)


class TestFailures:
    def test_a_source_that_is_not_there(self, tmp_path: Path, output: Path) -> None:
        with pytest.raises(PackError, match=r"No such file or directory.*/missing"):
            packed(tmp_path / "missing", output)

    def test_a_source_of_another_type(self, tmp_path: Path, output: Path) -> None:
        os.mkfifo(tmp_path / "fifo")

        with pytest.raises(PackError, match="/fifo: neither a directory nor a layer tar"):
            packed(tmp_path / "fifo", output)

    def test_an_endless_link(self, tmp_path: Path, tree: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")

        for source, output in (
            (tmp_path / "loop", tmp_path / "p"),
            (tree, tmp_path / "loop" / "p"),
        ):
            with pytest.raises(PackError, match="symbolic links"):
                packed(source, output)

    def test_a_name_that_means_a_removed_file(self, tree: Path, output: Path) -> None:
        (tree / "etc").mkdir()
        (tree / "etc" / ".wh.motd").touch()
        output.write_bytes(b"an earlier package")

        with pytest.raises(PackError, match=rf"^{tree}/etc/\.wh\.motd: "):
            packed(tree, output)

        assert [path.read_bytes() for path in output.parent.iterdir()] == [b"an earlier package"]

    @pytest.mark.parametrize("name", ["package", "deep/package", "."])
    def test_an_output_within_the_source(self, tree: Path, name: str) -> None:
        (tree / "deep").mkdir()

        with pytest.raises(PackError, match="must not be within its source"):
            packed(tree, tree / name)

    def test_an_output_that_is_the_source(self, tmp_path: Path) -> None:
        source = tmp_path / "layer.tar"
        source.write_bytes(LayerBuilder().tar())

        with pytest.raises(PackError, match="must not be within its source"):
            packed(source, source)

        assert source.read_bytes() == LayerBuilder().tar()

    def test_an_output_that_is_a_directory(self, tree: Path, output: Path) -> None:
        output.mkdir()

        with pytest.raises(PackError, match="is a directory; name the package's file"):
            packed(tree, output)

    def test_an_output_directory_that_is_not_there(self, tree: Path, tmp_path: Path) -> None:
        with pytest.raises(PackError, match=r"No such file or directory.*/missing"):
            packed(tree, tmp_path / "missing" / "layer.tar")

        assert not (tmp_path / "missing").exists()

    @needs_user
    def test_an_output_directory_that_is_not_ours(self, tree: Path, output: Path) -> None:
        output.parent.chmod(0o500)

        with pytest.raises(PackError, match="Permission denied"):
            packed(tree, output)

    @needs_user
    def test_a_file_that_may_not_be_read(self, tree: Path, output: Path) -> None:
        (tree / "secret").touch(0)

        with pytest.raises(PackError, match=rf"^cannot read {tree}/secret: Permission denied"):
            packed(tree, output)

        assert list(output.parent.iterdir()) == []

    def test_no_room_for_the_package(self, tmp_path: Path, output: Path) -> None:
        source = tmp_path / "layer"
        source.write_bytes(LayerBuilder().file("large", bytes(40_000)).tar())
        # The blob fits below the limit, the package around it does not.
        limit = source.stat().st_size + 512
        program = (
            "import resource, sys, pathlib\n"
            "from layermanager.pack import Compression, pack_layer\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
            "source, output = map(pathlib.Path, sys.argv[1:3])\n"
            "pack_layer(source, output, layer_id='', version='', compression=Compression.NONE)\n"
        )

        failed = subprocess.run(
            [sys.executable, "-c", program, source, output, str(limit)],
            capture_output=True,
            text=True,
            check=False,
        )

        assert "PackError: cannot pack" in failed.stderr
        assert "File too large" in failed.stderr
        assert list(output.parent.iterdir()) == []

    @pytest.mark.parametrize(
        "content", [b"", b"shorter", b"as long as before", b"more than before"]
    )
    def test_a_file_that_changes_meanwhile(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"how long it was..")
        os.utime(path, ns=(0, 0))
        before = path.lstat()
        path.write_bytes(content)

        with pytest.raises(PackError, match=rf"^{path}: changed while it was packed"):
            list(_content(os.fsencode(path), before))

    def test_a_file_that_is_replaced_meanwhile(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"content")
        before = path.lstat()
        path.unlink()
        path.symlink_to("/etc/hostname")

        with pytest.raises(PackError, match=rf"^cannot read {path}: "):
            list(_content(os.fsencode(path), before))

        path.unlink()
        os.mkfifo(path)

        with pytest.raises(PackError, match=rf"^{path}: changed while it was packed"):
            list(_content(os.fsencode(path), before))


def acting_after(name: str, source: Path, action: Callable[[], object]) -> Iterator[bytes]:
    """The tar of *source*, which changes when the header of *name* is written."""
    is_done = False
    for chunk in open_layer_tar(source, source.stat()).chunks:
        yield chunk
        if not is_done and re.search(rf"(^|\n|\0){name}/?\0".encode(), chunk):
            is_done = True
            action()


class TestOthersChangeTheSource:
    """The upper directory of a container is packed while its users may write to it."""

    @pytest.mark.parametrize("replacement", ["a symlink", "nothing", "a file"])
    @pytest.mark.parametrize("after", ["a", "b", "b/d"])
    def test_a_directory_that_is_replaced(
        self, replacement: str, after: str, tmp_path: Path
    ) -> None:
        """What is outside is never packed: the package fails, or is of what was there."""
        source, outside = tmp_path / "source", tmp_path / "outside"
        for top in (source / "b", outside):
            (top / "d").mkdir(parents=True)
            for name in ("1", "d/2"):
                (top / name).write_text("secret" if top == outside else "public")
        (source / "a").touch()

        def replace() -> None:
            (source / "b").rename(outside / "moved")
            if replacement == "a symlink":
                (source / "b").symlink_to(outside)
            elif replacement == "a file":
                (source / "b").touch()

        chunks: list[bytes] = []
        with contextlib.suppress(PackError):
            chunks.extend(acting_after(after, source, replace))
        assert (outside / "moved").exists()
        assert b"secret" not in b"".join(chunks)

    def test_a_file_that_is_gone_fails_the_package(self, tmp_path: Path) -> None:
        """It must not be left out in silence."""
        for name in ("1", "2"):
            (tmp_path / name).touch()
        chunks = acting_after("1", tmp_path, (tmp_path / "2").unlink)
        with pytest.raises(PackError, match=rf"^cannot read {tmp_path}/2: No such file"):
            list(chunks)

    def test_a_path_without_end_fails_the_package(self, tmp_path: Path) -> None:
        """No node would unpack it."""
        with (
            comb(tmp_path / "source", 40, b"d" * 240),
            pytest.raises(
                PackError, match=rf"^cannot read {tmp_path}/source/d.*: File name too long"
            ),
        ):
            list(open_layer_tar(tmp_path / "source", tmp_path.stat()).chunks)

    @needs_root
    def test_what_is_mounted_below_belongs_to_it(self, tmp_path: Path) -> None:
        (tmp_path / "source/mount").mkdir(parents=True)
        (tmp_path / "other").mkdir()
        (tmp_path / "other/file").write_text("mounted")
        mount_point = tmp_path / "source/mount"
        subprocess.run(["mount", "--bind", tmp_path / "other", mount_point], check=True)
        try:
            tar = b"".join(open_layer_tar(tmp_path / "source", tmp_path.stat()).chunks)
        finally:
            subprocess.run(["umount", mount_point], check=True)
        assert b"mounted" in tar


def fill(tree: Path) -> None:
    """Make one of everything that an ordinary user can make."""
    (tree / "etc").mkdir(0o750)
    (tree / "etc" / "motd").write_bytes(b"hello")
    (tree / os.fsdecode(b"not \xff UTF-8\n")).write_bytes(bytes(1000))
    (tree / "twice").hardlink_to(tree / "etc" / "motd")
    (tree / "link").symlink_to("etc//motd")
    (tree / "link again").hardlink_to(tree / "link")
    os.mkfifo(tree / "fifo", 0o640)
    (tree / "program").write_bytes(b"#!")
    (tree / "program").chmod(0o4755)
    (tree / ("n" * 120)).touch()
    set_xattr_or_skip(tree / "program", "user.binary", b"\xff\0")
    for number, path in enumerate(sorted(tree.rglob("*"))):
        os.utime(path, ns=(0, 10**18 + number), follow_symlinks=False)
    os.utime(tree, ns=(0, 1))


def snapshot(tree: Path) -> dict[Path, tuple[object, ...]]:
    """All that there is to say of every file, so that two trees can be compared."""
    paths = [tree, *sorted(tree.rglob("*"))]
    by_inode = {path.lstat().st_ino: path.relative_to(tree) for path in reversed(paths)}
    return {
        path.relative_to(tree): (
            oct(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            status.st_rdev,
            by_inode[status.st_ino],
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
            os.readlink(path) if path.is_symlink() else "",  # noqa: PTH115 - Path tidies it up
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
        for path in paths
        for status in [path.lstat()]
    }
