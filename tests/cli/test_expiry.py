"""What `apply` and `show` do about cached layers whose time to live is over."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, write_desired

from layermanager.testing.clock import FakeClock
from manager_fixtures import Node

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager import DesiredLayer


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def layermanager(node: Node, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(node.config.working_dir, capfd)


def cached(node: Node, *layers: DesiredLayer, ago: timedelta) -> None:
    """Install *layers* and cease to desire them, so long ago."""
    with node.manager(clock=FakeClock.ago(ago)) as manager:
        manager.process_desired_layers(layers)
        manager.process_desired_layers([])


def test_an_expired_layer_that_is_desired_again_is_restored_as_the_dry_run_says(
    node: Node, layermanager: CommandLine, tmp_path: Path
) -> None:
    layer = node.publish("app")
    cached(node, layer, ago=timedelta(days=40))
    path = write_desired(tmp_path / "desired.json", [layer])
    (node.published / "app").unlink()

    planned = layermanager("apply", path, "--dry-run", "--json").document
    done = layermanager("apply", path, "--json").document

    assert planned["restore"] == [layer.digest]
    assert [one["digest"] for one in done["restored"]] == [layer.digest]
    node.assert_has([layer])


def test_an_expired_layer_that_is_not_desired_is_removed_afterwards(
    node: Node, layermanager: CommandLine, tmp_path: Path
) -> None:
    layer, old = node.publish("app"), node.publish("old")
    cached(node, old, ago=timedelta(days=40))

    layermanager("apply", write_desired(tmp_path / "desired.json", [layer]))

    node.assert_has([layer])


@pytest.mark.parametrize(
    ("age", "ttl_days", "state"),
    [
        (timedelta(days=3), 30, "cached for 3 d, removed in 26 d at the latest"),
        (timedelta(days=40), 30, "cached for 40 d, removed with the next change"),
        (timedelta(days=40), 10**12, "cached for 40 d, removed when space is needed"),
    ],
)
def test_show_tells_how_long_a_layer_stays(
    node: Node,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    age: timedelta,
    ttl_days: int,
    state: str,
) -> None:
    layer = node.publish("app")
    cached(node, layer, ago=age)
    config = tmp_path / "config.json"
    config.write_text(f'{{"layerTtlDays": {ttl_days}}}')

    layermanager = CommandLine(node.config.working_dir, capfd)
    shown = layermanager("--config", str(config), "show", layer.digest)

    assert shown.lines[-1] == f"state       {state}"
