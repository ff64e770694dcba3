"""Debian's docker-registry on loopback: a registry that nobody here wrote.

::

    with serve(directory) as registry:
        ...  # registry is its name in references, such as 127.0.0.1:40213
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.testing.tls import Certificate

USER: Final = "edge"
PASSWORD: Final = "rather secret"  # noqa: S105 - everybody's

_PASSWORD_FILE: Final = f"{USER}:$2b$04$abcdefghijklmnopqrstuucZXAQ3yTaSEN1YMxDD49.l0SySSqbaK\n"
"""Hashed by bcrypt, which is all that the registry takes and few tools can do."""

_LISTENING: Final = re.compile(r"listening on (?P<name>127\.0\.0\.1:[0-9]+)")


def find() -> str | None:
    """The docker-registry of this machine."""
    return shutil.which("docker-registry")


@contextmanager
def serve(
    directory: Path, *, certificate: Certificate | None = None, asks_who: bool = False
) -> Iterator[str]:
    """Run a registry for the time of a context, and give its name in references.

    Args:
        directory: an empty directory for its images and its own files.
        certificate: what to show, to speak https instead of http.
        asks_who: whether only ``USER`` with his ``PASSWORD`` is served.

    Raises:
        FileNotFoundError: there is no docker-registry.
        RuntimeError: it ends at once; the text is what it says.
    """
    program = find()
    if program is None:
        raise FileNotFoundError("there is no docker-registry")
    directory = directory.absolute()
    passwords = directory / "passwords"
    passwords.write_text(_PASSWORD_FILE)
    http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": "of no importance"}
    if certificate is not None:
        http["tls"] = {"certificate": str(certificate.chain), "key": str(certificate.key)}
    configuration: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": http,
    }
    if asks_who:
        configuration["auth"] = {"htpasswd": {"realm": "images", "path": str(passwords)}}
    path = directory / "config.json"
    path.write_text(json.dumps(configuration))  # which is YAML as well
    log = directory / "registry.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, "serve", path], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield _name(process, log)
    finally:
        process.terminate()
        process.wait()


def _name(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the registry listens, as it says itself: the kernel chooses the port."""
    while True:
        text = log.read_text()
        if (found := _LISTENING.search(text)) is not None:
            return found["name"]
        if process.poll() is not None:
            raise RuntimeError(f"docker-registry does not run: {text}")
        time.sleep(0.005)
