"""What the log looks like: text for people, JSON for collectors, fields for the journal."""

from __future__ import annotations

import enum
import json
import logging
import socket
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from layermanager.errors import ConfigError

JOURNAL: Final = Path("/run/systemd/journal/socket")

_TEXT: Final = "%(levelname)s: %(message)s"
_MAX_MESSAGE: Final = 48 * 1024
"""A datagram to the journal that is larger than its buffer is not taken."""


class LogFormat(enum.StrEnum):
    """A form that the log may have."""

    TEXT = "text"
    JSON = "json"
    JOURNALD = "journald"


class JsonFormatter(logging.Formatter):
    """An object a line: ``time``, ``level``, ``logger``, ``message``, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of *record*, in ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        document = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


class JournalHandler(logging.Handler):
    """Sends records to systemd's journal in its native protocol, with fields of their own.

    Args:
        address: the socket of the journal.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, address: Path = JOURNAL) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(str(address))
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"there is no journal at {address}: {error.strerror}") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._socket.send(b"".join(_field(*pair) for pair in _fields(record)))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def formatter(log_format: str) -> logging.Formatter:
    """What makes lines of records; the journal gets none."""
    return JsonFormatter() if log_format == LogFormat.JSON else logging.Formatter(_TEXT)


def _fields(record: logging.LogRecord) -> list[tuple[str, str]]:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    return [
        ("MESSAGE", message[:_MAX_MESSAGE]),
        ("PRIORITY", str(_priority(record.levelno))),
        ("SYSLOG_IDENTIFIER", "layermanager"),
        ("LOGGER", record.name),
        ("THREAD_NAME", record.threadName or ""),
        ("CODE_FILE", record.pathname),
        ("CODE_LINE", str(record.lineno)),
        ("CODE_FUNC", record.funcName or ""),
    ]


def _field(name: str, value: str) -> bytes:
    """A field; one of several lines has its length in front (systemd, JOURNAL_NATIVE_PROTOCOL)."""
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode("ascii"), data)
    return b"%b\n%b%b\n" % (name.encode("ascii"), struct.pack("<Q", len(data)), data)


def _priority(level: int) -> int:
    """The level as syslog(3) counts it."""
    for least, priority in ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7
