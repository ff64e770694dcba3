"""A tour of layermanager on real files: what `make run` shows.

It packs three layers from parts of this machine's Python installation, publishes them over HTTP on
loopback and drives the real command: installs two of them, changes what is desired, and restores
what was cached. The store stays in ./var, to be looked at.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VAR = Path("var")
STORE = VAR / "store"
MARKER = VAR / "made-by-the-tour"
PUBLISHED = VAR / "published"
DESIRED = VAR / "desired.json"
LIBRARY = Path(sysconfig.get_path("stdlib"))
COLUMNS = 80


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Show the main job on real input."""
    start_afresh()
    with published(PUBLISHED) as address:
        say("Three parts of this machine's Python become layers, published over HTTP.")
        pack("encodings", address)
        pack("email", address)
        pack("asyncio", address)

        say("Two of them are desired. They are fetched, verified, unpacked: installed.")
        desire("encodings", "email")
        layermanager("apply", str(DESIRED))

        say("`asyncio` is desired instead of `email`. What would be done?")
        desire("encodings", "asyncio")
        layermanager("apply", str(DESIRED), "--dry-run")

        say("Do it. `email` stays on disk, cached, until space or its time runs out.")
        layermanager("apply", str(DESIRED))
        layermanager("ls")

        say("`email` is desired again. It is still there: nothing has to be fetched.")
        desire("encodings", "asyncio", "email")
        layermanager("apply", str(DESIRED))
        layermanager("df")

    say("That was it. The store stays in ./var for you to look at:\n")
    print(f"$ export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    for arguments in (
        ["ls", "--json"],
        ["show", shortened_digest("email"), "--files"],
        ["gc", "--ttl-days", "0"],
    ):
        print(as_typed(["layermanager", "--work-dir", str(STORE), *arguments]))
    print(as_typed(["layermanager", "--help"]))


def start_afresh() -> None:
    """Make ./var, in place of that of an earlier tour."""
    if VAR.exists() and any(VAR.iterdir()) and not MARKER.exists():
        sys.exit(f"./{VAR} was not made by the tour: move it out of the way, or start elsewhere")
    try:
        if VAR.exists():
            shutil.rmtree(VAR)
        PUBLISHED.mkdir(parents=True)
    except OSError as error:
        sys.exit(f"cannot make ./{VAR} anew: {error}")
    MARKER.write_text("The next tour removes this directory.\n")


@contextmanager
def published(directory: Path) -> Iterator[str]:
    """Serve *directory* on loopback; gives its address."""
    handler = partial(QuietHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def pack(name: str, address: str) -> None:
    """Make a package of a part of the library, and its entry for lists of desired layers."""
    package = PUBLISHED / f"{name}.tar"
    command = ["pack", str(LIBRARY / name), "-o", str(package), "--layer-id", name]
    command += ["--layer-version", platform.python_version(), "--url", f"{address}/{package.name}"]
    layermanager(*command, output=entry_of(name))


def entry_of(name: str) -> Path:
    """Where the entry of a layer is, for lists of desired layers."""
    return VAR / f"{name}.json"


def shortened_digest(name: str) -> str:
    """As much of a layer's digest as tells it from the others."""
    digest: str = json.loads(entry_of(name).read_text())["digest"]
    return digest.partition(":")[2][:12]


def desire(*names: str) -> None:
    """Write the list of desired layers: an array of their entries."""
    entries = [json.loads(entry_of(name).read_text()) for name in names]
    DESIRED.write_text(json.dumps(entries, indent=2))


def layermanager(*arguments: str, output: Path | None = None) -> None:
    """Run the real command, as a person would who types what is shown."""
    command = ["--work-dir", str(STORE), *arguments]
    print("\n" + as_typed(["layermanager", *command], output), flush=True)
    finished = subprocess.run(
        [sys.executable, "-m", "layermanager", *command],
        check=False,
        stdout=subprocess.PIPE if output else None,
    )
    if finished.returncode != 0:
        sys.exit(f"the tour ends here: the command ended with status {finished.returncode}")
    if output:
        output.write_bytes(finished.stdout)


def as_typed(command: Iterable[str], output: Path | None = None) -> str:
    """A command as it is typed at a prompt, continued on the next line where it is long."""
    phrases: list[str] = []
    for word in command:
        if phrases and phrases[-1].startswith("-") and " " not in phrases[-1]:
            phrases[-1] += f" {shlex.quote(word)}"  # an option and its value stay together
        else:
            phrases.append(shlex.quote(word))
    if output:
        phrases.append(f"> {shlex.quote(str(output))}")
    lines = ["$"]
    for phrase in phrases:
        if len(lines[-1]) + len(phrase) + len("  \\") > COLUMNS:
            lines.append("   ")
        lines[-1] += f" {phrase}"
    return " \\\n".join(lines)


def say(text: str) -> None:
    """Tell a person what comes next."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
