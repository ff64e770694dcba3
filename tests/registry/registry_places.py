"""Registries of a script, and what asks them."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from layermanager.cancellation import Cancellation
from layermanager.config import Network, Registry
from layermanager.images.resolve import ImageResolver
from layermanager.model import DesiredImage
from layermanager.oci.platform import Platform
from layermanager.oci.reference import parse_reference
from layermanager.registry.client import RegistryClient
from layermanager.registry.logins import Logins
from layermanager.registry.source import RegistrySource
from layermanager.sources.client import HttpClient
from layermanager.sources.credentials import Credentials
from layermanager.testing.clock import PassingClock
from layermanager.testing.images import build_image
from layermanager.testing.layers import LayerBuilder, compress
from layermanager.testing.web import Answer, LayerServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.errors import LayerManagerError
    from layermanager.model import Digest, ResolvedImage
    from layermanager.protocols import Clock
    from layermanager.testing.images import BuiltImage

SECRET: Final = "hunter2"  # noqa: S105 - nobody's
HOST: Final = Platform("linux", "amd64")


def image_of(text: str) -> BuiltImage:
    """An image of one file with this *text*."""
    builder = LayerBuilder()
    builder.file("file", text.encode())
    return build_image([compress(builder.tar(), "gzip")])


IMAGE: Final = image_of("some text")


def name_of(server: LayerServer) -> str:
    return server.url.partition("//")[2]


def put(server: LayerServer, image: BuiltImage, repository: str = "app", tag: str = "1") -> str:
    """Have *server* be a registry that holds *image*; return its reference."""
    for digest, blob in image.blobs.items():
        server.add(f"/v2/{repository}/blobs/{digest}", blob)
    manifest = Answer(image.document, headers={"Content-Type": image.descriptor["mediaType"]})
    server.answer(f"/v2/{repository}/manifests/{tag}", manifest)
    server.answer(f"/v2/{repository}/manifests/{image.digest}", manifest)
    return f"{name_of(server)}/{repository}:{tag}"


def asked(server: LayerServer) -> list[str]:
    """The paths that were asked for."""
    return [request.target for request in server.requests]


def plain(*servers: LayerServer) -> Mapping[str, Registry]:
    return {name_of(server): Registry(is_plain=True) for server in servers}


def bearer_challenge(server: LayerServer) -> Answer:
    """Asks for a token of *server*."""
    challenge = f'Bearer realm="{server.url}/token",service="s",scope="repository:x:pull"'
    return Answer(status=401, headers={"WWW-Authenticate": challenge})


def token_path(repository: str = "app", actions: str = "pull") -> str:
    wanted = {"service": "s", "scope": f"repository:{repository}:{actions}"}
    return f"/token?{urlencode(wanted)}"


def token(text: str, **members: object) -> Answer:
    return Answer(json.dumps({"token": text, **members}).encode())


def auth_file(path: Path, server: LayerServer, **entry: str) -> Path:
    """A file as docker has it, with a login for *server*."""
    entry = entry or {"auth": base64.b64encode(f"u:{SECRET}".encode()).decode()}
    path.write_text(json.dumps({"auths": {name_of(server): entry}}))
    path.chmod(0o600)
    return path


class Asking:
    """Asks registries, and notes how the time passes."""

    def __init__(self, network: Network, *auth_files: Path, clock: Clock | None = None) -> None:
        self.clock = clock or PassingClock()
        self.cancellation = Cancellation()
        credentials = Credentials(network.credentials_file)
        client = HttpClient(network, credentials)
        self.client = RegistryClient(client, Logins(credentials, auth_files), network, self.clock)
        self.source = RegistrySource(self.client, network, self.clock)

    def resolve(self, reference: str) -> ResolvedImage:
        """What *reference* leads to, or raise why it leads nowhere."""
        resolution = ImageResolver({"docker": self.source}, HOST).resolve(
            [DesiredImage(reference)], (), {}, self.cancellation
        )
        errors: list[LayerManagerError] = [failed.error for failed in resolution.failed]
        if errors:
            raise errors[0]
        (image,) = resolution.images
        return image

    def find(self, reference: str) -> Digest:
        """The digest of what *reference* names, asked for in this thread, whose clock it is."""
        (found,) = self.source.find_image(parse_reference(reference), self.cancellation).manifests
        return found.digest

    def fetch(self, url: str) -> bytes:
        """All of a blob."""
        stream = self.source.open(url, self.cancellation)
        return self.client.read(stream, 1 << 20, url, self.cancellation)


@contextmanager
def asking(network: Network, *auth_files: Path, clock: Clock | None = None) -> Iterator[Asking]:
    one = Asking(network, *auth_files, clock=clock)
    try:
        yield one
    finally:
        one.source.close()


def of(network: Network, *servers: LayerServer) -> Network:
    """The same for registries that speak http."""
    return replace(network, registries={**network.registries, **plain(*servers)})
