"""Write the command's manual page, from what its ``--help`` says: ``packaging/manual.py DATE``.

It is troff with man(7)'s macros, on standard output.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from layermanager import __version__
from layermanager.cli.run import group

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = (
    ("/etc/layermanager/config.json", "The configuration of the service, and of this command."),
    ("/var/lib/layermanager", "The working directory: the database, the layers."),
    ("/run/layermanager/api.sock", "The socket of the daemon."),
)
_SEE_ALSO = "systemctl(1), mount(8), crun(1); /usr/share/doc/layermanager"


def page(date: str) -> Iterator[str]:
    """The lines of the page."""
    yield f".TH LAYERMANAGER 1 {_quoted(date)} {_quoted(f'layermanager {__version__}')}"
    yield ".SH NAME"
    yield rf"layermanager \- {_text(_first_sentence(group).lower().rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield r".B layermanager"
    yield r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]"
    yield ".SH OPTIONS"
    yield from _options(group)
    yield ".SH COMMANDS"
    for command in _commands(group, "layermanager"):
        yield from command
    yield '.SH "EXIT STATUS"'
    yield _text((group.epilog or "").removeprefix("Exit status: "))
    yield ".SH FILES"
    for path, what in _FILES:
        yield from (".TP", rf".I {_text(path)}", _text(what))
    yield '.SH "SEE ALSO"'
    yield _text(_SEE_ALSO)


def _commands(parent: click.Group, path: str) -> Iterator[Iterator[str]]:
    for name in parent.list_commands(click.Context(parent)):
        command = parent.commands[name]
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield _command(command, f"{path} {name}")


def _command(command: click.Command, path: str) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(click.Context(command)))
    yield f".SS {_quoted(_text(f'{path} {usage}'))}"
    for paragraph in (command.help or "").split("\n\n"):
        yield _text(" ".join(paragraph.split()))
        yield ".PP"
    yield from _options(command)


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]))


def _first_sentence(command: click.Command) -> str:
    return " ".join((command.help or "").split()).partition(". ")[0]


def _text(text: str) -> str:
    """*text* as it is: with no macro at its beginning, and minus signs that can be copied."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


if __name__ == "__main__":
    print("\n".join(page(sys.argv[1])))
