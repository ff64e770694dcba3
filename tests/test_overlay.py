"""Overlays are mounted and unmounted, by both ways that the kernel has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import MountBusyError, MountError
from layermanager.use.mountinfo import Mount, lower_directories, parse_line
from layermanager.use.overlay import (
    MAX_LOWER_DIRECTORIES,
    Overlay,
    _options,
    _plain_options,
    device_text,
    mount,
    mount_by_descriptors,
    mount_by_options,
    takes_descriptors,
    unmount,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.use.overlay import Mounter

AWKWARD = "a:b,c\\d e=f"
IN_USER_NAMESPACE = """
import os, sys
from pathlib import Path
from layermanager.use.overlay import Overlay, mount_by_descriptors, mount_by_options
base, way = Path(sys.argv[1]), globals()[sys.argv[2]]
os.setxattr(base / "top/dir", "user.overlay.opaque", b"y")
lower = [base / "top", base / "bottom"]
way(Overlay(lower, has_user_attributes=True), base / "merged", lambda _: None)
print(sorted(os.listdir(base / "merged/dir")))
"""


@pytest.fixture(params=["descriptors", "options"])
def way(request: pytest.FixtureRequest, needs_overlay: None) -> Mounter:  # noqa: ARG001 - asked for
    if request.param == "options":
        return mount_by_options
    if not takes_descriptors():
        pytest.skip("this kernel does not take directories as descriptors")
    return mount_by_descriptors


@pytest.fixture
def merged(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "merged"
    path.mkdir()
    yield path
    while path.is_mount():
        unmount(path, lazy=True)


def layer(base: Path, name: str) -> Path:
    """A directory with a file of that name, and one of the same name in each."""
    path = base / name
    path.mkdir()
    (path / f"file of {name}").write_text(name)
    (path / "common").write_text(name)
    return path


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mounted_on(target: Path) -> Mount:
    mounts = [parse_line(one) for one in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    return next(one for one in reversed(mounts) if one.mount_point == os.fsencode(target))


def test_the_uppermost_comes_first(way: Mounter, tmp_path: Path, merged: Path) -> None:
    way(Overlay([layer(tmp_path, "top"), layer(tmp_path, "low")]), merged, lambda _: None)
    assert names_in(merged) == ["common", "file of low", "file of top"]
    assert (merged / "common").read_text() == "top"
    with pytest.raises(OSError, match="Read-only file system"):
        (merged / "new").touch()


def test_what_is_written_goes_to_the_upper_directory(
    way: Mounter, tmp_path: Path, merged: Path
) -> None:
    upper, work = tmp_path / f"upper {AWKWARD}", tmp_path / f"work {AWKWARD}"
    upper.mkdir()
    work.mkdir()
    way(Overlay([layer(tmp_path, "only")], upper, work), merged, lambda _: None)
    (merged / "new").write_text("written")
    assert (upper / "new").read_text() == "written"
    assert not (tmp_path / "only/new").exists()


def test_names_of_all_kinds(way: Mounter, tmp_path: Path, merged: Path) -> None:
    lower = [layer(tmp_path, AWKWARD), layer(tmp_path, "\\"), layer(tmp_path, ":")]
    way(Overlay(lower), merged, lambda _: None)
    assert (merged / "common").read_text() == AWKWARD
    assert len(names_in(merged)) == 4
    names = lower_directories(mounted_on(merged).options)
    assert names == tuple(os.fsencode(path) for path in lower)


@pytest.mark.parametrize("count", [101, MAX_LOWER_DIRECTORIES])
def test_many_layers_with_long_names(
    way: Mounter, tmp_path: Path, merged: Path, count: int
) -> None:
    base = tmp_path / ("long" * 50)
    base.mkdir()
    lower = [layer(base, f"{number:064}") for number in range(count)]
    here = Path.cwd()
    way(Overlay(lower), merged, lambda _: None)
    assert Path.cwd() == here
    assert len(names_in(merged)) == count + 1
    assert (merged / "common").read_text() == lower[0].name


def test_too_many_layers(way: Mounter, tmp_path: Path, merged: Path) -> None:
    lower = [layer(tmp_path, str(number)) for number in range(MAX_LOWER_DIRECTORIES + 1)]
    with pytest.raises(MountError, match=str(merged)):
        way(Overlay(lower), merged, lambda _: None)
    assert not merged.is_mount()


def test_the_table_of_mounts_names_it(way: Mounter, tmp_path: Path, merged: Path) -> None:
    devices: list[str] = []
    lower = [layer(tmp_path, "top"), layer(tmp_path, "low")]
    way(Overlay(lower, source="a name"), merged, devices.append)
    found = mounted_on(merged)
    assert found.source == b"a name"
    assert [found.device] == devices == [device_text(merged.stat().st_dev)]
    assert lower_directories(found.options) == tuple(os.fsencode(path) for path in lower)


def test_the_device_is_told_before_anybody_can_reach_it(tmp_path: Path, merged: Path) -> None:
    if not takes_descriptors():
        pytest.skip("this kernel does not take directories as descriptors")
    seen: list[bool] = []
    lower = [layer(tmp_path, "top"), layer(tmp_path, "low")]
    mount_by_descriptors(Overlay(lower), merged, lambda _: seen.append(merged.is_mount()))
    assert seen == [False]


def test_nothing_is_left_open(way: Mounter, tmp_path: Path, merged: Path) -> None:
    before = names_in(Path("/proc/self/fd"))
    way(Overlay([layer(tmp_path, "top"), layer(tmp_path, "low")]), merged, lambda _: None)
    assert names_in(Path("/proc/self/fd")) == before


def test_what_the_kernel_has_to_say_about_it(tmp_path: Path, merged: Path) -> None:
    if not takes_descriptors():
        pytest.skip("this kernel does not take directories as descriptors")
    lower = [tmp_path] * (MAX_LOWER_DIRECTORIES + 1)
    with pytest.raises(MountError, match="too many lower directories"):
        mount_by_descriptors(Overlay(lower), merged, lambda _: None)


@pytest.mark.parametrize("label", ["u:r:t", "system_u:object_r:container_file_t:s0:c1,c2"])
def test_a_label_is_for_all_files(label: str) -> None:
    """No machine of these tests has SELinux, so what is passed to the kernel is compared."""
    overlay = Overlay([Path("/top"), Path("/low")], context=label)
    assert (b"context", label.encode()) in list(_plain_options(overlay))
    expected = f'context="{label}"' if "," in label else f"context={label}"
    assert expected.encode() + b",lowerdir=/top:/low" in _options(overlay, [b"/top", b"/low"])


def test_no_label_is_no_option() -> None:
    overlay = Overlay([Path("/top"), Path("/low")])
    assert b"context" not in _options(overlay, [b"/top", b"/low"])


def test_a_label_without_selinux(tmp_path: Path, merged: Path) -> None:
    if "selinuxfs" in Path("/proc/filesystems").read_text():
        pytest.skip("this machine has SELinux")
    lower = [layer(tmp_path, "top"), layer(tmp_path, "low")]
    with pytest.raises(MountError, match=r"with context=u:r:t: SELinux is not in force"):
        mount(Overlay(lower, context="u:r:t"), merged, lambda _: None)


def test_a_directory_that_is_not_there(way: Mounter, tmp_path: Path, merged: Path) -> None:
    lower = [layer(tmp_path, "top"), tmp_path / "missing"]
    with pytest.raises(MountError, match="No such file"):
        way(Overlay(lower), merged, lambda _: None)
    with pytest.raises(MountError, match="No such file"):
        way(Overlay(lower[:1] * 2), tmp_path / "missing", lambda _: None)


def test_an_upper_directory_that_could_not_be_packed_does_not_come_about(
    way: Mounter, tmp_path: Path, merged: Path
) -> None:
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    (layer(tmp_path, "only") / "directory").mkdir()
    way(Overlay([tmp_path / "only"], upper, work), merged, lambda _: None)
    with pytest.raises(OSError, match="cross-device"):
        (merged / "directory").rename(merged / "other")
    (merged / "common").chmod(0o600)
    assert (upper / "common").read_text() == "only"


class TestUnmounting:
    def mounted(self, tmp_path: Path, merged: Path) -> None:
        lower = [layer(tmp_path, "top"), layer(tmp_path, "low")]
        mount(Overlay(lower), merged, lambda _: None)

    def test_what_nobody_uses(self, needs_overlay: None, tmp_path: Path, merged: Path) -> None:  # noqa: ARG002
        self.mounted(tmp_path, merged)
        unmount(merged)
        assert names_in(merged) == []

    def test_what_is_in_use(self, needs_overlay: None, tmp_path: Path, merged: Path) -> None:  # noqa: ARG002
        self.mounted(tmp_path, merged)
        with (merged / "common").open() as file:
            pauses: list[float] = []
            with pytest.raises(MountBusyError, match=str(merged)):
                unmount(merged, pause=pauses.append)
            assert 0 < sum(pauses) <= 1
            unmount(merged, lazy=True)
            assert names_in(merged) == []
            assert file.read() == "top"

    def test_what_is_in_use_for_a_moment(
        self,
        needs_overlay: None,  # noqa: ARG002
        tmp_path: Path,
        merged: Path,
    ) -> None:
        """As by a layer manager that looks at all mounts."""
        self.mounted(tmp_path, merged)
        with (merged / "common").open() as file:
            unmount(merged, pause=lambda _: file.close())
        assert names_in(merged) == []

    def test_what_is_not_mounted(self, needs_overlay: None, merged: Path) -> None:  # noqa: ARG002
        with pytest.raises(MountError, match="Invalid argument"):
            unmount(merged)

    def test_through_no_symlink(self, needs_overlay: None, tmp_path: Path, merged: Path) -> None:  # noqa: ARG002
        self.mounted(tmp_path, merged)
        (tmp_path / "link").symlink_to(merged)
        with pytest.raises(MountError, match="Invalid argument"):
            unmount(tmp_path / "link")
        assert merged.is_mount()


@pytest.mark.parametrize("way", ["mount_by_descriptors", "mount_by_options"])
def test_in_a_user_namespace(needs_user_namespace: list[str], tmp_path: Path, way: str) -> None:
    if way == "mount_by_descriptors" and not takes_descriptors():
        pytest.skip("this kernel does not take directories as descriptors")
    for name in ("top", "bottom"):
        (tmp_path / name / "dir").mkdir(parents=True)
        (tmp_path / name / "dir" / name).touch()
    (tmp_path / "merged").mkdir()
    command = [sys.executable, "-c", IN_USER_NAMESPACE, str(tmp_path), way]
    done = subprocess.run(
        [*needs_user_namespace, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "['top']\n"
