"""Plays golden traces of a GICv2 on the chips alone."""

from __future__ import annotations

from irqchipd.chips.gic.gicv2 import DISTRIBUTOR_SIZE, GicV2, SavedGicV2
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.registers import Registers
from tests.chips.gic.player import GICC, GICD, Player, Wires


class PlayerV2(Player[GicV2]):
    """One VM with a GICv2."""

    def new_vm(self) -> int:
        self.gic = GicV2(Wires())
        self.vcpus = 0
        self.interrupts = 256
        self.has_run = set()
        return 0

    def move(self) -> None:
        saved = SavedGicV2(**self.gic.save())
        saved.check(len(self.gic.cpus), self.gic.list_registers)
        moved = GicV2(Wires())
        for cpu in self.gic.cpus:
            moved.add_cpu(cpu.id)
        moved.resume(saved)
        assert moved.save() == self.gic.save()
        self.gic = moved

    def create_vcpu(self, vcpu: int) -> int:
        self.gic.add_cpu(vcpu)
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

    def load(self, vcpu: int) -> None:
        self.gic.frames[vcpu].load()

    def read(self, vcpu: int, address: int, size: int) -> int | str:
        cpu = self.gic.cpus[vcpu]
        self.enter(vcpu)
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
        self.enter(vcpu)
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
        self.enter(vcpu)
        irq, fiq = self.gic.frames[vcpu].outputs()
        self.gic.exit(self.gic.cpus[vcpu])
        return irq << 7 | fiq << 6
