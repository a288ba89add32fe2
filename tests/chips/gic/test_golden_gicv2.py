"""The GICv2's golden traces that concern the chips, played on the chips alone."""

import pytest

from tests.chips.gic.player import mismatches, traces

FAMILIES = ("v2-dist", "v2-cpuif", "v2-sgi", "v2-level", "v2-overflow", "v2-nested", "v2-state")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chips_answer_as_the_kernel(family: str) -> None:
    played = list(traces(family))
    assert len(played) == 36
    assert [difference for trace in played for difference in mismatches(trace)] == []
