"""Several layers at once over one link: connections, shares, cancellation, and what is told."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from layermanager.config import Network
from layermanager.errors import CancelledError, LayersFailedError, SourceError
from layermanager.testing.fault_server import FaultServer
from layermanager.testing.faults import Status
from layermanager.testing.layers import build_package, compress, desired
from layermanager.testing.web import Answer, LayerServer
from manager_fixtures import IMPATIENT, Node, Progress, layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.model import DesiredLayer

SECRET: Final = "hunter2"  # noqa: S105 - nobody's
SOON: Final = 20.0


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


def publish(server: LayerServer | FaultServer, name: str, size: int = 0) -> DesiredLayer:
    blob = compress(layer_tar(name, size), "gzip")
    package = build_package(blob)
    return desired(blob, server.add(f"/{name}", package), package=package, layer_id=name)


def test_twenty_layers_share_four_connections(tmp_path: Path, server: LayerServer) -> None:
    node = Node(tmp_path, parallel_installs=4)
    layers = [publish(server, str(number), 50_000) for number in range(20)]
    with node.manager() as manager:
        assert len(manager.process_desired_layers(layers).installed) == 20
    assert len(server.requests) == 20
    assert server.connections <= 4


def test_closing_ends_the_wait_for_the_next_try(tmp_path: Path) -> None:
    network = Network(retry_delay=timedelta(hours=1), longest_retry_delay=timedelta(hours=1))
    node = Node(tmp_path, network=network)
    waiting = threading.Event()

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "next try in" in record.getMessage():
                waiting.set()

    handler = Telling()
    logging.getLogger("layermanager.transfer.attempts").addHandler(handler)
    raised: list[BaseException] = []
    try:
        with FaultServer([Status(503)]) as server:
            manager = node.manager()
            layer = publish(server, "one")

            def install() -> None:
                try:
                    manager.process_desired_layers([layer])
                except CancelledError as error:
                    raised.append(error)

            thread = threading.Thread(target=install)
            thread.start()
            assert waiting.wait(SOON)
            manager.close()
            thread.join(SOON)
            assert not thread.is_alive()
    finally:
        logging.getLogger("layermanager.transfer.attempts").removeHandler(handler)
    assert [type(error) for error in raised] == [CancelledError]
    node.assert_has([])


def test_the_error_of_a_layer_tells_of_every_attempt(tmp_path: Path) -> None:
    node = Node(tmp_path, network=replace(IMPATIENT, attempts=3))
    with (
        FaultServer([Status(503), Status(502), Status(503)]) as server,
        node.manager() as manager,
        pytest.raises(LayersFailedError) as caught,
    ):
        manager.process_desired_layers([publish(server, "one")])
    (error,) = caught.value.exceptions
    assert isinstance(error, SourceError)
    assert [attempt.reason for attempt in error.attempts] == [
        "503 Service Unavailable",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ]


def test_no_secret_is_told_or_stored(
    tmp_path: Path, server: LayerServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "layermanager")
    node = Node(tmp_path)
    good = publish(server, "good")
    signed = f"?signature={SECRET}"
    path = good.url.removeprefix(server.url)
    server.answer(f"{path}{signed}", Answer(build_package(compress(layer_tar("good"), "gzip"))))
    busy = server.answer(f"/busy{signed}", Answer(status=503))
    bad = replace(
        desired(b"bad", busy.replace("//", f"//user:{SECRET}@"), layer_id="bad"),
        mirrors=(server.url.replace("//", f"//user:{SECRET}@") + f"/gone{signed}",),
    )
    good = replace(good, url=f"{good.url}{signed}".replace("//", f"//user:{SECRET}@"))
    progress = Progress()
    with node.manager(on_progress=progress) as manager:
        with pytest.raises(LayersFailedError) as caught:
            manager.process_desired_layers([good, bad])
        assert len(caught.value.result.installed) == 1
        assert SECRET not in str(caught.value.exceptions[0])
        assert manager.get_layers_info()[0].layer_id == "good"
    assert "503" in caplog.text
    assert SECRET not in caplog.text
    assert f"user:{SECRET}".encode() not in node.config.database.read_bytes()
