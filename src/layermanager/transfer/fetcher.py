"""The bytes of a layer on their way from its sources: bounded, counted, checksummed, resumed.

The checksum is taken here, in the process that does not look into the bytes: what they may do to
the one that unpacks them, they cannot vouch for themselves.

A transfer that breaks off goes on at the byte where it stopped, from the same address or from
another one, while the unpacker waits. What a layer must be is known beforehand, so any mixture of
answers that has its digest is the layer. Where a server begins anew, what is there already is read
again and compared by its digest. Where the bytes turn out to be other ones, all begins anew with a
new unpacker; nobody knows then which of several answers was wrong, so that from then on they are
not mixed any more, and an address that gave a wrong file all by itself is not asked again.
"""

from __future__ import annotations

import hashlib
import logging
import random
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    LimitExceededError,
    PackageError,
    SourceChangedError,
    SourceError,
    StoreError,
)
from layermanager.observer import UNOBSERVED
from layermanager.transfer.attempts import Attempts
from layermanager.transfer.mirrors import addresses
from layermanager.transfer.pace import RateLimit, TimedStream
from layermanager.transfer.spool import Mark
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.errors import LayerError
    from layermanager.model import DesiredLayer, Limits
    from layermanager.observer import Observer
    from layermanager.protocols import ByteStream, Clock
    from layermanager.sources import OpenStream
    from layermanager.transfer.spool import Spool, Spools

_LOGGER: Final = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1024

_WRONG_BYTES: Final = (
    IntegrityError,
    PackageError,
    ArchiveError,
    LimitExceededError,
    SourceChangedError,
)
"""What is raised, here and by the unpacker, when bytes arrived but not the desired ones."""

_SPOOL: Final = ""
"""Stands for the spool among the addresses from which bytes came."""


class Fetcher:
    """Begins transfers; what they share is here, so that any number of threads may use it.

    Args:
        open_stream: asks a source for a file.
        spools: keeps what arrived of large files.
        network: how patient and how fast to be.
        limits: what to refuse.
        clock: the time.
        observer: is told what is fetched, and how often anew.
        chance: gives numbers from 0 to 1, to spread what would happen at the same moment.
    """

    def __init__(
        self,
        *,
        open_stream: OpenStream,
        spools: Spools,
        network: Network,
        limits: Limits,
        clock: Clock,
        observer: Observer = UNOBSERVED,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.open_stream = open_stream
        self.spools = spools
        self.network = network
        self.limits = limits
        self.clock = clock
        self.observer = observer
        self.rate_limit = RateLimit(network.rate_limit, clock)
        self._chance = chance

    def begin(self, desired: DesiredLayer, cancellation: Cancellation) -> Transfer:
        """The transfer of one layer's file; nothing is asked for before its bytes are."""
        registries = self.network.registries
        attempts = Attempts(
            f"layer {desired.digest}",
            [place for url in desired.addresses for place in addresses(url, registries)],
            network=self.network,
            clock=self.clock,
            cancellation=cancellation,
            chance=self._chance,
        )
        return Transfer(self, desired, attempts, cancellation)


class Transfer:
    """The file of one desired layer as it arrives, by as many requests as that takes.

    ``chunks`` gives all of it, from the first byte on. Where it, ``verify`` or whoever made use of
    the bytes raises an error, ``start_over`` tells whether it is worth to call ``chunks`` again.

    Attributes:
        transferred: bytes so far.
        size: bytes that there will be, where that is known.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        desired: DesiredLayer,
        attempts: Attempts,
        cancellation: Cancellation,
    ) -> None:
        self._fetcher = fetcher
        self._desired = desired
        self._attempts = attempts
        self._cancellation = cancellation
        self._clock = fetcher.clock
        self._network = fetcher.network
        # Aos calls it sha256 and fills it with the SHA3-256, so either may be meant.
        self._algorithms = (
            ("sha3_256", "sha256") if desired.is_package else (desired.digest.algorithm,)
        )
        self._validators: dict[str, str] = {}
        self._starts = 0
        self._may_mix = True
        self._pieces: list[str] = []
        self._spool: Spool | None = None
        self._begin()

    def _begin(self) -> None:
        self._hashes = [hashlib.new(algorithm) for algorithm in self._algorithms]
        self._pieces.clear()
        self.transferred = 0
        self.size = self._desired.size

    def chunks(self) -> Generator[bytes]:
        """The bytes, to their end.

        Raises:
            SourceError: no address gives them, or not in time.
            IntegrityError: there are more or fewer bytes than desired.
            LimitExceededError: there are more than the limits allow.
            CancelledError: the transfer was cancelled.
        """
        self._begin()
        yield from self._spooled()
        if self._spool is not None and self.transferred == self.size:
            return
        while True:
            address, stream = self._open()
            with closing(stream):
                try:
                    yield from self._piece(address, stream)
                except SourceError as error:
                    self._broke_off(address, error)
                else:
                    return

    def verify(self) -> None:
        """Compare the checksum of all that arrived with the desired one.

        Raises:
            IntegrityError: it is another.
        """
        digest = self._desired.digest
        if not self._desired.is_package:
            found = f"{digest.algorithm}:{self._hashes[0].hexdigest()}"
            if found != digest:
                raise IntegrityError("layer digest", expected=digest, found=found, digest=digest)
            return
        if self._desired.sha256 not in [hash_.digest() for hash_ in self._hashes]:
            sha3_256, sha256 = (hash_.hexdigest() for hash_ in self._hashes)
            raise IntegrityError(
                "package checksum",
                expected=self._desired.sha256.hex(),
                found=f"SHA3-256 {sha3_256}, SHA-256 {sha256}",
                digest=digest,
            )

    def start_over(self, error: LayerError) -> None:
        """Return if ``chunks`` may well give the right bytes from now on.

        Raises:
            LayerError: *error*, since it may not.
        """
        if not isinstance(error, _WRONG_BYTES):
            if self._pieces[:1] == [_SPOOL] and not isinstance(error, SourceError):
                # It may be the fault of the bytes that were spooled, and must not be for ever:
                # who sent them may have been another than who is asked now.
                self.discard()
            raise error
        self.discard()
        self._starts += 1
        if self._starts > self._network.attempts or not self._may_be_mended(error):
            raise error
        self._fetcher.observer.retried()
        _LOGGER.warning("layer %s is fetched from its beginning: %s", self._desired.digest, error)

    def close(self) -> None:
        """Keep for another time what arrived, where that was spooled; may be repeated."""
        if self._spool is None:
            return
        if self._pieces and self._pieces[-1] != _SPOOL:
            self._spool.note(self._mark(self._pieces[-1]))
        self._spool.close()

    def discard(self) -> None:
        """Keep nothing, since the layer is complete, or its bytes are wrong; may be repeated."""
        if self._spool is not None:
            self._spool.discard()
            self._spool = None

    # From addresses

    def _open(self) -> tuple[str, ByteStream]:
        """Ask addresses until one gives a stream of the file."""
        while True:
            address = self._attempts.next()
            try:
                stream = self._fetcher.open_stream(
                    address,
                    self._cancellation,
                    offset=self.transferred,
                    validator=self._validators.get(address, ""),
                )
            except SourceError as error:
                self._failed(address, error)
                continue
            wrong = self._size_that_is_wrong(stream)
            if wrong is None:
                self._validators[address] = stream.validator
                return address, stream
            stream.close()
            self._give_up(address, wrong)

    def _size_that_is_wrong(self, stream: ByteStream) -> IntegrityError | None:
        """What speaks against the size that the source tells; the first one counts if none does."""
        if self.size is None:
            self.size = stream.size
        if stream.size is None or stream.size == self.size:
            return None
        return self._wrong_size(stream.size)

    def _give_up(self, address: str, wrong: IntegrityError) -> None:
        """Ask *address* no more; return if others are left.

        If nobody but a source has told the size, the file may have changed, and all begins anew.
        """
        if self._desired.size is None:
            raise SourceChangedError(str(wrong), url=shown(address), is_transient=True)
        if not self._attempts.give_up(address):
            raise wrong
        _LOGGER.warning("layer %s: %s: %s", self._desired.digest, wrong, shown(address))

    def _failed(self, address: str, error: SourceError) -> None:
        """Note that *address* failed; return if something may be asked again."""
        self._attempts.failed(address, error)
        self._fetcher.observer.retried()

    def _broke_off(self, address: str, error: SourceError) -> None:
        """Note that a stream of *address* failed; return if another one may go on there."""
        self._failed(address, error)
        if isinstance(error, SourceChangedError):
            raise error
        if self.transferred and not self._may_mix:
            raise SourceChangedError(error.reason, url=error.url, is_transient=True) from error

    # From a stream

    def _piece(self, address: str, stream: ByteStream) -> Iterator[bytes]:
        """What *stream* has of the file behind what is there already."""
        with ExitStack() as stack:
            stack.enter_context(self._cancellation.interrupting(stream.abort))
            timed = stream if stream.is_local else stack.enter_context(self._timed(address, stream))
            if stream.offset < self.transferred:
                self._skip(address, timed)
            if self._spool is None and not stream.is_local and not self.transferred:
                self._spool = self._open_spool()
            before = self.transferred
            for chunk in self._read(timed, is_local=stream.is_local):
                if self.transferred == before:
                    self._pieces.append(address)
                    self._attempts.gave_bytes(address)
                self._take(chunk)
                if not stream.is_local:
                    self._keep(address, chunk)
                yield chunk
        if self.size is None or self.transferred == self.size:
            return
        if self.transferred == before or not self._may_mix:  # no accident: the file is shorter
            raise self._wrong_size(self.transferred)
        raise SourceError(
            f"ended after {self.transferred} of {self.size} bytes",
            url=shown(address),
            is_transient=True,
        )

    def _timed(self, address: str, stream: ByteStream) -> TimedStream:
        return TimedStream(
            stream,
            self._clock,
            least_rate=self._network.minimum_rate,
            period=self._network.read_timeout,
            deadline=self._attempts.deadline,
            url=shown(address),
        )

    def _skip(self, address: str, stream: ByteStream | TimedStream) -> None:
        """Read again what is there already, from a source that cannot begin behind it."""
        hashes = [hashlib.new(algorithm) for algorithm in self._algorithms]
        left = self.transferred
        while left:
            data = stream.read(min(left, self._fetcher.rate_limit.piece(CHUNK_BYTES)))
            if not data:
                break
            self._fetcher.observer.fetched(len(data))
            left -= len(data)
            for hash_ in hashes:
                hash_.update(data)
            self._fetcher.rate_limit.spend(len(data), self._cancellation)
        if [hash_.digest() for hash_ in hashes] != [hash_.digest() for hash_ in self._hashes]:
            raise SourceChangedError(
                "the file changed while it was fetched",
                url=shown(address),
                is_transient=True,
            )

    def _read(self, stream: ByteStream | TimedStream, *, is_local: bool) -> Iterator[bytes]:
        """All bytes of *stream*, at the rate that those of the network may have."""
        if is_local:
            while chunk := stream.read(CHUNK_BYTES):
                self._fetcher.observer.fetched(len(chunk))
                yield chunk
            return
        rate_limit = self._fetcher.rate_limit
        piece = rate_limit.piece(CHUNK_BYTES)
        while chunk := stream.read(piece):
            self._fetcher.observer.fetched(len(chunk))
            yield chunk
            rate_limit.spend(len(chunk), self._cancellation)

    def _take(self, chunk: bytes) -> None:
        self.transferred += len(chunk)
        if self.size is not None and self.transferred > self.size:
            raise self._wrong_size(f"at least {self.transferred}")
        limit = self._fetcher.limits.package_bytes
        if self.transferred > limit:
            raise LimitExceededError(
                f"more than packageBytes: {limit}", digest=self._desired.digest
            )
        for hash_ in self._hashes:
            hash_.update(chunk)

    # What is kept, and who is to blame

    def _spooled(self) -> Iterator[bytes]:
        """What an earlier transfer left in the spool, if there is one; it has one chance."""
        if self._starts or not self._fetcher.spools.has(self._desired):
            return
        self._spool = self._open_spool()
        if self._spool is None or self._spool.mark is None:
            return
        mark = self._spool.mark
        self._pieces.append(_SPOOL)
        for chunk in self._spool.chunks():
            self._take(chunk)
            yield chunk
        found = self._hashes[-1].hexdigest()
        if found != mark.digest:
            raise IntegrityError("spooled bytes", expected=mark.digest, found=found)
        for address in self._attempts.urls:
            if shown(address) == mark.url:
                self._validators[address] = mark.validator

    def _open_spool(self) -> Spool | None:
        """The spool of this file if it is large enough for one; without one it goes as well."""
        size = self._desired.size
        if not self._may_mix or size is None or size < self._network.spool_bytes:
            return None
        try:
            return self._fetcher.spools.open(self._desired)
        except StoreError as error:
            _LOGGER.warning("layer %s is not spooled: %s", self._desired.digest, error)
            return None

    def _keep(self, address: str, chunk: bytes) -> None:
        """Spool *chunk*, unless something before it was not spooled."""
        spool = self._spool
        if spool is None or spool.size != self.transferred - len(chunk):
            return
        if spool.append(chunk):
            spool.note(self._mark(address))

    def _mark(self, address: str) -> Mark:
        return Mark(
            offset=self.transferred,
            digest=self._hashes[-1].hexdigest(),
            url=shown(address),
            validator=self._validators.get(address, ""),
        )

    def _may_be_mended(self, error: LayerError) -> bool:
        """Whether other answers may be better than those that led to *error*.

        An address that gave wrong bytes all by itself gives no better ones. Where several answers
        were put together, or a spool was, nobody knows which one was wrong; from then on each
        start makes do with one answer.
        """
        if isinstance(error, SourceChangedError) or self._pieces == [_SPOOL]:
            return True
        if len(self._pieces) == 1:
            return self._attempts.give_up(self._pieces[0])
        self._may_mix = False
        return bool(self._pieces)

    def _wrong_size(self, found: object) -> IntegrityError:
        what = "package size" if self._desired.is_package else "layer size"
        return IntegrityError(
            what, expected=f"{self.size} bytes", found=found, digest=self._desired.digest
        )
