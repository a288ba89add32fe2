"""irqchipd and the kernel of this machine, side by side: random operations, and every answer compared.

By default the seeds are fixed. `make explore` uses new seeds; its environment variables:

    IRQCHIPD_LIVE_SECONDS   how long to explore, for all families together (default 0: not at all)
    IRQCHIPD_LIVE_SEED      the first seed (default: the time, so that every run differs)

A failure shows the family, the seed, and the fewest operations with the difference, as in found.jsonl.
"""

from __future__ import annotations

import os
import time
from random import Random

import pytest

from tests.conformance.compare import Comparison
from tests.conformance.families import FAMILIES
from tests.conformance.found import FOUND, Found

SECONDS = float(os.environ.get("IRQCHIPD_LIVE_SECONDS", "0"))
SEED = int(os.environ.get("IRQCHIPD_LIVE_SEED") or time.time())
FIXED_SEEDS = range(40)


def check(live: Comparison, family: str, seed: int) -> int:
    """Compare one sequence; returns its number of operations."""
    ops = FAMILIES[family](Random(f"{family} {seed}"))
    if difference := live.compare(ops):
        pytest.fail(f"family {family}, IRQCHIPD_LIVE_SEED={seed}:\n{live.minimise(difference)}", pytrace=False)
    return len(ops)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_the_kernels(live: Comparison, family: str) -> None:
    for seed in FIXED_SEEDS:
        check(live, family, seed)


@pytest.mark.timeout(120 + SECONDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_the_kernels_for_new_seeds(live: Comparison, family: str) -> None:
    if not SECONDS:
        pytest.skip("not asked to explore: make explore")
    seed, operations = SEED, 0
    end = time.monotonic() + SECONDS / len(FAMILIES)
    while time.monotonic() < end:
        operations += check(live, family, seed)
        seed += 1
    print(f"{family}: seeds {SEED} to {seed - 1}, {operations} operations")


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_this_kernel_still_gives_the_recorded_answers(live: Comparison, found: Found) -> None:
    assert found.answers_of(live.new_kernel()) == found.answers
