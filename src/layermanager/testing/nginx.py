"""nginx on loopback: a server that nobody here wrote.

::

    with serve(Site(root, certificate=authority.server_certificate()), directory) as url:
        ...  # f"{url}/a.tar" is the file a.tar in root
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from layermanager.testing.tls import Certificate

# A single process, which has no rights that its user lacks and leaves nothing behind.
_CONFIGURATION: Final = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    log_format served "$status $body_bytes_sent $connection";
    access_log served.log served;
    sendfile on;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    default_type application/octet-stream;
    server {{
        {server}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What nginx serves, and to whom.

    Attributes:
        root: the directory whose files it serves by their paths.
        certificate: what to show, to speak https instead of http.
        client_bundle: the PEM file of the authority whose clients are served; others get 400. It
            needs *certificate*.
        users: the passwords of those who are served by name; others get 401. All are served if
            there are none.
        bytes_per_second: how fast each answer is at most; None for as fast as can be.
        ranges: whether a part of a file is sent when asked for, instead of all of it.
    """

    root: Path
    certificate: Certificate | None = None
    client_bundle: Path | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    bytes_per_second: int | None = None
    ranges: bool = True


def find() -> str | None:
    """The nginx of this machine; Debian has it where only root looks by default."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@dataclass(frozen=True, slots=True)
class Served:
    """An answer that nginx gave.

    Attributes:
        status: its status code.
        sent: the bytes of its body.
        connection: the number of the connection that it was sent over.
    """

    status: int
    sent: int
    connection: int


def served(directory: Path) -> list[Served]:
    """What an nginx that has ended answered, in order; *directory* is that of its own files."""
    lines = (directory / "served.log").read_text().splitlines()
    return [Served(*map(int, line.split())) for line in lines]


@contextmanager
def serve(site: Site, directory: Path) -> Iterator[str]:
    """Run nginx for the time of a context, and give its URL, without a slash at its end.

    Args:
        site: what it serves.
        directory: an empty directory for its own files.

    Raises:
        FileNotFoundError: there is no nginx, or no ``openssl`` to hide the passwords of *site*.
        RuntimeError: nginx ends at once; the text is what it says.
    """
    program = find()
    if program is None:
        raise FileNotFoundError("there is no nginx")
    directory = directory.absolute()
    with socket.socket() as holder:
        # Nobody else gets the port, but nginx may share it; this socket will never listen.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        configuration = directory / "nginx.conf"
        configuration.write_text(_configuration(site, port, directory))
        with (directory / "error.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-e", "stderr", "-p", directory, "-c", configuration],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            _wait_for(port, process, directory / "error.log")
            yield f"{'http' if site.certificate is None else 'https'}://127.0.0.1:{port}"
        finally:
            process.terminate()  # what is being answered is cut off, and logged
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None:
                raise RuntimeError(f"nginx does not run: {log.read_text()}") from None
            time.sleep(0.005)
        else:
            return


def _configuration(site: Site, port: int, directory: Path) -> str:
    server = [f'root "{site.root.absolute()}";']
    if site.certificate is None:
        server += [f"listen 127.0.0.1:{port} reuseport;"]
    else:
        server += [
            f"listen 127.0.0.1:{port} reuseport ssl;",
            "ssl_protocols TLSv1.2 TLSv1.3;",  # Debian's nginx 1.22 knows 1.3, and leaves it off
            f'ssl_certificate "{site.certificate.chain.absolute()}";',
            f'ssl_certificate_key "{site.certificate.key.absolute()}";',
        ]
    if site.client_bundle is not None:
        server += [
            f'ssl_client_certificate "{site.client_bundle.absolute()}";',
            "ssl_verify_client on;",
        ]
    if site.users:
        passwords = _password_file(site.users, directory)
        server += ["auth_basic layers;", f'auth_basic_user_file "{passwords}";']
    if site.bytes_per_second is not None:
        server += [f"limit_rate {site.bytes_per_second};"]
    if not site.ranges:
        server += ["max_ranges 0;"]
    return _CONFIGURATION.format(server="\n        ".join(server))


def _password_file(users: Mapping[str, str], directory: Path) -> Path:
    path = directory / "passwords"
    path.touch(mode=0o600)
    with path.open("w") as file:
        for name, password in users.items():
            file.write(f"{name}:{_hashed(password)}\n")
    return path


def _hashed(password: str) -> str:
    # By standard input: what is an argument, all users can see.
    return subprocess.run(
        ["openssl", "passwd", "-apr1", "-stdin"],
        input=password,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
