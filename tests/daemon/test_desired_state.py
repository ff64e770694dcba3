from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from daemon_fixtures import daemon

from layermanager.daemon.desired_state import DesiredState, RememberedState
from layermanager.desired import desired_to_json
from layermanager.errors import StoreError
from manager_fixtures import Node

if TYPE_CHECKING:
    from pathlib import Path

    from daemon_fixtures import Daemon

    from layermanager import DesiredLayer


def state(*names: str) -> DesiredState:
    digests = [f"sha256:{name * 64}" for name in names]
    document = [{"digest": one, "layerId": one, "url": "file:///a", "size": 1} for one in digests]
    return DesiredState.read(json.dumps(document).encode(), "a test")


def test_what_was_kept_is_there_for_the_next(tmp_path: Path) -> None:
    RememberedState(tmp_path / "new/desired.json").keep(state("a", "b"))
    kept = RememberedState(tmp_path / "new/desired.json").load()
    assert kept is not None
    assert kept == state("a", "b")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_nothing_was_kept(tmp_path: Path) -> None:
    assert RememberedState(tmp_path / "desired.json").load() is None


def test_one_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "desired.json").mkdir()
    with pytest.raises(StoreError, match=r"cannot keep the desired state: .*desired.json"):
        RememberedState(tmp_path / "desired.json").keep(state("a"))


def test_two_daemons_of_one_store_that_are_told_at_once(tmp_path: Path) -> None:
    """Each answers as if it were alone, whichever is the last."""
    node = Node(tmp_path)
    layers = [node.publish("one"), node.publish("two")]
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with (
        daemon(node.config, tmp_path / "first") as first,
        daemon(node.config, tmp_path / "second") as second,
    ):
        answers: list[int] = []

        def put(served: Daemon, layer: DesiredLayer) -> None:
            for _ in range(20):
                document = [desired_to_json(layer)]
                answers.append(served.ask("PUT", "/v1/desired-state", document).status)

        threads = [
            threading.Thread(target=put, args=pair)
            for pair in zip((first, second), layers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(answers) <= {202, 503}
