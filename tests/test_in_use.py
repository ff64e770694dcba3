"""Layers are found to be in use, by whatever names they were mounted."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.errors import StoreError
from layermanager.testing.layers import digest_of
from layermanager.use import in_use
from layermanager.use.in_use import layers_in, look
from layermanager.use.namespaces import mount_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.leases import Holder

NAME = digest_of(b"used").encoded


class Layers:
    """Three layers of a store of its own, with names that no other test has.

    Attributes:
        directory: the layers' directory.
    """

    def __init__(self, base: Path) -> None:
        self.directory = base / "layers"
        (self.directory / ".trash").mkdir(parents=True)
        self.used, self.other, self.unused = (
            self._layer(f"{name} of {base}") for name in ("used", "other", "unused")
        )

    def _layer(self, content: str) -> Path:
        path = self.directory / "sha256" / digest_of(content.encode()).encoded
        (path / "usr").mkdir(parents=True)
        (path / "file").write_text(content)
        return path

    def in_use(self) -> set[Path]:
        """Those that are found to be in use."""
        found = look(self.directory)
        return {path for path in (self.used, self.other, self.unused) if found.holders(path.name)}

    def holder(self) -> Holder:
        """The only one that uses the first layer."""
        (holder,) = look(self.directory).holders(self.used.name)
        return holder


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """What an overlay of one layer has below it."""
    path = tmp_path / "nothing"
    path.mkdir()
    return path


@contextmanager
def mounted(script: str) -> Iterator[None]:
    """Mount in a namespace of its own, which takes all its mounts along when it ends."""
    with shell(script, prefix=IN_A_MOUNT_NAMESPACE):
        yield


class TestNames:
    @given(st.binary(max_size=8), st.binary(max_size=8), st.sampled_from([64, 96, 128]))
    def test_anywhere_on_the_way(self, before: bytes, after: bytes, length: int) -> None:
        name = "0a" * (length // 2)
        around = [part.replace(b"/", b"_") for part in (before, after)]
        assert list(layers_in(b"/".join((around[0], name.encode(), around[1])))) == [name]

    @pytest.mark.parametrize("suffix", ["", ".0123abcd", "//deleted"])
    def test_in_staging_and_trash_and_gone(self, suffix: str) -> None:
        assert list(layers_in(f"/layers/.trash/{NAME}{suffix}".encode())) == [NAME]

    @pytest.mark.parametrize(
        "path", [b"", b"/", NAME.encode()[:-1], NAME.encode() + b"0", NAME.upper().encode()]
    )
    def test_what_is_none(self, path: bytes) -> None:
        assert list(layers_in(path)) == []


@pytest.mark.usefixtures("needs_overlay")
class TestMounts:
    def test_none(self, layers: Layers) -> None:
        assert layers.in_use() == set()

    def test_an_overlay(self, layers: Layers, place: Path) -> None:
        other = layers.other
        with mounted(mount_command([layers.used, other], place)):
            assert layers.in_use() == {layers.used, layers.other}
            holder = layers.holder()
            assert holder.mount_point == str(place)
            assert str(holder) == f"the overlay on {place}, which process {holder.process} sees"
        assert layers.in_use() == set()

    def test_one_with_an_upper_directory(self, layers: Layers, place: Path) -> None:
        for name in ("upper", "work"):
            (place.parent / name).mkdir()
        options = f"upperdir={place.parent}/upper,workdir={place.parent}/work"
        with mounted(mount_command([layers.used], place, options)):
            assert layers.in_use() == {layers.used}

    def test_a_bind_mount(self, layers: Layers, place: Path) -> None:
        with mounted(f"mount --bind {layers.used} {place}"):
            assert layers.in_use() == {layers.used}
            holder = layers.holder()
            assert str(holder).startswith(f"the bind mount on {place}")

    def test_a_bind_mount_of_a_part(self, layers: Layers, place: Path) -> None:
        with mounted(f"mount --bind {layers.used}/usr {place}"):
            assert layers.in_use() == {layers.used}

    def test_a_bind_mount_of_another_store(
        self, layers: Layers, place: Path, tmp_path: Path
    ) -> None:
        """Once something else is mounted over it, who knows."""
        elsewhere = tmp_path / "elsewhere" / layers.used.name
        elsewhere.mkdir(parents=True)
        bind = f"mount --bind {elsewhere} {place}"
        with mounted(bind):
            assert layers.in_use() == set()
        with mounted(f"{bind}; mount -t tmpfs none {place}"):
            assert layers.in_use() == {layers.used}

    def test_a_bind_mount_of_another_store_that_is_just_moved(
        self, layers: Layers, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As an unpacker's is, that enters its jail while tables are read."""
        elsewhere, target = tmp_path / "elsewhere" / layers.used.name, tmp_path / "target"
        elsewhere.mkdir(parents=True)
        target.mkdir()
        bind = f"mount --bind {elsewhere} {place}"
        with shell(bind, prefix=IN_A_MOUNT_NAMESPACE) as process:
            before = mount_tables()
            enter = ["nsenter", "--mount", "--target", str(process.pid)]
            subprocess.run([*enter, "mount", "--move", place, target], check=True)
            place.rmdir()
            tables = chain([before, before], iter(mount_tables, None))
            monkeypatch.setattr(in_use, "mount_tables", lambda: next(tables))
            assert look(layers.directory).holders(layers.used.name) == ()

    def test_a_bind_mount_of_all_is_no_use_of_one(self, layers: Layers, place: Path) -> None:
        with mounted(f"mount --bind {layers.directory} {place}"):
            assert layers.in_use() == set()

    @pytest.mark.parametrize(
        ("prepare", "lower"),
        [
            ("cd {parent}", "{name}"),
            ("cd {base}/layers", "./sha256/{name}/usr"),
            ("ln -s {used} {base}/link", "{base}/link"),
            ("ln -s {used} {base}/link", "{base}/link/usr"),
            ("ln -s {used}/usr {base}/link", "{base}/link/../"),
            ("ln -s sha256 {parent}/../a; ln -s a {parent}/../b", "{parent}/../b/../b/{name}"),
            ("mount --bind {base}/layers {base}/bound", "{base}/bound/sha256/{name}"),
            ("mount --bind {used} {base}/bound", "{base}/bound"),
            ("mount --bind {parent} {base}/bound; ln -s bound/{name} {base}/link", "{base}/link"),
        ],
        ids=[
            *("relative", "a part", "a link", "below a link", "back from a link", "links"),
            *("a bound store", "a bound layer", "a link to a bound store"),
        ],
    )
    def test_by_another_name(self, layers: Layers, place: Path, prepare: str, lower: str) -> None:
        base = layers.directory.parent
        for name in ("bound", "empty"):
            (base / name).mkdir()
        used = layers.used
        names = {"base": base, "parent": used.parent, "used": used, "name": used.name}
        command = mount_command([lower.format(**names), base / "empty"], place)
        with mounted(f"{prepare.format(**names)}\n{command}"):
            assert layers.in_use() == {layers.used}

    def test_after_it_was_moved_to_the_trash(
        self, layers: Layers, place: Path, empty: Path
    ) -> None:
        (place.parent / "link").symlink_to(layers.used)
        commands = {
            "by its path": mount_command([layers.used, empty], place),
            "by a link": mount_command([place.parent / "link", empty], place),
            "bound": f"mount --bind {layers.used}/usr {place}",
        }
        for name, command in commands.items():
            with mounted(command):
                trashed = layers.used.rename(
                    layers.directory / ".trash" / f"{layers.used.name}.0123abcd"
                )
                assert layers.in_use() == {layers.used}, name
                trashed.rename(layers.used)

    def test_by_a_link_that_is_only_there(self, layers: Layers, empty: Path) -> None:
        """It is followed as in that namespace, where other things are mounted."""
        script = f"""
            mount -t tmpfs none /mnt
            mkdir /mnt/bound /mnt/merged
            mount --bind {layers.directory} /mnt/bound
            ln -s /mnt/bound/sha256/{layers.used.name} /mnt/link
            {mount_command(["/mnt/link", empty], Path("/mnt/merged"))}
        """
        with mounted(script):
            assert layers.in_use() == {layers.used}

    def test_of_another_store_with_the_same_layers(
        self, layers: Layers, place: Path, empty: Path, tmp_path: Path
    ) -> None:
        """Once its directory is gone, who knows which one it was."""
        elsewhere = tmp_path / "elsewhere" / layers.used.name
        (elsewhere / "usr").mkdir(parents=True)
        for lower in (elsewhere, elsewhere / "usr"):
            (lower / "file").touch()
            with mounted(mount_command([lower, empty], place)):
                assert layers.in_use() == set()
                moved = elsewhere.rename(tmp_path / "moved")
                assert layers.in_use() == {layers.used}
                moved.rename(elsewhere)

    def test_by_a_link_that_leads_elsewhere_by_now(
        self, layers: Layers, place: Path, empty: Path, tmp_path: Path
    ) -> None:
        link = tmp_path / "current"
        link.symlink_to(layers.used)
        with mounted(mount_command([link, empty], place)):
            link.unlink()
            link.symlink_to(layers.other)
            assert layers.in_use() == {layers.used, layers.other}

    @pytest.mark.parametrize("upper", [True, False])
    def test_an_overlay_that_is_in_no_table_is_compared(
        self, layers: Layers, place: Path, empty: Path, *, upper: bool
    ) -> None:
        options = "ro"
        if upper:
            for name in ("upper", "work"):
                (place.parent / name).mkdir()
            options = f"upperdir={place.parent}/upper,workdir={place.parent}/work"
        subprocess.run(
            ["sh", "-c", mount_command([layers.used, empty], place, options)], check=True
        )
        with shell(f"cd {place}/usr") as process:
            subprocess.run(["umount", "--lazy", place], check=True)
            assert layers.in_use() == {layers.used}
            # Who looks at all mounts, as another test may, has a directory open for a moment, too.
            while (holder := layers.holder()).process != process.pid:
                assert "directory open" in str(holder)
            assert "directory open" in str(holder)
            layers.used.rename(layers.directory / ".trash" / f"{layers.used.name}.0a")
            assert layers.in_use() == {layers.used}
        while layers.in_use():
            assert layers.in_use() <= {layers.used}

    def test_one_of_which_only_a_file_is_open_loses_nothing(
        self, layers: Layers, place: Path, empty: Path
    ) -> None:
        subprocess.run(["sh", "-c", mount_command([layers.used, empty], place)], check=True)
        with shell(f"exec 3< {place}/file; {{ read x && echo read; }} <&3 || true"):
            subprocess.run(["umount", "--lazy", place], check=True)
            assert layers.in_use() == set()

    @pytest.mark.parametrize(
        ("prepare", "lower"),
        [
            ("mount --bind {used} {bound}", "{bound}"),
            ("exec 5< {used}", "/proc/self/fd/5"),
            ("ln -s {used} {base}/link; cd {base}", "link"),
        ],
        ids=["a bind mount that is gone", "a descriptor", "a relative link"],
    )
    def test_an_overlay_whose_paths_lead_nowhere_is_compared(
        self, layers: Layers, place: Path, empty: Path, prepare: str, lower: str
    ) -> None:
        bound = layers.directory.parent / "bound"
        bound.mkdir()
        paths = {"used": layers.used, "bound": bound, "base": layers.directory.parent}
        script = f"""
            {prepare.format(**paths)}
            {mount_command([lower.format(**paths), empty], place)}
            umount -q {bound} || true
            rmdir {bound}
        """
        with mounted(script):
            assert layers.in_use() == {layers.used}

    def test_over_a_layer_of_which_nothing_is_shown(
        self, layers: Layers, place: Path, tmp_path: Path
    ) -> None:
        """Another one with other files at the same places is another one."""
        other = tmp_path / "other"
        other.mkdir()
        (other / "file").write_text("another one")
        script = f"exec 5< {other}; exec 6< {layers.used}"
        with mounted(f"{script}; {mount_command(['/proc/self/fd/5', '/proc/self/fd/6'], place)}"):
            assert layers.in_use() == set()


def test_a_store_that_cannot_be_read(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failing disk says is no proof that nothing is in use."""

    def fail(path: Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreError, match=rf"in use: .*Input/output error: '{layers.directory}'"):
        look(layers.directory)


def test_in_a_user_namespace(needs_user_namespace: list[str], layers: Layers, place: Path) -> None:
    command = mount_command([layers.used, layers.other], place, "userxattr")
    with shell(command, prefix=needs_user_namespace):
        assert layers.in_use() == {layers.used, layers.other}
