"""A board for the GICv2: guests that run on its CPUs, and user space."""

from __future__ import annotations

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import Gicd, GicV2
from irqchipd.chips.gic.interrupt import Interrupt
from irqchipd.chips.gic.list_register import LIST_REGISTERS

NONE = 1023  # GICC_IAR without a pending interrupt


class Board:
    """A GICv2, and its surroundings."""

    def __init__(self, cpus: int = 2, interrupts: int = 64, list_registers: int = LIST_REGISTERS) -> None:
        self.gic = GicV2(self, list_registers)
        for cpu in range(cpus):
            self.gic.add_cpu(cpu)
        self.gic.add_spis(interrupts)
        self.kicked: list[int] = []
        self.ended: list[int] = []
        # The host's interrupts: the device's level, and the changes of the active state.
        self.physical = False
        self.physical_actives: list[bool] = []

    # The GIC's wires.

    def kick(self, cpu: int) -> None:
        self.kicked.append(cpu)

    def acked(self, spi: int) -> None:
        self.ended.append(spi)

    def physical_level(self, _cpu: int, _intid: int) -> bool:
        return self.physical

    def set_physical_active(self, _cpu: int, _intid: int, active: bool) -> None:
        self.physical_actives.append(active)

    # A guest.

    def write(self, offset: int, value: int, cpu: int = 0, size: int = 4) -> None:
        """Write a register of the distributor."""
        self.run(cpu)
        self.gic.distributor.write(self.gic.cpus[cpu], offset, size, value)

    def read(self, offset: int, cpu: int = 0, size: int = 4) -> int:
        """Read a register of the distributor."""
        self.run(cpu)
        return self.gic.distributor.read(self.gic.cpus[cpu], offset, size)

    def run(self, cpu: int) -> None:
        """Run the guest for a moment in which it does nothing."""
        self.gic.enter(self.gic.cpus[cpu])
        self.gic.exit(self.gic.cpus[cpu])

    def write_cpu(self, offset: int, value: int, cpu: int = 0) -> None:
        """Write a register of the CPU interface."""
        self.gic.frames[cpu].load()
        self.gic.enter(self.gic.cpus[cpu])
        self.gic.frames[cpu].write(offset, value)
        self.gic.exit(self.gic.cpus[cpu])

    def read_cpu(self, offset: int, cpu: int = 0) -> int:
        """Read a register of the CPU interface."""
        self.gic.frames[cpu].load()
        self.gic.enter(self.gic.cpus[cpu])
        value = self.gic.frames[cpu].read(offset)
        self.gic.exit(self.gic.cpus[cpu])
        return value

    def acknowledge(self, cpu: int = 0) -> int:
        return self.read_cpu(Gicc.IAR, cpu)

    def end(self, value: int, cpu: int = 0) -> None:
        self.write_cpu(Gicc.EOIR, value, cpu)

    def acknowledge_all(self, cpu: int = 0) -> list[int]:
        """Take and end all that is pending."""
        taken = []
        while (intid := self.acknowledge(cpu)) != NONE:
            taken.append(intid)
            self.end(intid, cpu)
        return taken

    def enable_everything(self) -> None:
        """Distributor, CPU interfaces and interrupts on; every SPI is for CPU 0, and everything has priority 80h."""
        self.write(Gicd.CTLR, 1)
        for cpu in range(len(self.gic.cpus)):
            self.write_cpu(Gicc.PMR, 0xF8, cpu)
            self.write_cpu(Gicc.CTLR, 1, cpu)
            self.write(Gicd.ISENABLER, 0xFFFF_FFFF, cpu)
            for intid in range(32):
                self.set_priority(intid, 0x80, cpu)
        for intid in range(32, self.gic.interrupts):
            self.write(Gicd.ISENABLER + 4 * (intid // 32), 1 << intid % 32)
            self.set_priority(intid, 0x80)

    def set_priority(self, intid: int, priority: int, cpu: int = 0) -> None:
        self.write(Gicd.IPRIORITYR + intid, priority, cpu, size=1)

    def make_level(self) -> None:
        """Make the SPIs 32 to 47 level-triggered."""
        self.write(Gicd.ICFGR + 8, 0)

    # Devices, and user space.

    def interrupt(self, intid: int, cpu: int = 0) -> Interrupt:
        return self.gic.interrupt(self.gic.cpus[cpu], intid)

    def line(self, intid: int, level: int, cpu: int = 0) -> None:
        self.gic.set_line(self.interrupt(intid, cpu), bool(level))

    def edge(self, *intids: int) -> None:
        """Raise lines of edge-triggered interrupts."""
        for intid in intids:
            self.line(intid, 1)

    def user_write(self, offset: int, value: int, cpu: int = 0) -> None:
        self.gic.distributor.user_write(self.gic.cpus[cpu], offset, value)

    def user_read(self, offset: int, cpu: int = 0) -> int:
        return self.gic.distributor.user_read(self.gic.cpus[cpu], offset)

    def user_write_cpu(self, offset: int, value: int, cpu: int = 0) -> None:
        self.gic.cpu_registers.user_write(self.gic.cpus[cpu], offset, value)

    def user_read_cpu(self, offset: int, cpu: int = 0) -> int:
        return self.gic.cpu_registers.user_read(self.gic.cpus[cpu], offset)
