"""The commands on real stores: what they print, what they change, with which status they end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, busy, write_desired

from layermanager import __version__
from layermanager.cli.tables import columns_of, size_text
from layermanager.clock import SystemClock
from layermanager.desired import desired_to_json
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import LayerBuilder, build_package, compress, desired
from layermanager.testing.web import LayerServer
from manager_fixtures import MIB, Node, layer_tar, name_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager import DesiredLayer

ABSENT = "f" * 64


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of whoever starts the tests, and nothing left for the next one."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("LAYERMANAGER_CONFIG", "LAYERMANAGER_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def layermanager(node: Node, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(node.config.working_dir, capfd)


@pytest.fixture
def base(node: Node) -> DesiredLayer:
    return node.publish("base", 3 * MIB)


@pytest.fixture
def app(node: Node) -> DesiredLayer:
    return node.publish("app")


def wanted(node: Node, *layers: DesiredLayer) -> Path:
    return write_desired(node.published / "desired.json", layers)


def installed(node: Node, *layers: DesiredLayer, ago: timedelta = timedelta(0)) -> None:
    """Make *layers* the installed ones, so long ago."""
    with node.manager(clock=FakeClock.ago(ago)) as manager:
        manager.process_desired_layers(layers)


def short(layer: DesiredLayer) -> str:
    return layer.digest[:19]


# apply


def test_apply_installs_and_tells_so(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    finished = layermanager("apply", wanted(node, base, app))

    assert finished.status == 0
    head, *rows = [line.split() for line in finished.lines]
    assert head == ["ACTION", "LAYER", "VERSION", "DIGEST", "SIZE"]
    assert [row[:4] for row in rows] == [
        ["installed", "base", "1.0.0", short(base)],
        ["installed", "app", "1.0.0", short(app)],
    ]
    assert [line for line in finished.err.splitlines() if line.startswith("base")] == [
        f"base 1.0.0: installing, {size_text(base.size or 0)}",
        "base 1.0.0: committing",
        "base 1.0.0: installed",
    ]
    node.assert_has([base, app])


def test_apply_again_and_otherwise(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    new = node.publish("new")
    layermanager("apply", wanted(node, base, app))

    changed = layermanager("apply", wanted(node, base, new))
    again = layermanager("apply", wanted(node, base, app, new))

    assert [line.split()[:2] for line in changed.lines[1:]] == [
        ["kept", "base"],
        ["cached", "app"],
        ["installed", "new"],
    ]
    assert [line.split()[:2] for line in again.lines[1:]] == [
        ["kept", "base"],
        ["kept", "new"],
        ["restored", "app"],
    ]


def test_apply_over_http(layermanager: CommandLine, node: Node) -> None:
    blob = compress(layer_tar("web"), "zstd")
    package = build_package(blob)
    with LayerServer() as server:
        layer = desired(blob, server.add("/web", package), package=package, layer_id="web")
        finished = layermanager("apply", wanted(node, layer), "--json")

    assert [one["layerId"] for one in finished.document["installed"]] == ["web"]
    assert name_on_disk(node.rows()[0]) == "web"


@pytest.mark.parametrize("where", ["before", "after"])
def test_apply_as_json(
    node: Node, layermanager: CommandLine, base: DesiredLayer, where: str
) -> None:
    arguments = ["apply", str(wanted(node, base))]
    arguments.insert(0 if where == "before" else 2, "--json")

    finished = layermanager(*arguments)

    assert finished.status == 0
    document = finished.document
    assert list(document) == ["kept", "restored", "cached", "installed", "failed", "images"]
    (layer,) = document["installed"]
    (row,) = node.rows()
    assert layer["digest"] == base.digest
    assert layer["path"] == str(row.path)
    assert datetime.fromisoformat(layer["timestamp"]) == row.timestamp


def test_nothing_desired_and_nothing_there(node: Node, layermanager: CommandLine) -> None:
    finished = layermanager("apply", wanted(node))

    assert (finished.status, finished.out) == (0, "no layers are desired, and none were\n")


def test_apply_from_standard_input(
    node: Node, layermanager: CommandLine, base: DesiredLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(wanted(node, base).open("rb")))

    with sys.stdin:
        assert layermanager("apply", "-").status == 0
    node.assert_has([base])


def test_a_bad_list_on_standard_input_is_called_so(
    layermanager: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))

    finished = layermanager("apply", "-")

    assert finished.status == 2
    assert finished.err.startswith("error: standard input: ")


def test_one_layer_fails_and_the_others_are_installed(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    (node.published / "base").write_bytes(b"x" * (base.size or 0))

    finished = layermanager("apply", wanted(node, base, app))

    assert finished.status == 1
    assert [line.split()[:4] for line in finished.lines[1:]] == [
        ["installed", "app", "1.0.0", short(app)],
        ["failed", "base", "1.0.0", short(base)],
    ]
    assert f"error: {short(base)}: " in finished.err
    assert "Traceback" not in finished.err
    node.assert_has([app])


def test_the_hint_of_a_failure_is_shown(
    node: Node, layermanager: CommandLine, base: DesiredLayer
) -> None:
    wrong = desired(b"another blob", base.url, layer_id="base")

    finished = layermanager("apply", wanted(node, wrong))

    assert finished.status == 1
    assert "\nhint: the publisher's file changed" in finished.err


def test_a_failure_as_json(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    (node.published / "base").unlink()

    finished = layermanager("--json", "apply", wanted(node, base, app))

    assert finished.status == 1
    (failed,) = finished.document["failed"]
    assert failed["digest"] == base.digest
    assert failed["error"]["type"] == "SourceError"
    assert failed["error"]["url"] == base.url
    assert [layer["digest"] for layer in finished.document["installed"]] == [app.digest]


@pytest.mark.parametrize("is_json", [False, True])
def test_a_dry_run_changes_nothing(
    node: Node, layermanager: CommandLine, base: DesiredLayer, *, is_json: bool
) -> None:
    finished = layermanager(
        "apply", wanted(node, base), "--dry-run", *(["--json"] if is_json else [])
    )

    assert finished.status == 0
    if is_json:
        assert finished.document == {
            "keep": [],
            "restore": [],
            "cache": [],
            "install": [base.digest],
            "images": {"keep": [], "restore": [], "cache": [], "install": [], "failed": []},
            "rename": [],
        }
    else:
        assert finished.lines == [f"install {base.digest} from {base.url}"]
    assert not node.config.working_dir.exists()


def test_a_dry_run_of_a_change(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    new = node.publish("new")
    installed(node, base, app)
    before = node.rows()

    finished = layermanager("apply", wanted(node, new, base), "--dry-run")

    assert finished.lines == [
        f"keep {base.digest}",
        f"cache {app.digest}",
        f"install {new.digest} from {new.url}",
    ]
    assert node.rows() == before
    node.assert_has([base, app])


def test_a_dry_run_with_nothing_to_do(layermanager: CommandLine, node: Node) -> None:
    assert layermanager("apply", wanted(node), "--dry-run").lines == ["nothing to do"]


def test_long_names_do_not_burst_the_tables(node: Node, layermanager: CommandLine) -> None:
    package = build_package(blob := compress(layer_tar("long"), "gzip"))
    (node.published / "long").write_bytes(package)
    layer = desired(
        blob,
        (node.published / "long").as_uri(),
        package=package,
        layer_id="層" * 40 + "\x1b[2J",
        version="2.0.0-rc.1+20261124.build.with.a.long.name",
    )

    applied = layermanager("apply", wanted(node, layer))
    listed = layermanager("ls")

    for finished in (applied, listed):
        assert max(columns_of(line) for line in finished.lines) == 80
        assert "\x1b" not in finished.out + finished.err
    assert short(layer) in listed.out
    assert layermanager("ls", "--json").document[0]["layerId"] == layer.layer_id


# ls


def test_ls(node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer) -> None:
    installed(node, base, app)
    installed(node, base)

    finished = layermanager("ls")

    assert finished.lines[0].split() == [
        *("DIGEST", "LAYER", "VERSION", "STATE", "SIZE", "SINCE", "(UTC)")
    ]
    rows = {line.split()[1]: line.split() for line in finished.lines[1:]}
    assert {name: (row[0], row[3]) for name, row in rows.items()} == {
        "base": (short(base), "desired"),
        "app": (short(app), "cached"),
    }
    assert {one["layerId"]: one["cached"] for one in layermanager("ls", "--json").document} == {
        "base": False,
        "app": True,
    }


def test_a_store_that_is_not_there_has_no_layers(node: Node, layermanager: CommandLine) -> None:
    assert layermanager("ls").lines == ["no layers are installed"]
    assert layermanager("--json", "ls").document == []
    assert not node.config.working_dir.exists()


def test_looking_needs_no_lock(node: Node, layermanager: CommandLine, base: DesiredLayer) -> None:
    installed(node, base)

    with busy(node.config.working_dir):
        for arguments in (
            ["ls"],
            ["df"],
            ["show", base.digest],
            ["show", base.digest, "--files"],
            ["apply", str(wanted(node)), "--dry-run"],
        ):
            assert layermanager(*arguments).status == 0


# show


@pytest.mark.parametrize("length", [4, 12, 64])
@pytest.mark.parametrize("algorithm", ["", "sha256:"])
def test_show_by_the_beginning_of_the_digest(
    node: Node, layermanager: CommandLine, base: DesiredLayer, length: int, algorithm: str
) -> None:
    installed(node, base, ago=timedelta(hours=2, minutes=1))

    finished = layermanager("show", algorithm + base.digest.encoded[:length])

    (row,) = node.rows()
    pairs = dict(line.split("  ", 1) for line in finished.lines)
    assert {name: value.strip() for name, value in pairs.items()} == {
        "digest": base.digest,
        "layer": "base",
        "version": "1.0.0",
        "os version": "-",
        "path": str(row.path),
        "size": size_text(row.size),
        "state": "desired, here for 2 h",
    }


def test_show_and_check_by_name(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    installed(node, base, app)
    assert layermanager("show", "app", "--json").document["digest"] == app.digest
    assert [one["layerId"] for one in layermanager("check", "app", "--json").document] == ["app"]


def test_of_several_of_a_name_the_desired_one_is_shown(
    node: Node, layermanager: CommandLine
) -> None:
    old, new = (replace(node.publish(name), layer_id="app") for name in ("old", "new"))
    installed(node, old)
    installed(node, new)
    assert layermanager("show", "app", "--json").document["digest"] == new.digest
    installed(node, old, new)
    assert "several layers are called app" in layermanager("show", "app").err


def test_one_layer_instead_of_an_array_of_them(
    node: Node, layermanager: CommandLine, base: DesiredLayer, tmp_path: Path
) -> None:
    """As ``pack`` prints it."""
    installed(node, base)
    path = tmp_path / "app.json"
    path.write_text(json.dumps(desired_to_json(base)))
    finished = layermanager("apply", path)
    assert finished.status == 2
    assert "one layer; expected an array of layers: put [ and ] around it" in finished.err


def test_show_a_cached_layer(node: Node, layermanager: CommandLine, base: DesiredLayer) -> None:
    installed(node, base, ago=timedelta(days=60))
    installed(node, ago=timedelta(days=10, hours=1))

    state = layermanager("show", base.digest).lines[-1]

    assert state.split(None, 1)[1] == "cached for 10 d, removed in 19 d at the latest"


def test_show_as_json(node: Node, layermanager: CommandLine, base: DesiredLayer) -> None:
    installed(node, base)

    assert layermanager("show", base.digest, "--json").document["digest"] == base.digest


def test_an_ambiguous_digest_names_the_layers(node: Node, layermanager: CommandLine) -> None:
    installed(node, node.publish("one"), node.publish("two"))
    digests = ["sha256:abcd" + digit * 60 for digit in "01"]
    with sqlite3.connect(node.config.database) as database:
        rows = database.execute("SELECT digest FROM layers").fetchall()
        for (old,), new in zip(rows, digests, strict=True):
            database.execute("UPDATE layers SET digest = ? WHERE digest = ?", (new, old))
    database.close()

    finished = layermanager("show", "abcd")

    assert finished.status == 2
    assert "several layers begin so: sha256:abcd00000000, sha256:abcd11111111" in finished.err
    assert layermanager("show", "abcd0").status == 0


@pytest.mark.parametrize(
    ("digest", "status", "message"),
    [
        ("abc", 2, "abc: at least 4 digits are needed"),
        ("sha256:abc", 2, "sha256:abc: at least 4 digits are needed"),
        ("sha256:", 2, "sha256:: at least 4 digits are needed"),
        ("sha256", 1, "layer sha256 is not installed"),
        ("sha512:" + ABSENT, 1, f"layer sha512:{ABSENT} is not installed"),
        (ABSENT, 1, f"layer {ABSENT} is not installed"),
    ],
)
def test_show_what_is_not_there(
    node: Node,
    layermanager: CommandLine,
    base: DesiredLayer,
    digest: str,
    status: int,
    message: str,
) -> None:
    installed(node, base)

    finished = layermanager("show", digest)
    as_json = layermanager("--json", "show", digest)

    assert (finished.status, finished.out) == (status, "")
    assert finished.err.startswith(f"error: {message}\nhint: ")
    assert (as_json.status, as_json.err) == (status, "")
    assert as_json.document["error"]["message"] == message


def test_show_files(node: Node, layermanager: CommandLine) -> None:
    tar = (
        LayerBuilder()
        .directory(".")
        .directory("etc", mtime_ns=10**18)
        .file("etc/motd", b"hello\n", mode=0o640, mtime_ns=10**18)
        .hardlink("etc/issue", "etc/motd")
        .symlink("etc/link", "motd", mtime_ns=10**18)
        .fifo("etc/pipe", mtime_ns=10**18)
        .file(b"etc/\xff\xc3\xa9", mtime_ns=10**18)
        .whiteout("etc/gone")
        .tar()
    )
    layer = node.publish_bytes("files", tar)
    installed(node, layer)
    owner = "0:0" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"

    finished = layermanager("show", layer.digest, "--files")
    document = layermanager("show", layer.digest, "--files", "--json").document

    assert finished.status == 0
    lines = {" ".join(line.split()) for line in finished.lines}
    assert len(lines) == 8
    assert lines >= {
        f"-rw-r----- {owner} 6 2001-09-09 01:46 etc/motd",
        f"-rw-r--r-- {owner} 0 2001-09-09 01:46 etc/\\xffé",
        f"drwxr-xr-x {owner} 0 2001-09-09 01:46 etc",
        "hard link etc/issue to etc/motd",
        f"lrwxrwxrwx {owner} 0 2001-09-09 01:46 etc/link -> motd",
        f"prw-r--r-- {owner} 0 2001-09-09 01:46 etc/pipe",
        "whiteout etc/gone",
    }
    kinds = {entry["path"]: entry["type"] for entry in document}
    assert kinds == {
        ".": "dir",
        "etc": "dir",
        "etc/motd": "file",
        "etc/issue": "file",
        "etc/link": "link",
        "etc/pipe": "fifo",
        "etc/\udcffé": "file",
        "etc/gone": "char",
    }


def test_show_files_of_a_layer_without_an_index(
    node: Node, layermanager: CommandLine, base: DesiredLayer
) -> None:
    installed(node, base)
    shutil.rmtree(node.config.index_dir)

    finished = layermanager("show", base.digest, "--files", "--json")

    assert finished.status == 1
    assert finished.document["error"]["message"] == f"layer {base.digest} has no index"


def test_show_the_jail(layermanager: CommandLine) -> None:
    finished = layermanager("show", "--jail")
    document = layermanager("show", "--jail", "--json").document

    assert finished.status == 0
    assert len(finished.lines) == len(document) > 0
    for line, measure in zip(finished.lines, document, strict=True):
        said = f"not in force: {measure['whyNot']}" if measure["whyNot"] else "in force"
        assert line.split("  ", 1)[0] == measure["name"]
        assert line.endswith(said)


def test_show_what(layermanager: CommandLine) -> None:
    finished = layermanager("show")

    assert finished.status == 2
    assert "Missing argument 'LAYER|REFERENCE'" in finished.err


# df


def test_df(node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer) -> None:
    installed(node, base, app)
    installed(node, base)
    sizes = {row.cached: row.size for row in node.rows()}

    finished = layermanager("df")
    document = layermanager("--json", "df").document

    assert [line.split()[0] for line in finished.lines] == [
        *("layers", "partition", "free", "limit", "desired", "cached", "other"),
        *(["inodes"] if document["inodes"] else []),
    ]
    if document["inodes"]:
        inodes = document["inodes"]
        assert inodes["desired"] > 0
        assert f" free, {inodes['desired']} desired, " in finished.lines[-1]
    assert finished.lines[3].split() == ["limit", "none"]
    assert document["path"] == str(node.config.layers_dir)
    assert (document["desired"], document["reclaimable"]) == (sizes[False], sizes[True])
    assert document["limit"] == 0
    assert document["total"] > document["free"] > 0


def test_df_before_there_is_a_store(node: Node, layermanager: CommandLine) -> None:
    assert layermanager("df", "--json").document["desired"] == 0
    assert not node.config.working_dir.exists()


# gc


def test_gc_removes_what_is_past_its_time_and_says_so(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    installed(node, base, app, ago=timedelta(days=60))
    installed(node, base, ago=timedelta(days=31))
    size = next(row.size for row in node.rows() if row.cached)

    finished = layermanager("gc")

    assert finished.lines == [
        f"removed {short(app)}  app 1.0.0",
        f"1 layer removed, {size_text(size)} freed",
    ]
    node.assert_has([base])
    assert layermanager("gc").lines == ["0 layers removed, 0 B freed"]


def test_gc_keeps_what_is_not_past_its_time(
    node: Node, layermanager: CommandLine, app: DesiredLayer
) -> None:
    installed(node, app, ago=timedelta(days=60))
    installed(node, ago=timedelta(days=29))

    assert layermanager("gc", "--json").document == {"removed": [], "freed": 0, "held": []}
    node.assert_has([app])


@pytest.mark.parametrize(
    ("days", "is_removed"), [("0", True), ("4", True), ("6", False), ("99999999999999", False)]
)
def test_gc_with_another_time_to_live(
    node: Node, layermanager: CommandLine, app: DesiredLayer, days: str, *, is_removed: bool
) -> None:
    installed(node, app, ago=timedelta(days=60))
    installed(node, ago=timedelta(days=5))

    document = layermanager("gc", "--ttl-days", days, "--json").document

    assert [layer["digest"] for layer in document["removed"]] == [app.digest] * is_removed


def test_gc_with_a_longer_time_to_live_than_the_configured_one(
    node: Node, layermanager: CommandLine, app: DesiredLayer
) -> None:
    installed(node, app, ago=timedelta(days=60))
    installed(node, ago=timedelta(days=50))

    assert layermanager("gc", "--ttl-days", "60").status == 0
    node.assert_has([app])


def test_gc_until_enough_is_free(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    new = node.publish("new")
    installed(node, base, app, new, ago=timedelta(days=60))
    installed(node, app, new, ago=timedelta(days=3))
    installed(node, new, ago=timedelta(days=2))

    first = layermanager("gc", "--free", "1.5M", "--json").document
    node.assert_has([app, new])
    second = layermanager("gc", "--free", "1 TiB", "--json").document

    assert [layer["layerId"] for layer in first["removed"]] == ["base"]
    assert first["freed"] > 3 * MIB
    assert [layer["layerId"] for layer in second["removed"]] == ["app"]
    node.assert_has([new])


def test_gc_counts_what_its_time_to_live_freed(
    node: Node, layermanager: CommandLine, base: DesiredLayer, app: DesiredLayer
) -> None:
    installed(node, base, app, ago=timedelta(days=60))
    installed(node, app, ago=timedelta(days=31))
    installed(node, ago=timedelta(days=29))

    document = layermanager("gc", "--free", "1M", "--json").document

    assert [layer["layerId"] for layer in document["removed"]] == ["base"]
    node.assert_has([app])


@pytest.mark.parametrize("size", ["lots", "-1", "5X", ""])
def test_gc_until_what_is_free(layermanager: CommandLine, node: Node, size: str) -> None:
    finished = layermanager("gc", f"--free={size}")

    assert finished.status == 2
    assert "Invalid value for --free: not a size" in finished.err
    assert not node.config.working_dir.exists()


# pack


def source_tree(directory: Path) -> Path:
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "name").write_text("packed")
    return directory


@pytest.mark.parametrize("compression", [None, "gzip", "zstd", "none"])
def test_what_is_packed_can_be_applied(
    node: Node, layermanager: CommandLine, tmp_path: Path, compression: str | None
) -> None:
    package = tmp_path / "out.tar"
    options = ["--compression", compression] if compression else []

    finished = layermanager("pack", source_tree(tmp_path / "my-layer"), "-o", package, *options)

    assert finished.status == 0
    entry = finished.document
    assert (entry["layerId"], entry["version"]) == ("my-layer", "1.0.0")
    assert entry["url"] == package.as_uri()
    assert entry["size"] == package.stat().st_size
    (tmp_path / "desired.json").write_text(json.dumps([entry]))
    assert layermanager("apply", tmp_path / "desired.json").status == 0
    (row,) = node.rows()
    assert name_on_disk(row) == "packed"


def test_pack_a_tar_with_all_options(node: Node, layermanager: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "layer.tar"
    source.write_bytes(layer_tar("tar"))
    package = tmp_path / "out.tar"

    entry = layermanager(
        *("pack", source, "-o", package, "--layer-id", "tar", "--layer-version", "2"),
        *("--os-version", "5.0", "--url", "https://example.com/out.tar", "--json"),
    ).document

    assert entry["url"] == "https://example.com/out.tar"
    (tmp_path / "desired.json").write_text(json.dumps([{**entry, "url": package.as_uri()}]))
    assert layermanager("apply", tmp_path / "desired.json").status == 0
    (row,) = node.rows()
    assert (row.layer_id, row.version, row.os_version) == ("tar", "2", "5.0")


def test_what_cannot_be_packed(layermanager: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "no.tar"
    source.write_bytes(b"no tar at all")

    finished = layermanager("pack", source, "-o", tmp_path / "out.tar")

    assert (finished.status, finished.out) == (2, "")
    assert finished.err.startswith("error: ")
    assert str(source) in finished.err
    assert not (tmp_path / "out.tar").exists()


# Unusable input


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected"),
        ('[{"url": "file:///x"}]', "[0].digest"),
        ('[{"digest": "sha256:../x", "url": "file:///x"}]', "[0].digest"),
        (f'[{{"digest": "sha256:{ABSENT}"}}]', "[0].url"),
        (f'[{{"digest": "sha256:{ABSENT}", "url": "file:///x", "size": -1}}]', "size"),
    ],
)
def test_an_unusable_list_is_named_with_its_key(
    layermanager: CommandLine, node: Node, tmp_path: Path, document: str, message: str
) -> None:
    path = tmp_path / "desired.json"
    path.write_text(document)

    finished = layermanager("apply", path)
    as_json = layermanager("apply", path, "--json")

    assert (finished.status, finished.out) == (2, "")
    assert finished.err.startswith(f"error: {path}: ")
    assert message in finished.err
    assert (as_json.status, as_json.err) == (2, "")
    assert message in as_json.document["error"]["message"]
    assert not node.config.working_dir.exists()


def test_layers_that_contradict_each_other(
    layermanager: CommandLine, node: Node, base: DesiredLayer
) -> None:
    other = desired(b"", "file:///elsewhere")
    path = wanted(node, base)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([*entries, {**entries[0], "url": other.url}]))

    assert layermanager("apply", path).status == 2
    assert layermanager("apply", path, "--dry-run").status == 2


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_list_that_cannot_be_read(layermanager: CommandLine, tmp_path: Path, name: str) -> None:
    finished = layermanager("apply", tmp_path / name)

    assert finished.status == 2
    assert finished.err.startswith("error: cannot read the desired layers: ")
    assert str(tmp_path / name) in finished.err


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"layersPartLimit": 101}', "layersPartLimit"),
        ('{"layerManager": {"paralelInstalls": 3}}', "paralelInstalls"),
        ("[]", "expected"),
        (None, "cannot read the configuration"),
    ],
)
def test_an_unusable_configuration_names_the_key(
    layermanager: CommandLine, tmp_path: Path, document: str | None, message: str
) -> None:
    path = tmp_path / "config.json"
    if document is not None:
        path.write_text(document)

    finished = layermanager("--config", path, "ls")

    assert finished.status == 2
    assert str(path) in finished.err
    assert message in finished.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bogus"],
        ["ls", "--bogus"],
        ["bogus"],
        ["apply"],
        ["gc", "--ttl-days", "-1"],
        ["--log-level", "loud", "ls"],
        ["pack", "/does/not/exist", "-o", "x"],
    ],
)
def test_wrong_usage(layermanager: CommandLine, arguments: list[str]) -> None:
    finished = layermanager(*arguments)
    as_json = layermanager(*arguments, "--json")

    assert (finished.status, finished.out) == (2, "")
    assert "Error: " in finished.err
    assert (as_json.status, as_json.err) == (2, "")
    assert as_json.document["error"]["message"]


# Where the store is


def test_the_environment_names_configuration_and_store(
    layermanager: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"workingDir": str(tmp_path / "a"), "layersPartLimit": 50}))

    monkeypatch.setenv("LAYERMANAGER_CONFIG", str(path))
    configured = layermanager.bare("df", "--json").document
    monkeypatch.setenv("LAYERMANAGER_WORK_DIR", str(tmp_path / "b"))
    named = layermanager.bare("df", "--json").document
    told = layermanager("df", "--json").document

    assert configured["path"] == str(tmp_path / "a" / "layers")
    assert configured["limit"] == configured["total"] // 2
    assert named["path"] == str(tmp_path / "b" / "layers")
    assert told["path"] == str(layermanager.working_dir / "layers")


# One at a time


@pytest.mark.parametrize("arguments", [["apply", "DESIRED"], ["gc"]])
def test_a_busy_store(
    node: Node, layermanager: CommandLine, base: DesiredLayer, arguments: list[str]
) -> None:
    arguments = [str(wanted(node, base)) if one == "DESIRED" else one for one in arguments]
    with busy(node.config.working_dir):
        finished = layermanager(*arguments)
        as_json = layermanager("--json", *arguments)

    assert (finished.status, finished.out) == (3, "")
    assert "the store is being changed by " in finished.err
    assert "--wait" in finished.err
    assert (as_json.status, as_json.document["error"]["type"]) == (3, "StoreBusyError")


class TestLimitRate:
    """``--limit-rate`` and the configuration's ``rateLimit``."""

    @pytest.fixture
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        waits: list[float] = []

        def wait(_: SystemClock, event: threading.Event, seconds: float) -> bool:
            if threading.current_thread().name.startswith("install"):
                waits.append(seconds)
                return event.is_set()
            return event.wait(seconds)

        monkeypatch.setattr(SystemClock, "wait", wait)
        return waits

    @pytest.fixture
    def path(self, tmp_path: Path) -> Iterator[Path]:
        blob = layer_tar("one", 100_000)
        with LayerServer() as server:
            yield write_desired(tmp_path / "desired.json", [desired(blob, server.add("/a", blob))])

    def test_bounds_the_transfer(
        self, layermanager: CommandLine, path: Path, waits: list[float]
    ) -> None:
        finished = layermanager("apply", path, "--limit-rate", "10K")
        assert finished.status == 0
        # No time passes here, so that the last wait is that for all bytes.
        assert max(waits) == pytest.approx(len(layer_tar("one", 100_000)) / 10_240, rel=0.1)

    def test_goes_before_the_configuration(
        self, layermanager: CommandLine, path: Path, waits: list[float], tmp_path: Path
    ) -> None:
        config = tmp_path / "config.json"
        network = {"rateLimit": 1, "retryDelaySeconds": 0.001}
        config.write_text(json.dumps({"layerManager": {"network": network}}))
        finished = layermanager("--config", config, "apply", path, "--limit-rate", "0")
        assert (finished.status, waits) == (0, [])

    def test_wants_a_size(self, layermanager: CommandLine, path: Path) -> None:
        finished = layermanager("apply", path, "--limit-rate", "fast")
        assert finished.status == 2
        assert "--limit-rate" in finished.err


def test_wait_for_a_busy_store(
    node: Node, layermanager: CommandLine, base: DesiredLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wanted(node, base)
    with busy(node.config.working_dir) as other:

        def wait(_: SystemClock, event: threading.Event, seconds: float) -> bool:
            other.communicate()
            return event.wait(seconds)

        monkeypatch.setattr(SystemClock, "wait", wait)
        finished = layermanager("apply", path, "--wait")

    assert finished.status == 0
    node.assert_has([base])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_waiting(
    node: Node,
    layermanager: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    status: int,
) -> None:
    def wait(_: SystemClock, event: threading.Event, seconds: float) -> bool:
        signal.raise_signal(number)
        return event.wait(seconds)

    monkeypatch.setattr(SystemClock, "wait", wait)
    with busy(node.config.working_dir):
        assert layermanager("gc", "--wait").status == status


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["apply", "-h"], ["gc", "--help"]])
def test_help_fits_a_terminal(layermanager: CommandLine, arguments: list[str]) -> None:
    finished = layermanager.bare(*arguments)

    assert (finished.status, finished.err) == (0, "")
    assert finished.out.startswith("Usage: layermanager ")
    assert max(map(len, finished.lines)) <= 80


def test_version(layermanager: CommandLine) -> None:
    assert layermanager.bare("--version").out == f"layermanager, version {__version__}\n"


def test_no_command_is_wrong_usage(layermanager: CommandLine) -> None:
    finished = layermanager.bare()

    assert finished.status == 2
    assert "Usage: layermanager" in finished.err
