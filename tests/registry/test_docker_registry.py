"""Images by skopeo in Debian's docker-registry, with TLS, with a login, behind a mirror."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from registry_places import image_of

from layermanager.config import Network, Registry
from layermanager.errors import LayersFailedError, SourceError
from layermanager.images.push import PushProgress, push_image
from layermanager.model import DesiredImage, DesiredLayer
from layermanager.testing import docker_registry
from layermanager.testing.images import (
    build_image,
    build_index,
    docker_archive_files,
    layout_files,
    write_files,
    write_tar,
)
from layermanager.testing.layers import digest_of
from layermanager.testing.tls import Authority
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.testing.images import BuiltImage

pytestmark = pytest.mark.usefixtures("needs_docker_registry")

IMAGE = image_of("some text")


@dataclass(frozen=True)
class Served:
    """A registry, and the files by which skopeo and we get in."""

    name: str
    bundle: Path
    auth: Path


def skopeo(*arguments: str | Path) -> str:
    done = subprocess.run(["skopeo", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def put(image: BuiltImage, reference: str, tmp_path: Path, *options: str | Path) -> None:
    """Have skopeo copy *image*."""
    layout = write_files(tmp_path / "layout", layout_files({"1": image}))
    skopeo("copy", "--quiet", *options, f"oci:{layout}:1", f"docker://{reference}")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that speaks http to everybody."""
    with docker_registry.serve(tmp_path_factory.mktemp("registry")) as name:
        yield name


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that speaks TLS to those it knows."""
    base = tmp_path_factory.mktemp("locked")
    for name in ("authority", "registry", "certificates"):
        (base / name).mkdir()
    authority = Authority.create(base / "authority")
    certificate = authority.server_certificate()
    with docker_registry.serve(base / "registry", certificate=certificate, asks_who=True) as name:
        (base / "certificates/ca.crt").write_bytes(authority.bundle.read_bytes())
        login = ("--username", docker_registry.USER, "--password-stdin", name)
        auth = base / "auth.json"
        subprocess.run(
            ["skopeo", "login", "--authfile", auth, "--cert-dir", base / "certificates", *login],
            input=docker_registry.PASSWORD,
            check=True,
            capture_output=True,
            text=True,
        )
        yield Served(name, authority.bundle, auth)


def with_hard_links(archive: Path, target: Path) -> Path:
    """Pack the members of *archive* again, each with a second name that is a hard link.

    GNU tar then stores one of the two, the one that comes first, and a link.
    """
    place = archive.with_suffix(".members")
    place.mkdir()
    subprocess.run(["tar", "-C", place, "-xf", archive], check=True)
    names = sorted(one.name for one in place.iterdir() if not one.is_symlink() and one.is_file())
    for name in names:
        (place / f"copy-of-{name}").hardlink_to(place / name)
    copies = [f"copy-of-{name}" for name in names]
    links = sorted(str(one.relative_to(place)) for one in place.rglob("*") if one.is_symlink())
    subprocess.run(["tar", "-C", place, "-cf", target, *copies, *names, *links], check=True)
    assert (
        " link to "
        in subprocess.run(
            ["tar", "-tvf", target], check=True, capture_output=True, text=True
        ).stdout
    )
    return target


def network(registry: str, **settings: Any) -> Network:
    return Network(registries={registry: Registry(is_plain=True)}, **settings)


def installed(node: Node, *desired: DesiredImage) -> Mapping[str, str]:
    """The digests of the images that are installed, by their references, on whatever machine."""
    desired = tuple(replace(one, platform=one.platform or "linux/amd64") for one in desired)
    with node.manager() as manager:
        result = manager.process_desired_layers(desired)
    return {image.reference: image.digest for image in result.images.installed}


def test_an_image_of_several_platforms(tmp_path: Path, registry: str) -> None:
    by_platform = {
        platform: build_image(list(image_of(platform).layers), platform=platform)
        for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    }
    index = build_index(list(by_platform.values()))
    reference = f"{registry}/several:1"
    put(index, reference, tmp_path, "--all", "--dest-tls-verify=false")
    for platform, image in by_platform.items():
        base = tmp_path / platform.replace("/", "-")
        base.mkdir()
        node = Node(base, network=network(registry))
        assert installed(node, DesiredImage(reference, platform)) == {reference: image.digest}
    by_digest = f"{registry}/several@{index.digest}"
    node = Node(tmp_path, network=network(registry))
    assert list(installed(node, DesiredImage(by_digest, "linux/arm64"))) == [by_digest]


def test_several_images_at_once(tmp_path: Path, registry: str) -> None:
    references = [f"{registry}/many/image-{number}:1" for number in range(6)]
    for number, reference in enumerate(references):
        put(image_of(f"{number}"), reference, tmp_path / f"{number}", "--dest-tls-verify=false")
    node = Node(tmp_path, network=network(registry), parallel_installs=3)
    assert list(installed(node, *map(DesiredImage, references))) == references


def test_one_that_is_not_there_hinders_no_other(tmp_path: Path, registry: str) -> None:
    reference = f"{registry}/there:1"
    put(IMAGE, reference, tmp_path, "--dest-tls-verify=false")
    node = Node(tmp_path, network=network(registry))
    missing = DesiredImage(f"{registry}/missing:1")
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([missing, DesiredImage(reference, "linux/amd64")])
    (error,) = caught.value.exceptions
    assert isinstance(error, SourceError)
    assert "404 Not Found" in str(error)
    (image,) = caught.value.result.images.installed
    assert image.reference == reference


class TestLogin:
    def test_is_that_of_skopeo(
        self, tmp_path: Path, locked: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(locked.auth))
        monkeypatch.setenv("SSL_CERT_FILE", str(locked.bundle))
        reference = f"{locked.name}/app:1"
        put(IMAGE, reference, tmp_path)
        node = Node(tmp_path, network=Network(ca_bundle=locked.bundle))
        assert installed(node, DesiredImage(reference)) == {reference: IMAGE.digest}

    def test_may_be_in_the_configuration(
        self, tmp_path: Path, locked: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_FILE", str(locked.bundle))
        reference = f"{locked.name}/app:2"
        put(IMAGE, reference, tmp_path, "--authfile", locked.auth)
        path = tmp_path / "credentials"
        entry = {"username": docker_registry.USER, "password": docker_registry.PASSWORD}
        path.write_text(json.dumps({locked.name: entry}))
        path.chmod(0o600)
        node = Node(tmp_path, network=Network(ca_bundle=locked.bundle, credentials_file=path))
        assert installed(node, DesiredImage(reference)) == {reference: IMAGE.digest}

    def test_is_missed_by_name(
        self, tmp_path: Path, locked: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
        node = Node(tmp_path, network=Network(ca_bundle=locked.bundle))
        with pytest.raises(LayersFailedError) as caught:
            installed(node, DesiredImage(f"{locked.name}/app:1"))
        (error,) = caught.value.exceptions
        assert "asks for a name and a password, and none are known" in str(error)


class TestPushing:
    def test_an_index_goes_with_all_its_images(self, tmp_path: Path, registry: str) -> None:
        images = [
            build_image(list(image_of(platform).layers), platform=platform)
            for platform in ("linux/amd64", "linux/arm64")
        ]
        index = build_index(images)
        layout = write_files(tmp_path / "layout", layout_files({"1": index}))
        reference = f"{registry}/pushed/index:1"
        assert push_image(f"oci:{layout}:1", reference, network(registry)) == index.digest
        insecure = ("--tls-verify=false", f"docker://{reference}")
        assert skopeo("inspect", "--raw", *insecure).encode() == index.document
        copy = ("--all", "--quiet", "--src-tls-verify=false", f"docker://{reference}")
        skopeo("copy", *copy, f"oci:{tmp_path / 'copy'}:1")
        for digest, blob in index.blobs.items():
            assert (tmp_path / f"copy/blobs/sha256/{digest.encoded}").read_bytes() == blob

    def test_what_is_there_is_not_sent_again(self, tmp_path: Path, registry: str) -> None:
        layout = write_files(tmp_path / "layout", layout_files({"1": IMAGE}))
        told: list[PushProgress] = []
        for tag in ("1", "2"):
            push_image(
                f"oci:{layout}:1",
                f"{registry}/pushed/twice:{tag}",
                network(registry),
                on_progress=told.append,
            )
        config, layer = digest_of(IMAGE.config), digest_of(IMAGE.layers[0])
        sizes = {config: len(IMAGE.config), layer: len(IMAGE.layers[0])}
        assert told == [
            PushProgress(config, sizes[config]),
            PushProgress(config, sizes[config], sent=sizes[config]),
            PushProgress(layer, sizes[layer]),
            PushProgress(layer, sizes[layer], sent=sizes[layer]),
            PushProgress(config, sizes[config], was_there=True),
            PushProgress(layer, sizes[layer], was_there=True),
        ]

    def test_an_archive_will_do(self, tmp_path: Path, registry: str) -> None:
        archive = write_tar(tmp_path / "image.tar", layout_files({"1": IMAGE}))
        reference = f"{registry}/pushed/archive:1"
        assert push_image(f"oci-archive:{archive}:1", reference, network(registry)) == IMAGE.digest
        node = Node(tmp_path, network=network(registry))
        assert installed(node, DesiredImage(reference)) == {reference: IMAGE.digest}

    @pytest.mark.parametrize("form", ["ours", "skopeo", "hard links"])
    def test_an_archive_of_docker_will_do(self, tmp_path: Path, registry: str, form: str) -> None:
        archive = tmp_path / "image.tar"
        if form == "ours":
            write_tar(archive, docker_archive_files({"app:1": IMAGE}))
        else:
            layout = write_files(tmp_path / "layout", layout_files({"1": IMAGE}))
            skopeo("copy", "--quiet", f"oci:{layout}:1", f"docker-archive:{archive}:app:1")
        if form == "hard links":
            archive = with_hard_links(archive, tmp_path / "linked.tar")
        reference = f"{registry}/pushed/docker-archive:{form[:4]}"
        digest = push_image(f"docker-archive:{archive}:app:1", reference, network(registry))
        there = ("--tls-verify=false", f"docker://{reference}")
        assert digest_of(skopeo("inspect", "--raw", *there).encode()) == digest
        config = json.loads(skopeo("inspect", "--config", *there))
        assert config["rootfs"]["diff_ids"] == json.loads(IMAGE.config)["rootfs"]["diff_ids"]
        pulled = f"oci:{tmp_path / 'pulled'}:1"  # which proves every blob
        skopeo("copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", pulled)

    def test_from_one_registry_to_another_by_login(
        self, tmp_path: Path, registry: str, locked: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(locked.auth))
        put(IMAGE, f"{registry}/from:1", tmp_path, "--dest-tls-verify=false")
        settings = network(registry, ca_bundle=locked.bundle)
        reference = f"{locked.name}/pushed/to:1"
        assert push_image(f"{registry}/from:1", reference, settings) == IMAGE.digest
        node = Node(tmp_path, network=Network(ca_bundle=locked.bundle))
        assert installed(node, DesiredImage(reference)) == {reference: IMAGE.digest}


def test_a_mirror_serves_documents_and_layers(tmp_path: Path, registry: str) -> None:
    put(IMAGE, f"{registry}/cache/library/app:1", tmp_path, "--dest-tls-verify=false")
    mirrored = Registry(mirrors=(f"http://{registry}/cache",))
    settings = Network(registries={"docker.io": mirrored})
    node = Node(tmp_path, network=settings)
    assert installed(node, DesiredImage("app:1")) == {"docker.io/library/app:1": IMAGE.digest}


def test_a_layer_may_be_desired_by_itself(tmp_path: Path, registry: str) -> None:
    put(IMAGE, f"{registry}/layers:1", tmp_path, "--dest-tls-verify=false")
    digest = digest_of(IMAGE.layers[0])
    layer = DesiredLayer(digest, f"docker://{registry}/layers@{digest}")
    with Node(tmp_path, network=network(registry)).manager() as manager:
        result = manager.process_desired_layers([layer])
    assert [layer.digest for layer in result.installed] == [digest]
