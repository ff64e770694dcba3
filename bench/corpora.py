"""Layers made of the machine's own files.

Which files are taken depends on what is there, and the table says how much it was; on one machine
it is the same each time. Real files compress, and spread in size and over directories, as those
of real layers do. Each layer is made once in a run.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import stat
import sys
import sysconfig
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from bench.layers import GZIP, QUICK_GZIP, compressing, in_zstd, read_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.layers import Compression, Layer
    from bench.setting import Setting

_ROOTS: Final = (Path("/usr/lib"), Path("/usr/share"))
_COMPRESSED: Final = frozenset((".gz", ".jar", ".png", ".whl", ".xz", ".zip", ".zst"))
_STDLIB: Final = Path(sysconfig.get_path("stdlib"))
_MTIME: Final = 1_700_000_000
_MEGABYTE: Final = 1_000_000

_MANY_FILES: Final = 17_000
_MANY_BYTES: Final = 200 * _MEGABYTE
_MANY_LARGEST_BYTES: Final = 4 * _MEGABYTE
_PACKAGE_DEPTH: Final = 5
_PACKAGE_LARGEST_FILES: Final = 500
_PARTS: Final = 4
_TWENTY: Final = 20
_FEW_FILES: Final = 10
_FEW_BYTES: Final = 250 * _MEGABYTE
_HUGE_BYTES: Final = 1024**3
_FEW_SMALLEST_SOURCE_BYTES: Final = 64 * 1024
_SMALL_FILES: Final = 20_000
_SMALL_BYTES: Final = 50 * _MEGABYTE
_LARGE_BYTES: Final = 100 * _MEGABYTE


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the layer: its name there, and the content."""

    name: PurePosixPath
    content: bytes


@cache
def many_files(setting: Setting) -> Layer:
    """About 17,000 files of 200 MB in all, as of a distribution or a language's packages."""
    return _build(setting.scratch / "many-files.tar.gz", _many_files(_MANY_FILES, _MANY_BYTES))


@cache
def many_files_in_zstd(setting: Setting) -> Layer:
    """The same, compressed by zstd."""
    return in_zstd(many_files(setting), setting.scratch)


@cache
def parts(setting: Setting) -> tuple[Layer, ...]:
    """Four layers, each of half as many files, and none in two of them."""
    return _split(setting, "part", _PARTS, _MANY_FILES // 2)


@cache
def twentieths(setting: Setting) -> tuple[Layer, ...]:
    """Twenty layers, among which the many files are divided."""
    return _split(setting, "twentieth", _TWENTY, _MANY_FILES // _TWENTY)


@cache
def few_files(setting: Setting) -> Layer:
    """Ten files of 250 MB in all: machine code, as of a large application or a model runtime."""
    return _build(setting.scratch / "few-files.tar.gz", _few_files(_FEW_BYTES))


@cache
def few_files_in_zstd(setting: Setting) -> Layer:
    """The same, compressed by zstd."""
    return in_zstd(few_files(setting), setting.scratch)


@cache
def huge_files(setting: Setting) -> Layer:
    """Ten files of a GiB in all, much more than an unpacker may have in memory."""
    return _build(setting.scratch / "huge-files.tar.gz", _few_files(_HUGE_BYTES), QUICK_GZIP)


@cache
def huge_files_in_zstd(setting: Setting) -> Layer:
    """The same, compressed by zstd."""
    return in_zstd(huge_files(setting), setting.scratch)


@cache
def small_files(setting: Setting, removed: tuple[PurePosixPath, ...]) -> Layer:
    """20,000 files of 50 MB in all, and the removal of what layers below have, as OCI marks it."""
    markers = (_File(path.with_name(f".wh.{path.name}"), b"") for path in removed)
    files = _many_files(_SMALL_FILES, _SMALL_BYTES)
    return _build(setting.scratch / "small-files.tar.gz", itertools.chain(markers, files))


@cache
def large_files(setting: Setting) -> Layer:
    """Ten files of 100 MB in all, of machine code."""
    return _build(setting.scratch / "large-files.tar.gz", _few_files(_LARGE_BYTES))


@cache
def one_file(setting: Setting) -> Layer:
    """A layer of one small file: what a build's last step often adds."""
    file = _File(PurePosixPath("etc", "application.conf"), b"[application]\nlevel = info\n")
    return _build(setting.scratch / "one-file.tar.gz", [file])


@cache
def nothing(setting: Setting) -> Layer:
    """A layer without any file."""
    return _build(setting.scratch / "nothing.tar.gz", ())


def _split(setting: Setting, name: str, count: int, size: int) -> tuple[Layer, ...]:
    """As many layers as *count*, each of *size* files."""
    files = _many_files(count * size, count * size * _MANY_BYTES // _MANY_FILES)
    return tuple(
        _build(setting.scratch / f"{name}-{number}.tar.gz", itertools.islice(files, size))
        for number in range(count)
    )


def _many_files(count: int, count_bytes: int) -> Iterator[_File]:
    """Packages in an order that mixes them, of *count* files and about *count_bytes* in all.

    What counts as a package is a directory at the depth of /usr/share/doc/NAME, with all below it;
    no one may set the tone, so that of the largest only a part is taken. Files that are compressed
    already are left out: documentation and icons, of which images have few.
    Where the machine has too few files they are taken again, under other names: gzip, whose
    window is small, cannot tell.
    """
    packages: dict[Path, list[Path]] = {}
    for path, size in _regular_files():
        package = packages.setdefault(Path(*path.parts[:_PACKAGE_DEPTH]), [])
        if (
            size <= _MANY_LARGEST_BYTES
            and path.suffix not in _COMPRESSED
            and len(package) < _PACKAGE_LARGEST_FILES
        ):
            package.append(path)
    mixed = sorted(packages, key=lambda path: hashlib.sha256(bytes(path)).digest())
    if not mixed:
        raise FileNotFoundError(f"no readable files below {_STDLIB} to make a layer of")
    files = total = 0
    for copy in itertools.count():
        for path in itertools.chain.from_iterable(packages[one] for one in mixed):
            content = path.read_bytes()
            if total + len(content) > count_bytes * (files + 1) / count + _MEGABYTE:
                continue  # we are ahead of the average: only smaller ones for a while
            yield _File(PurePosixPath(f"copy-{copy}", *path.parts[1:]), content)
            files += 1
            total += len(content)
            if files == count:
                return


def _few_files(total: int) -> Iterator[_File]:
    libraries = [
        path
        for path, size in _regular_files()
        if ".so" in path.name and size >= _FEW_SMALLEST_SOURCE_BYTES
    ]
    sources = itertools.cycle([*libraries, Path(sys.executable).resolve()])
    for number in range(_FEW_FILES):
        content = bytearray()
        while len(content) < total // _FEW_FILES:
            content += next(sources).read_bytes()
        name = PurePosixPath("opt", "application", f"part-{number}")
        yield _File(name, bytes(content[: total // _FEW_FILES]))


def _regular_files() -> Iterator[tuple[Path, int]]:
    """The readable files below the roots and their sizes, always in the same order."""
    for root in sorted({_STDLIB, *_ROOTS}):
        if any(other in root.parents for other in _ROOTS):
            continue
        for directory, subdirectories, names in os.walk(root):
            subdirectories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                    yield path, status.st_size


def _build(blob: Path, files: Iterable[_File], compression: Compression = GZIP) -> Layer:
    with (
        compressing(blob, compression) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        made: set[PurePosixPath] = set()
        for file in files:
            for directory in reversed(file.name.parents[:-1]):
                if directory not in made:
                    made.add(directory)
                    tar.addfile(_member(directory, tarfile.DIRTYPE, 0o755, 0))
            member = _member(file.name, tarfile.REGTYPE, 0o644, len(file.content))
            tar.addfile(member, io.BytesIO(file.content))
    return read_layer(blob, compression)


def _member(name: PurePosixPath, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(str(name))
    member.type = kind
    member.mode = mode
    member.size = size
    member.mtime = _MTIME
    return member
