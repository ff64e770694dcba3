"""The status page as people get it: in a browser, by a forwarded socket."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from browser import Browser, browser
from daemon_fixtures import daemon
from forwarding import forwarded

from layermanager.testing.layers import desired
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import MIB, Node, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_chromium")]

TEXT = "document.querySelector('main').innerText"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as window:
        yield window


def test_it_follows_what_happens_and_stays_small(tmp_path: Path, window: Browser) -> None:
    node = Node(tmp_path)
    blob = layer_tar("large", 8 * MIB)
    stall = Stall(threading.Event(), after=4 * MIB)
    with LayerServer() as server, daemon(node.config, tmp_path) as served:
        large = desired(blob, server.answer("/large", Answer(blob, stall=stall)), layer_id="large")
        evil = desired(b"", "http://127.0.0.1:1/", layer_id="<img src=x onerror=alert(1)>")
        with forwarded(served.config.socket) as port:
            window.open(f"http://127.0.0.1:{port}/")
            window.wait_for(f"{TEXT}.includes('No layers are desired')")
            operation = served.client.put_desired([large, evil])
            assert stall.reached.wait(30)
            window.wait_for("document.querySelector('progress[value]')?.position > 0.3")
            stall.until.set()
            served.client.wait(operation.id)
            window.wait_for(f"/large .*installed/.test({TEXT})")
            window.wait_for(f"{TEXT}.includes('<img src=x')")
            assert window.run("return document.images.length") == 0
            before = window.run("return document.querySelectorAll('*').length")
            for _ in range(200):
                served.node.events.publish("ready", {})
            window.wait_for(f"{TEXT}.split('daemon ready').length > 10")
            assert window.run("return document.querySelectorAll('*').length") < before + 60
            assert window.complaints() == []
            for width in (360, 1200):
                window.resize(width, 800)
                assert window.run("return document.documentElement.scrollWidth") <= width


def test_it_says_when_nobody_answers_and_comes_back(tmp_path: Path, window: Browser) -> None:
    node = Node(tmp_path)
    path = tmp_path / "api.sock"
    with daemon(node.config, tmp_path) as first:
        assert first.config.socket == path
        with forwarded(path) as port:
            window.open(f"http://127.0.0.1:{port}/")
            window.wait_for(f"{TEXT}.includes('No layers')")
        window.run("soon()")
        window.wait_for("document.body.classList.contains('offline')")
        with forwarded(path, port):
            window.run("soon()")
            window.wait_for("!document.body.classList.contains('offline')")


def test_nothing_else_may_run_in_it(tmp_path: Path, window: Browser) -> None:
    with (
        daemon(Node(tmp_path).config, tmp_path) as served,
        forwarded(served.config.socket) as port,
    ):
        window.open(f"http://127.0.0.1:{port}/")
        window.run(
            "const script = document.createElement('script');"
            "script.textContent = 'document.title = \"owned\"';"
            "document.body.append(script)"
        )
        assert window.run("return document.title") == "layermanager"
        assert any("Content Security Policy" in one for one in window.complaints())
