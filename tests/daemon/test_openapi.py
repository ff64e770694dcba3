from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from daemon_fixtures import daemon
from forwarding import forwarded

from layermanager.daemon.resources import ENDPOINTS, openapi_document
from manager_fixtures import Node

_NOT_CHECKED = (
    # A list of layers may be as described and yet contradict itself; and 1.0 is an integer to JSON
    # Schema, but to nobody who reads desired layers.
    "positive_data_acceptance",
    # A cancelled operation stays to be looked at.
    "use_after_free",
)
# A machine that is busy answers 503 with Retry-After while its queue is full, as it should.
_CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
FILE = Path(__file__).parents[2] / "docs/openapi.json"


def test_the_document_that_is_checked_in_is_the_one_that_is_served() -> None:
    assert json.loads(FILE.read_text()) == openapi_document(), "run `make openapi`"


def test_each_endpoint_has_a_name_and_a_place_of_its_own() -> None:
    assert len({endpoint.name for endpoint in ENDPOINTS}) == len(ENDPOINTS)
    assert len({(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}) == len(ENDPOINTS)
    for endpoint in ENDPOINTS:
        named = {f"{{{one.name}}}" for one in endpoint.parameters if one.place == "path"}
        assert named == {part for part in endpoint.path.split("/") if part.startswith("{")}


def test_the_command_prints_it() -> None:
    arguments = [sys.executable, "-m", "layermanager.daemon"]
    printed = subprocess.run(arguments, capture_output=True, check=True).stdout
    assert printed == FILE.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_is_asked_the_answers_are_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests made up from the document, right ones and wrong ones, by schemathesis."""
    # Made up images name registries of the world, which the proxy keeps away.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    node = Node(tmp_path)
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION)
    with daemon(node.config, tmp_path, heartbeat=timedelta(seconds=0.05)) as served:
        served.done(served.client.put_desired([node.publish("one")]))
        with forwarded(served.config.socket) as port:
            ran = subprocess.run(
                [
                    str(Path(sys.executable).with_name("schemathesis")),
                    *("--config-file", str(configuration), "run"),
                    *(f"http://127.0.0.1:{port}/v1/openapi.json", "--checks", "all"),
                    *("--exclude-checks", ",".join(_NOT_CHECKED)),
                    *("--exclude-path", "/v1/events"),  # which has no end to wait for
                    *("--exclude-path", "/v1/mounts"),  # of which this machine shall have none
                    *("--max-examples", "60", "--seed", "1", "--request-timeout", "10"),
                    "--no-color",
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
            )
        assert ran.returncode == 0, ran.stdout[-8000:]
        assert served.client.is_ready()
