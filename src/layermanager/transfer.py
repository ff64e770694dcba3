"""The bytes of a layer on their way from a source: bounded, counted and checksummed.

The checksum is taken here, in the process that does not look into the bytes: what they may do to
the one that unpacks them, they cannot vouch for themselves.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from layermanager.errors import IntegrityError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.model import DesiredLayer, Limits
    from layermanager.protocols import ByteStream

CHUNK_BYTES: Final = 256 * 1024


class Transfer:
    """The file of one desired layer as it arrives.

    Attributes:
        transferred: bytes so far.
        size: bytes that there will be, where that is known.
    """

    def __init__(self, desired: DesiredLayer, stream: ByteStream, limits: Limits) -> None:
        self._desired = desired
        self._stream = stream
        self._limit = limits.package_bytes
        # Aos calls it sha256 and fills it with the SHA3-256, so either may be meant.
        algorithms = ("sha3_256", "sha256") if desired.is_package else (desired.digest.algorithm,)
        self._hashes = [hashlib.new(algorithm) for algorithm in algorithms]
        self.transferred = 0
        self.size = stream.size if desired.size is None else desired.size

    def chunks(self) -> Iterator[bytes]:
        """The bytes, to their end.

        Raises:
            SourceError: the source failed.
            IntegrityError: there are more or fewer bytes than desired.
            LimitExceededError: there are more than the limits allow.
        """
        if self._stream.size is not None and self._stream.size != self.size:
            raise self._wrong_size(self._stream.size)
        while chunk := self._stream.read(CHUNK_BYTES):
            self.transferred += len(chunk)
            if self.size is not None and self.transferred > self.size:
                raise self._wrong_size(f"at least {self.transferred}")
            if self.transferred > self._limit:
                raise LimitExceededError(
                    f"more than packageBytes: {self._limit}", digest=self._desired.digest
                )
            for hash_ in self._hashes:
                hash_.update(chunk)
            yield chunk
        if self.size is not None and self.transferred != self.size:
            raise self._wrong_size(self.transferred)

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

    def _wrong_size(self, found: object) -> IntegrityError:
        what = "package size" if self._desired.is_package else "layer size"
        return IntegrityError(
            what, expected=f"{self.size} bytes", found=found, digest=self._desired.digest
        )
