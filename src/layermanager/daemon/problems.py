"""Errors as problem documents (RFC 9457).

``type`` tells programs which error it is: for one of ours ``urn:layermanager:`` and the name of its
class in ``layermanager.errors``, which is in ``error`` as well; for one of HTTP alone
``about:blank``. What the error knows is in members of the names that ``--json`` has for them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from layermanager.daemon.http import PROBLEM, Answer, encoded, phrase
from layermanager.errors import (
    DesiredStateError,
    ImageNotExistError,
    InputError,
    InvalidReferenceError,
    LayerManagerError,
    LayerNotExistError,
    LeaseNotExistError,
    MountBusyError,
    MountNotExistError,
    StoreBusyError,
    UseError,
)
from layermanager.json_documents import error_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layermanager.daemon.schema import Violation

TYPE_PREFIX: Final = "urn:layermanager:"
_RETRY_SECONDS: Final = "5"


class RefusedError(Exception):
    """A request cannot be answered as it is; for whoever handles it to raise.

    Attributes:
        status: the status code.
        detail: what is wrong, for people.
        headers: headers of the answer.
        members: members of the problem document besides the standard ones.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.members = members

    @classmethod
    def for_violations(cls, violations: Sequence[Violation]) -> RefusedError:
        """The refusal of a request that does not follow its description."""
        first = violations[0]
        return cls(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{first.place}: {first.detail}",
            errors=[{"pointer": one.place, "detail": one.detail} for one in violations],
        )

    @classmethod
    def for_now(cls, detail: str) -> RefusedError:
        """The refusal of what may be asked again a little later."""
        headers = {"Retry-After": _RETRY_SECONDS}
        return cls(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=headers)


def refusal(error: RefusedError) -> Answer:
    """The answer that says why a request was refused."""
    document = {
        "type": "about:blank",
        "title": phrase(error.status),
        "status": error.status.value,
        "detail": error.detail,
        **error.members,
    }
    return Answer(error.status, PROBLEM, encoded(document), error.headers)


def failure(error: LayerManagerError) -> Answer:
    """The answer for an *error* of the library."""
    status = _status_of(error)
    members = error_json(error)
    name, detail = members.pop("type"), members.pop("message")
    document = {
        "type": f"{TYPE_PREFIX}{name}",
        "title": (type(error).__doc__ or "").partition("\n")[0].removesuffix("."),
        "status": status.value,
        "detail": detail,
        "error": name,
        **members,
    }
    headers = {"Retry-After": _RETRY_SECONDS} if isinstance(error, StoreBusyError) else {}
    return Answer(status, PROBLEM, encoded(document), headers)


def _status_of(error: LayerManagerError) -> HTTPStatus:
    match error:
        case (
            LayerNotExistError()
            | ImageNotExistError()
            | LeaseNotExistError()
            | MountNotExistError()
        ):
            return HTTPStatus.NOT_FOUND
        case MountBusyError():
            return HTTPStatus.CONFLICT
        case DesiredStateError() | InvalidReferenceError() | UseError():
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case InputError():
            return HTTPStatus.BAD_REQUEST
        case StoreBusyError():
            return HTTPStatus.SERVICE_UNAVAILABLE
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR
