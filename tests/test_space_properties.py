"""The allocators of one partition, compared step by step with a naive model of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layermanager.errors import NotEnoughSpaceError
from layermanager.space import Partitions
from layermanager.testing.space import SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.protocols import Allocator, Space

TOTAL = 1000
PART_LIMITS = {"layers": 50, "states": 30, "images": 0}

directories = st.sampled_from(sorted(PART_LIMITS))
sizes = st.integers(0, 400)
ages = st.integers(0, 20)
choices = st.integers(0, 99)  # of one of the items or spaces there are


def some_held(machine: AllocatorsMachine) -> bool:
    return bool(machine.model.held)


def some_items(machine: AllocatorsMachine) -> bool:
    return bool(machine.model.items)


@dataclass(eq=False)
class Item:
    """An installed item: a file of the disk."""

    directory: str
    name: str
    size: int
    outdated_since: int | None = None


@dataclass(eq=False)
class Held:
    """A space, and what the model knows of it."""

    directory: str
    space: Space
    file: str
    size: int
    written: int = 0


@dataclass
class Model:
    """The whole truth, kept in two lists; decides by trying one removal after another."""

    items: list[Item] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    foreign: int = 0

    def room_in_limit(self, directory: str, gone: list[Item]) -> int | None:
        if not PART_LIMITS[directory]:
            return None
        used = sum(i.size for i in self.items if i.directory == directory and i not in gone)
        reserved = sum(held.size for held in self.held if held.directory == directory)
        return TOTAL * PART_LIMITS[directory] // 100 - used - reserved

    def room_on_disk(self, gone: list[Item]) -> int:
        on_disk = sum(item.size for item in self.items if item not in gone)
        promised = sum(max(held.size, held.written) for held in self.held)
        return TOTAL - self.foreign - on_disk - promised

    def expected_evictions(self, directory: str, size: int) -> list[Item] | None:
        """The items that have to go so that *size* bytes fit, in order; None: they cannot."""
        outdated = sorted(
            # What takes nothing is left alone: it would go in vain.
            (item for item in self.items if item.outdated_since is not None and item.size),
            key=lambda item: (item.outdated_since, item.name),
        )
        gone: list[Item] = []
        while (room := self.room_in_limit(directory, gone)) is not None and room < size:
            own = [item for item in outdated if item.directory == directory and item not in gone]
            if not own:
                return None
            gone.append(own[0])
        while self.room_on_disk(gone) < size:
            anybodys = [item for item in outdated if item not in gone]
            if not anybodys:
                return None
            gone.append(anybodys[0])
        return gone


class AllocatorsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk(TOTAL)
        self.model = Model()
        self.evicted: list[str] = []
        self.names = 0
        partitions = Partitions(self.disk.usage)
        self.allocators: dict[str, Allocator] = {
            directory: partitions.new_allocator(Path(directory), part_limit, self.remove)
            for directory, part_limit in PART_LIMITS.items()
        }

    def remove(self, name: str) -> None:
        self.disk.remove(name)
        self.evicted.append(name)

    def reserve(self, directory: str, size: int, attempt: Callable[[], None]) -> bool:
        """Make an *attempt* to reserve, which must do to the items what the model expects."""
        expected = self.model.expected_evictions(directory, size)
        self.evicted.clear()
        try:
            attempt()
        except NotEnoughSpaceError as error:
            assert expected is None
            assert self.evicted == []
            self.check_refusal(error, directory, size)
            return False
        assert expected is not None
        assert self.evicted == [item.name for item in expected]
        self.model.items = [item for item in self.model.items if item not in expected]
        return True

    def check_refusal(self, error: NotEnoughSpaceError, directory: str, size: int) -> None:
        outdated = [item for item in self.model.items if item.outdated_since is not None]
        if error.limit_reached:
            room = self.model.room_in_limit(directory, [])
            outdated = [item for item in outdated if item.directory == directory]
        else:
            room = self.model.room_on_disk([])
        assert error.needed == size
        assert error.free == room
        assert error.reclaimable == sum(item.size for item in outdated)
        assert error.limit == TOTAL * PART_LIMITS[directory] // 100
        assert error.missing == size - error.free - error.reclaimable > 0

    def a_held(self, choice: int) -> Held:
        return self.model.held[choice % len(self.model.held)]

    def an_item(self, choice: int) -> Item:
        return self.model.items[choice % len(self.model.items)]

    @rule(directory=directories, size=sizes)
    def allocate(self, directory: str, size: int) -> None:
        self.new_held(directory, size)

    def new_held(self, directory: str, size: int) -> Held | None:
        spaces: list[Space] = []
        if not self.reserve(
            directory,
            size,
            lambda: spaces.append(self.allocators[directory].allocate_space(size)),
        ):
            return None
        self.names += 1
        held = Held(directory, spaces[0], f"item {self.names}", size)
        self.model.held.append(held)
        return held

    @rule(directory=directories, size=sizes, age=ages)
    def cache(self, directory: str, size: int, age: int) -> None:
        """All the steps from nothing to an outdated item, which single rules seldom get to."""
        held = self.new_held(directory, size)
        if held:
            self.outdate_item(self.accept_held(held), age)

    @precondition(some_held)
    @rule(choice=choices, extra=sizes)
    def grow(self, choice: int, extra: int) -> None:
        held = self.a_held(choice)
        if self.reserve(held.directory, extra, lambda: held.space.grow(extra)):
            held.size += extra
        assert held.space.size == held.size

    @precondition(some_held)
    @rule(choice=choices, share=st.integers(0, 4))
    def write(self, choice: int, share: int) -> None:
        held = self.a_held(choice)
        self.write_held(held, (held.size - held.written) * share // 4)

    def write_held(self, held: Held, size: int) -> None:
        """Write what is promised; the simulated disk raises if it is not there."""
        self.disk.write(held.file, size)
        held.written += size
        held.space.note_written(held.written)

    @precondition(some_held)
    @rule(choice=choices)
    def accept(self, choice: int) -> None:
        self.accept_held(self.a_held(choice))

    def accept_held(self, held: Held) -> Item:
        self.write_held(held, held.size - held.written)
        held.space.accept()
        return self.held_became_item(held)

    @precondition(some_held)
    @rule(choice=choices)
    def accept_what_is_written(self, choice: int) -> None:
        held = self.a_held(choice)
        held.space.accept(held.written)
        self.held_became_item(held)

    def held_became_item(self, held: Held) -> Item:
        self.model.held.remove(held)
        item = Item(held.directory, held.file, held.written)
        self.model.items.append(item)
        return item

    @precondition(some_held)
    @rule(choice=choices)
    def release(self, choice: int) -> None:
        held = self.a_held(choice)
        self.disk.remove(held.file)
        held.space.release()
        self.model.held.remove(held)
        assert held.space.size == 0

    @precondition(some_items)
    @rule(choice=choices, age=ages)
    def outdate(self, choice: int, age: int) -> None:
        self.outdate_item(self.an_item(choice), age)

    def outdate_item(self, item: Item, age: int) -> None:
        timestamp = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=age)
        self.allocators[item.directory].add_outdated_item(item.name, item.size, timestamp)
        item.outdated_since = -age

    @precondition(some_items)
    @rule(choice=choices)
    def restore(self, choice: int) -> None:
        item = self.an_item(choice)
        self.allocators[item.directory].restore_outdated_item(item.name)
        item.outdated_since = None

    @precondition(some_items)
    @rule(choice=choices)
    def remove_of_own_accord(self, choice: int) -> None:
        item = self.an_item(choice)
        allocator = self.allocators[item.directory]
        allocator.restore_outdated_item(item.name)
        self.disk.remove(item.name)
        allocator.free_space(item.size)
        self.model.items.remove(item)

    @rule(share=st.integers(0, 4))
    def somebody_else_writes(self, share: int) -> None:
        """Others take of what is free and not promised to anybody."""
        size = self.model.room_on_disk([]) * share // 8
        self.disk.write("somebody else's", size)
        self.model.foreign += size

    @rule()
    def somebody_else_removes(self) -> None:
        self.disk.remove("somebody else's")
        self.model.foreign = 0

    @rule(directory=directories)
    def note_used_space(self, directory: str) -> None:
        """What is noted at the start of an operation agrees with what was counted."""
        used = sum(item.size for item in self.model.items if item.directory == directory)
        self.allocators[directory].note_used_space(used)

    @invariant()
    def nothing_is_over_committed(self) -> None:
        assert self.model.room_on_disk([]) >= 0
        for directory in PART_LIMITS:
            room = self.model.room_in_limit(directory, [])
            assert room is None or room >= 0

    @invariant()
    def the_disk_holds_what_the_model_says(self) -> None:
        expected = {item.name: item.size for item in self.model.items}
        expected |= {held.file: held.written for held in self.model.held}
        expected["somebody else's"] = self.model.foreign
        assert {name: size for name, size in self.disk.files.items() if size} == {
            name: size for name, size in expected.items() if size
        }


TestAllocators = AllocatorsMachine.TestCase
