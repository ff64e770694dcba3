"""How a server asks who is there: the header ``WWW-Authenticate`` (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME: Final = re.compile(rf"(?P<scheme>{_WORD})(?: +|(?=[ \t]*(?:,|\Z)))")
_END: Final = r"[ \t]*(?:,|\Z)"
_PARAMETER: Final = re.compile(
    rf"(?P<name>{_WORD})[ \t]*=[ \t]*"
    rf'(?:(?P<token>{_WORD})|"(?P<quoted>(?:[^"\\]|\\.)*)"){_END}',
    re.DOTALL,
)
_TOKEN68: Final = re.compile(rf"[A-Za-z0-9\-._~+/]+=*{_END}")
_SEPARATORS: Final = re.compile(r"[ \t,]*")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class ChallengeError(ValueError):
    """The header does not follow its grammar."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to say who is there.

    Attributes:
        scheme: such as ``bearer``, in lower case.
        parameters: what the server says about it, by names in lower case.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Read the header; several of them are joined by commas.

    Raises:
        ChallengeError: it is none.
    """
    challenges: list[Challenge] = []
    position = _skip(header, 0)
    while position < len(header):
        scheme = _SCHEME.match(header, position)
        if scheme is None:
            raise ChallengeError(f"not a scheme: {header[position:]!r:.80}")
        position = scheme.end()
        parameters: dict[str, str] = {}
        # Only the scheme and its parameters tell where the next challenge begins: both are
        # separated by commas.
        while (parameter := _PARAMETER.match(header, position)) is not None:
            name = parameter["name"].lower()
            if name in parameters:
                raise ChallengeError(f"parameter {name!r:.80} occurs twice")
            quoted = parameter["quoted"]
            parameters[name] = parameter["token"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
            position = _skip(header, parameter.end())
        if not parameters and (other := _TOKEN68.match(header, position)) is not None:
            position = other.end()
        challenges.append(Challenge(scheme["scheme"].lower(), parameters))
        position = _skip(header, position)
    return tuple(challenges)


def _skip(header: str, position: int) -> int:
    """Where what is neither blank nor a comma goes on."""
    found = _SEPARATORS.match(header, position)
    return position if found is None else found.end()
