from __future__ import annotations

import base64
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.cancellation import Cancellation
from layermanager.errors import CancelledError, ConfigError
from layermanager.oci.reference import parse_registry_reference
from layermanager.registry.logins import Login, Logins, auth_files
from layermanager.sources.credentials import Credentials, basic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Helper = Callable[[str, str], Path]

SECRET = "hunter2"  # noqa: S105 - nobody's


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def find(
    files: Sequence[Path],
    name: str,
    credentials: Credentials = Credentials(),  # noqa: B008 - a value
    cancellation: Cancellation | None = None,
) -> Login | None:
    reference = parse_registry_reference(name)
    base = f"https://{reference.registry}"
    return Logins(credentials, files).find(reference, base, cancellation or Cancellation())


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Makes a credential helper, which notes in the file that is returned what it is asked for."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def make(name: str, script: str) -> Path:
        asked = tmp_path / f"asked-{name}"
        path = programs / f"docker-credential-{name}"
        path.write_text(f'#!/bin/sh\necho "$@" $(cat) >>{asked}\n{script}\n')
        path.chmod(0o755)
        return asked

    return make


class TestFiles:
    def test_are_those_of_skopeo_in_its_order(self) -> None:
        environment = {"XDG_RUNTIME_DIR": "/run/user/7"}
        assert auth_files(environment, Path("/home/u"), 7) == (
            Path("/run/user/7/containers/auth.json"),
            Path("/home/u/.config/containers/auth.json"),
            Path("/home/u/.docker/config.json"),
        )

    def test_may_be_elsewhere(self) -> None:
        environment = {"XDG_CONFIG_HOME": "/config", "DOCKER_CONFIG": "/docker"}
        assert auth_files(environment, Path("/home/u"), 7) == (
            Path("/run/containers/7/auth.json"),
            Path("/config/containers/auth.json"),
            Path("/docker/config.json"),
        )

    def test_of_which_one_was_chosen_there_are_no_others(self) -> None:
        environment = {"REGISTRY_AUTH_FILE": "/chosen", "XDG_RUNTIME_DIR": "/run/user/7"}
        assert auth_files(environment, Path("/home/u"), 7) == (Path("/chosen"),)

    def test_the_first_with_a_login_counts(self, tmp_path: Path) -> None:
        first = write(tmp_path / "1", {"auths": {"other": auth("a:b")}})
        second = write(tmp_path / "2", {"auths": {"r.example": auth("u:second")}})
        third = write(tmp_path / "3", {"auths": {"r.example": auth("u:third")}})
        files = [tmp_path / "missing", first, second, third]
        assert find(files, "r.example/app") == Login(basic("u", "second"))

    def test_without_a_login_there_is_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "1", {"auths": {"other": auth("a:b"), "r.example": {}}})
        assert find([path], "r.example/app") is None

    def test_that_others_can_read_are_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "1", {"auths": {"r.example": auth(f"u:{SECRET}")}})
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="has the mode 0644: make it 0600"):
            find([path], "r.example/app")

    def test_without_secrets_may_be_read_by_others(self, tmp_path: Path) -> None:
        path = write(tmp_path / "1", {"auths": {"r.example": {}}})
        path.chmod(0o644)
        assert find([path], "r.example/app") is None

    def test_that_cannot_be_read_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"cannot read {tmp_path}: Is a directory"):
            find([tmp_path], "r.example/app")

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({"auths": {"r.example": {"auth": SECRET}}}, "r.example.auth: is no name and password"),
            ({"auths": {"r.example": auth(SECRET)}}, "r.example.auth: is no name and password"),
            ({"auths": {"r.example": [SECRET]}}, "auths.r.example: expected an object"),
            ({"credHelpers": {"r.example": "../sh"}}, "not the name of a credential helper"),
            ({"credsStore": "../sh"}, "not the name of a credential helper"),
        ],
    )
    def test_that_are_malformed_are_named_but_not_their_secrets(
        self, tmp_path: Path, document: object, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            find([write(tmp_path / "1", document)], "r.example/app")
        chain: BaseException | None = caught.value
        while chain is not None:
            assert SECRET not in str(chain)
            chain = chain.__cause__


class TestKeys:
    def test_the_most_specific_counts(self, tmp_path: Path) -> None:
        entries = {
            "r.example": auth("u:host"),
            "r.example/team": auth("u:team"),
            "r.example/team/app": auth("u:app"),
        }
        path = write(tmp_path / "1", {"auths": entries})
        found = {
            name: find([path], f"r.example/{name}")
            for name in ("team/app", "team/app2", "teams/app")
        }
        assert found == {
            "team/app": Login(basic("u", "app")),
            "team/app2": Login(basic("u", "team")),
            "teams/app": Login(basic("u", "host")),
        }

    @pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/"])
    def test_docker_hub_has_an_old_one(self, tmp_path: Path, key: str) -> None:
        path = write(tmp_path / "1", {"auths": {key: auth("u:hub")}})
        assert find([path], "debian") == Login(basic("u", "hub"))

    def test_old_ones_have_a_scheme(self, tmp_path: Path) -> None:
        path = write(tmp_path / "1", {"auths": {"https://r.example": auth("u:old")}})
        assert find([path], "r.example/app") == Login(basic("u", "old"))

    @pytest.mark.parametrize(
        "key",
        [
            *("https://r.example/", "https://r.example/v1/", "https://r.example/v2/"),
            *("https://r.example/v1", "https://r.example/v2", "http://r.example/v2/"),
            *("r.example/", "r.example/v1/", "r.example/v2/"),
        ],
    )
    def test_old_ones_may_have_the_path_of_an_interface(self, tmp_path: Path, key: str) -> None:
        path = write(tmp_path / "1", {"auths": {key: auth("u:old")}})
        assert find([path], "r.example/app") == Login(basic("u", "old"))
        assert find([path], "other.example/app") is None

    @pytest.mark.parametrize(
        "key",
        ["https://r.example/team/", "r.example/v2", "https://r.example.org/v2/", "//r.example"],
    )
    def test_other_paths_are_no_registries(self, tmp_path: Path, key: str) -> None:
        path = write(tmp_path / "1", {"auths": {key: auth("u:old")}})
        assert find([path], "r.example/app") is None

    @pytest.mark.parametrize(
        "key",
        ["index.docker.io", "https://registry-1.docker.io/v2/", "https://index.docker.io/v2/"],
    )
    def test_docker_hub_has_several_hosts(self, tmp_path: Path, key: str) -> None:
        path = write(tmp_path / "1", {"auths": {key: auth("u:hub")}})
        assert find([path], "debian") == Login(basic("u", "hub"))

    def test_the_repository_counts_more_than_an_old_one(self, tmp_path: Path) -> None:
        entries = {"https://r.example/v2/": auth("u:old"), "r.example/team": auth("u:team")}
        path = write(tmp_path / "1", {"auths": entries})
        assert find([path], "r.example/team/app") == Login(basic("u", "team"))

    @pytest.mark.parametrize("end", ["\n", "\r\n", "  ", " \n\t"])
    def test_base64_may_have_blanks(self, tmp_path: Path, end: str) -> None:
        encoded = auth("user:a long password")["auth"]
        entry = {"auth": f"{encoded[:8]}{end}{encoded[8:]}{end}"}
        path = write(tmp_path / "1", {"auths": {"r.example": entry}})
        assert find([path], "r.example/app") == Login(basic("user", "a long password"))

    def test_an_identity_token_counts_more_than_a_password(self, tmp_path: Path) -> None:
        entry = {**auth("u:p"), "identitytoken": SECRET}
        path = write(tmp_path / "1", {"auths": {"r.example": entry}})
        assert find([path], "r.example/app") == Login(identity_token=SECRET)

    @given(
        user=st.text(st.characters(codec="utf-8", exclude_characters=":\0"), min_size=1),
        password=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
    def test_names_and_passwords_may_be_anything(
        self, tmp_path_factory: pytest.TempPathFactory, user: str, password: str
    ) -> None:
        path = tmp_path_factory.mktemp("auth") / "1"
        write(path, {"auths": {"r.example": auth(f"{user}:{password}")}})
        assert find([path], "r.example/app") == Login(basic(user, password))


class TestCredentialsOfTheConfiguration:
    def own(self, path: Path, entry: Any) -> Credentials:
        return Credentials(write(path, {"r.example": entry}))

    def test_count_first(self, tmp_path: Path) -> None:
        own = self.own(tmp_path / "own", {"username": "own", "password": "p"})
        path = write(tmp_path / "1", {"auths": {"r.example": auth("u:other")}})
        assert find([path], "r.example/app", own) == Login(basic("own", "p"))

    def test_a_token_is_no_password(self, tmp_path: Path) -> None:
        own = self.own(tmp_path / "own", {"token": "abc"})
        assert find([], "r.example/app", own) is None


class TestHelpers:
    def test_know_names_and_passwords(self, tmp_path: Path, helper: Helper) -> None:
        answer = json.dumps({"ServerURL": "r", "Username": "u", "Secret": SECRET})
        asked = helper("one", f"echo '{answer}'")
        path = write(tmp_path / "1", {"credHelpers": {"r.example": "one"}})
        assert find([path], "r.example/app") == Login(basic("u", SECRET))
        assert asked.read_text() == "get r.example\n"

    def test_know_identity_tokens(self, tmp_path: Path, helper: Helper) -> None:
        helper("one", f"""echo '{{"Username": "<token>", "Secret": "{SECRET}"}}'""")
        path = write(tmp_path / "1", {"credHelpers": {"r.example": "one"}})
        assert find([path], "r.example/app") == Login(identity_token=SECRET)

    def test_of_all_registries_are_asked_last(self, tmp_path: Path, helper: Helper) -> None:
        asked = helper("all", """echo '{"Username": "u", "Secret": "p"}'""")
        document = {"credsStore": "all", "auths": {"r.example": auth("u:file"), "docker.io": {}}}
        path = write(tmp_path / "1", document)
        assert find([path], "r.example/app") == Login(basic("u", "file"))
        assert find([path], "debian") == Login(basic("u", "p"))
        assert asked.read_text() == "get https://index.docker.io/v1/\n"

    def test_may_know_nothing(self, tmp_path: Path, helper: Helper) -> None:
        helper("one", "echo credentials not found in native keychain; exit 1")
        path = write(tmp_path / "1", {"credHelpers": {"r.example": "one"}})
        assert find([path], "r.example/app") is None

    def test_may_be_filed_under_an_old_key(self, tmp_path: Path, helper: Helper) -> None:
        asked = helper("one", """echo '{"Username": "u", "Secret": "p"}'""")
        path = write(tmp_path / "1", {"credHelpers": {"https://r.example/v2/": "one"}})
        assert find([path], "r.example/app") == Login(basic("u", "p"))
        assert asked.read_text() == "get https://r.example/v2/\n"

    @pytest.mark.parametrize(
        "document", [{"credsStore": "gone"}, {"credHelpers": {"r.example": "gone"}}]
    )
    def test_that_are_not_installed_are_logged_once(
        self, tmp_path: Path, document: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        logins = Logins(Credentials(), [write(tmp_path / "1", document)])
        reference = parse_registry_reference("r.example/app")
        for _ in range(3):
            assert logins.find(reference, "https://r.example", Cancellation()) is None
        (message,) = caplog.messages
        assert message.startswith("credential helper docker-credential-gone is not installed")

    def test_that_are_not_installed_hide_no_other_login(self, tmp_path: Path) -> None:
        first = write(tmp_path / "1", {"credsStore": "gone"})
        entries = {"credHelpers": {"r.example/app": "gone"}, "auths": {"r.example": auth("u:p")}}
        second = write(tmp_path / "2", entries)
        assert find([first, second], "r.example/app") == Login(basic("u", "p"))

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            (f"echo {SECRET}; exit 3", "failed with the status 3"),
            (f"echo {SECRET}", "printed something else than a login"),
            ("echo '[]'", "printed something else than a login"),
            ("echo '{}'", "printed something else than a login"),
        ],
    )
    def test_that_fail_are_named_but_not_their_secrets(
        self, tmp_path: Path, helper: Helper, script: str, message: str
    ) -> None:
        helper("one", script)
        path = write(tmp_path / "1", {"credHelpers": {"r.example": "one"}})
        with pytest.raises(ConfigError, match=f"docker-credential-one {message}") as caught:
            find([path], "r.example/app")
        assert SECRET not in str(caught.value)

    def test_are_not_waited_for_when_all_is_cancelled(self, tmp_path: Path, helper: Helper) -> None:
        begun = tmp_path / "begun"
        os.mkfifo(begun)
        helper("one", f"echo yes >{begun}; sleep 1000")
        path = write(tmp_path / "1", {"credHelpers": {"r.example": "one"}})
        cancellation = Cancellation()

        def cancel() -> None:
            begun.read_text()
            cancellation.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(CancelledError):
            find([path], "r.example/app", cancellation=cancellation)
        thread.join()


def test_what_is_shown_of_a_login_is_nothing() -> None:
    assert SECRET not in repr(Login(basic("u", SECRET), SECRET))
