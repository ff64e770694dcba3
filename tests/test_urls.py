from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.urls import redacted, shown, without_credentials

SECRET = "hunter2"  # noqa: S105 - nobody's


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET http://u:hunter2@h/a?sig=hunter2 failed", "GET http://h/a?… failed"),
        ("(url=https://h:1/a?b=c&sig=hunter2): broken", "(url=https://h:1/a?… broken"),
        (
            "Max retries exceeded with url: /x?sig=hunter2 (Caused by NewConnectionError)",
            "Max retries exceeded with url: /x?… (Caused by NewConnectionError)",
        ),
        (
            'http://h:80 "GET /a?sig=hunter2 HTTP/1.1" 200 2',
            'http://h:80 "GET /a?… HTTP/1.1" 200 2',
        ),
        ("to ?sig=hunter2", "to ?…"),
        ("twice //a:b@c:hunter2@h/ //x:hunter2@i/", "twice //h/ //i/"),
        ("{'Authorization': 'Basic aHVudGVyMg==', 'A': 'b'}", "{'Authorization': '…', 'A': 'b'}"),
        ("Authorization: AWS4 Credential=hunter2, x\r\nHost: h", "Authorization: …\r\nHost: h"),
        ("proxy-authorization=Basic hunter2", "proxy-authorization=…"),
        (
            r"b'GET / HTTP/1.1\r\nAuthorization: Bearer hunter2\r\n'",
            r"b'GET / HTTP/1.1\r\nAuthorization: …'",
        ),
        ('"X-Amz-Security-Token": "hunter2"', '"X-Amz-Security-Token": "…"'),
        ("Set-Cookie: id=hunter2", "Set-Cookie: …"),
        ("sent Bearer hunter2.x-y_z== twice", "sent Bearer … twice"),
        (
            'Bearer realm="https://h/token",service="s"',
            'Bearer realm="https://h/token",service="s"',
        ),
        ("at https://h/cb#access_token=hunter2 now", "at https://h/cb#… now"),
        ("sent refresh_token=hunter2&scope=pull", "sent refresh_token=…&scope=pull"),
        ("{'token': 'hunter2', 'expires_in': 1}", "{'token': '…', 'expires_in': 1}"),
        ('{"access_token":"hunter2"}', '{"access_token":"…"}'),
        ("authorization refused for bearer hunter2", "authorization refused for bearer …"),
        ("the token: not found; basic rules", "the token: not found; basic rules"),
        ("issue #12 a=b", "issue #12 a=b"),
        ("who is it? what?", "who is it? what?"),
        ("really?!", "really?!"),
        ("docker://h/app@sha256:00", "docker://h/app@sha256:00"),
    ],
)
def test_text_is_shown_without_secrets(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert redacted(expected) == expected


words = st.text("abc?/@:'\"#%&=.-_ \t", max_size=20)
token = st.text("abc123-._~%", max_size=5).map(lambda text: SECRET + text)


@given(words, token, token, words)
def test_no_address_keeps_a_secret(before: str, user: str, sig: str, after: str) -> None:
    url = f"https://u:{user}@host.example/path?sig={sig}"
    assert SECRET not in redacted(f"{before} {url} {after}")
    assert SECRET not in redacted(f"{before}({url!r}){after}")


@given(st.text(st.characters()))
def test_any_text_can_be_redacted(text: str) -> None:
    redacted(text)


@given(st.sampled_from(["http://h/a", "/a", "//h"]), st.text("ab1=&", min_size=1))
def test_what_is_shown_is_redacted(base: str, query: str) -> None:
    assert shown(f"{base}#{query}") == f"{base}#…"
    assert shown(f"{base}?{query}#{query}") == f"{base}?…#…"
    text = shown(f"{base}?{query}")
    assert text == f"{base}?…"
    assert redacted(text) == text


def test_credentials_are_cut_from_what_is_no_url() -> None:
    assert without_credentials("http://u:p@[::1") == "http://[::1"
