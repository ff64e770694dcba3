"""Making OCI images of one layer, in an image layout (image-spec 1.1, image-layout.md)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from layermanager.amounts import annotations_of
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import LayerError, ManifestError, PackError
from layermanager.model import Digest
from layermanager.oci.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    REFERENCE_NAME,
    Descriptor,
    ImageManifest,
    descriptor_members,
    read_index,
    write_config,
    write_manifest,
)
from layermanager.pack.layer_blob import ALGORITHM, write_layer
from layermanager.pack.layer_tar import Compression, LayerTar, open_layer_tar
from layermanager.pack.output import new_file, replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.oci.manifest import ImageConfig

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_RETRY_SECONDS: Final = 0.1


def pack_image(
    source: Path,
    layout: Path,
    name: str,
    *,
    config: ImageConfig,
    compression: Compression = Compression.GZIP,
    latest_ns: int | None = None,
    patience: timedelta = timedelta(minutes=1),
) -> Descriptor:
    """Make an image of the one layer in *source*, and put it into *layout* under *name*.

    The same input gives the same image, to the bit. An image that was called so before is no longer
    called so; its blobs stay. The image appears when it is complete and on disk, or not at all.

    Args:
        source: a directory, or a layer tar: a plain one, or one that is compressed with gzip or
            zstd already, which is then taken as it is.
        layout: an image layout, or where to make one.
        name: what the image is called in there, such as ``1.2``.
        config: how it is to be run, and for which platform it is; its diff IDs are filled in.
        compression: of the layer, if *source* is not compressed already.
        latest_ns: files of a directory that are newer get this time, in nanoseconds since 1970.
        patience: how long to wait for another process that adds to the layout.

    Returns:
        The descriptor of the image's manifest.

    Raises:
        PackError: *source* cannot be a layer, or changed meanwhile; *layout* is something else, or
            another process holds it; or a file cannot be read or written.
    """
    try:
        status = source.stat()
        source = source.resolve()
        if layout.resolve().is_relative_to(source):
            raise PackError(f"{layout}: the layout must not be within its source {source}")
        with _held(layout, patience):
            layer = open_layer_tar(source, status, latest_ns=latest_ns)
            layer_descriptor, diff_id = _add_layer(layout, layer, compression)
            document = write_config(replace(config, diff_ids=(diff_id,)))
            config_descriptor = _add_document(layout, OCI_CONFIG, document)
            manifest = write_manifest(ImageManifest(config_descriptor, (layer_descriptor,)))
            descriptor = replace(
                _add_document(layout, OCI_MANIFEST, manifest),
                platform=config.platform,
                annotations={REFERENCE_NAME: name},
            )
            _name(layout, descriptor)
    except (DocumentError, LayerError, ManifestError, OSError) as error:
        raise PackError(f"cannot pack {source} into {layout}: {error}") from error
    return descriptor


@contextmanager
def _held(layout: Path, patience: timedelta) -> Iterator[None]:
    """Make *layout* if it is missing, and be the only one who adds to it."""
    layout.mkdir(parents=True, exist_ok=True)
    directory = os.open(layout, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(directory, layout, patience)
        _require_layout(layout)
        (layout / "blobs" / ALGORITHM).mkdir(parents=True, exist_ok=True)
        yield
    finally:
        os.close(directory)


def _lock(directory: int, layout: Path, patience: timedelta) -> None:
    """Lock *layout* for this process.

    Any user who can open a directory can lock it, so the wait has an end.
    """
    deadline = time.monotonic() + patience.total_seconds()
    while not _try_lock(directory):
        if time.monotonic() >= deadline:
            raise PackError(f"{layout}: another process holds the layout; try again when it ended")
        time.sleep(_RETRY_SECONDS)


def _try_lock(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_layout(layout: Path) -> None:
    path = layout / "oci-layout"
    try:
        version = JsonObject.of(parse(path.read_bytes()), "").text("imageLayoutVersion", "")
    except FileNotFoundError:
        if any(layout.iterdir()):
            raise PackError(f"{layout}: is a directory of something else than images") from None
        with replacing(path) as file:
            file.write(_LAYOUT)
        return
    except DocumentError as error:
        raise PackError(f"{path}: {error}") from error
    if version != "1.0.0":
        raise PackError(f"{path}: layouts of version {version!r:.80} are not known")


def _add_layer(
    layout: Path, layer: LayerTar, compression: Compression
) -> tuple[Descriptor, Digest]:
    """Add the blob of *layer*; return what it is, and the digest of its tar."""
    with new_file(layout / "blobs" / ALGORITHM) as blob:
        written = write_layer(layer, compression, blob.file)
        blob.name = written.digest.encoded
    descriptor = Descriptor(
        _media_type(written.compression),
        written.digest,
        written.size,
        annotations=annotations_of(written.content),
    )
    return descriptor, written.diff_id


def _add_document(layout: Path, media_type: str, document: bytes) -> Descriptor:
    digest = Digest(f"{ALGORITHM}:{hashlib.sha256(document).hexdigest()}")
    with replacing(layout / "blobs" / ALGORITHM / digest.encoded) as file:
        file.write(document)
    return Descriptor(media_type, digest, len(document))


def _name(layout: Path, descriptor: Descriptor) -> None:
    """List the image in ``index.json``; what others wrote there stays as it is."""
    path = layout / "index.json"
    try:
        document = path.read_bytes()
    except FileNotFoundError:
        document = b'{"schemaVersion":2,"manifests":[]}'
    known = read_index(document)
    index = JsonObject.of(parse(document), "")
    name = descriptor.annotations[REFERENCE_NAME]
    others = [
        entry.members
        for entry, manifest in zip(index.objects("manifests"), known.manifests, strict=True)
        if manifest.annotations.get(REFERENCE_NAME) != name
    ]
    members = {**index.members, "manifests": [*others, descriptor_members(descriptor)]}
    with replacing(path) as file:
        file.write(json.dumps(members, separators=(",", ":")).encode())


def _media_type(compression: Compression) -> str:
    return OCI_LAYER if compression is Compression.NONE else f"{OCI_LAYER}+{compression.value}"
