"""The documents of an image: index, manifest and configuration, of OCI and of Docker.

An *index* lists the manifests of one image for several platforms; a *manifest* names the image's
configuration and its layers, the lowest first; the *configuration* says how the image is to be run
and which digest each layer has once it is decompressed, its diff ID (image-spec 1.1:
image-index.md, manifest.md, config.md; Docker's "Image Manifest Version 2, Schema 2"). Docker's
documents differ from OCI's in their media types only.

What somebody else wrote is bounded before it is parsed, and what is not taken is refused by its
name: schema 1, foreign and encrypted layers, layers of unknown types, artifacts that are no images.
"""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import IntegrityError, InvalidDigestError, ManifestError
from layermanager.model import Digest
from layermanager.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Result = TypeVar("Result")

MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
"""The largest document that is read: what every registry has to take (distribution-spec, "Pushing
Manifests"), and more than any image is known to have."""

MAX_LAYERS: Final = 500
"""As many as overlayfs puts over one another."""

MAX_MANIFESTS: Final = 1000
"""How many manifests an index may list."""

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_UNTYPED: Final = "application/octet-stream"  # what Docker 1.10 called its configurations

INDEX_TYPES: Final = (OCI_INDEX, DOCKER_LIST)
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIG_TYPES: Final = (OCI_CONFIG, DOCKER_CONFIG, _UNTYPED)

OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation by which an image layout calls its images."""

_LAYER_TYPES: Final = (
    OCI_LAYER,
    f"{OCI_LAYER}+gzip",
    f"{OCI_LAYER}+zstd",
    DOCKER_LAYER,
    f"{DOCKER_LAYER}.gzip",
    f"{DOCKER_LAYER}.zstd",
)
_FOREIGN_LAYERS: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.",
)
_ENCRYPTED: Final = "+encrypted"
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"
_SCHEMA_1_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points from one document to another, or to a layer (image-spec, descriptor.md).

    Attributes:
        media_type: what is there.
        digest: its digest.
        size: its size in bytes.
        platform: in an index: for which machines the manifest is; None where it does not say.
        annotations: texts about it, by key.
        data: the document itself, where whoever points to it had to read it; not proved either.
    """

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The manifests of an image, or all of an image layout."""

    manifests: tuple[Descriptor, ...]

    def choose(self, platform: Platform) -> Descriptor:
        """The one for *platform*; where several suit it, the best, and of these the first.

        A manifest that names no platform is taken if it is the only one that might suit: its
        configuration says for which it is.

        Raises:
            ManifestError: there is none, or one cannot tell which.
        """
        ranked = [
            (rank, position)
            for position, manifest in enumerate(self.manifests)
            if manifest.platform is not None
            and (rank := platform.rank(manifest.platform)) is not None
        ]
        if ranked:
            return self.manifests[min(ranked)[1]]
        unnamed = [manifest for manifest in self.manifests if manifest.platform is None]
        if len(unnamed) == 1:
            return unnamed[0]
        if unnamed:
            raise ManifestError(
                f"{len(unnamed)} manifests of the index do not say for which platform they are"
            )
        offered = ", ".join(dict.fromkeys(str(one.platform) for one in self.manifests))
        raise ManifestError(f"there is no image for {platform}, but for: {offered or 'none':.1000}")


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One image for one platform.

    Attributes:
        config: where its configuration is.
        layers: where its layers are, the lowest first.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image is to be run, and what its layers are (image-spec, config.md).

    Attributes:
        platform: for which machines it is; None where it does not say.
        diff_ids: the digest of each layer's tar, the lowest layer first.
        created: when it was made, as the document has it.
        environment: ``NAME=value`` each.
        entrypoint: the command and its first arguments.
        arguments: what follows the entrypoint unless the user says otherwise (``Cmd``).
        working_directory: where the command begins.
        user: who runs it, by name or number, and the group after a colon.
        exposed_ports: ``port/protocol`` each.
        volumes: directories that hold the data of a container.
        labels: texts about it, by key.
        stop_signal: what asks the command to end.
    """

    platform: Platform | None
    diff_ids: tuple[Digest, ...]
    created: str = ""
    environment: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stop_signal: str = ""


class _Kind(enum.Enum):
    INDEX = "an index"
    MANIFEST = "a manifest"


def read_manifest_or_index(document: bytes, media_type: str = "") -> ImageIndex | ImageManifest:
    """Read what a reference or an index leads to.

    Args:
        document: its bytes.
        media_type: what the descriptor or the server says that it is; where that is empty or means
            nothing, the document itself decides.

    Raises:
        ManifestError: it is neither, contradicts itself, or is of a kind that is not taken.
    """

    def read() -> ImageIndex | ImageManifest:
        members = _object(document)
        own_type = members.text("mediaType", "")
        if members.integer("schemaVersion", 2) == _SCHEMA_1_VERSION or own_type.startswith(
            _SCHEMA_1
        ):
            raise ManifestError(
                "a manifest of Docker's schema 1, which no longer says what its layers are: "
                "push the image again with a tool of this decade"
            )
        claimed = {kind for kind in map(_kind_of, (media_type, own_type)) if kind is not None}
        # A document of both forms would be one image to us and another one to others.
        forms = {
            kind
            for key, kind in (
                ("manifests", _Kind.INDEX),
                ("config", _Kind.MANIFEST),
                ("layers", _Kind.MANIFEST),
            )
            if members.members.get(key) is not None
        }
        if len(forms | claimed) != 1:
            raise _undecided(media_type or own_type, claimed, forms)
        (kind,) = forms | claimed
        return _index(members) if kind is _Kind.INDEX else _manifest(members)

    return _reading("manifest", read)


def read_index(document: bytes) -> ImageIndex:
    """Read a document that must be an index, such as ``index.json`` of an image layout.

    Raises:
        ManifestError: it is none.
    """
    return _reading("index", lambda: _index(_object(document)))


def read_config(document: bytes, layers: int) -> ImageConfig:
    """Read the configuration of an image that has so many *layers*.

    Raises:
        ManifestError: it is none, or of another number of layers.
    """
    config = _reading("image configuration", lambda: _config(_object(document)))
    if len(config.diff_ids) != layers:
        raise ManifestError(
            f"image configuration: rootfs.diff_ids names {len(config.diff_ids)} layers, "
            f"the image has {layers}"
        )
    return config


def write_manifest(manifest: ImageManifest) -> bytes:
    """The document of *manifest*; the same one gives the same bytes."""
    return _written(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor_members(manifest.config),
            "layers": [descriptor_members(layer) for layer in manifest.layers],
        }
    )


def write_config(config: ImageConfig) -> bytes:
    """The document of *config*; the same one gives the same bytes."""
    run: dict[str, object] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": config.environment,
        "Entrypoint": config.entrypoint,
        "Cmd": config.arguments,
        "Volumes": {volume: {} for volume in config.volumes},
        "WorkingDir": config.working_directory,
        "Labels": dict(sorted(config.labels.items())),
        "StopSignal": config.stop_signal,
    }
    return _written(
        {
            **({"created": config.created} if config.created else {}),
            **({} if config.platform is None else _platform_members(config.platform)),
            "config": {key: value for key, value in run.items() if value},
            "rootfs": {"type": "layers", "diff_ids": config.diff_ids},
        }
    )


def descriptor_members(descriptor: Descriptor) -> dict[str, object]:
    """The members of *descriptor* as a JSON object."""
    members: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.platform is not None:
        members["platform"] = _platform_members(descriptor.platform)
    if descriptor.annotations:
        members["annotations"] = dict(descriptor.annotations)
    return members


def check_document(document: bytes, descriptor: Descriptor) -> None:
    """Prove that *document* is the one to which *descriptor* points.

    Raises:
        IntegrityError: it has another size or digest.
    """
    digest = descriptor.digest
    if len(document) != descriptor.size:
        raise IntegrityError(
            "document size",
            expected=f"{descriptor.size} bytes",
            found=f"{len(document)} or more" if document else "none",
            digest=digest,
        )
    found = f"{digest.algorithm}:{hashlib.new(digest.algorithm, document).hexdigest()}"
    if found != digest:
        raise IntegrityError("document digest", expected=digest, found=found, digest=digest)


def require_layers(manifest: ImageManifest) -> None:
    """Refuse what is no image, or has layers that are not for everybody's eyes or disk.

    Raises:
        ManifestError: it is such.
    """
    if manifest.config.media_type not in CONFIG_TYPES:
        raise ManifestError(
            f"not an image but an artifact of type {manifest.config.media_type!r:.200}"
        )
    if not manifest.layers:
        raise ManifestError("the image has no layers: there is nothing to install")
    for layer in manifest.layers:
        _require_layer_type(layer)


def _require_layer_type(layer: Descriptor) -> None:
    media_type = layer.media_type
    if media_type in _LAYER_TYPES:
        return
    if media_type.startswith(_FOREIGN_LAYERS):
        what = "is a foreign layer, which may not be distributed and is not in the registry"
    elif media_type.endswith(_ENCRYPTED):
        what = "is encrypted"
    else:
        what = "is of an unknown type"
    raise ManifestError(f"layer {layer.digest} {what}: {media_type!r:.200}")


def _kind_of(media_type: str) -> _Kind | None:
    media_type = media_type.partition(";")[0].strip().lower()
    if media_type in INDEX_TYPES:
        return _Kind.INDEX
    if media_type in MANIFEST_TYPES:
        return _Kind.MANIFEST
    return None


def _undecided(media_type: str, claimed: set[_Kind], forms: set[_Kind]) -> ManifestError:
    if not claimed and not forms:
        return ManifestError(f"neither a manifest nor an index: its type is {media_type!r:.200}")
    kinds = " and ".join(sorted(kind.value for kind in claimed | forms))
    return ManifestError(f"its types and its members contradict each other: {kinds}")


def _object(document: bytes) -> JsonObject:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ManifestError(f"larger than {MAX_DOCUMENT_BYTES} bytes")
    return JsonObject.of(parse(document), "")


def _index(members: JsonObject) -> ImageIndex:
    manifests = tuple(map(_descriptor, members.objects("manifests", at_most=MAX_MANIFESTS)))
    return ImageIndex(manifests)


def _manifest(members: JsonObject) -> ImageManifest:
    config = _descriptor(members.child("config"))
    layers = tuple(map(_descriptor, members.objects("layers", at_most=MAX_LAYERS)))
    return ImageManifest(config, layers)


def _descriptor(members: JsonObject) -> Descriptor:
    return Descriptor(
        media_type=members.required_text("mediaType"),
        digest=_digest(members.required_text("digest"), members.at("digest")),
        size=members.required_integer("size"),
        platform=_platform(members.child("platform")),
        annotations=members.child("annotations").texts_by_key(),
    )


def _config(members: JsonObject) -> ImageConfig:
    run = members.child("config")
    root = members.child("rootfs")
    diff_ids = root.texts("diff_ids")
    return ImageConfig(
        platform=_platform(members),
        diff_ids=tuple(
            _digest(text, f"{root.at('diff_ids')}[{position}]")
            for position, text in enumerate(diff_ids)
        ),
        created=members.text("created", ""),
        environment=run.texts("Env"),
        entrypoint=run.texts("Entrypoint"),
        arguments=run.texts("Cmd"),
        working_directory=run.text("WorkingDir", ""),
        user=run.text("User", ""),
        exposed_ports=tuple(sorted(run.child("ExposedPorts").members)),
        volumes=tuple(sorted(run.child("Volumes").members)),
        labels=run.child("Labels").texts_by_key(),
        stop_signal=run.text("StopSignal", ""),
    )


def _platform(members: JsonObject) -> Platform | None:
    """The platform that *members* name; None where they leave out a half of it."""
    os, architecture = members.text("os", ""), members.text("architecture", "")
    if not os or not architecture:
        return None
    return Platform(os, architecture, members.text("variant", ""))


def _digest(text: str, place: str) -> Digest:
    try:
        return Digest(text)
    except InvalidDigestError as error:
        raise DocumentError(f"{place}: {error}") from error


def _reading(what: str, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except (DocumentError, ManifestError) as error:
        raise ManifestError(f"{what}: {error}") from error


def _platform_members(platform: Platform) -> dict[str, object]:
    members: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        members["variant"] = platform.variant
    return members


def _written(members: dict[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
