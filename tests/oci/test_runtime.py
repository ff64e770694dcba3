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
    def test_a_line_ends_at_nothing_but_a_newline(self) -> None:
        """Or else a name would bring a line of its own."""
        passwd = "real:x:5:5:a\x85app:x:0:0::/:\x0capp:x:0:0::/:\u2028app:x:0:0::/:/:\n".encode()
        with pytest.raises(ImageError, match="'app'"):
            find_user("app", passwd, b"")

    def test_a_home_that_is_no_path(self) -> None:
        assert find_user("a", b"a:x:1:1::x:\n", b"").home == "/"
        assert find_user("a", b"a:x:1:1::/x\0:\n", b"").home == "/"

    def test_more_groups_than_a_process_can_have(self) -> None:
        group = b"".join(b"g:x:%d:app\n" % number for number in range(1, 65540))
        with pytest.raises(ImageError, match="is in 65539 groups: Linux has 65536"):
            find_user("app", b"app:x:1000:0:::\n", group)

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
    return json.loads(runtime_config(config, user, hostname="app", **arguments).document)


def notes(config: ImageConfig) -> tuple[str, ...]:
    return runtime_config(config, ROOT, hostname="app").notes


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
            labels={
                "org.label-schema.name": "b",
                "org.opencontainers.image.created": "earlier",
            },
        )
        assert document(image)["annotations"] == {
            "org.opencontainers.image.os": "linux",
            "org.opencontainers.image.architecture": "arm64",
            "org.opencontainers.image.created": "earlier",
            "org.opencontainers.image.stopSignal": "SIGINT",
            "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
            "org.label-schema.name": "b",
        }
        assert notes(image) == ()

    @pytest.mark.parametrize("is_read_only", [True, False])
    def test_its_root(self, *, is_read_only: bool) -> None:
        found = document(config(), is_read_only=is_read_only)
        assert found["root"] == {"path": "rootfs", "readonly": is_read_only}
        assert found["hostname"] == "app"


class TestHostile:
    """What an image says that is not to be believed, or that no kernel takes."""

    @pytest.mark.parametrize(
        "name",
        [
            "run.oci.handler",
            "run.oci.keep_original_groups",
            "org.systemd.property.ExecStart",
            "module.wasm.image/variant",
            "io.katacontainers.config.hypervisor.path",
            "io.podman.annotations.userns",
            "io.kubernetes.cri-o.Devices",
            "io.kubernetes.cri.container-type",
            "dev.gvisor.spec.mount.a.source",
            "dev.gvisor.flag.network",
            "cloud.google/x",
            "org.criu.config",
            "cdi.k8s.io/gpu",
            "nvidia.com/gpu",
            "bundle",
            "maintainer",
            "",
            "org.opencontainers.image.",
            "org.opencontainers.image.a/../run.oci.handler",
            "org.opencontainers.image.a=b",
            "org.opencontainers.imagerun.oci",
            "org.opencontainers.image.a\n",
            "ORG.opencontainers.image.title",
            "run.oci.\x1b[31m",
        ],
    )
    def test_a_label_that_may_steer_a_runtime(self, name: str) -> None:
        image = config(labels={name: "1", "org.opencontainers.image.title": "t"})
        assert document(image)["annotations"] == {"org.opencontainers.image.title": "t"}
        (note,) = notes(image)
        assert note == f"labels that may steer a runtime are no annotations: {name!a}"
        assert note.isprintable()

    def test_many_labels_are_one_short_note(self) -> None:
        image = config(labels={f"{number:03}" + "x" * 100_000: "" for number in range(100)})
        (note,) = notes(image)
        assert note.endswith(" and 90 more")
        assert len(note) < 1000

    @pytest.mark.parametrize(
        ("members", "name"),
        [
            ({"stop_signal": "SIGTERM; reboot"}, "stopSignal"),
            ({"stop_signal": "../x"}, "stopSignal"),
            ({"exposed_ports": ("80/tcp", "80 -j ACCEPT")}, "exposedPorts"),
            ({"labels": {"org.opencontainers.image.stopSignal": "-9 1"}}, "stopSignal"),
            ({"labels": {"org.opencontainers.image.title": "a\0b"}}, "title"),
            ({"created": "\ud800"}, "created"),
        ],
    )
    def test_a_value_that_it_cannot_have(self, members: dict[str, Any], name: str) -> None:
        image = config(**members)
        assert document(image)["annotations"] == {}
        (note,) = notes(image)
        assert note.startswith(f"annotations: org.opencontainers.image.{name} is left out")

    @pytest.mark.parametrize("signal", ["SIGTERM", "TERM", "15", "SIGRTMIN+3", "RTMAX-1"])
    def test_signals(self, signal: str) -> None:
        annotations = document(config(stop_signal=signal))["annotations"]
        assert annotations == {"org.opencontainers.image.stopSignal": signal}

    @pytest.mark.parametrize(
        ("directory", "expected"),
        [
            ("/", "/"),
            ("//a", "/a"),
            ("/a//b/.", "/a/b"),
            ("/a/../../../b/", "/b"),
            ("..", "/"),
            ("a/../b", "/b"),
            ("/proclaimed", "/proclaimed"),
        ],
    )
    def test_the_directory_is_in_normal_form(self, directory: str, expected: str) -> None:
        assert document(config(working_directory=directory))["process"]["cwd"] == expected

    @pytest.mark.parametrize(
        "directory",
        ["/proc/self/fd/7", "proc/self/fd/8/../..", "/a/../proc", "//proc", "/./proc/1/root"],
    )
    def test_a_directory_that_is_an_open_file_of_the_runtime(self, directory: str) -> None:
        with pytest.raises(ImageError, match="is in /proc"):
            document(config(working_directory=directory))

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"working_directory": "/a\0b"}, "working directory: .* zero byte"),
            ({"working_directory": "a" * 4095}, "longer than 4095 bytes"),
            ({"arguments": ("a", "b\0c")}, "arguments: .* zero byte"),
            ({"arguments": ("a", "\udc80")}, "arguments: .* no UTF-8"),
            ({"arguments": ("a", "b" * (128 * 1024))}, "arguments: 'b.* has 131072 bytes"),
            ({"arguments": ("a",) * (1 << 18)}, "take 2[0-9]{6} bytes, at most 2097152"),
            ({"entrypoint": ("",)}, "names no command"),
            ({"environment": ("A=b\0c",)}, "environment: .* zero byte"),
            ({"environment": ("A=" + "b" * (128 * 1024),)}, "environment: .* has 131074 bytes"),
        ],
    )
    def test_what_no_kernel_takes(self, members: dict[str, Any], message: str) -> None:
        with pytest.raises(ImageError, match=message) as caught:
            document(config(**members))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300

    def test_the_longest_string(self) -> None:
        arguments = ("a", "b" * (128 * 1024 - 1))
        assert document(config(arguments=arguments))["process"]["args"] == list(arguments)

    @pytest.mark.parametrize("variable", ["A", "", "=a", "A B=c", "A\n=b", "\x1b=c", "Ä=b"])
    def test_a_variable_without_a_name(self, variable: str) -> None:
        image = config(environment=(variable, "A=b", "com.example-x=1"))
        assert document(image)["process"]["env"][:2] == ["A=b", "com.example-x=1"]
        (note,) = notes(image)
        assert note == f"environment: {variable!a} is not NAME=value, and is left out"

    def test_of_variables_that_are_there_twice_the_last_counts(self) -> None:
        found = document(config(environment=("PATH=/a", "A=1", "PATH=/b")))["process"]["env"]
        assert found == ["PATH=/b", "A=1", "HOME=/"]

    def test_a_host_name_as_long_as_the_kernel_takes(self) -> None:
        made = runtime_config(config(), ROOT, hostname="a" * 255)
        assert json.loads(made.document)["hostname"] == "a" * 64

    @given(st.builds(ImageConfig, platform=st.none(), diff_ids=st.just(())))
    def test_anything(self, image: ImageConfig) -> None:
        try:
            made = runtime_config(image, ROOT, hostname="app", arguments=("sh",))
        except ImageError:
            return
        process = json.loads(made.document)["process"]
        assert process["cwd"].startswith("/")
        for text in (*process["args"], *process["env"]):
            assert b"\0" not in text.encode()
