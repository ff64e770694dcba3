"""File URLs are those that ``pathlib`` makes."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from layermanager.urls import file_url

_NAMES = st.binary(min_size=1, max_size=20).map(
    lambda name: name.replace(b"/", b"-").replace(b"\0", b"-")
)


@given(st.lists(_NAMES, max_size=4))
def test_any_path(names: list[bytes]) -> None:
    path = Path("/", *map(os.fsdecode, names))
    assert file_url(path) == path.as_uri()
