from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import ConfigError
from layermanager.sources.credentials import Credentials, bearer, from_userinfo

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2-and-more"  # noqa: S105 - nobody's


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def credentials(tmp_path: Path, hosts: object, mode: int = 0o600) -> Credentials:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps(hosts))
    path.chmod(mode)
    return Credentials(file=path)


def netrc_file(tmp_path: Path, text: str) -> Credentials:
    path = tmp_path / "netrc"
    path.write_text(text)
    path.chmod(0o600)
    return Credentials(netrc_file=path)


class TestFile:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://one.example/a", basic("u:p:q")),
            ("https://ONE.example:443/a", basic("u:p:q")),
            ("https://one.example:8443/a", "Bearer eyJ.abc_~+/="),
            ("https://two.example/a", None),
            ("https://sub.one.example/a", None),
            ("http://one.example/a", None),
            ("http://plain.example:80/a", basic("u:")),
        ],
    )
    def test_is_looked_up_by_host_and_port(
        self, tmp_path: Path, url: str, expected: str | None
    ) -> None:
        hosts = {
            "one.example": {"username": "u", "password": "p:q"},
            "one.example:8443": {"token": "eyJ.abc_~+/="},
            "http://plain.example": {"username": "u"},
        }
        assert credentials(tmp_path, hosts).authorization(url) == expected

    def test_is_read_again_when_it_has_changed(self, tmp_path: Path) -> None:
        known = credentials(tmp_path, {"a": {"token": "one"}})
        assert known.authorization("https://a/") == "Bearer one"
        credentials(tmp_path, {"a": {"token": "two"}})
        assert known.authorization("https://a/") == "Bearer two"

    @pytest.mark.parametrize("mode", [0o644, 0o620, 0o602, 0o604, 0o666])
    def test_that_others_can_use_is_refused(self, tmp_path: Path, mode: int) -> None:
        known = credentials(tmp_path, {}, mode)
        with pytest.raises(ConfigError, match=rf"credentials.json .* mode {mode:04o}: make it"):
            known.authorization("https://a/")

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
    def test_that_only_owner_and_group_can_read_is_used(self, tmp_path: Path, mode: int) -> None:
        known = credentials(tmp_path, {"a": {"token": "one"}}, mode)
        assert known.authorization("https://a/") == "Bearer one"

    def test_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"missing.json: No such file"):
            Credentials(file=tmp_path / "missing.json").authorization("https://a/")

    @pytest.mark.parametrize(
        "hosts",
        [
            [SECRET],
            {"a": SECRET},
            {"a": {"token": f"{SECRET}\r\nHost: b"}},
            {"a": {"token": f"{SECRET}\0"}},
            {"a": {"token": [SECRET]}},
            {"a": {"password": SECRET}},
            {"a": {"username": 5, "password": SECRET}},
            {"a": {"usrname": "u", "password": SECRET}},
        ],
    )
    def test_that_is_wrong_is_named_without_what_it_holds(
        self, tmp_path: Path, hosts: object
    ) -> None:
        with pytest.raises(ConfigError, match=r"credentials.json: ") as caught:
            credentials(tmp_path, hosts).authorization("https://a/")
        assert SECRET not in str(caught.value)

    def test_that_is_no_json_is_named_without_what_it_holds(self, tmp_path: Path) -> None:
        known = credentials(tmp_path, {})
        assert known.file is not None
        known.file.write_text(f'{{"a": {{"token": {SECRET}')
        with pytest.raises(ConfigError, match=r"credentials.json: not JSON") as caught:
            known.authorization("https://a/")
        assert SECRET not in str(caught.value)


class TestNetrc:
    def test_names_a_password_by_host_or_for_all(self, tmp_path: Path) -> None:
        known = netrc_file(tmp_path, "machine a login u password p\ndefault login d password q\n")
        assert known.authorization("https://a:8443/x") == basic("u:p")
        assert known.authorization("https://b/x") == basic("d:q")

    def test_is_for_tls_only(self, tmp_path: Path) -> None:
        known = netrc_file(tmp_path, "machine a login u password p\n")
        assert known.authorization("http://a/x") is None

    def test_names_nobody_else(self, tmp_path: Path) -> None:
        known = netrc_file(tmp_path, "machine a login u password p\n")
        assert known.authorization("https://b/x") is None

    def test_the_other_file_comes_first(self, tmp_path: Path) -> None:
        netrc = netrc_file(tmp_path, "machine a login u password p\n").netrc_file
        file = credentials(tmp_path, {"a": {"token": "one"}}).file
        assert Credentials(file, netrc).authorization("https://a/") == "Bearer one"
        assert Credentials(None, netrc).authorization("https://a/") == basic("u:p")

    def test_that_is_wrong_is_named_without_what_it_holds(self, tmp_path: Path) -> None:
        known = netrc_file(tmp_path, f"machine a\n{SECRET} b c\n")
        with pytest.raises(ConfigError, match=r"netrc: line [0-9]+ is not") as caught:
            known.authorization("https://a/")
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        known = netrc_file(tmp_path, "")
        assert known.netrc_file is not None
        known.netrc_file.chmod(0o644)
        with pytest.raises(ConfigError, match="mode 0644"):
            known.authorization("https://a/")


class TestUserinfo:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://u:p@host/a", basic("u:p")),
            ("https://u@host/a", basic("u:")),
            ("https://u%40x:p%3A%2F@host/a", basic("u@x:p:/")),
            ("https://host/a@b", None),
        ],
    )
    def test_of_an_address(self, url: str, expected: str | None) -> None:
        assert from_userinfo(url) == expected


@given(st.text())
def test_a_token_is_one_or_is_refused_unseen(token: str) -> None:
    try:
        value = bearer(token)
    except ConfigError as error:
        assert len(token) < 3 or token not in str(error)  # noqa: PT017 - both ends are right
        return
    assert value == f"Bearer {token}"
    assert value.isascii()
    assert value.isprintable()
