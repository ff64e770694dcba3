"""The programs that are compared: ours, and its peers, for layers and a directory to unpack to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.layers import Layer

    Command = Sequence[str | Path]

_PROGRAM: Final = Path(__file__).with_name("install_layers.py")

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


def install(directory: Path, *layers: Layer) -> Command:
    """Install *layers* with a layer manager of its own."""
    arguments = []
    for layer in layers:
        arguments += [layer.blob.as_uri(), layer.digest, str(layer.blob.stat().st_size)]
    return (sys.executable, _PROGRAM, directory, *arguments)


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


def _shell(script: str, directory: Path, layers: Sequence[Layer]) -> Command:
    option = layers[0].compression.tar_option
    return ("sh", "-ec", script, "sh", directory, option, *(layer.blob for layer in layers))
