from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.testing.ranges import ByteRange, File, reply_to

FILE = File.of(b"0123456789")
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


def test_files_tell_their_versions_apart() -> None:
    assert FILE.etag is not None
    assert FILE.etag[0] == FILE.etag[-1] == '"'
    assert FILE.etag == File.of(b"0123456789").etag != File.of(b"0123456788").etag
    assert FILE.validators == {"ETag": FILE.etag, "Last-Modified": DATE}
    assert File(b"", None, None).validators == {}


def test_a_file_is_sent_as_a_whole() -> None:
    reply = reply_to({}, FILE)
    assert (reply.status, bytes(reply.body)) == (200, b"0123456789")
    assert reply.headers == {
        "Content-Length": "10",
        "Accept-Ranges": "bytes",
        "ETag": FILE.etag,
        "Last-Modified": DATE,
    }


@pytest.mark.parametrize(
    ("asked", "content_range", "body"),
    [
        ("bytes=0-", "bytes 0-9/10", b"0123456789"),
        ("bytes=4-", "bytes 4-9/10", b"456789"),
        ("bytes=9-", "bytes 9-9/10", b"9"),
        ("bytes=4-6", "bytes 4-6/10", b"456"),
        ("bytes=4-99", "bytes 4-9/10", b"456789"),
    ],
)
def test_a_part_is_sent_when_asked_for(asked: str, content_range: str, body: bytes) -> None:
    reply = reply_to({"range": asked}, FILE)
    assert (reply.status, bytes(reply.body)) == (206, body)
    assert reply.headers == {
        "Content-Length": str(len(body)),
        "Content-Range": content_range,
        "ETag": FILE.etag,
        "Last-Modified": DATE,
    }


@given(st.binary(), st.integers(0, 100))
def test_the_parts_of_a_file_are_the_file(data: bytes, first: int) -> None:
    reply = reply_to({"range": f"bytes={first}-"}, File.of(data))
    assert (reply.status == 206) is (first < len(data))
    assert data[:first] + bytes(reply.body) == data


@pytest.mark.parametrize("first", [10, 11, 10**30])
def test_a_part_after_the_end_cannot_be_sent(first: int) -> None:
    reply = reply_to({"range": f"bytes={first}-"}, FILE)
    assert (reply.status, reply.body) == (416, b"")
    assert reply.headers == {"Content-Length": "0", "Content-Range": "bytes */10"}


@pytest.mark.parametrize("asked", ["bytes=-4", "bytes=5-4", "bytes=1-2,4-5", "lines=1-", "x", ""])
def test_other_ranges_are_ignored(asked: str) -> None:
    assert ByteRange.asked({"range": asked}) is None
    assert reply_to({"range": asked}, FILE).status == 200


def test_if_range_is_compared_strongly() -> None:
    def status(if_range: str, file: File) -> int:
        return reply_to({"range": "bytes=4-", "if-range": if_range}, file).status

    strong, weak = replace(FILE, etag='"1"'), replace(FILE, etag='W/"1"')
    assert status('"1"', strong) == 206
    assert status('"2"', strong) == 200
    assert status('W/"1"', strong) == 200
    assert status('W/"1"', weak) == 200
    assert status('"1"', weak) == 200
    assert status(DATE, FILE) == 206
    assert status(DATE, replace(FILE, last_modified=datetime(2024, 1, 2, tzinfo=UTC))) == 200
    assert status(DATE, replace(FILE, last_modified=None)) == 200
