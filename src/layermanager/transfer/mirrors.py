"""Where the images of a registry can be had: from its mirrors first, then from itself.

A mirror is a registry like any other: what is in the repository ``app`` of ``registry`` is in
``app``, or ``path/app``, of the mirror, under the same tags and digests. So each has a reference of
its own, and a layer has as many addresses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from layermanager.config import Registry
from layermanager.errors import InvalidReferenceError
from layermanager.oci.reference import (
    DEFAULT_REGISTRY,
    RegistryReference,
    Transport,
    parse_reference,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOSTS: Final = {DEFAULT_REGISTRY: "registry-1.docker.io"}
"""The hosts of registries that are called otherwise."""

_PLAIN_PORT: Final = 80


def places(
    reference: RegistryReference, registries: Mapping[str, Registry]
) -> tuple[RegistryReference, ...]:
    """Where what *reference* names can be had, in the order in which to ask."""
    mirrors = registries.get(reference.registry, Registry()).mirrors
    return (*(_in_mirror(mirror, reference) for mirror in mirrors), reference)


def addresses(url: str, registries: Mapping[str, Registry]) -> tuple[str, ...]:
    """Likewise for the file at *url*; what is in no registry has this address only."""
    if not url.startswith(f"{Transport.REGISTRY}://"):
        return (url,)
    try:
        reference = parse_reference(url)
    except InvalidReferenceError:
        return (url,)  # who asks there will say so
    if not isinstance(reference, RegistryReference):
        return (url,)
    return tuple(place.url for place in places(reference, registries))


def base_url(registry: str, registries: Mapping[str, Registry]) -> str:
    """The URL of a registry, without a slash at its end."""
    is_plain = registries.get(registry, Registry()).is_plain or any(
        _registry_of(mirror) == registry
        for one in registries.values()
        for mirror in one.mirrors
        if urlsplit(mirror).scheme == "http"
    )
    return f"{'http' if is_plain else 'https'}://{_HOSTS.get(registry, registry)}"


def _in_mirror(mirror: str, reference: RegistryReference) -> RegistryReference:
    path = urlsplit(mirror).path.strip("/")
    repository = f"{path}/{reference.repository}" if path else reference.repository
    return replace(reference, registry=_registry_of(mirror), repository=repository)


def _registry_of(mirror: str) -> str:
    """What references call the registry at the URL *mirror*.

    Without its port one that speaks http could not be told from one that speaks TLS.
    """
    parts = urlsplit(mirror)
    is_plain = parts.scheme == "http" and parts.port is None
    return f"{parts.netloc}:{_PLAIN_PORT}" if is_plain else parts.netloc
