"""Asking the daemon: its API as a Python program sees it, with the standard library alone.

::

    client = Client.at_socket(Path("/run/layermanager/api.sock"))
    operation = client.put_desired(read_desired(document, "desired.json"))
    client.wait(operation.id).raise_if_failed()
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import quote

from layermanager.desired import desired_to_json
from layermanager.documents import DocumentError, JsonObject, objects, parse
from layermanager.errors import LayerManagerError
from layermanager.model import Digest, InodeUsage, LayerInfo, StoreUsage, layers_and_images
from layermanager.plan import Renaming

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from layermanager.model import DesiredImage, DesiredLayer

    Connect = Callable[[float], http.client.HTTPConnection]

Value = TypeVar("Value")

_JSON: Final = "application/json"
_SECONDS_BETWEEN_TRIES: Final = 0.5
_MAX_LINE_BYTES: Final = 16 * 1024 * 1024
_BROKEN: Final = (OSError, http.client.HTTPException)
_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


class ApiError(LayerManagerError):
    """The daemon said no.

    Attributes:
        status: the HTTP status.
        error: the name of the class in ``layermanager.errors``, or an empty text.
        problem: the whole problem document (RFC 9457).
    """

    def __init__(self, status: int, problem: JsonObject) -> None:
        detail = problem.text("detail", "") or problem.text("title", "")
        super().__init__(detail or f"the daemon answered with status {status}")
        self.status = status
        self.error = problem.text("error", "")
        self.problem = problem.members


class UnreachableError(LayerManagerError):
    """No daemon answers, or not as one does."""


class OperationFailedError(LayerManagerError):
    """An operation has failed, or was cancelled.

    Attributes:
        operation: the operation.
    """

    def __init__(self, operation: Operation) -> None:
        super().__init__(f"{operation.kind} {operation.state}: {operation.error or operation.id}")
        self.operation = operation


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that the daemon does, did or will do.

    Attributes:
        id: names it.
        kind: ``start``, ``apply``, ``gc``, ``check`` or ``adopt``.
        state: ``pending``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        error: why it failed; empty if it did not.
        result: what was done, in the words of the command's ``--json``; None before it has ended,
            and in lists.
        document: all that the daemon says of it.
    """

    id: str
    kind: str
    state: str
    error: str
    result: Mapping[str, object] | None
    document: Mapping[str, object]

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in _ENDED

    def raise_if_failed(self) -> None:
        """Return if it has not failed.

        Raises:
            OperationFailedError: it failed, or was cancelled.
        """
        if self.state in {"failed", "cancelled"}:
            raise OperationFailedError(self)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on the node.

    Attributes:
        id: names it, for a reader that goes on behind it; empty for those that cannot be gone on
            behind.
        kind: ``operation``, ``progress``, ``removed``, ``desired-state``, ``ready``, or ``gap``:
            some were lost.
        data: the facts.
    """

    id: str
    kind: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """A desired layer and how far it is.

    Attributes:
        digest: the layer.
        layer_id: its name.
        version: its version.
        state: ``installed``, ``missing``, or the phase of its installation.
        error: why it failed; empty if it did not.
    """

    digest: Digest
    layer_id: str
    version: str
    state: str
    error: str


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """A desired image and whether it is there.

    Attributes:
        reference: what it was desired as.
        platform: for which machines; empty: for the node's.
        state: ``installed``, ``missing`` or ``failed``.
        error: why it failed; empty if it did not.
    """

    reference: str
    platform: str
    state: str
    error: str


@dataclass(frozen=True, slots=True)
class DesiredStatus:
    """What shall be on the node, and how far it is.

    Attributes:
        layers: those that were desired by themselves, in their order.
        images: those that were desired, in their order.
        is_complete: whether all of them are installed.
        operation: the id of the operation that sees, or saw, to it.
    """

    layers: tuple[LayerStatus, ...]
    images: tuple[ImageStatus, ...]
    is_complete: bool
    operation: str


@dataclass(frozen=True, slots=True)
class StateSourceStatus:
    """Where the desired state comes from, and how looking there goes.

    Attributes:
        source: what is followed.
        version: which version of it was taken last; empty if none was.
        failures: how many looks failed in a row.
        error: why the last look failed, or what it found is refused; empty if all is well.
        is_refused: whether *error* says that it is refused.
    """

    source: str
    version: str
    failures: int
    error: str
    is_refused: bool


@dataclass(frozen=True, slots=True)
class PlannedSteps:
    """What would be done, by digests.

    Attributes:
        keep: nothing.
        restore: are cached and would be desired again.
        cache: would not be desired any longer.
        install: would be fetched.
        rename: would be kept or restored under another name or version.
    """

    keep: tuple[Digest, ...]
    restore: tuple[Digest, ...]
    cache: tuple[Digest, ...]
    install: tuple[Digest, ...]
    rename: tuple[Renaming, ...] = ()


class Client:
    """Asks one daemon; safe from any thread, for each request has a connection of its own.

    Every method raises ``UnreachableError`` where no daemon answers, and ``ApiError`` where it says
    no.

    Args:
        connect: makes a connection that gives up after so many seconds without a byte.
        headers: sent with each request.
        timeout: how long an answer may take.
    """

    def __init__(
        self,
        connect: Connect,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: timedelta = timedelta(seconds=60),
    ) -> None:
        self._connect = connect
        self._headers = headers or {}
        self._timeout = timeout.total_seconds()

    @classmethod
    def at_socket(cls, path: Path, *, timeout: timedelta = timedelta(seconds=60)) -> Self:
        """A client of the daemon that listens at the Unix socket *path*."""
        return cls(lambda seconds: _UnixConnection(path, seconds), timeout=timeout)

    @classmethod
    def by_tls(
        cls,
        host: str,
        port: int,
        token: str,
        *,
        tls: ssl.SSLContext,
        timeout: timedelta = timedelta(seconds=60),
    ) -> Self:
        """A client of the daemon that listens at *port* of *host*, and wants to see *token*."""

        def connect(seconds: float) -> http.client.HTTPConnection:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=tls)

        return cls(connect, {"Authorization": f"Bearer {token}"}, timeout=timeout)

    # The desired state

    def desired_state(self) -> DesiredStatus:
        """What shall be on the node, and how far it is."""
        return self._ask("GET", "/v1/desired-state", _desired_status)

    def put_desired(self, desired: Iterable[DesiredLayer | DesiredImage]) -> Operation:
        """Make the layers and images on the node be these."""
        return self._ask("PUT", "/v1/desired-state", _operation, _state_json(desired))

    def state_source(self) -> StateSourceStatus:
        """Where the desired state comes from; status 404 where nothing is followed."""
        return self._ask("GET", "/v1/desired-state/source", _state_source)

    def poll_state_source(self) -> StateSourceStatus:
        """Have the node look there as soon as possible; return how it went so far."""
        return self._ask("POST", "/v1/desired-state/poll", _state_source)

    def plan(self, desired: Iterable[DesiredLayer | DesiredImage]) -> PlannedSteps:
        """What would be done to make the layers and images on the node be these."""
        return self._ask("POST", "/v1/plan", _planned_steps, _state_json(desired))

    # What is there

    def layers(self) -> tuple[LayerInfo, ...]:
        """All installed layers, ordered by digest."""
        return self._all("/v1/layers", _layer)

    def layer(self, digest: str) -> LayerInfo:
        """One installed layer."""
        return self._ask("GET", f"/v1/layers/{quote(digest, safe='')}", _layer)

    def files(self, digest: str) -> Sequence[Mapping[str, object]]:
        """What every path of a layer is, as ``layermanager show --files --json`` says it."""
        return self._all(f"/v1/layers/{quote(digest, safe='')}/files", _members)

    def usage(self) -> StoreUsage:
        """Where the space of the layers' partition went."""
        return self._ask("GET", "/v1/df", _usage)

    def is_ready(self) -> bool:
        """Whether the store is clean and operations are done."""
        try:
            self._ask("GET", "/v1/ready", _members)
        except ApiError as error:
            if error.status != http.client.SERVICE_UNAVAILABLE:
                raise
            return False
        return True

    def metrics(self) -> str:
        """What was counted and measured, as Prometheus reads it."""
        return self._request("GET", "/v1/metrics").decode()

    def images(self) -> Sequence[Mapping[str, object]]:
        """All installed images, as ``layermanager ls --images --json`` says it."""
        return self._all("/v1/images", _members)

    # Using layers

    def lease(
        self,
        layers: Iterable[str],
        *,
        owner: str,
        ttl: timedelta | None = None,
        process: int | None = None,
    ) -> str:
        """Keep layers from being removed; return the id by which the lease is released.

        Args:
            layers: digests or names of layers, or references of images.
            owner: who uses them, for people.
            ttl: when it is over at the latest, in whole seconds; None: it need not be.
            process: a process of the node with which it is over.
        """
        body: dict[str, object] = {"layers": list(layers), "owner": owner}
        if ttl is not None:
            body["ttlSeconds"] = int(ttl.total_seconds())
        if process is not None:
            body["process"] = process
        return self._ask("POST", "/v1/leases", lambda one: one.required_text("leaseId"), body)

    def leases(self) -> Sequence[Mapping[str, object]]:
        """The leases that are not over, as ``layermanager lease ls --json`` says it."""
        return self._all("/v1/leases", _members)

    def release_lease(self, lease_id: str) -> None:
        """End a lease."""
        self._ask("DELETE", f"/v1/leases/{quote(lease_id, safe='')}", _members)

    def mount(
        self,
        name: str,
        layers: Iterable[str],
        *,
        target: Path,
        upper: Path | None = None,
        read_only: bool = False,
        context: str = "",
    ) -> None:
        """Mount layers, the uppermost first, as one tree on a directory of the node.

        Args:
            name: what it is unmounted by.
            layers: digests or names of layers, or references of images.
            target: an existing directory.
            upper: gets what is written; without it, that is thrown away.
            read_only: that nothing can be written.
            context: the SELinux label of all files in the mount.
        """
        body: dict[str, object] = {"name": name, "layers": list(layers), "target": str(target)}
        if upper is not None:
            body["upper"] = str(upper)
        if context:
            body["context"] = context
        self._ask("POST", "/v1/mounts", _members, {**body, "readOnly": read_only})

    def mounts(self) -> Sequence[Mapping[str, object]]:
        """What was mounted by name, as ``layermanager ls --mounts --json`` says it."""
        return self._all("/v1/mounts", _members)

    def umount(self, name: str, *, lazy: bool = False) -> None:
        """Unmount what was mounted by a name; lazily also if its files are in use."""
        query = "?lazy=true" if lazy else ""
        self._ask("DELETE", f"/v1/mounts/{quote(name, safe='')}{query}", _members)

    # Operations

    def collect_garbage(self, *, ttl_days: int | None = None, free: int = 0) -> Operation:
        """Remove cached layers past their time to live, and more until *free* bytes are freed."""
        body = {"free": free} if ttl_days is None else {"free": free, "ttlDays": ttl_days}
        return self._ask("POST", "/v1/gc", _operation, body)

    def check(
        self, digests: Iterable[str] = (), *, quick: bool = False, repair: bool = False
    ) -> Operation:
        """Compare layers with what they were, file by file; all of them without *digests*."""
        body = {"digests": list(digests), "quick": quick, "repair": repair}
        return self._ask("POST", "/v1/check", _operation, body)

    def adopt_layers(
        self, digests: Iterable[str] = (), *, clean_markers: bool = False
    ) -> Operation:
        """Take layers of another program for what they are; all of them without *digests*."""
        body = {"digests": list(digests), "cleanMarkers": clean_markers}
        return self._ask("POST", "/v1/adopt", _operation, body)

    def operations(self) -> tuple[Operation, ...]:
        """What is done and was done lately, the latest one first, without results."""
        return self._all("/v1/operations", _operation)

    def operation(self, operation_id: str) -> Operation:
        """One operation, as it is now."""
        return self._ask("GET", _operation_path(operation_id), _operation)

    def cancel(self, operation_id: str) -> Operation:
        """End an operation early."""
        return self._ask("DELETE", _operation_path(operation_id), _operation)

    def wait(self, operation_id: str) -> Operation:
        """Wait until an operation has ended; return what came of it."""
        for _ in self._moments(operation_id):
            operation = self.operation(operation_id)
            if operation.has_ended:
                return operation
        raise UnreachableError("the daemon ended")

    def _moments(self, operation_id: str) -> Iterator[None]:
        """The moments at which to look at an operation: at first, and when it may have changed."""
        with closing(self.events()) as events:
            for event in events:
                if event.kind in {"open", "gap"} or (
                    event.kind == "operation" and event.data.get("id") == operation_id
                ):
                    yield

    # Events

    def events(
        self,
        last_event_id: str = "",
        *,
        silence: timedelta = timedelta(seconds=60),
        patience: timedelta = timedelta(seconds=60),
    ) -> Generator[Event]:
        """What happens from now on, or has happened since *last_event_id*; it does not end.

        A connection that breaks is made anew, and goes on where the other one ended. Each begins
        with an event of the kind ``open``.

        Args:
            last_event_id: the id of the last event that was seen.
            silence: when nothing comes for so long, not even a heartbeat, the connection counts as
                broken.
            patience: how long to try to connect again. At first it is not tried again.
        """
        deadline = time.monotonic()
        while True:
            try:
                with closing(self._connect(silence.total_seconds())) as connection:
                    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
                    answer = self._answer_of(connection, "GET", "/v1/events", headers)
                    yield Event("", "open", {})
                    for event in _events_in(answer):
                        last_event_id = event.id or last_event_id
                        if event.kind:
                            yield event
                        deadline = time.monotonic() + patience.total_seconds()
            except _BROKEN as error:
                if time.monotonic() >= deadline:
                    raise UnreachableError(f"cannot follow events: {error}") from error
            deadline = max(deadline, time.monotonic() + _SECONDS_BETWEEN_TRIES)
            time.sleep(_SECONDS_BETWEEN_TRIES)

    # Asking

    def _ask(
        self, method: str, path: str, read: Callable[[JsonObject], Value], body: object = None
    ) -> Value:
        answer = self._request(method, path, body)
        with _as_described(path):
            return read(JsonObject.of(parse(answer), ""))

    def _all(self, path: str, read: Callable[[JsonObject], Value]) -> tuple[Value, ...]:
        answer = self._request("GET", path)
        with _as_described(path):
            return tuple(read(one) for one in objects(parse(answer), ""))

    def _request(self, method: str, path: str, body: object = None) -> bytes:
        try:
            with closing(self._connect(self._timeout)) as connection:
                return self._answer_of(connection, method, path, {}, body).read()
        except _BROKEN as error:
            raise UnreachableError(f"the daemon does not answer: {error}") from error

    def _answer_of(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
    ) -> http.client.HTTPResponse:
        headers = {**self._headers, **headers}
        text = None
        if body is not None:
            headers["Content-Type"] = _JSON
            text = json.dumps(body)
        connection.request(method, path, text, headers)
        answer = connection.getresponse()
        if answer.status >= http.client.BAD_REQUEST:
            with _as_described(path):
                raise ApiError(answer.status, JsonObject.of(parse(answer.read()), ""))
        return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect, as http.client asks for it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _events_in(answer: http.client.HTTPResponse) -> Iterator[Event]:
    """The events of a stream (HTML standard, section 9.2.6), until it ends.

    One without a kind only says from where to go on.
    """
    fields = {"id": "", "event": "", "data": ""}
    while line := answer.readline(_MAX_LINE_BYTES):
        name, _, value = line.decode().rstrip("\r\n").partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif fields["id"] or fields["event"]:
            data = JsonObject.of(parse(fields["data"] or "{}"), "")
            yield Event(fields["id"], fields["event"], data.members)
            fields = {"id": "", "event": "", "data": ""}


@contextmanager
def _as_described(path: str) -> Iterator[None]:
    try:
        yield
    except DocumentError as error:
        raise UnreachableError(f"{path} is not as this client knows it: {error}") from error


def _state_json(desired: Iterable[DesiredLayer | DesiredImage]) -> dict[str, object]:
    layers, images = layers_and_images(desired)
    return {
        "layers": [desired_to_json(one) for one in layers],
        "images": [{"ref": one.reference, "platform": one.platform} for one in images],
    }


def _operation_path(operation_id: str) -> str:
    return f"/v1/operations/{quote(operation_id, safe='')}"


def _members(document: JsonObject) -> Mapping[str, object]:
    return document.members


def _layer(document: JsonObject) -> LayerInfo:
    return LayerInfo(
        digest=Digest(document.required_text("digest")),
        layer_id=document.text("layerId", ""),
        version=document.text("version", ""),
        path=Path(document.required_text("path")),
        os_version=document.text("osVersion", ""),
        timestamp=datetime.fromisoformat(document.required_text("timestamp")),
        cached=document.boolean("cached", default=False),
        size=document.required_integer("size"),
    )


def _layer_status(document: JsonObject) -> LayerStatus:
    return LayerStatus(
        digest=Digest(document.required_text("digest")),
        layer_id=document.text("layerId", ""),
        version=document.text("version", ""),
        state=document.required_text("state"),
        error=document.child("error").text("message", ""),
    )


def _operation(document: JsonObject) -> Operation:
    has_result = document.members.get("result") is not None
    return Operation(
        id=document.required_text("id"),
        kind=document.required_text("kind"),
        state=document.required_text("state"),
        error=document.child("error").text("message", ""),
        result=document.child("result").members if has_result else None,
        document=document.members,
    )


def _image_status(document: JsonObject) -> ImageStatus:
    return ImageStatus(
        reference=document.required_text("ref"),
        platform=document.text("platform", ""),
        state=document.required_text("state"),
        error=document.child("error").text("message", ""),
    )


def _desired_status(document: JsonObject) -> DesiredStatus:
    layers = objects(document.members.get("layers"), "layers")
    return DesiredStatus(
        layers=tuple(map(_layer_status, layers)),
        images=tuple(map(_image_status, objects(document.members.get("images"), "images"))),
        is_complete=document.boolean("isComplete", default=False),
        operation=document.text("operation", ""),
    )


def _state_source(document: JsonObject) -> StateSourceStatus:
    return StateSourceStatus(
        source=document.required_text("source"),
        version=document.text("version", ""),
        failures=document.required_integer("failures"),
        error=document.child("error").text("message", ""),
        is_refused=document.boolean("isRefused", default=False),
    )


def _planned_steps(document: JsonObject) -> PlannedSteps:
    return PlannedSteps(
        keep=_digests(document, "keep"),
        restore=_digests(document, "restore"),
        cache=_digests(document, "cache"),
        install=_digests(document, "install"),
        rename=tuple(
            Renaming(
                Digest(one.required_text("digest")),
                one.text("layerId", ""),
                one.text("version", ""),
            )
            for one in document.objects("rename")
        ),
    )


def _usage(document: JsonObject) -> StoreUsage:
    return StoreUsage(
        path=Path(document.required_text("path")),
        total=document.required_integer("total"),
        free=document.required_integer("free"),
        limit=document.required_integer("limit"),
        desired=document.required_integer("desired"),
        reclaimable=document.required_integer("reclaimable"),
        held=document.required_integer("held"),
        inodes=_inode_usage(document),
    )


def _inode_usage(document: JsonObject) -> InodeUsage | None:
    if document.members.get("inodes") is None:
        return None  # not counted, or the daemon is of an earlier version
    inodes = document.child("inodes")
    return InodeUsage(
        total=inodes.required_integer("total"),
        free=inodes.required_integer("free"),
        desired=inodes.required_integer("desired"),
        reclaimable=inodes.required_integer("reclaimable"),
        held=inodes.required_integer("held"),
    )


def _digests(document: JsonObject, key: str) -> tuple[Digest, ...]:
    listed = document.members.get(key)
    if not isinstance(listed, list):
        raise DocumentError(f"{document.at(key)}: expected an array")
    return tuple(Digest(str(text)) for text in listed)
