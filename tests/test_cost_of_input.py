"""The cost of what others wrote grows at most linearly: steps are counted, not seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from counting import MOST_GROWTH, assert_linear, count_steps
from layermanager.daemon.desired_state import DesiredState
from layermanager.daemon.events import Events
from layermanager.daemon.schema import reference as schema_of
from layermanager.daemon.schema import violations
from layermanager.daemon.schemas import COMPONENTS
from layermanager.desired import read_desired_state
from layermanager.errors import DesiredStateError, LayerManagerError
from layermanager.header_numbers import read_delay
from layermanager.model import DesiredLayer, Digest, ImageInfo, LayerInfo, Resolution, ResolvedImage
from layermanager.oci.installed import InstalledImages
from layermanager.oci.manifest import (
    MAX_LAYERS,
    MAX_MANIFESTS,
    ImageIndex,
    read_index,
    read_manifest_or_index,
)
from layermanager.oci.platform import parse_platform
from layermanager.oci.reference import parse_reference
from layermanager.plan import find_layers, plan, reconcile
from layermanager.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager.oci.reference import Reference

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = parse_platform("linux/amd64")


def digest_of(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def layer(number: int) -> LayerInfo:
    return LayerInfo(
        digest_of(number), f"layer-{number}", "1", Path("/x"), "", NOW, cached=False, size=1
    )


def image(number: int, layers: int = 4) -> ImageInfo:
    digests = tuple(map(digest_of, range(layers)))
    return ImageInfo(
        reference=f"registry:5000/app-{number}:1",
        digest=digest_of(10**6 + number),
        platform="linux/amd64",
        layers=digests,
        diff_ids=digests,
        config_digest=digest_of(9),
        config=b"{}",
        timestamp=NOW,
        cached=False,
    )


def desired(number: int, **members: object) -> dict[str, object]:
    return {"digest": digest_of(number), "url": f"https://host/{number}", **members}


def descriptor(number: int, **members: object) -> dict[str, object]:
    return {"mediaType": "a/b", "digest": digest_of(number), "size": number, **members}


def read_wrong(document: bytes) -> None:
    with pytest.raises(DesiredStateError):
        read_desired_state(document, "it")


@pytest.mark.parametrize(
    "document",
    [
        lambda size: [desired(number, size=number) for number in range(size)],
        lambda size: [desired(number % 7) | {"url": "https://host"} for number in range(size)],
        lambda size: [desired(0, **{f"unknown{number}": number for number in range(size)})],
        lambda size: {"layers": [], "images": [{"ref": f"a:{number}"} for number in range(size)]},
    ],
)
def test_desired_states(document: Callable[[int], object]) -> None:
    def prepare(size: int) -> Callable[[], object]:
        text = json.dumps(document(size)).encode()
        return lambda: DesiredState.read(text, "it")

    assert_linear(prepare, 200)


@pytest.mark.parametrize(
    "document",
    [
        lambda size: [*(desired(number) for number in range(size)), {}],
        lambda size: {f"unknown{number}": number for number in range(size)},
        lambda size: [desired(0, mirrors=["https://m"] * (64 + size))],
        lambda size: [desired(0, mirrors=[*["https://m"] * (64 + size), ""])],
    ],
)
def test_desired_states_that_are_refused(document: Callable[[int], object]) -> None:
    def prepare(size: int) -> Callable[[], object]:
        text = json.dumps(document(size)).encode()
        return lambda: read_wrong(text)

    assert_linear(prepare, 200)


def test_a_body_that_is_wrong_at_every_place() -> None:
    def prepare(size: int) -> Callable[[], object]:
        body = [{"digest": 1, "url": ""}] * size
        return lambda: list(violations(body, schema_of("DesiredState"), COMPONENTS))

    assert_linear(prepare, 100)


def test_manifests() -> None:
    def prepare(size: int) -> Callable[[], object]:
        document = {
            "schemaVersion": 2,
            "config": descriptor(0),
            "layers": [descriptor(number) for number in range(size)],
        }
        text = json.dumps(document).encode()
        return lambda: read_manifest_or_index(text)

    assert_linear(prepare, MAX_LAYERS // 4)


def test_annotations() -> None:
    def prepare(size: int) -> Callable[[], object]:
        annotations = {f"key-{number}": "value" for number in range(size)}
        text = json.dumps({"manifests": [descriptor(0, annotations=annotations)]}).encode()
        return lambda: read_index(text)

    assert_linear(prepare, 200)


@pytest.mark.parametrize("architecture", ["amd64", "unknown-%d"])
def test_indexes(architecture: str) -> None:
    def choose(index: ImageIndex) -> None:
        with pytest.raises(LayerManagerError, match="there is no image for linux/amd64"):
            index.choose(HOST)

    def prepare(size: int) -> Callable[[], object]:
        document = {
            "manifests": [
                descriptor(
                    number,
                    platform={
                        "os": "linux",
                        "architecture": architecture.replace("%d", str(number)),
                        "variant": f"x{number}",
                    },
                )
                for number in range(size)
            ]
        }
        text = json.dumps(document).encode()
        return lambda: choose(read_index(text))

    assert_linear(prepare, MAX_MANIFESTS // 4)


def test_planning_many_layers_and_images() -> None:
    def prepare(size: int) -> Callable[[], object]:
        wanted = [DesiredLayer(digest_of(number), "https://host") for number in range(size)]
        here = [layer(number) for number in range(size // 2, 2 * size)]
        images = [
            ResolvedImage(
                f"app:{number}",
                digest_of(number),
                "linux/amd64",
                tuple(
                    DesiredLayer(digest_of(one), "https://host", diff_id=digest_of(1))
                    for one in range(number, number + 4)
                ),
                (),
                digest_of(0),
                b"{}",
            )
            for number in range(size)
        ]
        known = [image(number) for number in range(size)]
        return lambda: (
            plan(wanted, here, Resolution(tuple(images)), known),
            reconcile(here, map(digest_of, range(size))),
        )

    assert_linear(prepare, 200)


def test_finding_many_layers_and_images_by_name() -> None:
    def prepare(size: int) -> Callable[[], object]:
        here = [layer(number) for number in range(size)]
        images = [image(number) for number in range(size)]
        names = [
            *(f"layer-{number}" for number in range(size)),
            *(digest_of(number) for number in range(size)),
            *(one.reference for one in images),
        ]
        return lambda: find_layers(names, here, images)

    assert_linear(prepare, 100)


def test_finding_installed_images() -> None:
    def prepare(size: int) -> Callable[[], object]:
        images = [image(number) for number in range(size)]
        asked: list[Reference] = [parse_reference(one.reference) for one in images]

        def look() -> None:
            installed = InstalledImages(images)
            for reference in asked:
                assert installed.at_hand(reference, HOST) is not None

        return look

    assert_linear(prepare, 100)


@pytest.mark.parametrize("text", ["a" * 10**6, "a@" * 10**6, "oci:/" + "@" * 10**6, "a/" * 10**6])
def test_a_reference_has_a_bounded_length(text: str) -> None:
    with pytest.raises(LayerManagerError) as raised:
        parse_reference(text)
    assert len(str(raised.value)) < 1000


def test_events_cost_a_reader_what_it_has_not_seen() -> None:
    def prepare(size: int) -> Callable[[], object]:
        events = Events(FakeClock(), run="run", capacity=size)
        for _ in range(size):
            events.publish("kind", {})
        return lambda: [len(one.text) for one in events.wait(events.position_after("run-0"))[0]]

    assert_linear(prepare, 200)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1" * 19, "\u0661", ""])
def test_an_event_id_may_hold_anything(number: str) -> None:
    events = Events(FakeClock(), run="run")
    events.publish("kind", {})
    assert events.position_after(f"run-{number}").has_gap


@pytest.mark.parametrize("text", ["9", "Mon, ", "Mon, 01 Jan 9", " ", "0"])
def test_headers_cost_the_same_however_long_they_are(text: str) -> None:
    def steps(size: int) -> int:
        return count_steps(lambda: read_delay(text * size, NOW))

    assert steps(4000) <= MOST_GROWTH * steps(1000)


def test_a_layer_whose_size_is_beyond_the_database_is_refused() -> None:
    good = DesiredLayer(digest_of(1), "https://host", size=2**63 - 1)
    with pytest.raises(DesiredStateError, match="size must be at most 9223372036854775807"):
        replace(good, size=2**63)
