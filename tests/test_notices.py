"""Warnings about conditions that last are logged when they begin."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from layermanager.notices import Notices

if TYPE_CHECKING:
    import pytest

LOGGER = logging.getLogger("layermanager.a_test")


def test_a_condition_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices()
    for met in (["a", "a"], ["a", "b"], [], ["a"]):
        notices.begin_round()
        for message in met:
            notices.warn(LOGGER, message)
    assert caplog.messages == ["a", "b", "a"]


def test_a_message_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    Notices().warn(LOGGER, "100 %s")
    assert caplog.messages == ["100 %s"]
