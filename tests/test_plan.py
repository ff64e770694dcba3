from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import (
    DesiredStateError,
    LayerNotExistError,
    ManifestError,
    UseError,
)
from layermanager.model import (
    DesiredImage,
    DesiredLayer,
    Digest,
    FailedImage,
    ImageInfo,
    LayerInfo,
    Resolution,
    ResolvedImage,
)
from layermanager.plan import (
    Plan,
    Renaming,
    expired,
    find_layers,
    oldest_to_free,
    plan,
    reconcile,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)


def digest_of(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def desired(number: int) -> DesiredLayer:
    return DesiredLayer(digest_of(number), f"file:///{number}", layer_id=f"layer-{number}")


def installed(
    number: int, *, cached: bool = False, timestamp: datetime = NOW, size: int = 1
) -> LayerInfo:
    return LayerInfo(
        digest=digest_of(number),
        layer_id=f"layer-{number}",
        version="",
        path=Path(f"/layers/{number}"),
        os_version="",
        timestamp=timestamp,
        cached=cached,
        size=size,
    )


def age(item: LayerInfo | ImageInfo) -> timedelta:
    return NOW - item.timestamp


numbers = st.integers(0, 12)
desired_lists = st.lists(numbers).map(lambda some: [desired(number) for number in some])
installed_lists = st.dictionaries(
    numbers, st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 100))
).map(
    lambda some: [
        installed(number, cached=cached, timestamp=NOW - days * DAY, size=size)
        for number, (cached, days, size) in some.items()
    ]
)


def test_each_layer_is_in_the_step_that_it_needs() -> None:
    steps = plan(
        [desired(1), desired(2), desired(5)],
        [installed(1), installed(2, cached=True), installed(3), installed(4, cached=True)],
    )
    assert list(steps.lines()) == [
        f"keep {digest_of(1)}",
        f"restore {digest_of(2)}",
        f"cache {digest_of(3)}",
        f"install {digest_of(5)} from file:///5",
    ]


def test_installed_layers_take_over_the_names_of_the_list() -> None:
    steps = plan(
        [
            replace(desired(1), layer_id="other", version="2"),
            replace(desired(2), version="2"),
            desired(3),
            replace(desired(4), layer_id=""),
            replace(desired(5), layer_id="", version="5"),
            replace(desired(6), layer_id="new"),
        ],
        [*map(installed, (1, 3, 4, 5)), installed(2, cached=True)],
    )
    assert list(steps.lines()) == [
        f"keep {digest_of(1)}",
        f"keep {digest_of(3)}",
        f"keep {digest_of(4)}",
        f"keep {digest_of(5)}",
        f"restore {digest_of(2)}",
        f"rename {digest_of(1)} to other 2",
        f"rename {digest_of(2)} to layer-2 2",
        f"rename {digest_of(5)} to layer-5 5",
        f"install {digest_of(6)} from file:///6",
    ]


def test_what_the_list_does_not_say_of_a_layer_stays() -> None:
    here = replace(installed(1), layer_id="here", version="1")
    names = {
        ("", ""): (),
        ("other", ""): (Renaming(here.digest, "other", "1"),),
        ("", "2"): (Renaming(here.digest, "here", "2"),),
        ("here", ""): (),
    }
    for (layer_id, version), expected in names.items():
        wanted = replace(desired(1), layer_id=layer_id, version=version)
        assert plan([wanted], [here]).rename == expected


def test_an_image_names_no_layer() -> None:
    image = Resolution((resolved("a", 1, 2),))
    assert plan([], [installed(1), installed(2)], image).rename == ()
    named = replace(desired(1), layer_id="other")
    assert plan([named], [installed(1), installed(2)], image).rename == (
        Renaming(digest_of(1), "other", ""),
    )


def test_nothing_desired_and_nothing_installed_is_nothing_to_do() -> None:
    assert plan([], []) == Plan((), (), (), ())


def test_what_is_desired_twice_in_the_same_words_is_installed_once() -> None:
    assert plan([desired(1), desired(2), desired(1)], []).install == (desired(1), desired(2))


def test_layers_are_installed_in_the_order_of_the_list() -> None:
    assert plan([desired(3), desired(1), desired(2)], []).install == (
        desired(3),
        desired(1),
        desired(2),
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(desired(1), url="file:///other"),
        replace(desired(1), layer_id="other"),
        replace(desired(1), version="2"),
        replace(desired(1), sha256=bytes(32)),
        replace(desired(1), size=7),
    ],
)
def test_a_contradiction_names_the_digest_even_when_it_is_installed(other: DesiredLayer) -> None:
    with pytest.raises(DesiredStateError, match=f"{digest_of(1)} is desired twice"):
        plan([desired(1), desired(2), other], [installed(1)])


@given(desired_lists, installed_lists)
def test_each_layer_is_in_exactly_one_step(
    wanted: list[DesiredLayer], here: list[LayerInfo]
) -> None:
    steps = plan(wanted, here)
    in_steps = [layer.digest for layer in (*steps.keep, *steps.restore, *steps.cache)]
    in_steps += [one.digest for one in steps.install]
    outside = {layer.digest for layer in here if layer.cached} - {one.digest for one in wanted}
    assert len(in_steps) == len(set(in_steps))
    assert (
        set(in_steps) == {one.digest for one in wanted} | {layer.digest for layer in here} - outside
    )
    assert all(not layer.cached for layer in (*steps.keep, *steps.cache))
    assert all(layer.cached for layer in steps.restore)


@given(desired_lists, installed_lists)
def test_when_a_plan_was_done_nothing_is_left_to_do(
    wanted: list[DesiredLayer], here: list[LayerInfo]
) -> None:
    steps = plan(wanted, here)
    after = {layer.digest: layer for layer in here}
    after |= {layer.digest: replace(layer, cached=False) for layer in steps.restore}
    after |= {layer.digest: replace(layer, cached=True) for layer in steps.cache}
    after |= {one.digest: installed(int(one.digest.encoded, 16)) for one in steps.install}
    again = plan(wanted, after.values())
    assert (again.restore, again.cache, again.install) == ((), (), ())
    assert {layer.digest for layer in again.keep} == {one.digest for one in wanted}


@given(st.lists(numbers, unique=True), st.lists(numbers))
def test_rows_and_directories_are_brought_together(rows: list[int], found: list[int]) -> None:
    result = reconcile(map(installed, rows), map(digest_of, found))
    assert [row.digest for row in result.complete] == [
        digest_of(number) for number in rows if number in found
    ]
    assert [row.digest for row in result.forget] == [
        digest_of(number) for number in rows if number not in found
    ]
    assert list(result.remove) == [digest_of(number) for number in sorted({*found} - {*rows})]


def test_what_is_as_old_as_its_time_to_live_is_expired_oldest_first() -> None:
    layers = [
        installed(1, cached=True, timestamp=NOW - 2 * DAY),
        installed(2, cached=True, timestamp=NOW - 2 * DAY + timedelta(microseconds=1)),
        installed(3, cached=True, timestamp=NOW - 3 * DAY),
        installed(4, timestamp=NOW - 9 * DAY),
        installed(5, cached=True, timestamp=NOW + 9 * DAY),
    ]
    assert expired(layers, age, 2 * DAY) == (layers[2], layers[0])


def test_no_time_to_live_expires_all_that_is_cached() -> None:
    assert expired([installed(1), installed(2, cached=True)], age, timedelta(0)) == (
        installed(2, cached=True),
    )


@pytest.mark.parametrize("year", [1, 9999])
def test_a_time_to_live_of_ages_is_over_never(year: int) -> None:
    layer = installed(1, cached=True, timestamp=datetime(year, 1, 1, tzinfo=UTC))
    assert expired([layer], age, timedelta.max) == ()


def test_as_many_of_the_oldest_as_are_needed_are_freed() -> None:
    layers = [
        installed(1, cached=True, timestamp=NOW, size=100),
        installed(2, cached=True, timestamp=NOW - 2 * DAY, size=10),
        installed(3, timestamp=NOW - 9 * DAY, size=1000),
        installed(4, cached=True, timestamp=NOW - DAY, size=10),
    ]
    assert oldest_to_free(layers, age, 0) == ()
    assert oldest_to_free(layers, age, 10) == (layers[1],)
    assert oldest_to_free(layers, age, 11) == (layers[1], layers[3])
    assert oldest_to_free(layers, age, 10**9) == (layers[1], layers[3], layers[0])


@given(installed_lists, st.integers(0, 500))
def test_what_is_freed_is_enough_and_none_of_it_too_much(
    layers: list[LayerInfo], size: int
) -> None:
    chosen = oldest_to_free(layers, age, size)
    left = [layer for layer in layers if layer.cached and layer not in chosen]
    freed = sum(layer.size for layer in chosen)
    assert all(layer.cached for layer in chosen)
    assert freed >= size or not left
    assert not chosen or freed - chosen[-1].size < size
    assert all(one.timestamp <= other.timestamp for one in chosen for other in left)


# Images


def image_layer(number: int) -> DesiredLayer:
    return DesiredLayer(
        digest_of(number), f"docker://registry:5000/app@{digest_of(number)}", diff_id=digest_of(900)
    )


def resolved(name: str, *layers: int) -> ResolvedImage:
    """An image whose digest says which layers it has."""
    return ResolvedImage(
        reference=f"registry:5000/{name}:1",
        digest=digest_of(1000 + sum(2**number for number in layers)),
        platform="linux/amd64",
        layers=tuple(map(image_layer, layers)),
        diff_ids=tuple(digest_of(900) for _ in layers),
        config_digest=digest_of(999),
        config=b"{}",
    )


def there(image: ResolvedImage, *, cached: bool = False, timestamp: datetime = NOW) -> ImageInfo:
    """*image* as an installed one."""
    return ImageInfo(
        reference=image.reference,
        digest=image.digest,
        platform=image.platform,
        layers=tuple(layer.digest for layer in image.layers),
        diff_ids=image.diff_ids,
        config_digest=image.config_digest,
        config=image.config,
        timestamp=timestamp,
        cached=cached,
    )


def key(image: ImageInfo | ResolvedImage) -> tuple[str, Digest]:
    return image.reference, image.digest


images = st.builds(
    lambda name, layers: resolved(name, *layers),
    st.sampled_from("abc"),
    st.lists(numbers, min_size=1, max_size=4),
)
resolutions = st.lists(images, max_size=4).map(lambda some: Resolution(tuple(some)))
installed_images = st.lists(
    st.builds(there, images, cached=st.booleans()),
    max_size=4,
    unique_by=key,
)


def test_each_image_is_in_the_step_that_it_needs() -> None:
    a, b, c, d, e = (resolved(name, number) for number, name in enumerate("abcde"))
    failed = FailedImage(DesiredImage("registry:5000/f:1"), ManifestError("no image"))
    steps = plan(
        [],
        [installed(0), installed(1, cached=True), installed(2)],
        Resolution((a, b, e), (failed,)),
        [there(a), there(b, cached=True), there(c), there(d, cached=True)],
    )
    assert list(steps.lines()) == [
        f"keep {digest_of(0)}",
        f"restore {digest_of(1)}",
        f"cache {digest_of(2)}",
        f"install {digest_of(4)} from docker://registry:5000/app@{digest_of(4)}",
        f"keep image registry:5000/a:1, linux/amd64, {a.digest}",
        f"restore image registry:5000/b:1, linux/amd64, {b.digest}",
        f"cache image registry:5000/c:1, linux/amd64, {c.digest}",
        f"install image registry:5000/e:1, linux/amd64, {e.digest}",
        "fail image registry:5000/f:1: no image",
    ]


def test_an_image_whose_tag_has_moved_is_another_one() -> None:
    old, new = resolved("a", 1), resolved("a", 2)
    steps = plan([], [installed(1)], Resolution((new,)), [there(old)])
    assert (steps.images.cache, steps.images.install) == ((there(old),), (new,))
    assert [layer.digest for layer in steps.cache] == [digest_of(1)]


def test_a_layer_that_is_wanted_by_several_is_installed_once_from_the_first() -> None:
    steps = plan([desired(2)], [], Resolution((resolved("a", 1, 2), resolved("b", 1, 3, 1))))
    assert steps.install == (
        replace(desired(2), diff_id=digest_of(900)),
        image_layer(1),
        image_layer(3),
    )
    assert steps.desired == steps.install


@given(desired_lists, installed_lists, resolutions, installed_images)
def test_a_layer_is_desired_as_long_as_anything_wants_it(
    wanted: list[DesiredLayer],
    here: list[LayerInfo],
    resolution: Resolution,
    here_images: list[ImageInfo],
) -> None:
    steps = plan(wanted, here, resolution, here_images)
    digests = {layer.digest for layer in wanted}
    digests |= {layer.digest for image in resolution.images for layer in image.layers}
    assert {layer.digest for layer in steps.desired} == digests
    here_after = {layer.digest for layer in (*steps.keep, *steps.restore)}
    assert here_after | {layer.digest for layer in steps.install} == digests
    assert not digests & {layer.digest for layer in steps.cache}


@given(resolutions, installed_images)
def test_each_image_is_in_exactly_one_step(resolution: Resolution, here: list[ImageInfo]) -> None:
    steps = plan([], [], resolution, here).images
    wanted = {*map(key, resolution.images)}
    in_steps = [*map(key, (*steps.keep, *steps.restore, *steps.cache))]
    in_steps += map(key, steps.install)
    outside = {key(image) for image in here if image.cached} - wanted
    assert len(in_steps) == len(set(in_steps))
    assert set(in_steps) == (wanted | {*map(key, here)}) - outside
    assert all(not image.cached for image in (*steps.keep, *steps.cache))
    assert all(image.cached for image in steps.restore)


@given(resolutions, installed_images)
def test_when_images_are_as_planned_nothing_is_left_to_do(
    resolution: Resolution, here: list[ImageInfo]
) -> None:
    steps = plan([], [], resolution, here).images
    after = {key(image): image for image in here}
    after |= {key(image): replace(image, cached=False) for image in steps.restore}
    after |= {key(image): replace(image, cached=True) for image in steps.cache}
    after |= {key(image): there(image) for image in steps.install}
    again = plan([], [], resolution, after.values()).images
    assert (again.restore, again.cache, again.install) == ((), (), ())


def test_images_expire_as_layers_do() -> None:
    old = there(resolved("a", 1), cached=True, timestamp=NOW - DAY)
    assert expired([old, there(resolved("b", 1), timestamp=NOW - DAY)], age, DAY) == (old,)


class TestFindLayers:
    def test_by_digest_and_by_name_in_that_order(self) -> None:
        here = [installed(1), installed(2, cached=True), installed(3)]
        assert find_layers(["layer-3", digest_of(2)], here) == (here[2], here[1])

    def test_one(self) -> None:
        assert find_layers("layer-1", [installed(1)]) == (installed(1),)

    def test_one_that_is_named_twice_is_taken_where_it_is_uppermost(self) -> None:
        here = [installed(1), installed(2)]
        assert find_layers(["layer-1", "layer-2", digest_of(1)], here) == tuple(here)

    def test_of_a_name_the_desired_one_counts(self) -> None:
        older = replace(installed(2, cached=True), layer_id="layer-1")
        assert find_layers("layer-1", [older, installed(1)]) == (installed(1),)
        assert find_layers("layer-1", [older]) == (older,)

    @pytest.mark.parametrize("cached", [True, False])
    def test_a_name_that_several_have(self, *, cached: bool) -> None:
        here = [replace(installed(number, cached=cached), layer_id="app") for number in (1, 2)]
        with pytest.raises(UseError, match=f"{digest_of(1)}, {digest_of(2)}"):
            find_layers("app", here)

    @pytest.mark.parametrize("reference", [digest_of(2), "layer-2", ""])
    def test_one_that_is_not_there(self, reference: str) -> None:
        with pytest.raises(
            LayerNotExistError, match=f"no layer and no image {reference} is installed"
        ):
            find_layers(["layer-1", reference], [installed(1)])

    def test_of_an_image_the_uppermost_comes_first(self) -> None:
        here = [installed(number) for number in (1, 2, 3)]
        image = there(resolved("app", 1, 2, 1, 3))
        assert find_layers("registry:5000/app:1", here, [image]) == (here[2], here[0], here[1])
        assert find_layers(["layer-2", "registry:5000/app:1"], here, [image])[0] == here[1]

    def test_of_the_images_of_a_name_the_desired_one_counts(self) -> None:
        here = [installed(1), installed(2), installed(3)]
        images = [
            there(resolved("app", 1), cached=True),
            there(resolved("app", 2), timestamp=NOW - DAY),
            there(resolved("app", 3), cached=True),
        ]
        assert find_layers("registry:5000/app:1", here, images) == (here[1],)

    def test_of_cached_images_of_a_name_the_one_that_was_cached_last_counts(self) -> None:
        here = [installed(1), installed(2)]
        images = [
            there(resolved("app", 1), cached=True, timestamp=NOW + 9 * DAY),
            there(resolved("app", 2), cached=True),
        ]
        ages = {images[0].digest: DAY, images[1].digest: timedelta(0)}
        name = "registry:5000/app:1"
        assert find_layers(name, here, images) == (here[0],)
        assert find_layers(name, here, images, lambda one: ages[one.digest]) == (here[1],)

    def test_a_layer_is_meant_before_an_image(self) -> None:
        layer = replace(installed(1), layer_id="registry:5000/app:1")
        image = there(resolved("app", 2))
        assert find_layers("registry:5000/app:1", [layer, installed(2)], [image]) == (layer,)

    def test_none(self) -> None:
        with pytest.raises(UseError, match="no layers"):
            find_layers([], [installed(1)])
