"""Layer tars: made of a directory, or taken as they are.

A directory becomes a layer tar that says everything about it that a tar can say: names as the
bytes that they are, numeric owners, times to the nanosecond, extended attributes, hard links,
devices. The same tree gives the same bytes, whatever the order in which it was created.

The upper directory of an overlay is a directory as well: what overlayfs notes in its own form,
as devices 0:0 and extended attributes, is written in the form of OCI layers, as whiteouts.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tarfile
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from layermanager.directories import Directories
from layermanager.errors import PackError
from layermanager.unpack.fields import OPAQUE_MARKER, WHITEOUT_PREFIX
from layermanager.xattrs import SELINUX_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.directories import File, Place

_log: Final = logging.getLogger(__name__)

CHUNK_BYTES: Final = 1024 * 1024
END_OF_ARCHIVE: Final = bytes(2 * tarfile.BLOCKSIZE)

_NANOSECONDS: Final = 10**9
_SELINUX_LABEL: Final = os.fsdecode(SELINUX_LABEL)  # the host's, and none of the image's
_OVERLAY_NAMESPACES: Final = ("trusted.overlay.", "user.overlay.")


class Compression(Enum):
    """How a layer tar is compressed."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class LayerTar:
    """A layer tar that is read once, from its beginning to its end.

    Attributes:
        chunks: its bytes.
        compression: how they are compressed.
    """

    chunks: Iterator[bytes]
    compression: Compression


def open_layer_tar(
    source: Path, status: os.stat_result, *, latest_ns: int | None = None
) -> LayerTar:
    """The tar that *source* is, or becomes; nothing is read yet.

    Args:
        source: a directory or a layer tar.
        status: of *source*.
        latest_ns: files of a directory that are newer get this time, in nanoseconds since 1970.

    Raises:
        PackError: it is neither; from the chunks, too: it cannot be read, or changes meanwhile.
    """
    if stat.S_ISDIR(status.st_mode):
        return LayerTar(_directory_tar(os.fsencode(source), latest_ns), Compression.NONE)
    if not stat.S_ISREG(status.st_mode):
        raise PackError(f"{source}: neither a directory nor a layer tar")
    return LayerTar(_content(os.fsencode(source), status), _compression_of(source))


def _compression_of(path: Path) -> Compression:
    """Tell by its first bytes how a layer tar is compressed."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    skippable_frame = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    if head.startswith(b"\x28\xb5\x2f\xfd") or skippable_frame:
        return Compression.ZSTD
    if head == bytes(tarfile.BLOCKSIZE):  # a tar without members begins with its end
        return Compression.NONE
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise PackError(
            f"{path}: not a layer tar, neither plain nor compressed with gzip or zstd: {error}"
        ) from error
    return Compression.NONE


# The layer tar of a directory


@dataclass(frozen=True, slots=True)
class _Entry:
    """Something in the source directory.

    Attributes:
        path: where it is, for messages.
        name: its path below the source; ``.`` is the source itself.
        place: where it is found, good until the next entry.
        status: its ``lstat``.
        xattrs: its extended attributes, those of overlayfs included.
    """

    path: bytes
    name: bytes
    place: Place
    status: os.stat_result
    xattrs: dict[str, bytes]

    @property
    def mode(self) -> int:
        return self.status.st_mode

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs hides a file of the layers below by this."""
        if stat.S_ISCHR(self.mode):
            return self.status.st_rdev == os.makedev(0, 0)
        return stat.S_ISREG(self.mode) and self.overlay_xattr("whiteout") is not None

    @property
    def is_opaque(self) -> bool:
        """Whether overlayfs hides what the layers below have in this directory."""
        return self.overlay_xattr("opaque") == b"y"

    def overlay_xattr(self, key: str) -> bytes | None:
        """The value of an attribute in which overlayfs keeps its own notes."""
        values = (self.xattrs.get(namespace + key) for namespace in _OVERLAY_NAMESPACES)
        return next((value for value in values if value is not None), None)


class _HardLinks:
    """The names by which files of several names were written first.

    A file is forgotten with its last name, so that this stays small as long as the links lead
    to files within the source.
    """

    def __init__(self) -> None:
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._names_left: dict[tuple[int, int], int] = {}

    def first_name(self, entry: _Entry) -> bytes | None:
        """The name that *entry*'s file was written by before; None when this is the first."""
        if entry.status.st_nlink == 1 or stat.S_ISDIR(entry.mode):
            return None
        file = (entry.status.st_dev, entry.status.st_ino)
        first = self._first_names.get(file)
        if first is None:
            self._first_names[file] = entry.name
            self._names_left[file] = entry.status.st_nlink - 1
            return None
        self._names_left[file] -= 1
        if self._names_left[file] <= 0:
            del self._first_names[file], self._names_left[file]
        return first


def _directory_tar(root: bytes, latest_ns: int | None) -> Iterator[bytes]:
    """The layer tar of the directory *root*: parents first, names in the order of their bytes."""
    links = _HardLinks()
    for entry in _entries(root):
        if stat.S_ISSOCK(entry.mode):
            _log.warning("%s: is a socket and is left out", os.fsdecode(entry.path))
            continue
        if entry.is_whiteout:
            directory, _, name = entry.name.rpartition(b"/")
            yield header(_marker(_join(directory, WHITEOUT_PREFIX + name)))
            continue
        _refuse_incomplete(entry)
        yield from _member(entry, links.first_name(entry), latest_ns)
        if stat.S_ISDIR(entry.mode) and entry.is_opaque:
            yield header(_marker(_join(entry.name, OPAQUE_MARKER)))
    yield END_OF_ARCHIVE


def _member(entry: _Entry, first_name: bytes | None, latest_ns: int | None) -> Iterator[bytes]:
    info = _described(entry, latest_ns)
    if first_name is not None:
        info.type, info.linkname = tarfile.LNKTYPE, _text(first_name)
        yield header(info)
    elif stat.S_ISREG(entry.mode):
        info.size = entry.status.st_size
        yield header(info)
        yield from _content(entry.path, entry.status, entry.place)
        yield padding(info.size)
    else:
        _set_type(info, entry)
        yield header(info)


def _set_type(info: tarfile.TarInfo, entry: _Entry) -> None:
    match stat.S_IFMT(entry.mode):
        case stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
        case stat.S_IFLNK:
            info.type = tarfile.SYMTYPE
            with _reading(entry.path):
                info.linkname = _text(entry.place.link())
        case stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
        case stat.S_IFCHR | stat.S_IFBLK as kind:
            info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            info.devmajor = os.major(entry.status.st_rdev)
            info.devminor = os.minor(entry.status.st_rdev)
        case kind:
            raise PackError(f"{os.fsdecode(entry.path)}: files of type {kind:o} fit in no tar")


def _described(entry: _Entry, latest_ns: int | None) -> tarfile.TarInfo:
    """A header with what files of every type have."""
    mtime_ns = entry.status.st_mtime_ns
    return described(
        entry.name,
        mode=stat.S_IMODE(entry.mode),
        owner=(entry.status.st_uid, entry.status.st_gid),
        mtime_ns=mtime_ns if latest_ns is None else min(mtime_ns, latest_ns),
        xattrs={
            name.encode(): value
            for name, value in entry.xattrs.items()
            if not name.startswith(_OVERLAY_NAMESPACES) and name != _SELINUX_LABEL
        },
    )


def _decimal_seconds(nanoseconds: int) -> str:
    """Seconds with a fraction, as PAX has them: before 1970 they count backwards."""
    seconds, fraction = divmod(abs(nanoseconds), _NANOSECONDS)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{seconds}.{fraction:09}".rstrip("0")


def _refuse_incomplete(entry: _Entry) -> None:
    """Refuse what is only complete together with the layers below this overlay's upper one."""
    for key in ("redirect", "metacopy"):
        if entry.overlay_xattr(key) is not None:
            raise PackError(
                f"{os.fsdecode(entry.path)}: has the attribute overlay.{key}: its content is in "
                f"another layer; mount the overlay with redirect_dir=off,metacopy=off"
            )


def _entries(root: bytes) -> Iterator[_Entry]:
    """Read the directory *root*, in which others may be able to write."""

    def refuse(name: bytes, error: OSError) -> None:
        raise PackError(
            f"cannot read {os.fsdecode(_path(root, name))}: {error.strerror}"
        ) from error

    with ExitStack() as stack:
        with _reading(root):
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        # What is mounted below the directory belongs to it, as for other archivers.
        directories = stack.enter_context(closing(Directories(descriptor, crosses_mounts=True)))
        for file in directories.files(refuse):
            yield _read_entry(root, file)


def _read_entry(root: bytes, file: File) -> _Entry:
    path = _path(root, file.path)
    if file.path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
        raise PackError(
            f"{os.fsdecode(path)}: in a layer, names that begin with .wh. mean removed files"
        )
    with _reading(path):
        return _Entry(path, file.path, file.place, file.state, _xattrs(file.place, path))


def _xattrs(place: Place, shown_path: bytes) -> dict[str, bytes]:
    path = place.path()
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {
        _xattr_name(shown_path, name): os.getxattr(path, name, follow_symlinks=False)
        for name in names
    }


def _xattr_name(path: bytes, name: str) -> str:
    """The name of an attribute as a PAX keyword, which has to be UTF-8 and ends at a ``=``."""
    try:
        keyword = os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        keyword = "="
    if "=" in keyword:
        raise PackError(f"{os.fsdecode(path)}: the extended attribute {name!r} fits in no tar")
    return keyword


def _content(path: bytes, status: os.stat_result, place: Place | None = None) -> Iterator[bytes]:
    """Yield the content of a regular file, which must stay as its *status* says.

    It is opened at *place*, or else at *path*.
    """
    with _reading(path), os.fdopen(_open(path, place), "rb", buffering=0) as file:
        left = status.st_size
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
        after = os.fstat(file.fileno())
    if left or _state(after) != _state(status):
        raise PackError(f"{os.fsdecode(path)}: changed while it was packed")


def _open(path: bytes, place: Place | None) -> int:
    if place is not None:
        return place.open()
    # Should there meanwhile be a link or a fifo: follow no link and wait for no fifo's writer.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_size, status.st_mtime_ns


@contextmanager
def _reading(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from error


# Tar


def _marker(name: bytes) -> tarfile.TarInfo:
    return regular(_text(name), 0)


def regular(name: str, size: int) -> tarfile.TarInfo:
    """A regular file of which nothing is said but its name and size: root's, of 1970, 0644."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def described(
    path: bytes,
    *,
    mode: int,
    owner: tuple[int, int],
    mtime_ns: int,
    xattrs: Mapping[bytes, bytes],
) -> tarfile.TarInfo:
    """Return a member with what files of every type have: a regular file without content.

    The names of *xattrs* have to be UTF-8 without ``=``.
    """
    info = tarfile.TarInfo(_text(path))
    info.mode = mode
    info.uid, info.gid = owner
    info.mtime = mtime_ns // _NANOSECONDS
    info.pax_headers = {
        f"SCHILY.xattr.{_text(name)}": _text(value) for name, value in sorted(xattrs.items())
    }
    if mtime_ns % _NANOSECONDS:
        info.pax_headers["mtime"] = _decimal_seconds(mtime_ns)
    return info


def header(info: tarfile.TarInfo) -> bytes:
    """The blocks that begin the member that *info* describes."""
    # TarFile would remember every member that it wrote.
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What follows a content of *size* bytes, so that the next header begins with a block."""
    return bytes(-size % tarfile.BLOCKSIZE)


def _path(root: bytes, name: bytes) -> bytes:
    return root if name == b"." else _join(root, name)


def _join(directory: bytes, name: bytes) -> bytes:
    return name if directory in {b"", b"."} else directory.removesuffix(b"/") + b"/" + name


def _text(value: bytes) -> str:
    """*value* as tarfile wants it; its bytes come back when the header is encoded."""
    return value.decode("utf-8", "surrogateescape")
