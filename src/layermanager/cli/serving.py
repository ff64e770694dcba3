"""The command that runs the daemon: ``serve``."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from layermanager.boundary import Boundary
from layermanager.cli.settings import Settings, json_option, log_as
from layermanager.cli.signals import Signals
from layermanager.errors import ConfigError, ExhaustedError, UnexpectedError

# The daemon, and h11, are imported when it is to run.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layermanager.config import Config
    from layermanager.daemon.config import DaemonConfig
    from layermanager.daemon.listening import Places
    from layermanager.daemon.server import Listener
    from layermanager.daemon.service import Service
    from layermanager.daemon.supervision import Supervisor

_LOGGER: Final = logging.getLogger(__name__)

_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SECONDS_BETWEEN_LOOKS: Final = 10.0
_SECONDS_WHILE_STARTING: Final = 0.1


@click.command("serve")
@click.option(
    "--socket",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The Unix socket to listen at.  [default: the configuration's, or"
    " /run/layermanager/api.sock]",
)
@json_option
@click.pass_obj
def serve(settings: Settings, socket: Path | None) -> None:
    """Run the daemon: this library over HTTP, until it is told to end.

    The API is at a Unix socket, and by TLS where the configuration says so; a status page is at /,
    metrics are at /v1/metrics. SIGHUP has it take over a changed configuration. Under systemd it
    takes the sockets of a socket unit, and tells when it is ready, and that it lives.
    """
    try:
        import h11  # noqa: F401 - to say what is missing before anything is begun
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the daemon needs {error.name}: pip install 'layermanager[daemon]'"
        ) from error
    from layermanager.daemon.listening import Places
    from layermanager.daemon.supervision import Supervisor, handed_over_sockets

    supervisor = Supervisor.of_environment(os.environ)
    with (
        Places(handed_over_sockets(os.environ)) as places,
        Signals((*_ENDING_SIGNALS, signal.SIGHUP)) as signals,
    ):
        _Serving(settings, socket, supervisor, places, signals).until_it_ends()


@dataclass(frozen=True, slots=True)
class _Setup:
    """What the configuration says, and what comes of it."""

    store: Config
    daemon: DaemonConfig
    listeners: Sequence[Listener]


@dataclass(frozen=True, slots=True)
class _Serving:
    """The daemon, with one configuration after the other."""

    settings: Settings
    socket: Path | None
    supervisor: Supervisor
    places: Places
    signals: Signals

    def until_it_ends(self) -> None:
        """Serve until a signal ends it.

        Raises:
            ConfigError: the configuration that it begins with cannot be used.
        """
        from layermanager.daemon.service import running

        setup: _Setup | None = self._new_setup()
        while setup is not None:
            if self.settings.log_format is None:
                log_as(setup.daemon.log_format, self.settings.log)
            with running(setup.store, setup.daemon, setup.listeners) as service:
                setup = self._next_setup(service)

    def _new_setup(self) -> _Setup:
        from layermanager.daemon.config import load_daemon_config

        store = self.settings.config
        daemon = load_daemon_config(self.settings.config_file)
        if self.socket is not None:
            daemon = replace(daemon, socket=self.socket)
        return _Setup(store, daemon, self.places.listeners(daemon))

    def _next_setup(self, service: Service) -> _Setup | None:
        """What to go on with, when a changed configuration is to be taken over; None at the end."""
        while self._heard(service) == signal.SIGHUP:
            self.supervisor.reloading()
            try:
                with service.node.guard.failing(Boundary.OPERATION, "a new configuration"):
                    return self._new_setup()
            except (ConfigError, UnexpectedError, ExhaustedError) as error:
                # The daemon goes on, so that a better one can be given to it.
                _LOGGER.error("the configuration is not taken over: %s", error)  # noqa: TRY400 - no bug
        self.supervisor.stopping()
        self.signals.end_at_the_next(_ENDING_SIGNALS)
        return None

    def _heard(self, service: Service) -> signal.Signals:
        """The signal that comes next; meanwhile the service manager hears how it goes."""
        watchdog = self.supervisor.watchdog
        seconds = _SECONDS_BETWEEN_LOOKS if watchdog is None else watchdog.total_seconds() / 3
        is_known_to_be_ready = False
        while True:
            if not service.node.is_ready:
                self.supervisor.starting(service.status)
            elif not is_known_to_be_ready:
                is_known_to_be_ready = self.supervisor.ready(service.status)
            elif service.is_alive:
                self.supervisor.alive(service.status)
            heard = self.signals.wait(seconds if is_known_to_be_ready else _SECONDS_WHILE_STARTING)
            for number in (*_ENDING_SIGNALS, signal.SIGHUP):
                if number in heard:
                    return number
