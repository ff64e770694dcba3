"""Arguments of kinds that click does not know: functions for its ``callback``."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from layermanager.cli.tables import parse_duration, parse_size

# The library is imported by the commands that need it: `--help` answers without SQLite, and `ls`
# without the HTTP client.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.oci.platform import Platform
    from layermanager.oci.reference import FileReference

_TRANSPORTS: Final = ("docker://", "oci:", "oci-archive:", "docker-archive:")
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


def duration(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> timedelta | None:
    """Read a duration, such as ``12h``."""
    try:
        return None if value is None else parse_duration(value)
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


def names_image(text: str) -> bool:
    """Whether *text*, which names no file that is there, is meant as the reference of an image.

    A bare word, or what looks like the path of a document, is more likely a mistyped file name; an
    image that is called so can be named as ``docker://NAME``.
    """
    if text.startswith(_TRANSPORTS):
        return True
    if text == "-" or text.startswith(("/", ".")) or text.endswith(".json"):
        return False
    registry, slash, _ = text.partition("/")
    return ":" in text or "@" in text or (bool(slash) and "." in registry)


def image_reference(text: str) -> str:
    """The reference *text* in full; a relative path in it counts from the working directory.

    Raises:
        InvalidReferenceError: it is none.
    """
    from layermanager.oci.reference import FileReference, parse_reference

    reference = parse_reference(text)
    if isinstance(reference, FileReference):
        reference = reference.within(str(Path.cwd()))
    return str(reference)


def texts(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Sequence[str]:
    """Refuse what is no text in an option that may be given several times."""
    for value in values:
        text(context, parameter, value)
    return values


def platform(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> Platform | None:
    """Read a platform, such as ``linux/arm64``."""
    from layermanager.errors import InvalidReferenceError
    from layermanager.oci.platform import parse_platform

    try:
        return parse_platform(value) if value else None
    except InvalidReferenceError as error:
        raise click.BadParameter(str(error), param_hint=parameter.opts[0]) from error


def moment(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> datetime | None:
    """Read a time: seconds since 1970, or RFC 3339; without a zone it is UTC."""
    if not value:
        return None
    try:
        if value.isdecimal():
            return datetime.fromtimestamp(int(value), UTC)
        read = datetime.fromisoformat(value)
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(f"not a time: {value!r}", param_hint=parameter.opts[0]) from error
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def layout(text: str) -> FileReference:
    """The image that ``LAYOUT[:TAG]`` names; its tag is ``latest`` where it names none.

    Raises:
        InvalidReferenceError: it names none.
    """
    from layermanager.errors import InvalidReferenceError
    from layermanager.oci.reference import DEFAULT_TAG, file_reference, parse_reference

    reference = file_reference(parse_reference(f"oci:{text}")).within(str(Path.cwd()))
    if reference.digest is not None:
        raise InvalidReferenceError(f"{text}: a new image cannot be named by its digest")
    return reference if reference.name else replace(reference, name=DEFAULT_TAG)


def image_to_push(text: str) -> str:
    """The reference of ``LAYOUT[:TAG]``, ``LAYOUT@DIGEST``, or of an image elsewhere.

    Raises:
        InvalidReferenceError: it is none.
    """
    return image_reference(text if text.startswith(_TRANSPORTS) else f"oci:{text}")


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
