"""Making Aos layer packages: from a directory or a layer tar to one file and its desired entry."""

from __future__ import annotations

import json
import tempfile
from typing import IO, TYPE_CHECKING

from layermanager.amounts import annotations_of
from layermanager.errors import LayerError, PackError
from layermanager.model import DesiredLayer
from layermanager.pack.layer_blob import LayerBlob, write_layer
from layermanager.pack.layer_tar import (
    CHUNK_BYTES,
    END_OF_ARCHIVE,
    Compression,
    header,
    open_layer_tar,
    padding,
    regular,
)
from layermanager.pack.output import replacing, write
from layermanager.presence import is_directory
from layermanager.urls import file_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pack_layer(
    source: Path,
    output: Path,
    *,
    layer_id: str,
    version: str,
    os_version: str = "",
    url: str | None = None,
    compression: Compression = Compression.GZIP,
) -> DesiredLayer:
    """Make the package *output* of the layer in *source*.

    The package appears under its name when it is complete and on disk, or not at all; a file of
    that name is replaced. Memory does not grow with the size of the layer. Sockets are left out,
    with a warning in the log: they are worthless without the process that listens.

    Args:
        source: a directory, or a layer tar: a plain one, or one that is compressed with gzip or
            zstd already, which is then taken as it is.
        output: the file to write.
        layer_id: the name of the layer, for its desired entry.
        version: the layer's version, for its desired entry.
        os_version: the version of the operating system that the layer is made for, if any.
        url: where the package is going to be published; by default the address of *output*.
        compression: of the layer tar, if *source* is not compressed already.

    Returns:
        The entry of this package in a list of desired layers.

    Raises:
        PackError: *source* cannot be a layer, changed meanwhile, or a file cannot be read or
            written; then there is no new file.
    """
    try:
        status = source.stat()
        output.parent.stat()  # before resolve(), which names an endless link no OSError
        source, output = source.resolve(), output.parent.resolve() / output.name
        _refuse_output(source, output)
        layer = open_layer_tar(source, status)
        with tempfile.TemporaryFile(dir=output.parent) as file:
            blob = write_layer(layer, compression, file)
            descriptor = _descriptor(blob, os_version)
            with replacing(output) as package:
                checked = write(_package(descriptor, blob, file), package, "sha3_256")
    except (LayerError, OSError) as error:
        raise PackError(f"cannot pack {source} as {output}: {error}") from error
    return DesiredLayer(
        digest=blob.digest,
        url=file_url(output) if url is None else url,
        layer_id=layer_id,
        version=version,
        sha256=checked.checksum,
        size=checked.size,
        unpacked=blob.content,
    )


def _refuse_output(source: Path, output: Path) -> None:
    if output.is_relative_to(source):
        raise PackError(f"{output}: the package must not be within its source {source}")
    if is_directory(output):
        raise PackError(f"{output}: is a directory; name the package's file")


def _media_type(compression: Compression) -> str:
    suffix = "" if compression is Compression.NONE else f"+{compression.value}"
    return f"application/vnd.aos.image.layer.v1.tar{suffix}"


def _descriptor(blob: LayerBlob, os_version: str) -> bytes:
    members: dict[str, object] = {
        "mediaType": _media_type(blob.compression),
        "digest": blob.digest,
        "size": blob.size,
        "annotations": annotations_of(blob.content),
    }
    if os_version:
        members["platform"] = {"os": "linux", "os.version": os_version}
    return json.dumps(members).encode()


def _package(descriptor: bytes, blob: LayerBlob, file: IO[bytes]) -> Iterator[bytes]:
    """The package: the descriptor comes first, so that a reader knows what it is going to get."""
    yield header(regular("layer.json", len(descriptor)))
    yield descriptor
    yield padding(len(descriptor))
    yield header(regular(blob.digest.encoded, blob.size))
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
    yield padding(blob.size)
    yield END_OF_ARCHIVE
