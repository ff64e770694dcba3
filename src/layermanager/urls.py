"""URLs as people may see them."""

from __future__ import annotations

import re
from typing import Final

_CREDENTIALS: Final = re.compile(r"\A(?P<before>[^/?#\\]*//)[^/?#\\]*@")
_QUERY: Final = re.compile(r"\?[^#]+")


def without_credentials(url: str) -> str:
    """Return *url* without the ``user:password@`` in front of its host.

    The URL is not parsed for it, so that one that cannot be parsed does not give its password
    away either.
    """
    return _CREDENTIALS.sub(r"\g<before>", url)


def shown(url: str) -> str:
    """Return *url* as every error and log line shows it: without what may be a secret in it.

    That is its credentials, and its query, since many a storage service takes signatures there.
    """
    return _QUERY.sub("?…", without_credentials(url))
