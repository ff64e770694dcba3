"""Looking at a store without changing it: no lock is taken, nobody is waited for.

Any process may look at any time, also one that may only read, while another one installs.
"""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from layermanager.ages import AgeRecord, Ages, read_clock
from layermanager.boundary import Boundary, Guard
from layermanager.cancellation import Cancellation
from layermanager.check import (
    MAX_DIFFERENCES,
    Depth,
    Difference,
    LayerReport,
    Problem,
    Status,
    compare,
)
from layermanager.clock import SystemClock
from layermanager.errors import LayerNotExistError, StorageError, StoreError
from layermanager.exposure import Exposure, exposures
from layermanager.images import default_image_sources
from layermanager.model import Digest, InodeUsage, Resolution, StoreUsage, layers_and_images
from layermanager.plan import plan
from layermanager.presence import exists
from layermanager.space import disk_usage
from layermanager.stale_rows import StaleRows
from layermanager.storage import (
    read_ages,
    read_footprints,
    read_images,
    read_layers_info,
    read_leases,
    read_mounts,
    read_sources,
)
from layermanager.store import index_path
from layermanager.unpack.index import read_index
from layermanager.use.layer_use import mounts_among, users_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from layermanager.config import Config
    from layermanager.leases import LayerMount, Lease
    from layermanager.model import DesiredImage, DesiredLayer, Footprint, ImageInfo, LayerInfo
    from layermanager.plan import Plan
    from layermanager.protocols import Clock
    from layermanager.space import DiskUsage
    from layermanager.unpack.index import IndexEntry
    from layermanager.use.layer_use import Users

_Identity: TypeAlias = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """A moment of a check.

    Attributes:
        number: how many layers were begun.
        layers: how many there are.
        read: bytes of content read so far.
    """

    number: int
    layers: int
    read: int


class Inventory:
    """What is in the store of *config*.

    Args:
        config: of the store.
        guard: notes what a callback or a source raises that it may not.
        clock: the time.
    """

    def __init__(
        self, config: Config, *, guard: Guard | None = None, clock: Clock | None = None
    ) -> None:
        self._config = config
        self._guard = guard or Guard()
        self._clock = clock or SystemClock()
        self._stale_rows = StaleRows(config.layers_dir, config.index_dir, self._footprints)

    def layers(self) -> tuple[LayerInfo, ...]:
        """All installed layers, ordered by digest; none where there is no store yet.

        Rows of cached layers that are gone are left out, as the next operation forgets them.

        Raises:
            StorageError: the database cannot be read.
        """
        if not self._has_database():
            return ()
        rows = read_layers_info(self._config.database, self._clock)
        return self._stale_rows.without(rows)

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

    def images(self) -> tuple[ImageInfo, ...]:
        """All installed images, ordered by reference; none where there is no store yet.

        Raises:
            StorageError: the database cannot be read.
        """
        if not self._has_database():
            return ()
        images = read_images(self._config.database)
        here: set[Digest] = {layer.digest for layer in self.layers()} if images else set()
        return tuple(image for image in images if here.issuperset(image.layers))

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
            yield from read_index(file, str(path), self._config.limits)

    def sources(self) -> Mapping[Digest, DesiredLayer]:
        """From where each layer can be fetched again, as far as that is known.

        Raises:
            StorageError: the database cannot be read.
        """
        return read_sources(self._config.database) if self._has_database() else {}

    def ages(self) -> Ages:
        """For how long layers and images have been cached, and leases have lasted.

        Raises:
            StorageError: the database cannot be read.
        """
        record = read_ages(self._config.database) if self._has_database() else AgeRecord()
        return Ages.at(record, read_clock(self._clock))

    def leases(self) -> tuple[Lease, ...]:
        """The leases that are not over, oldest first.

        Raises:
            StorageError: the database cannot be read.
            StoreError: it cannot be told what is mounted.
        """
        return tuple(self.users().leases)

    def mounts(self) -> tuple[LayerMount, ...]:
        """What was mounted by name, ordered by name, and whether it still is.

        Raises:
            StorageError: the database cannot be read.
            StoreError: it cannot be told what is mounted.
        """
        mounts = read_mounts(self._config.database) if self._has_database() else ()
        return mounts_among(mounts, self.users())

    def users(self) -> Users:
        """Who uses layers.

        Raises:
            StorageError: the database cannot be read.
            StoreError: it cannot be told what is mounted.
            ExhaustedError: descriptors or memory ran out.
        """
        with self._guard.failing(Boundary.OPERATION, "telling who uses layers"):
            leases = read_leases(self._config.database) if self._has_database() else ()
            return users_of(self._config.layers_dir, leases, self.ages)

    def check(
        self,
        layers: Sequence[LayerInfo],
        depth: Depth = Depth.CONTENT,
        *,
        cancellation: Cancellation | None = None,
        on_progress: Callable[[CheckProgress], None] = lambda _: None,
        is_locked: bool = False,
    ) -> tuple[LayerReport, ...]:
        """Compare *layers* with their indexes, file by file.

        Nothing is locked: a layer that another process removes meanwhile is left out, one that it
        replaces is looked at again.

        Args:
            layers: installed layers, from ``layers``.
            depth: how much is compared.
            cancellation: ends it early.
            on_progress: is told how far it is, from several threads; it must not block.
            is_locked: whether the caller holds the store's lock: no layer is replaced meanwhile.

        Raises:
            CancelledError: the cancellation was called.
            StorageError, StoreError: the database, or the directory of the layers, cannot be read.
        """
        cancellation = cancellation or Cancellation()
        counter = _Counter(len(layers), self._guard.callback(Boundary.PROGRESS, on_progress))
        with ThreadPoolExecutor(os.cpu_count() or 1, "check") as threads:
            reports = []
            for layer in layers:
                cancellation.check()
                counter.begin_layer()
                check = functools.partial(
                    self._check_once,
                    depth=depth,
                    threads=threads,
                    cancellation=cancellation,
                    on_bytes=counter.add,
                )
                with self._guard.failing(Boundary.LAYER, f"checking layer {layer.digest}"):
                    report = check(layer)[0] if is_locked else self._settled(layer, check)
                if report is not None:
                    reports.append(report)
        return tuple(reports)

    def _settled(
        self, layer: LayerInfo, check: Callable[[LayerInfo], tuple[LayerReport, _Identity]]
    ) -> LayerReport | None:
        """The report of a layer that stayed as it was while it was looked at; None if it went."""
        while True:
            report, seen = check(layer)
            if report.status is not Status.DAMAGED:
                return report
            row = next((row for row in self.layers() if row.digest == layer.digest), None)
            if row is None:
                return None
            if _identity(row.path) == seen:
                return report
            layer = row

    def _check_once(
        self,
        layer: LayerInfo,
        depth: Depth,
        threads: Executor,
        cancellation: Cancellation,
        on_bytes: Callable[[int], None],
    ) -> tuple[LayerReport, _Identity]:
        try:
            root = os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            missing = Difference(b".", Problem.MISSING, "dir", "nothing")
            return LayerReport(layer, (missing,), 1), _identity(layer.path)
        except OSError as error:
            raise StoreError(f"cannot read a layer: {error}") from error
        try:
            status = os.fstat(root)
            found = compare(
                root,
                self.files(layer.digest),
                depth,
                threads=threads,
                cancellation=cancellation,
                on_bytes=on_bytes,
            )
            return _report(layer, found), (status.st_dev, status.st_ino)
        finally:
            os.close(root)

    def _has_database(self) -> bool:
        try:
            return exists(self._config.database)
        except OSError as error:
            raise StorageError(f"cannot reach the database: {error}") from error

    def plan(self, desired: Iterable[DesiredLayer | DesiredImage]) -> Plan:
        """What would be done to make the layers the *desired* ones.

        What images consist of is asked where they come from.

        Raises:
            DesiredStateError: they contradict each other.
            InvalidReferenceError: the reference or the platform of an image is none.
        """
        layers, images = layers_and_images(desired)
        installed_images = self.images()
        return plan(
            layers,
            self.layers(),
            self._resolve(images, installed_images),
            installed_images,
        )

    def _resolve(
        self, images: Sequence[DesiredImage], installed: Sequence[ImageInfo]
    ) -> Resolution:
        if not images:
            return Resolution()
        # Here and not above: most commands ask for no image.
        from layermanager.images.resolve import ImageResolver  # noqa: PLC0415

        sources = default_image_sources(self._config.network, self._clock)
        try:
            resolver = ImageResolver(
                sources, parallel=self._config.parallel_installs, guard=self._guard
            )
            return resolver.resolve(images, installed, self.sources(), Cancellation())
        finally:
            for source in sources.values():
                source.close()

    def exposures(self) -> tuple[Exposure, ...]:
        """Return the directories of the store that other users can enter.

        Raises:
            StoreError: a mode cannot be read.
        """
        return exposures(self._config.working_dir, self._config.layers_dir)

    def usage(self) -> StoreUsage:
        """Where the space went.

        Raises:
            StoreError: the directory of the layers cannot be reached, or it cannot be told what
                is mounted.
        """
        return self.usage_by(self.layers(), self.users())

    def usage_by(self, layers: Sequence[LayerInfo], users: Users) -> StoreUsage:
        """Where the space went, if these are the installed layers and those who use them.

        Raises:
            StoreError: the directory of the layers cannot be reached.
        """
        usage = disk_usage(_existing(self._config.layers_dir))
        cached = [layer for layer in layers if layer.cached]
        held_layers = [layer for layer in cached if users.holders(layer.digest)]
        held = sum(layer.size for layer in held_layers)
        return StoreUsage(
            path=self._config.layers_dir,
            total=usage.total,
            free=usage.free,
            limit=usage.total * self._config.layers_part_limit // 100,
            desired=sum(layer.size for layer in layers if not layer.cached),
            reclaimable=sum(layer.size for layer in cached) - held,
            held=held,
            inodes=self._inode_usage(usage, layers, held_layers),
        )

    def _footprints(self) -> Mapping[Digest, Footprint]:
        return read_footprints(self._config.database) if self._has_database() else {}

    def _inode_usage(
        self, usage: DiskUsage, layers: Sequence[LayerInfo], held: Sequence[LayerInfo]
    ) -> InodeUsage | None:
        """Where the inodes went; layers of unknown size count as none."""
        if usage.free_inodes is None or usage.total_inodes is None:
            return None
        footprints = self._footprints()

        def inodes(some: Iterable[LayerInfo]) -> int:
            found = (footprints.get(layer.digest) for layer in some)
            return sum(one.amount.inodes + 1 for one in found if one is not None)

        held_inodes = inodes(held)
        return InodeUsage(
            total=usage.total_inodes,
            free=usage.free_inodes,
            desired=inodes(layer for layer in layers if not layer.cached),
            reclaimable=inodes(layer for layer in layers if layer.cached) - held_inodes,
            held=held_inodes,
        )


def _report(layer: LayerInfo, found: Iterator[Difference]) -> LayerReport:
    kept: list[Difference] = []
    count = 0
    try:
        for difference in found:
            count += 1
            if len(kept) < MAX_DIFFERENCES:
                kept.append(difference)
    except LayerNotExistError:
        return LayerReport(layer, has_index=False)
    except StoreError as error:  # of the index: all else is a difference
        kept = [Difference(b".", Problem.INDEX, "an index", str(error))]
        count = 1
    return LayerReport(layer, tuple(kept), count)


def _identity(path: Path) -> _Identity:
    """Which directory is at *path* now; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Counter:
    """Adds up what several threads have read, and tells of it."""

    def __init__(self, layers: int, on_progress: Callable[[CheckProgress], None]) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._progress = CheckProgress(number=0, layers=layers, read=0)

    def begin_layer(self) -> None:
        self._tell(layers=1, size=0)

    def add(self, size: int) -> None:
        self._tell(layers=0, size=size)

    def _tell(self, layers: int, size: int) -> None:
        with self._lock:
            self._progress = replace(
                self._progress,
                number=self._progress.number + layers,
                read=self._progress.read + size,
            )
            self._on_progress(self._progress)


def _existing(path: Path) -> Path:
    """The directory, or the nearest one above it that is there: it will be on that partition."""
    while not exists(path) and path != path.parent:
        path = path.parent
    return path
