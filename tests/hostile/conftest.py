from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from hostile.world import World
from layermanager.unpack.client import Unpacker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A place to unpack in, among files that have to stay as they are."""
    with closing(Unpacker(timedelta(seconds=30))) as unpacker:
        world = World(unpacker)
        world.build()
        try:
            yield world
        finally:
            world.demolish()
