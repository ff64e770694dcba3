"""Layers are found to be in use, by whatever names they were mounted."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import assert_linear
from foreign_mounts import (
    IN_A_MOUNT_NAMESPACE,
    IN_A_USER_NAMESPACE,
    mount_command,
    shell,
    silent_file_system,
    waiting,
)
from layermanager.errors import StoreError
from layermanager.testing.layers import digest_of
from layermanager.use.in_use import LayerPlaces, Look, look, look_at
from layermanager.use.inspector import Inspector
from layermanager.use.layer_places import layers_in
from layermanager.use.mountinfo import Mount
from layermanager.use.namespaces import MountTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    def look(self) -> Look:
        """Look, and wait as long as a machine takes that has much else to do."""
        return look(self.directory, Inspector(self.directory, patience=60, foreign_seconds=600))

    def in_use(self) -> set[Path]:
        """Those that are found to be in use."""
        found = self.look()
        return {path for path in (self.used, self.other, self.unused) if found.holders(path.name)}

    def wait_until_unused(self) -> None:
        """Return when no copy is left of a mount that was made in our own namespace.

        A process that gets a mount namespace of its own, such as an unpacker of another test, has
        copies of all mounts for a moment.
        """
        while self.in_use():
            threading.Event().wait(0.01)

    def holder(self) -> Holder:
        """The only one that uses the first layer."""
        (holder,) = self.look().holders(self.used.name)
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
        """It has the name of the layer, but another place, also where nothing of it is seen."""
        elsewhere = tmp_path / "elsewhere" / layers.used.name
        elsewhere.mkdir(parents=True)
        bind = f"mount --bind {elsewhere} {place}"
        cover = f"mount -t tmpfs none {place}"
        for script in (bind, f"{bind}; {cover}"):
            with mounted(script):
                assert layers.in_use() == set()
        with mounted(f"mount --bind {layers.used} {place}; {cover}"):
            assert layers.in_use() == {layers.used}

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


@pytest.mark.usefixtures("needs_overlay")
class TestStacks:
    """An overlay on top of another one, which is mounted nowhere any more."""

    @pytest.fixture
    def base(self, layers: Layers, tmp_path: Path) -> Path:
        (layers.other / "usr/shown").touch()
        path = tmp_path / "base"
        path.mkdir()
        return path

    @pytest.mark.parametrize("options", ["ro", "ro,xino=on", "ro,userxattr"])
    @pytest.mark.parametrize(
        "prefix",
        [(), IN_A_MOUNT_NAMESPACE, IN_A_USER_NAMESPACE],
        ids=["here", "a mount namespace", "a user namespace"],
    )
    def test_the_lower_one_keeps_its_layers(
        self,
        layers: Layers,
        base: Path,
        place: Path,
        empty: Path,
        prefix: tuple[str, ...],
        options: str,
    ) -> None:
        if prefix == IN_A_USER_NAMESPACE:
            options = "ro,userxattr"
        script = f"""
            {mount_command([layers.used, layers.other], base, options)}
            {mount_command([base, empty], place, options)}
            umount {base}
            trap 'umount {place}' EXIT
        """
        with shell(script, prefix=prefix):
            assert layers.in_use() == {layers.used, layers.other}
            assert layers.look().has_stacked([layers.used.name])
        layers.wait_until_unused()

    def test_a_mount_point_that_is_not_empty(
        self, layers: Layers, base: Path, place: Path, tmp_path: Path
    ) -> None:
        """Its mount point is not even empty."""
        (base / "file").touch()
        (tmp_path / "more").mkdir()
        (tmp_path / "more/more").touch()
        script = f"""
            {mount_command([layers.used, layers.other], base)}
            {mount_command([base, tmp_path / "more"], place)}
            umount {base}
        """
        with mounted(script):
            assert layers.in_use() == {layers.used, layers.other}

    def test_another_overlay_on_the_same_mount_point(
        self, layers: Layers, base: Path, place: Path, empty: Path
    ) -> None:
        """Whichever is there now, the one that was there then is used."""
        script = f"""
            {mount_command([layers.used, empty], base)}
            {mount_command([base, empty], place)}
            umount {base}
            {mount_command([layers.other, empty], base)}
        """
        with mounted(script):
            assert layers.in_use() == {layers.used, layers.other}

    def test_a_single_overlay_is_no_stack(self, layers: Layers, place: Path) -> None:
        with mounted(mount_command([layers.used, layers.other], place)):
            found = layers.look()
            assert found.holders(layers.used.name)
            assert not found.has_stacked([layers.used.name])

    def test_an_empty_mount_point_of_a_bind_mount(
        self, layers: Layers, base: Path, place: Path, empty: Path
    ) -> None:
        script = f"""
            mount --bind {layers.used} {base}
            {mount_command([base, empty], place)}
            umount {base}
        """
        with mounted(script):
            assert layers.in_use() == {layers.used}
        assert layers.in_use() == set()


CLONE = """
import ctypes, os, sys
from ctypes import c_long
libc = ctypes.CDLL(None, use_errno=True)
clone = libc.syscall(c_long(428), c_long(-100), os.fsencode(sys.argv[1]), c_long(1))
assert clone >= 0, os.strerror(ctypes.get_errno())
below = os.open(sys.argv[2], os.O_RDONLY, dir_fd=clone)
os.close(clone)
print("ready", flush=True)
sys.stdin.read()
"""
"""Hold a directory or file open on a mount that open_tree(2) made and that has no place."""


@pytest.mark.usefixtures("needs_root")
class TestDetachedBindMounts:
    @pytest.mark.parametrize(
        ("mounted", "opened"), [("", "."), ("", "usr"), ("usr", "."), ("../", "{name}/usr")]
    )
    def test_a_directory_keeps_the_layer(self, layers: Layers, mounted: str, opened: str) -> None:
        path = opened.format(name=layers.used.name)
        with waiting([sys.executable, "-c", CLONE, str(layers.used / mounted), path]) as process:
            holder = layers.holder()
            assert holder.process == process.pid
            assert "bind mount" in str(holder)
            assert layers.in_use() == {layers.used}
            trashed = layers.used.rename(layers.directory / ".trash" / f"{layers.used.name}.0a")
            assert layers.in_use() == {layers.used}
            trashed.rename(layers.used)
        assert layers.in_use() == set()

    def test_a_file_loses_nothing(self, layers: Layers) -> None:
        with waiting([sys.executable, "-c", CLONE, str(layers.used), "file"]):
            assert layers.in_use() == set()

    def test_one_of_another_directory(self, layers: Layers, place: Path) -> None:
        (place / layers.used.name).mkdir()
        with waiting([sys.executable, "-c", CLONE, str(place), layers.used.name]):
            assert layers.in_use() == set()

    def test_a_bind_mount_that_was_unmounted_lazily(self, layers: Layers, place: Path) -> None:
        script = f"mount --bind {layers.used} {place}; cd {place}/usr; umount --lazy {place}"
        with mounted(script):
            assert layers.in_use() == {layers.used}
        assert layers.in_use() == set()


@pytest.mark.usefixtures("needs_overlay")
class TestStrangePaths:
    def test_a_path_of_1900_components(self, layers: Layers, place: Path, empty: Path) -> None:
        dots = "/." * 1900
        with mounted(mount_command([f"{dots}{layers.used}", empty], place)):
            assert layers.in_use() == {layers.used}

    def test_many_directories_up_and_down(self, layers: Layers, place: Path, empty: Path) -> None:
        up_and_down = f"/{layers.used.name}/.." * 40
        path = f"{layers.used.parent}{up_and_down}/{layers.used.name}"
        with mounted(mount_command([path, empty], place)):
            assert layers.in_use() == {layers.used}

    def test_forty_links(self, layers: Layers, place: Path, empty: Path) -> None:
        links = place.parent / "links"
        links.mkdir()
        (links / "0").symlink_to(layers.used)
        for number in range(1, 40):
            (links / f"{number}").symlink_to(f"{number - 1}")
        with mounted(mount_command([links / "39", empty], place)):
            assert layers.in_use() == {layers.used}


class TestTables:
    """What tables say, and do not."""

    @pytest.fixture
    def inspector(self, layers: Layers) -> Inspector:
        return Inspector(layers.directory)

    def users(self, layers: Layers, table: MountTable) -> dict[Path, list[str]]:
        found = look_at([table], [], layers.directory, Inspector(layers.directory))
        return {
            path: [str(holder) for holder in found.holders(path.name)]
            for path in (layers.used, layers.other)
        }

    def test_a_line_that_cannot_be_read_keeps_what_it_names(self, layers: Layers) -> None:
        line = b"?? - overlay x lowerdir=/a:/b/%b:/c" % layers.used.name.encode()
        found = self.users(layers, MountTable(1, Path("/"), unreadable=(line, b"- overlay x")))
        assert found[layers.other] == []
        (holder,) = found[layers.used]
        assert holder == "a mount that process 1 sees, in a line that cannot be read"

    def test_a_table_that_cannot_be_read_keeps_all(self, layers: Layers) -> None:
        """No user without rights can bring that about."""
        found = self.users(layers, MountTable(7, None, failure="Permission denied"))
        expected = ["process 7, whose mounts cannot be read (Permission denied)"]
        assert found == {layers.used: expected, layers.other: expected}

    @pytest.mark.parametrize("kind", [b"tmpfs", b"overlay"])
    def test_the_cost_of_many_mounts(self, layers: Layers, kind: bytes) -> None:
        inspector = Inspector(layers.directory)

        def prepare(size: int) -> Callable[[], object]:
            name = layers.used.name.encode()
            options = b"ro,lowerdir=/a/%b:/b" % name
            mounts = [
                Mount(number, f"0:{number}", b"/", b"/m", kind, b"x", options)
                for number in range(size)
            ]
            lines = tuple(
                b"%d - %b" % (number, layers.used.name.encode()) for number in range(size)
            )
            # Two, as the mounts are looked at before and after the processes.
            tables = [MountTable(7, None, tuple(mounts), lines)] * 2
            return lambda: look_at(tables, [], layers.directory, inspector)

        assert_linear(prepare, 100)

    def test_paths_of_a_process_that_cannot_be_entered(self, layers: Layers) -> None:
        options = b"ro,lowerdir=/a/%b:/b" % layers.used.name.encode()
        mount = Mount(1, "0:99", b"/", b"/m", b"overlay", b"x", options)
        found = self.users(layers, MountTable(7, None, (mount,)))
        assert found[layers.other] == []
        assert len(found[layers.used]) == 1


@pytest.mark.alone
@pytest.mark.usefixtures("needs_overlay", "needs_fuse")
class TestSilence:
    """File systems that never answer hold up no look, and cannot keep all layers."""

    @pytest.fixture
    def fuse(self, tmp_path: Path) -> Path:
        path = tmp_path / "fuse"
        path.mkdir()
        return path

    def impatient(
        self, layers: Layers, *, patience: float = 10, foreign_seconds: float = 30
    ) -> Look:
        inspector = Inspector(layers.directory, patience=patience, foreign_seconds=foreign_seconds)
        return look(layers.directory, inspector)

    def test_an_overlay_of_another_user_keeps_the_layers_that_it_names(
        self, layers: Layers, place: Path, fuse: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = mount_command([fuse, layers.used], place, "ro,userxattr")
        with silent_file_system(fuse, script, prefix=IN_A_USER_NAMESPACE):
            found = self.impatient(layers)
            assert found.holders(layers.used.name)
            assert found.holders(layers.other.name) == ()
            assert found.holders(layers.used.name), "it still is kept, and nothing is asked again"
            assert caplog.messages == [f"file systems of {str(place)!r} do not answer"]
        assert layers.in_use() == set()

    def test_an_overlay_of_root_keeps_all(self, layers: Layers, place: Path, fuse: Path) -> None:
        script = mount_command([fuse, layers.used], place)
        with silent_file_system(fuse, script, prefix=IN_A_MOUNT_NAMESPACE):
            found = self.impatient(layers)
            for layer in (layers.used, layers.other):
                holders = found.holders(layer.name)
                assert place in {Path(holder.mount_point or "") for holder in holders}
        assert layers.in_use() == set()

    def test_others_are_seen_all_the_same(
        self, layers: Layers, place: Path, fuse: Path, empty: Path, tmp_path: Path
    ) -> None:
        """Those of other users come last, so that their silence costs the rest nothing."""
        merged = tmp_path / "merged"
        merged.mkdir()
        silent = mount_command([fuse, empty], place, "ro,userxattr")
        with (
            silent_file_system(fuse, silent, prefix=IN_A_USER_NAMESPACE),
            mounted(
                f"cd {layers.other.parent}; {mount_command([layers.other.name, empty], merged)}"
            ),
        ):
            found = self.impatient(layers, foreign_seconds=0)
            assert found.holders(layers.used.name) == ()
            (holder,) = found.holders(layers.other.name)
            assert holder.mount_point == str(merged)

    def test_a_process_whose_root_directory_is_silent(self, layers: Layers, fuse: Path) -> None:
        program = f"import os; os.chroot({str(fuse)!r}); os.chdir('/'); os.read(4, 1)"
        script = f"{sys.executable} -c {shlex.quote(program)} &"
        with silent_file_system(fuse, script, prefix=IN_A_MOUNT_NAMESPACE):
            assert self.impatient(layers).holders(layers.used.name) == ()

    def test_what_is_open_on_a_silent_mount_without_a_place(
        self, layers: Layers, fuse: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = "import os; os.read(4, 1)"
        script = f"""
            {sys.executable} -c {shlex.quote(program)} 3< {fuse} &
            umount --lazy {fuse}
        """
        with silent_file_system(fuse, script, prefix=IN_A_MOUNT_NAMESPACE):
            assert self.impatient(layers).holders(layers.used.name) == ()
            assert len(caplog.messages) == 1

    def test_the_file_of_a_namespace_on_a_silent_mount(self, layers: Layers, fuse: Path) -> None:
        with silent_file_system(fuse, "", prefix=IN_A_MOUNT_NAMESPACE) as process:
            inspector = Inspector(layers.directory, patience=1)
            with pytest.raises(TimeoutError, match="does not answer"):
                inspector.table_inside(f"/proc/{process.pid}/root{fuse}/file")


def test_a_store_that_cannot_be_read(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failing disk says is no proof that nothing is in use."""

    def fail(path: Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreError, match=rf"in use: .*Input/output error: '{layers.directory}'"):
        LayerPlaces(layers.directory).of(layers.used.name)


def test_in_a_user_namespace(needs_user_namespace: list[str], layers: Layers, place: Path) -> None:
    command = mount_command([layers.used, layers.other], place, "userxattr")
    with shell(command, prefix=needs_user_namespace):
        assert layers.in_use() == {layers.used, layers.other}
