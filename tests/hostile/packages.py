"""Aos packages: descriptors that lie or cannot be read, and members that do not belong there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hostile.cases import (
    OUTSIDE,
    SECRET,
    Case,
    Files,
    Refusal,
    layer,
    pax,
    pax_record,
    raw_entry,
)
from layermanager.errors import ArchiveError, IntegrityError, LimitExceededError, PackageError
from layermanager.model import Limits
from layermanager.testing.layers import (
    LayerBuilder,
    build_package,
    compress,
    descriptor,
    digest_of,
    header_block,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOB: Final = compress(layer().file("a", b"x").tar(), "gzip")
DIGEST: Final = digest_of(_BLOB)
_NAME: Final = DIGEST.encoded
_NO_TAR: Final = b"<html>" * 200
_OTHER: Final = "sha256:" + "0" * 64
_UNPACKED: Final = {"a": "file x"}
_NO_PLAIN_FILE: Final = Refusal(PackageError, "in the package is no plain file")
_UNKNOWN: Final = Refusal(PackageError, "unknown member")


def _case(
    name: str,
    package: LayerBuilder,
    expected: Refusal | Files,
) -> Case:
    return Case(name, package.tar, expected, package_of=DIGEST)


def _described_by(name: str, document: bytes, expected: Refusal | Files) -> Case:
    """A package whose ``layer.json`` is *document*."""
    return _case(name, layer().file("layer.json", document).file(_NAME, _BLOB), expected)


def _with(**changes: object) -> bytes:
    return descriptor(_BLOB, changes)


def _honest() -> LayerBuilder:
    """A package that lacks its blob."""
    return layer().file("layer.json", descriptor(_BLOB))


def _complete() -> LayerBuilder:
    """A package that lacks nothing."""
    return _honest().file(_NAME, _BLOB)


_MEMBERS: Final = (
    _case(
        "package with the blob first",
        layer().file(_NAME, _BLOB).file("layer.json", descriptor(_BLOB)),
        _UNPACKED,
    ),
    _case(
        "package with dots in its names",
        layer().directory("./").file("./layer.json", descriptor(_BLOB)).file(f"./{_NAME}", _BLOB),
        _UNPACKED,
    ),
    _case("blob that is a symlink", _honest().symlink(_NAME, SECRET), _NO_PLAIN_FILE),
    _case("blob that is a hard link", _honest().hardlink(_NAME, SECRET), _NO_PLAIN_FILE),
    _case(
        "blob that is a hard link inside", _honest().hardlink(_NAME, "layer.json"), _NO_PLAIN_FILE
    ),
    _case("blob that is a directory", _honest().directory(_NAME), _NO_PLAIN_FILE),
    _case("blob that is a fifo", _honest().fifo(_NAME), _NO_PLAIN_FILE),
    _case("blob that is a device", _honest().block_device(_NAME, 8, 0), _NO_PLAIN_FILE),
    _case(
        "blob that is sparse",
        _honest().file(_NAME, b"", pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": "1000000"}),
        _NO_PLAIN_FILE,
    ),
    _case(
        "blob that is sparse in the old way",
        _honest().raw(header_block(_NAME.encode(), b"S", magic=b"ustar  \0")),
        _NO_PLAIN_FILE,
    ),
    _case(
        "descriptor that is a symlink", layer().symlink("layer.json", "/etc/shadow"), _NO_PLAIN_FILE
    ),
    _case(
        "descriptor that is a hard link",
        layer().file(_NAME, _BLOB).hardlink("layer.json", _NAME),
        _NO_PLAIN_FILE,
    ),
    _case("descriptor that is a directory", layer().directory("layer.json"), _NO_PLAIN_FILE),
    _case(
        "descriptor twice",
        _honest().file("layer.json", descriptor(_BLOB)),
        Refusal(PackageError, "holds layer.json twice"),
    ),
    _case(
        "blob twice",
        _complete().file(_NAME, _BLOB),
        Refusal(PackageError, "holds the blob twice"),
    ),
    _case("no blob", _honest(), Refusal(PackageError, "the package holds no blob")),
    _case(
        "no descriptor",
        layer().file(_NAME, _BLOB),
        Refusal(PackageError, "the package holds no layer.json"),
    ),
    _case("empty package", layer(), Refusal(PackageError, "the package holds no layer.json")),
    _case("member before the others", layer().file("a"), _UNKNOWN),
    _case("member after the others", _complete().file("a"), _UNKNOWN),
    _case("member above", _complete().file("../../secret", b"x"), _UNKNOWN),
    _case("member with an absolute name", _complete().file(SECRET, b"x"), _UNKNOWN),
    _case("symlink among the members", layer().symlink("a", OUTSIDE), _UNKNOWN),
    _case("directory among the members", layer().directory("a"), _UNKNOWN),
    _case("symlink as the package's root", layer().symlink(".", OUTSIDE), _UNKNOWN),
    _case("blob above", _honest().file(f"../{_NAME}", _BLOB), _UNKNOWN),
    _case("blob in a directory", _honest().file(f"a/{_NAME}", _BLOB), _UNKNOWN),
    _case("blob's name in capitals", _honest().file(_NAME.upper(), _BLOB), _UNKNOWN),
    _case("blob's name with its algorithm", _honest().file(str(DIGEST), _BLOB), _UNKNOWN),
    _case("blob's name with a newline", _honest().file(f"{_NAME}\n", _BLOB), _UNKNOWN),
    _case("descriptor's name in capitals", layer().file("Layer.json", b"{}"), _UNKNOWN),
    _case(
        "names that terminals would act upon",
        layer().file("\x1b[2J\n\u202e"),
        Refusal(PackageError, r"unknown member \x1b[2J\n\u202e in the package"),
    ),
    _case("whiteout in the package", layer().whiteout("layer.json"), _UNKNOWN),
    _case(
        "member of an unknown kind",
        layer().raw(raw_entry(b"a", b"", b"8")),
        Refusal(ArchiveError, "the package: a: unknown kind of tar entry"),
    ),
    _case(
        "traversal by a PAX header",
        _honest().raw(pax(pax_record(b"path", b"../../secret"))).raw(raw_entry(b"a", b"x")),
        _UNKNOWN,
    ),
    _case(
        "global header that names every member like the blob",
        layer()
        .raw(pax(pax_record(b"path", _NAME.encode()), typeflag=b"g"))
        .file("a", _BLOB)
        .file("layer.json", descriptor(_BLOB)),
        Refusal(PackageError, "holds the blob twice"),
    ),
)

_DESCRIPTORS: Final = (
    _described_by("empty descriptor", b"", Refusal(PackageError, "layer.json: not JSON")),
    _described_by(
        "descriptor of no JSON", b"digest", Refusal(PackageError, "layer.json: not JSON")
    ),
    _described_by(
        "descriptor of no text", b"\xff\x00", Refusal(PackageError, "layer.json: not JSON")
    ),
    _described_by(
        "descriptor in UTF-16", _with().decode().encode("utf-16"), Refusal(PackageError, "not JSON")
    ),
    _described_by(
        "descriptor in UTF-32", _with().decode().encode("utf-32"), Refusal(PackageError, "not JSON")
    ),
    _described_by("descriptor that is cut", _with()[:-1], Refusal(PackageError, "not JSON")),
    _described_by("descriptor and more", _with() + b"{}", Refusal(PackageError, "not JSON")),
    _described_by("descriptor that is a list", b"[]", Refusal(PackageError, "expected an object")),
    _described_by("descriptor that is a number", b"1", Refusal(PackageError, "expected an object")),
    _described_by("descriptor of nothing", b"{}", Refusal(PackageError, "digest: is missing")),
    _described_by(
        "deep descriptor",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        Refusal(PackageError, "nested too deeply"),
    ),
    _described_by(
        "deep list in the descriptor", b"[" * 60_000, Refusal(PackageError, "nested too deeply")
    ),
    _described_by(
        "large descriptor",
        _with(annotations={"a": "x" * 70_000}),
        Refusal(PackageError, "layer.json is larger than 65536 bytes"),
    ),
    _described_by(
        "descriptor of a large header",
        b" " * 65_536,
        Refusal(PackageError, "not JSON"),
    ),
    _described_by(
        "digest twice",
        _with()[:-1] + b', "digest": "' + _OTHER.encode() + b'"}',
        Refusal(PackageError, "'digest' occurs twice"),
    ),
    _described_by(
        "thousands of keys, the last one twice",
        b"{" + b",".join(b'"%d":0' % min(key, 5999) for key in range(6001)) + b"}",
        Refusal(PackageError, "occurs twice"),
    ),
    _described_by(
        "digest that is null",
        _with()[:-1].replace(b'"sha256:' + _NAME.encode() + b'"', b"null") + b"}",
        Refusal(PackageError, "digest: is missing"),
    ),
    _described_by(
        "digest that is a number", _with(digest=5), Refusal(PackageError, "digest: expected a text")
    ),
    _described_by(
        "digest that is a list",
        _with(digest=[str(DIGEST)]),
        Refusal(PackageError, "digest: expected a text"),
    ),
    _described_by(
        "digest of another layer",
        _with(digest=_OTHER),
        Refusal(IntegrityError, "digest in layer.json"),
    ),
    _described_by(
        "digest in capitals",
        _with(digest=DIGEST.upper()),
        Refusal(IntegrityError, "digest in layer.json"),
    ),
    _described_by(
        "digest that is a path",
        _with(digest="sha256:../../secret"),
        Refusal(IntegrityError, "digest in layer.json"),
    ),
    _described_by(
        "digest without a colon",
        _with(digest=_NAME),
        Refusal(IntegrityError, "digest in layer.json"),
    ),
    _described_by(
        "digest with a NUL",
        _with(digest=f"{DIGEST}\0"),
        Refusal(PackageError, "digest: holds U"),
    ),
    _described_by(
        "digest with half a surrogate pair",
        _with(digest="\ud800"),
        Refusal(PackageError, "digest: holds U"),
    ),
    _described_by(
        "digest of many letters",
        _with(digest="x" * 60_000),
        Refusal(IntegrityError, "digest in layer.json"),
    ),
    _described_by(
        "size of another", _with(size=len(_BLOB) + 1), Refusal(IntegrityError, "size in layer.json")
    ),
    _described_by("size without", _with(size=None), Refusal(PackageError, "size: is missing")),
    _described_by(
        "size that is negative", _with(size=-1), Refusal(PackageError, "size: must be at least 0")
    ),
    _described_by(
        "size that is a text",
        _with(size=str(len(_BLOB))),
        Refusal(PackageError, "size: expected an integer"),
    ),
    _described_by(
        "size that is a fraction",
        _with(size=float(len(_BLOB))),
        Refusal(PackageError, "size: expected an integer"),
    ),
    _described_by(
        "size that is true", _with(size=True), Refusal(PackageError, "size: expected an integer")
    ),
    _described_by(
        "size that is no number",
        _with(size=float("nan")),
        Refusal(PackageError, "NaN is no JSON number"),
    ),
    _described_by(
        "size that is infinite",
        _with(size=float("inf")),
        Refusal(PackageError, "Infinity is no JSON number"),
    ),
    _described_by(
        "size of 1e999",
        _with(size=5).replace(b": 5", b": 1e999"),
        Refusal(PackageError, "a number that is out of range: 1e999"),
    ),
    _described_by("size of 2^64", _with(size=2**64), Refusal(PackageError, "size: must be 0 to")),
    _described_by(
        "size of 4,000 digits",
        _with(size=5).replace(b": 5", b": " + b"9" * 4000),
        Refusal(PackageError, "a number of 4000 digits"),
    ),
    _described_by(
        "size of 60,000 digits",
        _with(size=5).replace(b": 5", b": " + b"9" * 60_000),
        Refusal(PackageError, "a number of 60000 digits"),
    ),
    _described_by(
        "platform that is a text",
        _with(platform="linux"),
        Refusal(PackageError, "platform: expected an object"),
    ),
    _described_by(
        "version that is a number",
        _with(platform={"os.version": 1}),
        Refusal(PackageError, "os.version: expected a text"),
    ),
    _described_by(
        "version with a NUL",
        _with(platform={"os.version": "1\0"}),
        Refusal(PackageError, "which is no character"),
    ),
    _described_by("media type that is a lie", _with(mediaType="text/plain"), _UNPACKED),
    _described_by("media type that is a number", _with(mediaType=5), _UNPACKED),
    _described_by(
        "descriptor with unknown keys", _with(urls=["file:///etc/shadow"], data="eA=="), _UNPACKED
    ),
    _described_by(
        "descriptor with a byte order mark",
        b"\xef\xbb\xbf" + _with(),
        _UNPACKED,
    ),
)


def _package(
    name: str, package: Callable[[], bytes], expected: Refusal | Files, limits: Limits | None = None
) -> Case:
    return Case(name, package, expected, limits=limits or Limits(), package_of=DIGEST)


_OUTSIDES: Final = (
    _package("package in gzip", lambda: compress(build_package(_BLOB), "gzip"), _UNPACKED),
    _package(
        "package in gzip in gzip",
        lambda: compress(compress(build_package(_BLOB), "gzip"), "gzip"),
        Refusal(ArchiveError, "the package: "),
    ),
    _package(
        "package that is cut in the blob",
        lambda: _complete().members()[:-500],
        Refusal(ArchiveError, "the tar ends within this entry"),
    ),
    _package(
        "package in gzip that is cut",
        lambda: compress(build_package(_BLOB), "gzip")[:-4],
        Refusal(ArchiveError, "the package: truncated gzip data"),
    ),
    _package(
        "package in gzip with garbage after it",
        lambda: compress(build_package(_BLOB), "gzip") + b"garbage",
        Refusal(ArchiveError, "the package: something else follows"),
    ),
    _package("layer as a package", layer().file("a", b"x").tar, _UNKNOWN),
    _package("nothing as a package", lambda: b"", Refusal(PackageError, "holds no layer.json")),
    _package("text as a package", lambda: b"<html>" * 200, Refusal(ArchiveError, "the package: ")),
    _package(
        "package with too many members",
        lambda: raw_entry(b"./", b"", b"5") * 101,
        Refusal(LimitExceededError, "the package: more than 100 entries"),
        Limits(entries=100),
    ),
    _package(
        "package with a large header",
        lambda: header_block(b"x", b"x", size=b"00010000000\0"),
        Refusal(LimitExceededError, "the package: extended headers"),
    ),
    _package(
        "package with a bomb after its end",
        lambda: compress(build_package(_BLOB) + bytes(100 * 1024 * 1024), "gzip"),
        Refusal(LimitExceededError, "compressionRatio"),
        Limits(compression_ratio=2),
    ),
    Case(
        "package whose blob is no tar",
        lambda: build_package(_NO_TAR),
        Refusal(ArchiveError, "a header field is no number"),
        package_of=digest_of(_NO_TAR),
    ),
)

CASES: Final = (*_MEMBERS, *_DESCRIPTORS, *_OUTSIDES)
