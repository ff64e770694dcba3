"""Certificates that live as long as a test, made by the ``openssl`` command."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_OPENSSL_CONFIG: Final = """
[req]
distinguished_name = name
[name]
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
x509_extensions = leaf
[any]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
subjectAltName = ${ENV::LEAF_NAMES}
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a directory of its own; nobody but the tests trusts it."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """Make an authority in the existing, empty *directory*.

        Raises:
            FileNotFoundError: there is no ``openssl`` command.
        """
        (directory / "openssl.cnf").write_text(_OPENSSL_CONFIG)
        (directory / "index.txt").touch()
        authority = cls(directory)
        authority._openssl(
            *("req", "-x509", "-subj", "/CN=test authority", "-extensions", "root"),
            *("-days", "2", "-out", "root.pem", *_new_key("root.key")),
        )
        return authority

    @property
    def bundle(self) -> Path:
        """The PEM file to trust the authority by."""
        return self.directory / "root.pem"

    def server_context(
        self, names: str = "IP:127.0.0.1", *, age: timedelta = timedelta()
    ) -> ssl.SSLContext:
        """A context whose certificate is for *names*, for one day, and *age* old."""
        start = datetime.now(UTC) - age - timedelta(hours=1)
        end = start + timedelta(days=1)
        self._openssl("req", "-subj", "/CN=server", "-out", "leaf.csr", *_new_key("leaf.key"))
        self._openssl(
            *("ca", "-batch", "-notext", "-cert", "root.pem", "-keyfile", "root.key"),
            *("-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"),
            *("-in", "leaf.csr", "-out", "leaf.pem"),
            names=names,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "leaf.pem", self.directory / "leaf.key")
        return context

    def _openssl(self, command: str, *arguments: str, names: str = "IP:127.0.0.1") -> None:
        subprocess.run(
            ["openssl", command, "-config", "openssl.cnf", *arguments],
            cwd=self.directory,
            env={**os.environ, "LEAF_NAMES": names},
            check=True,
            capture_output=True,
        )


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", name)
