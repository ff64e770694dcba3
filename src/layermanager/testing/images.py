"""Images for tests: their documents, and the layouts and archives that hold them.

::

    image = build_image([compress(tar, "gzip")], platform="linux/arm64")
    write_files(path, layout_files({"1.2": image}))
    write_tar(path, docker_archive_files({"app:1.2": image}))

As with layers nothing is checked: ``changes`` lets a document say what a hostile one could.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from layermanager.testing.layers import LayerBuilder, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from layermanager.model import Digest

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image, or several in an index.

    Attributes:
        descriptor: the descriptor of its manifest or index.
        blobs: everything that it consists of, by digest.
        config: its configuration; of an index, nothing.
        layers: its layers, the lowest first; of an index, none.
    """

    descriptor: Mapping[str, Any]
    blobs: Mapping[Digest, bytes]
    config: bytes = b""
    layers: tuple[bytes, ...] = ()

    @property
    def digest(self) -> Digest:
        """The digest of the manifest or index."""
        digest: Digest = self.descriptor["digest"]
        return digest

    @property
    def document(self) -> bytes:
        """The manifest or index."""
        return self.blobs[self.digest]


def build_image(
    layers: Sequence[bytes],
    *,
    platform: str = "linux/amd64",
    config: Mapping[str, object] | None = None,
    changes: Mapping[str, object] | None = None,
) -> BuiltImage:
    """An image of these blobs, the lowest first.

    Args:
        layers: layer tars, plain or compressed with gzip or zstd.
        platform: for which machines it is.
        config: changes to the members of its configuration; None takes a member away.
        changes: likewise, of its manifest.
    """
    platform_members = _platform(platform)
    config_document = _document(
        {
            **platform_members,
            "rootfs": {
                "type": "layers",
                "diff_ids": [digest_of(_decompressed(layer)) for layer in layers],
            },
        },
        config,
    )
    manifest = _document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config_document),
            "layers": [_descriptor(_layer_type(layer), layer) for layer in layers],
        },
        changes,
    )
    return BuiltImage(
        descriptor={**_descriptor(MANIFEST_TYPE, manifest), "platform": platform_members},
        blobs={digest_of(blob): blob for blob in (manifest, config_document, *layers)},
        config=config_document,
        layers=tuple(layers),
    )


def build_index(images: Sequence[BuiltImage]) -> BuiltImage:
    """One image for several platforms."""
    members = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [image.descriptor for image in images],
    }
    document = json.dumps(members).encode()
    blobs = {digest: blob for image in images for digest, blob in image.blobs.items()}
    return BuiltImage(
        descriptor=_descriptor(INDEX_TYPE, document),
        blobs={**blobs, digest_of(document): document},
    )


def layout_files(images: Mapping[str, BuiltImage]) -> dict[str, bytes]:
    """The files of an OCI image layout, by path; images by their names in it."""
    manifests = [
        {**image.descriptor, "annotations": {REFERENCE_NAME: name}} if name else image.descriptor
        for name, image in images.items()
    ]
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(),
        **{
            f"blobs/{digest.algorithm}/{digest.encoded}": blob
            for image in images.values()
            for digest, blob in image.blobs.items()
        },
    }


def docker_archive_files(images: Mapping[str, BuiltImage]) -> dict[str, bytes]:
    """The members of what ``docker save`` writes, by name; images by their names and tags."""
    files: dict[str, bytes] = {}
    entries = []
    for name, image in images.items():
        config_name = f"{digest_of(image.config).encoded}.json"
        files[config_name] = image.config
        layer_names = [f"{digest_of(layer).encoded}/layer.tar" for layer in image.layers]
        files |= dict(zip(layer_names, image.layers, strict=True))
        tags = [name] if name else None
        entries.append({"Config": config_name, "RepoTags": tags, "Layers": layer_names})
    return {**files, "manifest.json": json.dumps(entries).encode()}


def write_files(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write *files* below the directory *path*."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write *files* as members of the tar *path*."""
    builder = LayerBuilder()
    for name, content in files.items():
        builder.file(name, content)
    path.write_bytes(builder.tar())
    return path


def _document(members: dict[str, object], changes: Mapping[str, object] | None) -> bytes:
    changed = {**members, **(changes or {})}
    return json.dumps({key: value for key, value in changed.items() if value is not None}).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _platform(name: str) -> dict[str, object]:
    return dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))


def _layer_type(layer: bytes) -> str:
    if layer.startswith(_GZIP_MAGIC):
        return f"{LAYER_TYPE}+gzip"
    return f"{LAYER_TYPE}+zstd" if layer.startswith(_ZSTD_MAGIC) else LAYER_TYPE


def _decompressed(layer: bytes) -> bytes:
    if layer.startswith(_GZIP_MAGIC):
        return gzip.decompress(layer)
    if not layer.startswith(_ZSTD_MAGIC):
        return layer
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 - only who wants zstd needs it
    else:
        from backports import zstd  # noqa: PLC0415 - likewise
    return zstd.decompress(layer)
