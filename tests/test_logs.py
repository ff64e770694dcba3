from __future__ import annotations

import json
import logging
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ConfigError
from layermanager.logs import JournalHandler, LogFormat, RedactingFilter, formatter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def record(message: str, level: int = logging.INFO, *, failed: bool = False) -> logging.LogRecord:
    exc_info = None
    if failed:
        try:
            int("broken")
        except ValueError:
            exc_info = sys.exc_info()
    made = logging.LogRecord("a.logger", level, "/a/file.py", 7, message, (), exc_info, "do")
    made.created = 1795651200.25
    return made


def test_json_is_an_object_a_line() -> None:
    line = formatter("json").format(record("größer\n\udcff", logging.WARNING))
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line) == {
        "time": "2026-11-26T00:00:00.250Z",
        "level": "warning",
        "logger": "a.logger",
        "message": "größer\n\udcff",
    }


def test_json_has_exceptions() -> None:
    document = json.loads(formatter("json").format(record("no", logging.ERROR, failed=True)))
    assert document["exception"].endswith("literal for int() with base 10: 'broken'")


def test_text_is_for_people() -> None:
    assert formatter("text").format(record("done")) == "INFO: done"


def failure(message: str) -> logging.LogRecord:
    """A record with the traceback of an error that says *message*."""
    made = record("failed")
    made.exc_info = (ValueError, ValueError(message), None)
    return made


@given(st.text(st.characters()))
def test_a_record_is_one_line_of_text_with_nothing_to_obey(message: str) -> None:
    assert formatter("text").format(record(message)).isprintable()


@given(st.text(st.characters()))
def test_only_indented_lines_follow_within_a_record(message: str) -> None:
    first, *others = formatter("text").format(failure(f"{message}\nERROR: forged")).split("\n")
    assert first == "INFO: failed"
    assert others[0].startswith("  ValueError: ")
    assert all(line.startswith("  ") and line.isprintable() for line in others)


@pytest.mark.parametrize("log_format", [LogFormat.TEXT, LogFormat.JSON])
def test_no_form_has_secrets(log_format: str) -> None:
    url = "https://u:hunter2@h/a?sig=hunter2"
    assert "hunter2" not in formatter(log_format).format(record(f"asked {url}"))
    shown = formatter(log_format).format(failure(f"Max retries exceeded with url: {url}"))
    assert "hunter2" not in shown
    assert "https://h/a?" in shown


def test_a_traceback_that_another_handler_has_formatted_has_no_secrets() -> None:
    made = failure("/a?sig=hunter2")
    logging.Formatter().format(made)
    assert "hunter2" in (made.exc_text or "")
    assert "hunter2" not in formatter("text").format(made)
    made.exc_info = None
    assert "hunter2" not in formatter("text").format(made)


def test_a_filter_removes_secrets_for_other_handlers() -> None:
    made = failure("/a?sig=hunter2")
    made.msg, made.args = "asked %s", ("http://u:hunter2@h/a?sig=hunter2",)
    assert RedactingFilter().filter(made)
    shown = logging.Formatter("%(message)s").format(made)
    assert "hunter2" not in shown
    assert shown.startswith("asked http://h/a?…\nValueError: ")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(30)
        yield journal


def fields(datagram: bytes) -> dict[str, str]:
    """A datagram as the journal reads it."""
    found = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + size], datagram[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3")],
)
def test_the_journal_gets_fields(
    tmp_path: Path, journal: socket.socket, level: int, priority: str
) -> None:
    handler = JournalHandler(tmp_path / "journal")
    handler.emit(record("two\nlines", level))
    handler.close()
    found = fields(journal.recv(100_000))
    assert found["MESSAGE"] == "two\nlines"
    assert found["PRIORITY"] == priority
    assert found["SYSLOG_IDENTIFIER"] == "layermanager"
    assert found["LOGGER"] == "a.logger"
    assert (found["CODE_FILE"], found["CODE_LINE"], found["CODE_FUNC"]) == ("/a/file.py", "7", "do")


def test_no_text_becomes_a_field_of_the_journal(tmp_path: Path, journal: socket.socket) -> None:
    handler = JournalHandler(tmp_path / "journal")
    hostile = "a\nPRIORITY=0\n\x1b[2J\udcff\u202e http://u:hunter2@h/?sig=hunter2"
    made = failure(hostile)
    made.msg = made.name = made.threadName = hostile
    handler.emit(made)
    handler.close()
    found = fields(journal.recv(100_000))
    assert found["PRIORITY"] == "6"
    assert list(found) == [
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER", "THREAD_NAME"),
        *("CODE_FILE", "CODE_LINE", "CODE_FUNC"),
    ]
    lines = found["MESSAGE"].split("\n")
    assert lines[:3] == ["a", "PRIORITY=0", r"\x1b[2J\udcff\u202e http://h/?…"]
    assert all(value.replace("\n", "").isprintable() for value in found.values())
    assert "hunter2" not in found["MESSAGE"]


def test_the_journal_gets_exceptions_and_no_more_than_it_takes(
    tmp_path: Path, journal: socket.socket
) -> None:
    handler = JournalHandler(tmp_path / "journal")
    handler.emit(record("no", logging.ERROR, failed=True))
    handler.emit(record("x" * 10_000_000))
    handler.close()
    assert fields(journal.recv(100_000))["MESSAGE"].endswith("base 10: 'broken'")
    assert 10_000 < len(fields(journal.recv(100_000))["MESSAGE"]) < 100_000


def test_without_a_journal_it_is_a_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no journal at"):
        JournalHandler(tmp_path / "journal")
