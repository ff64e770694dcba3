"""Who this node is to registries: the files of docker, podman and skopeo, and their helpers.

They are looked through in the order in which skopeo does it (containers-auth.json(5)), after the
credentials of the configuration. As with these, what is in them is read when it is needed, files
with secrets must not be open to others, and no message holds a part of them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager.children import file_in_memory, null_device
from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import ConfigError
from layermanager.oci.reference import DEFAULT_REGISTRY
from layermanager.secret_files import check_secret
from layermanager.sources.credentials import basic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from layermanager.cancellation import Cancellation
    from layermanager.oci.reference import RegistryReference
    from layermanager.sources.credentials import Credentials

_LOGGER: Final = logging.getLogger(__name__)

_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS: Final = 60
_NOT_FOUND: Final = b"credentials not found in native keychain"
"""What a helper prints when it knows nothing (docker-credential-helpers, credentials/error.go)."""

_NO_USER: Final = "<token>"
"""The name under which helpers keep an identity token."""

_OLD_KEYS: Final = {DEFAULT_REGISTRY: "https://index.docker.io/v1/"}
"""What registries are still called in files of docker and by helpers."""

_OTHER_HOSTS: Final = {DEFAULT_REGISTRY: ("index.docker.io", "registry-1.docker.io")}
_HOST_KEY: Final = re.compile(
    r"(?:https?://(?P<of_url>[^/]+)(?:/(?:v[12]/?)?)?|(?P<host>[^/]+)(?:/(?:v[12]/)?)?)"
)
"""A key that stands for a whole registry, in one of the forms that docker wrote over the years."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a registry knows this node by; one of the two is empty.

    Attributes:
        authorization: the header for a name and a password.
        identity_token: what tokens are had for.
    """

    authorization: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def auth_files(environment: Mapping[str, str], home: Path, user_id: int) -> tuple[Path, ...]:
    """The files in which the tools of this machine keep their logins, in their order.

    Args:
        environment: the variables of the process.
        home: the user's directory.
        user_id: his number.
    """
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        return (Path(chosen),)
    runtime = environment.get("XDG_RUNTIME_DIR")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    return (
        Path(runtime, "containers/auth.json")
        if runtime
        else Path(f"/run/containers/{user_id}/auth.json"),
        config / "containers/auth.json",
        docker / "config.json",
    )


@dataclass(frozen=True, slots=True)
class Logins:
    """Where logins are looked up.

    Attributes:
        credentials: those of the configuration.
        files: those of other tools; one that is not there holds none.
    """

    credentials: Credentials
    files: Sequence[Path]
    _missing_helpers: set[str] = field(default_factory=set, repr=False, compare=False)

    def find(
        self, reference: RegistryReference, base_url: str, cancellation: Cancellation
    ) -> Login | None:
        """The login for the repository of *reference*; None where there is none.

        Args:
            reference: what is asked for.
            base_url: how its registry is reached.
            cancellation: ends a helper that is waited for.

        Raises:
            ConfigError: a file cannot be used, everybody can read it, or a helper failed.
            CancelledError: it was cancelled.
        """
        scheme = base_url.partition(":")[0]
        own = self.credentials.authorization(f"{scheme}://{reference.registry}/")
        if own is not None and own.startswith("Basic "):
            return Login(own)
        for path in self.files:
            try:
                document = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ConfigError(f"cannot read {path}: {error.strerror}") from error
            try:
                login = self._find(
                    JsonObject.of(parse(document), ""), path, reference, cancellation
                )
            except DocumentError as error:
                raise ConfigError(f"{path}: {error}") from error
            if login is not None:
                return login
        return None

    def _find(
        self,
        document: JsonObject,
        path: Path,
        reference: RegistryReference,
        cancellation: Cancellation,
    ) -> Login | None:
        helpers, logins = document.child("credHelpers"), document.child("auths")
        for key in _keys(reference, (*helpers.members, *logins.members)):
            helper = helpers.text(key, "")
            if helper and self._is_installed(helper, path):
                return _ask_helper(helper, key, cancellation)
            entry = logins.child(key)
            if entry.text("identitytoken", "") or entry.text("auth", ""):  # else a helper has it
                check_secret(path)
                return _read(entry)
        store = document.text("credsStore", "")
        if store and self._is_installed(store, path):
            registry = reference.registry
            return _ask_helper(store, _OLD_KEYS.get(registry, registry), cancellation)
        return None

    def _is_installed(self, helper: str, path: Path) -> bool:
        """Whether the program of *helper* is there; without it images may be had anonymously."""
        program = _program(helper)
        if shutil.which(program) is not None:
            return True
        if program not in self._missing_helpers:
            self._missing_helpers.add(program)
            _LOGGER.warning(
                "credential helper %s is not installed: registries of %s are asked without it",
                program,
                path,
            )
        return False


def _keys(reference: RegistryReference, known: Iterable[str]) -> Iterator[str]:
    """What a login for *reference* may be filed under, the most specific first.

    Args:
        reference: what is asked for.
        known: all keys of the file.
    """
    key = f"{reference.registry}/{reference.repository}"
    while key:
        yield key
        key = key.rpartition("/")[0]
    hosts = (reference.registry, *_OTHER_HOSTS.get(reference.registry, ()))
    yield from (
        key
        for key in dict.fromkeys(known)
        if (match := _HOST_KEY.fullmatch(key)) and (match["of_url"] or match["host"]) in hosts
    )


def _read(entry: JsonObject) -> Login:
    if token := entry.text("identitytoken", ""):
        return Login(identity_token=token)
    encoded = "".join(entry.required_text("auth").split())  # base64 breaks lines
    try:
        decoded = base64.b64decode(encoded, validate=True).decode().rstrip("\0")
    except (binascii.Error, ValueError):
        decoded = ""
    name, colon, password = decoded.partition(":")
    if not name or not colon:
        # Without the cause, which holds what stands there.
        raise DocumentError(f"{entry.at('auth')}: is no name and password in base64") from None
    return Login(basic(name, password))


def _program(helper: str) -> str:
    if not _HELPER_NAME.fullmatch(helper):
        raise ConfigError(f"not the name of a credential helper: {helper!r:.80}")
    return f"docker-credential-{helper}"


def _ask_helper(name: str, server: str, cancellation: Cancellation) -> Login | None:
    """What the helper *name* knows of *server* (docker-credential-helpers, "Development")."""
    program = _program(name)
    try:
        status, output = _run(program, server, cancellation)
    except OSError as error:
        raise ConfigError(f"cannot run {program}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{program} did not end in {_HELPER_SECONDS} seconds") from None
    if status != 0:
        if _NOT_FOUND in output:
            return None
        raise ConfigError(f"{program} failed with the status {status}")
    try:
        answer = JsonObject.of(json.loads(output), "")
        user, secret = answer.text("Username", ""), answer.required_text("Secret")
    except ValueError:
        raise ConfigError(f"{program} printed something else than a login") from None
    if user == _NO_USER:
        return Login(identity_token=secret)
    return Login(basic(user, secret))


def _run(program: str, text: str, cancellation: Cancellation) -> tuple[int, bytes]:
    """Run ``program get`` on *text*; return its exit status and what it prints."""
    with (
        null_device() as null,
        file_in_memory(text.encode()) as server,
        subprocess.Popen(
            [program, "get"],
            stdin=server,
            stdout=subprocess.PIPE,
            stderr=null,
            start_new_session=True,
        ) as process,
    ):

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        with cancellation.interrupting(kill):
            try:
                output, _ = process.communicate(timeout=_HELPER_SECONDS)
            except BaseException:
                kill()
                raise
        cancellation.check()
        return process.returncode, output
