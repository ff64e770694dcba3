"""The worker: reads one layer from a pipe and writes it below one directory."""

from __future__ import annotations

import errno
import gc
import os
from typing import TYPE_CHECKING, Final

from layermanager.amounts import NOTHING
from layermanager.errors import ArchiveError, IntegrityError, LayerError, LimitExceededError
from layermanager.unpack import jail
from layermanager.unpack.compression import decompressed, no_bomb
from layermanager.unpack.fields import shown
from layermanager.unpack.index import IndexWriter
from layermanager.unpack.messages import (
    Need,
    Unpacked,
    describe,
    done_message,
    failed_message,
    jail_message,
    needs_message,
    os_error_message,
    read_granted,
    read_job,
)
from layermanager.unpack.package import PackageReader
from layermanager.unpack.rights import Rights
from layermanager.unpack.streams import (
    ByteReader,
    CountedChunks,
    HashedChunks,
    PrefetchedChunks,
    chunks_of_file,
)
from layermanager.unpack.tar import TarReader
from layermanager.unpack.tree import TreeWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layermanager.amounts import Amount
    from layermanager.model import JailMeasure
    from layermanager.unpack.messages import Channel, Job


_LAYERS_OWN_FAULTS: Final = (errno.ENAMETOOLONG, errno.EMLINK, errno.EFBIG)


def run(
    data: int, root: int, index: int, channel: Channel, namespaces: Sequence[JailMeasure]
) -> None:
    """Do the one job that *channel* gives, in a jail that is entered before any of it is read.

    Args:
        data: file descriptor from which the package or the blob is read.
        root: file descriptor of the empty directory to unpack into.
        index: file descriptor of an empty file that gets the layer's index.
        channel: where the job comes from and the verdict goes to.
        namespaces: what of the jail was built already.
    """
    # One layer makes no cycles worth collecting, and the process ends with it.
    gc.disable()
    os.umask(0)
    packet = channel.receive()
    if packet is None:
        return
    job = read_job(packet.message)
    channel.send(jail_message([*namespaces, *jail.confine(root, job.limits)]))
    try:
        unpacked = _unpack(
            job, data, root, IndexWriter(index, job.limits), _Allowance(job, channel)
        )
    except _RefusedError:
        return
    except LayerError as error:
        channel.send(failed_message(error))
    except MemoryError:
        channel.send(failed_message(LimitExceededError("it needs more memory than it may take")))
    except OSError as error:
        if error.errno in _LAYERS_OWN_FAULTS:
            channel.send(failed_message(ArchiveError(describe(error))))
        else:
            channel.send(os_error_message(error))
    else:
        channel.send(done_message(unpacked))


class _RefusedError(Exception):
    """The client wants the worker to stop."""


class _Allowance:
    """The space on disk that the client granted; more is asked for when it is spent.

    Attributes:
        spent: bytes taken.
        inodes: inodes taken.
        declared: what the package says of its layer, once that was read.
    """

    def __init__(self, job: Job, channel: Channel) -> None:
        self._granted = job.granted
        self._granted_inodes = job.granted_inodes
        self._channel = channel
        self.spent = 0
        self.inodes = 0
        self.declared = NOTHING

    def spend(self, size: int, inodes: int = 0) -> None:
        """Take *size* bytes and *inodes* of it, waiting until the client has that much for us."""
        if self.spent + size > self._granted or self.inodes + inodes > self._granted_inodes:
            self._ask(size, inodes)
        self.spent += size
        self.inodes += inodes

    def declare(self, content: Amount) -> None:
        """Note what the package says of its layer; it is told with the next question."""
        self.declared = content

    def _ask(self, size: int, inodes: int) -> None:
        declared = self.declared
        need = Need(self.spent, size, self.inodes, inodes, declared.size, declared.inodes)
        self._channel.send(needs_message(need))
        answer = self._channel.receive()
        if answer is None:
            raise _RefusedError
        granted = read_granted(answer.message)
        self._granted, self._granted_inodes = granted.size, granted.inodes


def _unpack(job: Job, data: int, root: int, index: IndexWriter, allowance: _Allowance) -> Unpacked:
    limits = job.limits
    chunks: Iterator[bytes] = chunks_of_file(data)
    package = (
        PackageReader(chunks, job.digest, limits, allowance.declare) if job.is_package else None
    )
    # The digest of a bare blob is the checksum of all that arrived, which the client computes.
    hashed = HashedChunks(package.blob(), job.digest.algorithm) if package else None
    blob = hashed or CountedChunks(chunks)
    plain = no_bomb(
        decompressed(iter(blob), zstd_window_bytes=limits.zstd_window_bytes), blob, limits
    )
    diff = HashedChunks(plain, job.diff_id.algorithm) if job.diff_id else None
    writer = TreeWriter(
        root,
        rights=Rights.below(root),
        limits=limits,
        block_bytes=job.block_bytes,
        spend=allowance.spend,
        index=index,
    )
    with PrefetchedChunks(iter(diff or plain)) as prefetched:
        reader = ByteReader(prefetched)
        tar = TarReader(reader, limits)
        entries = 0
        for entry in tar:
            try:
                writer.write(entry, tar)
            except OSError as error:
                error.filename = shown(entry.path)
                raise
            entries += 1
        # What follows the end of the archive is part of the blob all the same.
        for _ in reader.rest():
            pass
    if diff is not None and diff.digest != job.diff_id:
        raise IntegrityError("diff ID", expected=job.diff_id, found=diff.digest)
    writer.finish()
    writer.close()
    index.finish()
    return Unpacked(
        blob_digest=hashed.digest if hashed else "",
        size=allowance.spent,
        entries=entries,
        os_version=package.os_version if package else "",
        notes=writer.notes,
        inodes=allowance.inodes,
    )
