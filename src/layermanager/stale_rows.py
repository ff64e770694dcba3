"""Rows of cached layers that are gone, or that are being removed: they do not count.

On a full disk a layer is removed before its row (``LayerManager._remove``). Until the row is
deleted too, it is passed over by all who ask what is installed. Where the layer cannot even be
renamed, it is removed in its place, its index first: a row of a layer that this program installed,
without the index, is that of a layer of which any part may be missing.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layermanager.store import index_path

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

    from layermanager.model import Digest, LayerInfo


@dataclass(frozen=True, slots=True)
class StaleRows:
    """Tells which rows count.

    Attributes:
        layers_dir: holds the layers.
        index_dir: holds their indexes.
        footprints: returns the layers that this program has installed at some time; it is called
            only where a cached layer has no index.
    """

    layers_dir: Path
    index_dir: Path
    footprints: Callable[[], Container[Digest]]

    def without(self, rows: Iterable[LayerInfo]) -> tuple[LayerInfo, ...]:
        """Return those of *rows* that count, in their order."""
        here = [row for row in rows if not row.cached or self._has_directory(row.digest)]
        half_removed = self.half_removed(here)
        return tuple(row for row in here if row.digest not in half_removed)

    def half_removed(self, rows: Iterable[LayerInfo]) -> frozenset[Digest]:
        """Return the layers among *rows* whose removal began in their place and did not end."""
        bare = [row.digest for row in rows if row.cached and not self._has_index(row.digest)]
        if not bare:
            return frozenset()
        ours = self.footprints()
        return frozenset(digest for digest in bare if digest in ours)

    def _has_directory(self, digest: Digest) -> bool:
        return _is(stat.S_ISDIR, self.layers_dir / digest.algorithm / digest.encoded)

    def _has_index(self, digest: Digest) -> bool:
        return _is(stat.S_ISREG, index_path(self.index_dir, digest))


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    """Return whether a file of that kind is at *path*; one that cannot be told counts as there."""
    try:
        return kind(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
