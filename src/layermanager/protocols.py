"""The seams: what the manager asks of the storage, of the space, of sources and of time.

Each has one real implementation, which the manager is given as an argument, and a conformance
suite in ``tests/`` that runs on every implementation, also on those of ``layermanager.testing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType

    from layermanager.ages import AgeRecord
    from layermanager.amounts import Amount
    from layermanager.cancellation import Cancellation
    from layermanager.leases import LayerMount, Lease
    from layermanager.model import (
        ClockReading,
        DesiredLayer,
        Digest,
        Footprint,
        ImageInfo,
        LayerInfo,
    )
    from layermanager.oci.manifest import Descriptor, ImageIndex
    from layermanager.oci.reference import Reference

    Remover = Callable[[str], None]


class LayerStorage(Protocol):
    """The record of the installed layers (the seed's ``LayerStorage``).

    Every method may be called from any thread. A change is durable when its method returns, and
    is there as a whole or not at all after a power cut. All raise ``StorageError`` when the
    record cannot be used.
    """

    def add_layer(self, layer: LayerInfo) -> None:
        """Add *layer*; one of the same digest is replaced."""

    def delete_layer_by_digest(self, digest: Digest) -> None:
        """Forget a layer; one that is not there is no error, so it may be repeated."""

    def get_layers_info(self) -> Sequence[LayerInfo]:
        """All layers, ordered by digest."""

    def get_layer_info_by_digest(self, digest: Digest) -> LayerInfo:
        """One layer.

        Raises:
            LayerNotExistError: it is not there.
        """

    def set_layer_cached(self, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - the seed's
        """Note that a layer is cached from now on, or is desired again.

        If that is a change the layer's timestamp becomes the current time, so that a cached
        layer's time to live counts from when it stopped being desired.

        Raises:
            LayerNotExistError: it is not there.
        """


@runtime_checkable
class Transactional(Protocol):
    """What a storage may offer besides: one durable change instead of many small ones."""

    def transaction(self) -> AbstractContextManager[None]:
        """Make all changes within the context one; an exception takes them all back."""


@runtime_checkable
class RemembersSources(Protocol):
    """What a storage may offer besides: it knows from where a layer can be fetched again."""

    def note_sources(self, layers: Iterable[DesiredLayer]) -> None:
        """Remember where *layers* come from, without credentials."""

    def get_sources(self) -> Mapping[Digest, DesiredLayer]:
        """What was desired last of each layer; it is forgotten together with the layer."""


@runtime_checkable
class RemembersFootprints(Protocol):
    """What a storage may offer in addition: it knows what each layer takes on disk."""

    def note_footprint(self, digest: Digest, footprint: Footprint) -> None:
        """Remember what a layer takes; it may be remembered when the layer is removed."""

    def get_footprints(self) -> Mapping[Digest, Footprint]:
        """What each layer takes, or took when it was installed last, as far as that is known."""


@runtime_checkable
class RemembersImages(Protocol):
    """What a storage may offer besides: it knows which layers are an image.

    An image is there as long as all its layers are: it is forgotten together with any of them.
    """

    def add_image(self, image: ImageInfo) -> None:
        """Add *image*, whose layers are there; one of the same reference and digest is replaced."""

    def delete_image(self, reference: str, digest: Digest) -> None:
        """Forget an image, but none of its layers; one that is not there is no error."""

    def get_images_info(self) -> Sequence[ImageInfo]:
        """The images whose layers are all there, ordered by reference and digest."""

    def set_image_cached(self, reference: str, digest: Digest, cached: bool) -> None:  # noqa: FBT001 - as for layers
        """Note that an image is cached from now on, or is desired again.

        If that is a change the image's timestamp becomes the current time. An image that is not
        there is no error: it went with one of its layers.
        """


@runtime_checkable
class HoldsLeases(Protocol):
    """What a storage may offer in addition: a record of who uses layers.

    Whoever adds a lease, and whoever removes a layer, looks in one ``transaction`` at what the
    other one has done; so a storage that offers this is ``Transactional`` as well, also among
    processes.
    """

    def add_lease(self, lease: Lease) -> None:
        """Add *lease*; one of the same id is replaced."""

    def delete_lease(self, lease_id: str) -> None:
        """Forget a lease; one that is not there is no error."""

    def get_leases(self) -> Sequence[Lease]:
        """All leases, those that are over included, in the order in which they were made."""

    def add_mount(self, mount: LayerMount) -> None:
        """Add *mount*; one of the same name is replaced."""

    def delete_mount(self, name: str) -> None:
        """Forget a mount; one that is not there is no error."""

    def get_mounts(self) -> Sequence[LayerMount]:
        """All mounts, ordered by name; with the layers of their leases, and as mounted."""


@runtime_checkable
class AgeStore(Protocol):
    """What a storage may offer, too: a record of how much time has passed for it.

    Without it ages are told by the calendar after a restart.
    """

    def get_ages(self) -> AgeRecord:
        """Return the record that was put last; an empty one if none was."""

    def put_ages(self, record: AgeRecord) -> None:
        """Replace the record."""


class SpaceAllocator(Protocol):
    """A neighbour that can make room for layers (the seed's ``SpaceAllocator``)."""

    def allocate_layers_space(self, extra_space: int) -> int:
        """Free *extra_space* bytes of the neighbour's own items on the layers' partition.

        It is asked when removing all cached layers would not be enough. It may free more or less;
        the space is looked at again afterwards, nothing is believed.

        Returns:
            The number of bytes that were freed.
        """


class Space(Protocol):
    """Bytes that were set aside and are neither kept nor given back yet.

    As a context manager it is released at the end unless it was accepted.
    """

    @property
    def size(self) -> int:
        """How many bytes it holds."""

    def grow(self, extra: int) -> None:
        """Set *extra* bytes more aside.

        Raises:
            NotEnoughSpaceError: they cannot be had; what was held before is still held.
        """

    def grow_if_free(self, extra: int) -> bool:
        """Set *extra* bytes more aside if nothing need be removed for that; return whether."""

    def note_written(self, size: int) -> None:
        """Note that *size* bytes in all are on disk: the file system counts them as used now."""

    def accept(self, size: int | None = None) -> None:
        """Keep it: *size* bytes of it if given, the rest is given back."""

    def release(self) -> None:
        """Give all of it back; after ``accept`` or ``release`` this does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Allocator(Protocol):
    """Hands out the space of one directory within its limit.

    Every method may be called from any thread; those that may remove items, ``allocate_space``,
    ``Space.grow`` and ``close``, without a lock that a remover takes.
    """

    def allocate_space(self, size: int) -> Space:
        """Set *size* bytes aside, removing reclaimable items, oldest first, where needed.

        Raises:
            NotEnoughSpaceError: not even removing all of them would do; none was removed.
        """

    def note_used_space(self, size: int) -> None:
        """Note that the items of the directory take *size* bytes in all, outdated ones included.

        It is said when an operation begins, since other processes may have changed the store; what
        is set aside and neither accepted nor released comes on top.
        """

    def free_space(self, size: int) -> None:
        """Note that *size* accepted bytes are free again: something was removed."""

    def add_outdated_item(self, item_id: str, size: int, timestamp: datetime) -> None:
        """Note that an item of *size* bytes may be removed when space is short.

        The item's bytes stay counted as used until it is removed. An item that is already known
        is replaced.
        """

    def restore_outdated_item(self, item_id: str) -> None:
        """Note that an item must be kept; one that is not known is no error."""

    def close(self) -> None:
        """End; the directory no longer takes part in its partition."""


class Room(Space, Protocol):
    """Bytes and inodes that were set aside; a ``Space`` whose holder asks as it writes."""

    @property
    def amount(self) -> Amount:
        """All that it holds."""

    def extend(self, used: Amount, needed: Amount, likely: Amount) -> Amount:
        """Hold *needed*; *used* is on disk, and there will probably be *likely* in all.

        Returns:
            What may be on disk before this is called again: *needed* or more.

        Raises:
            NotEnoughSpaceError: it cannot be had; what was held before is still held.
        """

    def settle(self, used: Amount) -> None:
        """Note that *used* is on disk and all that is needed; the rest is given back."""


@runtime_checkable
class CountsInodes(Protocol):
    """What an allocator may offer in addition: it counts inodes as it counts bytes.

    Threads as for ``Allocator``; ``allocate`` and ``Room.extend`` may remove items.
    """

    def allocate(self, amount: Amount, likely: Amount) -> Room:
        """Set *amount* aside, as ``allocate_space``.

        If items must be removed for that, they are removed for *likely* at once, where that can be
        had.
        """

    def offer(self, item_id: str, amount: Amount, timestamp: datetime, *, goes_last: bool) -> None:
        """Note that an item may be removed, as ``add_outdated_item``.

        One that *goes_last* is removed only when all others are not enough.
        """


class NewSpaceAllocator(Protocol):
    """Makes an allocator (the seed's ``NewSpaceAllocator`` variable)."""

    def __call__(self, path: Path, part_limit: int, remover: Remover) -> Allocator:
        """Make the allocator of the directory *path*.

        Args:
            path: an existing directory.
            part_limit: the share of its partition that it may use, in per cent; 0 for no limit.
            remover: removes one outdated item, given its id, and returns when its space is free.
                It looks, under a lock of its own, whether the item may still be removed, and does
                nothing if not. It must not allocate.
        """


class ByteStream(Protocol):
    """The bytes of one layer as they arrive; to be read by one thread and then closed."""

    @property
    def is_local(self) -> bool:
        """Whether the bytes are on this node already: no network is waited for, none is spared."""

    @property
    def size(self) -> int | None:
        """How many bytes the whole file has, where the source knows."""

    @property
    def offset(self) -> int:
        """Which byte of the file comes first: the one that was asked for, or 0."""

    @property
    def validator(self) -> str:
        """What names this version of the file to its source; empty where it has no such name."""

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, as soon as some are there; empty at the end.

        Raises:
            SourceError: the source failed, or ended before the end of the file.
        """

    def abort(self) -> None:
        """Make a ``read`` in another thread end soon, with an error; safe from any thread."""

    def close(self) -> None:
        """Release the source; may be repeated."""


class Source(Protocol):
    """A way to fetch layers, chosen by the scheme of their URL."""

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> ByteStream:
        """Start to fetch *url*.

        Args:
            url: the address of the file.
            cancellation: ends the wait for an answer; what the stream waits for is ended by its
                ``abort``.
            offset: the byte to begin with, more than 0 to go on where a transfer broke off. A
                source that cannot begin there, or not in the version that *validator* names,
                begins with byte 0.
            validator: of the stream that broke off; empty if it had none.

        Raises:
            SourceError: it is not there, or the source cannot be reached.
            CancelledError: the transfer was cancelled.
        """

    def close(self) -> None:
        """Release what is kept between transfers, such as connections."""


@runtime_checkable
class ImageSource(Source, Protocol):
    """A source that knows images besides layers, chosen by the transport of their reference.

    It fetches the layers of its images as well, by the address ``reference.at(digest).url``. What
    it yields is not proved: digests and sizes are compared by who asks.
    """

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        """Tell where the manifest, or index, that *reference* names is.

        There may be several: an image for several platforms.

        Raises:
            SourceError: no image is called so, or the source cannot be reached.
            ManifestError: what lists the images cannot be read.
            CancelledError: it was cancelled.
        """

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        """The document to which *descriptor* points in the place of *reference*.

        It is read up to one byte beyond the descriptor's size, whatever there is.

        Raises:
            SourceError: it is not there, or the source cannot be reached.
            CancelledError: it was cancelled.
        """


class Clock(Protocol):
    """Time as the manager sees it."""

    def now(self) -> datetime:
        """The current time, UTC; it jumps when the date is set."""

    def monotonic(self) -> float:
        """Seconds since some moment; they pass evenly while the machine is awake."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set, at most *seconds*; return whether it is set."""


@runtime_checkable
class MachineClock(Clock, Protocol):
    """What a clock may offer in addition: all that the clocks of a machine show.

    Without it the date is believed, and time asleep does not count.
    """

    def reading(self) -> ClockReading:
        """Return what the clocks show now."""
