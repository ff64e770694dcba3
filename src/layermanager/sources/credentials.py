"""Who this node is to the servers that ask: names, passwords and tokens from files.

They are read when they are needed, so that a token that was renewed is used at once. They are sent
over TLS only, unless the file names the host with ``http://`` in front of it, and never to a host
that they are not for: each redirect is looked up anew. No message holds a part of them.
"""

from __future__ import annotations

import base64
import netrc
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError
from layermanager.secret_files import read_secret

if TYPE_CHECKING:
    from pathlib import Path

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_KEYS: Final = frozenset({"username", "password", "token"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files that hold credentials.

    Attributes:
        file: a JSON object of objects by host, each with ``username`` and ``password``, or with
            ``token``.
        netrc_file: a file as ftp and curl read it.
    """

    file: Path | None = None
    netrc_file: Path | None = None

    def authorization(self, url: str) -> str | None:
        """The value of the header ``Authorization`` for a request to *url*; None for none.

        Raises:
            ConfigError: a file cannot be used, or everybody can read it.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        with_port = f"{host}:{parts.port}" if parts.port else host
        if self.file is not None:
            for name in dict.fromkeys((with_port, host)):
                key = f"http://{name}" if parts.scheme == "http" else name
                if found := self._from_file(self.file, key):
                    return found
        if self.netrc_file is not None and parts.scheme == "https":
            return _from_netrc(self.netrc_file, host)
        return None

    @staticmethod
    def _from_file(path: Path, key: str) -> str | None:
        text = read_secret(path)
        try:
            entry = JsonObject.of(parse(text), "").child(key)
            entry.refuse_others(_KEYS)
            if not entry.members:
                return None
            if token := entry.text("token", ""):
                return bearer(token)
            return basic(entry.required_text("username"), entry.text("password", ""))
        except (DocumentError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error


def bearer(token: str) -> str:
    """The header's value for a *token* (RFC 6750).

    Raises:
        ConfigError: it holds what no token may hold, such as a line's end.
    """
    if not _TOKEN.fullmatch(token):
        raise ConfigError("a token may hold letters, digits and -._~+/= only")
    return f"Bearer {token}"


def basic(username: str, password: str) -> str:
    """The header's value for a name and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


def from_userinfo(url: str) -> str | None:
    """The header's value for the ``user:password@`` of *url*; None where there is none."""
    userinfo, separator, _ = urlsplit(url).netloc.rpartition("@")
    if not separator:
        return None
    username, _, password = userinfo.partition(":")
    return basic(unquote(username), unquote(password))


def _from_netrc(path: Path, host: str) -> str | None:
    read_secret(path)
    try:
        found = netrc.netrc(path).authenticators(host)
    except netrc.NetrcParseError as error:
        # Its words may hold what stands in the file.
        raise ConfigError(f"{path}: line {error.lineno} is not of the format of netrc") from None
    if found is None:
        return None
    username, _, password = found
    return basic(username, password or "")
