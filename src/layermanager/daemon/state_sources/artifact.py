"""A desired state in a registry: an artifact whose tag is moved when there is a new one.

A poll is one HEAD of the tag, which tells the digest of what it names; ``oci.artifact`` knows what
is in there.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.daemon.state_sources import Fetched
from layermanager.errors import IntegrityError, ManifestError, SourceError
from layermanager.model import Digest
from layermanager.oci.artifact import SIGNATURE_TYPE, STATE_TYPE, find_document
from layermanager.oci.manifest import (
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    check_document,
)
from layermanager.registry.client import told_digests
from layermanager.sources.http import stream_of
from layermanager.transfer.mirrors import places
from layermanager.transfer.pace import document_deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.living import LivingThreads
    from layermanager.oci.reference import RegistryReference
    from layermanager.protocols import Clock
    from layermanager.registry.client import RegistryClient

_MOST_SIGNATURE_BYTES: Final = 64 * 1024
_ACCEPT: Final = {"Accept": ", ".join(MANIFEST_TYPES)}

Result = TypeVar("Result")


class ArtifactStateSource:
    """Asks for a tag.

    Args:
        reference: names it.
        client: sends the requests; it is closed with this.
        network: the mirrors of the registry, which are asked first, and how patient to be.
        clock: the time.
        most_bytes: how large the document may be.
        with_signature: whether the signature is wanted.
    """

    is_local: Final = False

    def __init__(
        self,
        reference: RegistryReference,
        client: RegistryClient,
        network: Network,
        clock: Clock,
        *,
        most_bytes: int,
        with_signature: bool,
    ) -> None:
        self._reference = reference
        self._client = client
        self._network = network
        self._clock = clock
        self._most_bytes = most_bytes
        self._with_signature = with_signature

    @property
    def name(self) -> str:
        """The reference."""
        return str(self._reference)

    def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
        """What the tag names now, as ``StateSource`` has it."""
        wanted = self._reference
        digest = self._from_places(wanted, self._look_up, cancellation)
        if digest == known:
            return None
        wanted = wanted.at(digest)
        manifest = self._from_places(
            wanted,
            lambda place, limited: self._read_manifest(place, digest, limited),
            cancellation,
        )
        document = self._blob(manifest, STATE_TYPE, self._most_bytes, cancellation)
        if not self._with_signature:
            return Fetched(digest, document)
        signature = self._blob(manifest, SIGNATURE_TYPE, _MOST_SIGNATURE_BYTES, cancellation)
        return Fetched(digest, document, signature)

    def watching(
        self,
        on_change: Callable[[], None],  # noqa: ARG002 - the server does not tell of changes
        threads: LivingThreads,  # noqa: ARG002 - likewise
    ) -> AbstractContextManager[None]:
        """Do nothing, as ``StateSource`` has it."""
        return nullcontext()

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _look_up(self, place: RegistryReference, cancellation: Cancellation) -> Digest:
        """The digest of what the tag of *place* names."""
        answer = self._client.head(place, f"manifests/{place.tag}", _ACCEPT, cancellation)
        if answer.status != HTTPStatus.OK:
            raise self._client.refusal(answer)
        answer.close()
        told = told_digests(answer)
        if len(told) == 1:
            (digest,) = told
            return digest
        # It does not say, or not clearly: the manifest itself does.
        document = self._read(place, f"manifests/{place.tag}", MAX_DOCUMENT_BYTES, cancellation)
        return Digest(f"sha256:{hashlib.sha256(document).hexdigest()}")

    def _read_manifest(
        self, place: RegistryReference, digest: Digest, cancellation: Cancellation
    ) -> bytes:
        path = f"manifests/{digest}"
        document = self._read(place, path, MAX_DOCUMENT_BYTES, cancellation)
        check_document(document, Descriptor("", digest, len(document)))
        return document

    def _blob(
        self,
        manifest: bytes,
        media_type: str,
        most_bytes: int,
        cancellation: Cancellation,
    ) -> bytes:
        """The layer of that type."""
        try:
            layer = find_document(manifest, media_type)
        except ManifestError as error:
            raise ManifestError(f"{self._reference}: {error}") from error
        if layer.size > most_bytes:
            raise SourceError(f"larger than {most_bytes} bytes", url=str(self._reference))

        def read(place: RegistryReference, limited: Cancellation) -> bytes:
            blob = self._read(place, f"blobs/{layer.digest}", layer.size, limited)
            check_document(blob, layer)
            return blob

        return self._from_places(self._reference.at(layer.digest), read, cancellation)

    def _read(
        self, place: RegistryReference, path: str, size: int, cancellation: Cancellation
    ) -> bytes:
        """The body of *path*, of which one byte more than *size* shows that it is too large."""
        answer = self._client.get(place, path, _ACCEPT, cancellation)
        stream = stream_of(answer, self._clock)
        body = self._client.read(stream, size + 1, place.url, cancellation)
        if len(body) > size:
            raise answer.place.error(f"larger than {size} bytes")
        return body

    def _from_places(
        self,
        wanted: RegistryReference,
        fetch: Callable[[RegistryReference, Cancellation], Result],
        cancellation: Cancellation,
    ) -> Result:
        """What the first of the mirrors and the registry gives; the registry's error if none."""

        def fetch_in_time(place: RegistryReference) -> Result:
            with document_deadline(
                place.url, network=self._network, clock=self._clock, cancellation=cancellation
            ) as limited:
                return fetch(place, limited)

        *mirrors, registry = places(wanted, self._network.registries)
        for mirror in mirrors:
            try:
                return fetch_in_time(mirror)
            except (SourceError, IntegrityError):
                continue  # the next one, and at last the registry, which has the last word
        return fetch_in_time(registry)
