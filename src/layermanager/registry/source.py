"""Images from registries: an ``ImageSource``.

What a tag means only its registry, or a mirror of it, can say. All else is named by a digest: a
mirror that gives something else is passed over.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.errors import IntegrityError, ManifestError, SourceError
from layermanager.model import Digest
from layermanager.oci.manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    ImageIndex,
    check_document,
)
from layermanager.oci.reference import parse_reference, registry_reference
from layermanager.registry.client import check_told_digest
from layermanager.sources.http import open_stream, stream_of
from layermanager.transfer.attempts import Attempts
from layermanager.transfer.mirrors import places
from layermanager.transfer.pace import document_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.oci.reference import Reference, RegistryReference
    from layermanager.protocols import Clock
    from layermanager.registry.client import RegistryClient
    from layermanager.sources.client import Answer
    from layermanager.sources.http import HttpStream

_LOGGER: Final = logging.getLogger(__name__)

Result = TypeVar("Result")

_ACCEPT: Final = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}


class RegistrySource:
    """Fetches from registries; may be used by several threads at once.

    Args:
        client: sends the requests; it is closed with the source.
        network: the mirrors, and how patient to be.
        clock: the time.
    """

    def __init__(self, client: RegistryClient, network: Network, clock: Clock) -> None:
        self._client = client
        self._network = network
        self._clock = clock

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        """What the tag or digest of *reference* names, with the document itself.

        Raises:
            SourceError: nothing is called so, or nobody answers.
            IntegrityError: it is not what the digest names, or has another one than is said of it.
            ManifestError: it is too large.
            CancelledError: it was cancelled.
        """
        return self._from_places(registry_reference(reference), cancellation, self._find)

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        """The document to which *descriptor* points, which is proved.

        Raises:
            SourceError: it is not there, or nobody answers.
            IntegrityError: it is another.
            CancelledError: it was cancelled.
        """
        is_config = descriptor.media_type in CONFIG_TYPES
        path = f"{'blobs' if is_config else 'manifests'}/{descriptor.digest}"
        accept = {} if is_config else _ACCEPT

        def read(place: RegistryReference, limited: Cancellation) -> bytes:
            answer = self._client.get(place, path, accept, limited)
            stream = stream_of(answer, self._clock)
            # One byte more shows that there are too many.
            document = self._client.read(stream, descriptor.size + 1, place.url, limited)
            check_document(document, descriptor)
            return document

        wanted = registry_reference(reference).at(descriptor.digest)
        return self._from_places(wanted, cancellation, read)

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> HttpStream:
        """Ask for the blob that *url*, a reference by digest, names.

        Raises:
            SourceError: it is not there, or there is no answer.
            CancelledError: it was cancelled.
        """
        reference = registry_reference(parse_reference(url))
        if reference.digest is None:
            raise SourceError("the address of a layer ends with @ and its digest", url=url)
        path = f"blobs/{reference.digest}"

        def ask(headers: Mapping[str, str]) -> Answer:
            return self._client.get(reference, path, headers, cancellation)

        return open_stream(ask, self._clock, offset=offset, validator=validator)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _find(self, place: RegistryReference, cancellation: Cancellation) -> ImageIndex:
        path = f"manifests/{place.digest or place.tag}"
        answer = self._client.get(place, path, _ACCEPT, cancellation)
        stream = stream_of(answer, self._clock)
        document = self._client.read(stream, MAX_DOCUMENT_BYTES + 1, place.url, cancellation)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ManifestError(f"the manifest has more than {MAX_DOCUMENT_BYTES} bytes")
        digest = place.digest or _digest_of(document)
        descriptor = Descriptor(
            answer.headers.get("Content-Type", ""), digest, len(document), data=document
        )
        check_document(document, descriptor)
        check_told_digest(answer, document)
        return ImageIndex((descriptor,))

    def _from_places(
        self,
        reference: RegistryReference,
        cancellation: Cancellation,
        fetch: Callable[[RegistryReference, Cancellation], Result],
    ) -> Result:
        """What *fetch* returns for the first of the mirrors and the registry that gives it.

        It is given the time of one document for each.
        """
        by_url = {place.url: place for place in places(reference, self._network.registries)}
        attempts = Attempts(
            f"image {reference}",
            by_url,
            network=self._network,
            clock=self._clock,
            cancellation=cancellation,
        )
        while True:
            url = attempts.next()
            try:
                with document_deadline(
                    url, network=self._network, clock=self._clock, cancellation=cancellation
                ) as limited:
                    return fetch(by_url[url], limited)
            except SourceError as error:
                attempts.failed(url, error)
            except (IntegrityError, ManifestError) as error:
                if not attempts.give_up(url):
                    raise
                _LOGGER.warning("image %s: %s: %s", reference, error, url)


def _digest_of(document: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(document).hexdigest()}")
