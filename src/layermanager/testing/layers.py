"""Layers for tests, described member by member instead of kept as opaque files.

::

    tar = LayerBuilder().directory("etc").file("etc/motd", b"hello").whiteout("etc/gone").tar()
    blob = compress(tar, "gzip")
    package = build_package(blob)
    layer = desired(blob, "https://example.com/layer", package=package)

A package is a tar too, so that a bad one is built in the same words::

    doubled = descriptor(blob)
    LayerBuilder().file("layer.json", doubled).file("layer.json", doubled).tar()

Nothing here is checked and nothing shared with the code that packs: a test can say whatever a
hostile publisher could.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tarfile
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, TypedDict

from layermanager.model import DesiredLayer, Digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

Name: TypeAlias = str | bytes
"""A name in a tar: bytes, or a text that is encoded as UTF-8."""

END_OF_ARCHIVE: Final = bytes(2 * tarfile.BLOCKSIZE)
"""The two zero blocks that end a tar."""

_HEADER_FIELDS: Final = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "chksum": (148, 8),
    "typeflag": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
    "rest": (345, 167),
}
_HEADER_DEFAULTS: Final = {
    "mode": b"0000644\0",
    "uid": b"0000000\0",
    "gid": b"0000000\0",
    "size": b"00000000000\0",
    "mtime": b"00000000000\0",
    "magic": b"ustar\00000",
}


class Metadata(TypedDict, total=False):
    """What a member says about its file besides its name and content.

    Attributes:
        mode: permissions; 0o755 for directories and 0o644 for all else unless given.
        uid: the owner; root unless given.
        gid: the group; root unless given.
        mtime_ns: nanoseconds since 1970; 0 unless given.
        xattrs: extended attributes.
        pax: further PAX records; they win over those that the others would give.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]
    pax: Mapping[str, str]


class LayerBuilder:
    """Builds a tar from its members, in the order of the calls; every call returns the builder.

    Args:
        tar_format: ``tarfile.PAX_FORMAT``, ``GNU_FORMAT`` or ``USTAR_FORMAT``. Only PAX can say
            fractions of a second and extended attributes; the others leave them out.
    """

    def __init__(self, tar_format: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> None:
        self._tar_format = tar_format
        self._parts: list[bytes] = []

    def directory(self, name: Name, **metadata: Unpack[Metadata]) -> Self:
        """Add a directory; ``.`` is the root of the layer."""
        return self._add(tarfile.DIRTYPE, name, metadata, mode=0o755)

    def file(self, name: Name, content: bytes = b"", **metadata: Unpack[Metadata]) -> Self:
        """Add a regular file."""
        return self._add(tarfile.REGTYPE, name, metadata, content=content)

    def symlink(self, name: Name, target: Name, **metadata: Unpack[Metadata]) -> Self:
        """Add a symbolic link to *target*."""
        return self._add(tarfile.SYMTYPE, name, metadata, link_target=target, mode=0o777)

    def hardlink(self, name: Name, target: Name, **metadata: Unpack[Metadata]) -> Self:
        """Add another name of the member *target*."""
        return self._add(tarfile.LNKTYPE, name, metadata, link_target=target)

    def character_device(
        self, name: Name, major: int, minor: int, **metadata: Unpack[Metadata]
    ) -> Self:
        """Add a character device."""
        return self._add(tarfile.CHRTYPE, name, metadata, device=(major, minor))

    def block_device(
        self, name: Name, major: int, minor: int, **metadata: Unpack[Metadata]
    ) -> Self:
        """Add a block device."""
        return self._add(tarfile.BLKTYPE, name, metadata, device=(major, minor))

    def fifo(self, name: Name, **metadata: Unpack[Metadata]) -> Self:
        """Add a fifo."""
        return self._add(tarfile.FIFOTYPE, name, metadata)

    def whiteout(self, name: Name) -> Self:
        """Add the marker that removes *name* of the layers below."""
        directory, slash, last = _bytes(name).rpartition(b"/")
        return self.file(directory + slash + b".wh." + last)

    def opaque(self, directory: Name) -> Self:
        """Add the marker that hides what the layers below have in *directory*."""
        return self.file(_bytes(directory) + b"/.wh..wh..opq")

    def member(self, info: tarfile.TarInfo, content: bytes = b"") -> Self:
        """Add a header made by hand, and *content* whatever size the header says."""
        self._parts.append(info.tobuf(self._tar_format, "utf-8", "surrogateescape"))
        self._parts.append(content + bytes(-len(content) % tarfile.BLOCKSIZE))
        return self

    def raw(self, data: bytes) -> Self:
        """Add bytes as they are, such as a hand-made or damaged header block."""
        self._parts.append(data)
        return self

    def members(self) -> bytes:
        """The tar without its end, as one that breaks off between two members."""
        return b"".join(self._parts)

    def tar(self) -> bytes:
        """The complete tar."""
        return self.members() + END_OF_ARCHIVE

    def _add(
        self,
        kind: bytes,
        name: Name,
        metadata: Metadata,
        *,
        content: bytes = b"",
        link_target: Name = b"",
        device: tuple[int, int] = (0, 0),
        mode: int = 0o644,
    ) -> Self:
        info = tarfile.TarInfo(_text(name))
        info.type = kind
        info.size = len(content)
        info.linkname = _text(link_target)
        info.devmajor, info.devminor = device
        info.mode = metadata.get("mode", mode)
        info.uid, info.gid = metadata.get("uid", 0), metadata.get("gid", 0)
        seconds, nanoseconds = divmod(metadata.get("mtime_ns", 0), 10**9)
        info.mtime = seconds
        info.pax_headers = {
            **({"mtime": _decimal(seconds, nanoseconds)} if nanoseconds else {}),
            **{
                f"SCHILY.xattr.{key}": _text(value)
                for key, value in metadata.get("xattrs", {}).items()
            },
            **metadata.get("pax", {}),
        }
        return self.member(info, content)


def header_block(name: bytes, typeflag: bytes = b"0", **fields: bytes) -> bytes:
    """A header block made by hand, for what ``tarfile`` would never write.

    Args:
        name: the first field.
        typeflag: the kind of the member.
        fields: other fields by the names of POSIX (``mode``, ``size``, ``linkname``, ``magic``,
            ``prefix``…) and ``rest`` for all from ``prefix`` on; one that is not given is what a
            plain empty file of root has. ``chksum`` is right unless given.
    """
    values = {"name": name, "typeflag": typeflag, **_HEADER_DEFAULTS, **fields}
    block = bytearray(tarfile.BLOCKSIZE)
    for field, (start, size) in _HEADER_FIELDS.items():
        value = values.get(field, b"")
        block[start : start + len(value[:size])] = value[:size]
    if "chksum" not in fields:
        block[148:156] = b"%06o\0 " % (sum(block) + 8 * ord(" "))
    return bytes(block)


def compress(data: bytes, compression: Literal["gzip", "zstd", "none"]) -> bytes:
    """*data* as one gzip member, as one zstd frame, or as it is."""
    match compression:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "zstd":
            if sys.version_info >= (3, 14):
                from compression import zstd  # noqa: PLC0415 - only who wants zstd needs it
            else:
                from backports import zstd  # noqa: PLC0415 - likewise
            return zstd.compress(data)


def digest_of(blob: bytes) -> Digest:
    """The digest that a layer of this *blob* is known by."""
    return Digest(f"sha256:{hashlib.sha256(blob).hexdigest()}")


def descriptor(blob: bytes, changes: Mapping[str, object] | None = None) -> bytes:
    """The ``layer.json`` of *blob*, with *changes* to its members; None takes a member away."""
    members: dict[str, object] = {
        "mediaType": "application/vnd.aos.image.layer.v1.tar+gzip",
        "digest": digest_of(blob),
        "size": len(blob),
        **(changes or {}),
    }
    return json.dumps({key: value for key, value in members.items() if value is not None}).encode()


def build_package(blob: bytes, changes: Mapping[str, object] | None = None) -> bytes:
    """The Aos package of *blob*, a plain tar, with *changes* to the members of its descriptor."""
    return (
        LayerBuilder()
        .file("layer.json", descriptor(blob, changes))
        .file(digest_of(blob).encoded, blob)
        .tar()
    )


def desired(
    blob: bytes,
    url: str,
    *,
    package: bytes | None = None,
    layer_id: str = "layer",
    version: str = "1.0.0",
) -> DesiredLayer:
    """The desired entry of *blob*, which *url* holds in *package* or, without one, as it is."""
    return DesiredLayer(
        digest=digest_of(blob),
        url=url,
        layer_id=layer_id,
        version=version,
        sha256=b"" if package is None else hashlib.sha3_256(package).digest(),
        size=len(blob if package is None else package),
    )


def _decimal(seconds: int, nanoseconds: int) -> str:
    """Seconds and a positive fraction as one decimal number, which may be negative."""
    if seconds < 0:
        return f"-{-seconds - 1}.{10**9 - nanoseconds:09}"
    return f"{seconds}.{nanoseconds:09}"


def _bytes(name: Name) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def _text(name: Name) -> str:
    return _bytes(name).decode("utf-8", "surrogateescape")
