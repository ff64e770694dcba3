from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from layermanager.config import load_config
from layermanager.daemon.config import DaemonConfig, TcpConfig, load_daemon_config
from layermanager.errors import ConfigError
from layermanager.oci.reference import RegistryReference
from layermanager.transfer.addresses import Backoff

TCP = {"address": "::", "port": 1, "certificate": "/c", "key": "/k", "tokenFile": "/t"}


def load(directory: Path, daemon: Any) -> DaemonConfig:
    path = directory / "config.json"
    path.write_text(json.dumps({"layerManager": {"daemon": daemon}}))
    load_config(path)  # which leaves it to the daemon
    return load_daemon_config(path)


def test_everything_has_a_default(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == load(tmp_path, None) == load_daemon_config(None) == DaemonConfig()
    assert DaemonConfig().socket_mode == 0o660
    assert DaemonConfig().tcp is None


def test_everything_is_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {
            "socket": "/s",
            "socketMode": "0600",
            "socketGroup": "g",
            "tcp": TCP,
            "maxConnections": 3,
            "maxEventReaders": 2,
            "maxBodyBytes": 4,
            "requestTimeoutSeconds": 5,
            "idleTimeoutSeconds": 6.5,
            "heartbeatSeconds": 7,
            "stopTimeoutSeconds": 8,
            "logFormat": "journald",
            "desiredState": {
                "source": "http://127.0.0.1/d",
                "pollSeconds": 9,
                "verifyCommand": ["v", "{document}"],
                "retryDelaySeconds": 10,
                "longestRetryDelaySeconds": 11,
            },
        },
    )
    state = config.desired_state
    assert (state.source, state.poll_period) == ("http://127.0.0.1/d", timedelta(seconds=9))
    assert (state.verify_command, state.wants_signature) == (("v", "{document}"), False)
    assert state.backoff == Backoff(timedelta(seconds=10), timedelta(seconds=11))
    assert (config.socket, config.socket_mode, config.socket_group) == (Path("/s"), 0o600, "g")
    assert config.tcp == TcpConfig(
        address="::", port=1, certificate=Path("/c"), key=Path("/k"), token_file=Path("/t")
    )
    assert (config.limits.connections, config.event_readers, config.limits.body_bytes) == (3, 2, 4)
    assert config.limits.request_timeout == timedelta(seconds=5)
    assert config.limits.idle_timeout == timedelta(seconds=6.5)
    assert config.heartbeat == timedelta(seconds=7)
    assert config.stop_timeout == timedelta(seconds=8)
    assert config.log_format == "journald"


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("", None),
        ("/etc/desired.json", Path("/etc/desired.json")),
        ("https://fleet.example/d?k=v", "https://fleet.example/d?k=v"),
        ("r.example:5000/a/b:stable", RegistryReference("r.example:5000", "a/b", "stable")),
    ],
)
def test_the_desired_state_comes_from_places_of_three_kinds(
    tmp_path: Path, source: str, place: object
) -> None:
    assert load(tmp_path, {"desiredState": {"source": source}}).desired_state.source == place


@pytest.mark.parametrize("missing", ["address", "certificate", "key", "tokenFile"])
def test_tcp_comes_never_without_tls_and_a_token(tmp_path: Path, missing: str) -> None:
    tcp = {name: value for name, value in TCP.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"layerManager\.daemon\.tcp\.{missing}"):
        load(tmp_path, {"tcp": tcp})


@pytest.mark.parametrize(
    ("daemon", "words"),
    [
        ({"sockets": "/s"}, r"daemon\.sockets: unknown key"),
        ({"tcp": {**TCP, "cert": ""}}, r"tcp\.cert: unknown key"),
        ({"tcp": {**TCP, "port": 65536}}, r"tcp\.port"),
        ({"socketMode": "888"}, r"socketMode: expected octal digits"),
        ({"socketMode": "7777"}, r"socketMode: expected octal digits"),
        ({"socketMode": 600}, r"socketMode: expected a text"),
        ({"maxConnections": 0}, r"maxConnections: must be at least 1"),
        ({"heartbeatSeconds": 0}, r"heartbeatSeconds: must be"),
        ({"logFormat": "xml"}, r"logFormat: must be text or json or journald"),
        ([], r"layerManager\.daemon: expected an object"),
        ({"desiredState": {"url": "/d"}}, r"desiredState\.url: unknown key"),
        ({"desiredState": {"source": "d.json"}}, r"desiredState\.source: .*a tag"),
        ({"desiredState": {"source": "oci:/d:t"}}, r"desiredState\.source: .*a tag"),
        ({"desiredState": {"source": f"r/d@sha256:{'0' * 64}"}}, r"source: .*a tag"),
        ({"desiredState": {"source": "https:///d"}}, r"source: names no host"),
        ({"desiredState": {"source": "https://[::1/d"}}, r"source: Invalid IPv6 URL"),
        ({"desiredState": {"source": "http://h/d"}}, r"source: .* take https"),
        ({"desiredState": {"source": "ftp://h/d"}}, r"source: expected an absolute path"),
        ({"desiredState": {"verifyCommand": ["true"]}}, r"verifyCommand: no argument has \{doc"),
        ({"desiredState": {"pollSeconds": 0}}, r"pollSeconds: must be"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, daemon: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, daemon)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_daemon_config(tmp_path / "nothing")
