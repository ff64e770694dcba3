"""Requests to registries, who is logged in to where he is asked to.

A registry that wants to know who is there answers 401, and says how (distribution-spec; "Docker
Registry v2 authentication via central service"): by a name and a password, or by a token, which is
to be had from another server, for a while and for one repository. Tokens are kept until they
expire; one that is refused is replaced once.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

from layermanager.ages import elapsed
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError, IntegrityError, InvalidDigestError
from layermanager.model import Digest
from layermanager.registry.challenge import ChallengeError, parse_challenges
from layermanager.sources.client import Place
from layermanager.sources.credentials import bearer
from layermanager.sources.http import refusal, stream_of
from layermanager.transfer.mirrors import base_url
from layermanager.transfer.pace import document_deadline, read_first
from layermanager.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.cancellation import Cancellation
    from layermanager.config import Network
    from layermanager.errors import SourceError
    from layermanager.oci.reference import RegistryReference
    from layermanager.protocols import Clock
    from layermanager.registry.challenge import Challenge
    from layermanager.registry.logins import Login, Logins
    from layermanager.sources.client import Answer, HttpClient, Upload
    from layermanager.sources.http import HttpStream

PULL: Final = "pull"
PUSH: Final = "pull,push"

TOLD_DIGEST: Final = "Docker-Content-Digest"
"""The header in which a registry names the digest of a manifest (distribution-spec, "Pull")."""

_LARGEST_TOKEN_BYTES: Final = 1024 * 1024
_DEFAULT_SECONDS: Final = 60
_LONGEST_SECONDS: Final = 365 * 24 * 60 * 60


class RegistryClient:
    """Sends requests to registries; may be used by several threads at once.

    Args:
        client: sends them; it is closed with this.
        logins: who this node is to whom.
        network: which registries speak http, and how patient to be with documents.
        clock: the time.
    """

    def __init__(self, client: HttpClient, logins: Logins, network: Network, clock: Clock) -> None:
        self._client = client
        self._logins = logins
        self._network = network
        self._clock = clock
        self._grants: dict[_Access, _Grant] = {}
        self._lock = threading.Lock()

    def place(self, reference: RegistryReference, path: str) -> Place:
        """Where *path* of the repository of *reference* is."""
        base = base_url(reference.registry, self._network.registries)
        return Place.of(f"{base}/v2/{reference.repository}/{path}")

    def get(
        self,
        reference: RegistryReference,
        path: str,
        headers: Mapping[str, str],
        cancellation: Cancellation,
    ) -> Answer:
        """Ask for *path* of the repository of *reference*, and follow redirects.

        Raises:
            SourceError: there is no answer, or a redirect or a login leads where it may not.
            CancelledError: it was cancelled.
        """

        def ask(place: Place) -> Answer:
            return self._client.get(place, headers, cancellation)

        return self._logged_in(ask, self.place(reference, path), reference, PULL, cancellation)

    def head(
        self,
        reference: RegistryReference,
        path: str,
        headers: Mapping[str, str],
        cancellation: Cancellation,
    ) -> Answer:
        """Ask what would be said of *path* of the repository of *reference*; follow no redirect.

        Raises:
            SourceError: there is no answer, or a login leads where it may not.
            CancelledError: it was cancelled.
        """

        def ask(place: Place) -> Answer:
            return self._client.send("HEAD", place, headers, cancellation)

        return self._logged_in(ask, self.place(reference, path), reference, PULL, cancellation)

    def send(
        self,
        method: str,
        reference: RegistryReference,
        place: Place,
        headers: Mapping[str, str],
        cancellation: Cancellation,
        *,
        body: bytes | None = None,
    ) -> Answer:
        """Send what has to do with changing the repository of *reference*; follow no redirect.

        Raises:
            SourceError: there is no answer, or a login leads where it may not.
            CancelledError: it was cancelled.
        """

        def ask(place: Place) -> Answer:
            return self._client.send(method, place, headers, cancellation, body)

        return self._logged_in(ask, place, reference, PUSH, cancellation)

    def upload(
        self,
        reference: RegistryReference,
        place: Place,
        body: Upload,
        cancellation: Cancellation,
    ) -> Answer:
        """PUT *body* at *place*, where the registry of *reference* said that it is to go.

        It is sent once: if the registry wants to know anew who is there, the error is transient.

        Raises:
            SourceError: there is no answer.
            LayerManagerError: of *body*.
            CancelledError: it was cancelled.
        """
        access = self._access(reference, PUSH)
        place = replace(place, authorization=self._granted(access, place))
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._client.send("PUT", place, headers, cancellation, body)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            answer.close()
            self._forget(access)
            raise answer.place.error(f"the login ended: {answer.reason}", is_transient=True)
        return answer

    def refusal(self, answer: Answer, reason: str = "") -> SourceError:
        """The error for an answer that is not the one that was hoped for; it is closed."""
        return refusal(answer, self._clock, reason)

    def read(self, stream: HttpStream, size: int, url: str, cancellation: Cancellation) -> bytes:
        """The first *size* bytes of *stream*, or all if there are fewer; it is closed.

        Raises:
            SourceError: they cannot be had, or not in time.
            CancelledError: it was cancelled.
        """
        return read_first(
            stream,
            size,
            url=url,
            network=self._network,
            clock=self._clock,
            cancellation=cancellation,
        )

    def close(self) -> None:
        """Close the idle connections, and forget the tokens."""
        self._client.close()
        with self._lock:
            self._grants.clear()

    def _logged_in(
        self,
        ask: Callable[[Place], Answer],
        place: Place,
        reference: RegistryReference,
        actions: str,
        cancellation: Cancellation,
    ) -> Answer:
        """Ask at *place* as whoever it is that may; log in, once, where the answer is 401."""
        access = self._access(reference, actions)
        answer = ask(replace(place, authorization=self._granted(access, place)))
        if answer.status != HTTPStatus.UNAUTHORIZED:
            return answer
        answer.close()
        if not _is_at(answer.place, access.registry):
            raise answer.place.error(answer.reason)  # not the registry asks, but who it led to
        grant = self._log_in(answer, reference, actions, cancellation)
        with self._lock:
            self._grants[access] = grant
        answer = ask(replace(place, authorization=grant.authorization))
        if answer.status != HTTPStatus.UNAUTHORIZED:
            return answer
        self._forget(access)
        raise refusal(answer, self._clock, "the registry refuses the login that it asked for")

    def _access(self, reference: RegistryReference, actions: str) -> _Access:
        registry = base_url(reference.registry, self._network.registries)
        return _Access(registry, reference.repository, actions)

    def _granted(self, access: _Access, place: Place) -> str | None:
        """The header that lets in at *place*; None where it is not known, or not the registry's."""
        with self._lock:
            grant = self._grants.get(access)
        if grant is None or elapsed(self._clock) >= grant.until:
            return None
        return grant.authorization if _is_at(place, access.registry) else None

    def _forget(self, access: _Access) -> None:
        with self._lock:
            self._grants.pop(access, None)

    def _log_in(
        self,
        asking: Answer,
        reference: RegistryReference,
        actions: str,
        cancellation: Cancellation,
    ) -> _Grant:
        """Do what the answer *asking* asks for."""
        place = asking.place
        try:
            challenges = parse_challenges(asking.headers.get("WWW-Authenticate", ""))
        except ChallengeError as error:
            raise place.error(f"the registry asks for a login in no known way: {error}") from error
        ways = {challenge.scheme: challenge for challenge in reversed(challenges)}
        registry = base_url(reference.registry, self._network.registries)
        try:
            login = self._logins.find(reference, registry, cancellation)
        except ConfigError as error:
            raise place.error(f"not asked: {error}") from error
        if "bearer" in ways:
            scope = f"repository:{reference.repository}:{actions}"
            return self._token(place, ways["bearer"], login, scope, cancellation)
        if "basic" not in ways:
            known = ", ".join(ways) or "none"
            raise place.error(f"the registry asks for a login of an unknown kind: {known:.200}")
        if login is None or not login.authorization:
            raise place.error("the registry asks for a name and a password, and none are known")
        return _Grant(login.authorization)

    def _token(
        self,
        place: Place,
        challenge: Challenge,
        login: Login | None,
        scope: str,
        cancellation: Cancellation,
    ) -> _Grant:
        """Get a token from where *challenge* says that there are some."""
        realm = challenge.parameters.get("realm", "")
        if not _has_host(realm):
            raise place.error(
                f"the registry does not say where to get a token: {shown(realm)!r:.200}"
            )
        target = place.sent_on(realm, "sent for a token")
        began = elapsed(self._clock)
        with document_deadline(
            realm, network=self._network, clock=self._clock, cancellation=cancellation
        ) as limited:
            answer = self._ask_for_token(target, challenge, login, scope, limited)
            if answer.status != HTTPStatus.OK:
                who = "nobody in particular" if login is None else "the login that is known"
                raise refusal(answer, self._clock, f"no token for {who}")
            place = answer.place
            stream = stream_of(answer, self._clock)
            document = self.read(stream, _LARGEST_TOKEN_BYTES, place.current, limited)
        return _read_token(document, place, began)

    def _ask_for_token(
        self,
        target: Place,
        challenge: Challenge,
        login: Login | None,
        scope: str,
        cancellation: Cancellation,
    ) -> Answer:
        wanted = {"scope": scope}
        if service := challenge.parameters.get("service"):
            wanted = {"service": service, **wanted}
        if login is not None and login.identity_token:
            form = {
                **wanted,
                "grant_type": "refresh_token",
                "client_id": "layermanager",
                "refresh_token": login.identity_token,
            }
            return self._client.send(
                "POST",
                replace(target, authorization=None),
                {"Content-Type": "application/x-www-form-urlencoded"},
                cancellation,
                urlencode(form).encode(),
            )
        authorization = login.authorization if login else None
        target = replace(target.with_query(urlencode(wanted)), authorization=authorization)
        return self._client.get(target, {}, cancellation)


@dataclass(frozen=True, slots=True)
class _Access:
    """What is to be let in to: a repository of the registry at a URL, for some actions."""

    registry: str
    repository: str
    actions: str


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a registry lets in.

    Attributes:
        authorization: the header.
        until: when it expires, by ``elapsed``: time asleep counts.
    """

    authorization: str = field(repr=False)
    until: float = float("inf")


def _read_token(document: bytes, place: Place, began: float) -> _Grant:
    """Read the answer of a token server to a request that began at that time."""
    try:
        members = JsonObject.of(parse(document), "")
        token = members.text("token", "") or members.required_text("access_token")
        return _Grant(bearer(token), began + _lifetime(members.members.get("expires_in")))
    except (DocumentError, ConfigError) as error:
        raise _no_token(place, error) from error


def _lifetime(told: object) -> float:
    """Return the seconds that a token is good for; what makes no sense counts as not said."""
    if isinstance(told, int | float) and told > 0:
        return min(told, _LONGEST_SECONDS)
    return _DEFAULT_SECONDS


def _no_token(place: Place, error: Exception) -> SourceError:
    return place.error(f"the answer holds no token: {error}")


def _is_at(place: Place, base: str) -> bool:
    """Whether *place* is at the server of the URL *base*."""
    return urlsplit(place.current)[:2] == urlsplit(base)[:2]


def check_told_digest(answer: Answer, document: bytes) -> None:
    """Compare the digest that a registry names, which proves nothing, with the true one.

    Raises:
        IntegrityError: it is another.
        SourceError: it is none.
    """
    for told in told_digests(answer):
        found = f"{told.algorithm}:{hashlib.new(told.algorithm, document).hexdigest()}"
        if found != told:
            raise IntegrityError(TOLD_DIGEST, expected=told, found=found, digest=told)


def told_digests(answer: Answer) -> frozenset[Digest]:
    """Return the digests that a registry names: normally one, none where it names none.

    Proxies repeat the header, and some registries write it in quotes.

    Raises:
        SourceError: it names something else.
    """
    words = (word.strip(' \t"') for word in answer.headers.get(TOLD_DIGEST, "").split(","))
    try:
        return frozenset(Digest(word) for word in words if word)
    except InvalidDigestError as error:
        raise answer.place.error(f"{TOLD_DIGEST}: {error}") from error


def _has_host(realm: str) -> bool:
    """Return whether *realm*, which a registry wrote, is an address with a host."""
    try:
        return bool(urlsplit(realm).netloc)
    except ValueError:
        return False
