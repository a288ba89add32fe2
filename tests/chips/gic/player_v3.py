"""Plays golden traces of a GICv3 on the chips alone."""

from __future__ import annotations

from errno import errorcode

from irqchipd.chips.gic.gicv3 import DISTRIBUTOR_SIZE, SGI_REGISTERS, GicV3, SavedGicV3
from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.list_register import PRIORITY_BITS
from irqchipd.chips.gic.redistributor import FRAME_SIZE
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.vgic import GicCpu
from tests.chips.gic.player import GICD, Player, Wires

ADDRESSES, DISTRIBUTOR, INTERRUPTS, CONTROL, REDISTRIBUTOR, SYSTEM_REGISTERS, LINES = 0, 1, 3, 4, 5, 6, 7
REDISTRIBUTORS_ADDRESS = 3
UNDEFINED = "fault 0x2000000"


def affinity(vcpu: int) -> int:
    """KVM: reset_mpidr."""
    return vcpu & 0xF | (vcpu >> 4 & 0xFF) << 8


class WiresV3(Wires):
    """The redistributors of all CPUs lie in one row."""

    cpus = 0

    def is_last(self, cpu: int) -> bool:
        return cpu == self.cpus - 1


class PlayerV3(Player[GicV3]):
    """One VM with a GICv3."""

    def new_vm(self) -> int:
        self.wires = WiresV3()
        self.gic = GicV3(self.wires)
        self.interrupts = 256
        self.frames = 0
        self.has_run = set()
        return 0

    def move(self) -> None:
        saved = SavedGicV3(**self.gic.save())
        saved.check(len(self.gic.cpus), self.gic.list_registers, PRIORITY_BITS)
        moved = GicV3(self.wires)
        for cpu in self.gic.cpus:
            moved.add_cpu(cpu.id, 0)
        moved.resume(saved)
        assert moved.save() == self.gic.save()
        self.gic = moved

    def create_vcpu(self, vcpu: int) -> int:
        self.gic.add_cpu(vcpu, affinity(vcpu))
        self.wires.cpus += 1
        return 0

    def set_attr(self, _device: int, group: int, attr: int, value: int) -> int | str:
        if group == ADDRESSES:
            if attr == REDISTRIBUTORS_ADDRESS:
                self.frames = value
        elif group == INTERRUPTS:
            self.interrupts = value
        elif group == CONTROL:
            self.gic.add_spis(self.interrupts)
        else:
            return self._access(group, attr, value)
        return 0

    def get_attr(self, _device: int, group: int, attr: int, _buffer: int) -> int | str:
        return self._access(group, attr, None)

    def has_attr(self, _device: int, group: int, attr: int) -> int | str:
        cpu, offset = self._named(group, attr)
        if cpu is None:
            return "-EINVAL"
        if group == SYSTEM_REGISTERS:
            there = self.gic.system_registers[cpu.index].has(offset & 0xFFFF)
        elif group == LINES:
            there = offset >> 10 == 0
        else:
            registers = self.gic.distributor if group == DISTRIBUTOR else self.gic.redistributors.registers
            there = registers.has(offset)
        return 0 if there else "-ENXIO"

    def _named(self, group: int, attr: int) -> tuple[GicCpu | None, int]:
        """The CPU that an attribute names by its affinity, and the rest of the attribute. KVM: vgic_v3_parse_attr."""
        cpu = self.gic.cpus[0] if group == DISTRIBUTOR else self.gic.find_cpu(attr >> 32)
        return cpu, attr & 0xFFFF_FFFF

    def _access(self, group: int, attr: int, value: int | None) -> int | str:
        cpu, offset = self._named(group, attr)
        if cpu is None:
            return "-EINVAL"
        try:
            if group == SYSTEM_REGISTERS:
                registers = self.gic.system_registers[cpu.index]
                if value is None:
                    return registers.get(offset & 0xFFFF)
                registers.set(offset & 0xFFFF, value)
            elif group == LINES:
                if offset >> 10:
                    return "-EINVAL"
                if value is None:
                    return self.gic.read_lines(cpu, offset)
                self.gic.write_lines(cpu, offset, value & 0xFFFF_FFFF)
            else:
                frame = self.gic.distributor if group == DISTRIBUTOR else self.gic.redistributors.registers
                if value is None:
                    return frame.user_read(cpu, offset)
                frame.user_write(cpu, offset, value & 0xFFFF_FFFF)
        except AccessRefused as refused:
            return f"-{errorcode[refused.number]}"
        return 0

    def read(self, vcpu: int, address: int, size: int) -> int | str:
        cpu = self.gic.cpus[vcpu]
        self.enter(vcpu)
        self.gic.exit(cpu)
        value: int | str = "mmio exit"
        frame, offset = divmod(address - self.frames, FRAME_SIZE)
        if GICD <= address < GICD + DISTRIBUTOR_SIZE:
            value = self.gic.distributor.read(cpu, address - GICD, size)
        elif 0 <= frame < len(self.gic.cpus):
            value = self.gic.redistributors.registers.read(self.gic.cpus[frame], offset, size)
        self.gic.enter(cpu)
        self.gic.exit(cpu)
        return value

    def write(self, vcpu: int, address: int, size: int, value: int) -> str | None:
        cpu = self.gic.cpus[vcpu]
        self.enter(vcpu)
        self.gic.exit(cpu)
        answer = None
        frame, offset = divmod(address - self.frames, FRAME_SIZE)
        if GICD <= address < GICD + DISTRIBUTOR_SIZE:
            self.gic.distributor.write(cpu, address - GICD, size, value)
        elif 0 <= frame < len(self.gic.cpus):
            self.gic.redistributors.registers.write(self.gic.cpus[frame], offset, size, value)
        else:
            answer = "mmio exit"
        self.gic.enter(cpu)
        self.gic.exit(cpu)
        return answer

    def mrs(self, vcpu: int, register: str) -> int | str:
        self.enter(vcpu)
        interface = self.gic.interfaces[vcpu]
        value: int | None
        if register == "ISR":
            irq, fiq = interface.outputs()
            value = irq << 7 | fiq << 6
        else:
            value = interface.read(getattr(Icc, register))
        self.gic.exit(self.gic.cpus[vcpu])
        return UNDEFINED if value is None else value

    def msr(self, vcpu: int, name: str, value: int) -> str | None:
        cpu = self.gic.cpus[vcpu]
        register = getattr(Icc, name)
        self.enter(vcpu)
        if register in SGI_REGISTERS:
            self.gic.exit(cpu)
            self.gic.generate_sgi(cpu, register, value)
            self.gic.enter(cpu)
            defined = True
        else:
            defined = self.gic.interfaces[vcpu].write(register, value)
        self.gic.exit(cpu)
        return None if defined else UNDEFINED

    def load(self, vcpu: int) -> None:
        self.gic.interfaces[vcpu].load()
