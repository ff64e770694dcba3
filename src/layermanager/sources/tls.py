"""TLS sockets that hand on at once all that has arrived.

OpenSSL gives one record at a time, 16 KiB at most. What is done for each piece of a layer, from
here to the unpacker, would be done sixteen times as often, and took as much CPU time as all the
decrypting and checksums together.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class EagerSocket(ssl.SSLSocket):
    """Takes with one ``recv_into`` as many records as have arrived and fit into the buffer.

    It waits for the first of them only. What fails behind a record is raised by the next call, so
    that no byte before it is lost. To be made by a context that has it as ``sslsocket_class``.

    The stream ends where the peer closes it, with a ``close_notify`` or without one: many servers
    send none. Whether the end is too early is decided above, by sizes and digests.
    """

    _failure: OSError | None = None  # here, as ssl makes its sockets without calling __init__

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive up to *nbytes*, or as many as the buffer holds; 0 at the end."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        received = self._receive(buffer, nbytes, flags)
        room = memoryview(buffer).cast("B")[: nbytes or None]
        timeout = self.gettimeout()
        self.settimeout(0)
        try:
            while 0 < received < len(room) and (count := self._receive(room[received:])):
                received += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            pass  # nothing more has arrived
        except OSError as error:
            self._failure = error
        finally:
            self.settimeout(timeout)
        return received

    def _receive(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive one record, or the rest of one; 0 at the end."""
        try:
            return super().recv_into(buffer, nbytes, flags)
        except BrokenPipeError:
            # OpenSSL 3.5 answers an end without close_notify by an alert, and a closed peer takes
            # none. OpenSSL 3.0 sends no alert, and Python makes an end of that by itself.
            return 0
