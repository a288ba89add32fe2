"""irqchipd and a real KVM/arm64, side by side: random programs, and every answer compared.

The seeds here are fixed, so that every run compares the same; `make explore-arm` takes new ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_client.replay.in_process import replay
from tests.conformance.arm.families import FAMILIES, program
from tests.conformance.arm.judge import Judge
from tests.conformance.arm.machine import ArmKvm
from tests.conformance.arm.moving import replay_moved

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(600)]

SEEDS = range(20, 28)


@pytest.fixture(scope="module", params=[replay, replay_moved], ids=["as it is", "moved"])
def judge(arm_kvm: ArmKvm, request: pytest.FixtureRequest) -> Iterator[Judge]:
    """Compares; the machines stay for all families."""
    with Judge(arm_kvm, request.param) as judge:
        yield judge


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_the_kernels(judge: Judge, family: str) -> None:
    for _, found in judge.compare([program(family, seed) for seed in SEEDS]):
        if found:
            pytest.fail(f"{family}, seed {found.program.seed}:\n{judge.minimise(found)}", pytrace=False)
