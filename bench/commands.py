"""The programs that are compared: ours, and its peers, for layers and a directory to unpack to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.layers import Layer

    Command = Sequence[str | Path]

_INSTALL: Final = Path(__file__).with_name("install_layers.py")
_APPLY: Final = Path(__file__).with_name("install_desired.py")
_FETCH: Final = Path(__file__).with_name("fetch_files.py")

# The first argument is the directory, the second tar's option, then come the blobs.
_ONE_BY_ONE: Final = """
directory=$1 option=$2; shift 2
for blob; do
    mkdir "$directory/${blob##*/}"
    tar --extract "$option" --file "$blob" --directory "$directory/${blob##*/}"
done
"""
_ALL_AT_ONCE: Final = """
directory=$1 option=$2; shift 2
for blob; do
    mkdir "$directory/${blob##*/}"
    tar --extract "$option" --file "$blob" --directory "$directory/${blob##*/}" &
    started="$started $!"
done
for process in $started; do wait "$process"; done
"""
_CURL: Final = ("curl", "--silent", "--show-error", "--fail")

# The arguments are a command.
_TO_DIGEST: Final = '"$@" | openssl dgst -sha256'
_TO_TWO_DIGESTS: Final = """
"$@" | { tee /dev/fd/3 | openssl dgst -sha256 >/dev/null; } 3>&1 | openssl dgst -sha3-256
"""
# The first argument is the directory, the second how many at a time, then come the addresses.
_UNTAR_FROM_WEB: Final = """
directory=$1 count=$2; shift 2
printf "%s\\n" "$@" | xargs -P "$count" -I "{}" bash -eo pipefail -c '
    mkdir "$1/${2##*/}"
    curl --silent --show-error --fail "$2" | tar --extract --gzip --directory "$1/${2##*/}"
' bash "$directory" "{}"
"""


def install(directory: Path, *layers: Layer) -> Command:
    """Install *layers* with a layer manager of its own."""
    arguments = []
    for layer in layers:
        arguments += [layer.blob.as_uri(), layer.digest, str(layer.blob.stat().st_size)]
    return (sys.executable, _INSTALL, directory, *arguments)


def apply(configuration: Path, directory: Path, desired: Path) -> Command:
    """Install the layers of the file *desired* with a layer manager of its own."""
    return (sys.executable, _APPLY, configuration, directory, desired)


def fetch(configuration: Path, directory: Path, desired: Path) -> Command:
    """Fetch and verify the files of the layers of *desired*, and unpack nothing."""
    return (sys.executable, _FETCH, configuration, directory, desired)


def untar(directory: Path, layer: Layer) -> Command:
    """Unpack *layer* by GNU tar."""
    option = layer.compression.tar_option
    return ("tar", "--extract", option, "--file", layer.blob, "--directory", directory)


def untar_one_by_one(directory: Path, layers: Sequence[Layer]) -> Command:
    """Unpack *layers*, of one compression, one after the other."""
    return _shell(_ONE_BY_ONE, directory, layers)


def untar_all_at_once(directory: Path, layers: Sequence[Layer]) -> Command:
    """Unpack *layers*, of one compression, each by a tar of its own at the same time."""
    return _shell(_ALL_AT_ONCE, directory, layers)


def curl(url: str, bundle: Path) -> Command:
    """Fetch *url* with curl and throw it away."""
    return curl_to_file(url, bundle, Path("/dev/null"))


def curl_to_file(url: str, bundle: Path, file: Path) -> Command:
    """Fetch *url* with curl into *file*."""
    return (*_CURL, "--cacert", bundle, "--output", file, url)


def curl_to_digest(url: str, bundle: Path) -> Command:
    """Fetch *url* with curl and compute its SHA-256."""
    return _bash(_TO_DIGEST, *_CURL, "--cacert", bundle, url)


def curl_to_two_digests(url: str, bundle: Path) -> Command:
    """Fetch *url* with curl and compute its SHA-256 and its SHA3-256."""
    return _bash(_TO_TWO_DIGESTS, *_CURL, "--cacert", bundle, url)


def curl_and_untar(directory: Path, urls: Sequence[str], count: int) -> Command:
    """Fetch *urls* with curl and unpack them by GNU tar, *count* at a time."""
    return _bash(_UNTAR_FROM_WEB, directory, str(count), *urls)


def _bash(script: str, *arguments: str | Path) -> Command:
    """Run a script that fails where any part of a pipeline does."""
    return ("bash", "-eo", "pipefail", "-c", script, "bash", *arguments)


def _shell(script: str, directory: Path, layers: Sequence[Layer]) -> Command:
    option = layers[0].compression.tar_option
    return ("sh", "-ec", script, "sh", directory, option, *(layer.blob for layer in layers))
