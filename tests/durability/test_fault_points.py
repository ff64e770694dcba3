"""The process is killed, or fails, at every step by which it changes the disk.

``EVERY_FAULT`` in the environment has the errors that are much like others happen not only at the
first and the last of equal steps.
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from durability.scenarios import KEPT_NOTHING, RAISED, RETURNED, SCENARIOS, perform
from durability.site import assert_whole
from durability.walk import Fault, Kind, Walk
from layermanager.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durability.children import Children, Ended
    from durability.site import State


_TRIED_AGAIN: Final = {"install", "cache", "restore", "repair", "note a source"}
"""Those in which a manager goes on after an error, in the short tests as well."""


_LONG: Final = {
    "evict a spool",  # the step itself is met elsewhere
    "install a group",
    "install an image with directories",
    "install in two parts",
    "repair below directories that are not known",
    "repair directories that are outdated",
}
"""Those that are walked in the longer tests only."""
_LIKE_OTHERS: Final = {Kind.EDQUOT, Kind.EROFS, Kind.EINTR}
_EVERY_FAULT: Final = bool(os.environ.get("EVERY_FAULT"))


class Where(enum.StrEnum):
    """At which of the announcements of each step a fault happens."""

    ENDS = "first and last"
    BETWEEN = "between"
    ALL = "all"

    def includes(self, occurrence: int, last: int) -> bool:
        """Return whether it happens at this *occurrence* of *last* ones."""
        return self is Where.ALL or (occurrence in {1, last}) == (self is Where.ENDS)


def _parts(name: str, kind: Kind) -> Iterator[tuple[Where, bool]]:
    """Where the faults of a walk happen, in parts, and whether that is for the longer tests."""
    if kind is Kind.SIGKILL:
        yield Where.ENDS, name in _LONG
        yield Where.BETWEEN, True
    elif kind is Kind.EIO_AND_AGAIN:
        yield Where.ALL, name not in _TRIED_AGAIN
    else:
        yield Where.ENDS if kind in _LIKE_OTHERS and not _EVERY_FAULT else Where.ALL, True


WALKS: Final = [
    pytest.param(name, kind, where, marks=[pytest.mark.slow] if is_slow else [])
    for name in SCENARIOS
    for kind in Kind
    for where, is_slow in _parts(name, kind)
]


class Walked:
    """A scenario that was done once without a fault, and can be done again with one.

    Attributes:
        steps: what it consists of.
    """

    def __init__(self, name: str, base: Path, children: Children) -> None:
        self._name = name
        self._children = children
        self._scenario = SCENARIOS[name]
        self._site = self._scenario.site(base)
        self._scenario.prepare(self._site)
        self._before = self._site.state()
        self._damaged = self._site.damaged()
        self._site.keep()
        walk = Walk()
        self._scenario.act(self._site, walk)
        self._ends = [self._site.state()]
        self.steps = tuple(walk.steps)
        if self._scenario.end_otherwise is not None:
            self._site.go_back()
            self._scenario.end_otherwise(self._site)
            self._ends.append(self._site.state())

    def faults(self, kind: Kind, where: Where) -> Iterator[Fault]:
        """The fault at those announcements of each step."""
        seen: Counter[Step] = Counter()
        last = Counter(self.steps)
        for step in self.steps:
            seen[step] += 1
            if where.includes(seen[step], last[step]):
                yield Fault(kind, step, seen[step])

    def assert_survives(self, fault: Fault) -> None:
        """Have *fault* happen, and look at what comes of it."""
        self._site.go_back()
        ended = self._children.run(
            perform, str(self._site.base), self._name, fault.kind, fault.step, fault.occurrence
        )
        self._assert_ended_well(ended, fault)
        if not self._scenario.leaves_rest and (ended.status == RETURNED or "done" in ended.lines):
            self._assert_is_at_an_end()
        with self._site.manager():
            pass
        state = self._site.state()
        assert_whole(state, self._before, *self._ends)
        assert self._site.damaged() <= self._damaged
        self._assert_nothing_is_lost(state, ended)
        self._scenario.act(self._site, Walk())
        self._assert_is_at_an_end()
        assert self._site.leftovers() == []
        assert self._site.spools() == []
        assert self._site.damaged() == set()

    def _assert_is_at_an_end(self) -> None:
        assert self._site.state().layers in [end.layers for end in self._ends]

    def _assert_ended_well(self, ended: Ended, fault: Fault) -> None:
        told = [line for line in ended.lines if not line.startswith("installed ")]
        if fault.kind is Kind.SIGKILL:
            assert ended.was_killed, ended.lines
            assert told == ["met"]
            return
        assert ended.status in {RETURNED, RAISED}, "\n".join(ended.lines)
        assert {line.split()[0] for line in told} <= {"met", "done", "raised", "kept"}, told
        assert told[0] == "met"
        assert told[-1] == KEPT_NOTHING

    def _assert_nothing_is_lost(self, state: State, ended: Ended) -> None:
        """What was there before and is to be there afterwards is there all the time."""
        both = set(self._before.rows.keys() & self._before.trees.keys())
        for end in self._ends:
            both &= end.rows.keys()
        assert both <= state.rows.keys()
        for digest in both:
            if self._before.rows[digest] == self._ends[0].rows[digest]:
                assert state.rows[digest] == self._before.rows[digest]
        reported = {line.split()[1] for line in ended.lines if line.startswith("installed ")}
        assert reported <= state.rows.keys()


@pytest.mark.timeout(600)  # a walk takes one run of the scenario for each step
@pytest.mark.usefixtures("needs_of_scenario")
@pytest.mark.parametrize(("name", "kind", "where"), WALKS)
def test_fault(
    name: str,
    kind: Kind,
    where: Where,
    fast_path: Path,
    children: Children,
    subtests: pytest.Subtests,
) -> None:
    walked = Walked(name, fast_path, children)
    for fault in walked.faults(kind, where):
        with subtests.test(str(fault)):
            walked.assert_survives(fault)


@pytest.mark.usefixtures("needs_overlay")
def test_every_step_is_walked(fast_path: Path, children: Children) -> None:
    steps: set[Step] = set()
    for number, name in enumerate(SCENARIOS):
        steps.update(Walked(name, fast_path / str(number), children).steps)
    # A full disk is a matter of test_full_disk.py.
    assert steps == set(Step) - {Step.SPEND_RESERVE}
