"""Counting the steps of a computation, so that tests of its cost need no clock."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from _typeshed import TraceFunction

MOST_GROWTH: Final = 4.5
"""Largest ratio of steps for an input four times as long, if the cost is linear."""

_TOOL: Final = 3  # one of the numbers that no kind of tool has to itself


def count_steps(function: Callable[[], object]) -> int:
    """Return how many instructions of Python *function* executes in this thread.

    Work inside a built-in counts as one step, whatever its arguments. Exceptions of *function* are
    passed on.
    """
    return _count_monitored(function) if sys.version_info >= (3, 12) else _count_traced(function)


def _count_traced(function: Callable[[], object]) -> int:
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction:
        nonlocal steps
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return steps


def _count_monitored(function: Callable[[], object]) -> int:
    """Do the same where a trace function is told of some instructions only."""
    if sys.version_info < (3, 12):
        raise NotImplementedError
    steps = 0
    thread = threading.get_ident()
    monitoring = sys.monitoring

    def count(_code: CodeType, _offset: int) -> None:
        nonlocal steps
        steps += threading.get_ident() == thread

    monitoring.use_tool_id(_TOOL, "counting")
    monitoring.register_callback(_TOOL, monitoring.events.INSTRUCTION, count)
    monitoring.set_events(_TOOL, monitoring.events.INSTRUCTION)
    try:
        function()
    finally:
        monitoring.set_events(_TOOL, monitoring.events.NO_EVENTS)
        monitoring.free_tool_id(_TOOL)
    return steps


def assert_linear(prepare: Callable[[int], Callable[[], object]], size: int) -> None:
    """Assert that the steps grow at most linearly from *size* to four times *size*.

    Args:
        prepare: returns the computation for an input of the given size. What it does itself does
            not count.
        size: large enough to outweigh what any input costs.
    """
    computations = [prepare(size), prepare(4 * size)]
    few, many = map(count_steps, computations)
    assert size <= few, f"{few} steps for {size}: the input was not looked at"
    assert many <= MOST_GROWTH * few, f"{few} steps for {size}, but {many} for {4 * size}"


def count_calls(function: Callable[[], object], called: Callable[..., object]) -> int:
    """Return how often *function* calls the Python function *called* in this thread."""
    code = getattr(called, "__code__")  # noqa: B009 - no attribute of all that can be called
    calls = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is code

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls
