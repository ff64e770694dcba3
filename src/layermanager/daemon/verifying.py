"""Asking a program whether a desired state was made by whom it should be."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from layermanager.children import file_in_memory, null_device
from layermanager.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.cancellation import Cancellation
    from layermanager.daemon.state_sources import Fetched

DOCUMENT: Final = "{document}"
"""Stands in a command for the path of the desired state."""

SIGNATURE: Final = "{signature}"
"""Stands in a command for the path of its signature."""

_SECONDS: Final = 60
_TOLD_CHARACTERS: Final = 500


def verify(command: Sequence[str], fetched: Fetched, cancellation: Cancellation) -> None:
    """Have *command* look at what was fetched; it is believed if its status is 0.

    What it reads is in no directory, so that nothing is left behind, and nobody can exchange it
    between the look and the use.

    Args:
        command: a program and its arguments, in which ``DOCUMENT`` and ``SIGNATURE`` stand for
            paths.
        fetched: what it is to look at.
        cancellation: ends the program.

    Raises:
        SignatureError: it is not believed, the program cannot be run or does not end; the message
            tells what it says.
        CancelledError: it was cancelled.
    """
    with ExitStack() as stack:
        paths = {
            DOCUMENT: _file(stack, fetched.document),
            SIGNATURE: _file(stack, fetched.signature or b""),
        }
        words = [_filled(word, paths) for word in command]
        try:
            process = subprocess.Popen(
                words,
                stdin=stack.enter_context(null_device()),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[descriptor for descriptor, _ in paths.values()],
            )
        except OSError as error:
            raise SignatureError(f"cannot run {words[0]}: {error.strerror}") from error
        with process:
            try:
                with cancellation.interrupting(process.kill):
                    output, _ = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise SignatureError(f"{words[0]} did not end in {_SECONDS} s") from error
            finally:
                process.kill()  # one that has ended is left alone
        cancellation.check()
        if process.returncode != 0:
            said = output.decode(errors="replace").strip()[-_TOLD_CHARACTERS:]
            raise SignatureError(
                f"{words[0]} refuses it (status {process.returncode}): {said or 'it says nothing'}"
            )


def _file(stack: ExitStack, content: bytes) -> tuple[int, str]:
    """A file in memory with that *content*: its descriptor, and its path in a child."""
    descriptor = stack.enter_context(file_in_memory(content))
    return descriptor, f"/proc/self/fd/{descriptor}"


def _filled(word: str, paths: dict[str, tuple[int, str]]) -> str:
    for name, (_, path) in paths.items():
        word = word.replace(name, path)
    return word
