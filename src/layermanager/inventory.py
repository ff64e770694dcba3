"""Looking at a store without changing it: no lock is taken, nobody is waited for.

Any process may look at any time, also one that may only read, while another one installs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layermanager.clock import SystemClock
from layermanager.errors import LayerNotExistError, StorageError, StoreError
from layermanager.model import Digest
from layermanager.plan import plan
from layermanager.space import disk_usage
from layermanager.storage import read_layers_info
from layermanager.store import index_path
from layermanager.unpack.index import read_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from layermanager.config import Config
    from layermanager.model import DesiredLayer, LayerInfo
    from layermanager.plan import Plan
    from layermanager.unpack.index import IndexEntry


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Where the space of the layers' partition went, in bytes.

    Attributes:
        path: the directory of the layers.
        total: the size of its partition.
        free: what anybody may still write there.
        limit: what the layers may take in all; 0 when they are not limited.
        desired: what the layers in use take.
        reclaimable: what the cached layers take.
    """

    path: Path
    total: int
    free: int
    limit: int
    desired: int
    reclaimable: int

    @property
    def other(self) -> int:
        """What on the partition does not belong to the layers, the reserve of root included."""
        return max(0, self.total - self.free - self.desired - self.reclaimable)


class Inventory:
    """What is in the store of *config*."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clock = SystemClock()

    def layers(self) -> tuple[LayerInfo, ...]:
        """All installed layers, ordered by digest; none where there is no store yet.

        Raises:
            StorageError: the database cannot be read.
        """
        try:
            if not self._config.database.exists():
                return ()
        except OSError as error:
            raise StorageError(f"cannot reach the database: {error}") from error
        return read_layers_info(self._config.database, self._clock)

    def layer(self, digest: str) -> LayerInfo:
        """One installed layer.

        Raises:
            LayerNotExistError: it is not installed.
            InvalidDigestError: *digest* is no digest.
        """
        wanted = Digest(digest)
        for layer in self.layers():
            if layer.digest == wanted:
                return layer
        raise LayerNotExistError(f"layer {wanted} is not installed", digest=wanted)

    def files(self, digest: Digest) -> Iterator[IndexEntry]:
        """What every path of an installed layer is, from the layer's index.

        Raises:
            LayerNotExistError: it has no index: it is not installed, or another program did that.
            StoreError: the index is damaged.
        """
        path = index_path(self._config.index_dir, digest)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise LayerNotExistError(f"layer {digest} has no index", digest=digest) from None
        except OSError as error:
            raise StoreError(f"cannot read an index: {error}") from error
        with file:
            yield from read_index(file, str(path))

    def plan(self, desired: Iterable[DesiredLayer]) -> Plan:
        """What would be done to make the layers the *desired* ones.

        Raises:
            DesiredStateError: they contradict each other.
        """
        return plan(desired, self.layers())

    def usage(self) -> StoreUsage:
        """Where the space went.

        Raises:
            StoreError: the directory of the layers cannot be reached.
        """
        layers = self.layers()
        usage = disk_usage(_existing(self._config.layers_dir))
        return StoreUsage(
            path=self._config.layers_dir,
            total=usage.total,
            free=usage.free,
            limit=usage.total * self._config.layers_part_limit // 100,
            desired=sum(layer.size for layer in layers if not layer.cached),
            reclaimable=sum(layer.size for layer in layers if layer.cached),
        )


def _existing(path: Path) -> Path:
    """The directory, or the nearest one above it that is there: it will be on that partition."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
