"""A headless Chromium, driven by the WebDriver protocol (W3C) with the standard library."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 60.0
_ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


@dataclass(frozen=True)
class Browser:
    """One window."""

    port: int
    session: str

    def open(self, url: str) -> None:
        self._post("url", {"url": url})

    def run(self, script: str) -> Any:
        """What a function with the body *script* returns in the page."""
        return self._post("execute/sync", {"script": script, "args": []})

    def wait_for(self, condition: str) -> None:
        """Wait until *condition*, an expression, is true in the page."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, f"never true: {condition}"

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.tell("Emulation.setDeviceMetricsOverride", metrics)

    def tell(self, command: str, parameters: dict[str, Any]) -> None:
        """Give a command of Chromium's own protocol."""
        self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """What the page's console has: errors, and what the policy forbade."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        return base64.b64decode(call(self.port, "GET", f"/session/{self.session}/screenshot"))

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        return call(self.port, "POST", f"/session/{self.session}/{command}", body)


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    with closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        value = json.loads(answer.read())["value"]
    assert answer.status == 200, value
    return value


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for the time of the context."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        try:
            _wait_until_it_listens(port)
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": {"args": list(_ARGUMENTS)},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            created = call(
                port, "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
            )
            window = Browser(port, created["sessionId"])
            yield window
            call(port, "DELETE", f"/session/{window.session}")
        finally:
            driver.terminate()


def _wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call(port, "GET", "/status")
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
        else:
            return
