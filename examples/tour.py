"""A tour of layermanager on real files: what `make run` shows.

It packs three layers from parts of this machine's Python installation, serves them over loopback
HTTP, and drives the real command: installs two of them, changes the desired list, restores what was
cached. The store stays in ./var for you to look at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

VAR = Path("var")
STORE = VAR / "store"
PUBLISHED = VAR / "published"
DESIRED = VAR / "desired.json"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Show the main job on real input."""
    for directory in (STORE, PUBLISHED):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    handler = partial(QuietHandler, directory=str(PUBLISHED))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            tour(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()

    say("That was it. The store is still there; look at it with")
    for arguments in (["ls"], ["show", "DIGEST", "--files"], ["df"], ["gc", "--ttl-days", "0"]):
        print(f"  .venv/bin/layermanager --work-dir {STORE} {' '.join(arguments)}")


def tour(server: str) -> None:
    """Go through it with layers that are published at *server*."""
    library = Path(sysconfig.get_path("stdlib"))
    say("Three layers are packed from this machine's Python, and published over HTTP:")
    layers = {
        name: pack(library / name, server, name) for name in ("encodings", "email", "asyncio")
    }

    say("Two of them are desired:")
    apply([layers["encodings"], layers["email"]])

    say("Now `asyncio` is desired instead of `email`. What would be done?")
    desire([layers["encodings"], layers["asyncio"]])
    layermanager("apply", str(DESIRED), "--dry-run")
    say("Do it. `email` stays cached: it may be desired again, and can be removed for space.")
    layermanager("apply", str(DESIRED))
    layermanager("ls")

    say("`email` is desired again. It is restored, not fetched:")
    apply([layers["encodings"], layers["asyncio"], layers["email"]])
    layermanager("df")


def pack(source: Path, server: str, name: str) -> dict[str, object]:
    """Pack and publish *source*; return its entry for the desired list."""
    package = PUBLISHED / f"{name}.tar"
    output = layermanager(
        "pack",
        str(source),
        *("-o", str(package), "--layer-id", name, "--url", f"{server}/{package.name}"),
    )
    entry: dict[str, object] = json.loads(output)
    return entry


def apply(layers: Sequence[dict[str, object]]) -> None:
    """Desire *layers* and make it so."""
    desire(layers)
    layermanager("apply", str(DESIRED))


def desire(layers: Sequence[dict[str, object]]) -> None:
    """Write the list of desired layers."""
    DESIRED.write_text(json.dumps(layers, indent=2))


def layermanager(*arguments: str) -> str:
    """Run the real command, showing it and what it prints."""
    print(f"\n$ layermanager {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "layermanager", "--work-dir", str(STORE), *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(finished.stdout, end="", flush=True)
    return finished.stdout


def say(text: str) -> None:
    """Tell a person what comes next."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
