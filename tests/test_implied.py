"""What directories a stack of layers should show, from indexes alone."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from counting import assert_linear
from layermanager.implied import MergedDirectory, Stack
from layermanager.pack.directories import directories_tar
from layermanager.testing.layers import digest_of
from layermanager.unpack.index import IndexEntry, Occurrence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

OPAQUE = {b"trusted.overlay.opaque": b"y"}
USER_OPAQUE = {b"user.overlay.opaque": b"y"}


def listed(
    path: str,
    mode: int = 0o700,
    owner: tuple[int, int] = (0, 0),
    mtime_ns: int = 7,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> Occurrence:
    """A directory that a layer lists."""
    entry = _entry(path, mode, owner, mtime_ns, xattrs or {})
    return Occurrence(entry.path, entry)


def implied(path: str, xattrs: Mapping[bytes, bytes] | None = None) -> Occurrence:
    """A directory that a layer has without listing it."""
    entry = _entry(path, 0o755, (0, 0), 0, xattrs or {}, is_implied=True)
    return Occurrence(entry.path, entry)


def other(path: str) -> Occurrence:
    """A file, a whiteout, or anything else."""
    return Occurrence(path.encode(), None)


def whiteout(path: str) -> Occurrence:
    return Occurrence(path.encode(), None, is_whiteout=True)


def _entry(
    path: str,
    mode: int,
    owner: tuple[int, int],
    mtime_ns: int,
    xattrs: Mapping[bytes, bytes],
    *,
    is_implied: bool = False,
) -> IndexEntry:
    return IndexEntry(
        path.encode(), "dir", mode, owner, mtime_ns, 0, "", b"", b"", (0, 0), xattrs, is_implied
    )


def found(*layers: Iterable[Occurrence] | None) -> dict[str, str]:
    """The directories that *layers*, the lowest first, need: their modes, or that none says it."""
    return {
        one.path.decode(): f"{one.mode:o}" if one.is_listed else "as it is"
        for one in merged(*layers)
    }


def merged(*layers: Iterable[Occurrence] | None) -> tuple[MergedDirectory, ...]:
    return stack_of(*layers).implied()


def stack_of(*layers: Iterable[Occurrence] | None) -> Stack:
    stack = Stack()
    for layer in layers:
        if layer is None:
            stack.add_unknown()
        else:
            stack.add(layer)
    return stack


ROOT = implied(".")
BASE = [ROOT, implied("home"), listed("home/app", 0o750), listed("home/app/in", 0o711)]
UPPER = [ROOT, implied("home"), implied("home/app")]
NEEDED = {".": "as it is", "home": "as it is", "home/app": "750"}


NEW = [ROOT, listed("a", 0o750), implied("a/c"), whiteout("a/c/g")]
SHOWS_NAMES = {".": "as it is", "a": "750", "a/c": "755"}


class TestWhiteoutsThatWouldShow:
    """overlayfs leaves them out only where a directory is that of several layers."""

    @pytest.mark.parametrize(
        "below",
        [
            [],
            [[ROOT, listed("a")]],
            [[ROOT, implied("a"), listed("a/c")], [ROOT, implied("a"), whiteout("a/c")]],
            [[ROOT, implied("a"), listed("a/c")], [ROOT, implied("a"), other("a/c")]],
            [[ROOT, implied("a"), listed("a/c")], [ROOT, implied("a", OPAQUE)]],
            [[ROOT, implied("a"), listed("a/c")], [implied(".", OPAQUE)]],
        ],
    )
    def test_of_a_single_layer(self, below: list[list[Occurrence]]) -> None:
        assert found(*below, NEW) == SHOWS_NAMES

    def test_of_a_layer_that_begins_anew(self) -> None:
        below = [ROOT, implied("a"), listed("a/c")]
        assert found(below, [ROOT, listed("a", 0o750, xattrs=OPAQUE), *NEW[2:]]) == SHOWS_NAMES

    def test_not_of_several(self) -> None:
        below = [ROOT, listed("a", 0o750), implied("a/c")]
        assert found(below, NEW) == {}
        assert found(NEW, below) == {}

    def test_not_of_what_is_hidden(self) -> None:
        assert found(NEW, [ROOT, whiteout("a")]) == {}
        assert found(NEW, [ROOT, listed("a", 0o750), implied("a/c", OPAQUE)]) == {}

    def test_of_the_root(self) -> None:
        assert found([ROOT, whiteout("g")]) == {".": "755"}
        assert found([ROOT, whiteout("g")], [ROOT]) == {}


class TestTheRule:
    def test_an_implied_directory_keeps_what_is_listed_below(self) -> None:
        assert found(BASE, UPPER) == NEEDED

    def test_the_nearest_one_counts(self) -> None:
        between = [ROOT, implied("home"), listed("home/app", 0o711)]
        assert found(BASE, between, UPPER) == {**NEEDED, "home/app": "711"}

    def test_implied_ones_between_change_nothing(self) -> None:
        assert found(BASE, UPPER, UPPER, [other("x")]) == NEEDED

    def test_what_the_uppermost_lists_needs_nothing(self) -> None:
        assert found(BASE, [ROOT, implied("home"), listed("home/app", 0o711)]) == {}

    def test_what_is_listed_as_it_shows_needs_nothing(self) -> None:
        assert found([ROOT, listed("d", 0o755, mtime_ns=0)], [ROOT, implied("d")]) == {}

    def test_nothing_below_lists_it(self) -> None:
        assert found(UPPER, UPPER) == {}

    def test_the_root(self) -> None:
        assert found([listed(".", 0o751)], [ROOT, implied("d")]) == {".": "751"}

    def test_a_single_layer_needs_nothing(self) -> None:
        assert found(BASE) == {}

    def test_an_index_of_an_earlier_version_marks_nothing(self) -> None:
        old = [listed(".", 0o755), listed("home", 0o755), listed("home/app", 0o755)]
        assert found(BASE, old) == {}

    @pytest.mark.parametrize(
        "hiding",
        [
            [other("home/app")],
            [other("home")],
            [implied("home", OPAQUE)],
            [implied("home", USER_OPAQUE)],
            [listed("home", xattrs=OPAQUE)],
            [implied(".", OPAQUE)],
        ],
    )
    def test_what_hides_the_directory_takes_its_attributes_away(
        self, hiding: list[Occurrence]
    ) -> None:
        between = hiding if hiding[0].path == b"." else [ROOT, *hiding]
        assert "home/app" not in found(BASE, between, UPPER)
        assert "home/app/in" not in found(BASE, between, [*UPPER, implied("home/app/in")])

    @pytest.mark.parametrize("mark", [OPAQUE, USER_OPAQUE])
    def test_layers_below_an_opaque_root_are_not_visible(self, mark: Mapping[bytes, bytes]) -> None:
        opaque = [implied(".", mark), listed("d")]
        assert stack_of(BASE, UPPER).visible == 2
        assert stack_of(BASE, None, [implied("d", mark)]).visible == 3
        assert stack_of(BASE, UPPER, opaque).visible == 1
        assert stack_of(BASE, opaque, UPPER, None).visible == 3

    def test_an_opaque_directory_keeps_its_own(self) -> None:
        upper = [ROOT, implied("home"), implied("home/app", OPAQUE), implied("home/app/in")]
        assert found(BASE, upper) == NEEDED

    def test_an_opaque_root_keeps_its_own(self) -> None:
        upper = [implied(".", OPAQUE), implied("d")]
        assert found([listed(".", 0o751), listed("d")], upper) == {".": "751"}

    def test_what_is_hidden_above_is_not_needed(self) -> None:
        assert found(BASE, UPPER, [ROOT, other("home")]) == {}

    def test_a_layer_without_an_index_may_hide_all(self) -> None:
        assert found(BASE, None, UPPER) == {}
        assert found(None, BASE, UPPER) == NEEDED

    def test_the_order_in_which_a_layer_says_it_does_not_matter(self) -> None:
        layer = [ROOT, implied("home", OPAQUE), implied("home/app"), other("home/app/in")]
        assert found(BASE, layer) == found(BASE, [layer[0], layer[3], *layer[1:3]])


class TestAttributes:
    def test_all_of_them(self) -> None:
        below = listed("d", 0o3705, (1000, 4294967294), -5, {b"user.a": b"\0=", b"trusted.t": b"v"})
        assert merged([ROOT, below], [ROOT, implied("d")])[-1] == MergedDirectory(
            b"d",
            0o3705,
            (1000, 4294967294),
            -5,
            {b"user.a": b"\0=", b"trusted.t": b"v"},
            is_listed=True,
        )

    def test_those_of_overlayfs_and_of_the_host_stay_below(self) -> None:
        xattrs = {**OPAQUE, **USER_OPAQUE, b"security.selinux": b"label", b"user.a": b"b"}
        below = listed("d", xattrs=xattrs)
        assert merged([ROOT, below], [ROOT, implied("d")])[-1].xattrs == {b"user.a": b"b"}
        same = listed("e", 0o755, mtime_ns=0, xattrs={**OPAQUE, b"security.selinux": b"label"})
        assert merged([ROOT, same], [ROOT, implied("e")]) == ()

    @pytest.mark.parametrize("name", [b"user.\xff", b"user.a=b"])
    def test_names_that_fit_in_no_tar_are_left_out(self, name: bytes) -> None:
        below = listed("d", xattrs={name: b"", b"user.a": b"b"})
        assert merged([ROOT, below], [ROOT, implied("d")])[-1].xattrs == {b"user.a": b"b"}


class TestLies:
    """The worker that wrote an index may have been taken over."""

    def test_a_directory_whose_parent_is_missing_is_passed_over(self) -> None:
        assert found([ROOT, listed("a/b/c")], [ROOT, implied("a/b/c")]) == {}

    def test_a_root_that_is_no_directory(self) -> None:
        assert found([listed("."), listed("d")], [other("."), ROOT, implied("d")]) == {}

    def test_a_file_that_is_named_twice(self) -> None:
        assert found(BASE, [ROOT, other("home"), other("home"), other("home/app")]) == {}

    def test_a_directory_with_the_name_of_a_marker(self) -> None:
        assert found([ROOT, listed(".wh.d")], [ROOT, implied(".wh.d")]) == {}

    def test_what_cannot_be_read_to_its_end_changes_nothing(self) -> None:
        def damaged() -> Iterable[Occurrence]:
            yield other("home")
            raise ValueError("damaged")

        stack = Stack()
        stack.add(BASE)
        with pytest.raises(ValueError, match="damaged"):
            stack.add(damaged())
        stack.add(UPPER)
        assert {one.path for one in stack.implied()} == {b".", b"home", b"home/app"}


def _wide(size: int) -> list[list[Occurrence]]:
    names = [f"d{number}" for number in range(size)]
    return [[ROOT, *map(listed, names)], [ROOT, *map(implied, names)], [*map(other, names)]]


def _deep(size: int) -> list[list[Occurrence]]:
    names = ["/".join("d" * depth) for depth in range(1, size + 1)]
    return [[ROOT, *map(listed, names)], [ROOT, *map(implied, names)]]


@pytest.mark.parametrize("made", [_wide, _deep])
def test_the_cost_is_linear(made: Callable[[int], list[list[Occurrence]]]) -> None:
    def prepare(size: int) -> Callable[[], object]:
        layers = made(size)
        return lambda: merged(*layers)

    assert_linear(prepare, 100)


class TestTheTar:
    DIRECTORIES = (
        MergedDirectory(b".", 0o755, (0, 0), 0, {}, is_listed=False),
        MergedDirectory(
            b"d\xff", 0o1777, (3, 2**31), 5 * 10**9 + 1, {b"user.x": b"\xff"}, is_listed=True
        ),
    )

    def test_the_same_directories_give_the_same_bytes(self) -> None:
        # A repair makes it again, maybe with another Python.
        assert digest_of(directories_tar(self.DIRECTORIES)) == (
            "sha256:78d1831455480d481204c19b10db177ec6c3d49378e97ca30c468092283be848"
        )

    def test_what_no_layer_lists_is_not_listed(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(directories_tar(self.DIRECTORIES))) as tar:
            assert tar.getnames() == ["d\udcff"]
