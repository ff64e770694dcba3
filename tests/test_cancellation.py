from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from layermanager.cancellation import Cancellation
from layermanager.errors import CancelledError, SourceError


def test_nothing_happens_before_it_is_requested() -> None:
    cancellation = Cancellation()
    cancellation.check()
    with cancellation.interrupting(lambda: pytest.fail("interrupted")):
        cancellation.check()
    assert not cancellation.requested.is_set()


def test_a_check_afterwards_raises() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    cancellation.cancel()
    assert cancellation.requested.is_set()
    with pytest.raises(CancelledError):
        cancellation.check()


def test_a_context_is_not_entered_afterwards() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with (
        pytest.raises(CancelledError),
        cancellation.interrupting(lambda: pytest.fail("interrupted")),
    ):
        pytest.fail("entered")


def test_all_waits_in_all_threads_are_interrupted() -> None:
    cancellation = Cancellation()
    entered = threading.Barrier(4)
    outcomes: list[type[BaseException] | None] = []

    def wait() -> None:
        interrupted = threading.Event()
        try:
            with cancellation.interrupting(interrupted.set):
                entered.wait(30)
                assert interrupted.wait(30)
                raise SourceError("aborted", url="https://example.com")
        except CancelledError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait(30)
    cancellation.cancel()
    for thread in threads:
        thread.join()
    assert outcomes == [CancelledError] * 3


def test_an_error_of_its_own_stays_itself() -> None:
    cancellation = Cancellation()
    with pytest.raises(ValueError, match="mine"), cancellation.interrupting(lambda: None):
        raise ValueError("mine")


def test_an_error_after_the_request_is_most_likely_its_result() -> None:
    cancellation = Cancellation()

    def interrupted() -> None:
        cancellation.cancel()
        raise ValueError("interrupted")

    with pytest.raises(CancelledError) as caught, cancellation.interrupting(lambda: None):
        interrupted()
    assert isinstance(caught.value.__context__, ValueError)


def test_what_succeeds_all_the_same_is_not_lost() -> None:
    cancellation = Cancellation()
    with cancellation.interrupting(lambda: None):
        cancellation.cancel()
    assert cancellation.requested.is_set()


def test_a_context_that_was_left_is_not_interrupted() -> None:
    cancellation = Cancellation()
    inner: list[str] = []
    with cancellation.interrupting(lambda: inner.append("outer")):
        with cancellation.interrupting(lambda: inner.append("inner")):
            pass
        cancellation.cancel()
    assert inner == ["outer"]


def test_one_interrupt_that_raises_keeps_no_other_from_being_called() -> None:
    cancellation = Cancellation()
    called: list[str] = []

    def fail() -> None:
        called.append("first")
        raise RuntimeError("of a caller")

    with (
        suppress(CancelledError),
        cancellation.interrupting(fail),
        cancellation.interrupting(lambda: called.append("second")),
    ):
        with pytest.raises(RuntimeError, match="of a caller"):
            cancellation.cancel()
        assert called == ["first", "second"]
