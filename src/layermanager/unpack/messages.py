"""What the client and the worker say to each other: one JSON document a packet.

The client gives a ``Job``. The worker's parent tells that it runs (``started``) or cannot
(``not started``); then the worker tells what its jail is made of (``jail``), asks for space as the
layer grows (``needs``, answered by ``granted``) and ends with a verdict (``done``, ``failed`` or
``os_error``); the server adds ``ended`` when the worker is no more.

The worker reads hostile archives, so the client assumes that an archive has taken it over. Every
number in its messages has bounds and every text a greatest length here; in which order and how
often it may speak, and which numbers are credible, is in ``conversation``.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from layermanager.amounts import UNCOUNTED, Amount
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    InvalidDigestError,
    LayerError,
    LimitExceededError,
    PackageError,
    UnpackerError,
)
from layermanager.model import Digest, JailMeasure, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OS_VERSION_CHARACTERS: Final = 1024
"""The longest ``os.version`` of a package's descriptor."""

_PACKET_BYTES: Final = 64 * 1024
_MESSAGE_CHARACTERS: Final = 2000
_WORD_CHARACTERS: Final = 200
_MAX_NOTES: Final = 32
_MAX_MEASURES: Final = 64
_MAX_DESCRIPTORS: Final = 5
_LARGEST: Final = 2**63 - 1
_LARGEST_STATUS: Final = 255
_LARGEST_SIGNAL: Final = 64
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
        granted_inodes: inodes that may be taken without asking.
    """

    digest: Digest
    is_package: bool
    limits: Limits
    granted: int
    block_bytes: int
    diff_id: Digest | None = None
    granted_inodes: int = UNCOUNTED


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
        inodes: files, directories, symlinks and devices, without the layer's root.
    """

    blob_digest: str
    size: int
    entries: int
    os_version: str
    notes: Mapping[str, int]
    inodes: int = 0

    @property
    def amount(self) -> Amount:
        """What it takes on disk, without the layer's root."""
        return Amount(self.size, self.inodes)


class Need(NamedTuple):
    """A worker's request for space.

    Attributes:
        written: bytes on disk so far.
        more: bytes that the next step takes.
        inodes: inodes taken so far.
        more_inodes: inodes that the next step takes.
        content: bytes of all files of the layer, as its package says; 0 where it does not.
        content_inodes: inodes of the layer, likewise.
    """

    written: int
    more: int
    inodes: int = 0
    more_inodes: int = 0
    content: int = 0
    content_inodes: int = 0

    @property
    def used(self) -> Amount:
        """What is on disk so far."""
        return Amount(self.written, self.inodes)

    @property
    def wanted(self) -> Amount:
        """What there must be in all for the next step."""
        return Amount(self.written + self.more, self.inodes + self.more_inodes)

    @property
    def declared(self) -> Amount:
        """What the package says of its layer."""
        return Amount(self.content, self.content_inodes)


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

    def send(
        self,
        message: Mapping[str, object],
        descriptors: tuple[int, ...] = (),
        *,
        waits: bool = True,
    ) -> None:
        """Send *message* with copies of *descriptors*.

        Args:
            message: a JSON object.
            descriptors: of open files.
            waits: whether to wait for room if the other end has read nothing for long.

        Raises:
            BlockingIOError: there is no room, and *waits* is False.
            OSError: the other end is closed.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        # Not socket.send_fds, which ignores its flags.
        self._connection.sendmsg(
            [json.dumps(message).encode()],
            [rights] if descriptors else [],
            0 if waits else socket.MSG_DONTWAIT,
        )

    def receive(self) -> Packet | None:
        """The next message; None when the other end is closed.

        Raises:
            UnpackerError: it is no message, or not a whole one; its descriptors are closed.
        """
        try:
            data, descriptors, flags = self._receive()
        except ConnectionResetError:
            # The other end was closed before it read all that we sent. Linux tells that once,
            # before it hands out what had been sent to us.
            data, descriptors, flags = self._receive()
        if not data and not descriptors:
            return None
        try:
            _require_whole(flags)
            return Packet(JsonObject.of(parse(data), "message"), descriptors)
        except DocumentError as error:
            close_all(descriptors)
            raise UnpackerError(
                f"the unpacker sent something that is no message: {error}"
            ) from error

    def _receive(self) -> tuple[bytes, list[int], int]:
        # Not socket.recv_fds, which ignores its flags as well.
        received = array.array("i")
        data, control, flags, _ = self._connection.recvmsg(
            _PACKET_BYTES,
            socket.CMSG_LEN(_MAX_DESCRIPTORS * received.itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
        return data, list(received), flags

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


def _require_whole(flags: int) -> None:
    if flags & socket.MSG_TRUNC:
        raise DocumentError(f"it is longer than {_PACKET_BYTES} bytes")
    if flags & socket.MSG_CTRUNC:
        raise DocumentError("its file descriptors are not all there: too many files are open")


def close_all(descriptors: Sequence[int]) -> None:
    """Close *descriptors*."""
    for descriptor in descriptors:
        os.close(descriptor)


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
        granted_inodes=message.integer("granted_inodes", 0),
    )


def not_started_message(error: OSError | MemoryError) -> dict[str, object]:
    """The message by which server or parent tell that there will be no worker."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    return {"type": "not started", "errno": number or errno.EIO}


def read_not_started(message: JsonObject, digest: Digest) -> UnpackerError:
    """The error that *message* tells of."""
    return UnpackerError(
        f"cannot start the unpacker: {os.strerror(_read_errno(message))}", digest=digest
    )


def jail_message(measures: Sequence[JailMeasure]) -> dict[str, object]:
    """The message by which a worker tells, before it reads anything, what its jail is made of."""
    return {"type": "jail", "measures": {one.name: one.why_not for one in measures}}


def read_jail(message: JsonObject) -> tuple[JailMeasure, ...]:
    """The measures of the jail in *message*."""
    measures = message.child("measures")
    names = _few_words(measures, _MAX_MEASURES)
    return tuple(
        JailMeasure(name, _bounded_text(measures, name, _WORD_CHARACTERS)) for name in names
    )


def needs_message(need: Need) -> dict[str, object]:
    """The message by which a worker asks for space."""
    return {
        "type": "needs",
        "written": need.written,
        "bytes": need.more,
        "inodes": need.inodes,
        "more_inodes": need.more_inodes,
        "content": need.content,
        "content_inodes": need.content_inodes,
    }


def read_needs(message: JsonObject) -> Need:
    """What the worker asks for in *message*."""
    return Need(
        _count(message, "written"),
        _count(message, "bytes"),
        *(
            message.integer(key, 0, maximum=_LARGEST)
            for key in ("inodes", "more_inodes", "content", "content_inodes")
        ),
    )


def granted_message(granted: Amount) -> dict[str, object]:
    """The answer to a worker that asked for space: what it may take in all."""
    return {"granted": granted.size, "inodes": granted.inodes}


def read_granted(message: JsonObject) -> Amount:
    """What the worker may take in all, by *message*."""
    return Amount(message.integer("granted", 0), message.integer("inodes", 0))


def done_message(unpacked: Unpacked) -> dict[str, object]:
    """The message with which a worker ends well."""
    return {"type": "done", **asdict(unpacked)}


def read_done(message: JsonObject) -> Unpacked:
    """What the worker says in *message* that it unpacked."""
    notes = message.child("notes")
    return Unpacked(
        blob_digest=_read_digest(message, "blob_digest"),
        size=_count(message, "size"),
        entries=_count(message, "entries"),
        os_version=_bounded_text(message, "os_version", OS_VERSION_CHARACTERS),
        notes={what: _count(notes, what) for what in _few_words(notes, _MAX_NOTES)},
        inodes=message.integer("inodes", 0, maximum=_LARGEST),
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
            "subject": error.subject[:_WORD_CHARACTERS],
            "expected": error.expected[:_MESSAGE_CHARACTERS],
            "found": error.found[:_MESSAGE_CHARACTERS],
        }
    return message


def read_failed(message: JsonObject, digest: Digest) -> LayerError:
    """The error that the worker tells of in *message*."""
    name = message.required_text("error")
    if name == IntegrityError.__name__:
        return IntegrityError(
            _required_text(message, "subject", _WORD_CHARACTERS),
            expected=_bounded_text(message, "expected", _MESSAGE_CHARACTERS),
            found=_bounded_text(message, "found", _MESSAGE_CHARACTERS),
            digest=digest,
        )
    text = _required_text(message, "message", _MESSAGE_CHARACTERS)
    return _ERRORS.get(name, UnpackerError)(text, digest=digest)


def os_error_message(error: OSError) -> dict[str, object]:
    """The message with which a worker gives up because of its file system."""
    # Some file systems answer with numbers that only the kernel knows.
    number = error.errno if error.errno in errno.errorcode else errno.EIO
    return {
        "type": "os_error",
        "errno": number,
        "message": describe(error)[:_MESSAGE_CHARACTERS],
    }


def describe(error: OSError) -> str:
    """The words of *error*, with the file's name."""
    words = error.strerror or str(error) or "unknown error"
    return f"{error.filename}: {words}" if error.filename else words


def read_os_error(message: JsonObject) -> OSError:
    """The error that the worker tells of in *message*."""
    return OSError(_read_errno(message), _required_text(message, "message", _MESSAGE_CHARACTERS))


def read_ended(message: JsonObject) -> int:
    """How the worker ended: its status, or the negative number of the signal that ended it."""
    return message.integer("status", 0, minimum=-_LARGEST_SIGNAL, maximum=_LARGEST_STATUS)


def _read_errno(message: JsonObject) -> int:
    number = _count(message, "errno")
    if number not in errno.errorcode:
        raise DocumentError(f"{message.at('errno')}: no error has the number {number}")
    return number


def _read_digest(message: JsonObject, key: str) -> str:
    digest = _bounded_text(message, key, _WORD_CHARACTERS)
    if not digest:
        return ""
    try:
        return Digest(digest)
    except InvalidDigestError as error:
        raise DocumentError(f"{key}: {error}") from error


def _count(message: JsonObject, key: str) -> int:
    value = message.integer(key, None, maximum=_LARGEST)
    if value is None:
        raise DocumentError(f"{message.at(key)}: is missing")
    return value


def _bounded_text(message: JsonObject, key: str, characters: int) -> str:
    text = message.text(key, "")
    if len(text) > characters:
        raise DocumentError(f"{message.at(key)}: is longer than {characters} characters")
    return text


def _required_text(message: JsonObject, key: str, characters: int) -> str:
    message.required_text(key)
    return _bounded_text(message, key, characters)


def _few_words(members: JsonObject, at_most: int) -> list[str]:
    """The keys of *members*, of which there may be so many."""
    if len(members.members) > at_most:
        raise DocumentError(f"{members.place}: more than {at_most} members")
    for key in members.members:
        if len(key) > _WORD_CHARACTERS or not (key.isascii() and key.isprintable()):
            raise DocumentError(f"{members.place}: a key is not a short text of printable ASCII")
    return list(members.members)
