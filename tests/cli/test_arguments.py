"""Arguments of our own kinds: how long to wait, texts for JSON, the name that a layer is given."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import click
import pytest
from cli_fixtures import CommandLine, busy, write_desired
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cli.arguments import PatientCommand, is_text, patience
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PatientCommand)
@click.argument("desired")
@click.option("--wait", callback=patience, default="0")
def waits(desired: str, wait: timedelta) -> None:
    """Say how the arguments were understood."""
    click.echo(f"{desired} {wait.total_seconds():.1f}")


@pytest.mark.parametrize(
    ("arguments", "understood"),
    [
        (["a.json"], "a.json 0.0"),
        (["--wait=2.5", "a.json"], "a.json 2.5"),
        (["a.json", "--wait=0"], "a.json 0.0"),
        (["--wait", "a.json"], f"a.json {timedelta.max.total_seconds():.1f}"),
        (["--wait", "-"], f"- {timedelta.max.total_seconds():.1f}"),
        (["a.json", "--wait"], f"a.json {timedelta.max.total_seconds():.1f}"),
        (["--", "--wait"], "--wait 0.0"),
        (["a.json", "--wait=1e300"], f"a.json {timedelta.max.days * 86400:.1f}"),
    ],
)
def test_waiting_may_have_an_end(arguments: list[str], understood: str) -> None:
    result = CliRunner().invoke(waits, arguments)

    assert result.output == f"{understood}\n"


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon", ""])
def test_what_is_no_time_to_wait(seconds: str) -> None:
    result = CliRunner().invoke(waits, ["a.json", f"--wait={seconds}"])

    assert result.exit_code == 2
    assert f"Invalid value for --wait: not a number of seconds: {seconds!r}" in result.output


@given(st.text(st.characters(codec=None, categories=None) | st.just("\ud800")))
def test_a_text_is_what_json_in_utf_8_can_hold(text: str) -> None:
    try:
        can_be_written = bool(json.dumps(text, ensure_ascii=False).encode()) and "\0" not in text
    except UnicodeEncodeError:
        can_be_written = False

    assert is_text(text) is can_be_written


def test_a_store_that_stays_busy_is_waited_for_no_longer_than_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node = Node(tmp_path)
    path = write_desired(tmp_path / "desired.json", [node.publish("app")])

    with busy(node.config.working_dir):
        finished = CommandLine(node.config.working_dir, capfd)("apply", "--wait=0.2", path)

    assert finished.status == 3


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("app-1.2", "app-1.2"),
        ("python3.11/..", "sources"),
        ("app-1.2.tar", "app-1.2"),
        ("app.tar.gz", "app"),
        ("app.tgz", "app"),
        ("app.tar.zst", "app"),
        ("plain", "plain"),
    ],
)
def test_a_layer_is_called_as_its_source(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], source: str, name: str
) -> None:
    sources = tmp_path / "sources"
    (sources / "python3.11").mkdir(parents=True)
    (sources / "app-1.2").mkdir()
    for tar in ("app-1.2.tar", "app.tar.gz", "app.tgz", "app.tar.zst", "plain"):
        (sources / tar).write_bytes(layer_tar("app"))

    finished = CommandLine(tmp_path, capfd)("pack", sources / source, "-o", tmp_path / "package")

    assert finished.document["layerId"] == name


def test_a_source_whose_name_is_no_text_needs_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9")
    source.mkdir()
    pack = ["pack", str(source), "-o", str(tmp_path / "package")]
    layermanager = CommandLine(tmp_path, capfd)

    refused = layermanager(*pack)
    named = layermanager(*pack, "--layer-id", "coffee")

    assert refused.status == 2
    assert "give it one with --layer-id" in refused.err
    assert named.document["layerId"] == "coffee"


@pytest.mark.parametrize("option", ["--layer-id", "--layer-version", "--os-version", "--url"])
def test_bytes_that_are_no_text_do_not_reach_a_document(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "app").mkdir()
    package = tmp_path / "package"

    finished = CommandLine(tmp_path, capfd)(
        "pack", tmp_path / "app", "-o", package, option, os.fsdecode(b"caf\xe9")
    )

    assert finished.status == 2
    assert f"Invalid value for {option}: not UTF-8" in finished.err
    assert not package.exists()
