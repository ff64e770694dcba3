"""Layer tars of nothing but directories."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from layermanager.pack.layer_tar import END_OF_ARCHIVE, described, header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layermanager.implied import MergedDirectory


def directories_tar(directories: Iterable[MergedDirectory]) -> bytes:
    """Return the layer tar that lists *directories*; the same ones give the same bytes.

    What no layer lists is not listed here, either.
    """
    listed = (header(_member(one)) for one in directories if one.is_listed)
    return b"".join((*listed, END_OF_ARCHIVE))


def _member(directory: MergedDirectory) -> tarfile.TarInfo:
    info = described(
        directory.path,
        mode=directory.mode,
        owner=directory.owner,
        mtime_ns=directory.mtime_ns,
        xattrs=directory.xattrs,
    )
    info.type = tarfile.DIRTYPE
    return info
