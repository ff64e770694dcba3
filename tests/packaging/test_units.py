"""The systemd units, as systemd reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = ("layermanager.service", "layermanager.socket")


def settings(unit: str) -> dict[str, str]:
    """What a unit sets, by name."""
    text = (PACKAGING / unit).read_text().replace("\\\n", "")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_systemd_understands_the_units(tmp_path: Path, needs_systemd_analyze: None) -> None:  # noqa: ARG001
    # With programs that exist here: the package's are not installed.
    for unit in UNITS:
        text = (PACKAGING / unit).read_text().replace("/usr/bin/layermanager", "/bin/true")
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / unit for unit in UNITS)],
        check=False,
        capture_output=True,
        text=True,
    )
    # It also complains of other units of this machine.
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line] == []


def test_the_service_has_no_mount_namespace_of_its_own() -> None:
    """What the daemon mounts must be seen by the containers of the node."""
    gives_one = re.compile(
        r"PrivateMounts|PrivateTmp|PrivateDevices|PrivateIPC|PrivateUsers|Protect(?!Clock|Hostname)\w+"
        r"|\w+Paths|TemporaryFileSystem|Root\w+|DynamicUser|MountFlags|MountAPIVFS|Bind\w+"
        r"|LogNamespace|StateDirectoryMode|ExtensionImages|LoadCredential\w*"
    )
    found = [name for name in settings("layermanager.service") if gives_one.fullmatch(name)]
    assert found == []


@pytest.mark.parametrize(
    "name",
    ["NoNewPrivileges", "MemoryDenyWriteExecute", "LockPersonality", "RestrictRealtime"],
)
def test_what_the_service_gives_up(name: str) -> None:
    assert settings("layermanager.service")[name] == "yes"


def test_the_socket_is_where_the_daemon_and_its_clients_look_for_it() -> None:
    pytest.importorskip("h11", reason="the extra daemon is not installed")
    from layermanager.daemon.config import DaemonConfig  # noqa: PLC0415 - as above

    assert settings("layermanager.socket")["ListenStream"] == str(DaemonConfig().socket)


def test_the_packaged_configuration_is_one() -> None:
    pytest.importorskip("h11", reason="the extra daemon is not installed")
    from layermanager.config import DEFAULT_WORKING_DIR, load_config  # noqa: PLC0415 - as above
    from layermanager.daemon.config import load_daemon_config  # noqa: PLC0415 - as above

    path = PACKAGING / "config.json"
    assert load_config(path).working_dir == DEFAULT_WORKING_DIR
    assert load_daemon_config(path).log_format == "journald"


def test_the_scripts_are_shell() -> None:
    scripts = sorted((PACKAGING / "debian").glob("p*"))
    assert [path.name for path in scripts] == ["postinst", "postrm", "prerm"]
    for path in scripts:
        subprocess.run([shutil.which("sh") or "sh", "-n", path], check=True)
