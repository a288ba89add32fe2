"""The recorder on a real arm64 KVM, in QEMU."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from irqchip_client.replay.traces import Mismatch, Trace
from tests.conformance.arm.families import FAMILIES, gic_of, program
from tests.conformance.arm.judge import Judge, without_answer
from tests.conformance.arm.machine import ArmKvm
from tests.conformance.arm.program import Program

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(900)]

GOLDEN = Path(__file__).parents[1] / "golden" / "kvm-arm64-6.12.jsonl.gz"
SEEDS = range(1, 10)


@pytest.mark.parametrize("gic", [2, 3])
def test_golden_programs_get_the_golden_answers(arm_kvm: ArmKvm, gic: int) -> None:
    with gzip.open(GOLDEN, "rt") as lines:
        golden = [trace for line in lines if (trace := json.loads(line))["gic"] == gic and trace["seed"] in SEEDS]
    with arm_kvm.boot(gic) as recorder:
        recorded = recorder.run([[without_answer(op) for op in trace["ops"]] for trace in golden])
    assert len({trace["family"] for trace in golden}) == (11 if gic == 2 else 14)
    assert [ops for ops, trace in zip(recorded, golden, strict=True) if ops != trace["ops"]] == []


@pytest.mark.parametrize("gic", [2, 3])
def test_no_answer_depends_on_the_time_or_on_what_was_before(arm_kvm: ArmKvm, gic: int) -> None:
    programs = [program(family, 1) for family in FAMILIES if gic_of(family) == gic]
    with arm_kvm.boot(gic) as recorder:
        first, again = recorder.record(programs), recorder.record(programs[::-1])[::-1]
    assert first == again


def boot_and_wait(kvm: ArmKvm, booted: Connection) -> None:
    """A process that is to be killed."""
    with kvm.boot(3) as recorder:
        booted.send(recorder.process)
        booted.recv()


def test_a_machine_ends_with_the_process_that_booted_it(arm_kvm: ArmKvm) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=boot_and_wait, args=(arm_kvm, theirs))
    process.start()
    assert ours.poll(300)
    qemu = Path("/proc", str(ours.recv()))
    assert "qemu" in (qemu / "cmdline").read_text()
    process.kill()
    process.join()
    end = time.monotonic() + 60
    while qemu.is_dir() and time.monotonic() < end:
        time.sleep(0.1)
    assert not qemu.is_dir()


def lost_interrupts(trace: Trace) -> list[Mismatch]:
    """An irqchipd with a defect: a GICv2's CPU interface acknowledges nothing."""
    return [
        Mismatch(trace, number, 1023)
        for number, operation in enumerate(trace.operations)
        if operation.arguments[1:] == [0x0801_000C, 4] and operation.expected in range(1020)
    ]


def test_a_difference_is_shown_as_the_shortest_trace(arm_kvm: ArmKvm) -> None:
    with Judge(arm_kvm, lost_interrupts) as judge:
        found = first_difference(judge, [program("v2-overflow", seed) for seed in range(3)])
        assert len(found.ops) > 50
        smallest = judge.minimise(found)
    # A vCPU, perhaps two; a GIC at its addresses; an enabled SPI; a line that rises; and the acknowledgement.
    names = [op[0] for op in smallest.ops]
    assert names.count("irq_line") == 1
    assert names[-1] == "read"
    assert len(names) <= 15, smallest
    assert '"irq_line"' in str(smallest)
    assert "irqchipd: 1023" in str(smallest)


def first_difference(judge: Judge, programs: Sequence[Program]) -> Any:
    """The first that the judge finds."""
    return next(found for _, found in judge.compare(programs) if found)
