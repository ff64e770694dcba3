"""Images on the command line: applied by reference or document, listed, shown."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine

from layermanager.cli.arguments import names_image
from layermanager.desired import desired_to_json
from layermanager.store import index_path
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import LayerBuilder, compress, digest_of
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.testing.images import BuiltImage

BASE = compress(layer_tar("base"), "gzip")
RUN = {"Entrypoint": ["/bin/app"], "Cmd": ["--serve"]}


def image(name: str) -> BuiltImage:
    layers = [BASE, compress(layer_tar(name), "gzip")]
    return build_image(layers, config={"os": None, "config": RUN})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    images = {"1": image("one"), "2": image("two")}
    write_files(tmp_path / "images", layout_files(images))
    return node


@pytest.fixture
def layermanager(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "300")  # temporary directories have long names
    return CommandLine(node.config.working_dir, capsys)


@pytest.fixture
def layout(tmp_path: Path, node: Node) -> str:  # noqa: ARG001 - it makes the layout
    return f"oci:{tmp_path / 'images'}"


def digest_text(name: str) -> str:
    return f"sha256:{image(name).digest.encoded[:12]}"


def test_a_layer_of_an_image_gets_the_name_of_the_list(
    node: Node, layermanager: CommandLine, layout: str
) -> None:
    base = node.publish("base")
    layermanager("apply", f"{layout}:1")
    document = {"layers": [desired_to_json(base)], "images": [{"ref": f"{layout}:1"}]}
    path = node.published / "desired.json"
    path.write_text(json.dumps(document))
    assert layermanager("show", "base").status != 0

    planned = layermanager("apply", path, "--dry-run")
    planned_json = layermanager("apply", path, "--dry-run", "--json").document
    layermanager("apply", path)

    assert f"rename {base.digest} to base {base.version}" in planned.lines
    assert planned_json["rename"] == [
        {"digest": base.digest, "layerId": "base", "version": base.version}
    ]
    assert layermanager("show", "base", "--json").document["digest"] == base.digest
    assert not any("rename" in line for line in layermanager("apply", path, "--dry-run").lines)


def test_an_image_is_applied_by_its_reference(
    node: Node, layermanager: CommandLine, layout: str
) -> None:
    finished = layermanager("apply", f"{layout}:1")
    assert finished.status == 0
    assert [line.split()[0] for line in finished.lines] == [
        *("ACTION", "installed", "installed"),
        *("ACTION", "installed"),
    ]
    assert finished.lines[-1].split()[-1] == digest_text("one")
    node.assert_has(map(digest_of, image("one").layers))


def test_a_relative_path_counts_from_where_the_command_is_called(
    layermanager: CommandLine, layout: str, tmp_path: Path
) -> None:
    with contextlib.chdir(tmp_path):
        assert layermanager("apply", "oci:images:1").status == 0
        shown = layermanager("show", "oci:images:1", "--json").document
    assert shown["reference"] == f"{layout}:1"


def test_a_document_names_layers_and_images(
    node: Node, layermanager: CommandLine, layout: str, tmp_path: Path
) -> None:
    plain = node.publish("plain")
    document = {
        "layers": [{"digest": plain.digest, "url": plain.url, "sha256": plain.sha256.hex()}],
        "images": [{"ref": f"{layout}:1"}, {"ref": f"{layout}:2"}],
    }
    (tmp_path / "desired.json").write_text(json.dumps(document))
    finished = layermanager("apply", tmp_path / "desired.json", "--json")
    assert finished.status == 0
    assert len(finished.document["installed"]) == 4
    installed = finished.document["images"]["installed"]
    assert [one["reference"] for one in installed] == [f"{layout}:1", f"{layout}:2"]
    assert installed[0]["digest"] == image("one").digest
    assert installed[0]["layers"] == [*map(digest_of, image("one").layers)]
    assert installed[0]["configDigest"] == digest_of(image("one").config)


def test_a_dry_run_says_what_would_become_of_images(
    node: Node, layermanager: CommandLine, layout: str
) -> None:
    finished = layermanager("apply", f"{layout}:1", "--dry-run")
    assert finished.status == 0
    assert finished.lines[-1].startswith(f"install image {layout}:1, linux/")
    assert finished.lines[-1].endswith(image("one").digest)
    assert not node.config.working_dir.exists()
    layermanager("apply", f"{layout}:1")
    steps = layermanager("apply", f"{layout}:2", "--dry-run", "--json").document
    assert (len(steps["keep"]), len(steps["cache"]), len(steps["install"])) == (1, 1, 1)
    assert [one["digest"] for one in steps["images"]["cache"]] == [image("one").digest]
    assert [one["reference"] for one in steps["images"]["install"]] == [f"{layout}:2"]
    steps = layermanager("apply", f"{layout}:3", "--dry-run", "--json").document
    assert [one["error"]["type"] for one in steps["images"]["failed"]] == ["SourceError"]


def test_an_image_that_fails_is_told_with_its_reason(
    layermanager: CommandLine, layout: str, tmp_path: Path
) -> None:
    finished = layermanager("apply", f"{layout}:3")
    assert finished.status == 1
    assert finished.lines[-1].split()[:2] == ["failed", f"{layout}:3"]
    assert finished.err.endswith(
        f"error: {layout}:3: no image is called so, but: 1, 2: {layout}:3\n"
    )
    document = layermanager("apply", f"{layout}:3", "--json").document
    (failed,) = document["images"]["failed"]
    assert failed["reference"] == f"{layout}:3"
    assert failed["error"]["url"] == f"{layout}:3"
    blob = tmp_path / f"images/blobs/sha256/{digest_of(BASE).encoded}"
    blob.write_bytes(b"x" * len(BASE))
    finished = layermanager("apply", f"{layout}:1")
    assert finished.status == 1
    assert finished.err.count("error: ") == 1  # told of the layer, and not again of the image


def test_the_platform_is_that_of_the_one_image(
    layermanager: CommandLine, layout: str, tmp_path: Path
) -> None:
    finished = layermanager("apply", f"{layout}:1", "--platform", "linux/other", "--json")
    (installed,) = finished.document["images"]["installed"]
    assert installed["platform"] == "linux/other"
    (tmp_path / "desired.json").write_text("[]")
    finished = layermanager("apply", tmp_path / "desired.json", "--platform", "linux/other")
    assert finished.status == 2
    assert "--platform is for an image" in finished.err
    finished = layermanager("apply", f"{layout}:1", "--platform", "other")
    assert finished.status == 2
    assert "not a platform: 'other'" in finished.err


@pytest.mark.parametrize(
    ("text", "is_image"),
    [
        ("registry:5000/app:1.2", True),
        ("registry.example.com/app", True),
        ("debian:12", True),
        ("app@sha256:00", True),
        ("docker://debian", True),
        ("oci:images/app", True),
        ("docker-archive:app.tar", True),
        ("desired.json", False),
        ("desired", False),
        ("lists/desired", False),
        ("lists.d/desired.json", False),
        ("./registry.io/app:1", False),
        ("/srv/a:b", False),
        ("-", False),
    ],
)
def test_what_is_meant_as_an_image(text: str, is_image: bool) -> None:
    assert names_image(text) == is_image


def test_a_file_that_is_there_is_meant(layermanager: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "registry:5000").write_text("[]")
    with contextlib.chdir(tmp_path):
        assert layermanager("apply", "registry:5000").status == 0


def test_a_file_that_is_not_there_is_no_image(layermanager: CommandLine) -> None:
    finished = layermanager("apply", "desired")
    assert finished.status == 2
    assert "cannot read the desired layers" in finished.err


def test_images_are_listed(layermanager: CommandLine, layout: str) -> None:
    assert layermanager("ls", "--images").lines == ["no images are installed"]
    layermanager("apply", f"{layout}:1")
    layermanager("apply", f"{layout}:2")
    finished = layermanager("ls", "--images", "--json")
    assert [(one["reference"], one["cached"]) for one in finished.document] == [
        (f"{layout}:1", True),
        (f"{layout}:2", False),
    ]
    lines = layermanager("ls", "--images").lines
    assert lines[0].split()[:5] == ["DIGEST", "IMAGE", "PLATFORM", "LAYERS", "STATE"]
    assert lines[1].split()[:2] == [digest_text("one"), f"{layout}:1"]
    assert lines[1].split()[3:5] == ["2", "cached"]
    assert lines[2].split()[3:5] == ["2", "desired"]


def test_an_image_is_shown(layermanager: CommandLine, layout: str) -> None:
    layermanager("apply", f"{layout}:1")
    finished = layermanager("show", f"{layout}:1")
    assert finished.status == 0
    shown = dict(line.split(maxsplit=1) for line in finished.lines[:-1])
    assert shown["image"] == f"{layout}:1"
    assert shown["digest"] == image("one").digest
    assert shown["command"] == "/bin/app --serve"
    assert shown["state"].startswith("desired, here for")
    assert shown["layers"].startswith(digest_of(BASE))
    assert finished.lines[-1].split()[0] == digest_of(image("one").layers[1])
    finished = layermanager("show", f"{layout}:1", "--files")
    assert finished.status == 2
    assert "--files is for a layer" in finished.err
    document = layermanager("show", f"{layout}:1", "--json").document
    assert document["config"]["config"] == RUN
    layermanager("apply", f"{layout}:2")
    assert "cached for" in layermanager("show", f"{layout}:1").out


def test_directories_that_cannot_be_told(
    tmp_path: Path,
    node: Node,
    layermanager: CommandLine,
    layout: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = LayerBuilder().directory("secret", mode=0o700).file("name").tar()
    built = build_image([base, LayerBuilder().file("secret/new").tar()], config={"os": None})
    write_files(tmp_path / "images", layout_files({"base": build_image([base]), "app": built}))
    layermanager("apply", f"{layout}:base", "--platform", "linux/amd64")
    index_path(node.config.index_dir, digest_of(base)).write_bytes(b"?")
    finished = layermanager("apply", f"{layout}:app")
    assert finished.status == 0
    (warning,) = caplog.messages
    assert warning.startswith(f"image {layout}:app: cannot tell the attributes of directories")
    assert f"the index of layer {digest_of(base)} is damaged" in warning
    assert "unknown, an index is missing or damaged" in layermanager("show", f"{layout}:app").out
    finished = layermanager("check", "--repair")
    assert finished.status == 0
    assert "unknown" not in layermanager("show", f"{layout}:app").out
    (directories,) = (
        layer
        for layer in layermanager("ls", "--json").document
        if layer["layerId"] == "image-directories"
    )
    assert not directories["cached"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["registry:5000/app:1"], 1, "no layer and no image registry:5000/app:1 is installed"),
        (["App"], 2, "not a reference to an image"),
    ],
)
def test_an_image_that_is_not_there(
    layermanager: CommandLine, arguments: list[str], status: int, message: str
) -> None:
    finished = layermanager("show", *arguments)
    assert finished.status == status
    assert message in finished.err


# pack --oci


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", {"bin/app": b"app"})


def test_what_is_packed_can_be_desired_as_printed(
    node: Node, layermanager: CommandLine, source: Path, tmp_path: Path
) -> None:
    options = ["--entrypoint", "/bin/app", "--cmd", "--serve", "--cmd", "-v", "--user", "1000"]
    with contextlib.chdir(tmp_path):
        entry = layermanager("pack", source, "--oci", "packed:1.2", *options).document
    assert entry["ref"].startswith(f"oci:{tmp_path / 'packed'}@sha256:")
    (tmp_path / "desired.json").write_text(json.dumps({"images": [entry]}))
    assert layermanager("apply", tmp_path / "desired.json").status == 0
    assert layermanager("apply", f"oci:{tmp_path / 'packed'}:1.2").status == 0
    shown = layermanager("show", f"oci:{tmp_path / 'packed'}:1.2", "--json").document
    assert shown["config"]["config"] == {
        "User": "1000",
        "Entrypoint": ["/bin/app"],
        "Cmd": ["--serve", "-v"],
    }
    assert len(node.rows()) == 1


def test_a_layout_may_leave_its_tag_out(
    layermanager: CommandLine, source: Path, tmp_path: Path
) -> None:
    assert layermanager("pack", source, "--oci", tmp_path / "packed").status == 0
    assert layermanager("apply", f"oci:{tmp_path / 'packed'}:latest").status == 0


@pytest.mark.parametrize(
    "given", [["--created", "1764000000"], ["--created", "2025-11-24T17:00:00+01:00"], []]
)
def test_the_time_may_be_that_of_the_source(
    layermanager: CommandLine,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
) -> None:
    if not given:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764000000")
    layermanager("pack", source, "--oci", tmp_path / "packed", *given)
    layermanager("apply", f"oci:{tmp_path / 'packed'}:latest")
    shown = layermanager("show", f"oci:{tmp_path / 'packed'}:latest", "--json").document
    assert shown["config"]["created"] == "2025-11-24T16:00:00Z"
    files = layermanager("show", shown["layers"][0], "--files", "--json").document
    assert {entry["mtimeNs"] for entry in files} == {1764000000 * 10**9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --output for a package, or --oci for an image"),
        (["-o", "package", "--oci", "layout"], "give either --output"),
        (["-o", "package", "--env", "A=b"], "--env is for an image"),
        (["--oci", "layout", "--os-version", "1"], "--os-version is for a package"),
        (["--oci", "layout", "--platform", "arm"], "not a platform: 'arm'"),
        (["--oci", "layout", "--created", "today"], "not a time: 'today'"),
        (["--oci", "layout:a b"], "not the name of an image in a layout: 'a b'"),
        (["--oci", f"layout@sha256:{'0' * 64}"], "cannot be named by its digest"),
        (["--oci", "layout", "--label", "\udcff=b"], "not UTF-8"),
    ],
)
def test_what_cannot_be_packed(
    layermanager: CommandLine, source: Path, options: list[str], message: str
) -> None:
    finished = layermanager("pack", source, *options)
    assert finished.status == 2
    assert message in finished.err


def test_a_variable_of_the_environment_is_for_images_only(
    layermanager: CommandLine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764000000")
    assert layermanager("pack", source, "-o", tmp_path / "package").status == 0
