"""References: by which names users ask for images, and where those names lead.

::

    registry:5000/app:1.2            in a registry, by tag
    app@sha256:…                     … by digest; docker.io/library/app is meant
    docker://registry/app:1.2        the same as skopeo writes it
    oci:PATH[:NAME]                  in an OCI image layout, a directory
    oci-archive:PATH[:NAME]          in an OCI image layout, packed as a tar
    docker-archive:PATH[:NAME:TAG]   in the output of ``docker save``

The grammar of names in registries is that of the distribution project (``reference``,
"Grammar"); what is left out is filled in as Docker does it. The others are read as skopeo reads
them (containers-transports(5)); ``oci:PATH@DIGEST`` besides names an image, or a layer, by digest.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, TypeAlias

from layermanager.errors import InvalidDigestError, InvalidReferenceError
from layermanager.model import Digest

DEFAULT_REGISTRY: Final = "docker.io"
"""The registry of a name that names none: Docker Hub."""

DEFAULT_TAG: Final = "latest"
"""The tag of a name that has neither tag nor digest."""

_LEGACY_REGISTRY: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_LONGEST_NAME: Final = 255
_LONGEST_REFERENCE: Final = 8192  # a path and a digest fit

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F]*:[0-9a-fA-F:.]*\])(?::[0-9]{{1,5}})?", re.ASCII
)
_PATH_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*", re.ASCII)
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_IMAGE_ID: Final = re.compile(r"[0-9a-f]{64}")
# image-spec, annotations.md, "org.opencontainers.image.ref.name"
_NAME_PART: Final = r"[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*"
_LAYOUT_NAME: Final = re.compile(rf"{_NAME_PART}(?:/{_NAME_PART})*", re.ASCII)
_PATH_AT_DIGEST: Final = re.compile(r"(?P<path>[^:]+)@(?P<digest>[a-z0-9]+:[0-9a-f]{32,})")
_UNUSABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


class Transport(enum.StrEnum):
    """The kind of place in which an image is; skopeo's word, and the scheme of its addresses."""

    REGISTRY = "docker"
    LAYOUT = "oci"
    LAYOUT_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


_FILE_TRANSPORTS: Final = {
    transport.value: transport for transport in Transport if transport is not Transport.REGISTRY
}


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry.

    Attributes:
        registry: the host, and its port where one is named.
        repository: the name within the registry, such as ``library/debian``.
        tag: what the image is called; an empty text where only the digest was named.
        digest: the digest of the manifest or index; where it is named it decides, not the tag.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @property
    def transport(self) -> Transport:
        """The kind of place."""
        return Transport.REGISTRY

    def at(self, digest: Digest) -> RegistryReference:
        """What has this *digest* in the same repository: another manifest, or a blob."""
        return replace(self, tag="", digest=digest)

    @property
    def url(self) -> str:
        """The reference with its transport in front."""
        return f"{self.transport}://{self}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class FileReference:
    """An image in a file or directory of this node.

    Attributes:
        transport: the kind of file.
        path: where it is.
        name: what the image is called in there; an empty text where it holds only one.
        digest: the digest of the manifest or index, in the stead of a name.
    """

    transport: Transport
    path: str
    name: str = ""
    digest: Digest | None = None

    def at(self, digest: Digest) -> FileReference:
        """What has this *digest* in the same file: another manifest, or a blob."""
        return replace(self, name="", digest=digest)

    def within(self, directory: str) -> FileReference:
        """The same with an absolute path, where a relative one counts from *directory*."""
        return replace(self, path=str(PurePosixPath(directory) / self.path))

    @property
    def url(self) -> str:
        """The reference as it is: its transport is always in front."""
        return str(self)

    def __str__(self) -> str:
        name = f":{self.name}" if self.name else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport}:{self.path}{name}{digest}"


Reference: TypeAlias = RegistryReference | FileReference


def parse_reference(text: str) -> Reference:
    """Read a reference of any kind; the text of what is returned reads as the same again.

    Raises:
        InvalidReferenceError: *text* is none; the message says why.
    """
    if len(text) > _LONGEST_REFERENCE or _UNUSABLE.search(text):
        raise InvalidReferenceError(f"not a reference to an image: {text!r:.300}")
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _FILE_TRANSPORTS:
        return _parse_file(_FILE_TRANSPORTS[scheme], rest, text)
    if scheme == Transport.REGISTRY and rest.startswith("//"):
        return parse_registry_reference(rest.removeprefix("//"))
    return parse_registry_reference(text)


def parse_registry_reference(text: str) -> RegistryReference:
    """Read the reference of an image in a registry, without a transport in front.

    Raises:
        InvalidReferenceError: *text* is none.
    """
    if len(text) > _LONGEST_REFERENCE:
        raise InvalidReferenceError(f"not a reference to an image: {text!r:.300}")
    name, at_sign, digest = text.partition("@")
    tag = ""
    if ":" in name.rpartition("/")[2]:
        name, _, tag = name.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise _invalid(text, f"not a tag: {tag!r:.200}")
    if _IMAGE_ID.fullmatch(name):
        raise _invalid(text, "64 hex digits are no name; a digest is written NAME@sha256:…")
    registry, repository = _split(name)
    if not _REGISTRY.fullmatch(registry):
        raise _invalid(text, f"not a registry: {registry!r:.200}")
    if not _REPOSITORY.fullmatch(repository):
        raise _invalid(
            text, f"not a repository, which is written in lower case: {repository!r:.200}"
        )
    if len(registry) + 1 + len(repository) > _LONGEST_NAME:
        raise _invalid(text, f"a name has at most {_LONGEST_NAME} characters")
    if not at_sign:
        return RegistryReference(registry, repository, tag or DEFAULT_TAG)
    return RegistryReference(registry, repository, tag, _digest(text, digest))


def file_reference(reference: Reference) -> FileReference:
    """Take *reference* as one of a file; for those who know only files.

    Raises:
        InvalidReferenceError: it is one of a registry.
    """
    if isinstance(reference, FileReference):
        return reference
    raise InvalidReferenceError(f"not a reference to an image in a file: {reference}")


def registry_reference(reference: Reference) -> RegistryReference:
    """Take *reference* as one of a registry; for those who know only registries.

    Raises:
        InvalidReferenceError: it is one of a file.
    """
    if isinstance(reference, RegistryReference):
        return reference
    raise InvalidReferenceError(f"not a reference to an image in a registry: {reference}")


def _split(name: str) -> tuple[str, str]:
    """The registry and the repository that *name* means to Docker."""
    first, slash, rest = name.partition("/")
    is_registry = "." in first or ":" in first or first == "localhost" or first != first.lower()
    registry, repository = (first, rest) if slash and is_registry else (DEFAULT_REGISTRY, name)
    if registry == _LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _parse_file(transport: Transport, rest: str, text: str) -> FileReference:
    by_digest = _PATH_AT_DIGEST.fullmatch(rest)
    if by_digest is not None:
        digest = _digest(text, by_digest["digest"])
        return FileReference(transport, by_digest["path"], digest=digest)
    path, colon, name = rest.partition(":")
    if not path:
        raise _invalid(text, "it names no file")
    if not colon:
        return FileReference(transport, path)
    if transport is Transport.DOCKER_ARCHIVE:
        return FileReference(transport, path, str(parse_registry_reference(name)))
    if not _LAYOUT_NAME.fullmatch(name):
        raise _invalid(text, f"not the name of an image in a layout: {name!r:.200}")
    return FileReference(transport, path, name)


def _digest(text: str, digest: str) -> Digest:
    try:
        return Digest(digest)
    except InvalidDigestError as error:
        raise _invalid(text, str(error)) from error


def _invalid(text: str, reason: str) -> InvalidReferenceError:
    return InvalidReferenceError(f"not a reference to an image: {text!r:.300}: {reason}")
