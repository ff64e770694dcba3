"""What one worker may say, in which order, how often, and what of it is credible (no I/O).

::

    starting ──started──► confining ──jail──► working ──done, failed, os_error──► judged
        │                     │                │    ▲                               │
        └─────not started─────┴──────ended─────┤    └─needs                         │
                                               ▼                                    │
                                             ended ◄──────────────ended─────────────┘

All but ``needs`` come once. Each ``needs`` asks for whole blocks or inodes beyond what was granted,
so that their number is bounded by those that the layer may take; and a worker may not take more
than a hostile archive of the same length could make an honest worker take.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from layermanager.amounts import Amount
from layermanager.documents import DocumentError
from layermanager.errors import LimitExceededError, UnpackerError
from layermanager.unpack.compression import most_plain_bytes
from layermanager.unpack.messages import (
    read_done,
    read_ended,
    read_failed,
    read_jail,
    read_needs,
    read_not_started,
    read_os_error,
)
from layermanager.unpack.tar import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layermanager.documents import JsonObject
    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Job, Need, Unpacked


class _Stage(enum.Enum):
    STARTING = enum.auto()
    CONFINING = enum.auto()
    WORKING = enum.auto()
    JUDGED = enum.auto()
    ENDED = enum.auto()


_ENDS: Final = frozenset({"ended", "not started"})
_VERDICTS: Final = frozenset({"done", "failed", "os_error"})
_EXPECTED: Final[Mapping[_Stage, frozenset[str]]] = {
    _Stage.STARTING: _ENDS | {"started"},
    _Stage.CONFINING: _ENDS | {"jail"},
    _Stage.WORKING: _VERDICTS | {"needs", "ended"},
    _Stage.JUDGED: frozenset({"ended"}),
    _Stage.ENDED: frozenset(),
}


class Conversation:
    """The state of one worker as its messages tell it.

    Attributes:
        granted: bytes on disk that the worker may take.
        granted_inodes: inodes that it may take.
        jail: what confines it, once it told that.
        verdict: what it unpacked, once it told that.
        error: why it did not, once that was told.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stage = _Stage.STARTING
        self._written = 0
        self._inodes = 0
        self.granted = job.granted
        self.granted_inodes = job.granted_inodes
        self.jail: tuple[JailMeasure, ...] | None = None
        self.verdict: Unpacked | None = None
        self.error: Exception | None = None

    @property
    def is_starting(self) -> bool:
        """Whether nothing was said yet."""
        return self._stage is _Stage.STARTING

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to come."""
        return self._stage is _Stage.ENDED

    def end(self, error: Exception | None = None) -> None:
        """Note that nothing more is to come, because of *error* if there is one."""
        self._stage = _Stage.ENDED
        self.error = error or self.error

    def hear(self, message: JsonObject, fed: int) -> Need | None:
        """Take in the next message; return what it asks for, which is to be granted.

        Args:
            message: from the worker, or in its name from its parent or the server.
            fed: how many bytes of input the worker was given so far.

        Raises:
            DocumentError: the message is malformed, out of order or not credible.
            LimitExceededError: the worker asks for more than its input may become.
        """
        kind = message.text("type", "")
        if kind not in _EXPECTED[self._stage]:
            raise DocumentError(f"unexpected message {kind!r:.80}")
        match kind:
            case "started":
                self._stage = _Stage.CONFINING
            case "jail":
                self.jail = read_jail(message)
                self._stage = _Stage.WORKING
            case "needs":
                return self._checked_need(message, fed)
            case "ended":
                status = read_ended(message)
                self.end(self.error or (self._crash(status) if status else None))
            case "not started":
                self.end(read_not_started(message, self._job.digest))
            case _:
                self._judge(kind, message)
                self._stage = _Stage.JUDGED
        return None

    def _judge(self, kind: str, message: JsonObject) -> None:
        match kind:
            case "done":
                self.verdict = self._checked_verdict(read_done(message))
            case "failed":
                self.error = read_failed(message, self._job.digest)
            case _:
                self.error = read_os_error(message)

    def _checked_need(self, message: JsonObject, fed: int) -> Need:
        need = read_needs(message)
        if not self._written <= need.written <= self.granted:
            raise DocumentError(
                f"written: must be {self._written} to {self.granted}, not {need.written}"
            )
        if not self._inodes <= need.inodes <= self.granted_inodes:
            raise DocumentError(
                f"inodes: must be {self._inodes} to {self.granted_inodes}, not {need.inodes}"
            )
        wanted, granted = need.wanted, Amount(self.granted, self.granted_inodes)
        if wanted.fits(granted) or need.more % self._job.block_bytes:
            raise DocumentError(f"bytes: no whole blocks beyond those granted: {need.more}")
        most = self._most(fed)
        if not wanted.fits(most):
            raise LimitExceededError(
                f"takes {wanted.size} bytes and {wanted.inodes} inodes on disk, and what arrived "
                f"so far may become {most.size} bytes and {most.inodes} inodes",
                digest=self._job.digest,
            )
        self._written, self._inodes = need.written, need.inodes
        # What a package says of its layer is bounded as what is asked for.
        declared = need.declared.at_most(most)
        return need._replace(content=declared.size, content_inodes=declared.inodes)

    def _most(self, fed: int) -> Amount:
        job = self._job
        return Amount(
            min(most_on_disk(job, fed), _most_by_limits(job)),
            min(_most_inodes(job, fed), _most_blocks_by_limits(job)),
        )

    def _checked_verdict(self, unpacked: Unpacked) -> Unpacked:
        if not self._written <= unpacked.size <= self.granted:
            raise DocumentError(
                f"size: must be {self._written} to {self.granted}, not {unpacked.size}"
            )
        if not self._inodes <= unpacked.inodes <= self.granted_inodes:
            raise DocumentError(
                f"inodes: must be {self._inodes} to {self.granted_inodes}, not {unpacked.inodes}"
            )
        if unpacked.entries > self._job.limits.entries:
            raise DocumentError(f"entries: more than the limit: {unpacked.entries}")
        return unpacked

    def _crash(self, status: int) -> UnpackerError:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return UnpackerError(f"the unpacker {how}", digest=self._job.digest)


def most_on_disk(job: Job, fed: int) -> int:
    """Return how many bytes *fed* bytes of input may take on disk.

    The input decompresses by the configured ratio, that of a package twice. A block of a tar may
    become a block on disk: the header of a directory does, and the content of a file of one byte.
    """
    return _most_plain(job, fed) * max(1, job.block_bytes // BLOCK_BYTES)


def _most_inodes(job: Job, fed: int) -> int:
    """Return how many inodes *fed* bytes of input may take: one a block of the tar."""
    return _most_plain(job, fed) // BLOCK_BYTES


def _most_plain(job: Job, fed: int) -> int:
    plain = most_plain_bytes(fed, job.limits)
    return most_plain_bytes(plain, job.limits) if job.is_package else plain


def _most_by_limits(job: Job) -> int:
    """Return how many bytes a layer within its limits may take on disk."""
    return job.limits.unpacked_bytes + _most_blocks_by_limits(job) * job.block_bytes


def _most_blocks_by_limits(job: Job) -> int:
    """Return how many blocks, or inodes, a layer within its limits may take beside its content.

    An entry takes a block, and its content fills the last of its blocks in part; and there are
    directories that no entry lists.
    """
    return 3 * job.limits.entries + job.limits.path_depth + 1
