"""A storage that forgets everything when the test ends."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layermanager.ages import AgeRecord
from layermanager.errors import LayerNotExistError
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from layermanager.leases import LayerMount, Lease
    from layermanager.model import DesiredLayer, Digest, Footprint, ImageInfo, LayerInfo
    from layermanager.protocols import Clock


class MemoryLayerStorage:
    """A ``LayerStorage`` in memory; passes the conformance suite of the real one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._layers: dict[Digest, LayerInfo] = {}
        self._sources: dict[Digest, DesiredLayer] = {}
        self._footprints: dict[Digest, Footprint] = {}
        self._images: dict[tuple[str, Digest], ImageInfo] = {}
        self._leases: dict[str, Lease] = {}
        self._mounts: dict[str, LayerMount] = {}
        self._ages: dict[str, AgeRecord] = {}
        self._lock = threading.RLock()

    def add_layer(self, layer: LayerInfo) -> None:
        """Add *layer*; one of the same digest is replaced."""
        with self._lock:
            self._layers[layer.digest] = replace(layer, path=layer.path.absolute())

    def delete_layer_by_digest(self, digest: Digest) -> None:
        """Forget a layer, and the images that have it; one that is not there is no error."""
        with self._lock:
            self._layers.pop(digest, None)
            self._sources.pop(digest, None)
            self._images = {
                key: image for key, image in self._images.items() if digest not in image.layers
            }

    def note_footprint(self, digest: Digest, footprint: Footprint) -> None:
        """Remember what a layer takes, also when it is removed."""
        with self._lock:
            self._footprints[digest] = footprint

    def get_footprints(self) -> Mapping[Digest, Footprint]:
        """What each layer takes, or took when it was installed last."""
        with self._lock:
            return dict(self._footprints)

    def add_image(self, image: ImageInfo) -> None:
        """Add *image*, whose layers are there; one of the same reference and digest is replaced."""
        with self._lock:
            self._images[image.reference, image.digest] = image

    def delete_image(self, reference: str, digest: Digest) -> None:
        """Forget an image, but none of its layers; one that is not there is no error."""
        with self._lock:
            self._images.pop((reference, digest), None)

    def get_images_info(self) -> tuple[ImageInfo, ...]:
        """The images whose layers are all there, ordered by reference and digest."""
        with self._lock:
            return tuple(
                self._images[key]
                for key in sorted(self._images)
                if self._layers.keys() >= {*self._images[key].layers}
            )

    def set_image_cached(self, reference: str, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - as for layers
        """Note that an image is cached from now on, or is desired again.

        Its timestamp becomes the current time if this is a change; one that is not there is no
        error.
        """
        with self._lock:
            image = self._images.get((reference, digest))
            if image is not None and image.cached != cached:
                now = self._clock.now()
                self._images[reference, digest] = replace(image, cached=cached, timestamp=now)

    def note_sources(self, layers: Iterable[DesiredLayer]) -> None:
        """Remember from where *layers* can be fetched again, without credentials."""
        with self._lock:
            for layer in layers:
                self._sources[layer.digest] = replace(
                    layer,
                    url=without_credentials(layer.url),
                    mirrors=tuple(without_credentials(mirror) for mirror in layer.mirrors),
                )

    def get_sources(self) -> Mapping[Digest, DesiredLayer]:
        """From where each layer can be fetched again, as far as that is known."""
        with self._lock:
            return dict(self._sources)

    def add_lease(self, lease: Lease) -> None:
        """Add *lease*; one of the same id is replaced."""
        with self._lock:
            self._leases[lease.lease_id] = lease

    def delete_lease(self, lease_id: str) -> None:
        """Forget a lease; one that is not there is no error."""
        with self._lock:
            self._leases.pop(lease_id, None)

    def get_leases(self) -> tuple[Lease, ...]:
        """All leases, those that are over included, in the order in which they were made."""
        with self._lock:
            return tuple(sorted(self._leases.values(), key=lambda lease: lease.created))

    def add_mount(self, mount: LayerMount) -> None:
        """Add *mount*; one of the same name is replaced."""
        with self._lock:
            self._mounts[mount.name] = mount

    def delete_mount(self, name: str) -> None:
        """Forget a mount; one that is not there is no error."""
        with self._lock:
            self._mounts.pop(name, None)

    def get_mounts(self) -> tuple[LayerMount, ...]:
        """All mounts, ordered by name, with the layers of their leases."""
        with self._lock:
            return tuple(
                replace(mount, layers=self._leases[mount.lease_id].layers)
                if mount.lease_id in self._leases
                else replace(mount, layers=())
                for _, mount in sorted(self._mounts.items())
            )

    def get_ages(self) -> AgeRecord:
        """Return the record that was put last; an empty one if none was."""
        with self._lock:
            return self._ages.get("record", AgeRecord())

    def put_ages(self, record: AgeRecord) -> None:
        """Replace the record."""
        with self._lock:
            self._ages["record"] = record

    def get_layers_info(self) -> tuple[LayerInfo, ...]:
        """All layers, ordered by digest."""
        with self._lock:
            return tuple(self._layers[digest] for digest in sorted(self._layers))

    def get_layer_info_by_digest(self, digest: Digest) -> LayerInfo:
        """One layer.

        Raises:
            LayerNotExistError: it is not there.
        """
        with self._lock:
            layer = self._layers.get(digest)
        if layer is None:
            raise LayerNotExistError(f"layer {digest} is not installed", digest=digest)
        return layer

    def set_layer_cached(self, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - the seed's
        """Note that a layer is cached from now on, or is desired again.

        Its timestamp becomes the current time if this is a change, so it may be repeated.

        Raises:
            LayerNotExistError: it is not there.
        """
        with self._lock:
            layer = self.get_layer_info_by_digest(digest)
            if layer.cached != cached:
                self._layers[digest] = replace(layer, cached=cached, timestamp=self._clock.now())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes within the ``with`` block one; an exception takes them back."""
        with self._lock:
            before = [dict(one) for one in self._records()]
            try:
                yield
            except BaseException:
                for record, former in zip(self._records(), before, strict=True):
                    record.clear()
                    record.update(former)
                raise

    def _records(self) -> tuple[dict[Any, Any], ...]:
        return (
            self._layers,
            self._sources,
            self._images,
            self._leases,
            self._mounts,
            self._ages,
        )
