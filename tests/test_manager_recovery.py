"""What a crash, or somebody's hand, left in the store is put in order, and said once."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

import reaping
from durability.power import shut_down
from layermanager.clock import SystemClock
from layermanager.desired import desired_to_json
from layermanager.errors import LayerManagerError, LayerNotExistError, StorageError
from layermanager.storage import SqliteLayerStorage
from layermanager.testing.layers import digest_of
from manager_fixtures import MIB, Node, name_on_disk, names_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from layermanager.model import DesiredLayer, LayerProgress

STRANGER = digest_of(b"stranger")

INSTALLER = """
    import os, signal, sys
    from pathlib import Path
    from layermanager import Config, DesiredLayer, LayerManager, LayerProgress, read_desired
    working_dir, desired, phase, bytes_unpacked = sys.argv[1:]
    def on_progress(progress: LayerProgress) -> None:
        if progress.phase == phase and progress.transferred >= int(bytes_unpacked):
            os.kill(os.getpid(), signal.SIGKILL)
    with LayerManager(Config(working_dir), on_progress=on_progress) as manager:
        manager.process_desired_layers(read_desired(Path(desired).read_bytes(), desired))
"""

STORAGE_USER = """
    import json, os, signal, sys
    from datetime import timedelta
    from pathlib import Path
    from layermanager import Config, LayerManager, SqliteLayerStorage, read_desired
    from layermanager.clock import SystemClock
    working_dir, desired, method, when = sys.argv[1:]
    class Fatal(SqliteLayerStorage):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name != method:
                return found
            def fatal(*arguments):
                if when == "after":
                    found(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return fatal
    config = Config(working_dir)
    config.working_dir.mkdir(exist_ok=True)
    with Fatal(config.database, SystemClock()) as storage:
        with LayerManager(config, storage) as manager:
            manager.process_desired_layers(read_desired(Path(desired).read_bytes(), desired))
            manager.remove_expired_layers(timedelta(0))
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "layermanager.manager")
    return caplog


def make_stale(node: Node) -> None:
    """Leave what interrupted operations leave: on the way in or out, and unrecorded."""
    layers_dir, unrecorded = node.config.layers_dir, f"sha256/{'0' * 64}"
    for place in (".staging/one.1", ".trash/three.3", f"{unrecorded}.0123abcd", unrecorded):
        (layers_dir / place / "deep/er").mkdir(parents=True)
        (layers_dir / place / "deep/file").write_text("left over")
        (layers_dir / place / "deep").chmod(0o500)


class TestAtStart:
    def test_leftovers_are_removed_and_logged_once(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
        make_stale(node)
        with node.manager():
            node.assert_has([one])
        assert (
            sorted(log.messages)
            == [
                f"removed the directory of layer sha256:{'0' * 64}: it is not recorded",
                "removed 3 unfinished layers: an operation was interrupted",
            ][::-1]
        )
        log.clear()
        with node.manager():
            pass
        assert log.messages == []

    def test_a_row_without_its_directory_is_forgotten(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        one, two, three = (node.publish(name) for name in ("one", "two", "three"))
        with node.manager() as manager:
            manager.process_desired_layers([one, two, three])
            manager.process_desired_layers([two, three])
        for layer in (one, two):
            shutil.rmtree(node.config.layers_dir / "sha256" / layer.digest.encoded)
        with node.manager() as manager:
            with pytest.raises(LayerNotExistError):
                manager.get_layer_info_by_digest(one.digest)
            node.assert_has([three])
            assert sorted(log.messages) == sorted(
                f"forgot layer {layer.digest}: its directory is gone" for layer in (one, two)
            )
            result = manager.process_desired_layers([one, two, three])
            assert names_in(result.installed) == ["one", "two"]
            assert names_in(result.kept) == ["three"]
        node.assert_has([one, two, three])

    def test_a_file_where_a_layer_should_be_is_no_layer(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
        place = node.config.layers_dir / "sha256" / one.digest.encoded
        shutil.rmtree(place)
        place.write_text("a file")
        with node.manager() as manager:
            assert manager.get_layers_info() == ()
            assert len(log.messages) == 1
            manager.process_desired_layers([one])
        node.assert_has([one])

    def test_what_is_no_layer_is_left_alone(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        layers_dir = node.config.layers_dir
        strays = ["README", "sha256/README", "sha256/short/file", "other/stranger/file"]
        for stray in strays:
            (layers_dir / stray).parent.mkdir(parents=True, exist_ok=True)
            (layers_dir / stray).write_text("mine")
        (layers_dir / "sha512").symlink_to(layers_dir / "sha256")
        (layers_dir / "sha256" / ("1" * 64)).symlink_to(layers_dir / "other")
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            manager.remove_cached_layers(1)
        assert [(layers_dir / stray).read_text() for stray in strays] == ["mine"] * 4
        assert (layers_dir / "sha256" / ("1" * 64)).is_symlink()
        assert log.messages == []

    def test_what_a_symlink_in_the_trash_points_to_is_left_alone(
        self, node: Node, tmp_path: Path
    ) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "file").write_text("mine")
        for place in (".trash", ".staging"):
            (node.config.layers_dir / place).mkdir(parents=True)
            (node.config.layers_dir / place / "link").symlink_to(mine)
        with node.manager():
            pass
        assert (mine / "file").read_text() == "mine"
        assert node.leftovers() == []

    def test_a_database_from_elsewhere_without_its_layers(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
        shutil.rmtree(node.config.layers_dir)
        with node.manager() as manager:
            assert manager.get_layers_info() == ()
        assert len(log.messages) == 1


class TestBeforeEveryOperation:
    def test_leftovers_of_others_are_removed(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager() as manager:
            manager.process_desired_layers([one])
            make_stale(node)
            manager.process_desired_layers([one])
            assert len(log.messages) == 2
            node.assert_has([one])
            with SqliteLayerStorage(node.config.database, SystemClock()) as storage:
                storage.delete_layer_by_digest(one.digest)
            # It is installed again, not believed because its directory is there.
            assert names_in(manager.process_desired_layers([one, two]).installed) == ["one", "two"]
        node.assert_has([one, two])


def kill_in_the_middle(
    node: Node, layers: Sequence[DesiredLayer], phase: str, transferred: int = 0
) -> None:
    """Have another process install *layers* and be killed by SIGKILL when it is so far."""
    _run_until_killed(node, INSTALLER, layers, phase, str(transferred))


def kill_at_the_storage(node: Node, layers: Sequence[DesiredLayer], method: str, when: str) -> None:
    """Have another process apply *layers*, remove what is cached, and be killed on the way.

    Args:
        node: whose store.
        layers: what is desired.
        method: the method of the storage in which it happens.
        when: ``before`` that has done its work, or ``after`` it.
    """
    _run_until_killed(node, STORAGE_USER, layers, method, when)


def _run_until_killed(
    node: Node, script: str, layers: Sequence[DesiredLayer], *arguments: str
) -> None:
    desired = node.published / "desired.json"
    desired.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    killed = subprocess.run(
        [
            *(sys.executable, reaping.__file__, sys.executable, "-c", textwrap.dedent(script)),
            *(str(node.config.working_dir), str(desired), *arguments),
        ],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr


class TestAfterSigkill:
    @pytest.mark.parametrize(
        ("phase", "transferred"),
        [("pending", 0), ("installing", 0), ("installing", MIB), ("committing", 0)],
    )
    def test_nothing_half_done_counts(
        self, node: Node, log: pytest.LogCaptureFixture, phase: str, transferred: int
    ) -> None:
        earlier = node.publish("earlier")
        layers = [node.publish(f"layer-{number}", 2 * MIB) for number in range(3)]
        with node.manager() as manager:
            manager.process_desired_layers([earlier])
            before = node.files()
            kill_in_the_middle(node, [earlier, *layers], phase, transferred)
            assert [row.digest for row in node.rows()] == [earlier.digest]
            result = manager.process_desired_layers([earlier, *layers])
            assert names_in(result.kept) == ["earlier"]
            assert len(result.installed) == 3
            for layer in result.installed:
                assert name_on_disk(layer) == layer.layer_id
            assert node.files()[earlier.digest] == before[earlier.digest]
        assert len(log.messages) <= 1
        node.assert_has([earlier, *layers])

    def test_what_was_installed_stays(self, node: Node, log: pytest.LogCaptureFixture) -> None:
        layers = [node.publish(f"layer-{number}") for number in range(3)]
        kill_in_the_middle(node, layers, "installed")
        rows = {row.digest for row in node.rows()}
        assert rows
        with node.manager() as manager:
            assert {row.digest for row in manager.get_layers_info()} == rows
            result = manager.process_desired_layers(layers)
            assert {row.digest for row in result.kept} == rows
        node.assert_has(layers)
        assert len(log.messages) <= 1

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_between_directory_and_row(
        self, node: Node, log: pytest.LogCaptureFixture, when: str
    ) -> None:
        layers = [node.publish(f"layer-{number}") for number in range(3)]
        kill_at_the_storage(node, layers, "add_layer", when)
        assert node.files() != {}
        assert node.rows() == ()  # rows of a group come together
        with node.manager() as manager:
            assert manager.get_layers_info() == ()
            assert node.files() == {}
            assert any("it is not recorded" in message for message in log.messages)
            manager.process_desired_layers(layers)
        node.assert_has(layers)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_in_the_middle_of_a_removal(
        self, node: Node, log: pytest.LogCaptureFixture, when: str
    ) -> None:
        kept, cached = node.publish("kept"), node.publish("cached", MIB)
        with node.manager() as manager:
            manager.process_desired_layers([kept, cached])
        kill_at_the_storage(node, [kept], "delete_layer_by_digest", when)
        assert len(node.rows()) == 2  # the row goes with the transaction
        with node.manager() as manager:
            result = manager.process_desired_layers([kept, cached])
            assert names_in(result.kept) == ["kept"]
            assert [name_on_disk(layer) for layer in result.restored] == ["cached"]
            assert (result.restored[0].path / "data").stat().st_size == MIB
        node.assert_has([kept, cached])
        assert log.messages == []

    def test_in_the_middle_of_removing_files(
        self, node: Node, log: pytest.LogCaptureFixture
    ) -> None:
        """Half of the files are gone when the removal is interrupted: it is taken up again."""
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([one])
            row = manager.get_layer_info_by_digest(one.digest)
        trash = node.config.layers_dir / ".trash"
        trash.mkdir(exist_ok=True)
        with SqliteLayerStorage(node.config.database, SystemClock()) as storage:
            storage.delete_layer_by_digest(one.digest)
        row.path.rename(trash / "one.1")
        (trash / "one.1/etc/name").unlink()
        with node.manager() as manager:
            manager.process_desired_layers([one])
        assert log.messages == ["removed 1 unfinished layers: an operation was interrupted"]
        node.assert_has([one])


class TestAfterPowerCut:
    """The file system ends at once, and what it had in memory only is lost."""

    def test_what_is_installed_is_on_the_disk(
        self, tmp_path: Path, small_file_system: Path, log: pytest.LogCaptureFixture
    ) -> None:
        node = Node(tmp_path, working_dir=small_file_system / "work")
        layers = [node.publish(f"layer-{number}", MIB // 2) for number in range(3)]
        with node.manager() as manager:
            manager.process_desired_layers([layers[0]])
            manager.process_desired_layers(layers)
            before = node.files()
            shut_down(small_file_system)
        restore_power(tmp_path / "small.img", small_file_system)
        node.assert_has(layers)
        assert node.files() == before
        with node.manager() as manager:
            assert len(manager.process_desired_layers(layers).kept) == 3
        assert log.messages == []

    @pytest.mark.parametrize("phase", ["pending", "installing", "committing"])
    def test_what_was_not_installed_yet_is_not_there(
        self, tmp_path: Path, small_file_system: Path, phase: str
    ) -> None:
        def on_progress(progress: LayerProgress) -> None:
            if progress.phase == phase and progress.desired != earlier:
                shut_down(small_file_system)

        node = Node(tmp_path, working_dir=small_file_system / "work")
        earlier = node.publish("earlier", MIB // 2)
        layers = [earlier, *(node.publish(f"layer-{number}", MIB // 2) for number in range(3))]
        with node.manager() as manager:
            manager.process_desired_layers([earlier])
        before = node.files()
        manager = node.manager(on_progress=on_progress)
        with pytest.raises(LayerManagerError):
            manager.process_desired_layers(layers)
        with contextlib.suppress(StorageError):
            manager.close()
        restore_power(tmp_path / "small.img", small_file_system)
        with node.manager() as manager:
            node.assert_has([earlier])
            assert node.files() == before
            assert len(manager.process_desired_layers(layers).installed) == 3
        node.assert_has(layers)


def restore_power(image: Path, mount_point: Path) -> None:
    """Mount what is on the disk.

    A copy: a process with mounts of its own, such as the jail of another test, may keep the file
    system that was shut down alive for a moment, and Linux would mount that one again.
    """
    subprocess.run(["umount", mount_point], check=True)
    copy = image.with_suffix(".copy")
    shutil.copyfile(image, copy)
    subprocess.run(["mount", "-o", "loop", copy, mount_point], check=True)
