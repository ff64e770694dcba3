"""Who this node is to the servers that ask: names, passwords and tokens from files.

They are read when they are needed, so that a token that was renewed is used at once. They are sent
over TLS only, unless the file names the host with ``http://`` in front of it, and never to a host
that they are not for: each redirect is looked up anew. No message holds a part of them.
"""

from __future__ import annotations

import base64
import netrc
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_FOREIGN_RIGHTS: Final = stat.S_IWGRP | stat.S_IRWXO
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


def read_secret(path: Path) -> str:
    """Read a file that holds a secret.

    Raises:
        ConfigError: it cannot be read, or others than its owner and its group can.
    """
    check_secret(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {_why(error)}") from error


def check_secret(path: Path) -> None:
    """See that only its owner can write to *path*, and only he and its group read it.

    Raises:
        ConfigError: it is otherwise, or there is no such file.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {_why(error)}") from error
    if mode & _FOREIGN_RIGHTS:
        raise ConfigError(
            f"{path} holds a secret and has the mode {mode:04o}: make it 0600 or 0640"
        )


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


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is no UTF-8"
