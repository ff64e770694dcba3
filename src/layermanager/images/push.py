"""Putting an image into a registry: its blobs first, then what names them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.documents import JsonObject, parse
from layermanager.errors import InvalidReferenceError, ManifestError, SourceError
from layermanager.images import default_image_sources, registry_client
from layermanager.images.proof import DEEPEST_INDEX, proved_document, too_deep
from layermanager.oci.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    ImageIndex,
    read_manifest_or_index,
)
from layermanager.oci.reference import parse_reference, registry_reference
from layermanager.registry.upload import Blob, Repository
from layermanager.transfer.attempts import Attempts

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.config import Network
    from layermanager.model import Digest
    from layermanager.oci.manifest import Descriptor
    from layermanager.oci.reference import Reference, RegistryReference
    from layermanager.protocols import Clock, ImageSource


@dataclass(frozen=True, slots=True)
class PushProgress:
    """A moment on the way of one blob into a registry.

    Attributes:
        digest: the digest of the blob.
        size: how many bytes it has.
        sent: how many of them were sent so far.
        was_there: whether the registry had it already.
    """

    digest: Digest
    size: int
    sent: int = 0
    was_there: bool = False


def push_image(
    source: str,
    target: str,
    network: Network,
    *,
    clock: Clock | None = None,
    cancellation: Cancellation | None = None,
    on_progress: Callable[[PushProgress], None] = lambda _: None,
) -> Digest:
    """Put the image *source*, or all images of an index, into a registry as *target*.

    Everything is copied bit by bit, and proved on the way. What the registry has already is not
    sent again. The tag appears last, when all that it needs is there.

    Args:
        source: a reference, normally to an image layout or archive; a path in it is absolute.
        target: a reference by tag.
        network: how the registry is reached, and how patient to be.
        clock: the time.
        cancellation: ends it early.
        on_progress: is told how far each blob is, from several threads; it must not block.

    Returns:
        The digest of the manifest or index.

    Raises:
        InvalidReferenceError: a reference is none, or *target* names no tag.
        ManifestError: the image cannot be read, or *source* names several.
        SourceError: the source cannot be read, or the registry does not take the image.
        IntegrityError: something is not what its digest says.
        CancelledError: it was cancelled.
    """
    destination = registry_reference(parse_reference(target))
    if destination.digest is not None:
        raise InvalidReferenceError(f"{target}: an image is pushed by a tag, not by its digest")
    reference = parse_reference(source)
    clock = clock or SystemClock()
    cancellation = cancellation or Cancellation()
    sources = default_image_sources(network, clock)
    client = registry_client(network, clock)
    with closing(client), closing(sources[reference.transport]) as image_source:
        pushing = _ImagePushing(
            image_source,
            reference,
            Repository(client, destination, cancellation),
            Pushing(destination, network, clock, cancellation),
            tag=destination.tag,
            cancellation=cancellation,
            on_progress=on_progress,
        )
        return pushing.image()


class Pushing:
    """What is put into a repository by several requests.

    Args:
        destination: the repository.
        network: how patient to be.
        clock: the time.
        cancellation: ends it.
    """

    def __init__(
        self,
        destination: RegistryReference,
        network: Network,
        clock: Clock,
        cancellation: Cancellation,
    ) -> None:
        self._destination = destination
        self._network = network
        self._clock = clock
        self._cancellation = cancellation

    def attempt(self, what: str, put: Callable[[], None]) -> None:
        """Call *put*, which puts *what*, and again where it fails and that may help.

        Raises:
            SourceError: it does not help; it tells of everything that failed.
            CancelledError: it was cancelled.
        """
        attempts = Attempts(
            what,
            [self._destination.url],
            network=self._network,
            clock=self._clock,
            cancellation=self._cancellation,
        )
        while True:
            url = attempts.next()
            try:
                put()
            except SourceError as error:
                attempts.failed(url, error)
            else:
                return


class _ImagePushing:
    """One image on its way."""

    def __init__(
        self,
        source: ImageSource,
        reference: Reference,
        repository: Repository,
        pushing: Pushing,
        *,
        tag: str,
        cancellation: Cancellation,
        on_progress: Callable[[PushProgress], None],
    ) -> None:
        self._source = source
        self._reference = reference
        self._repository = repository
        self._pushing = pushing
        self._tag = tag
        self._cancellation = cancellation
        self._on_progress = on_progress
        self._done: set[Digest] = set()

    def image(self) -> Digest:
        """Go all the way."""
        found = self._source.find_image(self._reference, self._cancellation)
        if len(found.manifests) != 1:
            raise ManifestError(
                f"{self._reference}: {len(found.manifests)} images are called so: name one by its "
                "digest, or put them into an index"
            )
        (descriptor,) = found.manifests
        self._push(descriptor, self._tag, depth=0)
        return descriptor.digest

    def _push(self, descriptor: Descriptor, name: str, *, depth: int) -> None:
        """Put a manifest or index there, and before it what it names."""
        if depth > DEEPEST_INDEX:
            raise too_deep()
        document = proved_document(self._source, self._reference, descriptor, self._cancellation)
        content = read_manifest_or_index(document, descriptor.media_type)
        if isinstance(content, ImageIndex):
            for manifest in content.manifests:
                self._push(manifest, manifest.digest, depth=depth + 1)
        else:
            for blob in (content.config, *content.layers):
                if blob.digest not in self._done:
                    self._pushing.attempt(f"blob {blob.digest}", partial(self._put_blob, blob))
                    self._done.add(blob.digest)
        default = OCI_INDEX if isinstance(content, ImageIndex) else OCI_MANIFEST
        own_type = JsonObject.of(parse(document), "").text("mediaType", "")
        media_type = own_type or descriptor.media_type or default
        self._pushing.attempt(
            f"manifest {descriptor.digest}",
            partial(self._repository.put_manifest, document, media_type, name),
        )

    def _put_blob(self, blob: Descriptor) -> None:
        if self._repository.has_blob(blob.digest):
            self._on_progress(PushProgress(blob.digest, blob.size, was_there=True))
            return
        self._on_progress(PushProgress(blob.digest, blob.size))
        url = self._reference.at(blob.digest).url
        with closing(self._source.open(url, self._cancellation)) as stream:
            self._repository.put_blob(
                Blob(
                    stream,
                    blob,
                    lambda sent: self._on_progress(PushProgress(blob.digest, blob.size, sent)),
                )
            )
