"""The steps by which an operation changes the disk, by name.

Each is announced right before it is taken, to a function that the manager is given. What is
announced is what a test walks: it ends the process there, or lets the step fail as a full or broken
disk would, and then looks at what is left.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

OnStep: TypeAlias = "Callable[[Step], None]"


class Step(enum.StrEnum):
    """One change of the disk; what is removed together is one step."""

    WRITE_LOCK = "write lock"

    MAKE_RESERVE = "make reserve"
    SPEND_RESERVE = "spend reserve"

    MAKE_DATABASE = "make database"
    SYNC_DATABASE_DIRECTORY = "sync database directory"
    OPEN_DATABASE = "open database"
    MIGRATE_DATABASE = "migrate database"
    WRITE_ROW = "write row"
    COMMIT_ROWS = "commit rows"
    CLOSE_DATABASE = "close database"

    MAKE_STORE_DIRECTORY = "make store directory"
    STAGE_LAYER = "stage layer"
    STAGE_INDEX = "stage index"
    REMOVE_MARKERS = "remove markers"
    WRITE_INDEX = "write index"
    UNPACK = "unpack"
    OWN_INDEX = "own index"
    SYNC_LAYERS = "sync layers"
    SYNC_INDEX = "sync index"
    MAKE_PARENT_DIRECTORY = "make parent directory"
    PLACE_LAYER = "place layer"
    PLACE_INDEX = "place index"
    SYNC_DIRECTORY = "sync directory"
    REMOVE_INDEX = "remove index"
    MOVE_TO_TRASH = "move to trash"
    PUT_BACK = "put back"
    REMOVE_TREE = "remove tree"

    MAKE_MOUNT_DIRECTORY = "make mount directory"
    MOUNT = "mount"
    UNMOUNT = "unmount"

    WRITE_SPOOL = "write spool"
    SYNC_SPOOL = "sync spool"
    REMOVE_SPOOL = "remove spool"


def unannounced(_: Step) -> None:
    """Tell nobody of a step."""
