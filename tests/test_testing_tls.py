from __future__ import annotations

import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.testing.tls import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 20.0  # seconds after which something that should happen at once counts as hanging


def server(certificate: Certificate, authority: Authority) -> ssl.SSLContext:
    """A context that wants a certificate of its clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate.chain, certificate.key)
    return context


def client(certificate: Certificate, authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.bundle)
    context.load_cert_chain(certificate.chain, certificate.key)
    return context


def shake_hands(of_server: ssl.SSLContext, of_client: ssl.SSLContext) -> None:
    """Let a server and a client at 127.0.0.1 speak.

    Raises:
        ssl.SSLError: one of them does not accept the other.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(SOON)
    theirs.settimeout(SOON)

    def serve() -> None:
        with of_server.wrap_socket(ours, server_side=True) as connection:
            connection.sendall(b"hello")

    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(serve)
        with theirs, of_client.wrap_socket(theirs, server_hostname="127.0.0.1") as connection:
            connection.recv(5)
        serving.result(SOON)


def test_a_server_and_a_client_trust_each_other(authority: Authority) -> None:
    shake_hands(
        server(authority.server_certificate(), authority),
        client(authority.client_certificate(), authority),
    )


@pytest.mark.parametrize(
    "issue",
    [
        Authority.client_certificate,
        lambda authority: authority.server_certificate("IP:127.0.0.2"),
        lambda authority: authority.server_certificate(age=timedelta(days=2)),
    ],
)
def test_a_wrong_server_is_refused(
    authority: Authority, issue: Callable[[Authority], Certificate]
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            server(issue(authority), authority), client(authority.client_certificate(), authority)
        )


@pytest.mark.parametrize(
    "issue",
    [
        Authority.server_certificate,
        lambda authority: authority.client_certificate(age=timedelta(days=2)),
    ],
)
def test_a_wrong_client_is_refused(
    authority: Authority, issue: Callable[[Authority], Certificate]
) -> None:
    with pytest.raises(ssl.SSLError):
        shake_hands(
            server(authority.server_certificate(), authority), client(issue(authority), authority)
        )


def test_every_certificate_has_files_of_its_own(authority: Authority) -> None:
    issued = [authority.server_certificate() for _ in range(2)]
    issued += [authority.client_certificate() for _ in range(2)]
    assert len({one.chain for one in issued} | {one.key for one in issued}) == 8
    assert {stat.S_IMODE(one.key.stat().st_mode) for one in issued} == {0o600}
