"""irqchipd and the kernel of this machine, side by side: random operations, and every answer compared.

By default the seeds are fixed. `make explore` looks where no one has looked; its environment variables:

    IRQCHIPD_LIVE_SECONDS   how long to explore, all families together (by default 0: not at all)
    IRQCHIPD_LIVE_SEED      where exploring begins; by default the time, so that every run is another one

A failure gives the family, the seed, and the fewest operations that show the difference, as in found.jsonl.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.conformance import kvm as api
from tests.conformance.compare import Comparison
from tests.conformance.families import FAMILIES
from tests.conformance.found import FOUND, Found
from tests.conformance.guest import Guest, add_memory
from tests.conformance.kvm import Kvm, KvmVm
from tests.conformance.machines import DaemonMachine, KernelMachine

SECONDS = float(os.environ.get("IRQCHIPD_LIVE_SECONDS", "0"))
SEED = int(os.environ.get("IRQCHIPD_LIVE_SEED") or time.time())
FIXED_SEEDS = range(40)

# The first whose KVM finds out anew which EOIs concern its IOAPIC after one that concerned a former routing.
OLDEST_KERNEL = (6, 16)
VECTOR_HASHING = Path("/sys/module/kvm/parameters/vector_hashing")


def why_not() -> str | None:
    """Why this machine's KVM can't be compared with, if it can't."""
    if platform.machine() != "x86_64":
        return f"KVM's irqchip is another one on {platform.machine()}"
    release = platform.release()
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < OLDEST_KERNEL:
        return f"Linux {release} is too old: irqchipd does as KVM has since {'.'.join(map(str, OLDEST_KERNEL))}"
    if VECTOR_HASHING.exists() and VECTOR_HASHING.read_text().strip() == "N":
        return "KVM's parameter vector_hashing is off: lowest priority is another one"
    try:
        kvm = Kvm()
    except OSError as error:
        return f"/dev/kvm can't be used: {error.strerror}"
    try:
        if kvm.api_version() != api.API_VERSION or not kvm.check_extension(api.CAP_SYNC_REGS):
            return "this KVM is too old"
        with KvmVm(kvm) as vm:
            vm.create_irqchip()
            add_memory(vm)
            Guest(vm.create_vcpu(0)).pio_read(0x21, 1)
    except OSError as error:
        return f"/dev/kvm makes no VM with an irqchip and a vCPU that runs: {error.strerror}"
    finally:
        kvm.close()
    return None


@pytest.fixture(scope="module")
def live() -> Iterator[Comparison]:
    """Compares a VM of the kernel's and one of irqchipd's."""
    if reason := why_not():
        pytest.skip(reason)
    kvm = Kvm()
    yield Comparison(lambda: KernelMachine(kvm), DaemonMachine)
    kvm.close()


def check(live: Comparison, family: str, seed: int) -> int:
    """Compare one sequence; the number of its operations."""
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
def test_every_answer_is_the_kernels_where_no_one_has_looked(live: Comparison, family: str) -> None:
    if not SECONDS:
        pytest.skip("not asked to explore: make explore")
    seed, operations = SEED, 0
    end = time.monotonic() + SECONDS / len(FAMILIES)
    while time.monotonic() < end:
        operations += check(live, family, seed)
        seed += 1
    print(f"{family}: seeds {SEED} to {seed - 1}, {operations} operations")


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_what_was_found_is_still_what_this_kernel_answers(live: Comparison, found: Found) -> None:
    assert found.answers_of(live.new_kernel()) == found.answers
