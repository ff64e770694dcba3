"""The layers by which readers of tar are compared, one for each point where they could differ."""

from __future__ import annotations

import gzip
import struct
import tarfile
from typing import TYPE_CHECKING, Final

from hostile.cases import padded, pax, pax_record, raw_entry
from layermanager.testing.layers import END_OF_ARCHIVE, LayerBuilder, compress

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIME: Final = 1_700_000_000_123_456_789
_ACL: Final = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 0x01, 7, 0xFFFFFFFF, 0x02, 4, 1234, 0x04, 5, 0xFFFFFFFF),
    *(0x10, 5, 0xFFFFFFFF, 0x20, 5, 0xFFFFFFFF),
)
_OLD_SPARSE_MAP: Final = (
    b"00002000000\00000000001000\00000004000000\00000000000000\0"
    + bytes(2 * 24)
    + b"\0"
    + b"00004000000\0"
)
_CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def _layer() -> LayerBuilder:
    return LayerBuilder()


def _sparse(major: int, minor: int) -> bytes:
    """A file of 1 MiB with 512 bytes in the middle of a hole, as GNU tar says it in PAX."""
    size, at = 1024 * 1024, 512 * 1024
    data = b"x" * 512
    if (major, minor) == (1, 0):
        content = padded(b"2\n%d\n512\n%d\n0\n" % (at, size)) + data
        records = [
            pax_record(b"GNU.sparse.major", b"1"),
            pax_record(b"GNU.sparse.minor", b"0"),
            pax_record(b"GNU.sparse.name", b"file"),
            pax_record(b"GNU.sparse.realsize", b"%d" % size),
        ]
        return pax(*records) + raw_entry(b"GNUSparseFile.0/file", content) + END_OF_ARCHIVE
    records = [pax_record(b"GNU.sparse.size", b"%d" % size)]
    if minor == 0:
        records += [
            pax_record(b"GNU.sparse.numblocks", b"2"),
            pax_record(b"GNU.sparse.offset", b"%d" % at),
            pax_record(b"GNU.sparse.numbytes", b"512"),
            pax_record(b"GNU.sparse.offset", b"%d" % size),
            pax_record(b"GNU.sparse.numbytes", b"0"),
        ]
    else:
        records += [
            pax_record(b"GNU.sparse.name", b"file"),
            pax_record(b"GNU.sparse.numblocks", b"2"),
            pax_record(b"GNU.sparse.map", b"%d,512,%d,0" % (at, size)),
        ]
    return pax(*records) + raw_entry(b"file", data) + END_OF_ARCHIVE


PLAIN: Final[Mapping[str, bytes]] = {
    "all kinds of files": _layer()
    .directory("d", mode=0o1777, uid=1, gid=2, mtime_ns=_TIME)
    .file("d/file", b"content", mode=0o4751, uid=3, gid=4, mtime_ns=_TIME)
    .symlink("d/link", "nowhere", uid=5, gid=6, mtime_ns=_TIME)
    .fifo("d/fifo", mode=0o622, mtime_ns=_TIME)
    .character_device("d/null", 1, 3, mode=0o666, mtime_ns=_TIME)
    .block_device("d/disk", 7, 1, mode=0o660, mtime_ns=_TIME)
    .tar(),
    "names that are not UTF-8": _layer()
    .file(b"\xff\xfe caf\xe9", b"1", mtime_ns=_TIME)
    .file(b"new\nline\\", b"2", mtime_ns=_TIME)
    .tar(),
    "long names by PAX": _layer()
    .directory("n" * 120)
    .file("n" * 120 + "/" + "m" * 200, b"1")
    .symlink("link", "t" * 300)
    .tar(),
    "long names by GNU tar": LayerBuilder(tarfile.GNU_FORMAT)
    .directory("n" * 120)
    .file("n" * 120 + "/" + "m" * 200, b"1")
    .symlink("link", "t" * 300)
    .tar(),
    "a global PAX header": pax(pax_record(b"mtime", b"1600000000"), typeflag=b"g")
    + raw_entry(b"one", b"1")
    + pax(pax_record(b"mtime", b"1500000000"))
    + raw_entry(b"two", b"2")
    + raw_entry(b"three", b"3")
    + END_OF_ARCHIVE,
    "hard links": _layer()
    .file("file", b"1", mtime_ns=_TIME)
    .hardlink("again", "file", mtime_ns=_TIME)
    .hardlink("third", "again", mtime_ns=_TIME)
    .tar(),
    "a hard link to a symlink": _layer()
    .symlink("link", "nowhere", mtime_ns=_TIME)
    .hardlink("again", "link", mode=0o777, mtime_ns=_TIME)
    .tar(),
    "a hard link to a fifo": _layer()
    .fifo("fifo", mtime_ns=_TIME)
    .hardlink("again", "fifo", mtime_ns=_TIME)
    .tar(),
    "a hard link before its file": _layer().hardlink("again", "file").file("file", b"1").tar(),
    "a hard link with other attributes": _layer()
    .file("file", b"1", mode=0o600, mtime_ns=_TIME)
    .hardlink("again", "file", mode=0o755, uid=7, mtime_ns=_TIME + 5_000_000_000)
    .tar(),
    "extended attributes": _layer()
    .file("file", b"1", mtime_ns=_TIME, xattrs={"user.a": b"\0\xff\n", "trusted.b": b"2"})
    .tar(),
    "file capabilities": _layer()
    .file("file", b"1", uid=9, mtime_ns=_TIME, xattrs={"security.capability": _CAPABILITY})
    .tar(),
    "an access control list": _layer()
    .file("file", b"1", mode=0o755, mtime_ns=_TIME, xattrs={"system.posix_acl_access": _ACL})
    .tar(),
    "times of directories": _layer()
    .directory("d", mtime_ns=_TIME)
    .directory("d/e", mode=0o555, mtime_ns=_TIME)
    .file("d/e/file", b"1", mtime_ns=_TIME)
    .file("d/late", b"2", mtime_ns=_TIME)
    .tar(),
    "directories that are not listed": _layer().file("a/b/file", b"1", mtime_ns=_TIME).tar(),
    "a file twice": _layer()
    .file("file", b"1", mode=0o600, xattrs={"user.a": b"1"})
    .file("file", b"22", mode=0o644)
    .tar(),
    "a file, then a directory": _layer().file("x", b"1").directory("x").file("x/y", b"2").tar(),
    "an empty directory, then a file": _layer().directory("x").file("x", b"1").tar(),
    "a full directory, then a file": _layer()
    .directory("x")
    .file("x/y", b"1")
    .file("x", b"2")
    .tar(),
    "a full directory, then a symlink": _layer()
    .directory("x")
    .file("x/y", b"1")
    .symlink("x", "z")
    .tar(),
    "a symlink, then a directory": _layer()
    .directory("z")
    .symlink("x", "z")
    .directory("x", mode=0o700)
    .file("x/y", b"1")
    .tar(),
    "a directory twice": _layer()
    .directory("x", mode=0o700, xattrs={"user.a": b"1"})
    .file("x/y", b"1")
    .directory("x", mode=0o755)
    .tar(),
    "one name of a hard link replaced": _layer()
    .file("a", b"1")
    .hardlink("b", "a")
    .file("a", b"2")
    .tar(),
    "a path through a symlink": _layer().directory("z").symlink("x", "z").file("x/y", b"1").tar(),
    "an absolute name": _layer().directory("d").file("/d/file", b"1").tar(),
    "a name with dots and slashes": _layer().directory("./d/").file("./d//./file", b"1").tar(),
    "a name with ..": _layer().directory("d").file("d/../file", b"1").tar(),
    "a sparse file by GNU tar": raw_entry(
        b"file",
        b"x" * 512,
        b"S",
        magic=b"ustar  \0",
        size=b"00000001000\0",
        rest=bytes(41) + _OLD_SPARSE_MAP,
    )
    + END_OF_ARCHIVE,
    "a sparse file by PAX 0.0": _sparse(0, 0),
    "a sparse file by PAX 0.1": _sparse(0, 1),
    "a sparse file by PAX 1.0": _sparse(1, 0),
    "a volume label": raw_entry(b"label", b"", b"V", magic=b"ustar  \0")
    + _layer().file("file", b"1", mtime_ns=_TIME).members()
    + END_OF_ARCHIVE,
    "an incremental archive": raw_entry(b"d/", b"Yfile\0\0", b"D", magic=b"ustar  \0")
    + raw_entry(b"d/file", b"1")
    + END_OF_ARCHIVE,
    "the continuation of a volume": raw_entry(b"file", b"1", b"M", magic=b"ustar  \0")
    + END_OF_ARCHIVE,
    "the owner -2 in base 256": raw_entry(
        b"file", b"1", uid=b"\xff" * 7 + b"\xfe", gid=b"\xff" * 7 + b"\xfe"
    )
    + END_OF_ARCHIVE,
    "an SELinux label": _layer()
    .file(
        "file", b"1", mtime_ns=_TIME, xattrs={"security.selinux": b"system_u:object_r:etc_t:s0\0"}
    )
    .tar(),
    "user attributes of a symlink": _layer()
    .symlink("link", "nowhere", mtime_ns=_TIME, xattrs={"user.a": b"1"})
    .tar(),
    "a default access control list": _layer()
    .directory("d", mtime_ns=_TIME, xattrs={"system.posix_acl_default": _ACL})
    .file("d/file", b"1", mode=0o755, mtime_ns=_TIME)
    .directory("d/sub", mode=0o750, mtime_ns=_TIME)
    .tar(),
    "no end": _layer().file("file", b"1").members(),
    "one block of zeros at the end": _layer().file("file", b"1").members() + bytes(512),
    "one block of zeros amid": _layer().file("a", b"1").members()
    + bytes(512)
    + _layer().file("b", b"1").tar(),
    "an entry after the end": _layer().file("a", b"1").tar() + _layer().file("b", b"1").tar(),
    "garbage after the end": _layer().file("a", b"1").tar() + b"garbage" * 300,
    "a wrong checksum": _layer().file("a", b"1").members()
    + raw_entry(b"b", b"1", chksum=b"000001\0 ")
    + END_OF_ARCHIVE,
    "a file cut off": (_layer().file("a", b"1" * 5000).members())[:2000],
    "a directory with a size": raw_entry(b"d", b"", b"5", size=b"00000001000\0")
    + raw_entry(b"file", b"1")
    + END_OF_ARCHIVE,
}

_SHORT: Final = _layer().file("file", b"1").tar()
_LONG: Final = _layer().file("file", b"1" * 3000).tar()
COMPRESSED: Final[Mapping[str, bytes]] = {
    "two gzip members": gzip.compress(_LONG[:700]) + gzip.compress(_LONG[700:]),
    "zeros after the gzip": gzip.compress(_SHORT) + bytes(512),
    "garbage after the gzip": gzip.compress(_SHORT) + b"garbage",
    "a cut gzip": gzip.compress(_SHORT)[:-6],
    "two zstd frames": compress(_LONG[:700], "zstd") + compress(_LONG[700:], "zstd"),
}

_BASE: Final = (
    _layer()
    .directory("d", mtime_ns=_TIME)
    .file("d/old", b"1", mtime_ns=_TIME)
    .directory("d/sub", mtime_ns=_TIME)
    .file("d/sub/old", b"1", mtime_ns=_TIME)
    .file("file", b"1", mtime_ns=_TIME)
    .tar()
)

OVER_A_BASE: Final[Mapping[str, tuple[bytes, bytes]]] = {
    name: (_BASE, layer.tar())
    for name, layer in {
        "a file removed": _layer().whiteout("file"),
        "a directory removed": _layer().whiteout("d"),
        "removed and made anew": _layer().whiteout("file").file("file", b"2", mtime_ns=_TIME),
        "made anew and removed": _layer().file("file", b"2", mtime_ns=_TIME).whiteout("file"),
        "a directory removed and made anew": _layer()
        .whiteout("d")
        .directory("d", mtime_ns=_TIME)
        .file("d/new", b"2", mtime_ns=_TIME),
        "a directory made anew and removed": _layer()
        .directory("d", mtime_ns=_TIME)
        .file("d/new", b"2", mtime_ns=_TIME)
        .whiteout("d"),
        "opaque, then content": _layer()
        .directory("d", mtime_ns=_TIME)
        .opaque("d")
        .file("d/new", b"2", mtime_ns=_TIME),
        "content, then opaque": _layer()
        .directory("d", mtime_ns=_TIME)
        .file("d/new", b"2", mtime_ns=_TIME)
        .opaque("d"),
        "the root opaque": _layer().opaque(".").file("new", b"2", mtime_ns=_TIME),
        "the root opaque, and a whiteout": _layer()
        .opaque(".")
        .whiteout("d/old")
        .file("new", b"2", mtime_ns=_TIME),
        "a whiteout, and the root opaque": _layer()
        .directory("d", mtime_ns=_TIME)
        .whiteout("d/old")
        .opaque("."),
        "a directory removed as old umoci did": _layer().whiteout("d").whiteout("d/d"),
        "a directory removed as old umoci did, in the other order": _layer()
        .whiteout("d/d")
        .whiteout("d"),
        "a whiteout in a directory that is removed": _layer().whiteout("d").whiteout("d/sub/old"),
        "what is not there removed": _layer().whiteout("nothing"),
        "bookkeeping of AUFS": _layer().file(".wh..wh.plnk", b"").directory(".wh..wh.orph"),
        "a file over a directory": _layer().file("d", b"2", mtime_ns=_TIME),
        "a directory over a file": _layer().directory("file", mtime_ns=_TIME),
        "other attributes of a directory": _layer().directory("d", mode=0o700, mtime_ns=_TIME),
    }.items()
}
