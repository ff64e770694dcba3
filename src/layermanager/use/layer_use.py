"""Using layers: leases, and overlays that are mounted by name.

A lease and the removal of a layer exclude each other by the transactions of the database: a lease
is taken only of layers that have their rows, and a row is deleted only where there is no lease. So
nobody who uses layers waits for an operation that changes the store.

A mount takes a lease first, bound to the process that mounts. When the overlay has been made, and
before anybody can reach it, the lease is bound to that instead: it is over when the overlay is
gone from all namespaces and nobody has a file of it open, whoever unmounted it, and at a reboot.
The overlay's source in the table of mounts names the lease, so that both find each other also
where a crash came between.

::

    <workingDir>/mounts/<lease>/
        upper/, work/            what is written to a mount that throws it away
        directories/             above all layers: directories that the upper ones do not list, with
                                 the attributes that the lower ones give them, and those whose
                                 whiteouts would be listed
        bottom/                  empty: an overlay that cannot be written wants two lower ones
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet

from layermanager.ages import AgeKeeper
from layermanager.clock import SystemClock
from layermanager.errors import (
    LeaseNotExistError,
    MountError,
    MountNotExistError,
    StorageError,
    StorageFullError,
    StoreError,
    UseError,
)
from layermanager.leases import (
    Bond,
    HeldLayer,
    Holder,
    LayerMount,
    Lease,
    OverlayBond,
    ProcessBond,
    is_over,
    tag_of,
)
from layermanager.notices import Notices
from layermanager.plan import find_image, find_layers
from layermanager.presence import exists, is_directory
from layermanager.protocols import (
    HoldsLeases,
    RemembersFootprints,
    RemembersImages,
    Transactional,
)
from layermanager.removal import remove_tree
from layermanager.stale_rows import StaleRows
from layermanager.steps import Step, unannounced
from layermanager.storage import SqliteLayerStorage
from layermanager.use import overlay
from layermanager.use.in_use import UNKNOWN_MOUNTS, Look, NoMounts, look
from layermanager.use.inspector import Inspector
from layermanager.use.merged import NO_ROOM, merged_directories, write_directories
from layermanager.use.namespaces import are_processes_shown, mounts_seen_by
from layermanager.use.opaque import visible_layers
from layermanager.use.overlay import Overlay
from layermanager.use.processes import boot_name, is_process_alive, process_bond
from layermanager.xattrs import remove_acls, xattrs_of_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from layermanager.ages import Ages
    from layermanager.config import Config
    from layermanager.model import Digest, Footprint, ImageInfo, LayerInfo
    from layermanager.protocols import Clock, LayerStorage
    from layermanager.steps import OnStep
    from layermanager.use.overlay import Mounter

_LOGGER: Final = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# user:role:type, and on most systems a level: sensitivity and categories
_LABEL: Final = re.compile(r"[\w.-]+(:[\w.-]+){2}(:[\w.,:-]+)?", re.ASCII)
_LABEL_BYTES: Final = 255  # the longest text that fsconfig(2) takes
_DIRECTORIES: Final = "directories"
_ALL_USERS: Final = ["0", "0", "4294967295"]


@contextmanager
def open_use(config: Config) -> Iterator[LayerUse]:
    """The leases and mounts of a store, for who needs no manager: it waits for no operation.

    Raises:
        StorageError: the database cannot be used.
    """
    clock = SystemClock()
    with SqliteLayerStorage(config.database, clock, durable=config.durable) as storage:
        use = LayerUse(config, storage, clock)
        try:
            yield use
        finally:
            use.rest()


class HeldLease:
    """A lease that was taken; a context manager that releases it at the end.

    Attributes:
        lease: the lease.
        lower: the directories to mount, the uppermost first, if that is how the layers were named:
            without those below a layer whose root is opaque.
    """

    def __init__(self, lease: Lease, use: LayerUse, lower: Sequence[Path]) -> None:
        self.lease = lease
        self.lower = tuple(lower)
        self._use = use

    def release(self) -> None:
        """End it; if it is over already this does nothing."""
        self._use.end_lease(self.lease.lease_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class MountedLayers:
    """Layers that were mounted; a context manager that unmounts them at the end.

    Attributes:
        mount: what is mounted.
    """

    def __init__(self, mount: LayerMount, use: LayerUse) -> None:
        self.mount = mount
        self._use = use

    def umount(self, *, lazy: bool = False) -> None:
        """Unmount them; if that was done already this does nothing.

        Args:
            lazy: also if they are in use; who has files open keeps them, and the layers with them.

        Raises:
            MountBusyError: they are in use, and *lazy* is not set.
        """
        self._use.end_mount(self.mount, lazy=lazy)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.umount()


@dataclass(frozen=True, slots=True)
class Users:
    """Who uses layers at a moment.

    Attributes:
        leases: the leases that are not over.
        over: those that are.
        mounted: what is mounted.
    """

    leases: Sequence[Lease]
    over: Sequence[Lease]
    mounted: Look | NoMounts

    def holders(self, digest: Digest) -> tuple[Holder, ...]:
        """What keeps the layer from being removed; nothing if it may be."""
        by_lease = [_holder(lease) for lease in self.leases if digest in lease.layers]
        return (*by_lease, *self.mounted.holders(digest.encoded))

    def held(self, layers: Iterable[LayerInfo]) -> tuple[HeldLayer, ...]:
        """Those of *layers* that cannot be removed, and why."""
        held = [HeldLayer(layer.digest, self.holders(layer.digest)) for layer in layers]
        return tuple(layer for layer in held if layer.holders)

    def with_leases(self, leases: Iterable[Lease]) -> Users:
        """Return the same with other *leases*, but for those that were over already."""
        over = {lease.lease_id for lease in self.over}
        return replace(self, leases=[one for one in leases if one.lease_id not in over])


def users_of(
    layers_dir: Path,
    leases: Sequence[Lease],
    ages_now: Callable[[], Ages],
    inspector: Inspector | None = None,
) -> Users:
    """Return who uses the layers of *layers_dir* now.

    Args:
        layers_dir: the layers' directory.
        leases: the recorded leases.
        ages_now: tells for how long leases have lasted.
        inspector: looks at mounts; by default one with the usual patience.

    Raises:
        StoreError: it cannot be told what is mounted.
    """
    if not are_processes_shown():
        return Users(leases, (), UNKNOWN_MOUNTS)
    # In this order: what a process that has ended by now has mounted is seen afterwards.
    ended = {lease.bond for lease in leases if _has_ended(lease.bond)}
    mounted = look(layers_dir, inspector)
    ends_by_time = any(lease.expires is not None for lease in leases)
    ages = ages_now() if ends_by_time else None

    def is_present(lease: Lease) -> bool:
        if lease.tag in mounted.overlays:
            return True
        bond = lease.bond
        return (
            isinstance(bond, OverlayBond)
            and bond.boot == boot_name()
            and mounted.has_detached(bond.device)
        )

    present = {lease.lease_id for lease in leases if is_present(lease)}
    # Which layers these have is known.
    known = {
        lease.bond.device: [layer.encoded for layer in lease.layers]
        for lease in leases
        if lease.lease_id in present and isinstance(lease.bond, OverlayBond)
    }
    mounted = mounted.knowing(known)

    def is_alive(lease: Lease, bond: Bond) -> bool:
        if lease.lease_id in present:
            return True
        if isinstance(bond, OverlayBond):
            layers = [layer.encoded for layer in lease.layers]
            return bond.boot == boot_name() and mounted.has_stacked(layers)
        return bond not in ended

    live: list[Lease] = []
    over: list[Lease] = []
    for lease in leases:
        age = timedelta(0) if ages is None else ages.of(lease)
        (over if is_over(lease, age, is_alive) else live).append(lease)
    return Users(live, over, mounted)


def mounts_among(mounts: Iterable[LayerMount], users: Users) -> tuple[LayerMount, ...]:
    """The *mounts*, with whether they are mounted still."""
    return tuple(
        replace(mount, is_mounted=tag_of(mount.lease_id) in users.mounted.overlays)
        for mount in mounts
    )


class LayerUse:
    """The leases and mounts of a store; may be used from any thread.

    Args:
        config: where the store is.
        storage: the record of its layers.
        clock: the time.
        ages: tells for how long leases have lasted; by default as *storage* and *clock* say.
        on_step: is told of each change of the disk before it is made.
        mounter: mounts overlays.
        notices: logs what cannot be removed, once as long as that lasts.
    """

    def __init__(
        self,
        config: Config,
        storage: LayerStorage,
        clock: Clock,
        *,
        ages: AgeKeeper | None = None,
        on_step: OnStep = unannounced,
        mounter: Mounter = overlay.mount,
        notices: Notices | None = None,
    ) -> None:
        self._config = config
        self._layers = storage
        self._clock = clock
        self._ages = ages or AgeKeeper(storage, clock)
        self._on_step = on_step
        self._mounter = mounter
        self._notices = notices or Notices()
        self._stale_rows = StaleRows(config.layers_dir, config.index_dir, self._footprints)
        self._mounts_dir = config.working_dir / "mounts"
        self._inspectors: WeakSet[Inspector] = WeakSet()
        self._inspectors_lock = threading.Lock()

    # Leases

    def lease(
        self,
        layers: str | Iterable[str],
        *,
        owner: str,
        ttl: timedelta | None = None,
        process: int | None = None,
    ) -> HeldLease:
        """Keep installed *layers*; see ``LayerManager.lease``."""
        now = self._clock.now()
        bond = None if process is None else process_bond(process)
        with self._transaction():
            found = self._found(layers)
            lease = Lease(
                lease_id=secrets.token_hex(4),
                owner=owner,
                layers=tuple(layer.digest for layer in found),
                created=now,
                expires=None if ttl is None else now + ttl,
                bond=bond,
            )
            self._record.add_lease(lease)
            if ttl is not None:
                self._ages.note([lease])
        try:
            with _store_errors("cannot read a layer"):
                lower = self._lower(lease.lease_id, found)
        except BaseException:
            self._record.delete_lease(lease.lease_id)
            self._remove_directory(lease.lease_id)
            raise
        return HeldLease(lease, self, lower)

    def leases(self) -> tuple[Lease, ...]:
        """The leases that are not over."""
        return tuple(self.users().leases)

    def release_lease(self, lease_id: str) -> None:
        """End a lease; see ``LayerManager.release_lease``."""
        with self._transaction():
            if lease_id not in {lease.lease_id for lease in self._record.get_leases()}:
                raise LeaseNotExistError(f"there is no lease {lease_id}")
            for mount in self._record.get_mounts():
                if mount.lease_id == lease_id:
                    raise UseError(f"lease {lease_id} is that of the mount {mount.name}")
            self._record.delete_lease(lease_id)
        self._sweep_directory(lease_id)

    def end_lease(self, lease_id: str) -> None:
        """End a lease; one that is over already is no error."""
        self._record.delete_lease(lease_id)
        self._sweep_directory(lease_id)

    def users(self) -> Users:
        """Who uses layers now."""
        layers_dir = self._config.layers_dir
        inspector = Inspector(layers_dir)
        with self._inspectors_lock:
            self._inspectors.add(inspector)
        return users_of(layers_dir, self._recorded_leases(), self._ages.ages, inspector)

    def rest(self) -> None:
        """Let go of what looked at mounts; an exception may refer to it for long."""
        with self._inspectors_lock:
            inspectors = [*self._inspectors]
        for inspector in inspectors:
            inspector.rest()

    def users_by_leases(self, users: Users | None) -> Users:
        """Return *users* with the leases as they are now; mounts are not looked at again.

        Args:
            users: from the last look; None for no mounts.
        """
        return (users or Users((), (), NoMounts())).with_leases(self._recorded_leases())

    # Mounts

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
        """Mount installed *layers*; see ``LayerManager.mount``."""
        if context and not (_LABEL.fullmatch(context) and len(context) <= _LABEL_BYTES):
            raise MountError(f"not an SELinux label: {context!r:.300}: USER:ROLE:TYPE[:LEVEL]")
        if not _NAME.fullmatch(name):
            raise MountError(f"not a name for a mount: {name!r}: letters, digits, . _ and -")
        if upper and read_only:
            raise MountError(f"{name}: what cannot be written has no use for an upper directory")
        self.sweep()
        target = _directory(target)
        lease, found = self._begin(name, layers)
        try:
            what = self._overlay(lease, found, upper, work, read_only=read_only)
            what = replace(what, context=context)
            mount = LayerMount(name, lease.lease_id, target, lease.layers, what.upper)
            self._record.add_mount(mount)
            with _store_errors("cannot mount"):
                self._on_step(Step.MOUNT)
            self._mounter(what, target, lambda device: self._bind(lease, device))
        except BaseException:
            self._take_back(name, lease.lease_id)
            raise
        return MountedLayers(mount, self)

    def image(self, reference: str) -> ImageInfo:
        """The installed image that *reference* names.

        Raises:
            ImageNotExistError: it is not installed.
            InvalidReferenceError: *reference* is none.
        """
        return find_image(reference, self._images(), self._ages.ages().of)

    def umount(self, name: str, *, lazy: bool = False) -> None:
        """Unmount what was mounted as *name*; see ``LayerManager.umount``."""
        self.end_mount(self._mount_named(name), lazy=lazy)

    def mounts(self) -> tuple[LayerMount, ...]:
        """What was mounted by name, and whether it still is."""
        record = self._record
        return mounts_among(record.get_mounts(), self.users())

    def end_mount(self, mount: LayerMount, *, lazy: bool) -> None:
        """Unmount *mount* itself, not what has its name by now; nothing to do is no error."""
        if mount.lease_id not in {one.lease_id for one in self._record.get_mounts()}:
            return
        tag = tag_of(mount.lease_id)
        here = [
            one
            for one in mounts_seen_by(os.getpid())
            if one.mount_point == os.fsencode(mount.target)
        ]
        if any(one.source == tag.encode() for one in here):
            if here[-1].source != tag.encode():
                raise MountError(f"{mount.name}: something else is mounted over {mount.target}")
            with _store_errors("cannot unmount"):
                self._on_step(Step.UNMOUNT)
            overlay.unmount(mount.target, lazy=lazy)
        elif elsewhere := self.users().mounted.overlays.get(tag):
            raise MountError(
                f"{mount.name} is mounted in another mount namespace, that of process "
                f"{elsewhere[0].process}: unmount it there"
            )
        self._record.delete_mount(mount.name)
        self.sweep()

    def sweep(self) -> Users:
        """Forget leases that are over, with their mounts, and remove what those have written.

        Returns:
            Who uses layers.

        Raises:
            StoreError: it cannot be told what is mounted.
        """
        directories = self._directories()  # before the leases: each has its lease first
        users = self.users()
        live = {lease.lease_id for lease in users.leases}
        for name in directories:
            if name not in live and not self._is_lower(name, users):
                try:
                    self._remove_directory(name)
                except StoreError as error:  # an unrelated operation must not fail for that
                    self._notices.warn(_LOGGER, f"{error}; it is left to the next operation")
        if not users.over:
            return users
        try:
            self._forget({lease.lease_id for lease in users.over})
        except StorageFullError as error:
            # They count no more, whatever the database says; a later sweep is another try.
            self._notices.warn(_LOGGER, f"leases that are over stay recorded: {error}")
        return users

    # Within

    def _recorded_leases(self) -> Sequence[Lease]:
        record = self._layers
        return record.get_leases() if isinstance(record, HoldsLeases) else ()

    def _forget(self, lease_ids: Collection[str]) -> None:
        """Forget leases, and the mounts that have them."""
        with self._transaction():
            for mount in self._record.get_mounts():
                if mount.lease_id in lease_ids:
                    self._record.delete_mount(mount.name)
            for lease_id in lease_ids:
                self._record.delete_lease(lease_id)

    @property
    def _record(self) -> HoldsLeases:
        if not isinstance(self._layers, HoldsLeases):
            raise StorageError("the storage of this layer manager keeps no leases")
        return self._layers

    def _transaction(self) -> AbstractContextManager[None]:
        return (
            self._layers.transaction() if isinstance(self._layers, Transactional) else nullcontext()
        )

    def _found(self, layers: str | Iterable[str]) -> tuple[LayerInfo, ...]:
        here = self._stale_rows.without(self._layers.get_layers_info())
        return find_layers(layers, here, self._images(), self._ages.ages().of)

    def _footprints(self) -> Mapping[Digest, Footprint]:
        storage = self._layers
        return storage.get_footprints() if isinstance(storage, RemembersFootprints) else {}

    def _images(self) -> Sequence[ImageInfo]:
        storage = self._layers
        return storage.get_images_info() if isinstance(storage, RemembersImages) else ()

    def _begin(self, name: str, layers: str | Iterable[str]) -> tuple[Lease, tuple[LayerInfo, ...]]:
        """Take the lease of a mount; it ends with this process as long as nothing is mounted."""
        with self._transaction():
            for mount in self._record.get_mounts():
                if mount.name == name:
                    raise MountError(f"{name} is mounted already, on {mount.target}")
            found = self._found(layers)
            lease = Lease(
                lease_id=secrets.token_hex(4),
                owner=f"mount {name}",
                layers=tuple(layer.digest for layer in found),
                created=self._clock.now(),
                bond=process_bond(os.getpid()),
            )
            self._record.add_lease(lease)
            return lease, found

    def _overlay(
        self,
        lease: Lease,
        layers: Sequence[LayerInfo],
        upper: Path | None,
        work: Path | None,
        *,
        read_only: bool,
    ) -> Overlay:
        with _store_errors("cannot prepare a mount"):
            lower = self._lower(lease.lease_id, layers)
            if upper:
                upper, work = _given(upper, work)
            elif not read_only:
                upper, work = self._make_upper(lease.lease_id, lower[0])
            elif len(lower) == 1:
                lower.append(self._make(lease.lease_id, "bottom"))
            return Overlay(
                lower, upper, work, lease.tag, has_user_attributes=self._has_user_attributes()
            )

    def _lower(self, lease_id: str, layers: Sequence[LayerInfo]) -> list[Path]:
        """Return the directories to mount, the uppermost first.

        Raises:
            OSError: one cannot be read, or made.
        """
        lower = visible_layers([layer.path for layer in layers])
        digests = tuple(layer.digest for layer in layers)
        images = self._images()
        same = [image for image in images if tuple(dict.fromkeys(image.stack)) == digests]
        if any(_is_settled(image, len(lower)) for image in same):
            return lower
        # The mount decides by itself, without what was found out before.
        others = list(layers)
        if same:
            by_digest = {layer.digest: layer for layer in layers}
            others = [by_digest[one] for one in dict.fromkeys(reversed(same[0].layers))]
        elif len(lower) >= overlay.MAX_LOWER_DIRECTORIES:
            # There is room for one such layer, and not for one an image.
            made = _layers_of_directories(images, digests)
            others = [layer for layer in layers if layer.digest not in made]
        merged = merged_directories(
            (layer.digest for layer in reversed(others)),
            self._config.index_dir,
            self._config.limits,
        )
        if (doubt := merged.doubt()) and len(others) > 1:
            _LOGGER.warning("%s", doubt)
            if len(others) < len(layers):
                return lower  # with what was known of them when they could be told
        lower = visible_layers([layer.path for layer in others])
        if not merged.directories:
            return lower
        if len(lower) >= overlay.MAX_LOWER_DIRECTORIES:
            _LOGGER.warning("%s", NO_ROOM)
            return lower
        path = self._make(lease_id, _DIRECTORIES)
        write_directories(merged.directories, path)
        lower.insert(0, path)
        return lower

    def _bind(self, lease: Lease, device: str) -> None:
        self._record.add_lease(replace(lease, bond=OverlayBond(boot_name(), device)))

    def _take_back(self, name: str, lease_id: str) -> None:
        self._remove_directory(lease_id)
        with self._transaction():
            self._record.delete_mount(name)
            self._record.delete_lease(lease_id)

    def _mount_named(self, name: str) -> LayerMount:
        for mount in self._record.get_mounts():
            if mount.name == name:
                return mount
        raise MountNotExistError(f"nothing is mounted as {name}")

    def _has_user_attributes(self) -> bool:
        """Whether an ordinary user unpacked the layers, or the root of his namespace."""
        users = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        return users != _ALL_USERS or self._config.layers_dir.stat().st_uid != 0

    # Directories

    def _directories(self) -> list[str]:
        with _store_errors("cannot list what mounts have written"):
            try:
                return [path.name for path in self._mounts_dir.iterdir()]
            except FileNotFoundError:
                return []

    def _make_upper(self, lease_id: str, top: Path) -> tuple[Path, Path]:
        """Make directories for what is written; the root of the overlay is to be as in *top*."""
        upper, work = self._make(lease_id, "upper"), self._make(lease_id, "work")
        status = top.stat()
        descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_acls(descriptor)  # of the working directory, which all that is written would get
            for attribute, value in xattrs_of_layer(os.fsencode(top)).items():
                os.setxattr(descriptor, attribute, value)
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(descriptor)
        return upper, work

    def _make(self, lease_id: str, name: str) -> Path:
        path = self._mounts_dir / lease_id / name
        for directory in (self._mounts_dir, path.parent, path):
            self._on_step(Step.MAKE_MOUNT_DIRECTORY)
            directory.mkdir(mode=0o700, exist_ok=True)
        return path

    def _sweep_directory(self, name: str) -> None:
        """Remove what was made for a lease that is over, unless it is mounted."""
        with _store_errors("cannot remove what was made for a lease"):
            if not exists(self._mounts_dir / name):
                return
        if not self._is_lower(name, self.users()):
            self._remove_directory(name)

    def _is_lower(self, name: str, users: Users) -> bool:
        """Whether an overlay, of any maker, has what was made for a lease as a lower directory."""
        return users.mounted.is_lower(f"/{self._mounts_dir.name}/{name}/{_DIRECTORIES}")

    def _remove_directory(self, name: str) -> None:
        """Remove what a mount has written; others may be at it, too."""
        with _store_errors("cannot remove what a mount has written"):
            while exists(self._mounts_dir / name):
                self._on_step(Step.REMOVE_TREE)
                parent = os.open(self._mounts_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    with suppress(FileNotFoundError):
                        remove_tree(name, dir_fd=parent)
                finally:
                    os.close(parent)


def _layers_of_directories(images: Iterable[ImageInfo], digests: Iterable[Digest]) -> set[Digest]:
    """Return those of *digests* that are there only since *images* have them made here."""
    listed = set(digests)
    return {
        image.directories
        for image in images
        if image.directories is not None
        and image.directories not in image.layers  # one that lists nothing else has its content
        and listed.issuperset(image.stack)
    }


def _is_settled(image: ImageInfo, number: int) -> bool:
    """Whether the stack of *image*, of so many visible layers, shows what it should."""
    if image.directories is None:
        has_room = number < overlay.MAX_LOWER_DIRECTORIES  # otherwise it may just be left out
    else:
        has_room = number <= overlay.MAX_LOWER_DIRECTORIES
    return has_room and image.are_directories_known


def _has_ended(bond: Bond | None) -> bool:
    return isinstance(bond, ProcessBond) and not is_process_alive(bond)


def _holder(lease: Lease) -> Holder:
    return Holder(f"lease {lease.lease_id} of {lease.owner}", lease_id=lease.lease_id)


def _directory(path: Path) -> Path:
    """The directory *path* without symlinks, as the table of mounts names it."""
    try:
        resolved = path.resolve(strict=True)
    except OSError as error:
        raise MountError(f"cannot mount on {path}: {error.strerror}") from error
    if not is_directory(resolved):
        raise MountError(f"cannot mount on {path}: it is no directory")
    return resolved


def _given(upper: Path, work: Path | None) -> tuple[Path, Path]:
    """The upper directory that was given, and its work directory, by default one beside it."""
    upper = _directory(upper)
    if work is None:
        work = upper.with_name(f".{upper.name}.work")
        work.mkdir(mode=0o700, exist_ok=True)
    return upper, _directory(work)


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}") from error
