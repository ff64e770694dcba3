"""Everything that can go wrong, named by what the caller can do about it.

::

    LayerManagerError
    ├── InputError                 mend the input, then call again           exit 2
    │   ├── InvalidDigestError     not a digest of the OCI grammar
    │   ├── InvalidReferenceError  not a reference to an image, or not a platform
    │   ├── DesiredStateError      the list of desired layers contradicts itself or cannot be read
    │   ├── ConfigError            the configuration cannot be used
    │   └── PackError              the directory or tar cannot become a layer
    ├── LayerError                 one layer; the others are not affected    exit 1
    │   ├── LayerNotExistError     no such layer is installed
    │   ├── IntegrityError         a digest, checksum or size is not the desired one
    │   ├── PackageError           not an Aos layer package
    │   ├── ArchiveError           the layer's tar or its compression is malformed
    │   ├── LimitExceededError     larger than the configured limits allow
    │   ├── SourceError            the bytes cannot be had
    │   │   ├── SourceTimeoutError … in time: try again later
    │   │   └── SourceChangedError … for they change while they are fetched
    │   ├── NotEnoughSpaceError    free space or raise the limit
    │   └── UnpackerError          the unpacker process ended without a verdict
    ├── ImageError                 one image; the others are not affected    exit 1
    │   ├── ImageNotExistError     no such image is installed
    │   └── ManifestError          its documents are malformed, or not those of an image for here
    ├── UseError                   a lease or a mount                        exit 1
    │   ├── LeaseNotExistError     no such lease
    │   ├── MountNotExistError     no mount of that name
    │   └── MountError             an overlay cannot be mounted or unmounted
    │       └── MountBusyError     its files are in use: end that, or unmount it lazily
    ├── LayersFailedError          an exception group: some layers failed, the rest was done
    ├── StoreError                 the directories of the store cannot be used
    │   └── StoreBusyError         another process changes this store        exit 3
    ├── StorageError               the database cannot be used
    │   └── StorageFullError       its disk is full: remove something from it
    ├── ExhaustedError             descriptors, memory, threads or locks ran out: try again later
    ├── UnexpectedError            a bug: report it with the traceback in the log
    │   └── UnexpectedSourceError  … of a source
    └── CancelledError             the manager was closed while this went on

Data is in attributes; the message is for people. ``exit_code`` is the command's exit status,
``hint`` says what to do where the message alone does not.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from layermanager.leases import HeldLayer
    from layermanager.model import ApplyResult


class LayerManagerError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code: ClassVar[int] = 1
    hint: str | None = None


class InputError(LayerManagerError):
    """The input cannot be used as it is; nothing was done."""

    exit_code = 2


class InvalidDigestError(InputError):
    """A text is no digest of the OCI grammar, or of an algorithm that is not supported."""

    hint = "a digest is sha256:, sha384: or sha512: followed by lower-case hex digits"


class InvalidReferenceError(InputError):
    """A text is no reference to an image, or names no platform."""

    hint = "an image is named for example registry:5000/app:1.2, app@sha256:… or oci:PATH:TAG"


class DesiredStateError(InputError):
    """The desired layers cannot be read, or contradict each other."""


class SignatureError(InputError):
    """Nothing proves that the desired state was made by whom it should be."""


class ConfigError(InputError):
    """The configuration cannot be read or used."""


class PackError(InputError):
    """The directory or tar that was given cannot become a layer."""


class LayerError(LayerManagerError):
    """Something about one layer; the operation goes on for the others.

    Attributes:
        digest: the layer's digest where the raiser knows it, else an empty text.
    """

    def __init__(self, message: str, *, digest: str = "") -> None:
        super().__init__(message)
        self.digest = digest


class LayerNotExistError(LayerError):
    """No layer with that digest is installed (the seed's ``ErrNotExist``)."""

    hint = "`layermanager ls` lists the installed layers"


class IntegrityError(LayerError):
    """What arrived is not what was desired.

    Attributes:
        subject: what was compared, such as ``package checksum``.
        expected: the desired value, as text.
        found: the value of what arrived, as text.
    """

    hint = "the publisher's file changed, or the transfer was damaged: fetch again or publish again"

    def __init__(self, subject: str, *, expected: object, found: object, digest: str = "") -> None:
        super().__init__(f"{subject}: expected {expected}, found {found}", digest=digest)
        self.subject = subject
        self.expected = str(expected)
        self.found = str(found)


class PackageError(LayerError):
    """The file is not an Aos layer package."""


class ArchiveError(LayerError):
    """The layer's tar, or the compression around it, is malformed."""


class LimitExceededError(LayerError):
    """The layer is larger than the limits of the configuration allow."""

    hint = "if the layer is honest, raise that limit in the configuration"


class SourceError(LayerError):
    """The bytes of a layer cannot be had from where they should be.

    Attributes:
        reason: what went wrong, without the address.
        url: the address that was asked, without credentials.
        is_transient: whether the same may work later; False for what the publisher or the
            operator has to mend.
        retry_after: how long the server asked to be left alone, None if it did not.
        attempts: what failed before, oldest first, where it was tried more than once; this error
            tells of all of them.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str,
        digest: str = "",
        is_transient: bool = False,
        retry_after: timedelta | None = None,
        attempts: Sequence[SourceError] = (),
    ) -> None:
        super().__init__(f"{message}: {url}", digest=digest)
        self.reason = message
        self.url = url
        self.is_transient = is_transient
        self.retry_after = retry_after
        self.attempts = tuple(attempts)


class SourceTimeoutError(SourceError):
    """The source did not answer, or stopped sending, for too long."""


class SourceChangedError(SourceError):
    """What a source gives now is not what it gave before, again and again."""


class SpaceKind(enum.StrEnum):
    """What a disk can be short of."""

    BYTES = "bytes"
    INODES = "inodes"


_HINTS_OF_SPACE: Final = {
    SpaceKind.BYTES: "free space on the partition, raise layersPartLimit, or desire fewer layers",
    SpaceKind.INODES: (
        "remove files from the partition, desire fewer layers, or make a file system with more "
        "inodes (`mkfs.ext4 -i`, `mount -o nr_inodes=`)"
    ),
}


class NotEnoughSpaceError(LayerError):
    """The layer does not fit, even after removing all that may be removed.

    Attributes:
        kind: of what there is not enough: the unit of the numbers.
        needed: what was asked for.
        free: what is free now, within the limit if that is in the way; 0 also when more is used
            than there may be.
        missing: how much more would have to be free.
        limit: the allocator's limit in bytes, 0 when there is none.
        reclaimable: what removing cached layers would give.
        limit_reached: True when the configured limit is in the way, False when the partition is
            full: only then can freeing something else on the partition help.
        held: the cached layers that cannot be removed, since they are in use, and by whom.
    """

    hint = _HINTS_OF_SPACE[SpaceKind.BYTES]

    def __init__(
        self,
        *,
        needed: int,
        free: int,
        limit: int,
        reclaimable: int,
        limit_reached: bool,
        held: Sequence[HeldLayer] = (),
        digest: str = "",
        kind: SpaceKind = SpaceKind.BYTES,
    ) -> None:
        """Take *free* also where it is negative, since more is used than there may be."""
        in_use = f"; in use are {', '.join(map(str, held))}" if held else ""
        bound = f", limit {limit or 'none'}" if kind is SpaceKind.BYTES else ""
        super().__init__(
            f"not enough space: needed {needed}, free {max(0, free)}{bound}, "
            f"reclaimable {reclaimable} {kind}{in_use}",
            digest=digest,
        )
        self.hint = _HINTS_OF_SPACE[kind]
        self.kind = kind
        self.needed = needed
        self.free = max(0, free)
        self.missing = max(0, needed - free - reclaimable)
        self._overdrawn = max(0, -free)
        self.limit = limit
        self.reclaimable = reclaimable
        self.limit_reached = limit_reached
        self.held = tuple(held)

    def held_back_by(self, held: Sequence[HeldLayer]) -> NotEnoughSpaceError:
        """Return the same error with the cached layers that are in use."""
        return self._with(held=held, digest=self.digest)

    def with_held(self, amount: int) -> NotEnoughSpaceError:
        """Return the same error of a request as a whole, of which *amount* is held already."""
        return self._with(amount, held=self.held, digest=self.digest)

    def _with(
        self, amount: int = 0, *, held: Sequence[HeldLayer], digest: str
    ) -> NotEnoughSpaceError:
        return NotEnoughSpaceError(
            needed=self.needed + amount,
            free=self.free - self._overdrawn + amount,
            limit=self.limit,
            reclaimable=self.reclaimable,
            limit_reached=self.limit_reached,
            held=held,
            digest=digest,
            kind=self.kind,
        )


class UnpackerError(LayerError):
    """The unpacker process was killed, crashed, or broke its protocol."""


class ImageError(LayerManagerError):
    """Something about one image; the operation goes on for the others."""


class ImageNotExistError(ImageError):
    """No image of that reference is installed."""

    hint = "`layermanager ls --images` lists the installed images"


class ManifestError(ImageError):
    """The documents of an image are malformed, or they describe something that is not taken."""


class UseError(LayerManagerError):
    """Something about one use of layers, a lease or a mount."""


class LeaseNotExistError(UseError):
    """There is no such lease, or it is over."""

    hint = "`layermanager lease ls` lists the leases"


class MountNotExistError(UseError):
    """Nothing is mounted by that name."""

    hint = "`layermanager ls --mounts` lists the mounts"


class MountError(UseError):
    """An overlay cannot be mounted, or not be unmounted."""


class MountBusyError(MountError):
    """An overlay cannot be unmounted as long as its files are in use."""

    hint = (
        "`fuser -vm TARGET` tells who uses it; `layermanager umount --lazy` does not wait for that"
    )


class LayersFailedError(ExceptionGroup[LayerManagerError], LayerManagerError):
    """Some desired layers could not be installed; everything else was done.

    Attributes:
        result: what was kept, restored, cached and installed.
        exceptions: one error a failed layer.
    """

    result: ApplyResult

    @classmethod
    def of(cls, errors: Sequence[LayerManagerError], result: ApplyResult) -> LayersFailedError:
        """Group *errors* with the *result* of what went well."""
        group = cls("some desired layers could not be installed", errors)
        group.result = result
        return group

    def derive(self, excs: Sequence[LayerManagerError]) -> LayersFailedError:  # type: ignore[override]
        """Keep the result when a part of the group is handled by ``except*``."""
        return LayersFailedError.of(excs, self.result)


class StoreError(LayerManagerError):
    """A directory of the store cannot be used."""


class StoreBusyError(StoreError):
    """Another process is changing this store."""

    exit_code = 3
    hint = "try again when it has finished, or wait for it with --wait"


class StorageError(LayerManagerError):
    """The database of the installed layers cannot be used."""


class StorageFullError(StorageError):
    """The database cannot be changed: its disk has no free blocks or no free inodes."""

    hint = "remove other files from the disk, or cached layers with `layermanager gc`"


class ExhaustedError(LayerManagerError):
    """The process, or the machine, ran out of descriptors, memory, threads or locks."""

    hint = "try again later, lower parallelInstalls, or raise the limits of the process"


class UnexpectedError(LayerManagerError):
    """A bug, of this package or of an implementation that it was given; its cause is chained."""

    hint = "this is a bug: report it with the traceback in the log"


class UnexpectedSourceError(SourceError, UnexpectedError):
    """A bug of a source; the other addresses are not affected."""


class CancelledError(LayerManagerError):
    """The manager was closed, or the operation cancelled, while it was under way."""
