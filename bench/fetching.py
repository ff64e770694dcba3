"""Fetching layers from a web server on loopback, against curl.

Our side is a whole program that does all that a transfer does before an unpacker gets the bytes.
As that includes the digests, curl is also measured with the same digests behind it. The server is
the same for both sides, and not counted.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import corpora
from bench.commands import (
    apply,
    curl,
    curl_and_untar,
    curl_to_digest,
    curl_to_file,
    curl_to_two_digests,
    fetch,
)
from bench.documents import write_configuration, write_desired
from bench.extracting import cpu, extract, seconds, synced, wall
from bench.figures import Figure, Peer, Series, Unit
from bench.processes import measure
from bench.setting import UnavailableError, require_program
from layermanager import DesiredLayer, Digest
from layermanager.testing import nginx
from layermanager.testing.fault_server import FaultServer
from layermanager.testing.faults import Reset
from layermanager.testing.tls import Authority

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.extracting import Extraction
    from bench.layers import Layer
    from bench.processes import Usage
    from bench.setting import Setting

_MB: Final = 1_000_000
_GB: Final = 1_000_000_000
_MIB: Final = 1024 * 1024

_LARGE_BYTES: Final = 1024 * _MIB
_NEVER_SPOOLED: Final = {"spoolBytes": 1024 * _LARGE_BYTES}
_CONNECTIONS: Final = 4
_RATE: Final = 20 * _MB
_RATED_FILES: Final = 4
_RATED_BYTES: Final = 100 * _MB
_RATE_GOAL: Final = 1.05
_BROKEN_BYTES: Final = 256 * _MIB
_BREAKS_AFTER: Final = 16 * _MIB
_RETRY_DELAYS: Final = (1, 0.01)
_SENT_GOAL: Final = 1.01


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is fetched and not looked into.

    Attributes:
        path: where it is.
        size: its size in bytes.
        sha256: its SHA-256, in hex.
    """

    path: Path
    size: int
    sha256: str

    @property
    def description(self) -> str:
        """How large it is."""
        return f"{self.size / _MB:,.0f} MB"

    def layer(self, url: str) -> DesiredLayer:
        """The same as the blob of a layer."""
        return DesiredLayer(Digest(f"sha256:{self.sha256}"), url, size=self.size)

    def package(self, url: str) -> DesiredLayer:
        """The same as a package: what is in it is of no concern to a transfer."""
        digest, checksum = Digest(f"sha256:{self.sha256}"), bytes.fromhex(self.sha256)
        return DesiredLayer(digest, url, sha256=checksum, size=self.size)


def large_file(setting: Setting) -> tuple[Figure, ...]:
    """Fetch a GiB that is in the server's memory, over http and https, by turns with curl."""
    _require_programs()
    file = _file(setting, _LARGE_BYTES)
    authority = _authority(setting)
    figures: list[Figure] = []
    what = f"fetch {file.description}"
    with _serving(nginx.Site(setting.scratch)) as server:
        url = f"{server}/{file.path.name}"
        measure(curl(url, authority.bundle))  # into memory
        figures += _nothing_kept(setting, f"{what} over http", file.layer(url))
        figures += _nothing_kept(setting, f"{what} over http, a package", file.package(url))
        figures += _spooled(setting, f"{what} over http, kept on disk meanwhile", file.layer(url))
    site = nginx.Site(setting.scratch, certificate=authority.server_certificate())
    with _serving(site) as server:
        url = f"{server}/{file.path.name}"
        figures += _nothing_kept(setting, f"{what} over https", file.layer(url))
    return tuple(figures)


def many_layers(setting: Setting) -> tuple[Figure, ...]:
    """Install twenty layers, four at a time, by turns with as many curls and tars."""
    _require_programs()
    layers = corpora.twentieths(setting)
    ours: list[Extraction] = []
    theirs: list[Extraction] = []
    connections: list[int] = []
    for _ in range(setting.runs):
        extraction, used = _install(setting, layers)
        ours.append(extraction)
        connections.append(used)
        theirs.append(_curl_and_untar(setting, layers))
    subject = (
        f"install {len(layers)} layers over http, {_CONNECTIONS} at a time, "
        f"each of {layers[0].description}"
    )
    name = f"curl | {layers[0].tar}"
    return (
        Figure(subject, "CPU, user + system", cpu(ours), Peer(name, cpu(theirs))),
        Figure(subject, "wall; tar's files are in memory", wall(ours), Peer(name, wall(theirs))),
        Figure(subject, "wall; both on disk", wall(ours), Peer(f"{name}, sync -f", synced(theirs))),
        Figure(
            subject,
            "connections",
            Series(tuple(connections), Unit.CONNECTIONS),
            goal=_CONNECTIONS,
        ),
    )


def at_a_rate(setting: Setting) -> tuple[Figure, ...]:
    """Fetch a file, and four at once, with a rate limit: how fast they come, and how evenly."""
    _require_programs()
    whole, quarter = (_file(setting, size) for size in (_RATED_BYTES, _RATED_BYTES // _RATED_FILES))
    alone: list[float] = []
    together: list[float] = []
    slowest: list[float] = []
    fastest: list[float] = []
    with _serving(nginx.Site(setting.scratch)) as server:
        one = [whole.layer(f"{server}/{whole.path.name}")]
        several = [quarter.layer(f"{server}/{quarter.path.name}")] * _RATED_FILES
        for _ in range(setting.runs):
            rate, _ = _rate_and_shares(setting, one)
            alone.append(rate)
            rate, shares = _rate_and_shares(setting, several)
            together.append(rate)
            slowest.append(min(shares))
            fastest.append(max(shares))
    subject = f"fetch {whole.description} with rateLimit"
    limit = Peer("rateLimit", Series((_RATE / _MB,), Unit.MEGABYTES_A_SECOND))
    rates = {"one file": alone, f"{len(several)} files at once": together}
    return (
        *(
            Figure(
                subject,
                f"rate, {what}",
                Series(tuple(values), Unit.MEGABYTES_A_SECOND),
                limit,
                _RATE_GOAL,
            )
            for what, values in rates.items()
        ),
        Figure(
            subject,
            "the slowest, when the first is there",
            Series(tuple(slowest), Unit.MEGABYTES),
            Peer("the fastest", Series(tuple(fastest), Unit.MEGABYTES)),
        ),
    )


def broken_link(setting: Setting) -> tuple[Figure, ...]:
    """Fetch a file over a link that breaks again and again, by turns with one that does not."""
    file = _file(setting, _BROKEN_BYTES)
    breaks = file.size // _BREAKS_AFTER - 1
    sent: list[float] = []
    walls: dict[float, list[float]] = {delay: [] for delay in _RETRY_DELAYS}
    unbroken: list[float] = []
    for _ in range(setting.runs):
        for delay, values in walls.items():
            used, sent_bytes = _over_a_link(setting, file, breaks, delay)
            values.append(used.wall_seconds)
            sent.append(sent_bytes / _MB)
        used, _ = _over_a_link(setting, file, 0, _RETRY_DELAYS[0])
        unbroken.append(used.wall_seconds)
    subject = f"fetch {file.description}, with {breaks} breaks of the link"
    size = Peer("size of the file", Series((file.size / _MB,), Unit.MEGABYTES))
    peer = Peer("without breaks", seconds(unbroken))
    return (
        Figure(subject, "bytes sent", Series(tuple(sent), Unit.MEGABYTES), size, _SENT_GOAL),
        *(
            Figure(subject, f"wall; retryDelaySeconds {delay}", seconds(values), peer)
            for delay, values in walls.items()
        ),
    )


def _nothing_kept(setting: Setting, subject: str, layer: DesiredLayer) -> Iterator[Figure]:
    """Fetch *layer*, by turns with curl, without and with the digests that we compute."""
    bundle = _authority(setting).bundle
    configuration = write_configuration(
        setting.scratch / "not-spooled.json",
        {"network": {**_NEVER_SPOOLED, "caBundle": str(bundle)}},
    )
    desired = write_desired(setting.scratch / "fetched.json", [layer])
    digesting = curl_to_two_digests if layer.is_package else curl_to_digest
    sides = (
        fetch(configuration, setting.scratch, desired),
        curl(layer.url, bundle),
        digesting(layer.url, bundle),
    )
    turns = [[measure(command) for command in sides] for _ in range(setting.runs)]
    ours, *theirs = zip(*turns, strict=True)
    digests = "-sha256 and -sha3-256" if layer.is_package else "-sha256"
    peers = dict(zip(("curl >/dev/null", f"curl | openssl {digests}"), theirs, strict=True))
    for name, usages in peers.items():
        yield Figure(subject, "wall", _wall(ours), Peer(name, _wall(usages)))
    for name, usages in peers.items():
        peer = Peer(name, _cpu_a_gigabyte(usages, layer))
        yield Figure(subject, "CPU, user + system", _cpu_a_gigabyte(ours, layer), peer)


def _spooled(setting: Setting, subject: str, layer: DesiredLayer) -> Iterator[Figure]:
    """Fetch *layer* as large ones are fetched by default, by turns with curl to a file."""
    bundle = _authority(setting).bundle
    configuration = write_configuration(setting.scratch / "as-it-is.json", {})
    desired = write_desired(setting.scratch / "fetched.json", [layer])
    ours: list[Extraction] = []
    theirs: list[Extraction] = []
    for _ in range(setting.runs):
        ours.append(extract(setting, lambda directory: fetch(configuration, directory, desired)))
        theirs.append(
            extract(setting, lambda directory: curl_to_file(layer.url, bundle, directory / "file"))
        )
    peer = Peer("curl --output FILE, sync -f", synced(theirs))
    yield Figure(subject, "wall; both on disk", wall(ours), peer)


def _install(setting: Setting, layers: Sequence[Layer]) -> tuple[Extraction, int]:
    """Install *layers* with a server of their own; tell also how many connections that took."""
    configuration = write_configuration(
        setting.scratch / "four-at-a-time.json", {"parallelInstalls": _CONNECTIONS}
    )
    with tempfile.TemporaryDirectory() as own:
        with nginx.serve(nginx.Site(setting.scratch), Path(own)) as server:
            desired = write_desired(
                setting.scratch / "twentieths.json",
                [layer.desired(f"{server}/{layer.blob.name}") for layer in layers],
            )
            extraction = extract(
                setting, lambda directory: apply(configuration, directory, desired)
            )
        answers = nginx.served(Path(own))
    assert len(answers) == len(layers)
    return extraction, len({answer.connection for answer in answers})


def _curl_and_untar(setting: Setting, layers: Sequence[Layer]) -> Extraction:
    with _serving(nginx.Site(setting.scratch)) as server:
        urls = [f"{server}/{layer.blob.name}" for layer in layers]
        return extract(setting, lambda directory: curl_and_untar(directory, urls, _CONNECTIONS))


def _rate_and_shares(setting: Setting, layers: Sequence[DesiredLayer]) -> tuple[float, list[float]]:
    """Fetch *layers* with the rate limit.

    Returns:
        The megabytes a second of all, and what each had when the first was complete, in megabytes.
    """
    configuration = write_configuration(
        setting.scratch / "at-a-rate.json", {"network": {**_NEVER_SPOOLED, "rateLimit": _RATE}}
    )
    desired = write_desired(setting.scratch / "fetched.json", layers)
    command = fetch(configuration, setting.scratch, desired)
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    size = sum(layer.size or 0 for layer in layers)
    return size / found["seconds"] / _MB, [share / _MB for share in found["bytes"]]


def _over_a_link(setting: Setting, file: _File, breaks: int, delay: float) -> tuple[Usage, int]:
    """Fetch *file* where connections break so often; tell also how many bytes were sent."""
    configuration = write_configuration(
        setting.scratch / "retrying.json",
        {"network": {**_NEVER_SPOOLED, "retryDelaySeconds": delay}},
    )
    with FaultServer([Reset(_BREAKS_AFTER)] * breaks, ahead=_MIB) as server:
        layer = file.layer(server.add("/file", file.path.read_bytes()))
        desired = write_desired(setting.scratch / "fetched.json", [layer])
        used = measure(fetch(configuration, setting.scratch, desired))
        return used, server.sent


@contextmanager
def _serving(site: nginx.Site) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as own, nginx.serve(site, Path(own)) as url:
        yield url


@cache
def _authority(setting: Setting) -> Authority:
    directory = setting.scratch / "authority"
    directory.mkdir()
    return Authority.create(directory)


@cache
def _file(setting: Setting, size: int) -> _File:
    """A file of zeros: they take as long as other bytes, and no room on the disk."""
    path = setting.scratch / f"zeros-{size}"
    with path.open("xb+") as file:
        file.truncate(size)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _File(path, size, digest)


def _require_programs() -> None:
    if nginx.find() is None:
        raise UnavailableError("there is no program nginx")
    for program in ("bash", "curl", "openssl"):
        require_program(program)


def _wall(usages: Iterable[Usage]) -> Series:
    return seconds(usage.wall_seconds for usage in usages)


def _cpu_a_gigabyte(usages: Iterable[Usage], layer: DesiredLayer) -> Series:
    assert layer.size is not None
    gigabytes = layer.size / _GB
    return Series(tuple(usage.cpu_seconds / gigabytes for usage in usages), Unit.SECONDS_A_GIGABYTE)
