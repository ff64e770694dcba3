"""Where images come from: what they are called there, their documents, and the way to their layers.

Each module knows one kind of place, behind ``ImageSource``, as ``registry`` beside this package
does; ``resolve`` goes with them from a
reference to the layers of one image, and proves every document on the way. Nothing is extracted or
copied: layers are read from where they are, members of an archive at their offsets. ``record``
keeps track of which images are installed.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.oci.manifest import Descriptor, ImageIndex
    from layermanager.oci.reference import Reference
    from layermanager.protocols import ByteStream, Clock, ImageSource
    from layermanager.registry.client import RegistryClient

# The modules are imported when the first image is asked for: most commands ask for none.
# ruff: noqa: PLC0415


def default_image_sources(network: Network, clock: Clock) -> Mapping[str, ImageSource]:
    """The sources of this package that know images, by the schemes that they know."""

    def registries() -> ImageSource:
        from layermanager.registry.source import RegistrySource

        return RegistrySource(registry_client(network, clock), network, clock)

    def layouts() -> ImageSource:
        from layermanager.images.layout import LayoutSource
        from layermanager.images.members import DirectoryFiles

        return LayoutSource(DirectoryFiles)

    def layout_archives() -> ImageSource:
        from layermanager.images.layout import LayoutSource
        from layermanager.images.members import TarFiles

        return LayoutSource(TarFiles)

    def docker_archives() -> ImageSource:
        from layermanager.images.docker_archive import DockerArchiveSource

        return DockerArchiveSource()

    return {
        "docker": _DeferredImageSource(registries),
        "oci": _DeferredImageSource(layouts),
        "oci-archive": _DeferredImageSource(layout_archives),
        "docker-archive": _DeferredImageSource(docker_archives),
    }


def registry_client(network: Network, clock: Clock) -> RegistryClient:
    """What asks registries as the user of this process."""
    from layermanager.registry.client import RegistryClient
    from layermanager.registry.logins import Logins, auth_files
    from layermanager.sources.client import HttpClient
    from layermanager.sources.credentials import Credentials

    credentials = Credentials(network.credentials_file, network.netrc_file)
    logins = Logins(credentials, auth_files(os.environ, Path.home(), os.geteuid()))
    return RegistryClient(HttpClient(network, credentials), logins, network, clock)


class _DeferredImageSource:
    """A source that is made when it is first needed."""

    def __init__(self, make: Callable[[], ImageSource]) -> None:
        self._make = make
        self._made: ImageSource | None = None
        self._lock = threading.Lock()

    def find_image(self, reference: Reference, cancellation: Cancellation) -> ImageIndex:
        return self._source().find_image(reference, cancellation)

    def read_document(
        self, reference: Reference, descriptor: Descriptor, cancellation: Cancellation
    ) -> bytes:
        return self._source().read_document(reference, descriptor, cancellation)

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> ByteStream:
        return self._source().open(url, cancellation, offset=offset, validator=validator)

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()

    def _source(self) -> ImageSource:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
