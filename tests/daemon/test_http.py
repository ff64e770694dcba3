"""Reason phrases, which are the same whichever Python runs the daemon."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from layermanager.daemon import http
from layermanager.daemon.http import phrase

SOURCES = Path(http.__file__).parent
NAMED = {
    HTTPStatus[name]
    for path in SOURCES.rglob("*.py")
    for name in re.findall(r"HTTPStatus\.([A-Z_]+)", path.read_text())
}


@pytest.mark.parametrize("status", sorted(NAMED - {HTTPStatus.CONTINUE}))
def test_each_status_of_the_daemon_has_a_phrase(status: int) -> None:
    assert phrase(status)


def test_phrases_that_python_has_changed_are_those_of_rfc_9110() -> None:
    assert phrase(413) == "Content Too Large"
    assert phrase(422) == "Unprocessable Content"


def test_an_unknown_status_has_an_empty_phrase() -> None:
    assert phrase(299) == ""
