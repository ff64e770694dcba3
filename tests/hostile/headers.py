"""Headers that lie, contradict themselves, or are no headers."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from hostile.cases import Case, Refusal, base256, layer, pax, pax_record, raw_entry
from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.model import Limits
from layermanager.testing.layers import END_OF_ARCHIVE, header_block

if TYPE_CHECKING:
    from pathlib import Path

    from hostile.cases import Check

_NO_NUMBER: Final = Refusal(ArchiveError, "a header field is no number")
_NO_DECIMAL: Final = Refusal(ArchiveError, "a header record is no decimal number")
_SIZE: Final = Refusal(ArchiveError, "impossible size")
_OWNER: Final = Refusal(ArchiveError, "impossible owner")
_DEVICE: Final = Refusal(ArchiveError, "impossible device")
_RECORD: Final = Refusal(ArchiveError, "malformed PAX record")
_CHECKSUM: Final = Refusal(ArchiveError, "wrong header checksum")
_NUL: Final = Refusal(ArchiveError, "NUL byte")
_WITHIN_ENTRY: Final = Refusal(ArchiveError, "the tar ends within this entry")


def _mode_is(mode: int) -> Check:
    def check(place: Path) -> None:
        assert stat.S_IMODE((place / "a").lstat().st_mode) == mode

    return check


def _owner_is(owner: tuple[int, int]) -> Check:
    def check(place: Path) -> None:
        status = (place / "a").lstat()
        assert (status.st_uid, status.st_gid) == owner

    return check


def _time_is(nanoseconds: int) -> Check:
    def check(place: Path) -> None:
        assert (place / "a").lstat().st_mtime_ns == nanoseconds

    return check


def _xattrs_are(xattrs: dict[str, bytes]) -> Check:
    def check(place: Path) -> None:
        path = place / "a"
        found = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        assert found == xattrs

    return check


def _pax_file(*records: tuple[bytes, bytes]) -> bytes:
    """A layer of one file ``a``, with PAX records that were made by hand."""
    header = pax(*(pax_record(key, value) for key, value in records))
    return header + raw_entry(b"a", b"hello") + END_OF_ARCHIVE


def _field(typeflag: bytes = b"0", **fields: bytes) -> bytes:
    """A layer of one entry ``a`` with header fields that were made by hand."""
    return header_block(b"a", typeflag, **fields) + END_OF_ARCHIVE


_NUMBERS: Final = (
    Case("size with a sign", lambda: _field(size=b"+0000000007\0"), _NO_NUMBER),
    Case("size with a minus", lambda: _field(size=b"-0000000007\0"), _NO_NUMBER),
    Case("size as Python writes octals", lambda: _field(size=b"0o17\0"), _NO_NUMBER),
    Case("size with an underscore", lambda: _field(size=b"1_0\0"), _NO_NUMBER),
    Case("size in hexadecimal", lambda: _field(size=b"0x10\0"), _NO_NUMBER),
    Case("size with an 8", lambda: _field(size=b"00000000008\0"), _NO_NUMBER),
    Case("size with a blank inside", lambda: _field(size=b"1 0\0"), _NO_NUMBER),
    Case("size with a newline", lambda: _field(size=b"\n10\0"), _NO_NUMBER),
    Case("size in Arabic digits", lambda: _field(size="1\u0661\u0662".encode()), _NO_NUMBER),
    Case("size in superscript digits", lambda: _field(size=b"\x31\xc2\xb2\0"), _NO_NUMBER),
    Case("size with a dot", lambda: _field(size=b"1.0\0"), _NO_NUMBER),
    Case("mode of letters", lambda: _field(mode=b"rwxr-xr\0"), _NO_NUMBER),
    Case("owner of letters", lambda: _field(uid=b"root\0"), _NO_NUMBER),
    Case("time with a sign", lambda: _field(mtime=b"+1\0"), _NO_NUMBER),
    Case("negative binary size", lambda: _field(size=b"\xff" * 12), _SIZE),
    Case("smallest binary size", lambda: _field(size=b"\xc0" + bytes(11)), _SIZE),
    Case("largest binary size", lambda: _field(size=b"\xbf" + b"\xff" * 11), _SIZE),
    Case("size of 2^63", lambda: _field(size=base256(2**63, 12)), _SIZE),
    Case(
        "size of 2^63 - 1",
        lambda: _field(size=base256(2**63 - 1, 12)),
        Refusal(LimitExceededError, "unpackedBytes"),
    ),
    Case("negative binary owner", lambda: _field(uid=b"\xff" * 8), _OWNER),
    Case("owner of 2^32 - 1", lambda: _field(uid=base256(2**32 - 1, 8)), _OWNER),
    Case("group of 2^32 - 1", lambda: _field(gid=base256(2**32 - 1, 8)), _OWNER),
    Case("owner of 2^32", lambda: _field(uid=base256(2**32, 8)), _OWNER),
    Case("group of 2^55", lambda: _field(gid=base256(2**55, 8)), _OWNER),
    Case(
        "largest owner",
        lambda: _field(uid=base256(2**32 - 2, 8), gid=base256(2**32 - 2, 8)),
        {"a": "file"},
        also=(_owner_is((2**32 - 2, 2**32 - 2)),),
        needs_root=True,
    ),
    Case(
        "mode bits beyond the permissions",
        lambda: _field(mode=b"7777644\0"),
        {"a": "file"},
        also=(_mode_is(0o7644),),
    ),
    Case(
        "negative binary mode",
        lambda: _field(mode=b"\xff" * 8),
        {"a": "file"},
        also=(_mode_is(0o7777),),
    ),
    # The disk holds the nearest that it can.
    Case("time before everything", lambda: _field(mtime=b"\xc0" + bytes(11)), {"a": "file"}),
    Case("time after everything", lambda: _field(mtime=b"\xbf" + b"\xff" * 11), {"a": "file"}),
    Case(
        "time of the largest number",
        lambda: _pax_file((b"mtime", b"9223372036854775807")),
        {"a": "file hello"},
    ),
    Case(
        "time before 1970",
        lambda: _field(mtime=base256(-1, 12)),
        {"a": "file"},
        also=(_time_is(-1_000_000_000),),
    ),
    Case("major number out of range", lambda: _field(b"3", devmajor=b"0010000\0"), _DEVICE),
    Case("minor number out of range", lambda: _field(b"3", devminor=b"4000000\0"), _DEVICE),
    Case("negative device number", lambda: _field(b"4", devminor=b"\xff" * 8), _DEVICE),
    Case("device number of letters", lambda: _field(b"3", devmajor=b"sda\0"), _NO_NUMBER),
    Case(
        "largest device number",
        lambda: _field(b"3", devmajor=b"0007777\0", devminor=b"3777777\0"),
        {"a": "character device 4095:1048575"},
        needs_root=True,
    ),
)

_CHECKSUMS: Final = (
    Case("no checksum", lambda: _field(chksum=bytes(8)), _CHECKSUM),
    Case("wrong header checksum", lambda: _field(chksum=b"0000001\0"), _CHECKSUM),
    Case("negative checksum", lambda: _field(chksum=b"\xff" * 8), _CHECKSUM),
    Case("checksum that is no number", lambda: _field(chksum=b"checksum"), _NO_NUMBER),
    Case("no tar at all", lambda: b"this is no tar".ljust(2048, b"\n"), _NO_NUMBER),
    Case("bytes of 0xff", lambda: b"\xff" * 2048, _CHECKSUM),
    Case(
        "entry damaged after its checksum was made",
        lambda: _field().replace(b"0000644", b"0004755", 1),
        _CHECKSUM,
    ),
)

_ENDS: Final = (
    Case("nothing", lambda: b"", {}),
    Case("only the end", lambda: END_OF_ARCHIVE, {}),
    Case("one zero block", lambda: bytes(512), {}),
    Case("one byte", lambda: b"\0", Refusal(ArchiveError, "the tar ends within a header")),
    Case(
        "half a header",
        lambda: header_block(b"a")[:300],
        Refusal(ArchiveError, "the tar ends within a header"),
    ),
    Case(
        "zero block before more entries",
        lambda: raw_entry(b"a") + bytes(512) + raw_entry(b"b") + END_OF_ARCHIVE,
        Refusal(ArchiveError, "a lone zero block"),
    ),
    Case(
        "entries after the end",
        lambda: raw_entry(b"a") + END_OF_ARCHIVE + raw_entry(b"../../secret", b"x"),
        {"a": "file"},
    ),
    Case("without an end", lambda: raw_entry(b"a", b"x"), {"a": "file x"}),
    Case("content cut", lambda: raw_entry(b"a", b"x" * 2000)[:1000], _WITHIN_ENTRY),
    Case("large content cut", lambda: raw_entry(b"a", bytes(600_000))[:400_000], _WITHIN_ENTRY),
    Case("padding cut", lambda: raw_entry(b"a", b"x")[:-1], _WITHIN_ENTRY),
    Case(
        "size of more than there is",
        lambda: _field(size=b"00000100000\0"),
        _WITHIN_ENTRY,
    ),
    Case(
        "size of less than there is",
        lambda: raw_entry(b"a", b"x" * 1024, size=b"00000000001\0") + END_OF_ARCHIVE,
        _NO_NUMBER,
    ),
    Case(
        "size that makes content a header",
        lambda: raw_entry(b"a", raw_entry(b"../../secret"), size=b"00000000000\0"),
        Refusal(ArchiveError, "path leads out of the layer"),
    ),
    Case(
        "extended header cut",
        lambda: pax(pax_record(b"path", b"x" * 1000))[:1024],
        Refusal(ArchiveError, "the tar ends within an extended header"),
    ),
    Case(
        "extended header without its entry",
        lambda: pax(pax_record(b"path", b"x")) + END_OF_ARCHIVE,
        Refusal(ArchiveError, "ends after an extended header"),
    ),
    Case(
        "long name without its entry",
        lambda: raw_entry(b"L", b"x" * 200, b"L"),
        Refusal(ArchiveError, "ends after an extended header"),
    ),
)

_PAX: Final = (
    Case("record that is longer than it says", lambda: _records(b"5 a=bc\n"), _RECORD),
    Case("record that is shorter than it says", lambda: _records(b"9 a=b\n"), _RECORD),
    Case("record of length 0", lambda: _records(b"0 a=b\n"), _RECORD),
    Case("record of its length only", lambda: _records(b"2 "), _RECORD),
    Case("record with a length of letters", lambda: _records(b"six a=b\n"), _NO_DECIMAL),
    Case("record with a negative length", lambda: _records(b"-6 a=b\n"), _NO_DECIMAL),
    Case("record with a signed length", lambda: _records(b"+7 a=b\n"), _NO_DECIMAL),
    Case("record with an enormous length", lambda: _records(b"9" * 19 + b" a=b\n"), _RECORD),
    Case("record with a length without end", lambda: _records(b"9" * 5000), _NO_DECIMAL),
    Case("record without a blank", lambda: _records(b"6a=b\n"), _NO_DECIMAL),
    Case("record without an equals sign", lambda: _records(b"5 ab\n"), _RECORD),
    Case("record without a key", lambda: _records(b"5 =b\n"), _RECORD),
    Case("record without a newline", lambda: _records(b"5 a=b"), _RECORD),
    Case("zeros after the records", lambda: _records(b"6 a=b\n\0\0\0"), _NO_DECIMAL),
    Case("record with a NUL in its key", lambda: _pax_file((b"a\0b", b"c")), _NUL),
    Case("xattr with a NUL in its name", lambda: _pax_file((b"SCHILY.xattr.user.\0", b"c")), _NUL),
    Case("path twice", lambda: _pax_file((b"path", b"../x"), (b"path", b"b")), {"b": "file hello"}),
    Case(
        "path and its withdrawal",
        lambda: _pax_file((b"path", b"../x"), (b"path", b"")),
        {"a": "file hello"},
    ),
    Case(
        "path in two headers",
        lambda: pax(pax_record(b"path", b"../x")) + _pax_file((b"path", b"b")),
        {"b": "file hello"},
    ),
    Case(
        "path and long name",
        lambda: raw_entry(b"L", b"b\0", b"L") + _pax_file((b"path", b"../x")),
        {"b": "file hello"},
    ),
    Case(
        "size twice",
        lambda: _pax_file((b"size", b"99999999"), (b"size", b"5")),
        {"a": "file hello"},
    ),
    Case(
        "size that contradicts the header", lambda: _pax_file((b"size", b"4")), {"a": "file hell"}
    ),
    Case("negative size", lambda: _pax_file((b"size", b"-1")), _NO_DECIMAL),
    Case("size in exponents", lambda: _pax_file((b"size", b"5e0")), _NO_DECIMAL),
    Case("size of 2^64 + 5", lambda: _pax_file((b"size", b"18446744073709551621")), _SIZE),
    Case("size of many digits", lambda: _pax_file((b"size", b"1" * 5000)), _NO_DECIMAL),
    Case(
        "owner of -1",
        lambda: _pax_file((b"uid", b"-1")),
        Refusal(ArchiveError, "impossible owner -1"),
    ),
    Case("owner of 4294967295", lambda: _pax_file((b"uid", b"4294967295")), _OWNER),
    Case("owner of 4294967296", lambda: _pax_file((b"gid", b"4294967296")), _OWNER),
    Case("owner in Arabic digits", lambda: _pax_file((b"uid", "\u0661".encode())), _NO_DECIMAL),
    Case(
        "owner's name of another number",
        lambda: _pax_file((b"uname", b"nobody"), (b"gname", b"nogroup")),
        {"a": "file hello"},
        also=(_owner_is((0, 0)),),
        needs_root=True,
    ),
    Case(
        "time of letters",
        lambda: _pax_file((b"mtime", b"now")),
        Refusal(ArchiveError, "is no time"),
    ),
    Case(
        "time that is no number",
        lambda: _pax_file((b"mtime", b"nan")),
        Refusal(ArchiveError, "is no time"),
    ),
    Case(
        "time with two dots",
        lambda: _pax_file((b"mtime", b"1.2.3")),
        Refusal(ArchiveError, "is no time"),
    ),
    Case(
        "time of many digits",
        lambda: _pax_file((b"mtime", b"1" * 400)),
        Refusal(ArchiveError, "is no time"),
    ),
    Case(
        "time of many digits after the dot",
        lambda: _pax_file((b"mtime", b"1." + b"1" * 4000)),
        {"a": "file hello"},
        also=(_time_is(1_111_111_111),),
    ),
    Case(
        "unknown records",
        lambda: _pax_file((b"hdrcharset", b"BINARY"), (b"exec", b"/bin/sh")),
        {"a": "file hello"},
    ),
    Case(
        "global records for all entries",
        lambda: (
            pax(pax_record(b"path", b"b"), typeflag=b"g") + raw_entry(b"a") + raw_entry(b"c", b"x")
        ),
        {"b": "file x"},
    ),
    Case(
        "global header alone",
        lambda: pax(pax_record(b"comment", b"x"), typeflag=b"g") + END_OF_ARCHIVE,
        {},
    ),
)

_CHAINS: Final = (
    Case(
        "long names one after the other",
        lambda: raw_entry(b"L", b"b\0", b"L") * 5000 + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "long links one after the other",
        lambda: raw_entry(b"K", b"b\0", b"K") * 5000 + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "PAX headers one after the other",
        lambda: pax(pax_record(b"a", b"b")) * 5000 + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "empty PAX headers one after the other",
        lambda: pax() * 5000 + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "global headers one after the other",
        lambda: pax(typeflag=b"g") * 5000 + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "global headers before every entry",
        lambda: b"".join(
            pax(*(pax_record(b"%d-%d" % (number, key), b"x") for key in range(2000)), typeflag=b"g")
            + raw_entry(b"a")
            for number in range(200)
        ),
        Refusal(LimitExceededError, "global headers"),
    ),
    Case(
        "many global records for many entries",
        lambda: (
            pax(*(pax_record(b"%d" % key, b"x") for key in range(50_000)), typeflag=b"g")
            + raw_entry(b"a") * 10_000
        ),
        Refusal(LimitExceededError, "global headers"),
    ),
    Case(
        "long name that is too large",
        lambda: header_block(b"L", b"L", size=b"00010000000\0"),
        Refusal(LimitExceededError, "headerBytes: 1048576"),
    ),
    Case(
        "long name of a negative size",
        lambda: header_block(b"L", b"L", size=b"\xff" * 12),
        Refusal(ArchiveError, "extended header of an impossible size"),
    ),
    Case(
        "PAX header of an enormous size",
        lambda: header_block(b"x", b"x", size=base256(2**62, 12)),
        Refusal(LimitExceededError, "headerBytes"),
    ),
    Case(
        "empty long name",
        lambda: raw_entry(b"L", b"", b"L") + raw_entry(b"a"),
        {"a": "file"},
    ),
    Case(
        "headers of every kind for one entry",
        lambda: (
            raw_entry(b"L", b"b\0", b"L")
            + pax(pax_record(b"linkpath", b"x"))
            + raw_entry(b"K", b"target\0", b"K")
            + pax(pax_record(b"comment", b"x"), typeflag=b"g")
            + raw_entry(b"a", b"", b"2")
        ),
        {"b": "symlink to target"},
    ),
)

_TYPES: Final = (
    *(
        Case(
            f"entry of the unknown kind {typeflag!r}",
            layer().raw(raw_entry(b"a", b"", typeflag)).tar,
            Refusal(ArchiveError, "unknown kind of tar entry"),
        )
        for typeflag in (b"8", b"N", b"A", b"X", b"\n", b"\xff", b" ")
    ),
    Case("label of a volume", layer().raw(raw_entry(b"a", b"", b"V")).tar, {}),
    Case(
        "directory of an incremental archive",
        layer().raw(raw_entry(b"a", b"", b"D")).tar,
        {"a": "directory"},
    ),
    Case(
        "continuation of another volume",
        layer().raw(raw_entry(b"a", b"", b"M")).tar,
        Refusal(ArchiveError, "archives of several volumes are not read"),
    ),
    Case("contiguous file", layer().raw(raw_entry(b"a", b"x", b"7")).tar, {"a": "file x"}),
    Case("kind from before POSIX", layer().raw(raw_entry(b"a", b"x", b"\0")).tar, {"a": "file x"}),
    Case(
        "directory from before POSIX",
        layer().raw(raw_entry(b"a/", b"", b"\0")).tar,
        {"a": "directory"},
    ),
    Case(
        "sizes of what has no content",
        lambda: (
            b"".join(
                header_block(name, typeflag, size=b"00000010000\0", linkname=b"x")
                for name, typeflag in ((b"a", b"2"), (b"b", b"5"), (b"c", b"6"))
            )
            + raw_entry(b"d", b"x")
        ),
        {"a": "symlink to x", "b": "directory", "c": "fifo", "d": "file x"},
    ),
    Case(
        "kind that changes by the PAX path",
        lambda: pax(pax_record(b"path", b"b/")) + raw_entry(b"a", b"", b"\0"),
        {"b": "directory"},
    ),
)


def _records(data: bytes) -> bytes:
    """A layer whose PAX header holds *data*."""
    return raw_entry(b"x", data, b"x") + raw_entry(b"a")


_OVERLAY: Final = (
    *(
        Case(
            f"overlayfs attribute {name}",
            layer().file("a", xattrs={name: b"y", "user.kept": b"yes"}).tar,
            {"a": "file"},
            also=(_xattrs_are({"user.kept": b"yes"}),),
        )
        for name in (
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "trusted.overlay.metacopy",
            "trusted.overlay.whiteout",
            "trusted.overlay.overlay.opaque",
            "user.overlay.opaque",
            "user.overlay.redirect",
        )
    ),
    Case(
        "opaque directory by an attribute",
        layer().directory("a", xattrs={"trusted.overlay.opaque": b"y"}).tar,
        {"a": "directory"},
        also=(_xattrs_are({}),),
    ),
    Case(
        "opaque directory by an attribute for users",
        layer().directory("a", xattrs={"user.overlay.opaque": b"y"}).tar,
        {"a": "directory"},
        also=(_xattrs_are({}),),
    ),
    Case(
        "opaque root by an attribute",
        layer().directory(".", xattrs={"trusted.overlay.opaque": b"y"}).tar,
        {},
    ),
    Case(
        "overlayfs attribute for all entries",
        lambda: (
            pax(pax_record(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"), typeflag=b"g")
            + raw_entry(b"a")
        ),
        {"a": "file"},
        also=(_xattrs_are({}),),
    ),
)

_ATTRIBUTES: Final = (
    Case(
        "attribute without a name",
        lambda: _pax_file((b"SCHILY.xattr.", b"x")),
        {"a": "file hello"},
        also=(_xattrs_are({}),),
    ),
    Case(
        "attribute of another system",
        lambda: _pax_file((b"SCHILY.xattr.com.apple.provenance", b"x")),
        {"a": "file hello"},
        also=(_xattrs_are({}),),
    ),
    Case(
        "attribute with a name that is too long",
        lambda: _pax_file((b"SCHILY.xattr.user." + b"n" * 300, b"x")),
        Refusal(ArchiveError, "nnn cannot be set here"),
    ),
    Case(
        "attributes that take too much",
        lambda: _pax_file((b"SCHILY.xattr.user.a", bytes(300_000))),
        Refusal(LimitExceededError, "xattrBytes: 262144"),
    ),
    Case(
        "too many small attributes",
        lambda: _pax_file(*((b"SCHILY.xattr.user.%06d" % key, b"x") for key in range(25_000))),
        Refusal(LimitExceededError, "xattrBytes: 262144"),
    ),
    Case(
        "attribute that is larger than Linux takes",
        lambda: _pax_file((b"SCHILY.xattr.user.a", bytes(70_000))),
        Refusal(ArchiveError, "user.a cannot be set here"),
    ),
    Case(
        "capabilities that are none",
        lambda: _pax_file((b"SCHILY.xattr.security.capability", b"all of them")),
        Refusal(ArchiveError, "security.capability cannot be set here"),
        needs_root=True,
    ),
    Case(
        "access control list that is none",
        lambda: _pax_file((b"SCHILY.xattr.system.posix_acl_access", b"everybody")),
        Refusal(ArchiveError, "system.posix_acl_access cannot be set here"),
        needs_root=True,
    ),
    Case(
        "user's attribute on a symlink",
        layer().symlink("a", "b", xattrs={"user.a": b"x"}).tar,
        {"a": "symlink to b"},
    ),
    Case(
        "user's attribute on a fifo",
        layer().fifo("a", xattrs={"user.a": b"x"}).tar,
        {"a": "fifo"},
    ),
    Case(
        "attribute twice",
        lambda: _pax_file((b"SCHILY.xattr.user.a", b"1"), (b"SCHILY.xattr.user.a", b"2")),
        {"a": "file hello"},
        also=(_xattrs_are({"user.a": b"2"}),),
    ),
    Case(
        "attribute of any bytes",
        lambda: _pax_file((b"SCHILY.xattr.user.\xff\n=", b"\0=\n\xff")),
        {"a": "file hello"},
        also=(_xattrs_are({"user.\udcff\n": b"=\0=\n\xff"}),),
    ),
    Case(
        "attributes of a whiteout",
        lambda: pax(pax_record(b"SCHILY.xattr.user.a", b"x")) + raw_entry(b".wh.a"),
        {"a": "whiteout"},
    ),
)

_PERMISSIONS: Final = (
    Case(
        "directory that nobody may enter, with files",
        layer().directory("a", mode=0).file("a/b", b"x").file("a/c/d", b"y").tar,
        {"a": "directory", "a/b": "file x", "a/c": "directory", "a/c/d": "file y"},
        also=(_mode_is(0),),
        needs_root=True,
    ),
    Case(
        "root that nobody may enter",
        layer().directory(".", mode=0).file("a", b"x").tar,
        {"a": "file x"},
        needs_root=True,
    ),
    Case(
        "setuid program of root",
        layer().file("a", b"x", mode=0o4755).tar,
        {"a": "file x"},
        also=(_mode_is(0o4755),),
    ),
    Case(
        "setgid directory",
        layer().directory("a", mode=0o2755, gid=5).file("a/b").directory("a/c").tar,
        {"a": "directory", "a/b": "file", "a/c": "directory"},
        also=(_mode_is(0o2755), lambda place: _assert_group(place / "a" / "c", 0)),
        needs_root=True,
    ),
    Case(
        "file without any permission, twice",
        layer().file("a", b"x", mode=0).file("a", b"y", mode=0).tar,
        {"a": "file y"},
        also=(_mode_is(0),),
        needs_root=True,
    ),
)


def _assert_group(path: Path, group: int) -> None:
    status = path.lstat()
    assert (status.st_gid, status.st_mode & stat.S_ISGID) == (group, 0)


_MANY: Final = (
    Case(
        "more entries than allowed",
        lambda: raw_entry(b"a") * 101,
        Refusal(LimitExceededError, "more than 100 entries"),
        limits=Limits(entries=100),
    ),
    Case(
        "as many entries as allowed",
        lambda: raw_entry(b"a") * 100,
        {"a": "file"},
        limits=Limits(entries=100),
    ),
    Case(
        "more content than allowed",
        lambda: raw_entry(b"a", bytes(600)) + raw_entry(b"b", bytes(600)),
        Refusal(LimitExceededError, "unpackedBytes: 1000"),
        limits=Limits(unpacked_bytes=1000),
    ),
    Case(
        "more content than allowed, in one name",
        lambda: raw_entry(b"a", bytes(600)) * 2,
        Refusal(LimitExceededError, "unpackedBytes: 1000"),
        limits=Limits(unpacked_bytes=1000),
    ),
    Case(
        "more headers than allowed",
        lambda: pax(pax_record(b"comment", bytes(1000))) + raw_entry(b"a"),
        Refusal(LimitExceededError, "headerBytes: 1000"),
        limits=Limits(header_bytes=1000),
    ),
    Case(
        "more attributes than allowed",
        lambda: _pax_file((b"SCHILY.xattr.user.a", bytes(1000))),
        Refusal(LimitExceededError, "xattrBytes: 1000"),
        limits=Limits(xattr_bytes=1000),
    ),
    Case(
        "longer path than allowed",
        layer().file("abc/abc/abc").tar,
        Refusal(LimitExceededError, "path longer than 5 bytes"),
        limits=Limits(path_bytes=5),
    ),
    Case(
        "deeper path than allowed",
        layer().file("a/b/c/d").tar,
        Refusal(LimitExceededError, "path deeper than 2"),
        limits=Limits(path_depth=2),
    ),
)

CASES: Final = (
    *_NUMBERS,
    *_CHECKSUMS,
    *_ENDS,
    *_PAX,
    *_CHAINS,
    *_TYPES,
    *_OVERLAY,
    *_ATTRIBUTES,
    *_PERMISSIONS,
    *_MANY,
)
