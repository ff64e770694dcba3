"""Artifacts: manifests that hold documents rather than an image.

A desired state in a registry is one (image-spec 1.1, manifest.md, "Guidelines for Artifact
Usage"): a manifest of the type ``STATE_TYPE`` with one layer of the same type and, where it is
signed, one of ``SIGNATURE_TYPE``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import ManifestError
from layermanager.model import Digest
from layermanager.oci.manifest import (
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    descriptor_members,
    read_manifest_or_index,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

STATE_TYPE: Final = "application/vnd.layermanager.desired-state.v1+json"
"""The media type of a desired state, and of an artifact that holds one."""

SIGNATURE_TYPE: Final = "application/vnd.layermanager.desired-state.signature.v1"
"""The media type of the signature of a desired state."""

_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY: Final = b"{}"


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its place in an artifact."""

    descriptor: Descriptor
    content: bytes

    @classmethod
    def of(cls, media_type: str, content: bytes) -> Document:
        """The document of that type and content."""
        digest = Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")
        return cls(Descriptor(media_type, digest, len(content)), content)


def config_document() -> Document:
    """What stands for the configuration of an artifact, which has none."""
    return Document.of(_EMPTY_TYPE, _EMPTY)


def write_artifact(artifact_type: str, documents: Sequence[Document]) -> bytes:
    """The manifest of an artifact; the same one gives the same bytes."""
    members = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor_members(config_document().descriptor),
        "layers": [descriptor_members(document.descriptor) for document in documents],
    }
    return json.dumps(members, separators=(",", ":")).encode()


def find_document(manifest: bytes, media_type: str) -> Descriptor:
    """Where the one document of that type is.

    Raises:
        ManifestError: there is none, or more than one, or the manifest is none.
    """
    content = read_manifest_or_index(manifest)
    if isinstance(content, ImageIndex):
        raise ManifestError("an index, not an artifact")
    found = [layer for layer in content.layers if layer.media_type == media_type]
    if len(found) != 1:
        raise ManifestError(f"{len(found) or 'no'} layers of the type {media_type}; one is needed")
    return found[0]
