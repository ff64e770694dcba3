"""From an image's configuration to a runtime's: users, command, environment."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ImageError
from layermanager.oci.manifest import ImageConfig
from layermanager.oci.platform import Platform
from layermanager.oci.runtime import User, find_user, runtime_config

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
broken
too:x:few
app:x:1000:1001:App:/srv/app:/bin/false
homeless:x:1002:1002:::
huge:x:4294967295:0::/:
1003:x:5:5::/five:
"""
GROUP = b"""\
root:x:0:
app:x:1001:
audio:x:29:app,other
video:x:44:other,app
broken
"""
ROOT = User(0, 0)


class TestUser:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", User(0, 0, (), "/root")),
            ("root", User(0, 0, (), "/root")),
            ("0", User(0, 0, (), "/root")),
            ("app", User(1000, 1001, (29, 44), "/srv/app")),
            ("1000", User(1000, 1001, (29, 44), "/srv/app")),
            ("app:audio", User(1000, 29, (), "/srv/app")),
            ("app:7", User(1000, 7, (), "/srv/app")),
            ("4711", User(4711, 0, (), "/")),
            ("4711:4712", User(4711, 4712, (), "/")),
            ("homeless", User(1002, 1002, (), "/")),
            ("1003", User(5, 5, (), "/five")),
        ],
    )
    def test_by_name_and_number(self, text: str, expected: User) -> None:
        assert find_user(text, PASSWD, GROUP) == expected

    @pytest.mark.parametrize(
        "text", ["nobody", "huge", "-1", "4294967295", "app:nobody", ":x", "²"]
    )
    def test_one_that_is_not_there(self, text: str) -> None:
        with pytest.raises(ImageError, match=r"is not in its /etc/(passwd|group)"):
            find_user(text, PASSWD, GROUP)

    def test_without_the_files(self) -> None:
        assert find_user("", b"", b"") == ROOT
        with pytest.raises(ImageError, match="'app'"):
            find_user("app", b"", b"")

    @given(st.text(), st.binary(), st.binary())
    def test_any_files_and_any_name(self, text: str, passwd: bytes, group: bytes) -> None:
        try:
            user = find_user(text, passwd, group)
        except ImageError:
            return
        assert 0 <= user.user < 1 << 32
        assert 0 <= user.group < 1 << 32


def document(config: ImageConfig, user: User = ROOT, **arguments: Any) -> Any:
    return json.loads(runtime_config(config, user, hostname="app", **arguments))


def config(**members: Any) -> ImageConfig:
    return ImageConfig(**{"platform": None, "diff_ids": (), "arguments": ("sh",), **members})


class TestConfig:
    @pytest.mark.parametrize(
        ("entrypoint", "arguments", "given", "expected"),
        [
            ((), ("sh",), (), ["sh"]),
            (("sh",), ("-c", "true"), (), ["sh", "-c", "true"]),
            (("sh",), ("-c", "true"), ("-x",), ["sh", "-x"]),
            ((), ("sh",), ("echo", "1"), ["echo", "1"]),
        ],
    )
    def test_the_command(
        self,
        entrypoint: tuple[str, ...],
        arguments: tuple[str, ...],
        given: tuple[str, ...],
        expected: list[str],
    ) -> None:
        image = config(entrypoint=entrypoint, arguments=arguments)
        assert document(image, arguments=given)["process"]["args"] == expected

    def test_no_command(self) -> None:
        with pytest.raises(ImageError, match="no command"):
            document(config(arguments=()))

    def test_who_runs_it_and_where(self) -> None:
        image = config(working_directory="/srv", environment=("A=b=c", "PATH=/bin"))
        process = document(image, User(1, 2, (3, 4), "/home/one"))["process"]
        assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [3, 4]}
        assert process["cwd"] == "/srv"
        assert process["env"] == ["A=b=c", "PATH=/bin", "HOME=/home/one"]
        assert process["noNewPrivileges"] is True

    def test_what_the_image_does_not_say(self) -> None:
        process = document(config())["process"]
        assert process["cwd"] == "/"
        assert [variable.partition("=")[0] for variable in process["env"]] == ["PATH", "HOME"]

    def test_a_relative_directory_counts_from_the_root(self) -> None:
        assert document(config(working_directory="srv"))["process"]["cwd"] == "/srv"

    def test_what_it_says_besides(self) -> None:
        image = config(
            platform=Platform("linux", "arm64"),
            created="2026-01-01T00:00:00Z",
            stop_signal="SIGINT",
            exposed_ports=("53/udp", "80/tcp"),
            labels={"a": "b", "org.opencontainers.image.created": "earlier"},
        )
        assert document(image)["annotations"] == {
            "org.opencontainers.image.os": "linux",
            "org.opencontainers.image.architecture": "arm64",
            "org.opencontainers.image.created": "earlier",
            "org.opencontainers.image.stopSignal": "SIGINT",
            "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
            "a": "b",
        }

    @pytest.mark.parametrize("is_read_only", [True, False])
    def test_its_root(self, *, is_read_only: bool) -> None:
        found = document(config(), is_read_only=is_read_only)
        assert found["root"] == {"path": "rootfs", "readonly": is_read_only}
        assert found["hostname"] == "app"
