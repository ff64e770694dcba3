"""Files that hold passwords, tokens and keys: nobody else may read them."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from layermanager.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_FOREIGN_RIGHTS: Final = stat.S_IWGRP | stat.S_IRWXO


def read_secret(path: Path) -> str:
    """Read a file that holds a secret.

    Raises:
        ConfigError: it cannot be read, or others than its owner and its group can.
    """
    check_secret(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {_why(error)}") from error


def check_secret(path: Path) -> None:
    """See that only its owner can write to *path*, and only he and its group read it.

    Raises:
        ConfigError: it is otherwise, or there is no such file.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {_why(error)}") from error
    if mode & _FOREIGN_RIGHTS:
        raise ConfigError(
            f"{path} holds a secret and has the mode {mode:04o}: make it 0600 or 0640"
        )


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is no UTF-8"
