"""Images in the output of ``docker save``: a tar with ``manifest.json``.

``manifest.json`` lists the images with their names, configuration and layers, all by the names of
members. There are no manifests in the sense of registries, and no digests of layers: the layers are
plain tars, whose digests are the diff IDs in the configuration. So one is made up here, which says
just that in the form of an OCI manifest; its digest is the same whenever the image is. Tools that
write compressed layers into such an archive exist, too: each of these is read once to learn its
digest. Old versions of Docker put a layer that several images have there once, and symbolic links
to it; archives that were packed again may hold hard links.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.documents import DocumentError, objects, parse
from layermanager.errors import InvalidReferenceError, ManifestError, SourceError
from layermanager.images.members import TarFiles
from layermanager.model import Digest
from layermanager.oci.manifest import (
    MAX_DOCUMENT_BYTES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    read_config,
    write_manifest,
)
from layermanager.oci.reference import (
    file_reference,
    parse_reference,
    parse_registry_reference,
)
from layermanager.unpack.streams import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layermanager.cancellation import Cancellation
    from layermanager.documents import JsonObject
    from layermanager.images.members import Region
    from layermanager.oci.reference import FileReference, Reference

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class _SavedImage:
    """An image of an archive, in the words of registries.

    Attributes:
        names: what it is called, as ``RegistryReference`` writes it.
        manifest: points to the manifest that was made up for it.
        documents: that manifest, and the configuration.
        blobs: the members that are its layers and its configuration.
    """

    names: tuple[str, ...]
    manifest: Descriptor
    documents: Mapping[Digest, bytes]
    blobs: Mapping[Digest, str]


@dataclass(frozen=True, slots=True)
class _Archive:
    """An archive as it was when its ``manifest.json`` was read.

    Attributes:
        files: its members.
        validator: what tells it from a later one.
        images: what it holds.
    """

    files: TarFiles
    validator: str
    images: tuple[_SavedImage, ...]


class DockerArchiveSource:
    """Reads archives of ``docker save``: an ``ImageSource``; for several threads at once."""

    def __init__(self) -> None:
        self._archives: dict[str, _Archive] = {}
        self._lock = threading.Lock()

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        """The manifest, made up, of the image that *reference* names.

        Raises:
            SourceError: there is none, or there are several images and *reference* names none.
            ManifestError: ``manifest.json`` or a configuration is malformed.
        """
        cancellation.check()
        wanted = file_reference(reference)
        images = self._archive(wanted, cancellation).images
        found = [
            image.manifest
            for image in images
            if (wanted.digest is None and not wanted.name)
            or wanted.digest == image.manifest.digest
            or wanted.name in image.names
        ]
        names = ", ".join(sorted(name for image in images for name in image.names)) or "none"
        if not found:
            raise SourceError(f"no image is called so, but: {names}", url=wanted.url)
        if len(found) > 1:
            raise SourceError(f"it holds several images, name one of: {names}", url=wanted.url)
        return ImageIndex(tuple(found))

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        """The manifest that was made up, or the configuration.

        Raises:
            SourceError: no image of the archive has such a document.
        """
        archive = file_reference(reference)
        for image in self._archive(archive, cancellation).images:
            if descriptor.digest in image.documents:
                return image.documents[descriptor.digest]
        raise SourceError(f"it holds no document {descriptor.digest}", url=archive.url)

    def open(
        self,
        url: str,
        cancellation: Cancellation,
        *,
        offset: int = 0,
        validator: str = "",
    ) -> Region:
        """Open the layer or configuration that *url*, a reference by digest, names.

        Raises:
            SourceError: no image of the archive has such a blob.
        """
        wanted = file_reference(parse_reference(url))
        archive = self._archive(wanted, cancellation)
        for image in archive.images:
            name = image.blobs.get(wanted.digest) if wanted.digest else None
            if name is not None:
                return archive.files.open(name, url=url, offset=offset, validator=validator)
        raise SourceError("it holds no blob of that digest", url=url)

    def close(self) -> None:
        """Forget what was read of the archives."""
        with self._lock:
            self._archives.clear()

    def _archive(self, reference: FileReference, cancellation: Cancellation) -> _Archive:
        """What is in the archive; it is read again only where the file is another one."""
        with self._lock:
            known = self._archives.get(reference.path)
            files = known.files if known else TarFiles(reference.path, follows_links=True)
            with files.open("manifest.json", url=reference.url) as member:
                if known is not None and known.validator == member.validator:
                    return known
                document = member.first(MAX_DOCUMENT_BYTES + 1)
            images = tuple(
                _saved_image(entry, files, reference.url, cancellation)
                for entry in _entries(document)
            )
            self._archives[reference.path] = _Archive(files, member.validator, images)
            return self._archives[reference.path]


def _entries(document: bytes) -> list[JsonObject]:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ManifestError(f"manifest.json: larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return list(objects(parse(document), ""))
    except DocumentError as error:
        raise ManifestError(f"manifest.json: {error}") from error


def _saved_image(
    entry: JsonObject, files: TarFiles, url: str, cancellation: Cancellation
) -> _SavedImage:
    try:
        config_name = entry.required_text("Config")
        tags = entry.texts("RepoTags")
        layer_names = entry.texts("Layers")
    except DocumentError as error:
        raise ManifestError(f"manifest.json: {error}") from error
    with files.open(config_name, url=url) as member:
        config = member.first(MAX_DOCUMENT_BYTES + 1)
    diff_ids = read_config(config, len(layer_names)).diff_ids
    layers = [
        _layer(files, name, diff_id, url, cancellation)
        for name, diff_id in zip(layer_names, diff_ids, strict=True)
    ]
    config_digest = _digest_of(config)
    manifest = write_manifest(
        ImageManifest(Descriptor(OCI_CONFIG, config_digest, len(config)), tuple(layers))
    )
    manifest_digest = _digest_of(manifest)
    return _SavedImage(
        names=tuple(_canonical_names(tags)),
        manifest=Descriptor(OCI_MANIFEST, manifest_digest, len(manifest)),
        documents={manifest_digest: manifest, config_digest: config},
        blobs={
            config_digest: config_name,
            **{layer.digest: name for layer, name in zip(layers, layer_names, strict=True)},
        },
    )


def _layer(
    files: TarFiles, name: str, diff_id: Digest, url: str, cancellation: Cancellation
) -> Descriptor:
    with files.open(name, url=url) as member:
        head = member.read(len(_ZSTD_MAGIC))
        if head.startswith(_GZIP_MAGIC):
            media_type = f"{OCI_LAYER}+gzip"
        elif head == _ZSTD_MAGIC:
            media_type = f"{OCI_LAYER}+zstd"
        else:
            return Descriptor(OCI_LAYER, diff_id, member.size)
        checksum = hashlib.sha256(head)
        while piece := member.read(CHUNK_BYTES):
            cancellation.check()
            checksum.update(piece)
        return Descriptor(media_type, Digest(f"sha256:{checksum.hexdigest()}"), member.size)


def _canonical_names(tags: tuple[str, ...]) -> Iterator[str]:
    """The names that can be asked for; an archive may hold others, too."""
    for tag in tags:
        with suppress(InvalidReferenceError):
            yield str(parse_registry_reference(tag))


def _digest_of(document: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(document).hexdigest()}")
