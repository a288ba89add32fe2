"""The golden arm64 traces: 71,295 answers of Linux KVM on a GICv2 and a GICv3, compared with irqchipd's."""

from __future__ import annotations

import secrets
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from irqchip_client.cli import main
from irqchip_client.replay.arm64_in_process import Arm64Player
from irqchip_client.replay.traces import Trace, as_expected, load_traces
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.machine import MAX_VCPUS

GOLDEN = Path(__file__).parent / "golden" / "kvm-arm64-6.12.jsonl.gz"
MOVES = 4  # per trace


def test_every_answer_is_the_kernel_s() -> None:
    result = CliRunner().invoke(main, ["replay", "--in-process", str(GOLDEN)])
    assert result.stdout.splitlines()[-1] == "834 traces, 71295 operations, 0 mismatches", result.output
    assert result.exit_code == 0


class MovingPlayer(Arm64Player):
    """A player whose VM can be saved, and goes on as another one."""

    def move(self) -> None:
        state = self.vm.save()
        restored = Arm64Vm.restored("moved", MAX_VCPUS, snapshot_from(snapshot_to(state)))
        assert restored.save() == state
        self.vm = restored
        for slot in self.slots.values():
            if slot.irqfd is not None:
                resample = slot.resample if slot.irqfd.resampler is not None else None
                slot.irqfd = restored.add_irqfd(slot.irqfd.source, slot.irqfd.gsi, resample)


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return load_traces(GOLDEN)


def test_a_vm_that_is_moved_anywhere_answers_as_the_kernel(traces: list[Trace]) -> None:
    seed = secrets.randbits(32)
    rng = Random(seed)
    for trace in rng.sample(traces, 120):
        assert trace.gic is not None
        player = MovingPlayer(trace.gic)
        moves = rng.sample(range(len(trace.operations)), min(MOVES, len(trace.operations)))
        for number, (name, arguments, expected) in enumerate(trace.operations):
            if number in moves:
                player.move()
            actual = player.execute(name, arguments)
            assert as_expected(expected, actual), f"seed {seed}: {trace.family} {trace.seed}, operation {number}"


def test_every_operation_of_a_trace_has_its_executor() -> None:
    from irqchip_client.replay.arm64 import OPERATIONS

    assert Arm64Player(3).operations.keys() == OPERATIONS.keys()
