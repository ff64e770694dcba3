"""``mount``, ``umount``, ``lease`` and ``ls --mounts``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, busy, write_desired

from layermanager import Config, LayerManager
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, compress
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from layermanager import DesiredLayer


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(node.config.working_dir, capsys)


@pytest.fixture
def layers(node: Node, run: CommandLine, tmp_path: Path) -> list[DesiredLayer]:
    """Two layers that are cached."""
    layers = [node.publish("top"), node.publish("low")]
    for wanted in (layers, []):
        assert run("apply", write_desired(tmp_path / "desired.json", wanted)).status == 0
    return layers


class TestMounting:
    def test_by_name_and_by_digest(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path
    ) -> None:
        digest = layers[1].digest.encoded[:12]
        mounted = run("mount", "app", target, "top", digest)
        assert (mounted.status, mounted.out) == (0, f"mounted app on {target}: 2 layers\n")
        assert (target / "etc/name").read_text() == "top"
        listed = run("ls", "--mounts")
        assert listed.lines[0].split() == ["NAME", "STATE", "LAYERS", "WRITES", "TO", "TARGET"]
        assert listed.lines[1].split()[:3] == ["app", "mounted", "2"]
        assert run("gc", "--ttl-days", "0").lines[-1] == "0 layers removed, 0 B freed"
        done = run("umount", "app")
        assert (done.status, done.out) == (0, "unmounted app\n")
        assert not target.is_mount()
        assert run("ls", "--mounts").out == "nothing is mounted\n"
        assert run("gc", "--ttl-days", "0").lines[-1].startswith("2 layers removed")

    def test_as_json(self, run: CommandLine, layers: list[DesiredLayer], target: Path) -> None:
        mounted = run("mount", "app", target, "top", "--read-only", "--json")
        document = mounted.document
        assert document == {
            "name": "app",
            "leaseId": document["leaseId"],
            "target": str(target),
            "layers": [layers[0].digest],
            "upper": None,
            "mounted": True,
        }
        assert run("ls", "--mounts", "--json").document == [document]
        (lease,) = run("lease", "ls", "--json").document
        assert lease["leaseId"] == document["leaseId"]
        assert lease["owner"] == "mount app"
        assert lease["overlay"].startswith("0:")
        assert run("umount", "app", "--json").document == {"unmounted": "app"}
        assert run("ls", "--mounts", "--json").document == []

    def test_an_upper_directory(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path, tmp_path: Path
    ) -> None:
        upper = tmp_path / "upper"
        upper.mkdir()
        assert run("mount", "app", target, layers[0].digest, "--upper", upper).status == 0
        (target / "new").write_text("written")
        assert run("umount", "app").status == 0
        assert (upper / "new").read_text() == "written"

    @pytest.mark.parametrize(
        "label", ["u:r", "u:r:t,upperdir=/etc", 'u:r:t"', "u:r:t s0", "::", f"u:r:{'t' * 260}"]
    )
    def test_a_label_that_is_none(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path, label: str
    ) -> None:
        refused = run("mount", "app", target, layers[0].layer_id, "--context", label)
        assert refused.status == 1
        assert "not an SELinux label" in refused.err
        assert not target.is_mount()

    def test_a_label_where_there_is_no_selinux(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path
    ) -> None:
        if "selinuxfs" in Path("/proc/filesystems").read_text():
            pytest.skip("this machine has SELinux")
        label = "system_u:object_r:container_file_t:s0:c1,c2"
        refused = run("mount", "app", target, layers[0].layer_id, "--context", label)
        assert refused.status == 1
        assert f"with context={label}: SELinux is not in force here" in refused.err
        assert run("ls", "--mounts").out == "nothing is mounted\n"

    def test_what_is_in_use(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path
    ) -> None:
        run("mount", "app", target, layers[0].layer_id)
        with (target / "etc/name").open():
            refused = run("umount", "app")
            assert refused.status == 1
            assert f"cannot unmount {target}" in refused.err
            assert "--lazy" in refused.err
            assert run("umount", "--lazy", "app").status == 0
        assert not target.is_mount()

    def test_while_another_process_installs(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path, node: Node
    ) -> None:
        with busy(node.config.working_dir):
            assert run("mount", "app", target, layers[0].layer_id).status == 0
            assert run("umount", "app").status == 0

    def test_what_is_not_there(
        self, run: CommandLine, layers: list[DesiredLayer], target: Path
    ) -> None:
        for name in ("other", layers[0].digest[:-12] + "0" * 12, "registry:5000/app:1"):
            refused = run("mount", "app", target, name, "--json")
            assert refused.status == 1
            assert refused.document["error"]["type"] == "LayerNotExistError"
        assert run("umount", "app").status == 1
        assert run("ls", "--mounts").out == "nothing is mounted\n"

    def test_an_image(
        self, run: CommandLine, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blobs = [compress(layer_tar(name), "gzip") for name in ("low", "middle", "low", "top")]
        image = build_image(blobs, config={"os": None})
        write_files(tmp_path / "image", layout_files({"": image}))
        assert run("apply", f"oci:{tmp_path}/image").status == 0
        monkeypatch.chdir(tmp_path)
        mounted = run("mount", "app", target, "oci:image", "--json")
        assert len(mounted.document["layers"]) == 3
        assert (target / "etc/name").read_text() == "top"
        assert run("umount", "app").status == 0


class TestLeases:
    def test_the_directories_to_mount(self, run: CommandLine, node: Node) -> None:
        tars = {name: LayerBuilder().file(name) for name in ("top", "middle", "low")}
        tars["middle"].opaque(".")
        desired = [
            node.publish_bytes(name, compress(tar.tar(), "gzip")) for name, tar in tars.items()
        ]
        assert run("apply", write_desired(node.published / "desired.json", desired)).status == 0
        paths = {row.layer_id: str(row.path) for row in node.rows()}
        expected = [paths["top"], paths["middle"]]
        taken = run("lease", "add", "--owner", "me", "--paths", *tars)
        assert taken.lines[1:] == expected
        taken = run("lease", "add", "--owner", "me", "--paths", "--json", *tars)
        assert taken.document["lowerDirs"] == expected

    def test_one_that_is_released(self, run: CommandLine, layers: list[DesiredLayer]) -> None:
        taken = run("lease", "add", "--owner", "me", layers[0].layer_id)
        assert taken.status == 0
        lease = taken.out.strip()
        listed = run("lease", "ls").lines
        assert listed[1].split()[:3] == [lease, "me", "1"]
        assert listed[1].endswith("when released")
        collected = run("gc", "--ttl-days", "0").lines
        assert any(line.endswith(f"by lease {lease} of me") for line in collected)
        assert collected[-1].startswith("1 layer removed")
        assert run("lease", "release", lease).out == f"released {lease}\n"
        assert run("lease", "ls").out == "there are no leases\n"
        assert run("gc", "--ttl-days", "0").lines[-1].startswith("1 layer removed")
        assert run("lease", "release", lease).status == 1

    def test_as_json(self, run: CommandLine, layers: list[DesiredLayer]) -> None:
        arguments = ("--owner", "me", "--ttl", "12h", "--process", str(os.getpid()))
        document = run("lease", "add", "top", *arguments, "--json").document
        assert document["layers"] == [layers[0].digest]
        assert document["process"] == os.getpid()
        assert document["expires"] > document["created"]
        assert run("lease", "ls", "--json").document == [document]
        (held,) = run("gc", "--ttl-days", "0", "--json").document["held"]
        assert held["digest"] == layers[0].digest
        assert [holder["leaseId"] for holder in held["holders"]] == [document["leaseId"]]
        released = run("lease", "release", document["leaseId"], "--json").document
        assert released == {"released": document["leaseId"]}

    def test_when_it_ends(self, run: CommandLine, layers: list[DesiredLayer]) -> None:
        run(
            "lease",
            "add",
            layers[0].layer_id,
            "--owner",
            "me",
            "--ttl",
            "90",
            "--process",
            str(os.getpid()),
        )
        ends = run("lease", "ls").lines[1]
        assert ends.endswith(f" or process {os.getpid()}")

    @pytest.mark.parametrize("ttl", ["", "a day", "-1", "1w"])
    def test_what_is_no_duration(
        self, run: CommandLine, layers: list[DesiredLayer], ttl: str
    ) -> None:
        refused = run("lease", "add", layers[0].layer_id, "--owner", "me", "--ttl", ttl)
        assert refused.status == 2
        assert "--ttl" in refused.err

    def test_what_it_takes_counts_as_not_reclaimable(
        self, run: CommandLine, layers: list[DesiredLayer], node: Node
    ) -> None:
        before = run("df", "--json").document
        with LayerManager(Config(node.config.working_dir)) as manager:
            manager.lease(layers[0].layer_id, owner="me")
            (size,) = {
                row.size for row in manager.get_layers_info() if row.layer_id == layers[0].layer_id
            }
        after = run("df", "--json").document
        assert (before["held"], after["held"]) == (0, size)
        assert after["reclaimable"] == before["reclaimable"] - size
        assert any(line.startswith("in use") for line in run("df").lines)


def test_without_a_store(run: CommandLine) -> None:
    assert run("lease", "ls").out == "there are no leases\n"
    assert run("ls", "--mounts").out == "nothing is mounted\n"
    assert run("umount", "app").status == 1
