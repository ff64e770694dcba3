"""Arguments of kinds that click does not know: functions for its ``callback``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli.tables import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOREVER: Final = "forever"
_UNUSABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Whether *text* can be written to JSON: an argument that is no UTF-8 cannot."""
    return _UNUSABLE.search(text) is None


def text(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no text."""
    if value is not None and not is_text(value):
        raise click.BadParameter(f"not UTF-8: {value!r}", param_hint=parameter.opts[0])
    return value


def size(_context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Read a number of bytes, such as ``500M``."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=parameter.opts[0]) from error


def patience(_context: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    """Read how long to wait: seconds, or ``forever``."""
    if value == _FOREVER:
        return timedelta.max
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(
            f"not a number of seconds: {value!r}", param_hint=parameter.opts[0]
        )
    return timedelta(seconds=min(seconds, timedelta.max.days * 86400))


class PatientCommand(click.Command):
    """A command with ``--wait[=SECONDS]``.

    A value must be joined to the option with ``=``. Of an option that may do without one, click
    would also take the next argument: the DESIRED of ``apply --wait DESIRED``.
    """

    def parse_args(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """Give a bare ``--wait`` its value."""
        end = args.index("--") if "--" in args else len(args)
        options = [f"--wait={_FOREVER}" if arg == "--wait" else arg for arg in args[:end]]
        return super().parse_args(ctx, [*options, *args[end:]])
