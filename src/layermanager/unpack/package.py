"""Aos layer packages: a tar of ``layer.json`` and the layer's blob, in either order.

The blob is handed on while the package is read, so that nothing is ever extracted first. What
``layer.json`` says is compared with the desired layer and with the blob as soon as both are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.amounts import annotated
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ArchiveError, IntegrityError, LimitExceededError, PackageError
from layermanager.unpack.compression import decompressed, no_bomb
from layermanager.unpack.fields import shown
from layermanager.unpack.messages import OS_VERSION_CHARACTERS
from layermanager.unpack.streams import ByteReader, CountedChunks
from layermanager.unpack.tar import EntryKind, TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.amounts import Amount
    from layermanager.model import Digest, Limits
    from layermanager.unpack.tar import Entry

_DESCRIPTOR_NAME: Final = b"layer.json"
_DESCRIPTOR_BYTES: Final = 64 * 1024


class PackageReader:
    """Finds the blob of the layer *digest* in the bytes of a package.

    Args:
        chunks: the package.
        digest: the layer.
        limits: what to refuse.
        on_declared: is told what ``layer.json`` says of the unpacked layer, if it says that.

    Attributes:
        os_version: ``platform["os.version"]`` of ``layer.json``; known once the blob was read.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        digest: Digest,
        limits: Limits,
        on_declared: Callable[[Amount], None] = lambda _: None,
    ) -> None:
        counted = CountedChunks(chunks)
        plain = decompressed(iter(counted), zstd_window_bytes=limits.zstd_window_bytes)
        self._reader = ByteReader(no_bomb(plain, counted, limits))
        self._tar = TarReader(self._reader, limits)
        self._digest = digest
        self._on_declared = on_declared
        self._descriptor: JsonObject | None = None
        self._blob_size: int | None = None
        self.os_version = ""

    def blob(self) -> Iterator[bytes]:
        """The bytes of the blob; the rest of the package is read and checked on the way.

        Raises:
            PackageError: it is no package, or not one of this layer.
            IntegrityError: ``layer.json`` describes another blob.
        """
        try:
            for entry in self._tar:
                name = b"/".join(part for part in entry.path.split(b"/") if part not in (b"", b"."))
                if name == self._digest.encoded.encode():
                    yield from self._read_blob(entry)
                elif name == _DESCRIPTOR_NAME:
                    self._read_descriptor(entry)
                elif name or entry.kind is not EntryKind.DIRECTORY:
                    raise PackageError(
                        f"unknown member {shown(entry.path)} in the package: expected layer.json "
                        f"and {self._digest.encoded}"
                    )
            # What follows the end of the archive: zeros, and the checksum of the compression.
            for _ in self._reader.rest():
                pass
        except (ArchiveError, LimitExceededError) as error:
            raise type(error)(f"the package: {error}") from error
        self._require_complete()

    def _read_blob(self, entry: Entry) -> Iterator[bytes]:
        if self._blob_size is not None:
            raise PackageError("the package holds the blob twice")
        self._require_plain_file(entry)
        self._blob_size = entry.size
        for piece in self._tar.content(entry):
            yield bytes(piece)

    def _read_descriptor(self, entry: Entry) -> None:
        if self._descriptor is not None:
            raise PackageError("the package holds layer.json twice")
        self._require_plain_file(entry)
        if entry.size > _DESCRIPTOR_BYTES:
            raise PackageError(f"layer.json is larger than {_DESCRIPTOR_BYTES} bytes")
        try:
            descriptor = JsonObject.of(parse(self._tar.whole_content(entry)), "")
            found = descriptor.required_text("digest")
            self.os_version = descriptor.child("platform").text("os.version", "")
            declared = annotated(descriptor.child("annotations").texts_by_key())
        except DocumentError as error:
            raise PackageError(f"layer.json: {error}") from error
        if len(self.os_version) > OS_VERSION_CHARACTERS:
            raise PackageError(
                f"layer.json: platform.os.version is longer than {OS_VERSION_CHARACTERS} characters"
            )
        if found != self._digest:
            raise IntegrityError("digest in layer.json", expected=self._digest, found=found)
        self._descriptor = descriptor
        self._on_declared(declared)

    def _require_complete(self) -> None:
        if self._descriptor is None:
            raise PackageError("the package holds no layer.json")
        if self._blob_size is None:
            raise PackageError(f"the package holds no blob {self._digest.encoded}")
        try:
            described = self._descriptor.required_integer("size")
        except DocumentError as error:
            raise PackageError(f"layer.json: {error}") from error
        if described != self._blob_size:
            raise IntegrityError(
                "size in layer.json", expected=f"{self._blob_size} as the blob has", found=described
            )

    def _require_plain_file(self, entry: Entry) -> None:
        if entry.kind is not EntryKind.FILE or entry.segments is not None:
            raise PackageError(f"{shown(entry.path)} in the package is no plain file")
