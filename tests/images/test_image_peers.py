"""Images by buildah, umoci and skopeo, unpacked by umoci and by us: equal file by file.

What umoci applies one over the other has to be what an overlay of our layers shows.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from debian_image import call, debian_layout
from layermanager.cli.run import run
from layermanager.config import Network, Registry
from layermanager.model import DesiredImage
from layermanager.testing import docker_registry
from layermanager.testing.trees import snapshot
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from conftest import Overlay
    from layermanager.testing.trees import FileState

pytestmark = pytest.mark.usefixtures("needs_root", "needs_trusted_xattrs", "needs_devices")


def fill(root: Path) -> None:
    """The lower layer: files of every kind, of several owners."""
    for directory in ("etc", "bin", "usr/share/doc", "gone", "replaced"):
        (root / directory).mkdir(parents=True)
    (root / "etc/name").write_text("lower")
    (root / "etc/secret").write_text("secret")
    (root / "etc/secret").chmod(0o4640)
    os.chown(root / "etc/secret", 1234, 5678)
    (root / "bin/tool").write_bytes(bytes(range(256)) * 1000)
    (root / "bin/tool").chmod(0o755)
    os.link(root / "bin/tool", root / "bin/link")
    (root / "bin/symlink").symlink_to("../bin/tool")
    (root / "etc/umlaut-ü").write_text("ü")
    (root / "gone/file").write_text("gone")
    (root / "replaced/old").write_text("old")
    os.mkfifo(root / "etc/fifo")
    os.setxattr(root / "etc/name", "user.note", b"a note")


def change(root: Path) -> None:
    """The upper layer: something removed, something replaced, something new."""
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_text("new")
    (root / "etc/name").unlink()
    (root / "etc/name").write_text("upper")
    (root / "bin/symlink").unlink()
    (root / "bin/symlink").mkdir()
    (root / "usr/share/doc/new").write_text("new")


@pytest.fixture(scope="module")
def by_umoci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout in which umoci has put an image of two layers."""
    base = tmp_path_factory.mktemp("umoci")
    layout, bundle = base / "layout", base / "bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:1")
    call("umoci", "unpack", "--image", f"{layout}:1", bundle)
    for step in (fill, change):
        step(bundle / "rootfs")
        call("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:1", bundle)
    call("umoci", "config", "--image", f"{layout}:1", "--config.cmd", "/bin/tool")
    return layout


@pytest.fixture(scope="module")
def by_buildah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout in which buildah has put an image of two layers."""
    base = tmp_path_factory.mktemp("buildah")
    layout = base / "layout"
    store = ("--storage-driver", "vfs", "--root", base / "store", "--runroot", base / "run")
    buildah: tuple[str | Path, ...] = ("buildah", *store)
    image = "scratch"
    for number, step in enumerate((fill, change)):
        container = call(*buildah, "from", image)
        step(_path(call(*buildah, "mount", container), base))
        call(*buildah, "unmount", container)
        call(*buildah, "config", "--cmd", "/bin/tool", container)
        image = f"oci:{layout}:{number}"
        call(*buildah, "commit", container, image)
        call(*buildah, "rm", container)
    call("skopeo", "copy", "--quiet", f"oci:{layout}:1", f"oci:{base / 'copy'}:1")
    return base / "copy"


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory,
    needs_docker_registry: None,  # noqa: ARG001 - it is there
) -> Iterator[str]:
    """A registry that speaks http."""
    with docker_registry.serve(tmp_path_factory.mktemp("registry")) as name:
        yield name


def _path(text: str, below: Path) -> Path:
    return below / os.path.relpath(text, below)


def by_umoci_tree(layout: Path, target: Path) -> dict[bytes, FileState]:
    call("umoci", "raw", "unpack", "--image", f"{layout}:1", target)
    return without_root(snapshot(target))


def ours(node: Node, reference: str, overlay: Overlay) -> dict[bytes, FileState]:
    """What an overlay of the layers of the image shows."""
    with node.manager() as manager:
        result = manager.process_desired_layers([DesiredImage(reference)])
        (image,) = result.images.installed
        paths = {layer.digest: layer.path for layer in manager.get_layers_info()}
    assert len(image.layers) == 2
    with overlay([paths[digest] for digest in image.stack]) as merged:
        return without_root(snapshot(merged))


def without_root(tree: Mapping[bytes, FileState]) -> dict[bytes, FileState]:
    return {path: state for path, state in tree.items() if path != b"."}


def without_times(tree: Mapping[bytes, FileState]) -> dict[bytes, FileState]:
    """*tree* without the times of directories."""
    return {
        path: replace(state, mtime_ns=0) if state.type == stat.S_IFDIR else state
        for path, state in tree.items()
    }


@pytest.mark.parametrize("builder", ["umoci", "buildah"])
@pytest.mark.parametrize(
    "kind",
    ["oci", "zstd", "oci-archive", "docker-archive", "dir to oci", "registry", "zstd in registry"],
)
def test_an_image_is_the_same_to_umoci_and_to_us(
    builder: str, kind: str, request: pytest.FixtureRequest, overlay: Overlay, tmp_path: Path
) -> None:
    layout: Path = request.getfixturevalue(f"by_{builder}")
    source = f"oci:{layout}:1"
    copy = ("skopeo", "copy", "--quiet")
    registries = {}
    match kind:
        case "oci":
            reference = source
        case "zstd":
            reference = f"oci:{tmp_path / 'zstd'}:1"
            call(*copy, "--dest-compress-format", "zstd", source, reference)
            assert "tar+zstd" in call("skopeo", "inspect", "--raw", reference)
        case "oci-archive":
            reference = f"oci-archive:{tmp_path / 'image.tar'}:1"
            call(*copy, source, reference)
        case "docker-archive":
            reference = f"docker-archive:{tmp_path / 'image.tar'}:app:1"
            call(*copy, source, reference)
        case "registry" | "zstd in registry":
            registry = request.getfixturevalue("registry")
            registries = {registry: Registry(is_plain=True)}
            reference = f"{registry}/{builder}:{kind[:4]}"
            compression = "zstd" if kind.startswith("zstd") else "gzip"
            into = ("--dest-tls-verify=false", "--dest-compress-format", compression)
            call(*copy, *into, source, f"docker://{reference}")
        case _:  # by Docker's media types and back
            call(*copy, "--format", "v2s2", source, f"dir:{tmp_path / 'dir'}")
            reference = f"oci:{tmp_path / 'other'}:1"
            call(*copy, f"dir:{tmp_path / 'dir'}", reference)
    theirs = by_umoci_tree(layout, tmp_path / "umoci")
    node = Node(tmp_path, network=Network(registries=registries))
    assert ours(node, reference, overlay) == theirs
    assert b"gone/file" not in theirs
    assert b"replaced/new" in theirs


def packed(layout: Path, source: Path, *options: str) -> Any:
    assert run(["pack", str(source), "--oci", f"{layout}:1", *options]) == 0
    return json.loads(call("skopeo", "inspect", f"oci:{layout}:1"))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_what_we_pack_is_an_image_to_skopeo(tmp_path: Path, compression: str) -> None:
    source, layout = tmp_path / "source", tmp_path / "layout"
    source.mkdir()
    fill(source)
    inspected = packed(
        layout, source, "--platform", "linux/arm64", "--env", "A=b", "--label", "vendor=us",
        "--created", "2026-11-24T01:02:03Z", "--compression", compression,
    )  # fmt: skip
    assert (inspected["Os"], inspected["Architecture"]) == ("linux", "arm64")
    assert (inspected["Env"], inspected["Labels"]) == (["A=b"], {"vendor": "us"})
    assert inspected["Created"] == "2026-11-24T01:02:03Z"
    # skopeo compares every digest of what it copies
    call("skopeo", "copy", "--quiet", f"oci:{layout}:1", f"dir:{tmp_path / 'dir'}")


def test_what_we_pack_is_unpacked_by_umoci(tmp_path: Path) -> None:
    source, layout = tmp_path / "source", tmp_path / "layout"
    source.mkdir()
    fill(source)
    packed(layout, source)
    assert by_umoci_tree(layout, tmp_path / "umoci") == without_root(snapshot(source))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_we_push_is_unpacked_by_umoci(
    tmp_path: Path, registry: str, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, layout, config = tmp_path / "source", tmp_path / "layout", tmp_path / "config.json"
    source.mkdir()
    fill(source)
    packed(layout, source, "--compression", compression)
    capsys.readouterr()
    registries = {registry: {"http": True}}
    config.write_text(json.dumps({"layerManager": {"network": {"registries": registries}}}))
    reference = f"{registry}/pushed:{compression}"
    assert run(["--config", str(config), "push", f"{layout}:1", reference]) == 0
    inspected = json.loads(call("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}"))
    assert capsys.readouterr().out == f"{registry}/pushed@{inspected['Digest']}\n"
    copy = f"oci:{tmp_path / 'copy'}:1"
    call("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", copy)
    if compression == "gzip":  # umoci 0.4 knows no other one
        assert by_umoci_tree(tmp_path / "copy", tmp_path / "umoci") == without_root(
            snapshot(source)
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_debian_from_a_registry_is_the_same_to_umoci_and_to_us(
    debian: Path, compression: str, registry: str, overlay: Overlay, tmp_path: Path
) -> None:
    reference = f"{registry}/debian:{compression}"
    copy = ("skopeo", "copy", "--quiet", "--dest-tls-verify=false")
    into = ("--dest-compress-format", compression, f"oci:{debian}:1", f"docker://{reference}")
    call(*copy, *into)
    node = Node(tmp_path, network=Network(registries={registry: Registry(is_plain=True)}))
    shown = ours(node, reference, overlay)
    theirs = by_umoci_tree(debian, tmp_path / "umoci")
    assert without_times(shown) == without_times(theirs)
    assert b"usr/bin/dpkg" in shown
    assert b"usr/share/doc" not in shown


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the smallest Debian, and a second layer that removes its documentation."""
    return debian_layout(tmp_path_factory.mktemp("debian"))
