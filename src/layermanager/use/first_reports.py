"""Filter for warnings that each operation finds again."""

from __future__ import annotations

import logging
from typing import Final

_MAX_REPORTS: Final = 32


class FirstReports(logging.Filter):
    """Filter that passes each text once, and only the first few texts.

    Other users choose what is reported, and operations come again and again: neither memory nor
    the log may grow with them. A lost race logs a text twice.
    """

    def __init__(self, most: int = _MAX_REPORTS) -> None:
        super().__init__()
        self._most = most
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether *record* is to be logged."""
        text = record.getMessage()
        if text in self._seen or len(self._seen) >= self._most:
            return False
        self._seen.add(text)
        if len(self._seen) == self._most:
            record.msg, record.args = f"{text} (further warnings of this kind are left out)", ()
        return True
