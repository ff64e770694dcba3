"""Layer tars of nothing but directories."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from layermanager.pack.layer_tar import END_OF_ARCHIVE, decimal_seconds, header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layermanager.implied import MergedDirectory

_NANOSECONDS = 10**9


def directories_tar(directories: Iterable[MergedDirectory]) -> bytes:
    """Return the layer tar that lists *directories*; the same ones give the same bytes.

    What no layer lists is not listed here, either.
    """
    listed = (header(_described(one)) for one in directories if one.is_listed)
    return b"".join((*listed, END_OF_ARCHIVE))


def _described(directory: MergedDirectory) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(directory.path))
    info.type = tarfile.DIRTYPE
    info.mode = directory.mode
    info.uid, info.gid = directory.owner
    info.mtime, fraction = divmod(directory.mtime_ns, _NANOSECONDS)
    info.pax_headers = {
        f"SCHILY.xattr.{_text(name)}": _text(value)
        for name, value in sorted(directory.xattrs.items())
    }
    if fraction:
        info.pax_headers["mtime"] = decimal_seconds(directory.mtime_ns)
    return info


def _text(value: bytes) -> str:
    """*value* as tarfile wants it; its bytes come back when the header is encoded."""
    return value.decode("utf-8", "surrogateescape")
