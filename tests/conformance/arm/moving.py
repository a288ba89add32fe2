"""Traces on VMs that are saved and restored as others while they run, through the snapshot's message."""

from __future__ import annotations

from random import Random

from irqchip_client.replay.arm64_in_process import Arm64Player
from irqchip_client.replay.traces import Mismatch, Trace, as_expected
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.registry import Registry

MOVES = 3  # per trace


class MovingPlayer(Arm64Player):
    """A player whose VM can be saved, and goes on as another one."""

    def move(self) -> None:
        """Go on as a VM that a daemon restores."""
        state = self.vm.save()
        restored = Registry(max_vms=1).restore("moved", snapshot_from(snapshot_to(state)))
        assert isinstance(restored, Arm64Vm)
        assert restored.save() == state
        self.vm = restored
        if state.arm64 is None or state.arm64.dead:
            return  # it takes no irqfd, and has nothing to do for one
        for slot in self.slots.values():
            if slot.irqfd is not None:
                resample = slot.resample if slot.irqfd.resampler is not None else None
                slot.irqfd = restored.add_irqfd(slot.irqfd.source, slot.irqfd.gsi, resample)


def replay_moved(trace: Trace, seed: int | None = None) -> list[Mismatch]:
    """The operations that are answered otherwise, on a VM that is moved a few times, anywhere."""
    assert trace.gic is not None
    rng = Random(f"{trace.family}/{trace.seed}" if seed is None else seed)
    player = MovingPlayer(trace.gic)
    count = len(trace.operations)
    moves = rng.sample(range(count), min(MOVES, count))
    mismatches = []
    for number, (name, arguments, expected) in enumerate(trace.operations):
        if number in moves:
            player.move()
        actual = player.execute(name, arguments)
        if not as_expected(expected, actual):
            mismatches.append(Mismatch(trace, number, actual))
    return mismatches
