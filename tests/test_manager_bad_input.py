"""Every bad layer gets an error that says what is wrong, and costs nobody else anything."""

from __future__ import annotations

import gzip
import os
import re
import socket
import subprocess
import tarfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    LayerError,
    LayerManagerError,
    LayersFailedError,
    LimitExceededError,
    PackageError,
    SourceError,
    StoreError,
)
from layermanager.model import DesiredLayer, Limits
from layermanager.testing.layers import (
    LayerBuilder,
    build_package,
    compress,
    descriptor,
    desired,
    digest_of,
)
from layermanager.testing.web import Answer, LayerServer
from manager_fixtures import Node, RecordingAllocators, descendants, layer_tar, names_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

TAR = layer_tar("bad", 300_000)
BLOB = compress(TAR, "gzip")
HEX = digest_of(BLOB).encoded
OTHER = compress(layer_tar("other"), "gzip")
PACKAGE = build_package(BLOB)


@dataclass(frozen=True)
class Bad:
    """Something bad behind a URL.

    Attributes:
        name: what is wrong.
        data: the file at the URL.
        error: the error's class.
        message: a regular expression that the error's message matches.
        blob: whose digest is desired.
        bare: the file is meant as the blob itself.
        changes: to the desired layer, which otherwise has the checksum and size of the file.
    """

    name: str
    data: bytes
    error: type[LayerManagerError]
    message: str
    blob: bytes = BLOB
    bare: bool = False
    changes: Mapping[str, object] = field(default_factory=dict)


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 0x55
    return bytes(changed)


def package(*members: tuple[str, bytes]) -> bytes:
    builder = LayerBuilder()
    for name, content in members:
        builder.file(name, content)
    return builder.tar()


def bad_blob(name: str, blob: bytes, error: type[LayerManagerError], message: str) -> Bad:
    return Bad(name, build_package(blob), error, message, blob=blob)


DESCRIPTOR = ("layer.json", descriptor(BLOB))
LAYER = (HEX, BLOB)
GZIPPED = gzip.compress(PACKAGE, mtime=0)
CHECKSUM = desired(BLOB, "file:///", package=PACKAGE).sha256
CUT_TAR = TAR[: len(TAR) // 2]
MARKED = flipped(TAR, len(TAR) - 2000)

BAD_BYTES = [
    Bad(
        "a package that is shorter than desired",
        PACKAGE[:-1024],
        IntegrityError,
        f"package size: expected {len(PACKAGE)} bytes, found {len(PACKAGE) - 1024}",
        changes={"size": len(PACKAGE), "sha256": CHECKSUM},
    ),
    Bad(
        "a package that is longer than desired",
        PACKAGE + bytes(512),
        IntegrityError,
        f"package size: expected {len(PACKAGE)} bytes, found .*{len(PACKAGE) + 512}",
        changes={"size": len(PACKAGE), "sha256": CHECKSUM},
    ),
    Bad("an empty package", b"", PackageError, r"holds no layer\.json"),
    Bad("a package cut off in its gzip", GZIPPED[:-5000], ArchiveError, "package: .*gzip"),
    Bad(
        "a package cut off in its gzip header", GZIPPED[:5], ArchiveError, "package: .*(gzip|ends)"
    ),
    Bad("a package cut off in the blob", PACKAGE[:100_000], ArchiveError, "package: .*(ends|cut)"),
    Bad(
        "a package cut off between its members",
        package(DESCRIPTOR)[:-1024],
        PackageError,
        f"no blob {HEX}",
    ),
    Bad(
        "a package with a damaged gzip",
        flipped(GZIPPED, len(GZIPPED) // 2),
        ArchiveError,
        "package: .*gzip",
    ),
    Bad("a page instead of a package", b"<html>Sign in</html>" * 100, ArchiveError, "package: "),
    Bad(
        "another checksum",
        PACKAGE,
        IntegrityError,
        rf"package checksum: expected {'07' * 32}, found SHA3-256 {CHECKSUM.hex()}, SHA-256 \w+",
        changes={"sha256": bytes([7]) * 32},
    ),
    Bad(
        "a flipped bit in a header of the package",
        flipped(PACKAGE, 265),
        ArchiveError,
        "the package: .*(header|checksum)",
    ),
    Bad(
        "a flipped bit in the last block of zeros",
        flipped(PACKAGE, len(PACKAGE) - 1),
        IntegrityError,
        f"package checksum: expected {CHECKSUM.hex()}, found SHA3-256 ",
        changes={"sha256": CHECKSUM},
    ),
    Bad(
        "a blob of another digest under the right name",
        package(("layer.json", descriptor(TAR)), (digest_of(TAR).encoded, MARKED)),
        IntegrityError,
        f"layer digest: expected {digest_of(TAR)}, found {digest_of(MARKED)}",
        blob=TAR,
    ),
    Bad(
        "a gzip blob of another digest under the right name",
        package(DESCRIPTOR, (HEX, flipped(BLOB, 9))),  # only the header's operating system
        IntegrityError,
        f"digest.*: expected {digest_of(BLOB)}, found {digest_of(flipped(BLOB, 9))}|size",
    ),
    Bad(
        "a descriptor of another layer",
        package(("layer.json", descriptor(OTHER)), LAYER),
        IntegrityError,
        rf"digest in layer\.json: expected {digest_of(BLOB)}, found {digest_of(OTHER)}",
    ),
    Bad(
        "the package of another layer",
        build_package(OTHER),
        IntegrityError,
        rf"digest in layer\.json: expected {digest_of(BLOB)}, found {digest_of(OTHER)}",
    ),
    Bad(
        "the package of another layer, blob first",
        package((digest_of(OTHER).encoded, OTHER), ("layer.json", descriptor(OTHER))),
        PackageError,
        f"unknown member {digest_of(OTHER).encoded}.*expected layer.json and {HEX}",
    ),
    Bad(
        "a descriptor with another size",
        build_package(BLOB, {"size": len(BLOB) + 1}),
        IntegrityError,
        rf"size in layer\.json: expected {len(BLOB)} .*found {len(BLOB) + 1}",
    ),
    Bad("a descriptor without size", build_package(BLOB, {"size": None}), PackageError, "size"),
    Bad(
        "a descriptor with a text for a size",
        build_package(BLOB, {"size": "10"}),
        PackageError,
        r"layer\.json: size: expected an integer, found a text",
    ),
    Bad(
        "a descriptor without digest",
        build_package(BLOB, {"digest": None}),
        PackageError,
        r"layer\.json: digest: is missing",
    ),
    Bad(
        "a descriptor that is no JSON",
        package(("layer.json", b"{"), LAYER),
        PackageError,
        r"layer\.json: not JSON",
    ),
    Bad(
        "a descriptor that is no object",
        package(LAYER, ("layer.json", b"[]")),
        PackageError,
        r"layer\.json: .*expected an object, found an array",
    ),
    Bad(
        "an endless descriptor",
        package(("layer.json", b" " * 100_000), LAYER),
        PackageError,
        r"layer\.json is larger than",
    ),
    Bad("no descriptor", package(LAYER), PackageError, r"no layer\.json"),
    Bad(
        "two descriptors",
        package(DESCRIPTOR, LAYER, DESCRIPTOR),
        PackageError,
        r"layer\.json twice",
    ),
    Bad("no blob", package(DESCRIPTOR), PackageError, f"no blob {HEX}"),
    Bad("two blobs", package(LAYER, LAYER, DESCRIPTOR), PackageError, "blob twice"),
    Bad(
        "an unknown member",
        package(DESCRIPTOR, LAYER, ("README", b"")),
        PackageError,
        rf"unknown member README.*expected layer\.json and {HEX}",
    ),
    Bad(
        "an unknown member before all others",
        package(("../layer.json", b"{}"), DESCRIPTOR, LAYER),
        PackageError,
        r"unknown member \.\./layer\.json",
    ),
    Bad(
        "a blob that is a symlink",
        LayerBuilder().file(*DESCRIPTOR).symlink(HEX, "/etc/passwd").tar(),
        PackageError,
        f"{HEX} in the package is no plain file",
    ),
    Bad(
        "a blob that is a hard link",
        LayerBuilder().file(*DESCRIPTOR).hardlink(HEX, "layer.json").tar(),
        PackageError,
        f"{HEX} in the package is no plain file",
    ),
    Bad(
        "a descriptor that is a symlink",
        LayerBuilder().symlink("layer.json", "/etc/passwd").file(*LAYER).tar(),
        PackageError,
        r"layer\.json in the package is no plain file",
    ),
    bad_blob("a blob cut off in its gzip", BLOB[:-1000], ArchiveError, "gzip"),
    bad_blob("a blob with a damaged gzip", flipped(BLOB, 1000), ArchiveError, "gzip"),
    bad_blob("a blob with another gzip checksum", flipped(BLOB, len(BLOB) - 8), ArchiveError, ""),
    bad_blob("a blob cut off in its tar", CUT_TAR, ArchiveError, "ends|cut"),
    bad_blob(
        "a blob cut off in its zstd", compress(TAR, "zstd")[:-1000], ArchiveError, "zstd|ends"
    ),
    bad_blob(
        "a blob with a damaged tar header",
        compress(flipped(TAR, 512 + 150), "gzip"),
        ArchiveError,
        "checksum|header",
    ),
    bad_blob("a blob that is no archive", b"Not Found" * 1000, ArchiveError, ""),
    bad_blob(
        "a path that leads out of the layer",
        LayerBuilder().file("../../escaped", b"").tar(),
        ArchiveError,
        r"leads out of the layer: \.\./\.\.",
    ),
    bad_blob(
        "a hard link that leads out of the layer",
        LayerBuilder().hardlink("passwd", "../../../../etc/passwd").tar(),
        ArchiveError,
        "etc/passwd",
    ),
    bad_blob(
        "a hard link to nothing",
        LayerBuilder().hardlink("one", "two").tar(),
        ArchiveError,
        "two",
    ),
    bad_blob("a bare whiteout", LayerBuilder().file(".wh.").tar(), ArchiveError, r"\.wh\."),
    Bad(
        "a bare blob of another digest",
        OTHER,
        IntegrityError,
        f"layer digest: expected {digest_of(BLOB)}, found {digest_of(OTHER)}",
        bare=True,
    ),
    Bad(
        "a bare blob of another size",
        OTHER,
        IntegrityError,
        f"layer size: expected {len(BLOB)} bytes, found {len(OTHER)}",
        bare=True,
        changes={"size": len(BLOB)},
    ),
]


class Neighbourhood:
    """A store with a layer, and good layers before and after the bad one in the desired list."""

    def __init__(self, base: Path, **settings: Any) -> None:
        self.node = Node(base, **settings)
        self.allocators = RecordingAllocators()
        self.manager = self.node.manager(new_space_allocator=self.allocators)
        self.earlier = self.node.publish("earlier", 100_000)
        self.manager.process_desired_layers([self.earlier])
        self.files_before = self.node.files()

    def failure_of(self, bad: DesiredLayer) -> LayerManagerError:
        """Desire *bad*, see that everything else is as it should be, and return the error."""
        before, after = self.node.publish("before"), self.node.publish("after")
        with pytest.raises(LayersFailedError) as caught:
            self.manager.process_desired_layers([before, self.earlier, bad, after])
        result = caught.value.result
        assert [failed.desired for failed in result.failed] == [bad]
        assert list(caught.value.exceptions) == [failed.error for failed in result.failed]
        assert names_in(result.kept) == ["earlier"]
        assert names_in(result.installed) == ["before", "after"]
        self.node.assert_has([before, self.earlier, after])
        assert self.node.files()[self.earlier.digest] == self.files_before[self.earlier.digest]
        assert self.allocators.held == 0
        server = next(iter(descendants()))
        assert descendants() == {server}  # the unpackers' parent, and none of its children
        return result.failed[0].error


@pytest.fixture
def neighbourhood(tmp_path: Path) -> Iterator[Neighbourhood]:
    neighbourhood = Neighbourhood(tmp_path)
    yield neighbourhood
    neighbourhood.manager.close()


@pytest.mark.parametrize("bad", BAD_BYTES, ids=[bad.name for bad in BAD_BYTES])
def test_bad_bytes(neighbourhood: Neighbourhood, bad: Bad) -> None:
    path = neighbourhood.node.published / "bad"
    path.write_bytes(bad.data)
    layer = desired(bad.blob, path.as_uri(), package=None if bad.bare else bad.data)
    layer = replace(layer, size=len(bad.data))
    error = neighbourhood.failure_of(replace(layer, **bad.changes))  # type: ignore[arg-type]  # a field's own type each
    assert type(error) is bad.error
    assert re.search(bad.message, str(error)), str(error)
    assert isinstance(error, LayerError)
    assert error.digest == layer.digest
    if isinstance(error, IntegrityError):
        assert error.expected in str(error)
        assert error.found in str(error)


class TestEveryByte:
    @pytest.mark.slow
    def test_no_damaged_byte_of_a_package_goes_unnoticed(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        blob = compress(layer_tar("one"), "gzip")
        whole = build_package(blob)
        good = desired(blob, (node.published / "bad").as_uri(), package=whole)
        with node.manager() as manager:
            for position in range(0, len(whole), 37):
                (node.published / "bad").write_bytes(flipped(whole, position))
                with pytest.raises(LayersFailedError):
                    manager.process_desired_layers([good])
            node.assert_has([])


def test_limits_of_the_configuration(tmp_path: Path) -> None:
    neighbourhood = Neighbourhood(
        tmp_path, limits=Limits(unpacked_bytes=250_000, package_bytes=400_000)
    )
    try:
        for size, compressed in ((300_000, "unpackedBytes"), (500_000, "packageBytes")):
            layer = neighbourhood.node.publish(f"large-{size}", size)
            error = neighbourhood.failure_of(layer)
            assert isinstance(error, LimitExceededError)
            assert re.search(compressed, str(error)), str(error)
            assert error.digest == layer.digest
            neighbourhood.manager.process_desired_layers([neighbourhood.earlier])
            neighbourhood.manager.remove_cached_layers(10**9)
    finally:
        neighbourhood.manager.close()


class TestSources:
    def test_a_file_that_is_not_there(self, neighbourhood: Neighbourhood) -> None:
        url = (neighbourhood.node.published / "nowhere").as_uri()
        error = neighbourhood.failure_of(desired(BLOB, url))
        assert isinstance(error, SourceError)
        assert (error.url, error.digest) == (url, digest_of(BLOB))
        assert "No such file" in str(error)

    def test_a_directory(self, neighbourhood: Neighbourhood) -> None:
        error = neighbourhood.failure_of(
            desired(BLOB, neighbourhood.node.published.as_uri(), package=PACKAGE)
        )
        assert isinstance(error, SourceError)
        assert "Is a directory" in str(error)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_a_file_that_may_not_be_read(self, neighbourhood: Neighbourhood) -> None:
        layer = neighbourhood.node.publish("secret")
        (neighbourhood.node.published / "secret").chmod(0)
        error = neighbourhood.failure_of(layer)
        assert isinstance(error, SourceError)
        assert "Permission denied" in str(error)

    def test_a_file_that_is_not_on_the_server(self, neighbourhood: Neighbourhood) -> None:
        with LayerServer() as server:
            error = neighbourhood.failure_of(desired(BLOB, f"{server.url}/nowhere"))
        assert isinstance(error, SourceError)
        assert re.search(rf"404 Not Found: {server.url}/nowhere", str(error))

    def test_a_server_that_breaks_off(self, neighbourhood: Neighbourhood) -> None:
        with LayerServer() as server:
            url = server.answer("/one", Answer(PACKAGE, truncate_at=150_000))
            error = neighbourhood.failure_of(desired(BLOB, url, package=PACKAGE))
        assert isinstance(error, SourceError)
        assert re.search(rf"150000 of {len(PACKAGE)} bytes", str(error)), str(error)

    def test_a_server_with_a_file_of_another_size(self, neighbourhood: Neighbourhood) -> None:
        with LayerServer() as server:
            layer = desired(BLOB, server.add("/one", PACKAGE[:-512]), package=PACKAGE)
            error = neighbourhood.failure_of(layer)
        assert isinstance(error, IntegrityError)
        assert (error.expected, error.found) == (f"{len(PACKAGE)} bytes", str(len(PACKAGE) - 512))

    def test_nobody_at_the_address(self, neighbourhood: Neighbourhood) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            error = neighbourhood.failure_of(desired(BLOB, f"http://127.0.0.1:{port}/one"))
        assert isinstance(error, SourceError)
        assert "Connection refused" in str(error)

    @pytest.mark.parametrize("url", ["ftp://example.com/one", "/one", "one"])
    def test_a_scheme_that_is_not_known(self, neighbourhood: Neighbourhood, url: str) -> None:
        error = neighbourhood.failure_of(desired(BLOB, url))
        assert isinstance(error, SourceError)
        assert re.search(rf"known scheme \(.*file, http, https.*\).*{url}", str(error))


class TestPlaces:
    """Directories that cannot be written, for root as for others."""

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_layers_directory_that_may_not_be_written(self, tmp_path: Path) -> None:
        node = Node(tmp_path)
        earlier, layer = node.publish("earlier"), node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([earlier])
            before = node.files()
            staging = node.config.layers_dir / ".staging"
            staging.chmod(0o500)
            try:
                with pytest.raises(LayersFailedError) as caught:
                    manager.process_desired_layers([earlier, layer])
            finally:
                staging.chmod(0o700)
            (error,) = caught.value.exceptions
            assert type(error) is StoreError
            assert str(staging) in str(error)
            assert node.files() == before
            assert len(manager.process_desired_layers([earlier, layer]).installed) == 1

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_working_directory_that_may_not_be_made(self, tmp_path: Path) -> None:
        node = Node(tmp_path, working_dir=tmp_path / "closed/work")
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(StoreError, match=f"{tmp_path}/closed/work"):
            node.manager()

    def test_a_file_in_place_of_the_working_directory(self, tmp_path: Path) -> None:
        node = Node(tmp_path, working_dir=tmp_path / "file/work")
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=f"{tmp_path}/file'"):
            node.manager()

    def test_a_layers_directory_that_can_only_be_read(
        self, tmp_path: Path, small_file_system: Path
    ) -> None:
        node = Node(tmp_path, layers_dir=small_file_system / "layers")
        earlier, layer = node.publish("earlier"), node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([earlier])
            before = node.files()
            subprocess.run(["mount", "-o", "remount,ro", small_file_system], check=True)
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([earlier, layer])
            (error,) = caught.value.exceptions
            assert type(error) is StoreError
            assert re.search(f"{small_file_system}|[Rr]ead-only", str(error))
            assert names_in(caught.value.result.kept) == ["earlier"]
            assert node.files() == before
            subprocess.run(["mount", "-o", "remount,rw", small_file_system], check=True)
            assert len(manager.process_desired_layers([earlier, layer]).installed) == 1
        node.assert_has([earlier, layer])


def test_a_tar_of_another_making_is_no_package(neighbourhood: Neighbourhood) -> None:
    """The layer's own tar, where a package is expected: an easy mistake of a publisher."""
    path = neighbourhood.node.published / "bad"
    path.write_bytes(TAR)
    error = neighbourhood.failure_of(desired(TAR, path.as_uri(), package=TAR))
    assert isinstance(error, PackageError)
    assert "unknown member" in str(error)


def test_old_tar_formats_of_the_package_will_do(neighbourhood: Neighbourhood) -> None:
    formats: list[Callable[[], LayerBuilder]] = [
        lambda: LayerBuilder(tarfile.USTAR_FORMAT),
        lambda: LayerBuilder(tarfile.GNU_FORMAT),
    ]
    for number, new in enumerate(formats):
        blob = compress(layer_tar(f"format-{number}"), "gzip")
        data = new().file("layer.json", descriptor(blob)).file(digest_of(blob).encoded, blob).tar()
        layer = neighbourhood.node.publish_bytes(f"format-{number}", blob, data)
        assert len(neighbourhood.manager.process_desired_layers([layer]).installed) == 1
