"""From a reference to the layers of one image, every document on the way proved."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layermanager.amounts import annotated
from layermanager.boundary import Boundary, Guard
from layermanager.cancellation import Cancellation
from layermanager.errors import (
    CancelledError,
    InvalidReferenceError,
    LayerManagerError,
    ManifestError,
    SourceError,
)
from layermanager.images.proof import DEEPEST_INDEX, proved_document, too_deep
from layermanager.model import DesiredLayer, FailedImage, Resolution, ResolvedImage
from layermanager.oci.installed import InstalledImages, resolved_again
from layermanager.oci.manifest import (
    ImageManifest,
    read_config,
    read_manifest_or_index,
    require_layers,
)
from layermanager.oci.platform import host_platform, parse_platform
from layermanager.oci.reference import FileReference, parse_reference
from layermanager.protocols import ImageSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layermanager.model import DesiredImage, Digest, ImageInfo
    from layermanager.oci.manifest import Descriptor
    from layermanager.oci.platform import Platform
    from layermanager.oci.reference import Reference
    from layermanager.protocols import Source


class ImageResolver:
    """Finds out which layers images have.

    Args:
        sources: where to look, by transport; those that know no images know none of theirs.
        host: the platform of images that are desired for no other one; by default this machine's.
        parallel: how many images to look for at once.
        guard: notes what a source raises that it may not; only that image fails.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        host: Platform | None = None,
        *,
        parallel: int = 1,
        guard: Guard | None = None,
    ) -> None:
        self._sources = sources
        self._guard = guard or Guard()
        self._parallel = parallel
        this = os.uname()
        self._host = host or host_platform(this.sysname, this.machine)

    def resolve(
        self,
        desired: Sequence[DesiredImage],
        installed: Sequence[ImageInfo],
        sources: Mapping[Digest, DesiredLayer],
        cancellation: Cancellation,
    ) -> Resolution:
        """Find the layers of all *desired* images.

        What is named by digest cannot change: while it is *installed* nobody is asked for it. A tag
        is looked up each time. Where that fails, the image that is installed under the tag stays
        desired, so that it is not lost when a registry cannot be reached; the failure is told all
        the same.

        Args:
            desired: what is wanted.
            installed: what is there.
            sources: where its layers come from, as far as that is known.
            cancellation: ends it early.

        Raises:
            InvalidReferenceError: a reference or a platform is none, or the path in one is not
                absolute; nobody was asked.
            CancelledError: it was cancelled.
        """
        wanted = [self._read(image) for image in desired]
        operation = Cancellation()
        at_hand = InstalledImages(installed)

        def look(one: _Wanted) -> Resolution:
            return self._look(one, at_hand, sources, operation)

        with (
            cancellation.interrupting(operation.cancel),
            ThreadPoolExecutor(self._parallel, "resolve") as threads,
        ):
            try:
                found = list(threads.map(look, wanted))
            finally:
                operation.cancel()  # where one ended all, the others need not go on
        return Resolution(
            tuple(image for one in found for image in one.images),
            tuple(image for one in found for image in one.failed),
        )

    def _look(
        self,
        wanted: _Wanted,
        installed: InstalledImages,
        sources: Mapping[Digest, DesiredLayer],
        cancellation: Cancellation,
    ) -> Resolution:
        """Find the layers of one image."""
        reference = wanted.reference
        at_hand = installed.at_hand(reference, wanted.platform)
        failed: tuple[FailedImage, ...] = ()
        if at_hand is None or reference.digest is None:
            try:
                with self._guard.failing(Boundary.IMAGE, f"image {reference}"):
                    return Resolution((self._resolve(reference, wanted.platform, cancellation),))
            except CancelledError:
                raise
            except LayerManagerError as error:
                failed = (FailedImage(wanted.image, error),)
        kept = () if at_hand is None else (resolved_again(at_hand, reference, sources),)
        return Resolution(kept, failed)

    def _read(self, image: DesiredImage) -> _Wanted:
        reference = parse_reference(image.reference)
        if isinstance(reference, FileReference) and not reference.path.startswith("/"):
            # Another process would look for it elsewhere, and it is remembered.
            raise InvalidReferenceError(f"{image.reference}: the path must be absolute")
        platform = parse_platform(image.platform) if image.platform else self._host
        return _Wanted(image, reference, platform)

    def _resolve(
        self, reference: Reference, platform: Platform, cancellation: Cancellation
    ) -> ResolvedImage:
        source = self._sources.get(reference.transport)
        if not isinstance(source, ImageSource):
            raise SourceError("there is no source for images of this kind", url=reference.url)
        try:
            return _Resolving(source, reference, platform, cancellation).image()
        except ManifestError as error:
            raise ManifestError(f"{reference}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A desired image, in words and as what they mean."""

    image: DesiredImage
    reference: Reference
    platform: Platform


class _Resolving:
    """One image on the way from its reference to its layers."""

    def __init__(
        self,
        source: ImageSource,
        reference: Reference,
        platform: Platform,
        cancellation: Cancellation,
    ) -> None:
        self._source = source
        self._reference = reference
        self._platform = platform
        self._cancellation = cancellation

    def image(self) -> ResolvedImage:
        """Go all the way."""
        digest, manifest = self._manifest()
        require_layers(manifest)
        document = self._document(manifest.config)
        config = read_config(document, len(manifest.layers))
        if config.platform is not None and self._platform.rank(config.platform) is None:
            raise ManifestError(
                f"it is an image for {config.platform}, not for {self._platform}; if it is the "
                "right one all the same, desire it for that platform"
            )
        return ResolvedImage(
            reference=str(self._reference),
            digest=digest,
            platform=str(self._platform),
            layers=tuple(
                DesiredLayer(
                    layer.digest,
                    self._reference.at(layer.digest).url,
                    size=layer.size,
                    diff_id=diff_id,
                    unpacked=annotated(layer.annotations),
                )
                for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
            ),
            diff_ids=config.diff_ids,
            config_digest=manifest.config.digest,
            config=document,
        )

    def _manifest(self) -> tuple[Digest, ImageManifest]:
        """The manifest for the platform, and its digest."""
        found = self._source.find_image(self._reference, self._cancellation)
        for _ in range(DEEPEST_INDEX):
            only = found.manifests[0] if len(found.manifests) == 1 else None
            descriptor = only or found.choose(self._platform)
            document = self._document(descriptor)
            content = read_manifest_or_index(document, descriptor.media_type)
            if isinstance(content, ImageManifest):
                return descriptor.digest, content
            found = content
        raise too_deep()

    def _document(self, descriptor: Descriptor) -> bytes:
        return proved_document(self._source, self._reference, descriptor, self._cancellation)
