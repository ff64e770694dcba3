"""Documents of images, each proved by what pointed to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.errors import ManifestError
from layermanager.oci.manifest import MAX_DOCUMENT_BYTES, check_document

if TYPE_CHECKING:
    from layermanager.cancellation import Cancellation
    from layermanager.oci.manifest import Descriptor
    from layermanager.oci.reference import Reference
    from layermanager.protocols import ImageSource

DEEPEST_INDEX: Final = 4
"""How many indexes may lead from one to the next."""


def proved_document(
    source: ImageSource, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
) -> bytes:
    """The document to which *descriptor* points in the place of *reference*.

    Raises:
        ManifestError: it is too large.
        IntegrityError: it is another.
        SourceError: it cannot be had.
        CancelledError: it was cancelled.
    """
    if descriptor.size > MAX_DOCUMENT_BYTES:
        raise ManifestError(
            f"document {descriptor.digest} has {descriptor.size} bytes; more than "
            f"{MAX_DOCUMENT_BYTES} are not read"
        )
    document = descriptor.data
    if document is None:
        document = source.read_document(reference, descriptor, cancellation)
    check_document(document, descriptor)
    return document


def too_deep() -> ManifestError:
    """The error for an index that leads to too many others."""
    return ManifestError(f"indexes within indexes, more than {DEEPEST_INDEX} deep")
