"""URLs as people may see them."""

from __future__ import annotations

import re
from typing import Final

_CREDENTIALS: Final = re.compile(r"\A(?P<before>[^/?#\\]*//)[^/?#\\]*@")


def without_credentials(url: str) -> str:
    """Return *url* without the ``user:password@`` in front of its host.

    Every error and log line shows a URL in this form. The URL is not parsed for it, so that one
    that cannot be parsed does not give its password away either.
    """
    return _CREDENTIALS.sub(r"\g<before>", url)
