"""Images in OCI image layouts, directories or tars (image-spec, image-layout.md)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ManifestError, SourceError
from layermanager.oci.manifest import (
    MAX_DOCUMENT_BYTES,
    REFERENCE_NAME,
    Descriptor,
    ImageIndex,
    read_index,
)
from layermanager.oci.reference import file_reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.cancellation import Cancellation
    from layermanager.images.members import Files, Region
    from layermanager.model import Digest
    from layermanager.oci.reference import FileReference, Reference

_VERSION: Final = "1.0.0"


class LayoutSource:
    """Reads image layouts: an ``ImageSource``; may be used by several threads at once.

    Args:
        files_of: gives access to the files of the layout at a path.
    """

    def __init__(self, files_of: Callable[[str], Files]) -> None:
        self._files_of = files_of
        self._layouts: dict[str, Files] = {}
        self._lock = threading.Lock()

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        """The manifests in ``index.json`` that are called as *reference* says.

        Raises:
            SourceError: there are none, or there are several images and *reference* names none.
            ManifestError: it is no layout of a version that is known.
        """
        cancellation.check()
        layout = file_reference(reference)
        self._require_version(layout)
        if layout.digest is not None:
            with self._blob(layout.url, layout, layout.digest) as blob:
                return ImageIndex((Descriptor("", layout.digest, blob.size),))
        index = read_index(self._read(layout, "index.json"))
        names = {manifest.annotations.get(REFERENCE_NAME, "") for manifest in index.manifests}
        named = ", ".join(sorted(name or "one without a name" for name in names)) or "none"
        if layout.name and layout.name not in names:
            raise SourceError(f"no image is called so, but: {named}", url=layout.url)
        if not layout.name and len(names) > 1:
            raise SourceError(f"it holds several images, name one of: {named}", url=layout.url)
        return ImageIndex(
            tuple(
                manifest
                for manifest in index.manifests
                if not layout.name or manifest.annotations.get(REFERENCE_NAME) == layout.name
            )
        )

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        """The blob to which *descriptor* points, up to one byte beyond its size.

        Raises:
            SourceError: it is not there, or cannot be read.
        """
        cancellation.check()
        layout = file_reference(reference)
        with self._blob(layout.url, layout, descriptor.digest) as blob:
            return blob.first(descriptor.size + 1)

    def open(
        self,
        url: str,
        cancellation: Cancellation,  # noqa: ARG002 - a file is there at once
        *,
        offset: int = 0,
        validator: str = "",
    ) -> Region:
        """Open the blob that *url*, a reference by digest, names.

        Raises:
            SourceError: it is not there, or cannot be read.
        """
        layout = file_reference(parse_reference(url))
        if layout.digest is None:
            raise SourceError("the address of a layer ends with @ and its digest", url=url)
        return self._blob(url, layout, layout.digest, offset=offset, validator=validator)

    def close(self) -> None:
        """Forget what was read of the layouts."""
        with self._lock:
            self._layouts.clear()

    def _require_version(self, layout: FileReference) -> None:
        document = self._read(layout, "oci-layout")
        try:
            version = JsonObject.of(parse(document), "").required_text("imageLayoutVersion")
        except DocumentError as error:
            raise ManifestError(f"oci-layout: {error}") from error
        if version != _VERSION:
            raise ManifestError(
                f"oci-layout: version {version!r:.80} of layouts is not known, only {_VERSION}"
            )

    def _read(self, layout: FileReference, name: str) -> bytes:
        with self._files(layout).open(name, url=layout.url) as file:
            return file.first(MAX_DOCUMENT_BYTES + 1)

    def _blob(
        self,
        url: str,
        layout: FileReference,
        digest: Digest,
        *,
        offset: int = 0,
        validator: str = "",
    ) -> Region:
        name = f"blobs/{digest.algorithm}/{digest.encoded}"
        return self._files(layout).open(name, url=url, offset=offset, validator=validator)

    def _files(self, layout: FileReference) -> Files:
        with self._lock:
            if layout.path not in self._layouts:
                self._layouts[layout.path] = self._files_of(layout.path)
            return self._layouts[layout.path]
