"""Between Aos's service manager and layermanager: desired layers in, unit status out.

    python examples/aos/adapter.py /etc/aos/aos_servicemanager.cfg < desired-layers.json

Standard input is the array of desired layers as Aos sends it. On standard output is a line each
time that the status of a layer changes, an array with all layers as Aos's unit status has them. The
exit status is 1 if a layer could not be installed.

An orchestrator that embeds the library does the same with a ``report`` of its own.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import (
    LayerManager,
    LayersFailedError,
    Phase,
    load_config,
    read_desired,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layermanager import Config, DesiredLayer, LayerManagerError, LayerProgress

    Report = Callable[[Sequence[dict[str, object]]], None]


_STATUS: Final = {
    Phase.PENDING: "pending",
    Phase.INSTALLING: "downloading",
    Phase.COMMITTING: "installing",
    Phase.INSTALLED: "installed",
    Phase.FAILED: "error",
}


class UnitStatus:
    """The status of each desired layer, in Aos's words; reports all of them when one changes.

    Args:
        layers: the desired layers.
        report: is told, from any thread, by one at a time.
    """

    def __init__(self, layers: Sequence[DesiredLayer], report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._status: dict[str, dict[str, object]] = {
            layer.digest: {
                "layerId": layer.layer_id,
                "digest": layer.digest,
                "version": layer.version,
                "status": "pending",
            }
            for layer in layers
        }

    def begin(self) -> None:
        """Report that all are pending."""
        with self._lock:
            self._tell()

    def note(self, progress: LayerProgress) -> None:
        """Take over how far a layer is."""
        status = _STATUS[progress.phase]
        if progress.phase is Phase.INSTALLING and progress.transferred == progress.size:
            status = "installing"  # it was unpacked while it arrived, and is as good as there
        self.set(progress.desired.digest, status, progress.error)

    def set(self, digest: str, status: str, error: LayerManagerError | None = None) -> None:
        """Note the status of a layer, and report if it is another one."""
        with self._lock:
            entry = self._status[digest]
            if entry["status"] == status:
                return
            entry["status"] = status
            if error is not None:
                entry["errorInfo"] = {
                    "aosCode": 0,
                    "exitCode": error.exit_code,
                    "message": str(error),
                }
            self._tell()

    def _tell(self) -> None:
        self._report([dict(entry) for entry in self._status.values()])


def make_desired(config: Config, layers: Sequence[DesiredLayer], report: Report) -> bool:
    """Make the layers of the node be these; whether all of them are installed then."""
    status = UnitStatus(layers, report)
    status.begin()
    with LayerManager(config, on_progress=status.note) as manager:
        try:
            result = manager.process_desired_layers(layers)
        except LayersFailedError as error:
            result = error.result
    for failed in result.failed:
        status.set(failed.desired.digest, "error", failed.error)
    for layer in (*result.kept, *result.restored, *result.installed):
        status.set(layer.digest, "installed")
    return not result.failed


def main() -> int:
    """Do it once, for what standard input desires."""
    layers = read_desired(sys.stdin.buffer.read(), "standard input")
    return 0 if make_desired(load_config(Path(sys.argv[1])), layers, print_line) else 1


def print_line(status: Sequence[dict[str, object]]) -> None:
    """Report on standard output."""
    print(json.dumps(status), flush=True)


if __name__ == "__main__":
    sys.exit(main())
