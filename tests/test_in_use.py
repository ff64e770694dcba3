"""Layers are found to be in use, by whatever names they were mounted."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.in_use import layers_in, look
from layermanager.testing.layers import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

USED, OTHER, UNUSED = (digest_of(name).encoded for name in (b"used", b"other", b"unused"))


@pytest.fixture
def layers_dir(tmp_path: Path) -> Path:
    path = tmp_path / "layers"
    for name in (USED, OTHER, UNUSED):
        (path / "sha256" / name / "usr").mkdir(parents=True)
        (path / "sha256" / name / "file").touch()
    (path / ".trash").mkdir()
    return path


@pytest.fixture
def used(layers_dir: Path) -> Path:
    return layers_dir / "sha256" / USED


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


def names_in_use(layers_dir: Path) -> set[str]:
    found = look(layers_dir)
    return {name for name in (USED, OTHER, UNUSED) if found.holders(name)}


class TestNames:
    @given(st.binary(max_size=8), st.binary(max_size=8), st.sampled_from([64, 96, 128]))
    def test_anywhere_on_the_way(self, before: bytes, after: bytes, length: int) -> None:
        name = "0a" * (length // 2)
        around = [part.replace(b"/", b"_") for part in (before, after)]
        assert list(layers_in(b"/".join((around[0], name.encode(), around[1])))) == [name]

    @pytest.mark.parametrize("suffix", ["", ".0123abcd", "//deleted"])
    def test_in_staging_and_trash_and_gone(self, suffix: str) -> None:
        assert list(layers_in(f"/layers/.trash/{USED}{suffix}".encode())) == [USED]

    @pytest.mark.parametrize(
        "path", [b"", b"/", USED.encode()[:-1], USED.encode() + b"0", USED.upper().encode()]
    )
    def test_what_is_none(self, path: bytes) -> None:
        assert list(layers_in(path)) == []


@pytest.mark.usefixtures("needs_overlay")
class TestMounts:
    def test_none(self, layers_dir: Path) -> None:
        assert names_in_use(layers_dir) == set()

    def test_an_overlay(self, layers_dir: Path, used: Path, place: Path) -> None:
        other = layers_dir / "sha256" / OTHER
        with mounted(mount_command([used, other], place)):
            assert names_in_use(layers_dir) == {USED, OTHER}
            (holder,) = look(layers_dir).holders(USED)
            assert holder.mount_point == str(place)
            assert str(holder) == f"the overlay on {place}, which process {holder.process} sees"
        assert names_in_use(layers_dir) == set()

    def test_one_with_an_upper_directory(self, layers_dir: Path, used: Path, place: Path) -> None:
        for name in ("upper", "work"):
            (place.parent / name).mkdir()
        options = f"upperdir={place.parent}/upper,workdir={place.parent}/work"
        with mounted(mount_command([used], place, options)):
            assert names_in_use(layers_dir) == {USED}

    def test_a_bind_mount(self, layers_dir: Path, used: Path, place: Path) -> None:
        with mounted(f"mount --bind {used} {place}"):
            assert names_in_use(layers_dir) == {USED}
            (holder,) = look(layers_dir).holders(USED)
            assert str(holder).startswith(f"the bind mount on {place}")

    def test_a_bind_mount_of_a_part(self, layers_dir: Path, used: Path, place: Path) -> None:
        with mounted(f"mount --bind {used}/usr {place}"):
            assert names_in_use(layers_dir) == {USED}

    def test_a_bind_mount_of_all_is_no_use_of_one(self, layers_dir: Path, place: Path) -> None:
        with mounted(f"mount --bind {layers_dir} {place}"):
            assert names_in_use(layers_dir) == set()

    @pytest.mark.parametrize(
        ("prepare", "lower"),
        [
            ("cd {parent}", USED),
            ("cd {base}/layers", f"./sha256/{USED}/usr"),
            ("ln -s {used} {base}/link", "{base}/link"),
            ("ln -s {used} {base}/link", "{base}/link/usr"),
            ("ln -s {used}/usr {base}/link", "{base}/link/../"),
            ("ln -s sha256 {parent}/../a; ln -s a {parent}/../b", "{parent}/../b/../b/" + USED),
            ("mount --bind {base}/layers {base}/bound", "{base}/bound/sha256/" + USED),
            ("mount --bind {used} {base}/bound", "{base}/bound"),
            ("mount --bind {parent} {base}/bound; ln -s bound/{name} {base}/link", "{base}/link"),
        ],
        ids=[
            *("relative", "a part", "a link", "below a link", "back from a link", "links"),
            *("a bound store", "a bound layer", "a link to a bound store"),
        ],
    )
    def test_by_another_name(
        self, layers_dir: Path, used: Path, place: Path, prepare: str, lower: str
    ) -> None:
        base = layers_dir.parent
        for name in ("bound", "empty"):
            (base / name).mkdir()
        names = {"base": base, "parent": used.parent, "used": used, "name": USED}
        command = mount_command([lower.format(**names), base / "empty"], place)
        with mounted(f"{prepare.format(**names)}\n{command}"):
            assert names_in_use(layers_dir) == {USED}

    def test_after_it_was_moved_to_the_trash(
        self, layers_dir: Path, used: Path, place: Path, empty: Path
    ) -> None:
        (place.parent / "link").symlink_to(used)
        commands = {
            "by its path": mount_command([used, empty], place),
            "by a link": mount_command([place.parent / "link", empty], place),
            "bound": f"mount --bind {used}/usr {place}",
        }
        for name, command in commands.items():
            with mounted(command):
                trashed = used.rename(layers_dir / ".trash" / f"{USED}.0123abcd")
                assert names_in_use(layers_dir) == {USED}, name
                trashed.rename(used)

    def test_by_a_link_that_is_only_there(self, layers_dir: Path, empty: Path) -> None:
        """It is followed as in that namespace, where other things are mounted."""
        script = f"""
            mount -t tmpfs none /mnt
            mkdir /mnt/bound /mnt/merged
            mount --bind {layers_dir} /mnt/bound
            ln -s /mnt/bound/sha256/{USED} /mnt/link
            {mount_command(["/mnt/link", empty], Path("/mnt/merged"))}
        """
        with mounted(script):
            assert names_in_use(layers_dir) == {USED}

    def test_of_another_store_with_the_same_layers(
        self, layers_dir: Path, place: Path, empty: Path, tmp_path: Path
    ) -> None:
        """It counts, too: a name says the same whatever it was mounted by."""
        elsewhere = tmp_path / "elsewhere" / USED
        elsewhere.mkdir(parents=True)
        with mounted(mount_command([elsewhere, empty], place)):
            assert names_in_use(layers_dir) == {USED}

    @pytest.mark.parametrize("upper", [True, False])
    def test_an_overlay_that_is_in_no_table_is_compared(
        self, layers_dir: Path, used: Path, place: Path, empty: Path, *, upper: bool
    ) -> None:
        options = "ro"
        if upper:
            for name in ("upper", "work"):
                (place.parent / name).mkdir()
            options = f"upperdir={place.parent}/upper,workdir={place.parent}/work"
        subprocess.run(["sh", "-c", mount_command([used, empty], place, options)], check=True)
        with shell(f"cd {place}/usr") as process:
            subprocess.run(["umount", "--lazy", place], check=True)
            assert names_in_use(layers_dir) == {USED}
            (holder,) = look(layers_dir).holders(USED)
            assert holder.process == process.pid
            assert "directory open" in str(holder)
            used.rename(layers_dir / ".trash" / f"{USED}.0a")
            assert names_in_use(layers_dir) == {USED}
        assert names_in_use(layers_dir) == set()

    def test_one_of_which_only_a_file_is_open_loses_nothing(
        self, layers_dir: Path, used: Path, place: Path, empty: Path
    ) -> None:
        subprocess.run(["sh", "-c", mount_command([used, empty], place)], check=True)
        with shell(f"exec 3< {place}/file; {{ read x && echo read; }} <&3 || true"):
            subprocess.run(["umount", "--lazy", place], check=True)
            assert names_in_use(layers_dir) == set()

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
        self, layers_dir: Path, used: Path, place: Path, empty: Path, prepare: str, lower: str
    ) -> None:
        bound = layers_dir.parent / "bound"
        bound.mkdir()
        paths = {"used": used, "bound": bound, "base": layers_dir.parent}
        script = f"""
            {prepare.format(**paths)}
            {mount_command([lower.format(**paths), empty], place)}
            umount -q {bound} || true
        """
        with mounted(script):
            assert names_in_use(layers_dir) == {USED}

    def test_over_a_layer_of_which_nothing_is_shown(
        self, layers_dir: Path, used: Path, place: Path, tmp_path: Path
    ) -> None:
        """Another one with other files at the same places is another one."""
        other = tmp_path / "other"
        other.mkdir()
        (other / "file").write_text("another one")
        script = f"exec 5< {other}; exec 6< {used}"
        with mounted(f"{script}; {mount_command(['/proc/self/fd/5', '/proc/self/fd/6'], place)}"):
            assert names_in_use(layers_dir) == set()


def test_in_a_user_namespace(
    needs_user_namespace: list[str], layers_dir: Path, used: Path, place: Path
) -> None:
    command = mount_command([used, layers_dir / "sha256" / OTHER], place, "userxattr")
    with shell(command, prefix=needs_user_namespace):
        assert names_in_use(layers_dir) == {USED, OTHER}
