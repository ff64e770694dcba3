"""Blobs and manifests on their way into a registry (distribution-spec 1.1, "Push")."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from layermanager.errors import IntegrityError
from layermanager.registry.client import check_told_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.cancellation import Cancellation
    from layermanager.model import Digest
    from layermanager.oci.manifest import Descriptor
    from layermanager.oci.reference import RegistryReference
    from layermanager.registry.client import RegistryClient

_REDIRECTS: Final = range(300, 400)


class Repository:
    """A repository into which something is put; each method makes one attempt.

    Args:
        client: sends the requests.
        reference: names the repository.
        cancellation: ends what is under way.
    """

    def __init__(
        self, client: RegistryClient, reference: RegistryReference, cancellation: Cancellation
    ) -> None:
        self._client = client
        self._reference = reference
        self._cancellation = cancellation

    def has_blob(self, digest: Digest) -> bool:
        """Whether a blob is there already.

        Raises:
            SourceError: the registry does not say.
        """
        place = self._client.place(self._reference, f"blobs/{digest}")
        answer = self._client.send("HEAD", self._reference, place, {}, self._cancellation)
        if answer.status == HTTPStatus.NOT_FOUND:
            answer.close()
            return False
        # Where the blob is elsewhere, a redirect says so. Should it be wrong, the manifest fails.
        if answer.status == HTTPStatus.OK or answer.status in _REDIRECTS:
            answer.close()
            return True
        raise self._client.refusal(answer)

    def put_blob(self, blob: Blob) -> None:
        """Put a blob there, from its beginning.

        Raises:
            SourceError: the registry does not take it, or it cannot be read.
            IntegrityError: what was read is not the blob.
        """
        place = self._client.place(self._reference, "blobs/uploads/")
        answer = self._client.send("POST", self._reference, place, {}, self._cancellation)
        location = answer.headers.get("Location", "")
        if answer.status != HTTPStatus.ACCEPTED or not location:
            raise self._client.refusal(answer, "the registry takes no blobs")
        answer.close()
        place = answer.place.sent_on(location, "sent for an upload")
        place = place.with_query(f"digest={blob.digest}")
        answer = self._client.upload(self._reference, place, blob, self._cancellation)
        if answer.status != HTTPStatus.CREATED:
            raise self._client.refusal(answer, f"the registry does not take blob {blob.digest}")
        answer.close()

    def put_manifest(self, document: bytes, media_type: str, name: str) -> None:
        """Put a manifest or index there under a tag, or under its digest.

        Raises:
            SourceError: the registry does not take it.
            IntegrityError: the registry names another digest.
        """
        place = self._client.place(self._reference, f"manifests/{name}")
        headers = {"Content-Type": media_type}
        answer = self._client.send(
            "PUT", self._reference, place, headers, self._cancellation, body=document
        )
        if answer.status != HTTPStatus.CREATED:
            raise self._client.refusal(answer, "the registry does not take the manifest")
        answer.close()
        check_told_digest(answer, document)


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Up to *size* bytes; empty at the end.

        Raises:
            SourceError: they cannot be had.
        """


class Blob:
    """A blob as it is sent: an ``Upload`` that proves what it is on the way.

    Args:
        stream: where it comes from; who opened it closes it.
        descriptor: what it must be.
        on_bytes: is told how many bytes were sent so far, from the thread that sends them.
    """

    def __init__(
        self, stream: Readable, descriptor: Descriptor, on_bytes: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self._on_bytes = on_bytes
        self._position = 0
        self.digest = descriptor.digest
        self.size = descriptor.size

    def read(self, size: int) -> bytes:
        """Up to *size* bytes; empty at the end.

        Raises:
            SourceError: they cannot be had.
            IntegrityError: they are not those of the blob.
        """
        data = self._stream.read(size)
        self._position += len(data)
        if self._position > self.size or (not data and self._position < self.size):
            raise IntegrityError(
                "blob size",
                expected=f"{self.size} bytes",
                found=f"{self._position}{' or more' if data else ''}",
                digest=self.digest,
            )
        self._hash.update(data)
        found = f"{self.digest.algorithm}:{self._hash.hexdigest()}"
        # Before the last piece is sent, so that no registry gets all of another blob.
        if self._position == self.size and found != self.digest:
            raise IntegrityError(
                "blob digest", expected=self.digest, found=found, digest=self.digest
            )
        if data:
            self._on_bytes(self._position)
        return data
