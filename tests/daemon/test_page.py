from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from layermanager.daemon import page
from layermanager.daemon.events import Event
from layermanager.daemon.following import FollowStatus
from layermanager.errors import DesiredStateError, StoreError
from layermanager.leases import Holder
from layermanager.model import DesiredLayer, Digest, ImageInfo, LayerInfo, StoreUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DIGESTS = [Digest(f"sha256:{digit * 64}") for digit in "abcd"]
EVIL = "<script>alert('\"&')</script>"


class _Page(HTMLParser):
    """The elements of a page, its text, and whether all that was opened is closed."""

    _VOID = frozenset({"meta", "link", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text += data + " "

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)


def layer(digest: Digest, name: str = "base", *, cached: bool = False) -> LayerInfo:
    return LayerInfo(
        digest, name, "1.0", Path("/x"), "", NOW - timedelta(hours=3), cached, 5 * 1024 * 1024
    )


def view(**changes: object) -> page.View:
    base = page.View(
        now=NOW,
        is_ready=True,
        source=None,
        desired=(),
        layers=(),
        images=(),
        holders={},
        usage=StoreUsage(Path("/layers"), 1000 * 1024, 500 * 1024, 0, 200 * 1024, 100 * 1024),
        time_to_live=timedelta(days=30),
        operations=(),
        events=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type] # any of them


def shown(**changes: object) -> _Page:
    return _Page(page.render(view(**changes)))


def operation(*layers: dict[str, object], **members: object) -> dict[str, object]:
    return {"id": "1", "kind": "apply", "state": "running", "layers": layers, **members}


def progress(phase: str, **members: object) -> dict[str, object]:
    base = {"layerId": "app", "version": "2", "digest": DIGESTS[0], "transferred": 512 * 1024}
    return {**base, "unpacked": 0, "phase": phase, **members}


def event(kind: str, data: Mapping[str, object]) -> Event:
    return Event(1, kind, NOW, data, text=b"")


def test_a_node_with_nothing() -> None:
    found = shown()
    assert "ready" in found.text
    assert "No layers are desired" in found.text
    assert "Nothing happened yet" in found.text


def test_where_the_desired_state_comes_from() -> None:
    status = FollowStatus("r.example/fleet:stable", last_poll=NOW - timedelta(minutes=3))
    found = shown(source=status)
    assert "Desired state looked at 3 min ago" in " ".join(found.text.split())
    assert "r.example/fleet:stable" in found.text
    refused = replace(status, error=DesiredStateError("<b>: no"), is_refused=True, last_change=NOW)
    found = shown(source=refused)
    assert "refused: <b>: no" in found.text
    assert not found.count("b")
    assert "cannot be had: off" in shown(source=replace(status, error=StoreError("off"))).text
    assert "not looked at yet" in shown(source=FollowStatus("x")).text


def test_what_is_there_and_what_shall_be() -> None:
    wanted = DesiredLayer(DIGESTS[2], "file:///c", "missing-one", "3", size=1024)
    found = shown(
        desired=[DesiredLayer(DIGESTS[0], "file:///a"), wanted, wanted],
        layers=[layer(DIGESTS[0]), layer(DIGESTS[1], "old", cached=True)],
    )
    rows = [
        attrs["class"]
        for tag, attrs in found.tags
        if tag == "span" and "pill" in (attrs.get("class") or "")
    ]
    assert rows[1:] == ["pill missing", "pill desired", "pill cached"]
    assert "3 h, 29 d left" in found.text
    assert "5.00 MiB" in found.text
    assert "sha256:aaaaaaaaaaaa" in found.text


def test_who_uses_a_layer_is_told() -> None:
    holders = {DIGESTS[0]: [Holder("lease 1 of <one>")] * 9}
    found = shown(layers=[layer(DIGESTS[0], cached=True), layer(DIGESTS[1])], holders=holders)
    assert found.text.count("in use by") == 1
    assert found.text.count("lease 1 of <one>") == 3


def test_images_are_listed() -> None:
    image = ImageInfo(
        EVIL, DIGESTS[0], "linux/arm64", (DIGESTS[1],), (), DIGESTS[2], b"", NOW, cached=False
    )
    found = shown(images=[image])
    assert EVIL in found.text
    assert "1 layer" in found.text
    assert shown(images=[image] * 5000).count("tr") == 201


def test_the_bar_adds_up() -> None:
    found = shown()
    bars = {str(attrs["class"]): attrs for tag, attrs in found.tags if tag == "rect"}
    assert {kind: attrs["width"] for kind, attrs in bars.items()} == {
        "desired": "20.000%",
        "cached": "10.000%",
        "held": "0.000%",
        "other": "20.000%",
        "free": "50.000%",
    }
    assert bars["free"]["x"] == "50.000%"


def test_a_limit_is_told() -> None:
    usage = replace(view().usage, limit=2 * 1024 * 1024)
    assert "2.00 MiB for layers" in shown(usage=usage).text


def test_a_running_operation_shows_how_far_it_is() -> None:
    found = shown(
        operations=[operation(progress("installing", size=1024 * 1024), progress("pending"))]
    )
    bar = next(attrs for tag, attrs in found.tags if tag == "progress")
    assert (bar["value"], bar["max"]) == (str(512 * 1024), str(1024 * 1024))
    assert "512 KiB of 1.00 MiB" in found.text
    assert "1 layer waiting" in found.text
    assert "working" in found.text


def test_a_layer_of_unknown_size_has_a_bar_without_end() -> None:
    found = shown(operations=[operation(progress("installing"))])
    assert "value" not in next(attrs for tag, attrs in found.tags if tag == "progress")


def test_what_failed_says_why() -> None:
    failed = progress("failed", error={"type": "SourceError", "message": "gone"})
    found = shown(
        desired=[DesiredLayer(DIGESTS[0], "file:///a", "app", "2")], operations=[operation(failed)]
    )
    assert "app 2: gone" in found.text


def test_a_check_and_a_wait() -> None:
    checking = operation(kind="check", check={"layer": 2, "layers": 5, "read": 1024})
    found = shown(operations=[checking, operation(waitsFor="process 7")], is_ready=False)
    assert "layer 2 of 5" in found.text
    assert "waits: process 7" in found.text
    assert "starting" in found.text


def test_events_are_told_in_words_and_steps_left_out() -> None:
    facts: list[tuple[str, dict[str, object]]] = [
        ("ready", {}),
        ("operation", {"kind": "apply", "state": "pending"}),
        ("operation", {"kind": "apply", "state": "failed", "error": {"message": "why"}}),
        ("progress", progress("installing")),
        ("progress", progress("installed")),
        ("removed", {**progress(""), "reason": "evicted", "size": 1024}),
    ]
    events = [event(kind, data) for kind, data in facts]
    found = shown(events=events)
    for words in (
        "daemon ready",
        "apply failed: why",
        "app 2 installed",
        "app 2 evicted, 1.00 KiB",
    ):
        assert words in found.text
    assert found.count("li") == 4


def test_it_stays_small_however_much_there_is() -> None:
    many = [layer(Digest(f"sha256:{number:064x}")) for number in range(5000)]
    events = [event("ready", {})] * 1000
    layers = [progress("installing", digest=str(number)) for number in range(1000)]
    found = shown(layers=many, events=events, operations=[operation(*layers)])
    assert found.count("tr") == 201
    assert "and 4800 more" in found.text
    assert found.count("li") == 15
    assert found.count("progress") == 20
    assert len(found.tags) < 2500


def test_style_and_script_are_those_that_the_policy_names() -> None:
    text = page.render(view())
    policy = page.HEADERS["Content-Security-Policy"]
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "style=" not in text
    assert not re.search(r"(src|href)=\"(?!data:,)", text)
    assert not re.search(r"\son\w+=", text)


@given(st.sampled_from([EVIL, "\x00", "a\nb", "ü", "&lt;"]) | st.text(max_size=20))
def test_whatever_a_name_is_it_is_only_text(name: str) -> None:
    plain = shown(
        desired=[DesiredLayer(DIGESTS[0], "x", "n", "n")],
        layers=[layer(DIGESTS[1], "n")],
        operations=[
            operation(progress("failed", layerId="n", error={"message": "n"}), waitsFor="n")
        ],
        events=[
            event("operation", {"kind": "apply", "state": "failed", "error": {"message": "n"}})
        ],
    )
    evil = shown(
        desired=[DesiredLayer(DIGESTS[0], "x", name, name)],
        layers=[layer(DIGESTS[1], name)],
        operations=[
            operation(
                progress("failed", layerId=name, error={"message": name}), waitsFor=name or "n"
            )
        ],
        events=[
            event("operation", {"kind": "apply", "state": "failed", "error": {"message": name}})
        ],
    )
    assert [tag for tag, _ in evil.tags if tag != "small"] == [
        tag for tag, _ in plain.tags if tag != "small"
    ]
    if name == EVIL:
        assert EVIL in evil.text


@given(st.text(st.characters(), max_size=20))
def test_nothing_but_text_is_sent(name: str) -> None:
    rendered = page.render(
        view(
            layers=[layer(DIGESTS[1], name)],
            operations=[
                operation(progress("failed", layerId=name, error={"message": f"404 {name}"}))
            ],
        )
    )
    rendered.encode()
    main = rendered.partition("<main>")[2].partition("</main>")[0]
    assert main.isprintable()
