"""The random programs, and their form for the agent. No machine is needed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from irqchip_client.replay.arm64 import OPERATIONS
from irqchip_client.replay.traces import as_trace
from tests.conformance.arm.families import FAMILIES, program, programs
from tests.conformance.arm.program import (
    ANSWER,
    NOT_DONE,
    OPERATION,
    Acknowledge,
    Code,
    Earlier,
    Op,
    Source,
    pack,
    unpack,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "kvm-arm64-6.12.jsonl.gz"
SEEDS = range(10)


def answers(*given: tuple[int, int, int]) -> bytes:
    """The agent's answers: status, how, value."""
    return b"".join(ANSWER.pack(*one) for one in given)


def trace_ops(ops: list[Op], *given: tuple[int, int, int]) -> list[Op]:
    """The operations as a trace has them, from the agent's answers behind that to the new VM."""
    packed, places = pack(ops)
    assert len(packed) // OPERATION.size == len(given) + 1
    return unpack(ops, places, answers((0, 0, 0), *given))


def test_there_is_every_family_of_the_golden_traces() -> None:
    with gzip.open(GOLDEN, "rt") as lines:
        golden = {json.loads(line)["family"] for line in lines}
    assert golden <= FAMILIES.keys()
    assert len(golden) == 25


def test_all_operations_of_traces_are_in_programs() -> None:
    done = {op[0] for one in programs(FAMILIES, SEEDS) for op in one.ops}
    assert done == OPERATIONS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_one_program_that_a_trace_can_hold(family: str) -> None:
    one = program(family, 7)
    assert one == program(family, 7) != program(family, 8)
    packed, places = pack(one.ops)
    count = len(packed) // OPERATION.size
    record = {"family": family, "seed": 7, "gic": one.gic, "vcpus": one.vcpus}
    ops = unpack(one.ops, places, answers(*[(0, 0, 5)] * count))
    assert len(as_trace(record | {"ops": ops}).operations) == len(one.ops)


def test_an_instruction_is_what_the_architecture_encodes() -> None:
    ops: list[Op] = [["read", 1, 0x0800_0004, 4], ["write", 0, 0, 1, 2], ["mrs", 0, "IAR1"], ["msr", 0, "SGI1R", 3]]
    packed, _ = pack(ops)
    instructions = [OPERATION.unpack_from(packed, at * OPERATION.size) for at in range(1, 5)]
    ldr_w2_x1, strb_w2_x1, mrs_x2_icc_iar1_el1, msr_icc_sgi1r_el1_x2 = 0xB9400022, 0x39000022, 0xD538CC02, 0xD518CBA2
    assert instructions == [
        (Code.GUEST, 1, 0, 0, ldr_w2_x1, 0x0800_0004, 0),
        (Code.GUEST, 0, 0, 0, strb_w2_x1, 0, 2),
        (Code.GUEST, 0, 0, 0, mrs_x2_icc_iar1_el1, 0, 0),
        (Code.GUEST, 0, 0, 0, msr_icc_sgi1r_el1_x2, 0, 3),
    ]


def test_answers_have_the_traces_form() -> None:
    ops: list[Op] = [
        ["create_vcpu", 9],
        ["get_attr", 0, 1, 8, 0],
        ["read", 0, 0x0A00_0000, 4],
        ["msr", 0, "AP1R1", 0],
        ["irqfd_resampled", 0],
        ["state", 0, [[1, 0, 4, 2]]],
    ]
    given = ((-22, 0, 0), (0, 0, 7), (0, 1, 5), (0, 4, 0x0200_0000), (0, 0, 2), (0, 0, 1), (-6, 0, 0))
    assert trace_ops(ops, *given) == [
        ["create_vcpu", 9, "-EINVAL"],
        ["get_attr", 0, 1, 8, 0, 7],
        ["read", 0, 0x0A00_0000, 4, "mmio exit"],
        ["msr", 0, "AP1R1", 0, "fault 0x2000000"],
        ["irqfd_resampled", 0, 2],
        ["state", 0, [[1, 0, 4, [1, "-ENXIO"]]]],
    ]


def test_a_value_that_an_answer_decides_is_in_the_trace_as_a_number() -> None:
    ops: list[Op] = [
        ["read", 0, 0x0801_000C, 4, Acknowledge()],
        ["write", 0, 0x0801_0010, 4, Source.LAST],
        ["get_attr", 0, 1, 0x104, 0],
        ["set_attr", 0, 1, 0x104, Earlier(2)],
    ]
    assert trace_ops(ops, (0, 0, 33), (0, 0, 33), (0, 0, 6), (0, 0, 6)) == [
        ["read", 0, 0x0801_000C, 4, 33],
        ["write", 0, 0x0801_0010, 4, 33, None],
        ["get_attr", 0, 1, 0x104, 0, 6],
        ["set_attr", 0, 1, 0x104, 6, 0],
    ]


def test_what_could_not_be_done_is_not_in_the_trace() -> None:
    ops: list[Op] = [["has_attr", 3, 1, 0], ["state", 0, [[1, 0, 4, 1]]], ["create_irqchip"]]
    assert trace_ops(ops, (NOT_DONE, 0, 0), (NOT_DONE, 0, 0), (-17, 0, 0)) == [["create_irqchip", "-EEXIST"]]
