"""Paths are followed as the kernel follows them, at a bounded cost."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import assert_linear
from layermanager.linux import open_inside
from layermanager.use.layer_places import layers_in, layers_named
from layermanager.use.paths import ForeignPaths, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from([b"a", b"b", b".", b"..", b"", b"deep"])
PATHS = st.lists(NAMES, max_size=8).map(b"/".join)
LINKS = st.dictionaries(
    st.sampled_from([b"a", b"b", b"deep/a", b"deep/b"]), PATHS.filter(bool), max_size=4
)


def no_link(_: bytes) -> None:
    return None


class TestResolving:
    @given(LINKS, PATHS)
    def test_as_the_kernel_does(self, links: dict[bytes, bytes], path: bytes) -> None:
        """Symlinks that are absolute lead somewhere below the root directory of the process."""
        with tempfile.TemporaryDirectory() as name:
            root = os.fsencode(name)
            Path(name, "deep").mkdir()
            for link, target in links.items():
                Path(name, os.fsdecode(link)).symlink_to(os.fsdecode(target))
            resolved = ForeignPaths(root).resolve(b"/" + path)
            expected = in_a_root_directory(name, b"/" + path)
            if expected is not None:
                assert resolved == expected

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            (b"/", b"/"),
            (b"//a//b/", b"/a/b"),
            (b"/a/./b/../c", b"/a/c"),
            (b"/../..", b"/"),
            (b"/" + b"./" * 1900 + b"a", b"/a"),
            (b"/" + b"b/../" * 1900 + b"a", b"/a"),
        ],
    )
    def test_without_links(self, path: bytes, expected: bytes) -> None:
        assert resolve(path, no_link) == expected

    def test_what_is_not_there_below_a_link(self) -> None:
        links = {b"/a": b"b", b"/b": b"/gone/away"}
        assert resolve(b"/a/x", links.get) == b"/gone/away/x"

    def test_nothing_below_proc_is_followed(self) -> None:
        links = {b"/a": b"/proc/self/fd/5", b"/proc/self": b"1", b"/proc/self/fd/5": b"/x"}
        assert resolve(b"/a", links.get) == b"/proc/self/fd/5"

    @pytest.mark.parametrize(("links", "expected"), [(40, b"/end"), (41, b"/0")])
    def test_as_many_links_as_the_kernel_follows(self, links: int, expected: bytes) -> None:
        chain = {b"/%d" % number: b"%d" % (number - 1) for number in range(1, links)}
        chain[b"/0"] = b"/end"
        assert resolve(b"/%d" % (links - 1), chain.get) == expected

    def test_a_link_to_itself_ends(self) -> None:
        assert resolve(b"/a/b", {b"/a": b"a/a"}.get).startswith(b"/a/a")

    def test_a_path_that_is_too_long_for_the_kernel_stays(self) -> None:
        path = b"/a" * 3000 + b"/../b"
        assert resolve(path, no_link) == path

    @given(st.binary(max_size=200), st.dictionaries(st.binary(max_size=3), st.binary(max_size=20)))
    def test_any_bytes(self, path: bytes, links: dict[bytes, bytes]) -> None:
        assert resolve(path, lambda at: links.get(at.rpartition(b"/")[2])).startswith(b"/")


class TestCost:
    @pytest.mark.parametrize("part", [b"/.", b"/a/..", b"//", b"/a"])
    def test_components(self, part: bytes) -> None:
        assert_linear(lambda size: partial(resolve, part * size, no_link), 200)

    def test_components_of_links(self) -> None:
        def prepare(size: int) -> Callable[[], object]:
            return partial(resolve, b"/a", {b"/a": b"/" + b"./" * size + b"a"}.get)

        assert_linear(prepare, 200)

    def test_names_of_layers(self) -> None:
        name = b"/" + b"0a" * 32
        assert_linear(lambda size: partial(layers_in, name * size), 200)
        assert_linear(lambda size: partial(layers_named, name * size), 200)


def in_a_root_directory(root: str, path: bytes) -> bytes | None:
    """Return where the kernel says that *path* leads; None if it leads nowhere."""
    child = os.open(root, os.O_PATH)
    try:
        found = open_inside(child, path, os.O_PATH)
    except OSError:
        return None
    finally:
        os.close(child)
    try:
        real = os.fsencode(Path(f"/proc/self/fd/{found}").readlink())
    finally:
        os.close(found)
    return real.removeprefix(os.fsencode(os.path.realpath(root))) or b"/"
