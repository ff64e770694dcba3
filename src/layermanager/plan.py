"""What to do, decided before anything is done.

The decisions of the manager are pure functions of values: ``plan`` compares the desired layers
with the installed ones, ``reconcile`` compares the rows of the storage with the directories on
disk. Nothing here reads the disk, the database or the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final, TypeVar

from layermanager.errors import (
    DesiredStateError,
    ImageNotExistError,
    InvalidReferenceError,
    LayerNotExistError,
    UseError,
)
from layermanager.model import DesiredLayer, ImageInfo, LayerInfo, Resolution, ResolvedImage
from layermanager.oci.reference import parse_reference
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import timedelta

    from layermanager.model import Digest, FailedImage

Cacheable = TypeVar("Cacheable", LayerInfo, ImageInfo)

_NO_IMAGES: Final = Resolution()


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """The steps that make the installed images the desired ones; each image is in one of them.

    Attributes:
        keep: installed and desired.
        restore: cached and desired again.
        cache: installed and no longer desired.
        install: desired and not there as a whole.
        failed: desired, and nobody could tell which layers they have.
    """

    keep: tuple[ImageInfo, ...] = ()
    restore: tuple[ImageInfo, ...] = ()
    cache: tuple[ImageInfo, ...] = ()
    install: tuple[ResolvedImage, ...] = ()
    failed: tuple[FailedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Renaming:
    """Name and version that the desired list now gives to an installed layer.

    Attributes:
        digest: the layer.
        layer_id: its new name.
        version: its new version.
    """

    digest: Digest
    layer_id: str
    version: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.layer_id, self.version)))


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that make the installed layers the desired ones; each layer is in one of them.

    Attributes:
        keep: installed and desired: nothing to do.
        restore: cached and desired again: no longer reclaimable.
        cache: installed and no longer desired: kept, reclaimable.
        install: desired and not there: fetch and unpack, in the order of the desired list.
        desired: all layers that are desired, those of images after the others; each once.
        images: the same for images.
        rename: the new names of layers that are kept or restored, as far as they change.
    """

    keep: tuple[LayerInfo, ...]
    restore: tuple[LayerInfo, ...]
    cache: tuple[LayerInfo, ...]
    install: tuple[DesiredLayer, ...]
    desired: tuple[DesiredLayer, ...] = ()
    images: ImagePlan = field(default_factory=ImagePlan)
    rename: tuple[Renaming, ...] = ()

    def lines(self) -> Iterator[str]:
        """The plan as text, a line a step, in the order in which they are done."""
        for action, layers in (
            ("keep", self.keep),
            ("restore", self.restore),
            ("cache", self.cache),
        ):
            for layer in layers:
                yield f"{action} {layer.digest}"
        for renaming in self.rename:
            yield f"rename {renaming.digest} to {renaming}"
        for desired in self.install:
            yield f"install {desired.digest} from {without_credentials(desired.url)}"
        yield from self._image_lines()

    def _image_lines(self) -> Iterator[str]:
        for action, images in (
            ("keep", self.images.keep),
            ("restore", self.images.restore),
            ("cache", self.images.cache),
            ("install", self.images.install),
        ):
            for image in images:
                yield f"{action} image {image.reference}, {image.platform}, {image.digest}"
        for failed in self.images.failed:
            yield f"fail image {failed.desired.reference}: {failed.error}"


def plan(
    desired: Iterable[DesiredLayer],
    installed: Iterable[LayerInfo],
    images: Resolution = _NO_IMAGES,
    installed_images: Iterable[ImageInfo] = (),
) -> Plan:
    """Decide what to do so that the installed layers and images become the desired ones.

    A layer is desired as long as the list or any of the *images* wants it. One that is desired
    twice in the same words is desired once; where the list and an image, or two images, want the
    same layer it is fetched from the first one's address. The list names layers, images do not.

    Args:
        desired: the layers that are desired for themselves.
        installed: the layers that are there.
        images: the images that are desired.
        installed_images: those that are there.

    Raises:
        DesiredStateError: a layer is desired twice for itself, in contradicting words.
    """
    wanted = _with_layers_of_images(_by_digest(desired), images.images)
    here = {layer.digest: layer for layer in installed}
    image_plan = _plan_images(images, installed_images)
    made_here = {image.directories for image in (*image_plan.keep, *image_plan.restore)} - {None}
    desired_here = [here[digest] for digest in wanted if digest in here]
    desired_here += [
        layer for digest, layer in here.items() if digest in made_here and digest not in wanted
    ]
    return Plan(
        keep=tuple(layer for layer in desired_here if not layer.cached),
        restore=tuple(layer for layer in desired_here if layer.cached),
        cache=tuple(
            layer
            for layer in here.values()
            if layer.digest not in wanted and layer.digest not in made_here and not layer.cached
        ),
        install=tuple(layer for layer in wanted.values() if layer.digest not in here),
        desired=tuple(wanted.values()),
        images=image_plan,
        rename=tuple(
            renaming
            for digest, desired_layer in wanted.items()
            if digest in here and (renaming := _renaming(here[digest], desired_layer)) is not None
        ),
    )


def _renaming(layer: LayerInfo, desired: DesiredLayer) -> Renaming | None:
    """Return the name and version that *desired* gives to *layer*; None if they are the same.

    What *desired* does not say stays.
    """
    name = desired.layer_id or layer.layer_id, desired.version or layer.version
    if name == (layer.layer_id, layer.version):
        return None
    return Renaming(layer.digest, *name)


def _with_layers_of_images(
    wanted: dict[Digest, DesiredLayer], images: Iterable[ResolvedImage]
) -> dict[Digest, DesiredLayer]:
    for image in images:
        for layer in image.layers:
            first = wanted.setdefault(layer.digest, layer)
            if first.diff_id is None and layer.diff_id is not None:
                wanted[layer.digest] = replace(first, diff_id=layer.diff_id)
    return wanted


def _plan_images(images: Resolution, installed: Iterable[ImageInfo]) -> ImagePlan:
    wanted = {(image.reference, image.digest): image for image in images.images}
    here = {(image.reference, image.digest): image for image in installed}
    desired_here = [here[key] for key in wanted if key in here]
    return ImagePlan(
        keep=tuple(image for image in desired_here if not image.cached),
        restore=tuple(image for image in desired_here if image.cached),
        cache=tuple(image for key, image in here.items() if key not in wanted and not image.cached),
        install=tuple(image for key, image in wanted.items() if key not in here),
        failed=images.failed,
    )


def _by_digest(desired: Iterable[DesiredLayer]) -> dict[Digest, DesiredLayer]:
    wanted: dict[Digest, DesiredLayer] = {}
    for layer in desired:
        first = wanted.setdefault(layer.digest, layer)
        if first != layer:
            differing = ", ".join(
                field.name
                for field in fields(layer)
                if getattr(first, field.name) != getattr(layer, field.name)
            )
            raise DesiredStateError(f"{layer.digest} is desired twice, with another {differing}")
    return wanted


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How rows and directories are brought together after a crash or a removal by hand.

    Attributes:
        complete: rows whose directory is there.
        forget: rows whose directory is gone, or was to go: the row goes.
        remove: directories that no row names: the directory goes.
    """

    complete: tuple[LayerInfo, ...]
    forget: tuple[LayerInfo, ...]
    remove: tuple[Digest, ...]


def reconcile(
    rows: Iterable[LayerInfo],
    directories: Iterable[Digest],
    half_removed: Collection[Digest] = (),
) -> Reconciliation:
    """Compare the *rows* of the storage with the layer *directories* on disk.

    Of those that are *half_removed* any part may be missing.
    """
    on_disk = set(directories)
    complete = on_disk.difference(half_removed)
    rows = tuple(rows)
    named = {row.digest for row in rows}
    return Reconciliation(
        complete=tuple(row for row in rows if row.digest in complete),
        forget=tuple(row for row in rows if row.digest not in complete),
        remove=tuple(sorted(on_disk - named)),
    )


def find_layers(
    layers: str | Iterable[str],
    installed: Iterable[LayerInfo],
    images: Iterable[ImageInfo] = (),
    age_of: Callable[[ImageInfo], timedelta] | None = None,
) -> tuple[LayerInfo, ...]:
    """The *installed* layers that somebody wants to use, the uppermost first.

    A layer that is there twice is taken where it comes first: what is above hides it below.

    Args:
        layers: digests or names of layers, or references of images, the uppermost first; or one
            of them.
        installed: what there is. Of several layers or images of a name the desired one counts.
        images: the images that there are.
        age_of: as for ``find_image``.

    Raises:
        LayerNotExistError: one is not installed.
        UseError: there are none, or several layers have a name.
    """
    names = _Names(installed, images, age_of)
    references = [layers] if isinstance(layers, str) else layers
    found = dict.fromkeys(layer for reference in references for layer in names.find(reference))
    if not found:
        raise UseError("no layers are given")
    return tuple(found)


class _Names:
    """Index of the installed layers and images by what they are called.

    With it the cost of many names is that of the names and the layers, not of their product.
    """

    def __init__(
        self,
        installed: Iterable[LayerInfo],
        images: Iterable[ImageInfo],
        age_of: Callable[[ImageInfo], timedelta] | None,
    ) -> None:
        self._age_of = age_of
        self._layers: dict[str, list[LayerInfo]] = {}
        for layer in installed:
            for name in dict.fromkeys((str(layer.digest), layer.layer_id)):
                self._layers.setdefault(name, []).append(layer)
        self._images: dict[str, list[ImageInfo]] = {}
        for image in images:
            self._images.setdefault(image.reference, []).append(image)

    def find(self, name: str) -> Iterable[LayerInfo]:
        """Return the layer, or the layers of the image, that is called *name*, uppermost first."""
        layer = _only_one(name, self._layers.get(name, ()))
        if layer is not None:
            return [layer]
        try:
            reference = str(parse_reference(name))
            image = find_image(reference, self._images.get(reference, ()), self._age_of)
        except (ImageNotExistError, InvalidReferenceError):
            raise LayerNotExistError(
                f"no layer and no image {name} is installed", digest=name
            ) from None
        # Where the layer of directories was lost, what mounts the others makes up for it.
        return [
            self._layer_of(image, digest)
            for digest in image.stack
            if digest != image.directories or digest in self._layers
        ]

    def _layer_of(self, image: ImageInfo, digest: Digest) -> LayerInfo:
        """Return a layer of *image*; it may have gone after the images were read."""
        for layer in self._layers.get(digest, ()):
            if layer.digest == digest:
                return layer
        raise LayerNotExistError(
            f"layer {digest} of image {image.reference} is not installed any more", digest=digest
        )


def find_layer(name: str, installed: Iterable[LayerInfo]) -> LayerInfo | None:
    """The one of the *installed* layers that has this name or digest; of several the desired one.

    Raises:
        UseError: several have the name, and that does not decide it.
    """
    return _only_one(name, [layer for layer in installed if name in (layer.digest, layer.layer_id)])


def _only_one(name: str, found: Sequence[LayerInfo]) -> LayerInfo | None:
    if len(found) > 1:
        found = [layer for layer in found if not layer.cached] or found
    if len(found) > 1:
        digests = ", ".join(layer.digest for layer in found)
        raise UseError(f"several layers are called {name}: name one by its digest: {digests}")
    return found[0] if found else None


def find_image(
    reference: str,
    images: Iterable[ImageInfo],
    age_of: Callable[[ImageInfo], timedelta] | None = None,
) -> ImageInfo:
    """The one of *images* that *reference* names; of several, the desired one or the latest.

    Args:
        reference: the reference.
        images: the images that there are.
        age_of: tells for how long one has been cached; by default the dates are compared.

    Raises:
        ImageNotExistError: it is not there.
        InvalidReferenceError: *reference* is none.
    """
    name = str(parse_reference(reference))
    found = [image for image in images if image.reference == name]
    if not found:
        raise ImageNotExistError(f"image {name} is not installed")
    if age_of is None:
        return max(found, key=lambda image: (not image.cached, image.timestamp))
    return min(found, key=lambda image: (image.cached, age_of(image)))


def expired(
    items: Iterable[Cacheable], age_of: Callable[[Cacheable], timedelta], time_to_live: timedelta
) -> tuple[Cacheable, ...]:
    """The cached ones of *items*, layers or images, whose time to live is over, oldest first."""
    ages = [(age_of(item), item) for item in items if item.cached]
    old = [(age, item) for age, item in ages if age >= time_to_live]
    return tuple(item for _, item in sorted(old, key=_age, reverse=True))


def oldest_to_free(
    layers: Iterable[LayerInfo], age_of: Callable[[LayerInfo], timedelta], size: int
) -> tuple[LayerInfo, ...]:
    """The oldest cached *layers* that together free at least *size* bytes, or all of them."""
    chosen: list[LayerInfo] = []
    freed = 0
    cached = [(age_of(layer), layer) for layer in layers if layer.cached]
    for _, layer in sorted(cached, key=_age, reverse=True):
        if freed >= size:
            break
        chosen.append(layer)
        freed += layer.size
    return tuple(chosen)


def _age(aged: tuple[timedelta, object]) -> timedelta:
    return aged[0]
