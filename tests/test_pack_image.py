from __future__ import annotations

import fcntl
import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import PackError
from layermanager.images import default_image_sources
from layermanager.images.resolve import ImageResolver
from layermanager.model import DesiredImage
from layermanager.oci.manifest import OCI_MANIFEST, ImageConfig, read_config
from layermanager.oci.platform import parse_platform
from layermanager.pack import Compression, pack_image
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, compress, digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import ResolvedImage
    from layermanager.oci.manifest import Descriptor

AMD64 = ImageConfig(parse_platform("linux/amd64"), ())
RUN = ImageConfig(
    parse_platform("linux/arm/v6"),
    (),
    created="2026-11-24T00:00:00Z",
    environment=("PATH=/bin",),
    entrypoint=("/bin/app",),
    arguments=("--serve",),
    working_directory="/srv",
    user="1000:1000",
    labels={"vendor": "us"},
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", {"etc/name": b"name", "bin/app": b"app" * 100})


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def resolve(layout: Path, name: str, platform: str = "linux/amd64") -> ResolvedImage:
    resolution = ImageResolver(default_image_sources(Network(), SystemClock())).resolve(
        [DesiredImage(f"oci:{layout}:{name}", platform)], (), {}, Cancellation()
    )
    for failed in resolution.failed:
        raise failed.error
    (image,) = resolution.images
    return image


def blob(layout: Path, image: ResolvedImage) -> bytes:
    (layer,) = image.layers
    return (layout / "blobs/sha256" / layer.digest.encoded).read_bytes()


def files_of(layout: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(layout)): path.read_bytes()
        for path in layout.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("compression", Compression)
def test_an_image_holds_the_layer_and_says_how_it_is_run(
    source: Path, layout: Path, compression: Compression
) -> None:
    descriptor = pack_image(source, layout, "1.2", config=RUN, compression=compression)
    image = resolve(layout, "1.2", "linux/arm/v6")
    assert image.digest == descriptor.digest
    (layer,) = image.layers
    data = blob(layout, image)
    assert (layer.digest, layer.size) == (digest_of(data), len(data))
    assert read_config(image.config, 1) == ImageConfig(
        platform=RUN.platform,
        diff_ids=image.diff_ids,
        created=RUN.created,
        environment=RUN.environment,
        entrypoint=RUN.entrypoint,
        arguments=RUN.arguments,
        working_directory=RUN.working_directory,
        user=RUN.user,
        labels=RUN.labels,
    )
    if compression is Compression.GZIP:
        assert image.diff_ids == (digest_of(gzip.decompress(data)),)
    if compression is Compression.NONE:
        assert image.diff_ids == (digest_of(data),)


def test_the_same_input_gives_the_same_image(source: Path, tmp_path: Path) -> None:
    layouts = [tmp_path / "one", tmp_path / "two"]
    descriptors = [pack_image(source, layout, "1", config=RUN) for layout in layouts]
    assert descriptors[0] == descriptors[1]
    assert files_of(layouts[0]) == files_of(layouts[1])


def test_files_that_are_newer_get_the_latest_time(source: Path, tmp_path: Path) -> None:
    digests = []
    for seconds in (2000, 3000):
        for path in (source, *source.rglob("*")):
            os.utime(path, ns=(0, seconds * 10**9 + 7))
        os.utime(source / "etc/name", ns=(0, 500 * 10**9 + 5))
        descriptor = pack_image(
            source, tmp_path / f"{seconds}", "1", config=AMD64, latest_ns=1000 * 10**9
        )
        digests.append(descriptor.digest)
    assert digests[0] == digests[1]
    assert pack_image(source, tmp_path / "other", "1", config=AMD64).digest != digests[0]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_compressed_tar_is_taken_as_it_is(layout: Path, tmp_path: Path, kind: str) -> None:
    tar = LayerBuilder().file("name", b"content").tar()
    packed = compress(tar, "gzip" if kind == "gzip" else "zstd")
    (tmp_path / "layer").write_bytes(packed)
    pack_image(tmp_path / "layer", layout, "1", config=AMD64)
    image = resolve(layout, "1")
    assert blob(layout, image) == packed
    assert image.diff_ids == (digest_of(tar),)
    assert kind in (layout / "blobs/sha256" / image.digest.encoded).read_text()


def test_images_are_added_to_what_is_there(source: Path, layout: Path) -> None:
    first = build_image([LayerBuilder().file("first").tar()])
    write_files(layout, layout_files({"1": first}))
    index = json.loads((layout / "index.json").read_bytes())
    index["annotations"] = {"unknown": "kept"}
    (layout / "index.json").write_text(json.dumps(index))
    second = pack_image(source, layout, "2", config=AMD64)
    assert resolve(layout, "1").digest == first.digest
    assert resolve(layout, "2").digest == second.digest
    assert json.loads((layout / "index.json").read_bytes())["annotations"] == {"unknown": "kept"}


def test_a_name_means_the_last_image_that_got_it(source: Path, layout: Path) -> None:
    pack_image(source, layout, "1", config=AMD64)
    (source / "etc/name").write_text("other")
    other = pack_image(source, layout, "1", config=AMD64)
    assert resolve(layout, "1").digest == other.digest
    assert len(json.loads((layout / "index.json").read_bytes())["manifests"]) == 1


def test_several_may_add_at_once(source: Path, layout: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from layermanager.oci.manifest import ImageConfig\n"
        "from layermanager.pack import pack_image\n"
        "source, layout = map(pathlib.Path, sys.argv[1:3])\n"
        "pack_image(source, layout, sys.argv[3], config=ImageConfig(None, ()))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(source), str(layout), name])
        for name in "1234"
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert len(json.loads((layout / "index.json").read_bytes())["manifests"]) == 4


def failure(source: Path, layout: Path) -> str:
    before = files_of(layout) if layout.is_dir() else {}
    with pytest.raises(PackError) as caught:
        pack_image(source, layout, "1", config=AMD64)
    after = files_of(layout) if layout.is_dir() else {}
    assert after == before or set(after) == {"oci-layout"}
    return str(caught.value)


def test_what_cannot_be_a_layer_is_refused(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tar " * 100)
    assert "not a layer tar" in failure(tmp_path / "text", layout)
    assert "No such file" in failure(tmp_path / "missing", layout)
    (tmp_path / "broken").write_bytes(compress(b"tar", "gzip")[:-2])
    assert "truncated gzip data" in _failure_of_broken(tmp_path / "broken", layout)


def _failure_of_broken(source: Path, layout: Path) -> str:
    with pytest.raises(PackError) as caught:
        pack_image(source, layout, "1", config=AMD64)
    assert not (layout / "index.json").exists()
    return str(caught.value)


def test_a_layout_must_not_be_in_its_source(source: Path) -> None:
    assert "must not be within its source" in failure(source, source / "layout")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"something": b"else"}, "is a directory of something else than images"),
        ({"oci-layout": b"{}"}, "layouts of version '' are not known"),
        ({"oci-layout": b"no"}, "oci-layout: not JSON"),
        ({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"{"}, "index: not JSON"),
    ],
)
def test_another_directory_is_left_alone(
    source: Path, layout: Path, files: dict[str, bytes], complaint: str
) -> None:
    write_files(layout, files)
    with pytest.raises(PackError, match=complaint):
        pack_image(source, layout, "1", config=AMD64)
    found = files_of(layout)
    assert {name: found[name] for name in files} == files
    assert (layout / "blobs").exists() == ("index.json" in files)


def test_a_layout_that_another_process_holds(source: Path, layout: Path) -> None:
    layout.mkdir()
    holder = os.open(layout, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(PackError, match="another process holds the layout"):
        pack_image(source, layout, "one", config=AMD64, patience=timedelta())
    os.close(holder)
    pack_image(source, layout, "one", config=AMD64, patience=timedelta())


def test_a_layout_is_waited_for(source: Path, layout: Path) -> None:
    layout.mkdir()
    holder = os.open(layout, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as threads:
        packed = threads.submit(pack_image, source, layout, "one", config=AMD64)
        os.close(holder)
        assert packed.result().media_type == OCI_MANIFEST


def test_a_file_in_the_place_of_the_layout(source: Path, layout: Path) -> None:
    layout.write_text("a file")
    assert "cannot pack" in failure(source, layout)


def annotation(descriptor: Descriptor) -> str:
    return descriptor.annotations["org.opencontainers.image.ref.name"]


def test_the_descriptor_is_that_of_the_index(source: Path, layout: Path) -> None:
    descriptor = pack_image(source, layout, "1.2", config=RUN)
    (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert annotation(descriptor) == "1.2"
    assert listed == {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "platform": {"os": "linux", "architecture": "arm", "variant": "v6"},
        "annotations": {"org.opencontainers.image.ref.name": "1.2"},
    }
