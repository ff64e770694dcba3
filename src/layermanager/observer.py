"""Being told what an operation does besides how far it is, as for metrics."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from layermanager.model import LayerInfo


class Removal(enum.StrEnum):
    """Why a cached layer was removed."""

    EVICTED = "evicted"
    """Its space was needed."""
    EXPIRED = "expired"
    """Its time to live was over."""
    REQUESTED = "requested"
    """Somebody wanted space to be free."""


class Observer(Protocol):
    """Is told, from any thread, in the middle of what goes on: it must neither block nor raise."""

    def fetched(self, size: int) -> None:
        """*size* bytes came from a source, be they of use or not."""

    def written(self, size: int) -> None:
        """A layer takes *size* bytes more on disk, whether it will be complete or not.

        Of one that fails, what it wrote after it asked for space for the last time is not known.
        """

    def retried(self) -> None:
        """A source failed and is, or another one is, asked again; or a layer is begun anew."""

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """A cached layer is gone."""


class _Unobserved:
    def fetched(self, size: int) -> None:
        """Tell nobody."""

    def written(self, size: int) -> None:
        """Tell nobody."""

    def retried(self) -> None:
        """Tell nobody."""

    def removed(self, layer: LayerInfo, why: Removal) -> None:
        """Tell nobody."""


UNOBSERVED: Final[Observer] = _Unobserved()
"""The observer where nobody wants to know."""
