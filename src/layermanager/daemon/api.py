"""One list of what there is to ask for: requests are routed and checked by it, and described."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

from layermanager.boundary import Boundary
from layermanager.daemon.http import JSON, Answer
from layermanager.daemon.problems import RefusedError, failure, refusal
from layermanager.daemon.schema import MAX_VIOLATIONS, Violation, violations
from layermanager.documents import DocumentError, parse
from layermanager.errors import LayerManagerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from layermanager.daemon.http import Request
    from layermanager.daemon.node import Node
    from layermanager.daemon.schema import Schema
    from layermanager.protocols import Clock

    OnAnswer = Callable[[str, int, float], None]

_LOGGER: Final = logging.getLogger(__name__)

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_MAX_QUERY_FIELDS: Final = 20


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path, a field of the query or a header that an endpoint understands.

    Attributes:
        name: what it is called.
        place: ``path``, ``query`` or ``header``.
        schema: what values it may have; of one whose type is ``integer`` or ``boolean`` the text is
            read as JSON.
        description: what it means.
    """

    name: str
    place: str
    schema: Schema
    description: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One of the answers that an endpoint gives, besides problems.

    Attributes:
        description: when it comes.
        schema: what its body is; None where it is no JSON.
        content_type: the kind of its body.
    """

    description: str
    schema: Schema | None
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an endpoint, checked.

    Attributes:
        parameters: the values by their names; those that are not given are not there.
        body: the document, as ``json`` reads it; None where the endpoint takes none.
        text: the bytes of that document.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something to ask for.

    Attributes:
        method: its method.
        path: with ``{name}`` for each parameter in it.
        name: what programs call it, in camel case.
        summary: what it does, on a line.
        handle: does it, in the thread of the connection; it must not wait for an operation.
        replies: what it answers, by status.
        parameters: what it understands.
        body: the JSON document that it takes, if it takes one.
        problems: the statuses of the problem documents that are its own; those that any request may
            get are not among them.
        description: what else is to be known.
    """

    method: str
    path: str
    name: str
    summary: str
    handle: Callable[[Node, Call], Answer]
    replies: Mapping[int, Reply]
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    problems: tuple[int, ...] = ()
    description: str = ""


class Api:
    """Answers requests by *endpoints*.

    Args:
        node: what it is asked of.
        endpoints: what there is to ask for.
        components: the schemas that those of the endpoints refer to.
        clock: measures how long answers take.
        on_answer: is told of the name, the status and the seconds of each.
    """

    def __init__(
        self,
        node: Node,
        endpoints: Iterable[Endpoint],
        components: Mapping[str, Schema],
        clock: Clock,
        on_answer: OnAnswer,
    ) -> None:
        self._node = node
        self._components = components
        self._clock = clock
        self._guard = node.guard
        self._on_answer = self._guard.callback(Boundary.REQUEST, on_answer)
        self._routes: dict[str, tuple[re.Pattern[str], dict[str, Endpoint]]] = {}
        for endpoint in endpoints:
            _, methods = self._routes.setdefault(endpoint.path, (_path_pattern(endpoint.path), {}))
            methods[endpoint.method] = endpoint

    def answer(self, request: Request) -> Answer:
        """The answer to *request*; a problem document if there is no other."""
        began = self._clock.monotonic()
        name = "none"
        try:
            # A bug must end neither this connection nor others.
            with self._guard.failing(
                Boundary.REQUEST,
                f"{request.method} {request.target.partition('?')[0]:.200}",
                passing=(RefusedError,),
            ):
                endpoint, path_parameters = self._route(request)
                name = endpoint.name
                answer = endpoint.handle(self._node, self._call(endpoint, path_parameters, request))
        except RefusedError as error:
            answer = refusal(error)
        except LayerManagerError as error:
            answer = failure(error)
        self._on_answer(name, answer.status, self._clock.monotonic() - began)
        _LOGGER.log(
            logging.DEBUG if request.method in _SAFE_METHODS else logging.INFO,
            "%s %s: %d, for %s",
            request.method,
            request.target,
            answer.status,
            request.peer,
        )
        return answer

    def _route(self, request: Request) -> tuple[Endpoint, Mapping[str, str]]:
        path = request.target.partition("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        for pattern, methods in self._routes.values():
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method not in methods:
                allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
                raise RefusedError(
                    HTTPStatus.METHOD_NOT_ALLOWED,
                    f"{path} knows {allowed}",
                    headers={"Allow": allowed},
                )
            return methods[method], match.groupdict()
        raise RefusedError(
            HTTPStatus.NOT_FOUND, f"there is no {path:.200}; /v1/openapi.json describes what is"
        )

    def _call(
        self, endpoint: Endpoint, path_parameters: Mapping[str, str], request: Request
    ) -> Call:
        given = {
            "path": {name: unquote(text) for name, text in path_parameters.items()},
            "query": _query_of(request.target),
            "header": request.headers,
        }
        known = {one.name for one in endpoint.parameters if one.place == "query"}
        found = [
            Violation(name[:80], "unknown parameter; known: " + (", ".join(known) or "none"))
            for name in given["query"]
            if name not in known
        ]
        parameters = {}
        for parameter in endpoint.parameters:
            key = parameter.name.lower() if parameter.place == "header" else parameter.name
            text = given[parameter.place].get(key)
            if text is None:
                continue
            value = _value_of(text, parameter.schema)
            found += violations(value, parameter.schema, self._components, parameter.name)
            parameters[parameter.name] = value
        body = None
        if endpoint.body is not None:
            body = self._body(endpoint.body, request, found)
        elif request.body:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "this takes no body")
        if found:
            raise RefusedError.for_violations(found[:MAX_VIOLATIONS])
        return Call(parameters, body, request.body)

    def _body(self, schema: Schema, request: Request, found: list[Violation]) -> object:
        # Asked for strictly: a form of another site can send any body, but not of this kind.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {JSON}, not {kind or 'none'}"
            )
        try:
            body = parse(request.body)
        except DocumentError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        for violation in violations(body, schema, self._components):
            found.append(violation)
            if len(found) == MAX_VIOLATIONS:
                break
        return body


def _path_pattern(path: str) -> re.Pattern[str]:
    parts: Sequence[str] = _PARAMETER.split(path)
    return re.compile(
        "".join(
            f"(?P<{part}>[^/]+)" if position % 2 else re.escape(part)
            for position, part in enumerate(parts)
        )
    )


def _query_of(target: str) -> Mapping[str, str]:
    query = target.partition("?")[2]
    try:
        return dict(
            parse_qsl(
                query,
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_MAX_QUERY_FIELDS,
            )
        )
    except ValueError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the query cannot be read: {error}") from error


def _value_of(text: str, schema: Schema) -> object:
    """The value that *text* stands for; the text itself where it stands for none."""
    if schema.get("type") == "boolean" and text in {"true", "false"}:
        return text == "true"
    if schema.get("type") == "integer" and re.fullmatch("-?[0-9]{1,18}", text):
        return int(text)
    return text
