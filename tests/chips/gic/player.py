"""Plays golden traces on the chips alone: what a VM with a GIC does, in as few words as possible."""

from __future__ import annotations

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from irqchipd.chips.gic.vgic import Vgic

Gic = TypeVar("Gic", bound=Vgic)

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden" / "kvm-arm64-6.12.jsonl.gz"
GICD, GICC = 0x0800_0000, 0x0801_0000
TIMERS = (27, 30)  # PPIs that belong to the kernel once their vCPU has run


class Wires:
    """A GIC's surroundings, in which nothing happens."""

    def __init__(self) -> None:
        self.kicked: list[int] = []
        self.acknowledged: list[int] = []

    def kick(self, cpu: int) -> None:
        self.kicked.append(cpu)

    def acked(self, spi: int) -> None:
        self.acknowledged.append(spi)

    def physical_level(self, _cpu: int, _intid: int) -> bool:
        return False

    def set_physical_active(self, _cpu: int, _intid: int, _active: bool) -> None:
        pass


class Player(ABC, Generic[Gic]):
    """One VM; an operation's name is a method's."""

    gic: Gic
    has_run: set[int]

    def __init__(self) -> None:
        self.new_vm()

    def play(self, operation: list[Any]) -> object:
        """Do an operation of a trace, whose last element is the answer, and return our answer."""
        name, *arguments = operation[:-1]
        if name == "state":
            return self.state(*operation[1:])
        return getattr(self, name)(*arguments)

    def state(self, device: int, blocks: list[Any]) -> list[Any]:
        """Read the attributes that the blocks of an answer name."""
        return [
            [group, attr, step, [self.get_attr(device, group, attr + step * n, 0) for n in range(len(values))]]
            for group, attr, step, values in blocks
        ]

    @abstractmethod
    def new_vm(self) -> int:
        """Begin a new VM."""

    @abstractmethod
    def get_attr(self, device: int, group: int, attr: int, buffer: int) -> int | str:
        """KVM_GET_DEVICE_ATTR."""

    @abstractmethod
    def load(self, vcpu: int) -> None:
        """Load the state of a CPU interface into hardware."""

    def move(self) -> None:
        """Save the chips, and go on with others that resume from that."""
        raise NotImplementedError

    def vcpu_init(self, _vcpu: int, _features: int, _target: int) -> int:
        return 0

    def create_device(self, _kind: int, _flags: int) -> int:
        return 0

    def irq_line(self, irq: int, level: int) -> int | str:
        kind, vcpu, intid = irq >> 24, irq >> 16 & 0xFF, irq & 0xFFFF
        if kind == 0:
            return "-ENXIO"
        if kind == 1 and 32 <= intid < self.gic.interrupts:
            vcpu = 0
        elif kind != 2 or not 16 <= intid < 32 or vcpu >= len(self.gic.cpus):
            return "-EINVAL"
        self.gic.set_line(self.gic.interrupt(self.gic.cpus[vcpu], intid), bool(level))
        return 0

    def enter(self, vcpu: int) -> None:
        cpu = self.gic.cpus[vcpu]
        if vcpu not in self.has_run:
            self.has_run.add(vcpu)
            for intid in TIMERS:
                cpu.private[intid].owner = 1
            self.gic.map_physical(cpu.private[TIMERS[0]], TIMERS[0])
        # KVM: kvm_timer_vcpu_load_gic; no timer of these guests ever fires.
        self.gic.set_line(cpu.private[TIMERS[0]], False, owner=1)
        self.load(vcpu)
        self.gic.enter(cpu)


def traces(family: str) -> Iterator[dict[str, Any]]:
    """The golden traces of a family."""
    with gzip.open(GOLDEN, "rt") as lines:
        for line in lines:
            trace = json.loads(line)
            if trace["family"] == family:
                yield trace


def mismatches(trace: dict[str, Any], player: Player[Gic], moves: Collection[int] = ()) -> Iterator[str]:
    """Play a trace, and move before the operations with these indices; what differs from the kernel's answers."""
    for n, operation in enumerate(trace["ops"]):
        if n in moves:
            player.move()
        answer = player.play(operation)
        if answer == operation[-1]:
            continue
        what = f"{trace['family']} {trace['seed']}: operation {n} {operation[:-1]}"
        if operation[0] == "state":
            yield f"{what[:40]}: {_different(operation[-1], answer)}"
        else:
            yield f"{what}: {answer}, not {operation[-1]}"


def _different(wanted: list[Any], found: Any) -> list[str]:
    """The attributes in which two states differ."""
    return [
        f"group {group} attribute {attr + k * step:#x}: {our:#x}, not {their:#x}"
        for (group, attr, step, theirs), (*_, ours) in zip(wanted, found, strict=True)
        for k, (their, our) in enumerate(zip(theirs, ours, strict=True))
        if their != our
    ]
