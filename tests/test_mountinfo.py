"""Reading the table of mounts, as the kernel writes it."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import assert_linear
from layermanager.use.layer_places import layers_named
from layermanager.use.mountinfo import (
    Mount,
    MountLines,
    TableExcerpt,
    escaped,
    excerpt,
    lower_directories,
    parse_line,
    parse_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.binary(min_size=1, max_size=12).map(lambda name: b"/" + name.replace(b"\0", b"0"))
"""Paths with all that is awkward: blanks, colons, commas, backslashes, bytes that are no UTF-8."""


def mangled(text: bytes, special: bytes = b" \t\n\\#") -> bytes:
    """As the kernel writes names (``mangle`` in fs/proc_namespace.c)."""
    return re.sub(rb"[" + re.escape(special) + rb"]", lambda match: b"\\%03o" % match[0][0], text)


def option(key: bytes, value: bytes) -> bytes:
    """As the kernel writes options (``seq_show_option`` in include/linux/seq_file.h)."""
    return mangled(key, b",= \t\n\\") + b"=" + mangled(value, b", \t\n\\")


def line(mount: Mount, optional: tuple[bytes, ...] = ()) -> bytes:
    return b" ".join(
        (
            *(b"%d" % mount.number, b"1", mount.device.encode(), mangled(mount.root)),
            *(mangled(mount.mount_point), b"rw,relatime", *optional, b"-"),
            *(mount.kind, mangled(mount.source), mount.options),
        )
    )


MOUNTS = st.builds(
    Mount,
    number=st.integers(0, 1 << 31),
    device=st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 1 << 20)),
    root=NAMES,
    mount_point=NAMES,
    kind=st.sampled_from([b"ext4", b"overlay", b"fuse.sshfs"]),
    source=st.one_of(st.just(b""), NAMES),
    options=st.lists(NAMES).map(lambda names: b",".join(option(b"key", one) for one in names)),
)


class TestLine:
    @given(
        MOUNTS, st.lists(st.sampled_from([b"shared:1", b"master:22", b"unbindable"]), max_size=3)
    )
    def test_any_mount(self, mount: Mount, optional: list[bytes]) -> None:
        assert parse_line(line(mount, tuple(optional))) == mount

    def test_one_of_the_manual(self) -> None:
        text = (
            rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
        )
        assert parse_line(text) == Mount(
            number=36,
            device="98:0",
            root=b"/mnt1",
            mount_point=b"/mnt 2",
            kind=b"ext3",
            source=b"/dev/root",
            options=b"rw,errors=continue",
        )

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1",
            b"36 35 98:0 - ext3 /dev/root rw",
            b"36 35 98:0 /mnt1 /mnt2 rw - ext3",
            b"one 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"-1 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"1_0 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"99999999999999999999 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"36 35 98 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"36 35 \xff:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
            b"36 35 98:99999999999 /mnt1 /mnt2 rw - ext3 /dev/root rw",
        ],
    )
    def test_what_is_none(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"not a line of a table of mounts"):
            parse_line(text)

    def test_what_is_said_of_an_enormous_line(self) -> None:
        with pytest.raises(ValueError, match="not a line") as caught:
            parse_line(b"x" * 10_000_000)
        assert len(str(caught.value)) < 300

    def test_options_with_blanks(self) -> None:
        """Some file systems do not escape them."""
        mount = parse_line(b"36 35 98:0 / /mnt rw - odd /dev/root rw,name=a b - c")
        assert mount.options == b"rw,name=a b - c"


class TestTable:
    @given(st.lists(MOUNTS, max_size=5))
    def test_any_mounts(self, mounts: list[Mount]) -> None:
        text = b"".join(line(mount) + b"\n" for mount in mounts)
        assert parse_table(text) == MountLines(tuple(mounts))

    @pytest.mark.parametrize("odd", [b"\r", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e", b"\x85"])
    def test_the_kernel_does_not_escape(self, odd: bytes) -> None:
        name = b"/a" + odd + b"/b"
        mount = Mount(36, "98:0", name, name, b"overlay", name, b"rw,key=" + name)
        assert parse_table(line(mount) + b"\n") == MountLines((mount,))

    @given(st.binary(max_size=300), MOUNTS, st.binary(max_size=300))
    def test_whatever_is_around_it_a_mount_is_found(
        self, before: bytes, mount: Mount, after: bytes
    ) -> None:
        lines = parse_table(b"\n".join((before, line(mount), after)))
        assert mount in lines.mounts
        around = len([one for one in (*before.split(b"\n"), *after.split(b"\n")) if one])
        assert len(lines.mounts) + len(lines.unreadable) == around + 1

    @given(MOUNTS, st.integers(0, 400), st.binary(min_size=1, max_size=4))
    def test_a_damaged_line_has_no_effect_on_others(
        self, mount: Mount, at: int, damage: bytes
    ) -> None:
        text = line(mount)
        damaged = (text[:at] + damage + text[at + len(damage) :]).replace(b"\n", b" ")
        assert mount in parse_table(damaged + b"\n" + text).mounts

    def test_all_mounts_of_this_process(self) -> None:
        lines = parse_table(Path("/proc/self/mountinfo").read_bytes())
        assert lines.unreadable == ()
        device = Path("/proc").stat().st_dev
        assert any(
            mount.mount_point == b"/proc"
            and mount.kind == b"proc"
            and mount.device == f"{os.major(device)}:{os.minor(device)}"
            for mount in lines.mounts
        )


class TestExcerpt:
    @given(st.lists(MOUNTS, max_size=5), st.integers(1, 60))
    def test_in_pieces_of_any_size(self, mounts: list[Mount], size: int) -> None:
        text = b"".join(line(mount) + b"\n" for mount in mounts)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        all_of_it = excerpt(pieces, lambda _: True)
        assert parse_table(all_of_it.text) == MountLines(tuple(mounts))
        assert all_of_it.others == frozenset()

    @pytest.mark.parametrize("count", [10, 40])
    def test_of_others_only_the_number_is_kept(self, count: int) -> None:
        other = b"%d 35 98:0 /x /mnt rw - ext4 x rw\n"
        needed = b"7 35 0:9 / /mnt rw - overlay x rw"
        pieces = [needed + b"\n", *(other % number for number in range(100, 100 + count))]
        found = excerpt(pieces, lambda mount: mount.kind == b"overlay")
        assert found == TableExcerpt(needed, frozenset(range(100, 100 + count)))

    def test_a_line_that_cannot_be_read_is_kept(self) -> None:
        assert excerpt([b"? - overlay x\n"], lambda _: False).text == b"? - overlay x"

    @pytest.mark.parametrize("at", [0, 65_400, 1_048_500, 1_048_570, 2_500_000])
    @pytest.mark.parametrize("digits", [64, 128])
    def test_of_a_line_that_is_too_long_the_layers_are_kept(self, at: int, digits: int) -> None:
        """It could be an overlay, with directories that are cut off."""
        name = "0a" * (digits // 2)
        text = b"7 35 0:9 / /mnt rw - overlay x rw,lowerdir=" + b"x" * at
        text += b"/" + name.encode() + b":" + b"x" * 3_000_000 + b"\n"
        pieces = [text[at : at + 65_536] for at in range(0, len(text), 65_536)]
        after = b"8 35 0:9 / /mnt rw - overlay x rw"
        found = excerpt([*pieces, after], lambda _: True)
        lines = parse_table(found.text)
        assert [mount.number for mount in lines.mounts] == [8]
        assert name in {found for one in lines.unreadable for found in layers_named(one)}
        assert len(found.text) < 2000


class TestLowerDirectories:
    @given(st.lists(NAMES, min_size=1, max_size=6))
    def test_one_option_with_colons(self, names: list[bytes]) -> None:
        value = b":".join(escaped(name) for name in names)
        options = b",".join((b"rw", option(b"lowerdir", value), option(b"upperdir", b"/a:b")))
        assert lower_directories(options) == tuple(names)

    @given(st.lists(NAMES, min_size=1, max_size=6), NAMES)
    def test_an_option_for_each(self, names: list[bytes], data: bytes) -> None:
        options = [option(b"lowerdir+", name) for name in names]
        options += [option(b"datadir+", data), option(b"workdir", b"/w")]
        assert lower_directories(b",".join(options)) == (*names, data)

    def test_data_only_directories(self) -> None:
        assert lower_directories(b"ro,lowerdir=/a:/b::/data") == (b"/a", b"/b", b"/data")

    def test_of_no_overlay(self) -> None:
        assert lower_directories(b"rw,errors=continue") == ()

    @given(st.binary(max_size=500))
    def test_of_any_options(self, options: bytes) -> None:
        assert sum(map(len, lower_directories(options))) <= len(options)


class TestCost:
    """It grows at most linearly with what other users can make long."""

    def test_lines(self) -> None:
        one = b"36 35 98:0 / /mnt rw - overlay x rw\n"
        assert_linear(lambda size: partial(parse_table, one * size), 200)

    def test_lines_that_are_not_needed(self) -> None:
        one = b"36 35 98:0 / /mnt rw - ext4 x rw\n"
        assert_linear(lambda size: partial(excerpt, [one] * size, lambda _: False), 200)

    def test_lines_that_cannot_be_read(self) -> None:
        assert_linear(lambda size: partial(parse_table, b"36 35 - -\n" * size), 200)

    @pytest.mark.parametrize("option", [b"rw", b"lowerdir+=/a", b"lowerdir=/a"])
    def test_options(self, option: bytes) -> None:
        assert_linear(lambda size: partial(lower_directories, b",".join([option] * size)), 200)

    @pytest.mark.parametrize("name", [b"/a", b"\\134", b"\\134:", b"\\040"])
    def test_lower_directories(self, name: bytes) -> None:
        def prepare(size: int) -> Callable[[], object]:
            return partial(lower_directories, b"lowerdir=" + b":".join([name] * size))

        assert_linear(prepare, 200)
