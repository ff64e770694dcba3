"""The OpenAPI document (version 3.1), made of the list of endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager import __version__
from layermanager.daemon.http import JSON, PROBLEM, phrase
from layermanager.daemon.schema import reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layermanager.daemon.api import Endpoint, Reply
    from layermanager.daemon.schema import Schema

_OF_PARAMETERS: Final = (400, 422)
_OF_BODIES: Final = (400, 413, 415, 422)


def document(endpoints: Iterable[Endpoint], components: Mapping[str, Schema]) -> dict[str, object]:
    """Describe *endpoints*, whose schemas refer to *components*."""
    paths: dict[str, dict[str, object]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "layermanager",
            "version": __version__,
            "summary": "The layers on one node",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The node, by its Unix socket or by TLS."}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                "Problem": {
                    "description": "What is wrong.",
                    "content": {PROBLEM: {"schema": reference("Problem")}},
                }
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Over TCP only; who may write to the socket needs none.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.parameters:
        operation["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.description,
                "schema": parameter.schema,
            }
            for parameter in endpoint.parameters
        ]
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": endpoint.body}}}
    replies = {str(status): _reply(reply) for status, reply in endpoint.replies.items()}
    for status in _problems_of(endpoint):
        replies[str(status)] = {
            "$ref": "#/components/responses/Problem",
            "description": phrase(status),
        }
    replies["default"] = {"$ref": "#/components/responses/Problem"}
    operation["responses"] = replies
    return operation


def _problems_of(endpoint: Endpoint) -> list[int]:
    statuses = set(endpoint.problems)
    if endpoint.parameters:
        statuses.update(_OF_PARAMETERS)
    if endpoint.body is not None:
        statuses.update(_OF_BODIES)
    return sorted(statuses - set(endpoint.replies))


def _reply(reply: Reply) -> dict[str, object]:
    schema = {"type": "string"} if reply.schema is None else reply.schema
    return {
        "description": reply.description,
        "content": {reply.content_type: {"schema": schema}},
    }
