from __future__ import annotations

import os
from collections import Counter

import pytest

from hostile.cases import Case, Refusal
from hostile.corpus import CASES
from hostile.world import World, described
from layermanager.errors import LayerError

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_layer(case: Case, world: World) -> None:
    if case.needs_root and os.geteuid() != 0:
        pytest.skip("needs root: owners and devices as they are archived")
    with world.watched() as place:
        if isinstance(case.expected, Refusal):
            with pytest.raises(LayerError) as caught:
                world.unpack(case, place)
            assert type(caught.value) is case.expected.error
            assert case.expected.words in str(caught.value)
            return
        world.unpack(case, place)
        assert described(place) == dict(case.expected)
        for check in case.also:
            check(place)


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 150
