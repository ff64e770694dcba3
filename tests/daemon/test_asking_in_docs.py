"""What ``docs/daemon.md`` shows of asking the daemon with curl is asked."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from daemon_fixtures import daemon

from layermanager.desired import desired_to_json
from manager_fixtures import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon_fixtures import Daemon

PAGE: Final = (Path(__file__).parents[2] / "docs/daemon.md").read_text()
REFUSED: Final = {
    "localhost/v1/desired-state/source": 404,  # nothing is followed
    "-X POST localhost/v1/desired-state/poll": 404,
}
ENDLESS: Final = "-N "
CURL_TIMED_OUT: Final = 28


def asked() -> list[str]:
    """The arguments of each ``ask`` on the page."""
    table = PAGE.partition("## Asking")[2].partition("In Python")[0]
    found = re.findall(r"`(?:ask |…)([^`]+)`", table)
    return [one if not one.startswith("/v1/") else f"localhost{one}" for one in found]


@dataclass
class Desk:
    """Where the commands are run.

    Attributes:
        served: the daemon.
        directory: the working directory.
        words: what stands for the page's words.
    """

    served: Daemon
    directory: Path
    words: dict[str, str]

    def ask(self, arguments: str) -> tuple[int, str]:
        """Ask as the page does; the HTTP status, and the answer."""
        for word, here in self.words.items():
            arguments = arguments.replace(word, here)
        alias = re.search(r"`alias ask='([^']*)'`", PAGE)
        assert alias is not None
        curl = alias[1].replace("/run/layermanager/api.sock", str(self.served.config.socket))
        if arguments.startswith(ENDLESS):
            curl += " --max-time 3"
        done = subprocess.run(
            ["sh", "-c", f"{curl} --write-out '\n%{{http_code}}' {arguments}"],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.directory,
        )
        assert done.returncode in {0, CURL_TIMED_OUT if arguments.startswith(ENDLESS) else 0}
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    node = Node(tmp_path)
    layers = [node.publish(name) for name in ("app", "base")]
    document = json.dumps([desired_to_json(layer) for layer in layers])
    (tmp_path / "desired.json").write_text(document)
    target = tmp_path / "mnt"
    target.mkdir()
    with daemon(node.config, tmp_path) as served:
        served.done(served.client.put_desired(layers))
        words = {"DIGEST": str(layers[0].digest), '"/mnt"': f'"{target}"'}
        yield Desk(served, tmp_path, words)


@pytest.mark.usefixtures("needs_overlay", "needs_programs_of_pages")
def test_each_is_answered(desk: Desk) -> None:
    shown = asked()
    assert len(shown) == 26
    for arguments in shown:
        status, body = desk.ask(arguments)
        expected = REFUSED.get(arguments)
        assert status == expected if expected else status < 300, (arguments, body)
        made = json.loads(body) if body.startswith("{") else {}
        if "leaseId" in made:
            desk.words["ID"] = made["leaseId"]
        elif "id" in made:
            desk.words["ID"] = made["id"]
            desk.served.client.wait(made["id"])
