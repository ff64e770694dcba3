"""Which images are installed: what an operation makes of the record of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from layermanager.errors import ImageError, IntegrityError, LayerManagerError
from layermanager.model import DesiredImage, FailedImage, ImageChanges, ImageInfo
from layermanager.plan import expired
from layermanager.protocols import RemembersImages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import timedelta

    from layermanager.ages import Ages
    from layermanager.model import Digest, FailedLayer, ResolvedImage
    from layermanager.plan import Plan
    from layermanager.protocols import Clock, LayerStorage

    ProvideDirectories: TypeAlias = Callable[
        [Sequence[ImageInfo]], Iterable[tuple[ImageInfo, ImageInfo | LayerManagerError]]
    ]


class ImageRecord:
    """The images in *storage*; where that does not remember images there are none, ever.

    Its methods are called within an operation of the manager, from one thread at a time.
    """

    def __init__(self, storage: LayerStorage, clock: Clock) -> None:
        self._layers = storage
        self._images = storage if isinstance(storage, RemembersImages) else None
        self._clock = clock

    def installed(self) -> tuple[ImageInfo, ...]:
        """The images whose layers are all there."""
        return tuple(self._images.get_images_info()) if self._images else ()

    def add(self, images: Iterable[ImageInfo]) -> None:
        """Record *images* as they are."""
        if self._images:
            for image in images:
                self._images.add_image(image)

    def cache(self, images: Iterable[ImageInfo]) -> tuple[ImageInfo, ...]:
        """Note that *images* are no longer desired; return them as they are then."""
        return self._set_cached(images, cached=True)

    def restore(self, images: Iterable[ImageInfo]) -> None:
        """Note that *images* are desired again."""
        self._set_cached(images, cached=False)

    def remove_expired(self, ages: Ages, time_to_live: timedelta) -> None:
        """Forget the images that have been cached for so long; layers of theirs may be in use."""
        if self._images:
            for image in expired(self.installed(), ages.of, time_to_live):
                self._images.delete_image(image.reference, image.digest)

    def settle(
        self,
        steps: Plan,
        cached: tuple[ImageInfo, ...],
        failed: Iterable[FailedLayer],
        provide: ProvideDirectories,
    ) -> ImageChanges:
        """Record the desired images whose layers are all there now; tell what came of the others.

        Args:
            steps: what was done to the layers.
            cached: what ``cache`` returned.
            failed: the layers that could not be installed.
            provide: installs the layers of directories that images need, once for all images;
                gives each image as it is then, or the reason why it has none.
        """
        recorded = {_key(image): image for image in self.installed()}
        errors = {layer.desired.digest: layer.error for layer in failed}
        installed: list[ImageInfo] = []
        failures = list(steps.images.failed)
        # An image that was there may have gone, when a neighbour evicted a layer that was cached.
        lost = [
            image
            for image in (*steps.images.keep, *steps.images.restore)
            if _key(image) not in recorded
        ]
        new = [*map(self._anew, lost), *map(self._new, steps.images.install)]
        stay = [
            recorded[key]
            for key in map(_key, (*steps.images.keep, *steps.images.restore))
            if key in recorded
        ]
        # Most often there is none, and there may be many layers.
        may_lack_layers = new or any(map(_may_be_unsettled, stay))
        here = (
            {layer.digest for layer in self._layers.get_layers_info()} if may_lack_layers else set()
        )
        diff_ids = _diff_ids(steps, here, recorded.values())
        complete: list[ImageInfo] = []
        for image in new:
            error = _what_is_missing(image, here, diff_ids, errors)
            if error is not None:
                failures.append(_failed(image, error))
            else:
                complete.append(image)
        unsettled = [image for image in stay if _is_unsettled(image, here)]
        settled, without = self.settle_directories([*complete, *unsettled], provide)
        failures += without
        for image in settled:
            if _key(image) in recorded:
                recorded[_key(image)] = image
            else:
                installed.append(image)
        return ImageChanges(
            kept=tuple(recorded[key] for key in map(_key, steps.images.keep) if key in recorded),
            restored=tuple(
                recorded[key] for key in map(_key, steps.images.restore) if key in recorded
            ),
            cached=cached,
            installed=tuple(installed),
            failed=tuple(failures),
        )

    def settle_directories(
        self, images: Sequence[ImageInfo], provide: ProvideDirectories
    ) -> tuple[tuple[ImageInfo, ...], tuple[FailedImage, ...]]:
        """Record *images* with the layers of directories that they turn out to need.

        Returns:
            The images as they are then, and those that stay as they were.
        """
        if not images:
            return (), ()
        recorded = {_key(image): image for image in self.installed()}
        settled: list[ImageInfo] = []
        failures: list[FailedImage] = []
        for image, outcome in provide(images):
            if isinstance(outcome, LayerManagerError):
                failures.append(_failed(image, outcome))
                continue
            if recorded.get(_key(outcome)) != outcome:
                self.add([outcome])
            settled.append(outcome)
        return tuple(settled), tuple(failures)

    def unsettle(self, layers: Collection[Digest]) -> None:
        """Note of the images that have any of *layers* that their directories may be others.

        It comes before the index of a layer changes, so that a crash after that loses nothing.
        """
        changing = set(layers)
        self.add(
            replace(image, are_directories_known=False)
            for image in self.installed()
            if image.are_directories_known
            and len(set(image.layers)) > 1
            and not changing.isdisjoint(image.layers)
        )

    def unsettled(self, doubtful: Collection[Digest] = ()) -> tuple[ImageInfo, ...]:
        """Return the desired images of which it is to be found out what directories they need.

        Args:
            doubtful: layers of directories that may not be right.
        """
        here = {layer.digest for layer in self._layers.get_layers_info()}.difference(doubtful)
        return tuple(
            image for image in self.installed() if not image.cached and _is_unsettled(image, here)
        )

    def _set_cached(self, images: Iterable[ImageInfo], *, cached: bool) -> tuple[ImageInfo, ...]:
        if not self._images:
            return ()
        keys = [_key(image) for image in images]
        for reference, digest in keys:
            self._images.set_image_cached(reference, digest, cached)
        now = {_key(image): image for image in self.installed()}
        return tuple(now[key] for key in keys if key in now)

    def _new(self, image: ResolvedImage) -> ImageInfo:
        return ImageInfo(
            reference=image.reference,
            digest=image.digest,
            platform=image.platform,
            layers=tuple(layer.digest for layer in image.layers),
            diff_ids=image.diff_ids,
            config_digest=image.config_digest,
            config=image.config,
            timestamp=self._clock.now(),
            cached=False,
        )

    def _anew(self, image: ImageInfo) -> ImageInfo:
        return replace(image, timestamp=self._clock.now(), cached=False)


def _may_be_unsettled(image: ImageInfo) -> bool:
    return not image.are_directories_known or image.directories is not None


def _is_unsettled(image: ImageInfo, here: Collection[Digest]) -> bool:
    """Whether *image* may need another layer of directories, where these layers are *here*."""
    if not image.are_directories_known:
        return True
    return image.directories is not None and image.directories not in here


def _failed(image: ImageInfo, error: LayerManagerError) -> FailedImage:
    return FailedImage(DesiredImage(image.reference, image.platform), error)


def _key(image: ImageInfo | ResolvedImage) -> tuple[str, Digest]:
    return image.reference, image.digest


def _diff_ids(
    steps: Plan, here: set[Digest], recorded: Iterable[ImageInfo]
) -> Mapping[Digest, Digest]:
    """The diff IDs that were compared when the layers were unpacked."""
    compared = {
        digest: diff_id
        for image in recorded
        for digest, diff_id in zip(image.layers, image.diff_ids, strict=True)
    }
    for layer in steps.install:
        if layer.diff_id is not None and layer.digest in here:
            compared[layer.digest] = layer.diff_id
    return compared


def _what_is_missing(
    image: ImageInfo,
    here: set[Digest],
    diff_ids: Mapping[Digest, Digest],
    errors: Mapping[Digest, LayerManagerError],
) -> LayerManagerError | None:
    """Why *image* is not there as a whole; None if it is."""
    for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
        if layer not in here:
            return errors.get(layer) or ImageError(f"{image.reference}: layer {layer} is not there")
        compared = diff_ids.get(layer, diff_id)
        if compared != diff_id:
            return IntegrityError("diff ID", expected=diff_id, found=compared, digest=layer)
    return None
