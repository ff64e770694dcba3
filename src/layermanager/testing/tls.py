"""Certificates that live as long as a test, made by the ``openssl`` command."""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

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
[any]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
subjectAltName = ${ENV::LEAF_NAMES}
authorityKeyIdentifier = keyid
extendedKeyUsage = serverAuth
[client]
authorityKeyIdentifier = keyid
extendedKeyUsage = clientAuth
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files.

    Attributes:
        chain: the certificate; its authority signed it itself.
        key: not encrypted; only its owner may read it.
    """

    chain: Path
    key: Path


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

    def server_certificate(
        self, names: str = "IP:127.0.0.1", *, age: timedelta = timedelta()
    ) -> Certificate:
        """A certificate for servers of *names*, for one day, and *age* old."""
        return self._issue("server", names, age)

    def client_certificate(self, *, age: timedelta = timedelta()) -> Certificate:
        """A certificate for a client, for one day, and *age* old."""
        return self._issue("client", "", age)

    def server_context(
        self, names: str = "IP:127.0.0.1", *, age: timedelta = timedelta()
    ) -> ssl.SSLContext:
        """A context whose certificate is for *names*, for one day, and *age* old."""
        certificate = self.server_certificate(names, age=age)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.key)
        return context

    def _issue(self, purpose: str, names: str, age: timedelta) -> Certificate:
        """Make a certificate with the extensions that the configuration has for *purpose*."""
        start = datetime.now(UTC) - age - timedelta(hours=1)
        end = start + timedelta(days=1)
        directory = Path(tempfile.mkdtemp(dir=self.directory.absolute(), prefix=f"{purpose}-"))
        request, chain, key = (directory / name for name in ("request.pem", "chain.pem", "key.pem"))
        self._openssl("req", "-subj", f"/CN={purpose}", "-out", str(request), *_new_key(str(key)))
        self._openssl(
            *("ca", "-batch", "-notext", "-cert", "root.pem", "-keyfile", "root.key"),
            *("-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"),
            *("-extensions", purpose, "-in", str(request), "-out", str(chain)),
            names=names,
        )
        return Certificate(chain, key)

    def _openssl(self, command: str, *arguments: str, names: str = "") -> None:
        subprocess.run(
            ["openssl", command, "-config", "openssl.cnf", *arguments],
            cwd=self.directory,
            env={**os.environ, "LEAF_NAMES": names},
            check=True,
            capture_output=True,
        )


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", name)
