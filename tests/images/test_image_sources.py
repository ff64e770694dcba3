from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from image_places import (
    PLACES,
    fetch,
    open_descriptors,
    resolve,
    write_docker_archive,
    write_layout,
)

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import (
    CancelledError,
    IntegrityError,
    InvalidReferenceError,
    LayerManagerError,
    ManifestError,
    SourceError,
)
from layermanager.images import default_image_sources
from layermanager.oci.manifest import MAX_DOCUMENT_BYTES
from layermanager.oci.reference import parse_reference
from layermanager.testing.images import (
    build_image,
    build_index,
    docker_archive_files,
    layout_files,
    write_files,
    write_tar,
)
from layermanager.testing.layers import LayerBuilder, compress, digest_of

if TYPE_CHECKING:
    from pathlib import Path

LOWER = LayerBuilder().directory("etc").file("etc/name", b"lower").tar()
UPPER = LayerBuilder().file("etc/name", b"upper").whiteout("gone").tar()
PLAIN = build_image([LOWER, UPPER])
COMPRESSED = build_image([compress(LOWER, "gzip"), compress(UPPER, "zstd")])


def failure(reference: str, platform: str = "") -> LayerManagerError:
    with pytest.raises(LayerManagerError) as caught:
        resolve(reference, platform)
    return caught.value


@pytest.fixture(params=PLACES)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryPlace:
    @pytest.mark.parametrize("built", [PLAIN, COMPRESSED])
    def test_an_image_is_found_with_its_layers(
        self, transport: str, tmp_path: Path, built: object
    ) -> None:
        image = PLAIN if built is PLAIN else COMPRESSED
        place = PLACES[transport](tmp_path / "place", {"app:1": image})
        reference = f"{transport}:{place}:app:1"
        found = resolve(reference)
        assert found.reference == str(parse_reference(reference))
        assert found.platform == "linux/amd64"
        assert [layer.digest for layer in found.layers] == [*map(digest_of, image.layers)]
        assert [layer.size for layer in found.layers] == [*map(len, image.layers)]
        assert [layer.diff_id for layer in found.layers] == [digest_of(LOWER), digest_of(UPPER)]
        assert (found.config, found.config_digest) == (image.config, digest_of(image.config))
        assert fetch(found) == [*image.layers]

    def test_it_is_found_again_by_its_digest(self, transport: str, tmp_path: Path) -> None:
        place = PLACES[transport](tmp_path / "place", {"app:1": COMPRESSED, "app:2": PLAIN})
        found = resolve(f"{transport}:{place}:app:2")
        again = resolve(f"{transport}:{place}@{found.digest}")
        assert (again.digest, again.layers) == (found.digest, found.layers)

    def test_the_only_image_needs_no_name(self, transport: str, tmp_path: Path) -> None:
        for number, name in enumerate(("", "app:1")):
            place = PLACES[transport](tmp_path / f"place-{number}", {name: PLAIN})
            assert len(resolve(f"{transport}:{place}").layers) == 2

    def test_of_several_one_must_be_named(self, transport: str, tmp_path: Path) -> None:
        place = PLACES[transport](tmp_path / "place", {"app:1": COMPRESSED, "app:2": PLAIN})
        error = failure(f"{transport}:{place}")
        assert isinstance(error, SourceError)
        assert "holds several images, name one of: " in str(error)
        assert "app:1, " in str(error)

    def test_an_image_that_is_not_there(self, transport: str, tmp_path: Path) -> None:
        place = PLACES[transport](tmp_path / "place", {"app:1": PLAIN})
        for reference in (f"{transport}:{place}:app:3", f"{transport}:{place}@{digest_of(b'')}"):
            assert isinstance(failure(reference), SourceError)
        assert "no image is called so, but: " in str(failure(f"{transport}:{place}:app:3"))

    def test_a_place_that_is_not_there(self, transport: str) -> None:
        error = failure(f"{transport}:/nowhere:app:1")
        assert isinstance(error, SourceError)
        assert "No such file or directory" in str(error)

    def test_a_place_that_was_made_anew(self, transport: str, tmp_path: Path) -> None:
        sources = default_image_sources(Network(), SystemClock())
        reference = parse_reference(f"{transport}:{tmp_path / 'place'}:app:1")
        digests = []
        for number, image in enumerate((PLAIN, COMPRESSED)):
            made = PLACES[transport](tmp_path / f"new-{number}", {"app:1": image})
            if number:
                (tmp_path / "place").rename(tmp_path / "old")
            made.rename(tmp_path / "place")
            (found,) = sources[transport].find_image(reference, Cancellation()).manifests
            digests.append(found.digest)
        assert digests[0] != digests[1]
        sources[transport].close()

    def test_a_layer_that_is_not_there(self, transport: str, tmp_path: Path) -> None:
        place = PLACES[transport](tmp_path / "place", {"app:1": PLAIN})
        source = default_image_sources(Network(), SystemClock())[transport]
        for url in (f"{transport}:{place}@{digest_of(b'')}", f"{transport}:{place}"):
            with pytest.raises(SourceError):
                source.open(url, Cancellation())

    def test_it_ends_when_it_is_cancelled(self, transport: str, tmp_path: Path) -> None:
        place = PLACES[transport](tmp_path / "place", {"app:1": COMPRESSED})
        cancellation = Cancellation()
        cancellation.cancel()
        with pytest.raises(CancelledError):
            default_image_sources(Network(), SystemClock())[transport].find_image(
                parse_reference(f"{transport}:{place}:app:1"), cancellation
            )

    def test_a_reference_of_a_registry_is_not_its(self, transport: str) -> None:
        with pytest.raises(InvalidReferenceError, match="not a reference to an image in a file"):
            default_image_sources(Network(), SystemClock())[transport].find_image(
                parse_reference("app"), Cancellation()
            )


class TestLayouts:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"oci-layout": b"{}"}, "oci-layout: imageLayoutVersion: is missing"),
            ({"oci-layout": b'{"imageLayoutVersion": "2.0.0"}'}, "version '2.0.0' of layouts"),
            ({"oci-layout": b"no"}, "oci-layout: not JSON"),
            ({"index.json": b"{"}, "index: not JSON"),
            ({"index.json": b" " * (MAX_DOCUMENT_BYTES + 1)}, "index: larger than 4194304 bytes"),
            ({"index.json": b'{"manifests": [{}]}'}, r"index: manifests\[0\].mediaType: is"),
        ],
    )
    @pytest.mark.parametrize("transport", ["oci", "oci-archive"])
    def test_what_is_no_layout_is_refused(
        self, tmp_path: Path, transport: str, changes: dict[str, bytes], complaint: str
    ) -> None:
        files = layout_files({"1": PLAIN}) | changes
        write = write_files if transport == "oci" else write_tar
        reference = f"{transport}:{write(tmp_path / 'place', files)}:1"
        with pytest.raises(ManifestError, match=complaint) as caught:
            resolve(reference)
        assert reference in str(caught.value)

    def test_a_directory_that_is_no_layout(self, tmp_path: Path) -> None:
        error = failure(f"oci:{tmp_path}:1")
        assert isinstance(error, SourceError)
        assert "cannot open oci-layout" in str(error)

    def test_the_best_platform_is_taken(self, tmp_path: Path) -> None:
        images = {
            name: build_image([LayerBuilder().file(name.replace("/", "-")).tar()], platform=name)
            for name in ("linux/amd64", "linux/arm/v6", "linux/arm64")
        }
        place = write_layout(tmp_path / "place", {"1": build_index([*images.values()])})
        for wanted, taken in (
            ("", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v6"),
            ("linux/arm64/v8", "linux/arm64"),
        ):
            found = resolve(f"oci:{place}:1", wanted)
            assert found.digest == images[taken].digest
        complaint = "no image for linux/riscv64, but for: linux/amd64, linux/arm/v6, linux/arm64"
        assert complaint in str(failure(f"oci:{place}:1", "linux/riscv64"))

    def test_several_of_a_name_are_one_image_for_several_platforms(self, tmp_path: Path) -> None:
        arm = build_image([UPPER], platform="linux/arm64")
        annotations = {"org.opencontainers.image.ref.name": "1"}
        manifests = [{**one.descriptor, "annotations": annotations} for one in (PLAIN, arm)]
        files = layout_files({"1": PLAIN}) | layout_files({"1": arm})
        files["index.json"] = json.dumps({"manifests": manifests}).encode()
        place = write_files(tmp_path / "place", files)
        assert resolve(f"oci:{place}:1", "linux/arm64").digest == arm.digest
        assert resolve(f"oci:{place}:1").digest == PLAIN.digest

    def test_indexes_may_not_be_endless(self, tmp_path: Path) -> None:
        image = PLAIN
        for depth in range(1, 5):
            image = build_index([image])
            write_layout(tmp_path / f"{depth}", {"1": image})
        assert resolve(f"oci:{tmp_path}/3:1").digest == PLAIN.digest
        assert "more than 4 deep" in str(failure(f"oci:{tmp_path}/4:1"))

    @pytest.mark.parametrize("document", ["manifest", "config"])
    def test_every_document_is_proved(self, tmp_path: Path, document: str) -> None:
        digest = PLAIN.digest if document == "manifest" else digest_of(PLAIN.config)
        name = f"blobs/sha256/{digest.encoded}"
        good = layout_files({"1": PLAIN})
        other = good[name].replace(b"sha256:", b"sha256:", 1)[:-1] + b" "
        place = write_files(tmp_path / "other", {**good, name: other})
        error = failure(f"oci:{place}:1")
        assert isinstance(error, IntegrityError)
        assert (error.subject, error.expected) == ("document digest", digest)
        assert error.digest == digest
        for number, content in enumerate((good[name] + b" ", good[name][:-1], b"")):
            place = write_files(tmp_path / f"size-{number}", {**good, name: content})
            error = failure(f"oci:{place}:1")
            assert isinstance(error, IntegrityError)
            assert error.subject == "document size"

    def test_a_document_that_is_said_to_be_huge_is_not_read(self, tmp_path: Path) -> None:
        huge = {**PLAIN.descriptor, "size": MAX_DOCUMENT_BYTES + 1}
        files = layout_files({"1": PLAIN}) | {
            "index.json": json.dumps({"manifests": [huge]}).encode()
        }
        with pytest.raises(ManifestError, match="more than 4194304 are not read"):
            resolve(f"oci:{write_files(tmp_path / 'place', files)}")

    def test_a_blob_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        place = write_layout(tmp_path / "place", {"1": PLAIN})
        blob = place / f"blobs/sha256/{digest_of(LOWER).encoded}"
        blob.rename(tmp_path / "elsewhere")
        blob.symlink_to(tmp_path / "elsewhere")
        found = resolve(f"oci:{place}:1")
        with pytest.raises(SourceError, match="where no symbolic link is followed"):
            fetch(found)

    def test_an_image_for_other_machines_is_refused(self, tmp_path: Path) -> None:
        place = write_layout(
            tmp_path / "place", {"1": build_image([LOWER], platform="linux/arm64")}
        )
        complaint = "it is an image for linux/arm64, not for linux/amd64"
        assert complaint in str(failure(f"oci:{place}:1"))
        assert resolve(f"oci:{place}:1", "linux/arm64").platform == "linux/arm64"

    def test_an_image_that_does_not_say_for_which_is_taken(self, tmp_path: Path) -> None:
        unsaid = build_image([LOWER], config={"os": None, "architecture": None})
        place = write_layout(tmp_path / "place", {"1": unsaid})
        assert resolve(f"oci:{place}:1").platform == "linux/amd64"

    @pytest.mark.parametrize("transport", ["oci", "oci-archive"])
    def test_a_configuration_without_a_type_is_one(self, transport: str, tmp_path: Path) -> None:
        config = {
            "mediaType": "application/octet-stream",
            "digest": digest_of(PLAIN.config),
            "size": len(PLAIN.config),
        }
        image = build_image([LOWER, UPPER], changes={"config": config})
        place = PLACES[transport](tmp_path / "place", {"app:1": image})
        found = resolve(f"{transport}:{place}:app:1")
        assert (found.config, found.diff_ids) == (
            PLAIN.config,
            (digest_of(LOWER), digest_of(UPPER)),
        )

    def test_other_content_without_a_type_is_no_image(self, tmp_path: Path) -> None:
        config = {
            "mediaType": "application/octet-stream",
            "digest": digest_of(LOWER),
            "size": len(LOWER),
        }
        image = build_image([LOWER, UPPER], changes={"config": config})
        place = PLACES["oci"](tmp_path / "place", {"1": image})
        assert "image configuration" in str(failure(f"oci:{place}:1"))

    def test_an_artifact_is_refused(self, tmp_path: Path) -> None:
        config = {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        }
        place = write_layout(
            tmp_path / "place", {"1": build_image([LOWER], changes={"config": config})}
        )
        assert "not an image but an artifact of type" in str(failure(f"oci:{place}:1"))

    def test_a_path_must_be_absolute(self, tmp_path: Path) -> None:
        write_layout(tmp_path / "app", {"1": PLAIN})
        with contextlib.chdir(tmp_path), pytest.raises(InvalidReferenceError, match="absolute"):
            resolve("oci:app:1")


class TestDockerArchives:
    def test_names_are_compared_as_docker_means_them(self, tmp_path: Path) -> None:
        images = {"app:1": PLAIN, "localhost:5000/team/app:2": COMPRESSED, "No/Name": PLAIN}
        place = write_docker_archive(tmp_path / "a.tar", images)
        for name in ("app:1", "docker.io/library/app:1", "docker.io/app:1"):
            assert fetch(resolve(f"docker-archive:{place}:{name}")) == [*PLAIN.layers]
        found = resolve(f"docker-archive:{place}:localhost:5000/team/app:2")
        assert fetch(found) == [*COMPRESSED.layers]

    def test_a_layer_of_several_images_is_there_once(self, tmp_path: Path) -> None:
        files = docker_archive_files({"app:1": PLAIN})
        lower, upper = (f"{digest_of(layer).encoded}/layer.tar" for layer in PLAIN.layers)
        builder = LayerBuilder()
        for name, content in files.items():
            if name == upper:
                builder.symlink(name, f"../{digest_of(b'other').encoded}/layer.tar")
                builder.file(f"{digest_of(b'other').encoded}/layer.tar", content)
            else:
                builder.file(name, content)
        (tmp_path / "a.tar").write_bytes(builder.tar())
        assert lower in files
        assert fetch(resolve(f"docker-archive:{tmp_path / 'a.tar'}:app:1")) == [LOWER, UPPER]

    def test_a_layer_may_be_a_hard_link(self, tmp_path: Path) -> None:
        files = docker_archive_files({"app:1": PLAIN})
        upper = f"{digest_of(PLAIN.layers[1]).encoded}/layer.tar"
        builder = LayerBuilder()
        for name, content in files.items():
            if name == upper:
                builder.file("shared", content).hardlink(name, "shared")
            else:
                builder.file(name, content)
        (tmp_path / "a.tar").write_bytes(builder.tar())
        assert fetch(resolve(f"docker-archive:{tmp_path / 'a.tar'}:app:1")) == [LOWER, UPPER]

    def test_the_layers_are_found_without_their_images(self, tmp_path: Path) -> None:
        """As for a repair, long after the image was installed."""
        place = write_docker_archive(tmp_path / "a.tar", {"app:1": COMPRESSED})
        source = default_image_sources(Network(), SystemClock())["docker-archive"]
        url = f"docker-archive:{place}@{digest_of(COMPRESSED.layers[1])}"
        stream = source.open(url, Cancellation())
        assert stream.read(10**6) == COMPRESSED.layers[1]
        stream.close()

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"manifest.json": b"{}"}, "manifest.json: the document: expected an array"),
            ({"manifest.json": b"[{}]"}, r"manifest.json: \[0\].Config: is missing"),
            (
                {"manifest.json": b'[{"Config": "c", "Layers": "l"}]', "c": b"{}"},
                r"\[0\].Layers: expected an array",
            ),
            (
                {"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": b"{}"},
                "names 0 layers, the image has 1",
            ),
            ({"manifest.json": b" " * (MAX_DOCUMENT_BYTES + 1)}, "manifest.json: larger than"),
            (
                {"manifest.json": b'[{"Config": "c"}]', "c": b" " * (MAX_DOCUMENT_BYTES + 1)},
                "configuration: larger than",
            ),
        ],
    )
    def test_what_is_no_such_archive_is_refused(
        self, tmp_path: Path, changes: dict[str, bytes], complaint: str
    ) -> None:
        place = write_tar(tmp_path / "a.tar", docker_archive_files({"app:1": PLAIN}) | changes)
        with pytest.raises(ManifestError, match=complaint):
            resolve(f"docker-archive:{place}:app:1")

    @pytest.mark.parametrize(
        ("document", "missing"),
        [
            (b'[{"Config": "c", "Layers": []}]', "c"),
            (b'[{"Config": "../../etc/passwd", "Layers": []}]', "../../etc/passwd"),
            (b'[{"Config": "/etc/passwd", "Layers": []}]', "/etc/passwd"),
        ],
    )
    def test_a_member_that_is_not_there(
        self, tmp_path: Path, document: bytes, missing: str
    ) -> None:
        place = write_tar(tmp_path / "a.tar", {"manifest.json": document})
        error = failure(f"docker-archive:{place}")
        assert isinstance(error, SourceError)
        assert f"holds no '{missing}'" in str(error)

    def test_an_archive_without_images(self, tmp_path: Path) -> None:
        place = write_tar(tmp_path / "a.tar", {"manifest.json": b"[]"})
        assert "no image is called so, but: none" in str(failure(f"docker-archive:{place}"))

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        place = write_docker_archive(tmp_path / "a.tar", {"app:1": COMPRESSED})
        before = open_descriptors()
        fetch(resolve(f"docker-archive:{place}:app:1"))
        failure(f"docker-archive:{place}:app:2")
        assert open_descriptors() == before
