"""A desired state on a web server: asked for by its ETag (RFC 9110, 13.1.2), so seldom sent."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from layermanager.daemon.state_sources import Fetched
from layermanager.header_numbers import read_etag, read_http_date
from layermanager.sources.client import Place
from layermanager.sources.http import stream_of
from layermanager.transfer.pace import document_deadline, read_first
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.living import LivingThreads
    from layermanager.protocols import Clock
    from layermanager.sources.client import Answer, HttpClient

_SUFFIX: Final = ".sig"
_MOST_SIGNATURE_BYTES: Final = 64 * 1024
_DIGEST_PREFIX: Final = "sha256:"


class WebStateSource:
    """Asks for a URL; the signature is at the same one with ``.sig`` at the end of its path.

    Args:
        url: the address.
        client: sends the requests; it is closed with this.
        network: how patient to be.
        clock: the time.
        most_bytes: how large the document may be.
        with_signature: whether the signature is wanted.
    """

    is_local: Final = False

    def __init__(
        self,
        url: str,
        client: HttpClient,
        network: Network,
        clock: Clock,
        *,
        most_bytes: int,
        with_signature: bool,
    ) -> None:
        self._place = Place.of(url)
        self._client = client
        self._network = network
        self._clock = clock
        self._most_bytes = most_bytes
        self._with_signature = with_signature

    @property
    def name(self) -> str:
        """The address."""
        return shown(self._place.asked)

    def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
        """What is at the address now, as ``StateSource`` has it."""
        with self._deadline(self._place, cancellation) as limited:
            answer = self._client.get(self._place, _condition(known), limited)
            if answer.status == HTTPStatus.NOT_MODIFIED:
                answer.close()
                return None
            validator = self._validator(answer.headers)
            document = self._read(answer, self._most_bytes, limited)
        digest = _DIGEST_PREFIX + hashlib.sha256(document).hexdigest()
        version = validator or digest
        if known in (version, digest):
            return None
        if not self._with_signature:
            return Fetched(version, document, refused_version=digest)
        place = self._signature_place()
        with self._deadline(place, cancellation) as limited:
            answer = self._client.get(place, {}, limited)
            signature = self._read(answer, _MOST_SIGNATURE_BYTES, limited)
        return Fetched(version, document, signature, refused_version=digest)

    def watching(
        self,
        on_change: Callable[[], None],  # noqa: ARG002 - the server does not tell of changes
        threads: LivingThreads,  # noqa: ARG002 - likewise
    ) -> AbstractContextManager[None]:
        """Do nothing, as ``StateSource`` has it."""
        return nullcontext()

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _validator(self, headers: Mapping[str, str]) -> str:
        """Return what to ask by the next time; empty if the answer has nothing that is fit for it.

        A time in the future would have an honest server say for years that nothing has changed. It
        is one by the date of the answer, or by the calendar here, which may be ahead.
        """
        if tag := read_etag(headers.get("ETag", "")):
            return tag
        time = headers.get("Last-Modified", "").strip()
        now = self._clock.now()
        moment = read_http_date(time, now)
        sent = read_http_date(headers.get("Date", "").strip(), now) or now
        return time if moment is not None and moment <= min(now, sent) else ""

    def _signature_place(self) -> Place:
        parts = urlsplit(self._place.current)
        url = parts._replace(path=parts.path + _SUFFIX).geturl()
        return replace(self._place, asked=url, current=url)

    def _deadline(
        self, place: Place, cancellation: Cancellation
    ) -> AbstractContextManager[Cancellation]:
        return document_deadline(
            place.asked, network=self._network, clock=self._clock, cancellation=cancellation
        )

    def _read(self, answer: Answer, most_bytes: int, cancellation: Cancellation) -> bytes:
        stream = stream_of(answer, self._clock)
        body = read_first(
            stream,
            most_bytes + 1,
            url=answer.place.current,
            network=self._network,
            clock=self._clock,
            cancellation=cancellation,
        )
        if len(body) > most_bytes:
            raise answer.place.error(f"larger than {most_bytes} bytes")
        return body


def _condition(known: str) -> Mapping[str, str]:
    """The header by which a server answers nothing but that *known* is still what it has."""
    if not known or known.startswith(_DIGEST_PREFIX):
        return {}
    if known.startswith(('"', "W/")):
        return {"If-None-Match": known}
    return {"If-Modified-Since": known}
