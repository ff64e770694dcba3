"""What terminals and logs get to see of text that others wrote: nothing that they would obey."""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, Finished

import layermanager
from layermanager.logs import formatter
from layermanager.testing.layers import LayerBuilder, digest_of
from raw_server import RawServer

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "\x1b]0;owned\x07\rERROR: forged\x9b2J"
NAME = f"{HOSTILE}\n\u202e\u2028naïve"
SECRET = "hunter2"  # noqa: S105 - nobody's


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path / "work", capsys)


@pytest.fixture
def layer() -> bytes:
    builder = LayerBuilder()
    builder.file(f"file {NAME}", b"text")
    return builder.tar()


def config_file(path: Path) -> Path:
    """Ask each address once."""
    path.write_text(json.dumps({"layerManager": {"network": {"attempts": 1}}}))
    return path


def desired(path: Path, data: bytes, url: str, name: str = NAME) -> Path:
    layers = [{"digest": str(digest_of(data)), "url": url, "layerId": name, "version": name}]
    path.write_text(json.dumps(layers))
    return path


def process(*arguments: str | Path, program: tuple[str, ...] = ("-m", "layermanager")) -> Finished:
    """Run the command as a process: in this one pytest has set up the log."""
    done = subprocess.run(
        [sys.executable, *program, *arguments], check=False, capture_output=True, text=True
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def assert_harmless(text: str) -> None:
    assert text.replace("\n", "").isprintable()
    assert not any(line.startswith("ERROR: forged") for line in text.splitlines())


def test_a_reason_phrase(command: CommandLine, tmp_path: Path, layer: bytes) -> None:
    answer = f"HTTP/1.1 404 {HOSTILE}\r\n\r\n".encode("latin-1")
    with RawServer(answer) as server:
        wanted = desired(tmp_path / "desired.json", layer, f"{server.url}/a")
        done = command("--config", config_file(tmp_path / "c"), "apply", wanted)
    assert done.status == 1
    assert r"404 \x1b]0;owned\x07\rERROR: forged\x9b2J" in done.err
    assert_harmless(done.out)
    assert_harmless(done.err)


def test_a_status_line_in_the_log(tmp_path: Path, layer: bytes) -> None:
    with RawServer(f"{HOSTILE} no HTTP at all\r\n\r\n".encode("latin-1")) as server:
        wanted = desired(tmp_path / "desired.json", layer, f"{server.url}/a")
        done = process(
            *("--work-dir", tmp_path / "work", "--config", config_file(tmp_path / "c")),
            *("--log-level", "debug", "apply", wanted),
        )
    assert done.status == 1
    assert_harmless(done.err)
    assert "DEBUG: " in done.err


def test_names_of_layers_and_files(command: CommandLine, tmp_path: Path, layer: bytes) -> None:
    (tmp_path / "layer.tar").write_bytes(layer)
    wanted = desired(tmp_path / "desired.json", layer, f"file://{tmp_path}/layer.tar")
    digest = str(digest_of(layer))
    runs = [
        command("apply", "--dry-run", wanted),
        command("apply", wanted),
        command("ls"),
        command("show", digest),
        command("show", "--files", digest),
        command("df"),
        command("check"),
    ]
    (damaged,) = (tmp_path / "work" / "layers").rglob("file *")
    damaged.write_bytes(b"hostile")
    runs.append(command("check"))
    (tmp_path / "none.json").write_text("[]")
    runs += [command("apply", tmp_path / "none.json"), command("gc", "--ttl-days", "0")]
    for done in runs:
        assert_harmless(done.out)
        assert_harmless(done.err)
    shown = "".join(done.out + done.err for done in runs)
    assert r"\x1b]0;owned\x07\rERROR: forged\x9b2J\n\u202e\u2028naïve" in shown


def test_what_an_unpacker_says(command: CommandLine, tmp_path: Path) -> None:
    data = LayerBuilder().file(NAME).file(f"{NAME}/{NAME}").tar()
    (tmp_path / "layer.tar").write_bytes(data)
    done = command("apply", desired(tmp_path / "d.json", data, f"file://{tmp_path}/layer.tar", "a"))
    assert done.status == 1
    assert r"\x1b]0;owned\x07\rERROR: forged" in done.err
    assert_harmless(done.err)


def test_json_is_json_whatever_it_holds(command: CommandLine, tmp_path: Path, layer: bytes) -> None:
    (tmp_path / "layer.tar").write_bytes(layer)
    wanted = desired(tmp_path / "desired.json", layer, f"file://{tmp_path}/layer.tar")
    done = command("apply", "--json", wanted)
    assert done.out.isascii()
    assert done.document["installed"][0]["layerId"] == NAME


@pytest.mark.parametrize(
    "arguments", [("show", NAME), (NAME,), ("apply", f"/nowhere/{NAME}"), (f"--{NAME}",)]
)
def test_wrong_usage(command: CommandLine, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.status == 2
    assert_harmless(done.err)
    assert r"\x1b]0;owned\x07" in done.err


UNEXPECTED = f"""
    import threading
    from layermanager.cli import main
    from layermanager.cli.run import group

    def fail():
        raise RuntimeError({HOSTILE!r} + " http://u:{SECRET}@host/?sig={SECRET}")

    def fail_twice():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        fail()

    group.commands["df"].callback = fail_twice
    main()
"""


def test_an_unexpected_error() -> None:
    done = process("df", program=("-c", textwrap.dedent(UNEXPECTED)))
    assert done.status == 1
    assert_harmless(done.err)
    began = "CRITICAL: unexpected error: report this as a bug\n  Traceback"
    assert done.err.startswith(began)
    assert done.err.count(began) == 2
    assert done.err.count("\n  RuntimeError: ") == 2
    assert SECRET not in done.err


# --- secrets in the logs of libraries ------------------------------------------------------------

MALFORMED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n no name: x\r\nbroken line\r\n\r\nhi"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "answers",
    [
        (MALFORMED,),
        (f"HTTP/1.1 302 Found\r\nLocation: /b?sig={SECRET}\r\n\r\n".encode(), MALFORMED),
        (f"HTTP/1.1 302 Found\r\nLocation: //u:{SECRET}@[::1/?{SECRET}\r\n\r\n".encode(),),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"no HTTP\r\n\r\n",),
        (b"",),
    ],
    ids=["header", "redirect", "no address", "chunk", "status line", "nothing"],
)
def test_an_address_is_logged_without_its_secrets(
    tmp_path: Path, layer: bytes, answers: tuple[bytes, ...], log_format: str
) -> None:
    with RawServer(*answers) as server:
        url = f"{server.url}/a?sig={SECRET}".replace("//", f"//u:{SECRET}@")
        wanted = desired(tmp_path / "desired.json", layer, url)
        done = process(
            *("--work-dir", tmp_path / "work", "--config", config_file(tmp_path / "c")),
            *("--log-level", "debug", "--log-format", log_format, "apply", wanted),
        )
        assert SECRET.encode() in server.requests[0]
    assert done.status == 1
    assert SECRET not in done.out + done.err
    if answers[-1] == MALFORMED:
        assert "Failed to parse headers (url=" in done.err
    assert "/a?" in done.err


def loggers_of_libraries() -> dict[str, logging.Logger]:
    """The loggers of all that this package loads."""
    for module in pkgutil.walk_packages(layermanager.__path__, "layermanager."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = ("layermanager", "hypothesis", "pytest", "_pytest", "xdist", "execnet")
    return {
        name: logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and not name.startswith(ours)
    }


def test_no_library_logs_past_the_handlers_of_the_command() -> None:
    loggers = loggers_of_libraries()
    assert {"urllib3.connectionpool", "urllib3.connection"} <= loggers.keys()
    for logger in loggers.values():
        handlers = [one for one in logger.handlers if not isinstance(one, logging.NullHandler)]
        assert not handlers
        assert logger.propagate
        record = logger.makeRecord(
            logger.name, logging.DEBUG, "f", 1, "%s?sig=%s", ("http://h/a", SECRET), None
        )
        assert formatter("text").format(record) == "DEBUG: http://h/a?…"
