"""The command: ``python -m fuzz TARGET [--seconds N]``, with ``tests`` on the module path."""

from __future__ import annotations

import argparse
import hashlib
import importlib
from pathlib import Path
from typing import Final

_TARGETS: Final = (
    "tar",
    "package",
    "compression",
    "challenge",
    "noproxy",
    "mounts",
    "index",
    "messages",
    "desired",
)
_INSTRUMENTED: Final = (
    "layermanager.desired",
    "layermanager.documents",
    "layermanager.oci",
    "layermanager.unpack",
    "layermanager.registry.challenge",
    "layermanager.sources.proxies",
    "layermanager.sources.scopes",
    "layermanager.use",
)
_STATE: Final = Path(".cache/fuzz")
_LARGEST_INPUT_BYTES: Final = 16 * 1024
_TIMEOUT_SECONDS: Final = 10
_MEMORY_MIB: Final = 1024


def main() -> None:
    """Fuzz what the command line names; the status is 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=_TARGETS, nargs="?")
    parser.add_argument("--list", action="store_true", help="print the names of all targets")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60)")
    arguments = parser.parse_args()
    if arguments.list:
        print(*_TARGETS, sep="\n")
        return
    if arguments.target is None:
        parser.error("name a target, or use --list")
    _fuzz(arguments.target, arguments.seconds)


def _fuzz(name: str, seconds: int) -> None:
    """Fuzz one target; libFuzzer then ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        corpus = importlib.import_module("hostile.corpus")
        targets = importlib.import_module("hostile.targets")
    directory = _STATE / name
    inputs = directory / "corpus"
    inputs.mkdir(parents=True, exist_ok=True)
    for data in corpus.seeds(name):
        (inputs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LARGEST_INPUT_BYTES}",
        f"-timeout={_TIMEOUT_SECONDS}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={directory}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([name, *options, str(inputs)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
