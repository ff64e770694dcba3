"""URLs as people may see them, and those of files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from pathlib import PurePath

_CREDENTIALS: Final = re.compile(r"\A(?P<before>[^/?#\\]*//)[^/?#\\]*@")
_QUERY: Final = re.compile(r"\?[^#]+")
_FRAGMENT: Final = re.compile(r"#.+", re.DOTALL)

# In other text an address ends at a blank: to hide a little too much is better than too little.
_BLANK: Final = " \\t\\r\\n"
_CREDENTIALS_IN_TEXT: Final = re.compile(rf"//[^{_BLANK}/?#\\]*@")
_QUERY_IN_TEXT: Final = re.compile(rf"\?[^{_BLANK}]+")
_FRAGMENT_IN_TEXT: Final = re.compile(rf"#[^{_BLANK}=]{{0,40}}=[^{_BLANK}]+")
_SECRET_HEADER: Final = re.compile(
    r"""(?P<name>(?:authorization|cookie|x-[a-z-]{0,40}token)\b["']?[ \t]*[:=,][ \t]*(?:b?["'])?)"""
    r"""[^"'\r\n]+""",
    re.IGNORECASE,
)
# Fields of forms and of JSON; a colon without quotes is left alone, as in "token: not found".
_SECRET_FIELD: Final = re.compile(
    r"""(?P<name>(?:token|password|secret)(?:["'][ \t]*[:=][ \t]*b?["']?|=["']?))"""
    r"""[^"'&,;\s]+""",
    re.IGNORECASE,
)
# In small letters they are words as well: what follows is hidden only where it has a digit.
_SCHEME: Final = re.compile(
    r"\b(?P<scheme>(?:Bearer|Basic|Negotiate)[ \t]+(?!realm=)"
    r"|(?i:bearer|basic|negotiate)[ \t]+(?!realm=)(?=[\w.~+/=-]*[0-9]))[\w.~+/=-]+"
)


def without_credentials(url: str) -> str:
    """Return *url* without the ``user:password@`` in front of its host.

    The URL is not parsed for it, so that one that cannot be parsed does not give its password
    away either.
    """
    return _CREDENTIALS.sub(r"\g<before>", url)


def shown(url: str) -> str:
    """Return *url* as every error and log line shows it: without what may be a secret in it.

    That is its credentials, its query, since many a storage service takes signatures there, and its
    fragment, where logins put tokens.
    """
    return _FRAGMENT.sub("#…", _QUERY.sub("?…", without_credentials(url)))


def redacted(text: str) -> str:
    """Return *text*, such as the log line of a library, without the secrets that it may hold.

    Those are the credentials, queries and fragments of all addresses, absolute or not, the values
    of headers that say who a client is, and fields of forms and JSON that are called a secret.
    """
    text = _CREDENTIALS_IN_TEXT.sub("//", text)
    text = _QUERY_IN_TEXT.sub(_without_query, text)
    text = _FRAGMENT_IN_TEXT.sub("#…", text)
    text = _SECRET_HEADER.sub(r"\g<name>…", text)
    text = _SECRET_FIELD.sub(r"\g<name>…", text)
    return _SCHEME.sub(r"\g<scheme>…", text)


def _without_query(match: re.Match[str]) -> str:
    """Return the question mark of a query alone, but that of a sentence with all that follows."""
    return "?…" if any(map(str.isalnum, match[0])) else match[0]


def file_url(path: PurePath) -> str:
    """Return the file URL of an absolute path.

    ``as_uri`` of Python 3.14 imports ``urllib.request`` for that, and with it OpenSSL.
    """
    return f"file://{quote(bytes(path))}"
