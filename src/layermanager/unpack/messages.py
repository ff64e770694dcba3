"""What the client and the worker say to each other: one JSON document a packet.

The client gives a ``Job``. The worker tells what its jail is made of (``jail``), asks for space
as the layer grows (``needs``, answered by ``granted``) and ends with ``done`` or ``failed``; the
server adds ``ended`` when the worker is no more. The worker reads what strangers wrote, so the
client takes its messages as a stranger's too.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    LayerError,
    LimitExceededError,
    PackageError,
    UnpackerError,
)
from layermanager.model import Digest, JailMeasure, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PACKET_BYTES: Final = 64 * 1024
_MESSAGE_CHARACTERS: Final = 2000
_MAX_DESCRIPTORS: Final = 4
_ERRORS: Final = {
    error.__name__: error for error in (ArchiveError, LimitExceededError, PackageError)
}


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do.

    Attributes:
        digest: the layer that is expected.
        is_package: whether the bytes are an Aos package or the layer blob itself.
        limits: what to refuse.
        granted: bytes on disk that may be taken without asking.
        block_bytes: the block size by which the file system hands out space.
        diff_id: the digest that the layer's tar must have; None: it is not computed.
    """

    digest: Digest
    is_package: bool
    limits: Limits
    granted: int
    block_bytes: int
    diff_id: Digest | None = None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a worker says that it unpacked; still to be compared with what is desired.

    Attributes:
        blob_digest: the digest of the blob in a package; empty for a bare blob, whose digest is
            the checksum of what was transferred.
        size: bytes taken on disk, in whole blocks.
        entries: members of the layer's tar.
        os_version: from the package's descriptor.
        notes: what was left out or not honoured, and how often.
    """

    blob_digest: str
    size: int
    entries: int
    os_version: str
    notes: Mapping[str, int]


class Packet(NamedTuple):
    """One message, and the file descriptors that came with it."""

    message: JsonObject
    descriptors: list[int]


class Channel:
    """One end of a connection that keeps packets whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Channel:
        """The end that another process passed on."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The file descriptor."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, object], descriptors: tuple[int, ...] = ()) -> None:
        """Send *message* with copies of *descriptors*.

        Raises:
            OSError: nobody listens any more.
        """
        socket.send_fds(self._connection, [json.dumps(message).encode()], descriptors)

    def receive(self) -> Packet | None:
        """The next message; None when the other end is closed.

        Raises:
            UnpackerError: it is no message.
        """
        try:
            data, descriptors, *_ = self._receive()
        except ConnectionResetError:
            # The other end was closed before it read all that we sent. Linux tells that once,
            # before it hands out what had been sent to us.
            data, descriptors, *_ = self._receive()
        if not data:
            return None
        try:
            return Packet(JsonObject.of(parse(data), "message"), descriptors)
        except DocumentError as error:
            raise UnpackerError(
                f"the unpacker sent something that is no message: {error}"
            ) from error

    def _receive(self) -> tuple[bytes, list[int], int, object]:
        return socket.recv_fds(self._connection, _PACKET_BYTES, _MAX_DESCRIPTORS)

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


def job_message(job: Job) -> dict[str, object]:
    """The message that gives *job* to a worker."""
    return asdict(job)


def read_job(message: JsonObject) -> Job:
    """The job in *message*."""
    limits = message.child("limits")
    diff_id = message.text("diff_id", None)
    return Job(
        digest=Digest(message.required_text("digest")),
        is_package=bool(message.members["is_package"]),
        limits=Limits(**{name: limits.integer(name, 0) for name in limits.members}),
        granted=message.integer("granted", 0),
        block_bytes=message.integer("block_bytes", 0, minimum=1),
        diff_id=None if diff_id is None else Digest(diff_id),
    )


def jail_message(measures: Sequence[JailMeasure]) -> dict[str, object]:
    """The message by which a worker tells, before it reads anything, what its jail is made of."""
    return {"type": "jail", "measures": {one.name: one.why_not for one in measures}}


def read_jail(message: JsonObject) -> tuple[JailMeasure, ...]:
    """The measures of the jail in *message*."""
    measures = message.child("measures")
    return tuple(JailMeasure(name, measures.text(name, "")) for name in measures.members)


def done_message(unpacked: Unpacked) -> dict[str, object]:
    """The message with which a worker ends well."""
    return {"type": "done", **asdict(unpacked)}


def read_done(message: JsonObject) -> Unpacked:
    """What the worker says in *message* that it unpacked."""
    notes = message.child("notes")
    return Unpacked(
        blob_digest=message.text("blob_digest", ""),
        size=message.required_integer("size"),
        entries=message.required_integer("entries"),
        os_version=message.text("os_version", ""),
        notes={what: notes.integer(what, 0) for what in notes.members},
    )


def failed_message(error: LayerError) -> dict[str, object]:
    """The message with which a worker gives up because of the layer."""
    message: dict[str, object] = {
        "type": "failed",
        "error": type(error).__name__,
        "message": str(error)[:_MESSAGE_CHARACTERS],
    }
    if isinstance(error, IntegrityError):
        message |= {
            "subject": error.subject,
            "expected": error.expected,
            "found": error.found[:_MESSAGE_CHARACTERS],
        }
    return message


def read_failed(message: JsonObject, digest: Digest) -> LayerError:
    """The error that the worker tells of in *message*."""
    name = message.required_text("error")
    if name == IntegrityError.__name__:
        return IntegrityError(
            message.required_text("subject"),
            expected=message.text("expected", ""),
            found=message.text("found", ""),
            digest=digest,
        )
    return _ERRORS.get(name, UnpackerError)(message.required_text("message"), digest=digest)
