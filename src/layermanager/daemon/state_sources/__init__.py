"""Where a desired state may come from by itself: a file, a web server, a registry.

Each module knows one kind of place, behind ``StateSource``; none knows when it is asked, nor what
becomes of what it gives. They import the sources and the registry of the library, and nothing else
of the daemon but its configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from layermanager.oci.reference import RegistryReference

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.daemon.config import DesiredStateConfig
    from layermanager.living import LivingThreads
    from layermanager.protocols import Clock

# The network is imported by the daemons that ask it.
# ruff: noqa: PLC0415


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source gives.

    Attributes:
        version: tells it from what the source gives at other times.
        document: the desired state, JSON.
        signature: what was put beside it to prove who made it; None where it is not wanted.
        refused_version: what names it once it is refused; None for ``version``. The answer of a
            captive portal must not decide what later requests ask for.
    """

    version: str
    document: bytes
    signature: bytes | None = None
    refused_version: str | None = None


class StateSource(Protocol):
    """A place that is looked at again and again."""

    @property
    def name(self) -> str:
        """What people call it; without secrets."""

    @property
    def is_local(self) -> bool:
        """Whether looking there costs nobody else anything."""

    def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
        """What is there now; None if that is still the version *known*.

        Raises:
            SourceError: it cannot be had, or is too large.
            IntegrityError: it is not what its digest says.
            ManifestError: it is in something that is no artifact with a desired state.
            CancelledError: it was cancelled.
        """

    def watching(
        self, on_change: Callable[[], None], threads: LivingThreads
    ) -> AbstractContextManager[None]:
        """Call *on_change*, from one of *threads*, when something happens there in the context.

        A source that nobody tells of changes calls nothing.
        """

    def close(self) -> None:
        """Close the idle connections."""


def state_source(
    config: DesiredStateConfig, network: Network, clock: Clock, *, most_bytes: int
) -> StateSource | None:
    """The source that *config* names; None if it names none.

    Args:
        config: what is configured.
        network: how it is fetched.
        clock: the time.
        most_bytes: how large a desired state may be.
    """
    match config.source:
        case None:
            return None
        case Path() as path:
            from layermanager.daemon.state_sources.file import FileStateSource

            return FileStateSource(
                path, most_bytes=most_bytes, with_signature=config.wants_signature
            )
        case RegistryReference() as reference:
            from layermanager.daemon.state_sources.artifact import ArtifactStateSource
            from layermanager.images import registry_client

            return ArtifactStateSource(
                reference,
                registry_client(network, clock),
                network,
                clock,
                most_bytes=most_bytes,
                with_signature=config.wants_signature,
            )
        case url:
            from layermanager.daemon.state_sources.web import WebStateSource
            from layermanager.sources.client import HttpClient
            from layermanager.sources.credentials import Credentials

            credentials = Credentials(network.credentials_file, network.netrc_file)
            return WebStateSource(
                url,
                HttpClient(network, credentials),
                network,
                clock,
                most_bytes=most_bytes,
                with_signature=config.wants_signature,
            )
