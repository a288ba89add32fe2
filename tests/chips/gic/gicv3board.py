"""A GICv3 with its guests, for tests: every guest's access enters and exits the guest as in the kernel."""

from __future__ import annotations

from irqchipd.chips.gic.gicv3 import SGI_REGISTERS, GicV3
from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.list_register import LIST_REGISTERS, PRIORITY_BITS
from irqchipd.chips.gic.redistributor import SGI_BASE
from tests.chips.gic.player_v3 import WiresV3, affinity

GROUPS = (Icc.IGRPEN0, Icc.IGRPEN1)

CTLR, TYPER, IIDR = 0x0, 0x4, 0x8
IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER = 0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380
IPRIORITYR, ICFGR, IROUTER, PIDR2 = 0x400, 0xC00, 0x6000, 0xFFE8
EDGE, LEVEL = 2, 0
SPURIOUS = 1023


class Board:
    """A VM with a GICv3, whose distributor and CPU interfaces are on."""

    def __init__(
        self, cpus: int = 1, interrupts: int = 96, list_registers: int = LIST_REGISTERS, bits: int = PRIORITY_BITS
    ) -> None:
        self.wires = WiresV3()
        self.wires.cpus = cpus
        self.gic = GicV3(self.wires, list_registers, bits)
        for vcpu in range(cpus):
            self.gic.add_cpu(vcpu, affinity(vcpu))
        self.gic.add_spis(interrupts)
        self.gicd(CTLR, 2)
        for vcpu in range(cpus):
            self.msr(Icc.PMR, 0xFF, vcpu)
            for register in GROUPS:
                self.msr(register, 1, vcpu)

    def mrs(self, register: int, cpu: int = 0) -> int | None:
        """A guest reads a system register."""
        self._enter(cpu)
        value = self.gic.interfaces[cpu].read(register)
        self.gic.exit(self.gic.cpus[cpu])
        return value

    def msr(self, register: int, value: int, cpu: int = 0) -> bool:
        """A guest writes a system register."""
        self._enter(cpu)
        if register in SGI_REGISTERS:
            self.gic.exit(self.gic.cpus[cpu])
            self.gic.generate_sgi(self.gic.cpus[cpu], register, value)
            return True
        defined = self.gic.interfaces[cpu].write(register, value)
        self.gic.exit(self.gic.cpus[cpu])
        return defined

    def outputs(self, cpu: int = 0) -> tuple[bool, bool]:
        """IRQ and FIQ at a CPU."""
        self._enter(cpu)
        outputs = self.gic.interfaces[cpu].outputs()
        self.gic.exit(self.gic.cpus[cpu])
        return outputs

    def gicd(self, offset: int, value: int | None = None, size: int = 4, cpu: int = 0) -> int:
        """A guest reads or writes a register of the distributor."""
        if value is None:
            return self.gic.distributor.read(self.gic.cpus[cpu], offset, size)
        self.gic.distributor.write(self.gic.cpus[cpu], offset, size, value)
        return 0

    def gicr(self, offset: int, value: int | None = None, size: int = 4, cpu: int = 0) -> int:
        """A guest reads or writes a register of a CPU's redistributor."""
        if value is None:
            return self.gic.redistributors.registers.read(self.gic.cpus[cpu], offset, size)
        self.gic.redistributors.registers.write(self.gic.cpus[cpu], offset, size, value)
        return 0

    def configure(self, intid: int, priority: int = 0x80, *, trigger: int = EDGE, group: int = 1, cpu: int = 0) -> None:
        """Give an interrupt a priority, a trigger, a group and a CPU, and enable it."""
        interrupt = self.gic.interrupt(self.gic.cpus[cpu], intid)
        access, base = (self.gicr, SGI_BASE) if intid < 32 else (self.gicd, 0)
        access(base + IPRIORITYR + intid, priority, 1, cpu)
        if intid >= 32:
            self.gicd(IROUTER + 8 * intid, affinity(cpu), 8)
            interrupt.level = trigger == LEVEL
        interrupt.group = group
        word = intid >> 5 << 2
        access(base + ISENABLER + word, 1 << (intid & 31), 4, cpu)

    def line(self, intid: int, level: int, cpu: int = 0) -> None:
        """Drive an interrupt's line."""
        self.gic.set_line(self.gic.interrupt(self.gic.cpus[cpu], intid), bool(level))

    def pulse(self, *intids: int) -> None:
        """Raise and lower lines, one after the other."""
        for intid in intids:
            self.line(intid, 1)
            self.line(intid, 0)

    def _enter(self, cpu: int) -> None:
        self.gic.interfaces[cpu].load()
        self.gic.enter(self.gic.cpus[cpu])
