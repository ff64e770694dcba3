"""A storage that forgets everything when the test ends."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from layermanager.errors import LayerNotExistError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.model import Digest, LayerInfo
    from layermanager.protocols import Clock


class MemoryLayerStorage:
    """A ``LayerStorage`` in memory; passes the conformance suite of the real one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._layers: dict[Digest, LayerInfo] = {}
        self._lock = threading.RLock()

    def add_layer(self, layer: LayerInfo) -> None:
        """Add *layer*; one of the same digest is replaced."""
        with self._lock:
            self._layers[layer.digest] = replace(layer, path=layer.path.absolute())

    def delete_layer_by_digest(self, digest: Digest) -> None:
        """Forget a layer; one that is not there is no error."""
        with self._lock:
            self._layers.pop(digest, None)

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
            before = dict(self._layers)
            try:
                yield
            except BaseException:
                self._layers = before
                raise
