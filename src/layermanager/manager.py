"""The layer manager: makes the layers on disk the desired ones, and keeps them in order.

Decisions are made in ``plan``; here they are carried out, one operation at a time. An operation
holds two locks: one of this object, so that its threads take turns, and the store's, so that
processes do. A third, short one guards the moments in which a layer is restored or evicted and in
which rows and directories are compared, since a neighbour of the same process may evict cached
layers while an operation is under way.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from layermanager.ages import LONGEST_UNSAVED, AgeKeeper, elapsed
from layermanager.amounts import Amount
from layermanager.boundary import Boundary
from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.errors import (
    CancelledError,
    LayerManagerError,
    LayerNotExistError,
    LayersFailedError,
    NotEnoughSpaceError,
    StorageError,
    StorageFullError,
    StoreError,
    UnexpectedError,
    UseError,
)
from layermanager.images import default_image_sources
from layermanager.images.directories import SCHEME as DIRECTORIES
from layermanager.images.directories import DirectoriesSource
from layermanager.images.record import ImageRecord
from layermanager.install import Installer
from layermanager.living import LivingThreads
from layermanager.lock import StoreLock
from layermanager.model import (
    AdoptedLayer,
    ApplyResult,
    DesiredImage,
    DesiredLayer,
    Digest,
    FailedLayer,
    Footprint,
    ImageChanges,
    LayerInfo,
    LayerProgress,
    Phase,
    Resolution,
    layers_and_images,
)
from layermanager.notices import Notices
from layermanager.observer import UNOBSERVED, Removal, guard_for, guarded
from layermanager.plan import expired, oldest_to_free, plan, reconcile
from layermanager.protocols import (
    HoldsLeases,
    RemembersFootprints,
    RemembersSources,
    Transactional,
)
from layermanager.reserve import is_full
from layermanager.rooms import rooms_of
from layermanager.sources import default_sources, opener
from layermanager.space import Partitions, settle
from layermanager.stale_rows import StaleRows
from layermanager.steps import unannounced
from layermanager.storage import SqliteLayerStorage
from layermanager.store import Store
from layermanager.transfer.fetcher import Fetcher
from layermanager.transfer.spool import Spools
from layermanager.unpack.client import Unpacker
from layermanager.unpack.fields import shown
from layermanager.use.bundle import write_bundle
from layermanager.use.layer_use import LayerUse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from layermanager.config import Config
    from layermanager.images.directories import ImageDirectories
    from layermanager.install import VerifiedLayer
    from layermanager.leases import HeldLayer, LayerMount, Lease
    from layermanager.model import FailedImage, ImageInfo, Repair
    from layermanager.observer import Observer
    from layermanager.plan import Plan
    from layermanager.protocols import (
        Clock,
        LayerStorage,
        NewSpaceAllocator,
        Source,
        SpaceAllocator,
    )
    from layermanager.steps import OnStep
    from layermanager.store import IsInUse, TakenOut
    from layermanager.use.layer_use import HeldLease, MountedLayers, Users

_LOGGER: Final = logging.getLogger(__name__)
_NOT_AT_ALL: Final = timedelta(0)
_FAILED_STEPS: Final = (OSError, LayerManagerError)


@dataclass(frozen=True, slots=True)
class _Record:
    """All that is recorded of a layer, and that goes with its row.

    Attributes:
        layer: the row.
        source: where it can be had again, if that is known.
        images: the images that have it.
    """

    layer: LayerInfo
    source: DesiredLayer | None
    images: tuple[ImageInfo, ...]


@dataclass(slots=True)
class _MadeLayers:
    """The layers of directories that an operation came to need."""

    restored: Sequence[LayerInfo] = ()
    installed: Sequence[LayerInfo] = ()

    @property
    def digests(self) -> frozenset[Digest]:
        """Those of all of them."""
        return frozenset(layer.digest for layer in (*self.restored, *self.installed))


class LayerManager:
    """Manages the layers of one node (the seed's ``LayerManager``); a context manager.

    Making it is the seed's ``New``: leftovers of a crash are cleaned up, cached layers past their
    time to live are removed, and the timer that does so from then on is started. Its methods may
    be called from any thread.

    Args:
        config: where the store is and within which bounds it works.
        layer_storage: the record of the installed layers; by default the SQLite database of
            *config*, which is then closed by ``close``.
        new_space_allocator: makes the allocator of the layers' directory; pass the method of one
            ``Partitions`` object to all that share a partition in this process.
        space_allocator: a neighbour that can free more space when cached layers are not enough.
        sources: where to fetch from, by URL scheme; those that are an ``ImageSource`` know the
            images of the transport of that name.
        clock: the time.
        patience: how long to wait for another process that is changing the store.
        on_progress: is told how far each installation is, from the thread that installs; it must
            not block and not call this object.
        on_step: is told of each change of the disk before it is made, from any thread; an
            ``OSError`` of it fails that step, as the disk would.
        observer: is told what is fetched, written and removed; one that is an
            ``UnexpectedErrorObserver`` counts unexpected errors.
        threads: watches the threads that must live; by default they are restarted, and nothing
            else is told of them.

    Whatever else a callback raises is logged, counted and changes nothing. What a storage, a
    source or an allocator raises that it may not fails the layer or the operation that it
    concerns, by an ``UnexpectedError``.

    Raises:
        StoreBusyError: another process is changing the store.
        StoreError, StorageError: the directories or the database cannot be used.
        ConfigError: the limits on the partition sum up to more than it has.
    """

    def __init__(
        self,
        config: Config,
        layer_storage: LayerStorage | None = None,
        *,
        new_space_allocator: NewSpaceAllocator | None = None,
        space_allocator: SpaceAllocator | None = None,
        sources: Mapping[str, Source] | None = None,
        clock: Clock | None = None,
        patience: timedelta = _NOT_AT_ALL,
        on_progress: Callable[[LayerProgress], None] = lambda _: None,
        on_step: OnStep = unannounced,
        observer: Observer = UNOBSERVED,
        threads: LivingThreads | None = None,
    ) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._patience = patience
        self._guard = guard_for(observer)
        on_progress = self._guard.callback(Boundary.PROGRESS, on_progress)
        if on_step is not unannounced:
            on_step = self._guard.callback(Boundary.STEP, on_step, passing=_FAILED_STEPS)
        self._on_progress = on_progress
        self._observer = guarded(observer, self._guard)
        self._on_step = on_step
        self._cancellation = Cancellation("the layer manager was closed")
        self._operation_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._reclaimable: set[Digest] = set()
        self._notices = Notices()
        with ExitStack() as stack:
            self._store = Store(
                config.working_dir,
                config.layers_dir,
                config.index_dir,
                durable=config.durable,
                on_step=on_step,
                look=lambda: _in_use(self._use.users()),
                notices=self._notices,
            )
            if layer_storage is None:
                layer_storage = stack.enter_context(
                    SqliteLayerStorage(
                        config.database, self._clock, durable=config.durable, on_step=on_step
                    )
                )
            self._storage = layer_storage
            self._stale_rows = StaleRows(config.layers_dir, config.index_dir, self._footprints)
            self._ages = AgeKeeper(layer_storage, self._clock)
            self._use = LayerUse(
                config,
                layer_storage,
                self._clock,
                ages=self._ages,
                on_step=on_step,
                notices=self._notices,
            )
            self._lock = StoreLock(config.working_dir, self._clock, on_step)
            new_allocator = new_space_allocator or Partitions(guard=self._guard).new_allocator
            self._allocator = new_allocator(
                config.layers_dir, config.layers_part_limit, self._evict
            )
            self._rooms = rooms_of(self._allocator)
            stack.callback(self._guard.callback(Boundary.ACCOUNTING, self._allocator.close))
            if sources is None:
                sources = {
                    **default_sources(config.network, self._clock),
                    **default_image_sources(config.network, self._clock),
                }
            for source in {id(source): source for source in sources.values()}.values():
                stack.callback(self._guard.callback(Boundary.SOURCE, source.close))
            self._images = ImageRecord(layer_storage, self._clock)
            self._directories = DirectoriesSource(
                config.index_dir, config.limits, self._images.installed
            )
            self._sources = {**sources, DIRECTORIES: self._directories}
            self._unpacker = Unpacker(config.unpack_timeout)
            stack.callback(self._unpacker.close)
            self._spools = Spools(
                config.download_dir, new_allocator, durable=config.durable, on_step=on_step
            )
            stack.callback(self._spools.close)
            fetcher = Fetcher(
                open_stream=opener(self._sources, self._guard),
                spools=self._spools,
                network=config.network,
                limits=config.limits,
                clock=self._clock,
                observer=self._observer,
            )
            self._installer = Installer(
                fetcher=fetcher,
                unpacker=self._unpacker,
                store=self._store,
                allocator=self._allocator,
                neighbour=space_allocator,
                limits=config.limits,
                on_progress=on_progress,
                on_step=on_step,
                observer=self._observer,
                guard=self._guard,
                make_room=self._evict_oldest,
            )
            # What cannot be removed must not keep the manager from its work.
            _, stuck = self._remove_expired(config.layer_ttl)
            self._warn_of(stuck)
            threads = threads or LivingThreads(self._guard, self._clock)
            self._timer = threads.thread("layer-ttl", self._remove_expired_periodically)
            self._timer.start()
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and child processes (the seed's ``Close``); may be repeated.

        An operation that is under way in another thread is cancelled: it leaves nothing half done
        and raises ``CancelledError`` there.
        """
        self._cancellation.cancel()
        self._timer.close()
        with self._operation_lock:
            self._resources.close()

    # Asking

    def get_layer_info_by_digest(self, digest: str) -> LayerInfo:
        """One installed layer (the seed's ``GetLayerInfoByDigest``).

        Raises:
            LayerNotExistError: it is not installed.
            InvalidDigestError: *digest* is no digest.
        """
        wanted = Digest(digest)
        for layer in self._stale_rows.without([self._storage.get_layer_info_by_digest(wanted)]):
            return layer
        raise LayerNotExistError(f"layer {wanted} is not installed", digest=wanted)

    def get_layers_info(self) -> Sequence[LayerInfo]:
        """All installed layers, cached ones included, ordered by digest."""
        return self._stale_rows.without(self._storage.get_layers_info())

    def get_images_info(self) -> Sequence[ImageInfo]:
        """All installed images, cached ones included, ordered by reference."""
        images = self._images.installed()
        here: set[Digest] = {layer.digest for layer in self.get_layers_info()} if images else set()
        return tuple(image for image in images if here.issuperset(image.layers))

    # Changing

    def process_desired_layers(
        self,
        desired_layers: Iterable[DesiredLayer | DesiredImage],
        *,
        cancellation: Cancellation | None = None,
    ) -> ApplyResult:
        """Make the layers on disk the desired ones (the seed's ``ProcessDesiredLayers``).

        Layers that are here take over the name and version of the desired list. Cached layers that
        are desired again are restored, installed ones that are not desired any longer are cached,
        missing ones are installed, several at once. A layer that fails stops no other. An image is
        desired like all its layers, and is installed when they are.

        Args:
            desired_layers: all that shall be here.
            cancellation: ends it early; it is called, too, when the manager is closed meanwhile.

        Returns:
            What was done.

        Raises:
            LayersFailedError: some layers or images failed; it holds their errors and what was
                done.
            DesiredStateError: the desired layers contradict each other; nothing was done.
            InvalidReferenceError: the reference or the platform of an image is none; nothing was
                done.
            StoreBusyError: another process is changing the store; nothing was done.
            CancelledError: it was cancelled, or the manager closed; what had been done by then
                stays.
        """
        layers, images = layers_and_images(desired_layers)
        cancellation = cancellation or Cancellation()
        with self._operation("applying the desired layers", cancellation):
            if layers or images:
                self._store.require_whiteouts()
            installed_layers, _ = self._recover()
            installed_images = self._images.installed()
            steps = plan(
                layers,
                installed_layers,
                self._resolve(images, installed_images, cancellation),
                installed_images,
            )
            # The files of installed layers do not change, but their sources and names can.
            here = {layer.digest for layer in (*steps.keep, *steps.restore)}
            self._note_sources([layer for layer in steps.desired if layer.digest in here])
            restored = self._restore(steps)
            renamed = self._rename(steps)
            cached, cached_images = self._cache(steps)
            # A neighbour may have evicted what was to be restored, between planning and doing.
            gone = {layer.digest for layer in steps.restore} - {layer.digest for layer in restored}
            evicted = tuple(layer for layer in steps.desired if layer.digest in gone)
            self._spools.keep_only((*steps.install, *evicted))
            installed, failed = self._install((*steps.install, *evicted), cancellation)
            made = _MadeLayers()
            changes = self._images.settle(
                steps,
                cached_images,
                failed,
                lambda images: self._provide_directories(images, made, cancellation),
            )
            before = {image.directories for image in (*steps.images.keep, *steps.images.restore)}
            after = {image.directories for image in (*changes.kept, *changes.restored)}
            superseded = self._cache_superseded() if before - after - {None} else ()
        gone = {layer.digest for layer in superseded}
        result = ApplyResult(
            kept=tuple(one for one in _as_in(renamed, steps.keep) if one.digest not in gone),
            restored=(
                *(one for one in _as_in(renamed, restored) if one.digest not in gone),
                *made.restored,
            ),
            cached=(
                *(layer for layer in cached if layer.digest not in made.digests),
                *superseded,
            ),
            installed=(*installed, *made.installed),
            failed=failed,
            images=changes,
        )
        errors = [*(layer.error for layer in failed), *(image.error for image in changes.failed)]
        if errors:
            # What failed a layer has failed the images that have it, and is told once.
            raise LayersFailedError.of(list(dict.fromkeys(errors)), result)
        return result

    def remove_expired_layers(self, time_to_live: timedelta | None = None) -> tuple[LayerInfo, ...]:
        """Remove the cached layers that have not been desired for *time_to_live*.

        Args:
            time_to_live: by default the configuration's.

        Returns:
            The layers that were removed, oldest first.

        Raises:
            StoreError: a layer could not be removed; the others were. One that is still whole and
                in its place stays cached.
        """
        if time_to_live is None:
            time_to_live = self._config.layer_ttl
        removed, failed = self._remove_expired(time_to_live)
        _raise_first(failed)
        return removed

    def remove_cached_layers(self, size: int) -> tuple[LayerInfo, ...]:
        """Remove cached layers, oldest first, until *size* bytes are freed or none is left.

        Returns:
            The layers that were removed.

        Raises:
            StoreError: as ``remove_expired_layers``.
        """
        with self._operation("removing cached layers", Cancellation()):
            layers, users = self._recover()
            free = [layer for layer in layers if not users.holders(layer.digest)]
            oldest = oldest_to_free(free, self._ages.ages().of, size)
            removed, failed = self._remove_cached(oldest, Removal.REQUESTED, users)
        _raise_first(failed)
        return removed

    def repair_layers(
        self, repairs: Iterable[Repair], *, cancellation: Cancellation | None = None
    ) -> tuple[LayerInfo, ...]:
        """Install damaged layers anew, each from its source, and replace it at one moment.

        The damaged layer stays in its place until the new one is complete and verified. It keeps
        its state and its age. Overlays that were mounted with it as a lower directory go on with
        the old files, as far as they have them open, until they are mounted anew. Afterwards it is
        compared with its index: a repair that did not help has failed.

        Images get the layers of directories that they need then. Such a layer that is damaged, and
        that no image has any more, is removed; it counts as repaired.

        Args:
            repairs: the layers.
            cancellation: ends it early; it is called, too, when the manager is closed meanwhile.

        Returns:
            The layers that were repaired.

        Raises:
            LayersFailedError: some layers failed, and are as they were or are damaged again, or
                images could not get their layers of directories; it holds their errors and, as
                installed, what was repaired.
            StoreBusyError: another process is changing the store; nothing was done.
            CancelledError: it was cancelled, or the manager closed; what had been done by then
                stays.
        """
        repairs = tuple(repairs)
        cancellation = cancellation or Cancellation()
        with self._operation("repairing layers", cancellation):
            self._recover()
            for repair in repairs:  # it must not be evicted to make room for itself
                self._allocator.restore_outdated_item(repair.layer.digest)
                self._reclaimable.discard(repair.layer.digest)
            made_here = [one for one in repairs if _is_made_here(one.source)]
            others = [one for one in repairs if not _is_made_here(one.source)]
            with self._transaction():
                self._images.unsettle({repair.layer.digest for repair in others})
            repaired, failed = self._replace(others, cancellation)
            # The indexes of these say what the layers of directories have to be.
            without = self._settle_directories(
                cancellation, {one.layer.digest for one in made_here}
            )
            of_images = {image.directories for image in self._images.installed()}
            needed = [one for one in made_here if one.layer.digest in of_images]
            also_repaired, also_failed = self._replace(needed, cancellation)
            unneeded = [one for one in made_here if one.layer.digest not in of_images]
            dropped, not_dropped = self._drop(unneeded)
            repaired = (*repaired, *also_repaired, *dropped)
            failed = (*failed, *also_failed, *not_dropped)
            self._tell_allocator(self.get_layers_info(), self._use.users())
        if failed or without:
            result = ApplyResult(
                installed=repaired, failed=failed, images=ImageChanges(failed=without)
            )
            errors = [*(layer.error for layer in failed), *(image.error for image in without)]
            raise LayersFailedError.of(list(dict.fromkeys(errors)), result)
        return repaired

    def adopt_layers(
        self,
        layers: Iterable[LayerInfo],
        *,
        clean_markers: bool = False,
        cancellation: Cancellation | None = None,
    ) -> tuple[AdoptedLayer, ...]:
        """Make the indexes of layers that another program installed, from what they are now.

        Their recorded sizes become those that they have on disk. A layer that has an index is left
        as it is.

        Args:
            layers: installed layers.
            clean_markers: whether the marker files that Aos left where it made whiteouts of them
                are removed before. Who has such a layer mounted would see them vanish.
            cancellation: ends it early; it is called, too, when the manager is closed meanwhile.

        Returns:
            The layers that were adopted.

        Raises:
            UseError: markers shall be removed from a layer that is in use; nothing was done.
            LayerNotExistError: a layer is not installed; nothing was done.
            StoreError: a layer cannot be read; those before it were adopted.
            StoreBusyError: another process is changing the store; nothing was done.
            CancelledError: it was cancelled, or the manager closed; what had been done by then
                stays.
        """
        digests = dict.fromkeys(layer.digest for layer in layers)
        cancellation = cancellation or Cancellation()
        with self._operation("adopting layers", cancellation):
            installed = {layer.digest: layer for layer in self._recover()[0]}
            for digest in digests:
                if digest not in installed:
                    raise LayerNotExistError(f"layer {digest} is not installed", digest=digest)
            strange = [installed[one] for one in digests if not self._store.has_index(one)]
            held = self._use.users().held(strange) if clean_markers else ()
            if held:
                raise UseError(f"in use, so that nothing can be removed from it: {held[0]}")
            with self._transaction():
                self._images.unsettle({layer.digest for layer in strange})
            adopted = [
                self._adopt(layer, cancellation, clean_markers=clean_markers) for layer in strange
            ]
            for image in self._settle_directories(cancellation):
                _LOGGER.warning(
                    "image %s has no layer for its directories yet, the next apply tries again: %s",
                    image.desired.reference,
                    image.error,
                )
            self._tell_allocator(self.get_layers_info(), self._use.users())
        return tuple(adopted)

    # Using

    def lease(
        self,
        layers: str | Iterable[str],
        *,
        owner: str,
        ttl: timedelta | None = None,
        process: int | None = None,
    ) -> HeldLease:
        """Keep installed *layers* from being removed, until the lease is released or over.

        They may be cached meanwhile. It waits for no operation, and survives this process.

        Args:
            layers: digests or names of layers, or references of images; or one of them.
            owner: who uses them, to be shown to people.
            ttl: when it is over at the latest, by the date; None: it need not be.
            process: a process with which it is over, however that ends.

        Returns:
            The lease, which releases itself at the end of a ``with`` block.

        Raises:
            LayerNotExistError: one is not installed.
            UseError: several layers have a name, or there is no such process.
        """
        return self._use.lease(layers, owner=owner, ttl=ttl, process=process)

    def release_lease(self, lease_id: str) -> None:
        """End a lease, also one that another process took.

        Raises:
            LeaseNotExistError: there is none, or it was over already.
            UseError: it belongs to a mount: unmount that.
        """
        self._use.release_lease(lease_id)

    def leases(self) -> tuple[Lease, ...]:
        """The leases that are not over, those of mounts included, oldest first."""
        return self._use.leases()

    def mount(
        self,
        name: str,
        layers: str | Iterable[str],
        *,
        target: Path,
        upper: Path | None = None,
        work: Path | None = None,
        read_only: bool = False,
        context: str = "",
    ) -> MountedLayers:
        """Mount installed *layers* as one tree: an overlay.

        It stays when this process ends, and takes a lease of the layers as long as it is mounted
        anywhere. It waits for no operation.

        Args:
            name: by which it can be unmounted: letters, digits, ``.``, ``_`` and ``-``.
            layers: digests or names of layers, the uppermost first and the lowest last; or
                references of images; or one of them.
            target: an existing directory.
            upper: gets what is written. Without one, what is written is thrown away when it is
                unmounted, and is kept in the working directory until then.
            work: an empty directory on the file system of *upper*, for overlayfs; by default one
                that is made beside it.
            read_only: that nothing can be written.
            context: the SELinux label of all files in the mount, ``USER:ROLE:TYPE[:LEVEL]``.

        Returns:
            What is mounted, which unmounts itself at the end of a ``with`` block.

        Raises:
            LayerNotExistError: a layer is not installed.
            MountError: it cannot be mounted, or something is mounted by that name.
        """
        return self._use.mount(
            name,
            layers,
            target=target,
            upper=upper,
            work=work,
            read_only=read_only,
            context=context,
        )

    def bundle(
        self,
        name: str,
        image: str,
        *,
        directory: Path,
        arguments: Sequence[str] = (),
        read_only: bool = False,
        context: str = "",
    ) -> MountedLayers:
        """Make a bundle of an installed *image*, from which an OCI runtime can run it.

        It is a directory with a ``config.json``, made of the image's configuration and of what
        runtimes have as defaults, and with the image mounted on ``rootfs``.

        Args:
            name: by which it can be unmounted, and the container's host name.
            image: the image's reference.
            directory: is made if it is missing; a ``config.json`` in it is replaced.
            arguments: the command's arguments instead of the image's; without an entrypoint, the
                command as a whole.
            read_only: that the container can write nothing to its root file system.
            context: the SELinux label of all files in its root file system.

        Returns:
            What is mounted, as from ``mount``.

        Raises:
            ImageNotExistError: the image is not installed.
            ImageError: it has no command, or a user that it does not know.
            MountError: it cannot be mounted, or the directory cannot be used.
        """
        return write_bundle(
            self._use,
            self._use.image(image),
            directory,
            name=name,
            arguments=arguments,
            read_only=read_only,
            context=context,
        )

    def umount(self, name: str, *, lazy: bool = False) -> None:
        """Unmount what was mounted as *name*, also by another process, or before a crash.

        Args:
            name: the name.
            lazy: also if its files are in use. Who has some open keeps them, and the layers are
                kept as long.

        Raises:
            MountNotExistError: there is nothing of that name.
            MountBusyError: its files are in use.
            MountError: it cannot be unmounted.
        """
        self._use.umount(name, lazy=lazy)

    def mounts(self) -> tuple[LayerMount, ...]:
        """What was mounted by name, ordered by name."""
        return self._use.mounts()

    def held_layers(self) -> tuple[HeldLayer, ...]:
        """The cached layers that cannot be removed since they are in use, and by whom."""
        cached = [layer for layer in self.get_layers_info() if layer.cached]
        return self._use.users().held(cached)

    # Within an operation

    @contextmanager
    def _operation(self, what: str, cancellation: Cancellation) -> Iterator[None]:
        """Be the only one, in this process and among all, that changes the store.

        What is not foreseen within the context fails *what*, by an ``UnexpectedError``.
        """
        with (
            self._cancellation.interrupting(cancellation.cancel),
            self._operation_lock,
            self._guard.failing(Boundary.OPERATION, what),
            self._lock.held(self._patience, cancellation.requested),
        ):
            cancellation.check()
            try:
                yield
            finally:
                self._use.rest()

    def _recover(self) -> tuple[tuple[LayerInfo, ...], Users]:
        """Bring rows and directories together, and tell the allocator of what there is.

        It is done at the beginning of every operation, since any process may have been killed in
        the middle of one. Returns the installed layers, and who uses layers.
        """
        with self._state_lock:  # what a neighbour is just evicting is no leftover
            self._notices.begin_round()
            users = self._use.sweep()
            leftovers = self._store.sweep(_in_use(users))
            if leftovers:
                _LOGGER.warning(
                    "removed %d unfinished layers: an operation was interrupted", leftovers
                )
            rows = self._storage.get_layers_info()
            half_removed = self._stale_rows.half_removed(rows)
            found = reconcile(rows, self._store.digests(), half_removed)
            forgotten = self._forget_missing(found.forget)
            unrecorded = self._store.remove_unrecorded(found.remove)
            for digest in unrecorded.trashed:
                _LOGGER.warning("removed the directory of layer %s: it is not recorded", digest)
            for digest in unrecorded.in_use:
                self._notices.warn(_LOGGER, f"layer {digest} is not recorded, but in use: it stays")
            self._store.remove_other_indexes({layer.digest for layer in found.complete})
            self._note_ages([row for row in rows if row.digest not in forgotten])
            self._tell_allocator(found.complete, users)
            self._spools.take_stock()
            return found.complete, users

    def _forget_missing(self, layers: Sequence[LayerInfo]) -> frozenset[Digest]:
        """Delete the rows of *layers* whose directories are gone; return which were deleted.

        What is left of one whose removal in its place was interrupted is removed. On a full disk
        the rows stay until the next operation, and do not count all the same.
        """
        if not layers:
            return frozenset()
        forgotten: frozenset[Digest] = frozenset()
        try:
            with self._transaction():
                for layer in layers:
                    self._storage.delete_layer_by_digest(layer.digest)
        except StorageFullError as error:
            self._notices.warn(_LOGGER, f"layers that are gone stay recorded: {error}")
        else:
            for layer in layers:
                _LOGGER.warning("forgot layer %s: its directory is gone", layer.digest)
            forgotten = frozenset(layer.digest for layer in layers)
        self._store.remove_unrecorded(layer.digest for layer in layers)  # their indexes
        return forgotten

    def _note_ages(self, layers: Sequence[LayerInfo]) -> None:
        """Note the age of all that is kept for a time, and the time itself; mostly no write.

        Args:
            layers: all that are recorded.
        """
        storage = self._storage
        self._ages.note(
            (
                *layers,
                *self._images.installed(),
                *(storage.get_leases() if isinstance(storage, HoldsLeases) else ()),
            ),
            are_all=True,
        )

    def _adopt(
        self, layer: LayerInfo, cancellation: Cancellation, *, clean_markers: bool
    ) -> AdoptedLayer:
        # Here and not above: it is done once in the life of a node, if at all.
        from layermanager.adoption import remove_markers, write_index  # noqa: PLC0415

        with self._store.adoption(layer.digest) as (root, index):
            markers = remove_markers(root, cancellation, self._on_step) if clean_markers else 0
            size = write_index(root, index, cancellation, self._on_step)
            # Before the index is in its place, or nobody would do it any more.
            sized = replace(layer, size=size)
            self._storage.add_layer(sized)
        return AdoptedLayer(sized, markers)

    def _tell_allocator(
        self,
        layers: Sequence[LayerInfo],
        users: Users,
        replaced: Collection[Digest] = frozenset(),
    ) -> None:
        """Offer what may be evicted; layers that the operation has *replaced* go last of all."""
        reclaimable = {
            layer.digest for layer in layers if layer.cached and not users.holders(layer.digest)
        }
        for digest in self._reclaimable - reclaimable:
            self._allocator.restore_outdated_item(digest)
        if reclaimable:
            self._offer([layer for layer in layers if layer.digest in reclaimable], replaced)
        self._reclaimable = reclaimable
        self._allocator.note_used_space(sum(layer.size for layer in layers))

    def _offer(self, layers: Sequence[LayerInfo], replaced: Collection[Digest]) -> None:
        ages = self._ages.ages()
        footprints = self._footprints()
        frame = self._store.inodes_beside_layer()
        for layer in layers:
            known = footprints.get(layer.digest)
            inodes = known.amount.inodes if known else self._count_inodes(layer)
            self._rooms.offer(
                layer.digest,
                Amount(layer.size, inodes + frame),
                ages.since(layer),
                goes_last=layer.digest in replaced,
            )

    def _footprints(self) -> Mapping[Digest, Footprint]:
        storage = self._storage
        return storage.get_footprints() if isinstance(storage, RemembersFootprints) else {}

    def _note_footprint(self, digest: Digest, amount: Amount) -> None:
        if isinstance(self._storage, RemembersFootprints):
            footprint = Footprint(amount, self._store.block_bytes())
            self._storage.note_footprint(digest, footprint)

    def _count_inodes(self, layer: LayerInfo) -> int:
        """Count the inodes of a layer that an earlier version installed, once; by its index."""
        inodes = self._store.inodes_in_index(layer.digest, self._config.limits)
        if inodes:
            self._note_footprint(layer.digest, Amount(layer.size, inodes))
        return inodes

    def _resolve(
        self,
        images: Sequence[DesiredImage],
        installed: Sequence[ImageInfo],
        cancellation: Cancellation,
    ) -> Resolution:
        if not images:
            return Resolution()
        known = {image.reference for image in installed}
        if any(image.reference not in known for image in images):
            self._unpacker.prepare()  # it will be needed, most likely, and loads meanwhile
        # Here and not above: most operations are about no image.
        from layermanager.images.resolve import ImageResolver  # noqa: PLC0415

        storage = self._storage
        noted = storage.get_sources() if isinstance(storage, RemembersSources) else {}
        resolver = ImageResolver(
            self._sources, parallel=self._config.parallel_installs, guard=self._guard
        )
        return resolver.resolve(images, installed, noted, cancellation)

    def _note_sources(self, layers: Sequence[DesiredLayer]) -> None:
        if isinstance(self._storage, RemembersSources):
            self._storage.note_sources(layers)

    def _restore(self, steps: Plan) -> tuple[LayerInfo, ...]:
        restored: list[LayerInfo] = []
        with self._state_lock, self._transaction():
            for layer in steps.restore:
                restored += self._restore_layer(layer.digest)
            self._images.restore(steps.images.restore)
        return tuple(restored)

    def _restore_layer(self, digest: Digest) -> Sequence[LayerInfo]:
        """Return the layer, which is desired from now on; none if a neighbour has evicted it."""
        try:
            self._storage.set_layer_cached(digest, cached=False)
        except LayerNotExistError:
            return ()
        self._allocator.restore_outdated_item(digest)
        self._reclaimable.discard(digest)
        return (self._storage.get_layer_info_by_digest(digest),)

    def _provide_directories(
        self, images: Sequence[ImageInfo], made: _MadeLayers, cancellation: Cancellation
    ) -> list[tuple[ImageInfo, ImageInfo | LayerManagerError]]:
        """Have the layers of directories that *images* need, whose other layers are there.

        Returns:
            The images, each as it is then or with the reason why it stays as it was.
        """
        found: list[tuple[ImageInfo, ImageInfo | LayerManagerError]] = []
        wanted: dict[Digest, DesiredLayer] = {}
        for image in images:
            try:
                with self._guard.failing(Boundary.IMAGE, f"the directories of {image.reference}"):
                    needed = self._directories.directories_for(image.layers)
            except LayerManagerError as error:
                found.append((image, error))
                continue
            if needed.problem:
                _LOGGER.warning("image %s: %s", image.reference, needed.problem)
            if needed.layer is not None:
                wanted[needed.layer.digest] = needed.layer
            found.append((image, _with_directories(image, needed)))
        try:
            failed = self._install_directories(wanted, made, cancellation)
        finally:
            self._directories.forget()
        return [
            (image, one if isinstance(one, LayerManagerError) else _unless_failed(one, failed))
            for image, one in found
        ]

    def _install_directories(
        self, wanted: Mapping[Digest, DesiredLayer], made: _MadeLayers, cancellation: Cancellation
    ) -> Mapping[Digest, LayerManagerError]:
        """Have the layers of directories that are *wanted*; return the errors of the others."""
        if not wanted:
            return {}
        with self._state_lock, self._transaction():
            here = {layer.digest: layer for layer in self._storage.get_layers_info()}
            made.restored = [
                one
                for digest in wanted
                if digest in here and here[digest].cached
                for one in self._restore_layer(digest)
            ]
        missing = tuple(layer for digest, layer in wanted.items() if digest not in here)
        made.installed, failed = self._install(missing, cancellation)
        return {layer.desired.digest: layer.error for layer in failed}

    def _settle_directories(
        self, cancellation: Cancellation, doubtful: Collection[Digest] = ()
    ) -> tuple[FailedImage, ...]:
        """Give the desired images the layers of directories that they need now.

        Args:
            cancellation: ends it early.
            doubtful: layers of directories that may not be right.

        Returns:
            The images for which that failed. They stay as they were, and the next operation is
            another try.
        """
        unsettled = self._images.unsettled(doubtful)
        made = _MadeLayers()
        _, failed = self._images.settle_directories(
            unsettled, lambda images: self._provide_directories(images, made, cancellation)
        )
        self._cache_superseded()
        return failed

    def _cache_superseded(self) -> tuple[LayerInfo, ...]:
        """Cache the layers of directories that no desired image has; return them."""
        storage = self._storage
        sources = storage.get_sources() if isinstance(storage, RemembersSources) else {}
        made_here = {digest for digest, source in sources.items() if _is_made_here(source)}
        desired = {image.directories for image in self._images.installed() if not image.cached}
        superseded = made_here - desired
        here = [
            layer.digest
            for layer in self._storage.get_layers_info()
            if layer.digest in superseded and not layer.cached
        ]
        if not here:
            return ()
        with self._transaction():  # none of them can be evicted: they are not cached yet
            for digest in here:
                self._storage.set_layer_cached(digest, cached=True)
            cached = tuple(map(self._storage.get_layer_info_by_digest, here))
            self._ages.note(cached)
        return cached

    def _drop(
        self, repairs: Sequence[Repair]
    ) -> tuple[tuple[LayerInfo, ...], tuple[FailedLayer, ...]]:
        """Remove damaged layers of directories that no image has; one in use stays cached.

        Returns:
            Those that need no repair any more, and those that could not be removed.
        """
        if not repairs:
            return (), ()
        layers = tuple(repair.layer for repair in repairs)
        _, failed = self._remove_cached(layers, Removal.REQUESTED, self._use.users())
        if failed:
            return (), tuple(FailedLayer(repair.source, failed[0]) for repair in repairs)
        return layers, ()

    def _rename(self, steps: Plan) -> Mapping[Digest, LayerInfo]:
        """Record the new names of layers; return those layers as they are then."""
        renamed = {}
        if not steps.rename:
            return {}
        with self._state_lock, self._transaction():
            for renaming in steps.rename:
                try:
                    layer = self._storage.get_layer_info_by_digest(renaming.digest)
                except LayerNotExistError:
                    continue  # evicted by a neighbour: it will be installed again
                layer = replace(layer, layer_id=renaming.layer_id, version=renaming.version)
                self._storage.add_layer(layer)
                renamed[layer.digest] = layer
        return renamed

    def _cache(self, steps: Plan) -> tuple[tuple[LayerInfo, ...], tuple[ImageInfo, ...]]:
        with self._transaction():
            for layer in steps.cache:
                self._storage.set_layer_cached(layer.digest, cached=True)
            cached = tuple(
                self._storage.get_layer_info_by_digest(layer.digest) for layer in steps.cache
            )
            images = self._images.cache(steps.images.cache)
            if cached or images:
                self._ages.note((*cached, *images))
        if cached:
            with self._state_lock:
                self._tell_allocator(
                    self.get_layers_info(),
                    self._use.users(),
                    replaced={layer.digest for layer in steps.cache},
                )
        return cached, images

    def _remove_expired(
        self, time_to_live: timedelta
    ) -> tuple[tuple[LayerInfo, ...], Sequence[StoreError]]:
        """Remove what has expired, in an operation; return which, and what failed."""
        with self._operation("removing expired layers", Cancellation()):
            layers, users = self._recover()
            ages = self._ages.ages()
            self._images.remove_expired(ages, time_to_live)
            return self._remove_cached(
                expired(layers, ages.of, time_to_live), Removal.EXPIRED, users
            )

    def _remove_cached(
        self, layers: Sequence[LayerInfo], why: Removal, users: Users
    ) -> tuple[tuple[LayerInfo, ...], Sequence[StoreError]]:
        """Remove cached layers that are not in use; return which were removed, and what failed."""
        self._cancellation.check()
        if not layers:
            return (), ()
        self._make_way()
        return self._remove_now(layers, why, users)

    def _remove_now(
        self, layers: Sequence[LayerInfo], why: Removal, users: Users
    ) -> tuple[tuple[LayerInfo, ...], Sequence[StoreError]]:
        with self._state_lock:
            # Those that a neighbour evicted are gone, and the allocator knows.
            cached = [layer for layer in layers if self._cached(layer.digest) is not None]
            for layer in cached:
                self._allocator.restore_outdated_item(layer.digest)
                self._reclaimable.discard(layer.digest)
            removed, failed = self._remove(cached, why, users)
        for layer in removed:
            self._allocator.free_space(layer.size)
        return removed, failed

    def _make_way(self) -> None:
        """Have a full disk give back what was removed, and if that is not enough, the spools."""
        with self._guard.containing(Boundary.ACCOUNTING, "the room on the disk"):
            if not self._is_disk_full():
                return
            settle(self._config.layers_dir)
            if self._is_disk_full():
                self._spools.keep_only(())
                settle(self._config.layers_dir)

    def _is_disk_full(self) -> bool:
        return is_full(self._config.working_dir) or is_full(self._config.layers_dir)

    def _evict(self, item_id: str) -> None:
        """Remove a cached layer, whose space the allocator needs; called from any thread.

        One that cannot be removed is withdrawn until the next operation, so that others go.
        """
        digest = Digest(item_id)
        with self._lock.held(self._patience, self._cancellation.requested), self._state_lock:
            layer = self._cached(digest)
            if layer is None:
                return
            removed, failed = self._remove([layer], Removal.EVICTED)
            self._warn_of(failed)
            if not removed:
                self._allocator.restore_outdated_item(item_id)
                self._reclaimable.discard(digest)

    def _evict_oldest(self) -> bool:
        """Remove the cached layer that is the first to go; return whether there was one.

        It is for a disk that has no room for a change, whatever it says that is free.
        """
        users = self._use.users()
        while True:
            with self._state_lock:
                cached = [one for one in self.get_layers_info() if one.digest in self._reclaimable]
            oldest = oldest_to_free(cached, self._ages.ages().of, 1)
            if not oldest:
                return False
            removed, failed = self._remove_now(oldest[:1], Removal.EVICTED, users)
            self._warn_of(failed)
            if removed:
                settle(self._config.layers_dir)
                return True

    def _warn_of(self, failed: Iterable[StoreError]) -> None:
        for error in failed:
            self._notices.warn(_LOGGER, str(error))

    def _cached(self, digest: Digest) -> LayerInfo | None:
        """The layer if it is there and has not been restored in the meantime."""
        try:
            layer = self._storage.get_layer_info_by_digest(digest)
        except LayerNotExistError:
            return None
        return layer if layer.cached else None

    def _remove(
        self, layers: Sequence[LayerInfo], why: Removal, users: Users | None = None
    ) -> tuple[tuple[LayerInfo, ...], list[StoreError]]:
        """Remove cached layers, but for those in use; return which were removed, and what failed.

        The rows go before the directories, so that each row has its layer. Only where the
        disk has no room for that, even without what was spooled and set aside, the directories go
        first: rows without directories are forgotten by the next operation, as after a crash.
        A layer that cannot be moved is recorded again: it is whole.

        Args:
            layers: the layers.
            why: for the observer and the log.
            users: who used layers when the operation began, if they are not known to be unused.
        """
        try:
            records = self._delete_rows(layers, users)
        except StorageFullError as error:
            self._notices.warn(_LOGGER, f"removing layers before their rows: {error}")
            # btrfs gives back what was removed before with its next transaction: SQLite may need
            # a block to take back what it could not write.
            settle(self._config.working_dir)
            with self._transaction():  # nothing is written, and no lease can be taken meanwhile
                records = self._records_of(self._unused(layers, users))
                ours = self._footprints()
                taken = self._store.take_out(
                    (record.layer.digest for record in records),
                    in_place=lambda digest: digest in ours,
                )
            failed = self._store.discard(taken)
            self._forget_removed(taken)
        else:
            taken = self._store.take_out(record.layer.digest for record in records)
            try:
                stay = {*taken.in_use, *taken.failed}
                self._record_again(one for one in records if one.layer.digest in stay)
            finally:
                failed = self._store.discard(taken)
        for digest in taken.in_use:
            _LOGGER.info("layer %s stays: it came into use right now", digest)
        removed = tuple(
            record.layer
            for record in records
            if record.layer.digest in taken.trashed and record.layer.digest not in failed
        )
        for layer in removed:
            self._observer.removed(layer, why)
            _LOGGER.info("removed the cached layer %s: %s", layer.digest, why)
        return removed, [*taken.failed.values(), *failed.values()]

    def _delete_rows(self, layers: Sequence[LayerInfo], users: Users | None) -> tuple[_Record, ...]:
        """Delete the rows of those *layers* that are not in use; return what was recorded of them.

        Looked at and deleted in one transaction, so that a lease is taken before it or not at all.
        """
        with self._transaction():
            records = self._records_of(self._unused(layers, users))
            for record in records:
                self._storage.delete_layer_by_digest(record.layer.digest)
        return records

    def _unused(self, layers: Sequence[LayerInfo], users: Users | None) -> list[LayerInfo]:
        """Return those of *layers* that no lease keeps now, and no mount when it was looked last.

        What has been mounted since is seen when they are out of their places.
        """
        users = self._use.users_by_leases(users)
        unused = []
        for layer in layers:
            holders = users.holders(layer.digest)
            if holders:
                _LOGGER.info("layer %s stays: it is in use by %s", layer.digest, holders[0])
            else:
                unused.append(layer)
        return unused

    def _forget_removed(self, taken: TakenOut) -> None:
        """Delete the rows of layers that are gone; where that fails the next operation does it.

        Until then they do not count.
        """
        try:
            with self._transaction():
                for digest in (*taken.trashed, *taken.rests):
                    self._storage.delete_layer_by_digest(digest)
        except StorageError as error:
            self._notices.warn(_LOGGER, f"layers that are gone stay recorded: {error}")

    def _records_of(self, layers: Sequence[LayerInfo]) -> tuple[_Record, ...]:
        if not layers:
            return ()
        storage = self._storage
        sources = storage.get_sources() if isinstance(storage, RemembersSources) else {}
        images: dict[Digest, list[ImageInfo]] = defaultdict(list)
        for image in self._images.installed():
            for digest in {*image.layers}:
                images[digest].append(image)
        return tuple(
            _Record(layer, sources.get(layer.digest), tuple(images[layer.digest]))
            for layer in layers
        )

    def _record_again(self, records: Iterable[_Record]) -> None:
        records = tuple(records)
        if not records:
            return
        with self._transaction():
            for record in records:
                self._storage.add_layer(record.layer)
            self._note_sources([record.source for record in records if record.source is not None])
            here = {layer.digest for layer in self._storage.get_layers_info()}
            images = {image for record in records for image in record.images}
            # Those with a layer that is gone are gone with it.
            self._images.add(image for image in images if here.issuperset(image.layers))

    def _transaction(self) -> AbstractContextManager[None]:
        """Make several changes of the storage one, if it can do that: one sync for all of them."""
        if isinstance(self._storage, Transactional):
            return self._storage.transaction()
        return nullcontext()

    # Installing

    def _install(
        self,
        layers: Sequence[DesiredLayer],
        cancellation: Cancellation,
        replaced: Mapping[Digest, LayerInfo] = MappingProxyType({}),
    ) -> tuple[tuple[LayerInfo, ...], tuple[FailedLayer, ...]]:
        """Install *layers*, several at once, committing together those that are ready together.

        Those that are *replaced* stay what they were.
        """
        installed: list[LayerInfo] = []
        failed: list[FailedLayer] = []
        if not layers:
            return (), ()
        self._unpacker.prepare()  # it loads while the first bytes of a layer are waited for
        for desired in layers:
            self._on_progress(LayerProgress(desired, Phase.PENDING))
        operation = Cancellation()
        known = self._footprints()
        with (
            cancellation.interrupting(operation.cancel),
            ThreadPoolExecutor(self._config.parallel_installs, "install") as threads,
        ):
            pending = {
                threads.submit(self._verify, desired, operation, known.get(desired.digest)): desired
                for desired in layers
            }
            try:
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    group = self._verified({future: pending[future] for future in done}, failed)
                    for future in done:
                        del pending[future]
                    installed += self._commit(group, replaced, failed)
            finally:
                self._abandon(pending, operation)
        cancellation.check()
        order = {desired.digest: position for position, desired in enumerate(layers)}
        installed.sort(key=lambda layer: order[layer.digest])
        failed.sort(key=lambda layer: order[layer.desired.digest])
        return tuple(installed), tuple(failed)

    def _replace(
        self, repairs: Sequence[Repair], cancellation: Cancellation
    ) -> tuple[tuple[LayerInfo, ...], tuple[FailedLayer, ...]]:
        """Put new layers into the places of damaged ones; return them, and what failed."""
        replaced, failed = self._install(
            tuple(repair.source for repair in repairs),
            cancellation,
            {repair.layer.digest: repair.layer for repair in repairs},
        )
        damaged = self._still_damaged(replaced, cancellation) if replaced else {}
        repaired = tuple(layer for layer in replaced if layer.digest not in damaged)
        not_helped = (
            FailedLayer(repair.source, damaged[repair.layer.digest])
            for repair in repairs
            if repair.layer.digest in damaged
        )
        return repaired, (*failed, *not_helped)

    def _still_damaged(
        self, layers: Sequence[LayerInfo], cancellation: Cancellation
    ) -> dict[Digest, StoreError]:
        """Return the errors of those *layers*, just repaired, that are not what they should be."""
        # Here and not above: most operations repair nothing.
        from layermanager.check import Status  # noqa: PLC0415
        from layermanager.inventory import Inventory  # noqa: PLC0415

        inventory = Inventory(self._config, clock=self._clock)
        reports = inventory.check(layers, cancellation=cancellation, is_locked=True)
        return {
            report.layer.digest: StoreError(
                f"the repair did not help: {report.count} differences are left, the first in "
                f"{shown(report.differences[0].path)} ({report.differences[0].problem}); "
                "check the disk that holds the layers"
            )
            for report in reports
            if report.status is Status.DAMAGED
        }

    def _verify(
        self, desired: DesiredLayer, cancellation: Cancellation, known: Footprint | None
    ) -> VerifiedLayer:
        """Bring a layer up to the commit, in a thread of its own; whatever fails is its failure."""
        with self._guard.failing(Boundary.LAYER, f"layer {desired.digest}"):
            return self._installer.install(desired, cancellation, known)

    def _verified(
        self,
        done: Mapping[Future[VerifiedLayer], DesiredLayer],
        failed: list[FailedLayer],
    ) -> list[VerifiedLayer]:
        """The layers that are ready for the commit; the others are added to *failed*."""
        group = []
        for future, desired in done.items():
            try:
                group.append(future.result())
            except CancelledError:
                continue  # the operation ends as cancelled, which says it for all
            except NotEnoughSpaceError as error:
                self._fail(desired, self._held_back(error), failed)
            except LayerManagerError as error:
                self._fail(desired, error, failed)
        return group

    def _held_back(self, error: NotEnoughSpaceError) -> NotEnoughSpaceError:
        """Return *error* with the layers in use; without them if that cannot be found out."""
        with self._guard.containing(Boundary.LAYER, "the layers in use", passing=_FAILED_STEPS):
            return error.held_back_by(self.held_layers())
        return error

    def _commit(
        self,
        group: Sequence[VerifiedLayer],
        replaced: Mapping[Digest, LayerInfo],
        failed: list[FailedLayer],
    ) -> list[LayerInfo]:
        """Make verified layers installed ones: directory first, then row, all of them together."""
        if not group:
            return []
        with ExitStack() as leftovers:
            for layer in group:
                leftovers.callback(self._release, layer)
            for layer in group:
                self._on_progress(LayerProgress(layer.desired, Phase.COMMITTING))
            try:
                with self._guard.failing(Boundary.LAYER, f"the commit of {_names(group)}"):
                    errors = self._store.commit(
                        [layer.staged for layer in group], self._evict_oldest
                    )
            except LayerManagerError as error:
                self._take_back(group, replaced, error, failed)
                return []
            for layer in group:
                if layer.desired.digest in errors:
                    self._take_back([layer], replaced, errors[layer.desired.digest], failed)
            placed = [layer for layer in group if layer.desired.digest not in errors]
            installed = self._record_all(placed, replaced, failed) if placed else []
            for layer, _ in installed:
                self._conclude(layer)
            return [info for _, info in installed]

    def _record_all(
        self,
        group: Sequence[VerifiedLayer],
        replaced: Mapping[Digest, LayerInfo],
        failed: list[FailedLayer],
    ) -> list[tuple[VerifiedLayer, LayerInfo]]:
        """Record layers whose directories are in their places, at once or else one by one.

        One that the storage refuses stops no other; it is taken back.
        """
        try:
            with (
                self._guard.failing(Boundary.LAYER, f"the record of {_names(group)}"),
                self._transaction(),
            ):
                installed = [
                    (layer, self._record(layer, replaced.get(layer.desired.digest)))
                    for layer in group
                ]
                self._note_sources([layer.desired for layer in group])
        except LayerManagerError as error:
            if len(group) > 1:
                return [
                    one for layer in group for one in self._record_all([layer], replaced, failed)
                ]
            self._take_back(group, replaced, error, failed)
            return []
        return installed

    def _take_back(
        self,
        group: Sequence[VerifiedLayer],
        replaced: Mapping[Digest, LayerInfo],
        error: LayerManagerError,
        failed: list[FailedLayer],
    ) -> None:
        """Remove what was put in its place and is not recorded; note why it failed."""
        digests = [layer.desired.digest for layer in group]
        # Else the next operation does it: what counts is why the layers failed.
        with self._guard.containing(Boundary.LAYER, f"taking back {_names(group)}"):
            self._store.take_back([digest for digest in digests if digest not in replaced])
        for layer in group:
            self._fail(layer.desired, error, failed)

    def _conclude(self, layer: VerifiedLayer) -> None:
        """Settle what is left of the installation of *layer*, which is installed whatever fails.

        The next operation tells the allocator how much space is used.
        """
        digest = layer.desired.digest
        with self._guard.containing(Boundary.ACCOUNTING, f"the space of layer {digest}"):
            layer.space.accept(layer.unpacked.size)
        with self._guard.containing(Boundary.LAYER, f"the spool of layer {digest}"):
            layer.transfer.discard()
        for note, count in layer.unpacked.notes.items():
            _LOGGER.warning("layer %s: %s: %d times", digest, note, count)
        self._on_progress(LayerProgress(layer.desired, Phase.INSTALLED))

    def _record(self, layer: VerifiedLayer, replaced: LayerInfo | None) -> LayerInfo:
        named = replaced or layer.desired  # the source of a layer may be that of an image
        info = LayerInfo(
            digest=layer.desired.digest,
            layer_id=named.layer_id,
            version=named.version,
            path=self._store.path_of(layer.desired.digest),
            os_version=layer.unpacked.os_version,
            timestamp=replaced.timestamp if replaced else self._clock.now(),
            cached=replaced.cached if replaced else False,
            size=layer.unpacked.size,
        )
        self._storage.add_layer(info)
        self._note_footprint(info.digest, layer.unpacked.amount)
        return info

    def _abandon(self, pending: Iterable[Future[VerifiedLayer]], operation: Cancellation) -> None:
        """End the installations whose results are not wanted any more; remove what they made."""
        for future in pending:
            future.cancel()
        operation.cancel()
        for future in pending:
            if not future.cancelled() and future.exception() is None:
                self._release(future.result())

    def _release(self, layer: VerifiedLayer) -> None:
        """Give back what *layer* holds in staging and of space, as far as it was not committed."""
        with self._guard.containing(
            Boundary.ACCOUNTING, f"leftovers of layer {layer.desired.digest}"
        ):
            layer.leftovers.close()

    def _fail(
        self, desired: DesiredLayer, error: LayerManagerError, failed: list[FailedLayer]
    ) -> None:
        failed.append(FailedLayer(desired, error))
        self._on_progress(LayerProgress(desired, Phase.FAILED, error=error))

    # In the background

    def _remove_expired_periodically(self) -> None:
        period = self._config.remove_cached_layers_period.total_seconds()
        due = elapsed(self._clock) + period
        while not self._clock.wait(self._cancellation.requested, self._until(due)):
            try:
                if elapsed(self._clock) < due:
                    self._note_ages(self._storage.get_layers_info())
                    continue
                due = elapsed(self._clock) + period
                self.remove_expired_layers()
            except CancelledError:
                return
            except UnexpectedError:
                continue  # it is in the log, with its traceback
            except LayerManagerError as error:
                # No caller could be told; the next period is another try.
                _LOGGER.error("cannot remove expired layers: %s", error)  # noqa: TRY400 - no bug

    def _until(self, due: float) -> float:
        """Return the seconds until what is *due*, or until the time has to be saved."""
        return max(0.0, min(due - elapsed(self._clock), LONGEST_UNSAVED.total_seconds()))


def _as_in(
    changed: Mapping[Digest, LayerInfo], layers: Iterable[LayerInfo]
) -> tuple[LayerInfo, ...]:
    """Return *layers*, as they are in *changed* where they are in it."""
    return tuple(changed.get(layer.digest, layer) for layer in layers)


def _is_made_here(layer: DesiredLayer) -> bool:
    """Whether *layer* is one of directories, which comes from the other layers of its images."""
    return layer.url.startswith(f"{DIRECTORIES}:")


def _with_directories(image: ImageInfo, needed: ImageDirectories) -> ImageInfo:
    """Return *image* with what it needs; where that is not known, with what it had."""
    if not needed.is_known:
        return replace(image, are_directories_known=False)
    directories = None if needed.layer is None else needed.layer.digest
    return replace(image, directories=directories, are_directories_known=True)


def _unless_failed(
    image: ImageInfo, errors: Mapping[Digest, LayerManagerError]
) -> ImageInfo | LayerManagerError:
    if image.directories is None or not image.are_directories_known:
        return image
    return errors.get(image.directories, image)


def _names(group: Sequence[VerifiedLayer]) -> str:
    return ", ".join(f"layer {layer.desired.digest}" for layer in group)


def _in_use(users: Users) -> IsInUse:
    return lambda name: bool(users.mounted.holders(name))


def _raise_first(errors: Sequence[StoreError]) -> None:
    """Raise the first of *errors*, and say how many more there are."""
    match errors:
        case []:
            return
        case [error]:
            raise error
        case [error, *others]:
            raise StoreError(f"{error}; and {len(others)} more layers") from error
