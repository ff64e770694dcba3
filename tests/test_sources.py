from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import SourceError
from layermanager.sources import default_sources, open_stream
from layermanager.sources.client import HttpClient
from layermanager.sources.credentials import Credentials
from layermanager.sources.file import FileSource
from layermanager.sources.http import HttpSource
from layermanager.testing.web import LayerServer
from layermanager.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.protocols import ByteStream, Source
    from layermanager.testing.tls import Authority

DATA: Final = bytes(range(256)) * 4096  # 1 MiB that is not the same everywhere


def fetch(source: Source, url: str) -> bytes:
    with closing(source.open(url, Cancellation())) as stream:
        return read_all(stream)


def read_all(stream: ByteStream) -> bytes:
    return b"".join(iter(lambda: stream.read(256 * 1024), b""))


# --- what every source keeps to ---------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A source with a way to put something where it fetches from."""

    source: Source
    put: Callable[[str, bytes], str]


@pytest.fixture(params=["file", "http", "https"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    def put_file(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return (tmp_path / name).as_uri()

    if request.param == "file":
        yield Place(FileSource(), put_file)
        return
    authority = request.getfixturevalue("authority") if request.param == "https" else None
    with (
        closing(
            HttpSource(
                HttpClient(Network(ca_bundle=authority and authority.bundle), Credentials()),
                SystemClock(),
            )
        ) as source,
        LayerServer(authority and authority.server_context()) as server,
    ):
        yield Place(source, lambda name, data: server.add(f"/{name}", data))


class TestEverySource:
    @pytest.mark.parametrize("data", [DATA, b"x", b""])
    def test_yields_the_bytes_and_their_number(self, place: Place, data: bytes) -> None:
        stream = place.source.open(place.put("a.tar", data), Cancellation())
        assert stream.size == len(data)
        assert read_all(stream) == data
        assert stream.read(1) == b""
        stream.close()

    def test_yields_no_more_than_is_asked_for(self, place: Place) -> None:
        stream = place.source.open(place.put("a.tar", DATA), Cancellation())
        assert stream.read(3) == DATA[:3]
        assert stream.read(1) == DATA[3:4]
        stream.close()

    def test_several_streams_are_open_at_once(self, place: Place) -> None:
        urls = [place.put(f"{number}.tar", DATA[number:]) for number in range(12)]
        streams = [place.source.open(url, Cancellation()) for url in urls]
        for number, stream in reversed(list(enumerate(streams))):
            assert read_all(stream) == DATA[number:]
            stream.close()

    def test_a_stream_is_closed_in_the_middle_and_twice(self, place: Place) -> None:
        stream = place.source.open(place.put("a.tar", DATA), Cancellation())
        stream.read(10)
        stream.close()
        stream.close()

    def test_what_is_not_there_is_an_error_with_its_url(self, place: Place) -> None:
        url = place.put("a.tar", b"") + ".missing"
        with pytest.raises(SourceError, match=r"(404 Not Found|No such file).*missing") as caught:
            place.source.open(url, Cancellation())
        assert caught.value.url == url

    def test_an_aborted_stream_yields_nothing_more(self, place: Place) -> None:
        stream = place.source.open(place.put("a.tar", DATA), Cancellation())
        stream.read(10)
        stream.abort()
        stream.abort()
        with pytest.raises(SourceError, match="aborted"):
            stream.read(10)
        stream.close()
        stream.abort()

    def test_a_stream_that_ended_may_be_aborted(self, place: Place) -> None:
        stream = place.source.open(place.put("a.tar", DATA), Cancellation())
        read_all(stream)
        stream.abort()
        stream.close()

    def test_closes_twice(self, place: Place) -> None:
        place.source.close()
        place.source.close()


# --- the choice of the source -----------------------------------------------------------------


class TestOpenStream:
    @pytest.mark.parametrize("scheme", ["file", "FILE"])
    def test_chooses_by_the_scheme(self, tmp_path: Path, scheme: str) -> None:
        (tmp_path / "a").write_bytes(DATA)
        stream = open_stream({"file": FileSource()}, f"{scheme}://{tmp_path}/a", Cancellation())
        assert read_all(stream) == DATA
        stream.close()

    @pytest.mark.parametrize("url", ["ftp://a/b", "/a/b", "", "a.tar", ":", "http"])
    def test_names_the_known_schemes(self, url: str) -> None:
        sources = {"file": FileSource(), "usb": FileSource()}
        with pytest.raises(SourceError, match=r"known scheme \(file, usb\)"):
            open_stream(sources, url, Cancellation())

    def test_shows_no_credentials(self) -> None:
        with pytest.raises(SourceError) as caught:
            open_stream({"file": FileSource()}, "ftp://user:secret@a/b", Cancellation())
        assert "secret" not in str(caught.value)


class TestDefaultSources:
    def test_fetches_by_every_scheme(self, tmp_path: Path, authority: Authority) -> None:
        (tmp_path / "a").write_bytes(DATA)
        sources = default_sources(Network(ca_bundle=authority.bundle), SystemClock())
        with LayerServer() as server, LayerServer(authority.server_context()) as secure_server:
            for url in (
                (tmp_path / "a").as_uri(),
                server.add("/a", DATA),
                secure_server.add("/a", DATA),
            ):
                stream = open_stream(sources, url, Cancellation())
                assert read_all(stream) == DATA
                stream.close()
            for source in sources.values():
                source.close()

    def test_http_and_https_are_one_source(self) -> None:
        sources = default_sources(Network(), SystemClock())
        assert set(sources) == {"file", "http", "https"}
        assert sources["http"] is sources["https"]

    def test_loads_urllib3_only_for_http(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"")
        script = (
            "import sys; from pathlib import Path\n"
            "from layermanager.cancellation import Cancellation\n"
            "from layermanager.clock import SystemClock\n"
            "from layermanager.config import Network\n"
            "from layermanager.sources import default_sources, open_stream\n"
            "sources = default_sources(Network(), SystemClock())\n"
            "url = Path(sys.argv[1], 'a').as_uri()\n"
            "open_stream(sources, url, Cancellation()).close()\n"
            "for source in sources.values(): source.close()\n"
            "print('urllib3' in sys.modules, 'ssl' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "False False\n"


class TestWithoutCredentials:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://user:secret@host/a", "https://host/a"),
            ("https://user@host:1/a", "https://host:1/a"),
            ("https://user:s@cret@host/a", "https://host/a"),
            ("//user:secret@host/a", "//host/a"),
            ("https://host/@scope/a", "https://host/@scope/a"),
            ("https://host/a?b=//c@d", "https://host/a?b=//c@d"),
            ("https://user:secret@[::1/a", "https://[::1/a"),
            ("file:///a@b", "file:///a@b"),
            ("", ""),
        ],
    )
    def test_leaves_all_but_the_credentials(self, url: str, shown: str) -> None:
        assert without_credentials(url) == shown

    @given(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(), st.text())
    def test_never_leaves_them(self, scheme: str, secret: str, rest: str) -> None:
        secret = "<" + "".join(one for one in secret if one not in "/?#\\") + ">"
        assert secret not in without_credentials(f"{scheme}://user:{secret}@host/") + "/"
        assert without_credentials(f"{scheme}://host/{rest}") == f"{scheme}://host/{rest}"


# --- files ------------------------------------------------------------------------------------


def file_url(path: bytes) -> str:
    return "file://" + quote_from_bytes(path)


FILE_NAMES: Final = st.binary(min_size=1, max_size=100).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may read everything, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestFileSource:
    @given(name=FILE_NAMES)
    def test_finds_files_by_any_name(self, name: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.fsencode(directory) + b"/" + name
            with open(path, "wb") as file:  # noqa: PTH123 - Path has no names of bytes
                file.write(name)
            assert fetch(FileSource(), file_url(path)) == name

    @given(st.text())
    def test_any_other_url_is_an_error(self, text: str) -> None:
        with pytest.raises(SourceError):
            FileSource().open("file:///" + "missing/" + text, Cancellation())

    @pytest.mark.parametrize("prefix", ["file://", "file://localhost", "file://LOCALHOST", "file:"])
    def test_takes_each_form_of_the_url(self, tmp_path: Path, prefix: str) -> None:
        (tmp_path / "a").write_bytes(DATA)
        assert fetch(FileSource(), f"{prefix}{tmp_path}/a") == DATA

    def test_follows_symlinks(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(DATA)
        (tmp_path / "b").symlink_to("a")
        assert fetch(FileSource(), f"file://{tmp_path}/b") == DATA

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("file://host/a", "another host"),
            ("file://127.0.0.1/a", "another host"),
            ("file://user:secret@localhost/a", "another host"),
            ("file://a", "absolute path"),
            ("file://", "absolute path"),
            ("file:a", "absolute path"),
            ("file:", "absolute path"),
            ("file:///a?b", "%3F"),
            ("file:///a?", "%3F"),
            ("file:///a#b", "%23"),
            ("http://host/a", "file URL"),
            ("file:///a%", "two hex digits"),
            ("file:///a%2", "two hex digits"),
            ("file:///a%zz", "two hex digits"),
            ("file:///a%00b", "the byte 0"),
            ("file:///a\0b", "the byte 0"),
            ("file:///\ud800", "no valid text"),
        ],
    )
    def test_refuses_urls_that_name_no_file_here(self, url: str, reason: str) -> None:
        with pytest.raises(SourceError, match=reason) as caught:
            FileSource().open(url, Cancellation())
        assert "secret" not in str(caught.value)

    def test_a_line_break_in_a_name_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "a\nb").write_bytes(b"with")
        (tmp_path / "ab").write_bytes(b"without")
        assert fetch(FileSource(), f"file://{tmp_path}/a\nb") == b"with"

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=rf"{tmp_path}/a b: No such file") as caught:
            FileSource().open(f"file://{tmp_path}/a%20b", Cancellation())
        assert caught.value.url == f"file://{tmp_path}/a%20b"

    def test_an_unreadable_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch(mode=0)
        with (
            ordinary_user(),
            pytest.raises(SourceError, match=rf"{tmp_path}/a: Permission denied"),
        ):
            FileSource().open(f"file://{tmp_path}/a", Cancellation())

    def test_a_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="Is a directory"):
            FileSource().open(tmp_path.as_uri(), Cancellation())

    def test_a_fifo_is_refused_without_waiting_for_its_writer(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(SourceError, match="not a regular file"):
            FileSource().open(f"file://{tmp_path}/fifo", Cancellation())

    def test_a_device_is_refused(self) -> None:
        with pytest.raises(SourceError, match="not a regular file"):
            FileSource().open("file:///dev/null", Cancellation())

    def test_a_file_that_shrinks_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(DATA)
        stream = FileSource().open(f"file://{tmp_path}/a", Cancellation())
        stream.read(10)
        os.truncate(tmp_path / "a", 10)
        with pytest.raises(SourceError, match=f"became shorter.* 10 of {len(DATA)} bytes"):
            stream.read(10)
        stream.close()

    def test_what_is_appended_later_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"first")
        stream = FileSource().open(f"file://{tmp_path}/a", Cancellation())
        with (tmp_path / "a").open("ab") as file:
            file.write(b"second")
        assert stream.size == 5
        assert read_all(stream) == b"first"
        stream.close()

    def test_a_read_error_is_named(self) -> None:
        # A regular file of one page that cannot be read: the loopback interface has no speed.
        path = Path("/sys/class/net/lo/speed")
        if not path.exists():
            pytest.skip("needs sysfs for a file that cannot be read")
        with (
            closing(FileSource().open(path.as_uri(), Cancellation())) as stream,
            pytest.raises(SourceError, match=r"after 0 of \d+ bytes: Invalid argument"),
        ):
            stream.read(10)
