from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_places import open_descriptors

from layermanager.errors import SourceError
from layermanager.images.members import DirectoryFiles, Files, TarFiles
from layermanager.testing.images import write_files, write_tar
from layermanager.testing.layers import LayerBuilder, compress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Place = Callable[[Mapping[str, bytes]], Files]

URL = "oci:/place@sha256:0"
FILES = {"index.json": b"{}", "blobs/sha256/a": b"content" * 1000, "empty": b""}


@pytest.fixture(params=["directory", "tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Puts files into a directory, or into a tar, and opens that."""
    path = tmp_path / "place"

    def put(files: Mapping[str, bytes]) -> Files:
        if request.param == "directory":
            return DirectoryFiles(str(write_files(path, files)))
        return TarFiles(str(write_tar(path, files)))

    return put


def read(files: Files, name: str) -> bytes:
    with files.open(name, url=URL) as region:
        return region.first(10**9)


def refusal(files: Files, name: str) -> str:
    with pytest.raises(SourceError) as caught:
        files.open(name, url=URL)
    assert caught.value.url == URL
    return str(caught.value)


class TestEveryPlace:
    def test_files_are_read_by_name(self, place: Place) -> None:
        files = place(FILES)
        assert {name: read(files, name) for name in FILES} == FILES

    def test_a_file_that_is_not_there(self, place: Place) -> None:
        files = place(FILES)
        assert "blobs/sha256/b" in refusal(files, "blobs/sha256/b")
        assert "index.json/x" in refusal(files, "index.json/x")
        assert "blobs" in refusal(files, "blobs")

    def test_a_place_that_is_not_there(self, place: Place, tmp_path: Path) -> None:
        files = place(FILES)
        (tmp_path / "place").rename(tmp_path / "elsewhere")
        assert "No such file or directory" in refusal(files, "index.json")

    def test_no_descriptor_is_left_open(self, place: Place) -> None:
        files = place(FILES)
        before = open_descriptors()
        for _ in range(3):
            read(files, "blobs/sha256/a")
            refusal(files, "blobs/sha256/b")
            refusal(files, "blobs")
        assert open_descriptors() == before

    def test_reading_goes_on_in_the_same_version_only(self, place: Place, tmp_path: Path) -> None:
        files = place(FILES)
        with files.open("blobs/sha256/a", url=URL) as region:
            validator = region.validator
            assert (region.size, region.offset) == (7000, 0)
        with files.open("blobs/sha256/a", url=URL, offset=6990, validator=validator) as region:
            assert (region.size, region.offset) == (7000, 6990)
            assert region.first(10**9) == FILES["blobs/sha256/a"][6990:]
        with files.open("blobs/sha256/a", url=URL, offset=6990) as region:
            assert region.offset == 6990
        for offset, other in ((6990, "another"), (7001, validator)):
            with files.open("blobs/sha256/a", url=URL, offset=offset, validator=other) as region:
                assert region.offset == 0
        place({**FILES, "blobs/sha256/a": b"other"})
        os.utime(tmp_path / "place")
        with files.open("blobs/sha256/a", url=URL, offset=1, validator=validator) as region:
            assert (region.offset, region.first(10)) == (0, b"other")

    def test_an_aborted_region_is_read_no_further(self, place: Place) -> None:
        with place(FILES).open("blobs/sha256/a", url=URL) as region:
            assert region.read(10) == FILES["blobs/sha256/a"][:10]
            region.abort()
            with pytest.raises(SourceError, match="aborted"):
                region.read(10)

    def test_a_file_that_becomes_shorter(self, place: Place, tmp_path: Path) -> None:
        with place({"only": bytes(4096)}).open("only", url=URL) as region:
            path = tmp_path / "place"
            os.truncate(path if path.is_file() else path / "only", 100)
            with pytest.raises(SourceError, match="became shorter"):
                region.first(4096)


class TestDirectories:
    @pytest.mark.parametrize("link", ["blobs", "blobs/sha256", "blobs/sha256/a"])
    def test_no_symbolic_link_is_followed(self, tmp_path: Path, link: str) -> None:
        path = write_files(tmp_path / "place", FILES)
        (path / link).rename(tmp_path / "elsewhere")
        (path / link).symlink_to(tmp_path / "elsewhere")
        assert "no symbolic link is followed" in refusal(
            DirectoryFiles(str(path)), "blobs/sha256/a"
        )

    def test_the_directory_itself_may_be_one(self, tmp_path: Path) -> None:
        write_files(tmp_path / "place", FILES)
        (tmp_path / "link").symlink_to("place")
        assert read(DirectoryFiles(str(tmp_path / "link")), "index.json") == b"{}"

    def test_a_fifo_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "index.json")
        assert "no plain file" in refusal(DirectoryFiles(str(tmp_path)), "index.json")


class TestTars:
    def test_names_may_begin_with_a_dot_or_a_slash(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(
            LayerBuilder().directory("./").file("./x", b"1").file("/y//z", b"2").tar()
        )
        files = TarFiles(str(tmp_path / "a"))
        assert (read(files, "x"), read(files, "y/z")) == (b"1", b"2")

    def test_links_lead_to_members_where_they_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(
            LayerBuilder()
            .file("one/layer.tar", b"content")
            .symlink("two/layer.tar", "../one/layer.tar")
            .symlink("three/layer.tar", "../two/layer.tar")
            .symlink("absolute", "/etc/passwd")
            .symlink("out", "../../etc/passwd")
            .symlink("loop", "loop")
            .tar()
        )
        files = TarFiles(str(tmp_path / "a"), follows_links=True)
        assert read(files, "three/layer.tar") == b"content"
        assert "holds no 'absolute'" in refusal(files, "absolute")
        assert "leads out of it" in refusal(files, "out")
        assert "from one symbolic link to the next" in refusal(files, "loop")
        assert "is a symbolic link" in refusal(TarFiles(str(tmp_path / "a")), "two/layer.tar")

    @pytest.mark.parametrize("follows_links", [False, True])
    def test_hard_links_are_the_members_that_they_name(
        self, tmp_path: Path, *, follows_links: bool
    ) -> None:
        (tmp_path / "a").write_bytes(
            LayerBuilder()
            .file("one/x", b"first")
            .hardlink("two/x", "./one/x")
            .hardlink("three", "two/x")
            .file("one/x", b"second")
            .hardlink("four", "one/x")
            .tar()
        )
        files = TarFiles(str(tmp_path / "a"), follows_links=follows_links)
        found = {name: read(files, name) for name in ("one/x", "two/x", "three", "four")}
        assert found == {
            "one/x": b"second",
            "two/x": b"first",
            "three": b"first",
            "four": b"second",
        }

    def test_a_hard_link_to_a_symbolic_one_leads_where_it_stands(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(
            LayerBuilder()
            .file("one/x", b"1")
            .file("two/x", b"2")
            .symlink("one/link", "x")
            .hardlink("two/link", "one/link")
            .tar()
        )
        files = TarFiles(str(tmp_path / "a"), follows_links=True)
        assert (read(files, "one/link"), read(files, "two/link")) == (b"1", b"2")

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (LayerBuilder().file("../x").tar(), "leads out of it: '../x'"),
            (
                LayerBuilder().hardlink("x", "y").file("y").tar(),
                "leads to no member before it: 'x'",
            ),
            (LayerBuilder().hardlink("x", "../y").tar(), "leads out of it: '../y'"),
            (LayerBuilder().character_device("x", 1, 3).tar(), "character device is among"),
            (LayerBuilder().fifo("x").tar(), "fifo is among"),
            (
                LayerBuilder()
                .file("x", bytes(512), pax={"GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"})
                .tar(),
                "sparse file is among its members",
            ),
            (compress(LayerBuilder().file("x").tar(), "gzip"), "compressed as a whole with gzip"),
            (compress(LayerBuilder().file("x").tar(), "zstd"), "compressed as a whole with zstd"),
            (b"no tar at all", "ends within a header"),
            (bytes(512) + b"x" * 512, "lone zero block"),
            (LayerBuilder().file("x", bytes(9000)).members()[:-4096], "the tar ends within"),
        ],
    )
    def test_what_is_no_such_tar_is_refused(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        (tmp_path / "a").write_bytes(content)
        assert complaint in refusal(TarFiles(str(tmp_path / "a")), "x")

    def test_a_directory_is_no_tar(self, tmp_path: Path) -> None:
        assert "no plain file" in refusal(TarFiles(str(tmp_path)), "x")

    def test_too_many_members_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(LayerBuilder().file("x").members() * 100_001)
        assert "more than 100000 entries" in refusal(TarFiles(str(tmp_path / "a")), "x")

    def test_another_tar_of_the_same_name_is_read_anew(self, tmp_path: Path) -> None:
        files = TarFiles(str(write_tar(tmp_path / "a", {"x": b"old"})))
        assert read(files, "x") == b"old"
        write_tar(tmp_path / "b", {"longer": bytes(600), "x": b"new"}).replace(tmp_path / "a")
        assert read(files, "x") == b"new"

    def test_several_threads_may_read(self, tmp_path: Path) -> None:
        contents = {f"member-{number}": bytes([number]) * 10_000 for number in range(8)}
        files = TarFiles(str(write_tar(tmp_path / "a", contents)))
        found: dict[str, bytes] = {}

        def read_one(name: str) -> None:
            found[name] = read(files, name)

        threads = [threading.Thread(target=read_one, args=(name,)) for name in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == contents

    @given(
        st.dictionaries(
            st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True), st.binary(max_size=600)
        )
    )
    def test_every_member_is_found(self, members: dict[str, bytes]) -> None:
        path = Path(f"/proc/self/fd/{os.memfd_create('tar')}")
        files = TarFiles(str(write_tar(path, members)))
        assert {name: read(files, name) for name in members} == members
        os.close(int(path.name))


def test_gzip_that_is_a_member_is_none_of_its_business(tmp_path: Path) -> None:
    packed = gzip.compress(b"layer")
    assert read(TarFiles(str(write_tar(tmp_path / "a", {"x": packed}))), "x") == packed
