"""Plays golden traces of a GICv2 on the chips alone: what a VM with a GICv2 does, in as few words as possible."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irqchipd.chips.gic.gicv2 import DISTRIBUTOR_SIZE, GicV2
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.registers import Registers

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


class Player:
    """One VM; an operation's name is a method's."""

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

    def new_vm(self) -> int:
        self.gic = GicV2(Wires())
        self.vcpus = 0
        self.interrupts = 256
        self.has_run: set[int] = set()
        return 0

    def create_vcpu(self, vcpu: int) -> int:
        self.gic.add_cpu(vcpu)
        return 0

    def vcpu_init(self, _vcpu: int, _features: int, _target: int) -> int:
        return 0

    def create_device(self, _kind: int, _flags: int) -> int:
        return 0

    def set_attr(self, _device: int, group: int, attr: int, value: int) -> int | str:
        if group == 3:
            self.interrupts = value
        elif group == 4:
            self.gic.add_spis(self.interrupts)
        elif group in (1, 2):
            if attr >> 32 >= len(self.gic.cpus):
                return "-EINVAL"
            try:
                self._registers(group).user_write(self.gic.cpus[attr >> 32], attr & 0xFFFF_FFFF, value & 0xFFFF_FFFF)
            except AccessRefused:
                return "-EINVAL"
        return 0

    def get_attr(self, _device: int, group: int, attr: int, _buffer: int) -> int | str:
        if attr >> 32 >= len(self.gic.cpus):
            return "-EINVAL"
        return self._registers(group).user_read(self.gic.cpus[attr >> 32], attr & 0xFFFF_FFFF)

    def has_attr(self, _device: int, group: int, attr: int) -> int | str:
        if attr >> 32 >= len(self.gic.cpus):
            return "-EINVAL"
        return 0 if self._registers(group).has(attr & 0xFFFF_FFFF) else "-ENXIO"

    def _registers(self, group: int) -> Registers:
        return self.gic.distributor if group == 1 else self.gic.cpu_registers

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

    def _enter(self, vcpu: int) -> None:
        cpu = self.gic.cpus[vcpu]
        if vcpu not in self.has_run:
            self.has_run.add(vcpu)
            for intid in TIMERS:
                cpu.private[intid].owned = True
            self.gic.map_physical(cpu.private[TIMERS[0]], TIMERS[0])
        self.gic.frames[vcpu].load()
        self.gic.enter(cpu)

    def read(self, vcpu: int, address: int, size: int) -> int | str:
        cpu = self.gic.cpus[vcpu]
        self._enter(vcpu)
        value: int | str = "mmio exit"
        if GICD <= address < GICD + DISTRIBUTOR_SIZE:
            self.gic.exit(cpu)
            value = self.gic.distributor.read(cpu, address - GICD, size)
            self.gic.enter(cpu)
        elif GICC <= address < GICC + 0x2000:
            value = self.gic.frames[vcpu].read(address - GICC, size)
        self.gic.exit(cpu)
        return value

    def write(self, vcpu: int, address: int, size: int, value: int) -> str | None:
        cpu = self.gic.cpus[vcpu]
        self._enter(vcpu)
        answer = None
        if GICD <= address < GICD + DISTRIBUTOR_SIZE:
            self.gic.exit(cpu)
            self.gic.distributor.write(cpu, address - GICD, size, value)
            self.gic.enter(cpu)
        elif GICC <= address < GICC + 0x2000:
            self.gic.frames[vcpu].write(address - GICC, value, size)
        else:
            answer = "mmio exit"
        self.gic.exit(cpu)
        return answer

    def mrs(self, vcpu: int, register: str) -> int:
        assert register == "ISR"
        self._enter(vcpu)
        irq, fiq = self.gic.frames[vcpu].outputs()
        self.gic.exit(self.gic.cpus[vcpu])
        return irq << 7 | fiq << 6


def traces(family: str) -> Iterator[dict[str, Any]]:
    """The golden traces of a family."""
    with gzip.open(GOLDEN, "rt") as lines:
        for line in lines:
            trace = json.loads(line)
            if trace["family"] == family:
                yield trace


def mismatches(trace: dict[str, Any]) -> Iterator[str]:
    """Play a trace; what differs from the kernel's answers."""
    player = Player()
    for n, operation in enumerate(trace["ops"]):
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
