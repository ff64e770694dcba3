from __future__ import annotations

import pytest

from layermanager.cli.files import file_line
from layermanager.json_documents import file_json
from layermanager.unpack.index import IndexEntry

FILE = IndexEntry(
    path=b"etc/motd",
    kind="file",
    mode=0o4755,
    owner=(0, 1000),
    mtime_ns=1_700_000_000_123_456_789,
    size=12,
    sha256="ab" * 32,
    link=b"",
    hard_link=b"",
    device=(0, 0),
    xattrs={},
)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (FILE, "-rwsr-xr-x    0:1000         12 2023-11-14 22:13 etc/motd"),
        (
            FILE._replace(kind="dir", mode=0o1777, size=0),
            "drwxrwxrwt    0:1000          0 2023-11-14 22:13 etc/motd",
        ),
        (
            FILE._replace(kind="link", mode=0o777, size=0, link=b"../motd"),
            "lrwxrwxrwx    0:1000          0 2023-11-14 22:13 etc/motd -> ../motd",
        ),
        (
            FILE._replace(kind="char", mode=0o666, device=(1, 3)),
            "crw-rw-rw-    0:1000        1,3 2023-11-14 22:13 etc/motd",
        ),
        (
            FILE._replace(kind="block", mode=0o660, device=(8, 0)),
            "brw-rw----    0:1000        8,0 2023-11-14 22:13 etc/motd",
        ),
        (
            FILE._replace(kind="fifo", mode=0o600, size=0),
            "prw-------    0:1000          0 2023-11-14 22:13 etc/motd",
        ),
        (FILE._replace(kind="char", mode=0), "whiteout  etc/motd"),
        (FILE._replace(hard_link=b"etc/issue"), "hard link etc/motd to etc/issue"),
        (
            FILE._replace(path=b"a\x1b[2J\xff\n", mtime_ns=-1),
            "-rwsr-xr-x    0:1000         12 1969-12-31 23:59 a\\x1b[2J\\xff\\n",
        ),
    ],
    ids=["file", "dir", "link", "char", "block", "fifo", "whiteout", "hard-link", "odd"],
)
def test_an_entry_as_a_line(entry: IndexEntry, line: str) -> None:
    assert file_line(entry) == line


COMMON = {"mode": "4755", "uid": 0, "gid": 1000, "mtimeNs": 1_700_000_000_123_456_789}


@pytest.mark.parametrize(
    ("entry", "members"),
    [
        (FILE, {"type": "file", **COMMON, "size": 12, "sha256": "ab" * 32}),
        (FILE._replace(kind="dir"), {"type": "dir", **COMMON}),
        (FILE._replace(kind="link", link=b"x"), {"type": "link", **COMMON, "link": "x"}),
        (
            FILE._replace(kind="char", device=(1, 3)),
            {"type": "char", **COMMON, "major": 1, "minor": 3},
        ),
        (
            FILE._replace(kind="block", device=(8, 0)),
            {"type": "block", **COMMON, "major": 8, "minor": 0},
        ),
        (FILE._replace(kind="fifo"), {"type": "fifo", **COMMON}),
        (FILE._replace(hard_link=b"x"), {"type": "file", "hardLink": "x"}),
        (
            FILE._replace(kind="dir", xattrs={b"user.x": b"\0\xff"}),
            {"type": "dir", **COMMON, "xattrs": {"user.x": "AP8="}},
        ),
    ],
    ids=["file", "dir", "link", "char", "block", "fifo", "hard-link", "xattrs"],
)
def test_an_entry_as_json(entry: IndexEntry, members: dict[str, object]) -> None:
    assert file_json(entry) == {"path": "etc/motd", **members}


def test_bytes_that_are_no_text_can_be_had_back() -> None:
    path = file_json(FILE._replace(path=b"\xff\xc3\xa9"))["path"]

    assert isinstance(path, str)
    assert path.encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9"
