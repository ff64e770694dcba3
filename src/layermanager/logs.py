"""The forms of the log: text for people, JSON for collectors, fields for the journal.

Messages hold text of servers, archives and libraries. Here, where they leave, secrets are removed
from them and what a terminal would obey is escaped, so that no caller has to. What begins a line
of the text log is always the level of a record: lines that follow within one are indented.
"""

from __future__ import annotations

import enum
import json
import logging
import socket
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager.errors import ConfigError
from layermanager.readable import escaped, escaped_lines
from layermanager.urls import redacted

if TYPE_CHECKING:
    import threading
    from types import TracebackType

JOURNAL: Final = Path("/run/systemd/journal/socket")

_LOGGER: Final = logging.getLogger(__name__)

_INDENT: Final = "  "
_MAX_MESSAGE: Final = 48 * 1024
"""A datagram to the journal that is larger than its buffer is not taken."""


class LogFormat(enum.StrEnum):
    """A form that the log may have."""

    TEXT = "text"
    JSON = "json"
    JOURNALD = "journald"


class RedactingFilter(logging.Filter):
    """Removes secrets from records; for the handlers of programs that embed this package.

    Libraries, such as urllib3, log whole addresses with the signatures in them. The handlers of
    the command and of the daemon need no such filter: their formatters do the same.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's text by the redacted one; keep the record."""
        record.msg, record.args = _message(record), ()
        record.exc_text = _exception(record)
        record.exc_info = None
        return True


class TextFormatter(logging.Formatter):
    """A line for each record: ``LEVEL: message``; the traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of *record*."""
        lines = [f"{escaped(record.levelname)}: {escaped(_message(record))}"]
        if exception := _exception(record):
            lines += [_INDENT + escaped(line) for line in exception.split("\n")]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """An object a line: ``time``, ``level``, ``logger``, ``message``, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of *record*, in ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        document = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if exception := _exception(record):
            document["exception"] = exception
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
    return JsonFormatter() if log_format == LogFormat.JSON else TextFormatter()


def log_unexpected(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Log what ends the process: a ``sys.excepthook``.

    Python would print the error as it is, with all that it quotes.
    """
    _LOGGER.critical("unexpected error: report this as a bug", exc_info=(kind, error, traceback))


def log_unexpected_in_thread(failure: threading.ExceptHookArgs) -> None:
    """Log what ends a thread: a ``threading.excepthook``."""
    error = failure.exc_value or failure.exc_type()
    log_unexpected(failure.exc_type, error, failure.exc_traceback)


def _message(record: logging.LogRecord) -> str:
    return redacted(record.getMessage())


def _exception(record: logging.LogRecord) -> str:
    """The traceback of *record*, without secrets; empty if it has none.

    ``exc_text`` may be what another handler's formatter made, with the secrets.
    """
    if record.exc_info:
        return redacted(logging.Formatter().formatException(record.exc_info))
    return redacted(record.exc_text or "")


def _fields(record: logging.LogRecord) -> list[tuple[str, str]]:
    message = "\n".join(filter(None, (_message(record), _exception(record))))
    message = escaped_lines(message)  # of what is not printable, journalctl shows nothing
    return [
        ("MESSAGE", message[:_MAX_MESSAGE]),
        ("PRIORITY", str(_priority(record.levelno))),
        ("SYSLOG_IDENTIFIER", "layermanager"),
        ("LOGGER", escaped(record.name)),
        ("THREAD_NAME", escaped(record.threadName or "")),
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
