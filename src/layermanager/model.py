"""The values that everything else speaks of: digests, desired and installed layers, results."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from layermanager.amounts import NOTHING, Amount
from layermanager.errors import DesiredStateError, InvalidDigestError
from layermanager.header_numbers import MAX_INTEGER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta
    from pathlib import Path

    from layermanager.errors import LayerManagerError

_HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
ALGORITHMS: Final = tuple(_HEX_LENGTHS)
_SUPPORTED: Final = re.compile(
    "|".join(f"{algorithm}:[0-9a-f]{{{length}}}" for algorithm, length in _HEX_LENGTHS.items())
)
_GRAMMAR: Final = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[.+_-][a-z0-9]+)*):[a-zA-Z0-9=_-]+")


class Digest(str):
    """A content digest, ``sha256:<hex>``: a text that was checked when it was made.

    It follows the grammar of the OCI image specification (descriptor.md, "Digests") and admits
    the algorithms that the specification registers: sha256 and sha512, and sha384 besides.
    Being checked, it can be used as a file name: it holds no separator and no dot.

    Raises:
        InvalidDigestError: the text is something else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Check *text* and return it as a digest."""
        if isinstance(text, cls):
            return text
        if not _SUPPORTED.fullmatch(text):
            raise InvalidDigestError(_why_not(text))
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The part before the colon, such as ``sha256``; hashlib knows it by this name."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hex digits after the colon."""
        return self.partition(":")[2]


def _why_not(text: str) -> str:
    """Why *text* is no digest that is supported."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        return f"not a digest: {text!r:.200}"
    algorithm = match["algorithm"]
    length = _HEX_LENGTHS.get(algorithm)
    if length is None:
        return f"digest algorithm {algorithm!r:.80} is not supported: {text!r:.200}"
    return f"a {algorithm} digest has {length} lower-case hex digits: {text!r:.200}"


@dataclass(frozen=True, slots=True)
class DesiredLayer:
    """A layer that should be on this node (the seed's ``aostypes.LayerInfo``).

    Attributes:
        digest: the digest of the layer blob, the layer's identity everywhere.
        url: where to fetch it: ``file://``, ``http://`` or ``https://``.
        layer_id: the name of the layer.
        version: free text, normally a semantic version.
        sha256: the checksum of the package file, 32 bytes. Despite its name Aos fills it with the
            SHA3-256; either is accepted. Empty: *url* names the layer blob itself, no package.
        size: the size in bytes of the file at *url*; None when it is not known.
        mirrors: other addresses of the same file, tried in order where *url* fails.
        diff_id: the digest of the layer's tar, decompressed, which is compared while it is
            unpacked; None: it is not.
        unpacked: the bytes of its files and its inodes, as its publisher says; 0 for what is not
            said. Two layers that differ in nothing else are equal.

    Raises:
        InvalidDigestError: *digest* or *diff_id* is no digest.
        DesiredStateError: another attribute cannot be used.
    """

    digest: Digest
    url: str
    layer_id: str = ""
    version: str = ""
    sha256: bytes = b""
    size: int | None = None
    mirrors: tuple[str, ...] = ()
    diff_id: Digest | None = None
    unpacked: Amount = field(default=NOTHING, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", Digest(self.digest))
        if self.diff_id is not None:
            object.__setattr__(self, "diff_id", Digest(self.diff_id))
        if not self.url:
            raise DesiredStateError(f"{self.digest}: url is empty")
        if not all(self.mirrors):
            raise DesiredStateError(f"{self.digest}: an address in mirrors is empty")
        if len(self.sha256) not in (0, 32):
            raise DesiredStateError(
                f"{self.digest}: sha256 must be 32 bytes, not {len(self.sha256)}"
            )
        if self.size is not None and self.size < 0:
            raise DesiredStateError(f"{self.digest}: size is negative: {self.size}")
        if self.size is not None and self.size > MAX_INTEGER:
            raise DesiredStateError(f"{self.digest}: size must be at most {MAX_INTEGER}")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the file can be fetched, in the order in which to try; each address once."""
        return tuple(dict.fromkeys((self.url, *self.mirrors)))

    @property
    def is_package(self) -> bool:
        """Whether *url* names an Aos package rather than the layer blob itself."""
        return bool(self.sha256)


@dataclass(frozen=True, slots=True)
class DesiredImage:
    """An image that should be on this node: all the layers that it has.

    Attributes:
        reference: what it is called, as ``layermanager.oci.reference`` reads it.
        platform: for which machines, as ``os/architecture`` or ``os/architecture/variant``; empty:
            for this one.
    """

    reference: str
    platform: str = ""


def layers_and_images(
    desired: Iterable[DesiredLayer | DesiredImage],
) -> tuple[list[DesiredLayer], list[DesiredImage]]:
    """What is *desired*, by kind, each kind in its order.

    Raises:
        TypeError: there is something else among them. Were it left out, it would be taken off the
            node.
    """
    layers: list[DesiredLayer] = []
    images: list[DesiredImage] = []
    for one in desired:
        match one:
            case DesiredLayer():
                layers.append(one)
            case DesiredImage():
                images.append(one)
            case _:
                raise TypeError(f"expected a DesiredLayer or a DesiredImage, found {one!r:.80}")
    return layers, images


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a reference to an image leads to.

    Attributes:
        reference: the reference with all that was left out filled in.
        digest: the digest of the image's manifest.
        platform: for which machines it is.
        layers: its layers, the lowest first; one may be there twice.
        diff_ids: the digest of each layer's tar, in the same order.
        config_digest: the digest of its configuration.
        config: the configuration, a JSON document.
    """

    reference: str
    digest: Digest
    platform: str
    layers: tuple[DesiredLayer, ...]
    diff_ids: tuple[Digest, ...]
    config_digest: Digest
    config: bytes


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """An installed layer (the seed's ``LayerInfo``).

    Attributes:
        digest: the digest of the layer blob.
        layer_id: the name that it was desired by.
        version: the version that it was desired in.
        path: the unpacked layer, ready to be an overlayfs lower directory.
        os_version: ``platform["os.version"]`` of the package's descriptor, or an empty text.
        timestamp: when it was installed or, if later, last cached or restored; UTC.
        cached: no longer desired, kept while there is room and until its time to live is over.
        size: the bytes that it takes on disk, counted in blocks of the file system.
    """

    digest: Digest
    layer_id: str
    version: str
    path: Path
    os_version: str
    timestamp: datetime
    cached: bool
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", Digest(self.digest))


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An installed image: all its layers are installed.

    Attributes:
        reference: what it was desired as, with all that was left out filled in.
        digest: the digest of its manifest; together with the reference the image's identity.
        platform: for which machines it was desired.
        layers: its layers, the lowest first; one may be there twice.
        diff_ids: the digest of each layer's tar, in the same order.
        config_digest: the digest of its configuration.
        config: the configuration, a JSON document; ``oci.manifest.read_config`` reads it.
        timestamp: when it was installed or, if later, last cached or restored; UTC.
        cached: no longer desired. Its layers may be desired all the same, by others.
        directories: the layer on top of the others, which is made here: it gives directories that
            the upper ones do not list the attributes that the lower ones do. None: not needed,
            not known, or no room: overlayfs takes 500 layers.
        are_directories_known: whether ``directories`` is right for the layers as they are. It is
            not where the index of a layer was missing or damaged, or has changed since. A mount
            then decides by itself, and the next operation that can tell makes it right.
    """

    reference: str
    digest: Digest
    platform: str
    layers: tuple[Digest, ...]
    diff_ids: tuple[Digest, ...]
    config_digest: Digest
    config: bytes
    timestamp: datetime
    cached: bool
    directories: Digest | None = None
    are_directories_known: bool = True

    @property
    def stack(self) -> tuple[Digest, ...]:
        """The layers to mount, the uppermost first."""
        top = () if self.directories is None else (self.directories,)
        return (*top, *reversed(self.layers))


@dataclass(frozen=True, slots=True)
class ClockReading:
    """What the clocks of a machine show at one moment.

    Attributes:
        calendar: the date, UTC; it jumps when it is set.
        boot: names this boot of the machine; empty: unknown.
        since_boot: how long ago that was, time asleep included.
        is_synchronised: whether the kernel keeps the date in step with a time server.
    """

    calendar: datetime
    boot: str
    since_boot: timedelta
    is_synchronised: bool


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of the references of desired images.

    Attributes:
        images: what they lead to, in their order.
        failed: those that cannot be followed; where the image is installed it is in *images* too.
    """

    images: tuple[ResolvedImage, ...] = ()
    failed: tuple[FailedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageChanges:
    """What ``process_desired_layers`` did with images.

    Attributes:
        kept: desired and already there.
        restored: were cached, are desired again.
        cached: were desired, are kept as cached until one of their layers is removed.
        installed: complete now.
        failed: the desired images that are not there as desired, each with its error.
    """

    kept: tuple[ImageInfo, ...] = ()
    restored: tuple[ImageInfo, ...] = ()
    cached: tuple[ImageInfo, ...] = ()
    installed: tuple[ImageInfo, ...] = ()
    failed: tuple[FailedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What ``process_desired_layers`` did, in the order in which it was done.

    Attributes:
        kept: desired and already there.
        restored: were cached, are desired again.
        cached: were desired, are kept as cached.
        installed: fetched and unpacked now.
        failed: the desired layers that could not be installed, each with its error.
        images: what was done with images, whose layers are among those above.
    """

    kept: tuple[LayerInfo, ...] = ()
    restored: tuple[LayerInfo, ...] = ()
    cached: tuple[LayerInfo, ...] = ()
    installed: tuple[LayerInfo, ...] = ()
    failed: tuple[FailedLayer, ...] = ()
    images: ImageChanges = field(default_factory=ImageChanges)


@dataclass(frozen=True, slots=True)
class Repair:
    """A damaged layer and from where it can be had again.

    Attributes:
        layer: as it is, or was, recorded.
        source: what was desired of it last.
    """

    layer: LayerInfo
    source: DesiredLayer


@dataclass(frozen=True, slots=True)
class AdoptedLayer:
    """A layer of another program, of which it is known from now on what it is.

    Attributes:
        layer: the layer, with the size that it has on disk.
        markers: how many marker files of whiteouts were removed from it.
    """

    layer: LayerInfo
    markers: int


@dataclass(frozen=True, slots=True)
class FailedLayer:
    """A desired layer and why it is not installed."""

    desired: DesiredLayer
    error: LayerManagerError


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A desired image and why it is not installed."""

    desired: DesiredImage
    error: LayerManagerError


class Phase(enum.StrEnum):
    """How far the installation of a layer is."""

    PENDING = "pending"
    INSTALLING = "installing"
    COMMITTING = "committing"
    INSTALLED = "installed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """A moment in the installation of one layer.

    Attributes:
        desired: the layer.
        phase: what is being done.
        transferred: bytes fetched so far.
        size: bytes to fetch, where that is known.
        unpacked: bytes on disk so far, as of the last time that space was asked for.
        error: why it failed, in the phase ``FAILED``.
    """

    desired: DesiredLayer
    phase: Phase
    transferred: int = 0
    size: int | None = None
    unpacked: int = 0
    error: LayerManagerError | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a layer took on disk when it was installed.

    Attributes:
        amount: bytes in whole blocks, and inodes; without its root and its index.
        block_bytes: the size of the blocks.
    """

    amount: Amount
    block_bytes: int


@dataclass(frozen=True, slots=True)
class InodeUsage:
    """Where the inodes of the layers' partition went; see ``StoreUsage``."""

    total: int
    free: int
    desired: int
    reclaimable: int
    held: int = 0

    @property
    def other(self) -> int:
        """Inodes of what does not belong to the layers."""
        return max(0, self.total - self.free - self.desired - self.reclaimable - self.held)


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Where the space of the layers' partition went, in bytes.

    Attributes:
        path: the directory of the layers.
        total: the size of its partition.
        free: what anybody may still write there.
        limit: what the layers may take in all; 0 when they are not limited.
        desired: what the layers in use take.
        reclaimable: what the cached layers take that nobody uses.
        held: what those take that cannot be removed, since somebody does.
        inodes: the same for inodes; None where the file system does not count them.
    """

    path: Path
    total: int
    free: int
    limit: int
    desired: int
    reclaimable: int
    held: int = 0
    inodes: InodeUsage | None = None

    @property
    def other(self) -> int:
        """What on the partition does not belong to the layers, the reserve of root included."""
        layers = self.desired + self.reclaimable + self.held
        return max(0, self.total - self.free - layers)


@dataclass(frozen=True, slots=True)
class JailMeasure:
    """One wall of the jail in which layers are unpacked.

    Attributes:
        name: what it is, such as ``network namespace``.
        why_not: why it is not in force; an empty text if it is.
    """

    name: str
    why_not: str = ""

    @property
    def is_in_force(self) -> bool:
        """Whether the wall stands."""
        return not self.why_not


_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that no honest layer meets; what exceeds one is refused by name.

    Attributes:
        package_bytes: the package or blob as it is transferred.
        unpacked_bytes: the size of all files of one layer, the holes of sparse ones included.
        compression_ratio: how many times larger than the compressed layer its tar may be.
        entries: members of one layer's tar.
        path_bytes: the longest path of an entry.
        path_depth: directories on the way to an entry.
        header_bytes: extended headers (PAX records, long names) of one entry.
        xattr_bytes: all extended attributes of one entry.
        zstd_window_bytes: the memory a zstd frame may ask of its reader.
    """

    package_bytes: int = field(default=64 * 1024 * _MIB)
    unpacked_bytes: int = field(default=256 * 1024 * _MIB)
    compression_ratio: int = 30_000
    entries: int = 4_000_000
    path_bytes: int = 4096
    path_depth: int = 256
    header_bytes: int = 1 * _MIB
    xattr_bytes: int = 256 * 1024
    zstd_window_bytes: int = 128 * _MIB
