"""Reading the table of mounts, as the kernel writes it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.use.mountinfo import Mount, escaped, lower_directories, parse_line

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
        ],
    )
    def test_what_is_none(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"not a line|invalid literal"):
            parse_line(text)

    def test_all_mounts_of_this_process(self) -> None:
        mounts = [parse_line(one) for one in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        device = Path("/proc").stat().st_dev
        assert any(
            mount.mount_point == b"/proc"
            and mount.kind == b"proc"
            and mount.device == f"{os.major(device)}:{os.minor(device)}"
            for mount in mounts
        )


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
