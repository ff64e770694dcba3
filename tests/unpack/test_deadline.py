from __future__ import annotations

from layermanager.unpack.deadline import Deadline, DiskGrowth

MINUTE = 60.0
RATE = 32 * 1024


def test_without_progress_the_timeout_is_all() -> None:
    deadline = Deadline(MINUTE)
    assert deadline.left == MINUTE
    deadline.wait(50)
    assert deadline.left == 10
    deadline.wait(10)
    assert deadline.left == 0


def test_progress_begins_the_timeout_again() -> None:
    deadline = Deadline(MINUTE)
    deadline.wait(59)
    deadline.note_taken(1024**3)
    assert deadline.left == MINUTE


def test_nothing_is_no_progress() -> None:
    deadline = Deadline(MINUTE)
    deadline.wait(59)
    deadline.note_taken(0)
    assert deadline.left == 1


def test_progress_that_is_too_slow_does_not_extend_the_deadline_for_ever() -> None:
    deadline = Deadline(MINUTE)
    waits = 0
    while deadline.left > 0:
        deadline.wait(59)
        deadline.note_taken(RATE)  # a second's worth
        waits += 1
    assert waits == 2


def test_progress_at_the_lowest_rate_may_take_as_long_as_it_takes() -> None:
    deadline = Deadline(MINUTE)
    for _ in range(100_000):
        deadline.wait(30)
        deadline.note_taken(30 * RATE)
        assert deadline.left > 0


def test_growth_begins_the_timeout_again() -> None:
    deadline = Deadline(MINUTE)
    deadline.wait(30)
    deadline.note_growth(1024**3)
    assert deadline.left == MINUTE


def test_growth_that_no_input_accounts_for_holds_no_layer_for_hours() -> None:
    deadline = Deadline(MINUTE)
    granted = 300 * 1024**2  # for 10 KiB of input
    waited = 0
    while deadline.left > 0:
        step = min(granted, 1024**2)
        deadline.wait(50)
        deadline.note_growth(step)
        granted -= step
        waited += 50
    assert waited <= 3 * MINUTE


def test_growth_is_what_is_no_longer_free() -> None:
    growth = DiskGrowth(1000)
    assert growth.grown_to(900, granted=500) == 100
    assert growth.grown_to(900, granted=500) == 0
    assert growth.grown_to(700, granted=500) == 200


def test_what_others_remove_hides_no_later_growth() -> None:
    growth = DiskGrowth(1000)
    assert growth.grown_to(5000, granted=500) == 0
    assert growth.grown_to(4900, granted=500) == 100


def test_no_more_growth_counts_than_was_granted() -> None:
    """Else a worker could write and remove one file for ever."""
    growth = DiskGrowth(1000)
    counted = 0
    for _ in range(50):
        counted += growth.grown_to(900, granted=250)
        counted += growth.grown_to(1000, granted=250)
    assert counted == 250
    assert growth.grown_to(0, granted=300) == 50
