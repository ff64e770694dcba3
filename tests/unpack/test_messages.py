from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.documents import DocumentError, JsonObject, parse
from layermanager.errors import (
    ArchiveError,
    IntegrityError,
    LayerError,
    LimitExceededError,
    PackageError,
    UnpackerError,
)
from layermanager.model import JailMeasure, Limits
from layermanager.testing.layers import digest_of
from layermanager.unpack import messages
from layermanager.unpack.messages import Channel, Job, Unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGEST = digest_of(b"blob")
UNPACKED = Unpacked(
    blob_digest=DIGEST,
    size=4096,
    entries=3,
    os_version="6.1.0",
    notes={"devices left out": 2},
)


def sent(message: Mapping[str, object]) -> JsonObject:
    """*message* as it arrives."""
    return JsonObject.of(parse(json.dumps(message).encode()), "message")


def test_a_job_arrives_as_it_was_given() -> None:
    job = Job(DIGEST, is_package=True, limits=Limits(entries=5), granted=7, block_bytes=4096)
    assert messages.read_job(sent(messages.job_message(job))) == job
    comparing = replace(job, diff_id=digest_of(b"tar"))
    assert messages.read_job(sent(messages.job_message(comparing))) == comparing


def test_a_verdict_arrives_as_it_was_given() -> None:
    assert messages.read_done(sent(messages.done_message(UNPACKED))) == UNPACKED


def test_the_jail_arrives_as_it_was_told() -> None:
    measures = (JailMeasure("Landlock"), JailMeasure("network namespace", "not permitted"))
    assert messages.read_jail(sent(messages.jail_message(measures))) == measures


@pytest.mark.parametrize("kind", [ArchiveError, LimitExceededError, PackageError])
def test_an_error_keeps_its_class_and_text(kind: type[LayerError]) -> None:
    error = messages.read_failed(sent(messages.failed_message(kind("what it was"))), DIGEST)
    assert (type(error), str(error), error.digest) == (kind, "what it was", DIGEST)


def test_what_was_expected_and_found_arrives() -> None:
    wrong = IntegrityError("layer digest", expected="this", found="that")
    error = messages.read_failed(sent(messages.failed_message(wrong)), DIGEST)
    assert isinstance(error, IntegrityError)
    assert (error.subject, error.expected, error.found) == ("layer digest", "this", "that")


def test_only_errors_that_a_layer_can_cause_are_made() -> None:
    told = {"type": "failed", "error": "StoreBusyError", "message": "from a stranger"}
    error = messages.read_failed(sent(told), DIGEST)
    assert type(error) is UnpackerError


def test_a_long_text_is_cut_to_fit_into_a_packet() -> None:
    ours, theirs = Channel.pair()
    ours.send(messages.failed_message(ArchiveError("\u20ac" * 100_000)))
    packet = theirs.receive()
    assert packet is not None
    assert str(messages.read_failed(packet.message, DIGEST)).startswith("\u20ac" * 1000)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("key", ["blob_digest", "os_version"])
@pytest.mark.parametrize("value", [5, [], {}])
def test_a_verdict_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(DocumentError):
        messages.read_done(sent({**messages.done_message(UNPACKED), key: value}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = [
    "type",
    "error",
    "message",
    "subject",
    "blob_digest",
    "size",
    "notes",
    "measures",
]


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_message_is_read_or_refused(message: dict[str, object]) -> None:
    for read in (
        messages.read_done,
        messages.read_jail,
        lambda document: messages.read_failed(document, DIGEST),
    ):
        try:
            read(sent(message))
        except DocumentError:
            continue


def test_descriptors_come_with_a_message() -> None:
    ours, theirs = Channel.pair()
    reading, writing = os.pipe()
    ours.send({"type": "x"}, (reading,))
    packet = theirs.receive()
    assert packet is not None
    (copy,) = packet.descriptors
    os.write(writing, b"through")
    assert os.read(copy, 100) == b"through"
    for descriptor in (reading, writing, copy):
        os.close(descriptor)
    ours.close()
    assert theirs.receive() is None
    theirs.close()


@pytest.mark.parametrize("data", [b"garbage", b"[]", b"\xff", b"{" * 5000])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.send(data)
    channel = Channel(right)
    with pytest.raises(UnpackerError, match="no message"):
        channel.receive()
    left.close()
    channel.close()


def test_descriptors_that_come_are_not_inherited() -> None:
    ours, theirs = Channel.pair()
    ours.send({}, (0,))
    packet = theirs.receive()
    assert packet is not None
    (copy,) = packet.descriptors
    assert not os.get_inheritable(copy)
    os.close(copy)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("data", [b"garbage", b"{}"])
def test_descriptors_of_what_is_no_message_are_closed(data: bytes) -> None:
    """A packet is no message, or has more descriptors than were asked for."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    socket.send_fds(left, [data], [0] * 9)
    channel = Channel(right)
    with pytest.raises(UnpackerError, match="no message"):
        channel.receive()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    left.close()
    channel.close()


def test_a_message_that_is_too_long_is_refused() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.send(b" " * 100_000 + b"{}")
    channel = Channel(right)
    with pytest.raises(UnpackerError, match="longer than"):
        channel.receive()
    left.close()
    channel.close()


def test_sending_without_waiting_tells_that_there_is_no_room() -> None:
    ours, theirs = Channel.pair()

    def fill() -> None:
        while True:
            ours.send({"padding": "x" * 1000}, waits=False)

    with pytest.raises(BlockingIOError):
        fill()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "change",
    [
        {"os_version": "x" * 1025},
        {"blob_digest": "x" * 1000},
        {"blob_digest": "sha256:short"},
        {"size": -1},
        {"size": 2**63},
        {"size": None},
        {"entries": 2**63},
        {"entries": "3"},
        {"notes": {f"note {number}": 1 for number in range(33)}},
        {"notes": {"x" * 201: 1}},
        {"notes": {"\x1b[2J": 1}},
        {"notes": {"h\u00e9": 1}},
        {"notes": {"note": -1}},
        {"notes": {"note": 2**63}},
        {"notes": {"note": "often"}},
        {"notes": ["note"]},
    ],
)
def test_a_verdict_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DocumentError):
        messages.read_done(sent({**messages.done_message(UNPACKED), **change}))


@pytest.mark.parametrize("number", [-1, 0, 4095, 10**6, 2**63, 2**200, None, "28", True])
def test_an_error_that_linux_does_not_know_is_refused(number: object) -> None:
    with pytest.raises(DocumentError):
        messages.read_os_error(sent({"errno": number, "message": "words"}))


@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (OSError(28, "No space left on device", "a/b"), 28, "a/b: No space left on device"),
        (OSError(524, "Unknown error 524"), 5, "Unknown error 524"),
        (OSError("without a number"), 5, "without a number"),
        (OSError(), 5, "unknown error"),
    ],
)
def test_an_error_of_the_file_system_arrives(error: OSError, number: int, text: str) -> None:
    read = messages.read_os_error(sent(messages.os_error_message(error)))
    assert (read.errno, read.strerror) == (number, text)


@pytest.mark.parametrize("status", [256, -65, 2**63, "well"])
def test_an_end_that_no_process_has_is_refused(status: object) -> None:
    with pytest.raises(DocumentError):
        messages.read_ended(sent({"status": status}))


@pytest.mark.parametrize(
    "measures",
    [
        {f"measure {number}": "" for number in range(65)},
        {"x" * 201: ""},
        {"Landlock": "x" * 201},
        {"Landlock": 5},
    ],
)
def test_a_jail_out_of_bounds_is_refused(measures: dict[str, object]) -> None:
    with pytest.raises(DocumentError):
        messages.read_jail(sent({"measures": measures}))


@pytest.mark.parametrize(
    "message",
    [
        {"error": "ArchiveError", "message": "x" * 2001},
        {"error": "IntegrityError", "subject": "x" * 201},
        {"error": "IntegrityError", "subject": "size", "expected": "x" * 2001},
        {"error": "IntegrityError", "subject": "size", "found": "x" * 2001},
    ],
)
def test_a_failure_out_of_bounds_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(DocumentError):
        messages.read_failed(sent(message), DIGEST)
