"""What is fuzzed: each function takes any bytes and raises nothing but what was found at fault.

A header block whose checksum is wrong ends an archive, and a random change nearly always makes it
so. Therefore the checksums are made right before an archive is read.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import deque
from typing import TYPE_CHECKING, Final

from hostile.packages import DIGEST
from layermanager.daemon.desired_state import DesiredState
from layermanager.desired import desired_to_json, read_desired
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import InputError, LayerError, ManifestError, StoreError
from layermanager.model import Limits
from layermanager.oci.manifest import read_config, read_manifest_or_index
from layermanager.oci.manifest import read_index as read_image_index
from layermanager.oci.platform import parse_platform
from layermanager.registry.challenge import ChallengeError, parse_challenges
from layermanager.sources.proxies import parse_no_proxy
from layermanager.unpack.compression import decompressed, no_bomb
from layermanager.unpack.conversation import Conversation, most_on_disk
from layermanager.unpack.index import read_index
from layermanager.unpack.messages import Job
from layermanager.unpack.package import PackageReader
from layermanager.unpack.streams import CHUNK_BYTES, ByteReader, CountedChunks
from layermanager.unpack.tar import BLOCK_BYTES, TarReader
from layermanager.use.layer_places import layers_in, layers_named
from layermanager.use.mountinfo import lower_directories, parse_table
from layermanager.use.paths import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LIMITS: Final = Limits(
    compression_ratio=100,
    entries=1000,
    header_bytes=64 * 1024,
    xattr_bytes=16 * 1024,
    zstd_window_bytes=8 * 1024 * 1024,
)
_JOB: Final = Job(digest=DIGEST, is_package=False, limits=_LIMITS, granted=0, block_bytes=4096)
_PLATFORM: Final = parse_platform("linux/arm/v7")
_LONGEST_MESSAGE: Final = 4000
_MAGIC: Final = slice(257, 262)
_CHECKSUM: Final = slice(148, 156)
_CHUNK_BYTES: Final = 700  # so that headers lie across chunks, too


def read_tar(data: bytes) -> None:
    """Read all entries and contents of *data* as a tar."""
    reader = TarReader(ByteReader(_chunks(with_right_checksums(data))), _LIMITS)
    try:
        for entry in reader:
            _drain(reader.content(entry))
    except LayerError:
        return


def read_package(data: bytes) -> None:
    """Read *data* as a package, and the layer in it to its end."""
    package = PackageReader(_chunks(with_right_checksums(data)), DIGEST, _LIMITS)
    try:
        _drain(package.blob())
    except LayerError:
        return


def decompress(data: bytes) -> None:
    """Decompress *data*."""
    chunks = CountedChunks(_chunks(data))
    plain = decompressed(iter(chunks), zstd_window_bytes=_LIMITS.zstd_window_bytes)
    try:
        for piece in no_bomb(plain, chunks, _LIMITS):
            assert len(piece) <= CHUNK_BYTES
    except LayerError:
        return


def read_challenge(data: bytes) -> None:
    """Read *data* as a header ``WWW-Authenticate``."""
    try:
        challenges = parse_challenges(data.decode("latin-1"))
    except ChallengeError:
        return
    assert all(challenge.scheme for challenge in challenges)


def read_no_proxy(data: bytes) -> None:
    """Read the first line of *data* as ``NO_PROXY``, and ask for the second one as a host."""
    text, _, host = data.decode("latin-1").partition("\n")
    hosts = parse_no_proxy(text)
    hosts.includes(host, 80)
    assert hosts.includes("localhost", 80)
    assert hosts.includes("127.0.0.1", 443)


def read_mount_table(data: bytes) -> None:
    """Read *data* as a table of mounts, and follow all paths in it.

    The sources of the mounts are taken for symlinks that are at the mount points.
    """
    lines = parse_table(data)
    assert len(lines.mounts) + len(lines.unreadable) == len([*filter(None, data.split(b"\n"))])
    links = {mount.mount_point: mount.source for mount in lines.mounts}
    for mount in lines.mounts:
        layers_in(mount.root)
        for lower in lower_directories(mount.options):
            layers_in(resolve(b"/" + lower, links.get))
    for line in lines.unreadable:
        layers_named(line)


def read_layer_index(data: bytes) -> None:
    """Read *data*, and *data* compressed, as the index of a layer."""
    for file in (data, gzip.compress(data, 1)):
        try:
            for entry in read_index(io.BytesIO(file), "index", _LIMITS):
                require_inside(entry.path)
                if entry.hard_link:
                    require_inside(entry.hard_link)
        except StoreError:
            continue


def require_inside(path: bytes) -> None:
    """Fail if *path* leads out of the layer that it is in."""
    names = [] if path == b"." else path.split(b"/")
    assert not {b"", b".", b".."}.intersection(names)
    assert b"\0" not in path


def hear_worker(data: bytes) -> None:
    """Take each line of *data* as a message of a worker, and grant whatever it asks for."""
    conversation = Conversation(_JOB)
    fed = 0
    for line in data.split(b"\n"):
        fed += len(line)
        try:
            need = conversation.hear(JsonObject.of(parse(line), "message"), fed)
        except (DocumentError, LayerError):
            return
        if need is not None:
            conversation.granted = need.wanted.size
            conversation.granted_inodes = need.wanted.inodes
            assert conversation.granted <= most_on_disk(_JOB, fed)
    verdict = conversation.verdict
    assert verdict is None or 0 <= verdict.size <= conversation.granted


def read_documents(data: bytes) -> None:
    """Read *data* as a desired state and as each of the documents of an image."""
    try:
        state = DesiredState.read(data, "it")
    except InputError as error:
        require_short(error)
    else:
        again = json.dumps([desired_to_json(layer) for layer in state.layers])
        assert read_desired(again, "again") == list(state.layers)
        assert all(0 <= (layer.size or 0) < 2**63 for layer in state.layers)
    for read in (
        lambda: read_manifest_or_index(data),
        lambda: read_image_index(data).choose(_PLATFORM),
        lambda: read_config(data, 1),
    ):
        try:
            read()
        except ManifestError as error:
            require_short(error)


def require_short(error: Exception) -> None:
    """Fail if the message of *error* grows with what it is about."""
    assert len(str(error)) < _LONGEST_MESSAGE


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "tar": read_tar,
    "package": read_package,
    "compression": decompress,
    "challenge": read_challenge,
    "noproxy": read_no_proxy,
    "mounts": read_mount_table,
    "index": read_layer_index,
    "messages": hear_worker,
    "desired": read_documents,
}


def with_right_checksums(data: bytes) -> bytes:
    """*data* with the checksums of all blocks that look like headers."""
    repaired = bytearray(data)
    for at in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = repaired[at : at + BLOCK_BYTES]
        if block[_MAGIC] == b"ustar":
            block[_CHECKSUM] = b" " * 8
            block[_CHECKSUM] = b"%06o\0 " % sum(block)
            repaired[at : at + BLOCK_BYTES] = block
    return bytes(repaired)


def _chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), _CHUNK_BYTES):
        yield data[at : at + _CHUNK_BYTES]


def _drain(pieces: Iterator[object]) -> None:
    deque(pieces, maxlen=0)
