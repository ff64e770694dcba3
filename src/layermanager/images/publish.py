"""Putting a desired state into a registry, for the nodes that follow its tag."""

from __future__ import annotations

import io
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.desired import read_desired_state
from layermanager.errors import InvalidReferenceError
from layermanager.images import registry_client
from layermanager.images.push import Pushing
from layermanager.oci.artifact import (
    SIGNATURE_TYPE,
    STATE_TYPE,
    Document,
    config_document,
    write_artifact,
)
from layermanager.oci.manifest import OCI_MANIFEST
from layermanager.oci.reference import parse_reference, registry_reference
from layermanager.registry.upload import Blob, Repository

if TYPE_CHECKING:
    from layermanager.config import Network
    from layermanager.model import Digest
    from layermanager.protocols import Clock


def publish_state(
    document: bytes,
    target: str,
    network: Network,
    *,
    name: str,
    signature: bytes | None = None,
    clock: Clock | None = None,
    cancellation: Cancellation | None = None,
) -> Digest:
    """Put a desired state into a registry as *target*; nodes that follow the tag find it there.

    The tag is moved last, when all that it needs is there.

    Args:
        document: the desired state, JSON.
        target: a reference by tag.
        network: how the registry is reached, and how patient to be.
        name: what errors call the document.
        signature: what proves who made *document*; None where nobody wants that.
        clock: the time.
        cancellation: ends it early.

    Returns:
        The digest of the artifact; the same documents give the same one.

    Raises:
        DesiredStateError, InvalidDigestError: *document* is no desired state; the key is named.
        InvalidReferenceError: *target* is no reference, or names no tag.
        SourceError: the registry does not take it.
        CancelledError: it was cancelled.
    """
    read_desired_state(document, name)
    destination = registry_reference(parse_reference(target))
    if destination.digest is not None:
        raise InvalidReferenceError(f"{target}: what nodes follow is a tag, not a digest")
    clock = clock or SystemClock()
    cancellation = cancellation or Cancellation()
    documents = [Document.of(STATE_TYPE, document)]
    if signature is not None:
        documents.append(Document.of(SIGNATURE_TYPE, signature))
    manifest = Document.of(OCI_MANIFEST, write_artifact(STATE_TYPE, documents))
    with closing(registry_client(network, clock)) as client:
        repository = Repository(client, destination, cancellation)
        pushing = Pushing(destination, network, clock, cancellation)
        for blob in (config_document(), *documents):
            pushing.attempt(f"blob {blob.descriptor.digest}", partial(_put, repository, blob))
        pushing.attempt(
            f"manifest {manifest.descriptor.digest}",
            partial(repository.put_manifest, manifest.content, OCI_MANIFEST, destination.tag),
        )
    return manifest.descriptor.digest


def _put(repository: Repository, document: Document) -> None:
    if not repository.has_blob(document.descriptor.digest):
        stream = io.BytesIO(document.content)
        repository.put_blob(Blob(stream, document.descriptor, lambda _: None))
