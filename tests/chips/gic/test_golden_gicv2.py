"""The GICv2's golden traces that concern the chips, played on the chips alone."""

import secrets
from random import Random

import pytest

from tests.chips.gic.player import mismatches, traces
from tests.chips.gic.player_v2 import PlayerV2

FAMILIES = ("v2-dist", "v2-cpuif", "v2-sgi", "v2-level", "v2-overflow", "v2-nested", "v2-state")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chips_answer_as_the_kernel(family: str) -> None:
    played = list(traces(family))
    assert len(played) == 36
    assert [difference for trace in played for difference in mismatches(trace, PlayerV2())] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_chips_moved_anywhere_answer_as_the_kernel(family: str) -> None:
    seed = secrets.randbits(32)
    rng = Random(seed)
    for trace in rng.sample(list(traces(family)), 12):
        moves = rng.sample(range(len(trace["ops"])), 5)
        assert list(mismatches(trace, PlayerV2(), moves)) == [], f"seed {seed}, moved before {moves}"
