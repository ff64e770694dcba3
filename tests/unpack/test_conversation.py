from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import LayerError, LimitExceededError, UnpackerError
from layermanager.model import Limits
from layermanager.testing.layers import digest_of
from layermanager.unpack.conversation import Conversation, most_on_disk
from layermanager.unpack.messages import (
    Job,
    Need,
    Unpacked,
    done_message,
    failed_message,
    needs_message,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK: Final = 4096
MIB: Final = 1024 * 1024
JOB: Final = Job(
    digest=digest_of(b"blob"),
    is_package=False,
    limits=Limits(entries=1000, unpacked_bytes=1024 * MIB, compression_ratio=10),
    granted=10 * BLOCK,
    block_bytes=BLOCK,
)
STARTED: Final = {"type": "started"}
JAIL: Final = {"type": "jail", "measures": {"Landlock": ""}}
ENDED: Final = {"type": "ended", "status": 0}
OS_ERROR: Final = {"type": "os_error", "errno": 28, "message": "No space left on device"}
FAILED: Final = failed_message(LimitExceededError("too large"))
NEED: Final = needs_message(Need(10 * BLOCK, BLOCK))
DONE: Final = done_message(Unpacked("", size=10 * BLOCK, entries=3, os_version="", notes={}))


def sent(message: Mapping[str, object]) -> JsonObject:
    return JsonObject.of(parse(json.dumps(message).encode()), "message")


def working(job: Job = JOB) -> Conversation:
    conversation = Conversation(job)
    conversation.hear(sent(STARTED), 0)
    conversation.hear(sent(JAIL), 0)
    return conversation


def test_a_layer_that_goes_well() -> None:
    conversation = working()
    assert conversation.hear(sent(NEED), 0) == Need(10 * BLOCK, BLOCK)
    conversation.granted = 20 * BLOCK
    conversation.hear(sent(DONE), 0)
    conversation.hear(sent(ENDED), 0)
    assert conversation.has_ended
    assert conversation.verdict is not None
    assert conversation.verdict.size == 10 * BLOCK
    assert conversation.error is None


BEFORE: Final = {
    "nothing": (),
    "started": (STARTED,),
    "jail": (STARTED, JAIL),
    "done": (STARTED, JAIL, DONE),
    "failed": (STARTED, JAIL, FAILED),
    "os_error": (STARTED, JAIL, OS_ERROR),
    "ended": (STARTED, JAIL, DONE, ENDED),
}
ALLOWED: Final = {
    "nothing": {"started", "not started", "ended"},
    "started": {"jail", "not started", "ended"},
    "jail": {"needs", "done", "failed", "os_error", "ended"},
    "done": {"ended"},
    "failed": {"ended"},
    "os_error": {"ended"},
    "ended": set(),
}
ALL: Final[tuple[Mapping[str, object], ...]] = (
    STARTED,
    {"type": "not started", "errno": 11},
    JAIL,
    NEED,
    DONE,
    FAILED,
    OS_ERROR,
    ENDED,
    {"type": "granted", "granted": 5},
    {},
)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("message", ALL, ids=lambda message: str(message.get("type")))
def test_each_message_has_its_time(before: str, message: Mapping[str, object]) -> None:
    conversation = Conversation(JOB)
    for one in BEFORE[before]:
        conversation.hear(sent(one), 0)
    if message.get("type") in ALLOWED[before]:
        conversation.hear(sent(message), 0)
        return
    with pytest.raises(DocumentError, match="unexpected message"):
        conversation.hear(sent(message), 0)


@pytest.mark.parametrize(
    ("written", "more"),
    [
        (11 * BLOCK, BLOCK),  # more than was granted
        (0, BLOCK),  # which it may take already
        (10 * BLOCK, 0),
        (10 * BLOCK, 1),
        (10 * BLOCK, BLOCK + 1),
        (-1, BLOCK),
        (10 * BLOCK, -BLOCK),
        (2**70, BLOCK),
        (10 * BLOCK, 2**70),
        (10 * BLOCK, 2**63),
    ],
)
def test_a_need_that_is_none_is_refused(written: int, more: int) -> None:
    with pytest.raises(DocumentError):
        working().hear(sent({"type": "needs", "written": written, "bytes": more}), 10**12)


def test_what_is_on_disk_grows() -> None:
    conversation = working()
    conversation.hear(sent(needs_message(Need(10 * BLOCK, BLOCK))), 0)
    conversation.granted = 11 * BLOCK
    with pytest.raises(DocumentError, match="written"):
        conversation.hear(sent(needs_message(Need(9 * BLOCK, 3 * BLOCK))), 0)


def test_the_same_need_is_heard_once() -> None:
    conversation = working()
    conversation.hear(sent(NEED), 0)
    conversation.granted = 11 * BLOCK
    with pytest.raises(DocumentError, match="no whole blocks beyond those granted"):
        conversation.hear(sent(NEED), 0)


def test_needs_are_bounded_by_what_was_fed() -> None:
    """Else a worker could have all cached layers evicted by one byte."""
    most = most_on_disk(JOB, 0)
    fed = MIB
    with pytest.raises(LimitExceededError, match="may become") as caught:
        working().hear(sent(needs_message(Need(10 * BLOCK, most))), 0)
    assert caught.value.digest == JOB.digest
    assert working().hear(sent(needs_message(Need(10 * BLOCK, most))), fed) is not None
    assert most_on_disk(JOB, fed) == most + fed * JOB.limits.compression_ratio * BLOCK // 512


def test_a_package_is_decompressed_twice() -> None:
    package = replace(JOB, is_package=True)
    assert most_on_disk(package, MIB) > 10 * most_on_disk(JOB, MIB)


def test_needs_are_bounded_by_the_limits() -> None:
    small = replace(JOB, limits=Limits(unpacked_bytes=MIB, entries=10, path_depth=5))
    most = MIB + (3 * 10 + 5 + 1) * BLOCK
    accepted = needs_message(Need(10 * BLOCK, most - 10 * BLOCK))
    assert working(small).hear(sent(accepted), 10**15) is not None
    refused = needs_message(Need(10 * BLOCK, most - 9 * BLOCK))
    with pytest.raises(LimitExceededError):
        working(small).hear(sent(refused), 10**15)


def test_inodes_are_asked_for_and_bounded_as_bytes_are() -> None:
    job = replace(JOB, granted_inodes=3)
    need = Need(10 * BLOCK, 0, 3, 1)
    assert working(job).hear(sent(needs_message(need)), 0) == need
    for wrong in (Need(0, 0, 3, 0), Need(0, 0, 4, 1), Need(0, 0, 2, 1)):
        with pytest.raises(DocumentError):
            working(job).hear(sent(needs_message(wrong)), 0)
    with pytest.raises(LimitExceededError, match="inodes"):
        working(job).hear(sent(needs_message(Need(0, 0, 3, 10**9))), 10**15)


@pytest.mark.parametrize("inodes", [4, 2**62])
def test_inodes_that_were_not_granted_are_refused(inodes: int) -> None:
    with pytest.raises(DocumentError, match="inodes"):
        working(replace(JOB, granted_inodes=3)).hear(sent({**DONE, "inodes": inodes}), 0)


def test_what_a_package_says_of_its_layer_is_bounded_by_what_arrived() -> None:
    """Else its first bytes could have all cached layers evicted."""
    need = Need(10 * BLOCK, BLOCK, content=2**60, content_inodes=2**60)
    heard = working().hear(sent(needs_message(need)), 0)
    assert heard is not None
    assert heard.content <= most_on_disk(JOB, 0)
    assert heard.content_inodes <= 3 * JOB.limits.entries + JOB.limits.path_depth + 1


def test_the_number_of_needs_is_bounded_by_the_blocks() -> None:
    small = replace(JOB, limits=Limits(unpacked_bytes=MIB, entries=10, path_depth=5), granted=0)
    conversation = working(small)
    most = MIB // BLOCK + 36
    for heard in range(most):
        conversation.hear(sent(needs_message(Need(heard * BLOCK, BLOCK))), 10**15)
        conversation.granted = (heard + 1) * BLOCK
    with pytest.raises(LimitExceededError):
        conversation.hear(sent(needs_message(Need(most * BLOCK, BLOCK))), 10**15)


@pytest.mark.parametrize("size", [10 * BLOCK + 1, 2**63 - 1, 2**63, 2**70, -1])
def test_a_size_that_was_not_granted_is_refused(size: int) -> None:
    with pytest.raises(DocumentError, match=r"size|64 bits"):
        working().hear(sent({**DONE, "size": size}), 0)


def test_a_size_below_what_was_told_before_is_refused() -> None:
    conversation = working()
    conversation.hear(sent(NEED), 0)
    conversation.granted = 20 * BLOCK
    with pytest.raises(DocumentError, match="size"):
        conversation.hear(sent({**DONE, "size": 9 * BLOCK}), 0)


def test_more_entries_than_allowed_are_refused() -> None:
    with pytest.raises(DocumentError, match="entries"):
        working().hear(sent({**DONE, "entries": 1001}), 0)


def test_the_first_error_stays() -> None:
    conversation = working()
    conversation.hear(sent(FAILED), 0)
    conversation.hear(sent({"type": "ended", "status": 3}), 0)
    assert isinstance(conversation.error, LimitExceededError)


@pytest.mark.parametrize(
    ("status", "words"), [(3, "ended with status 3"), (-9, "was killed by signal 9")]
)
def test_a_crash_is_an_error(status: int, words: str) -> None:
    conversation = working()
    conversation.hear(sent({"type": "ended", "status": status}), 0)
    assert isinstance(conversation.error, UnpackerError)
    assert words in str(conversation.error)


def test_why_there_is_no_worker() -> None:
    conversation = Conversation(JOB)
    conversation.hear(sent({"type": "not started", "errno": 11}), 0)
    assert conversation.has_ended
    assert str(conversation.error) == (
        "cannot start the unpacker: Resource temporarily unavailable"
    )


VALUES: Final = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.text(max_size=8)
    | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
)
MESSAGES: Final = st.fixed_dictionaries(
    {"type": st.sampled_from([str(message.get("type")) for message in ALL])},
    optional=dict.fromkeys(
        ("written", "bytes", "size", "entries", "errno", "status", "notes", "measures", "message"),
        VALUES,
    ),
)


@given(st.lists(MESSAGES, max_size=8), st.integers(min_value=0, max_value=2**40))
def test_whatever_is_said_ends_by_name(messages: list[Mapping[str, object]], fed: int) -> None:
    conversation = working()
    for message in messages:
        try:
            need = conversation.hear(sent(message), fed)
        except (DocumentError, LayerError):
            return
        if need is not None:
            conversation.granted = need.written + need.more
    verdict = conversation.verdict
    assert verdict is None or 0 <= verdict.size <= conversation.granted
