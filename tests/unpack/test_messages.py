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
