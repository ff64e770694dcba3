"""The example that speaks Aos's language does what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aos_node import AosNode

from layermanager.desired import desired_to_json
from manager_fixtures import MIB, Node

if TYPE_CHECKING:
    from layermanager import DesiredLayer

ADAPTER = Path(__file__).parents[2] / "examples/aos/adapter.py"
ORDER = ("pending", "downloading", "installing", "installed")


@pytest.fixture
def publisher(tmp_path: Path) -> Node:
    return Node(tmp_path)


def adapt(node: AosNode, *layers: DesiredLayer) -> tuple[int, list[list[dict[str, Any]]]]:
    """The exit status, and each unit status."""
    document = json.dumps([desired_to_json(layer) for layer in layers])
    command = [sys.executable, str(ADAPTER), str(node.config)]
    done = subprocess.run(command, check=False, input=document, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def statuses(told: list[list[dict[str, Any]]], name: str) -> list[str]:
    """What was told of a layer, one after the other."""
    found: list[str] = []
    for status in told:
        (one,) = [entry["status"] for entry in status if entry["layerId"] == name]
        if found[-1:] != [one]:
            found.append(one)
    return found


def test_each_step_of_each_layer_is_told(tmp_path: Path, publisher: Node) -> None:
    node = AosNode.make(tmp_path)
    large, small = publisher.publish("large", 8 * MIB), publisher.publish("small")
    status, told = adapt(node, large, small)
    assert status == 0
    assert told[0] == [
        {"layerId": name, "digest": layer.digest, "version": "1.0.0", "status": "pending"}
        for name, layer in (("large", large), ("small", small))
    ]
    assert statuses(told, "large") == list(ORDER)
    assert statuses(told, "small") in (list(ORDER), [one for one in ORDER if one != "downloading"])
    assert [one["status"] for one in told[-1]] == ["installed", "installed"]

    status, told = adapt(node, small)
    assert (status, statuses(told, "small")) == (0, ["pending", "installed"])


def test_an_error_is_told_with_its_layer_and_stops_no_other(
    tmp_path: Path, publisher: Node
) -> None:
    node = AosNode.make(tmp_path)
    good, bad = publisher.publish("good"), publisher.publish("bad")
    (publisher.published / "bad").unlink()
    status, told = adapt(node, bad, good)
    assert status == 1
    failed, installed = told[-1]
    assert (failed["status"], installed["status"]) == ("error", "installed")
    assert set(failed["errorInfo"]) == {"aosCode", "exitCode", "message"}
    assert "No such file" in failed["errorInfo"]["message"]
    assert "errorInfo" not in installed
