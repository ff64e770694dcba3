"""Which of the installed images a reference means, without asking anybody."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from layermanager.model import DesiredLayer, ResolvedImage
from layermanager.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layermanager.model import Digest, ImageInfo
    from layermanager.oci.platform import Platform
    from layermanager.oci.reference import Reference


class InstalledImages:
    """Index of the *installed* images, so that many references cost no more than the images."""

    def __init__(self, installed: Iterable[ImageInfo]) -> None:
        self._by_name: dict[tuple[str, str], list[ImageInfo]] = {}
        for image in installed:
            for name in (image.reference, image.digest):
                self._by_name.setdefault((image.platform, name), []).append(image)

    def at_hand(self, reference: Reference, platform: Platform) -> ImageInfo | None:
        """Return the image that is known by *reference*, if there is one.

        A digest in *reference* says it, whatever the image was called when it was installed. Of
        several that were called by the same tag it is the desired one, or else the one that was
        desired last.
        """
        names = [str(reference), *([reference.digest] if reference.digest else [])]
        known = [image for name in names for image in self._by_name.get((str(platform), name), ())]
        return max(known, key=lambda image: (not image.cached, image.timestamp), default=None)


def resolved_again(
    image: ImageInfo, reference: Reference, sources: Mapping[Digest, DesiredLayer]
) -> ResolvedImage:
    """An installed *image* as what *reference* leads to.

    Its layers come from where they came from, as far as *sources* know that, and else from where
    the image did.
    """
    place = parse_reference(image.reference)
    return ResolvedImage(
        reference=str(reference),
        digest=image.digest,
        platform=image.platform,
        layers=tuple(
            replace(
                sources.get(digest) or DesiredLayer(digest, place.at(digest).url), diff_id=diff_id
            )
            for digest, diff_id in zip(image.layers, image.diff_ids, strict=True)
        ),
        diff_ids=image.diff_ids,
        config_digest=image.config_digest,
        config=image.config,
    )
