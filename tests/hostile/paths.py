"""Names that lead out of the layer, or that no file system and no person can read."""

from __future__ import annotations

import tarfile
from typing import Final

from hostile.cases import OUTSIDE, SECRET, Case, Refusal, layer, pax, pax_record, raw_entry
from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.testing.layers import LayerBuilder

_LEADS_OUT: Final = Refusal(ArchiveError, "path leads out of the layer")

_TRAVERSAL: Final = (
    Case("parent directory", layer().file("../secret", b"x").tar, _LEADS_OUT),
    Case("two parent directories", layer().file("../../secret", b"x").tar, _LEADS_OUT),
    Case("parents after names", layer().file("a/b/../../../../secret", b"x").tar, _LEADS_OUT),
    Case("parents that stay inside", layer().file("a/../b", b"x").tar, _LEADS_OUT),
    Case("parent as the last name", layer().directory("a/..").tar, _LEADS_OUT),
    Case("parent with a slash", layer().directory("../").tar, _LEADS_OUT),
    Case("only the parent", layer().directory("..").tar, _LEADS_OUT),
    Case("parent after a dot", layer().file("./../../secret", b"x").tar, _LEADS_OUT),
    Case("parent after a slash", layer().file("/../../secret", b"x").tar, _LEADS_OUT),
    Case("parent between slashes", layer().file("a//..//..//secret", b"x").tar, _LEADS_OUT),
    Case("parent of a file", layer().file("a").file("a/../b").tar, _LEADS_OUT),
    Case("symlink above", layer().symlink("../link", "secret").tar, _LEADS_OUT),
    Case("hard link above", layer().file("a").hardlink("../../link", "a").tar, _LEADS_OUT),
    Case("fifo above", layer().fifo("../fifo").tar, _LEADS_OUT),
    Case("device above", layer().character_device("../null", 1, 3).tar, _LEADS_OUT),
    Case("whiteout above", layer().whiteout("../../secret").tar, _LEADS_OUT),
    Case("opaque directory above", layer().opaque("../../directory").tar, _LEADS_OUT),
    Case(
        "parent in a PAX path",
        layer().file("a", b"x", pax={"path": "../../secret"}).tar,
        _LEADS_OUT,
    ),
    Case(
        "parent in a global PAX path",
        layer()
        .raw(pax(pax_record(b"path", b"../../secret"), typeflag=b"g"))
        .raw(raw_entry(b"a", b"x"))
        .tar,
        _LEADS_OUT,
    ),
    Case(
        "parent in a GNU long name",
        layer().raw(raw_entry(b"L", b"../../secret\0", b"L")).raw(raw_entry(b"a", b"x")).tar,
        _LEADS_OUT,
    ),
    Case(
        "parent in the ustar prefix",
        layer().raw(raw_entry(b"secret", b"x", prefix=b"../..")).tar,
        _LEADS_OUT,
    ),
    Case(
        "parent put together from prefix and name",
        layer().raw(raw_entry(b"./secret", b"x", prefix=b"a/..")).tar,
        _LEADS_OUT,
    ),
    Case(
        "parent in the name of a sparse file",
        layer().file("a", b"", pax={"GNU.sparse.name": "../../secret"}).tar,
        _LEADS_OUT,
    ),
)

_INSIDE: Final = (
    Case(
        "absolute name of a file outside",
        layer().file(SECRET, b"mine").tar,
        {
            **{
                "/".join(OUTSIDE.split("/")[1 : count + 2]): "directory"
                for count in range(OUTSIDE.count("/"))
            },
            SECRET[1:]: "file mine",
        },
    ),
    Case(
        "slashes at the beginning",
        layer().raw(raw_entry(b"///etc/passwd", b"mine")).tar,
        {"etc": "directory", "etc/passwd": "file mine"},
    ),
    Case("three dots", layer().file(".../a").tar, {"...": "directory", ".../a": "file"}),
    Case("dots and a blank", layer().file(".. /a").tar, {".. ": "directory", ".. /a": "file"}),
    Case(
        "backslashes",
        layer().file("..\\..\\secret", b"x").tar,
        {"..\\..\\secret": "file x"},
    ),
    Case(
        "slashes that are none, in overlong UTF-8",
        layer().file(b"..\xc0\xaf..\xc0\xafsecret", b"x").tar,
        {"..\udcc0\udcaf..\udcc0\udcafsecret": "file x"},
    ),
    Case("percent escapes", layer().file("%2e%2e%2fsecret").tar, {"%2e%2e%2fsecret": "file"}),
    Case("newline", layer().file("a\nb").tar, {"a\nb": "file"}),
    Case("only a newline", layer().file("\n").tar, {"\n": "file"}),
    Case("control bytes", layer().file(b"\x01\x1b[2J\x7f").tar, {"\x01\x1b[2J\x7f": "file"}),
    Case(
        "bytes that are no UTF-8", layer().file(b"\xff\xfe\x80").tar, {"\udcff\udcfe\udc80": "file"}
    ),
    Case(
        "half a surrogate pair", layer().file(b"\xed\xa0\x80").tar, {"\udced\udca0\udc80": "file"}
    ),
    Case("right-to-left override", layer().file("a\u202egpj.sh").tar, {"a\u202egpj.sh": "file"}),
    Case(
        "two spellings of one letter",
        layer().file("\u00e9", b"one").file("e\u0301", b"two").tar,
        {"\u00e9": "file one", "e\u0301": "file two"},
    ),
    Case(
        "names that a shell would act upon",
        layer().file("-rf *").file("$(reboot)").tar,
        {"-rf *": "file", "$(reboot)": "file"},
    ),
    Case("slash after a file's name", layer().raw(raw_entry(b"a/", b"x")).tar, {"a": "file x"}),
    Case(
        "dots between the names",
        layer().file("./a/./b/././c", b"x").tar,
        {"a": "directory", "a/b": "directory", "a/b/c": "file x"},
    ),
    Case(
        "bytes after the NUL of a name",
        layer().raw(raw_entry(b"a\0/../../../secret", b"x")).tar,
        {"a": "file x"},
    ),
    Case(
        "bytes after the NUL of a long name",
        layer().raw(raw_entry(b"L", b"a\0../../secret", b"L")).raw(raw_entry(b"b", b"x")).tar,
        {"a": "file x"},
    ),
)

_NO_NAMES: Final = (
    Case("no name", layer().raw(raw_entry(b"")).tar, Refusal(ArchiveError, "root is a file")),
    Case("file as the root", layer().file("./").tar, Refusal(ArchiveError, "root is a file")),
    Case(
        "symlink as the root",
        layer().symlink(".", OUTSIDE).tar,
        Refusal(ArchiveError, "root is a symlink"),
    ),
    Case(
        "symlink as the root, by slashes",
        layer().symlink("//", OUTSIDE).tar,
        Refusal(ArchiveError, "root is a symlink"),
    ),
    Case(
        "hard link as the root",
        layer().file("a").hardlink("/", "a").tar,
        Refusal(ArchiveError, "root is a hard link"),
    ),
    Case("fifo as the root", layer().fifo(".").tar, Refusal(ArchiveError, "root is a fifo")),
    Case(
        "NUL in a PAX path",
        layer().raw(pax(pax_record(b"path", b"a\0b"))).raw(raw_entry(b"c")).tar,
        Refusal(ArchiveError, "NUL byte"),
    ),
    Case(
        "NUL in a PAX link",
        layer().raw(pax(pax_record(b"linkpath", b"a\0b"))).raw(raw_entry(b"c", b"", b"2")).tar,
        Refusal(ArchiveError, "NUL byte"),
    ),
    Case(
        "NUL in the name of a sparse file",
        layer().raw(pax(pax_record(b"GNU.sparse.name", b"a\0b"))).raw(raw_entry(b"c")).tar,
        Refusal(ArchiveError, "NUL byte"),
    ),
)

_LENGTHS: Final = (
    Case("longest name", layer().file("n" * 255).tar, {"n" * 255: "file"}),
    Case(
        "name that is too long",
        layer().file("n" * 256).tar,
        Refusal(ArchiveError, "File name too long"),
    ),
    Case(
        "directory whose name is too long",
        layer().file("d" * 256 + "/a").tar,
        Refusal(ArchiveError, "File name too long"),
    ),
    Case(
        "whiteout of a name that is too long",
        layer().whiteout("n" * 256).tar,
        Refusal(ArchiveError, "File name too long"),
    ),
    Case(
        "path that is too long",
        layer().file("/".join(["d" * 200] * 21) + "/a").tar,
        Refusal(LimitExceededError, "path longer than 4096 bytes"),
    ),
    Case(
        "one name that is longer than a path",
        layer().file("n" * 5000).tar,
        Refusal(ArchiveError, "File name too long"),
    ),
    Case(
        "path that is too long, in a GNU long name",
        LayerBuilder(tarfile.GNU_FORMAT).file("/".join(["d" * 200] * 21) + "/a").tar,
        Refusal(LimitExceededError, "path longer than 4096 bytes"),
    ),
    Case(
        "path that is too deep",
        layer().file("d/" * 257 + "a").tar,
        Refusal(LimitExceededError, "path deeper than 256"),
    ),
    Case(
        "path that symlinks make too deep",
        layer()
        .symlink("one", "d/" * 200)
        .file("one/a")
        .symlink("two", "one/" + "d/" * 200)
        .file("two/a")
        .tar,
        Refusal(LimitExceededError, "path deeper than 256"),
    ),
    Case(
        "path that symlinks make too long",
        layer()
        .symlink("one", f"{'d' * 250}/" * 12)
        .file("one/a")
        .symlink("two", "one/" + f"{'d' * 250}/" * 12)
        .file("two/a")
        .tar,
        Refusal(LimitExceededError, "path longer than 4096 bytes"),
    ),
    Case(
        "slashes without end",
        layer().file("a" + "/" * 5000 + "b").tar,
        Refusal(LimitExceededError, "path longer than 4096 bytes"),
    ),
)

CASES: Final = (*_TRAVERSAL, *_INSIDE, *_NO_NAMES, *_LENGTHS)
