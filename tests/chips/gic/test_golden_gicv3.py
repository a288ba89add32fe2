"""The GICv3's golden traces that concern the chips, played on the chips alone."""

import secrets
from random import Random

import pytest

from tests.chips.gic.player import mismatches, traces
from tests.chips.gic.player_v3 import PlayerV3

FAMILIES = ("dist", "redist", "sysregs", "cpuif", "sgi", "level", "overflow", "nested", "state")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chips_answer_as_the_kernel(family: str) -> None:
    played = list(traces(f"v3-{family}"))
    assert len(played) == 36
    assert [difference for trace in played for difference in mismatches(trace, PlayerV3())] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_chips_moved_anywhere_answer_as_the_kernel(family: str) -> None:
    seed = secrets.randbits(32)
    rng = Random(seed)
    for trace in rng.sample(list(traces(f"v3-{family}")), 12):
        moves = rng.sample(range(len(trace["ops"])), 5)
        assert list(mismatches(trace, PlayerV3(), moves)) == [], f"seed {seed}, moved before {moves}"
