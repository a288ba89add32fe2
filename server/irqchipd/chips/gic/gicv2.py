"""A GICv2 as Linux KVM has it: the distributor's registers, and user space's access to them.

Arm IHI 0048B, 4.3: GICD at offsets of a 4 KiB frame. KVM v6.12: vgic-mmio-v2.c. The CPU interfaces (GICC) are hardware
that works on the list registers: gicc.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from typing import Any, Final

from irqchipd.chips.gic.gicc import Gicc, GiccFrame
from irqchipd.chips.gic.interrupt import PRIVATE, SGIS
from irqchipd.chips.gic.interrupt_registers import InterruptRegisters
from irqchipd.chips.gic.list_register import LIST_REGISTERS
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.registers import Region, Registers, read_as_zero
from irqchipd.chips.gic.saving import SavedGic, resume_gic, save_gic
from irqchipd.chips.gic.vgic import PRIORITY_MASK, Deactivation, GicCpu, GicWires, Vgic
from irqchipd.chips.saved import check

DISTRIBUTOR_SIZE: Final = 0x1000
BYTE_OR_WORD: Final = (1, 4)


class Gicd:
    """Offsets of the distributor's registers."""

    CTLR: Final = 0x000
    TYPER: Final = 0x004
    IIDR: Final = 0x008
    IGROUPR: Final = 0x080
    ISENABLER: Final = 0x100
    ICENABLER: Final = 0x180
    ISPENDR: Final = 0x200
    ICPENDR: Final = 0x280
    ISACTIVER: Final = 0x300
    ICACTIVER: Final = 0x380
    IPRIORITYR: Final = 0x400
    ITARGETSR: Final = 0x800
    ICFGR: Final = 0xC00
    SGIR: Final = 0xF00
    CPENDSGIR: Final = 0xF10
    SPENDSGIR: Final = 0xF20


class Filter:
    """GICD_SGIR bits 25:24: whom an SGI is for."""

    LISTED: Final = 0
    OTHERS: Final = 1
    SELF: Final = 2


ENABLE: Final = 1 << 0  # of GICD_CTLR
IIDR: Final = 0x4B << 24 | 0x43B  # KVM's product identifier, and Arm as the implementer
REVISION_SHIFT: Final = 12
REVISION_MASK: Final = 0xF << REVISION_SHIFT
REVISIONS: Final = (2, 3)  # KVM_VGIC_IMP_REV_2, KVM_VGIC_IMP_REV_3
CPU_IIDR: Final = 0x4B << 20 | 2 << 16 | 0x43B  # version 2 of the architecture
BINARY_POINT: Final = 7  # three bits of GICH_VMCR
PMR_SHIFT: Final = 3  # user space sees the five bits of GICH_VMCR.VMPriMask


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGicV2(SavedGic):
    """A GICv2 in a snapshot."""

    revision: int
    groups_writable: bool

    def check(self, cpus: int, list_registers: int) -> None:
        """Refuse a state that no GICv2 with this many CPUs can have."""
        self.check_heart(2, cpus, list_registers)
        check(self.revision in REVISIONS, f"revision {self.revision}; use {REVISIONS[0]} or {REVISIONS[1]}")
        for interrupt in self.spis:
            check(not interrupt.targets >> cpus, "an SPI has a target CPU that does not exist")
            target = _lowest(interrupt.targets) if cpus else None
            check(interrupt.target == target, "an SPI's target differs from its targets")
        for index, cpu in enumerate(self.cpus):
            check(all(i.targets == 1 << index for i in cpu.private), "a private interrupt has another CPU as a target")
            check(not cpu.pmr & ~PRIORITY_MASK, f"pmr is {cpu.pmr}; use a multiple of 8")
            check(not any((*cpu.ap0r[1:], *cpu.ap1r)), "a GICv2's CPU has more than one active priorities register")
        for interrupt in (*self.spis, *(i for cpu in self.cpus for i in cpu.private)):
            check(not interrupt.affinity, "a GICv2's interrupt has an affinity")


class GicV2(Vgic):
    """A GICv2: distributor, CPU interfaces, and its state for user space."""

    def __init__(self, wires: GicWires, list_registers: int = LIST_REGISTERS) -> None:
        super().__init__(2, wires, list_registers)
        self.revision = REVISIONS[-1]
        # Whether user space has written GICD_IIDR, and may therefore write the groups.
        self.groups_writable = False
        self.distributor: Final = Registers(self, self._distributor_regions())
        # User space's registers of the CPU interfaces. The guest accesses frames instead.
        self.cpu_registers: Final = Registers(self, self._cpu_regions())
        # By a CPU's index.
        self.frames: Final[list[GiccFrame]] = []

    def add_cpu(self, cpu_id: int, affinity: int = 0) -> GicCpu:
        """Add a vCPU and its CPU interface."""
        cpu = super().add_cpu(cpu_id, affinity)
        self.frames.append(GiccFrame(cpu.interface, Deactivation(self, cpu)))
        return cpu

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedGicV2."""
        return {**save_gic(self), "revision": self.revision, "groups_writable": self.groups_writable}

    def resume(self, saved: SavedGicV2) -> None:
        """Resume from a checked snapshot; the GIC has its CPUs already. Nothing is delivered."""
        self.revision, self.groups_writable = saved.revision, saved.groups_writable
        resume_gic(self, saved)

    def _distributor_regions(self) -> list[Region]:
        """KVM: vgic_v2_dist_registers."""
        shared = InterruptRegisters(self)
        pending = shared.read_pending
        user_pending = shared.user_read_pending
        return [
            Region(Gicd.CTLR, 12, self._read_control, self._write_control, user_write=self._user_write_control),
            Region(Gicd.IGROUPR, 0, shared.read_group, shared.write_group, user_write=self._user_write_group, bits=1),
            Region(Gicd.ISENABLER, 0, shared.read_enabled, shared.enable, user_write=shared.user_enable, bits=1),
            Region(Gicd.ICENABLER, 0, shared.read_enabled, shared.disable, bits=1),
            Region(
                Gicd.ISPENDR,
                0,
                pending,
                shared.set_pending,
                user_read=user_pending,
                user_write=shared.user_set_pending,
                bits=1,
            ),
            Region(
                Gicd.ICPENDR,
                0,
                pending,
                shared.clear_pending,
                user_read=user_pending,
                user_write=shared.user_clear_pending,
                bits=1,
            ),
            Region(Gicd.ISACTIVER, 0, shared.read_active, shared.set_active, user_write=shared.user_set_active, bits=1),
            Region(
                Gicd.ICACTIVER, 0, shared.read_active, shared.clear_active, user_write=shared.user_clear_active, bits=1
            ),
            Region(Gicd.IPRIORITYR, 0, shared.read_priority, shared.write_priority, bits=8, sizes=BYTE_OR_WORD),
            Region(Gicd.ITARGETSR, 0, self._read_targets, self._write_targets, bits=8, sizes=BYTE_OR_WORD),
            Region(Gicd.ICFGR, 0, shared.read_config, shared.write_config, bits=2),
            Region(Gicd.SGIR, 4, read_as_zero, self._generate),
            Region(Gicd.CPENDSGIR, SGIS, self._read_sources, self._clear_sources, sizes=BYTE_OR_WORD),
            Region(Gicd.SPENDSGIR, SGIS, self._read_sources, self._set_sources, sizes=BYTE_OR_WORD),
        ]

    def _cpu_regions(self) -> list[Region]:
        """KVM: vgic_v2_cpu_registers."""
        lengths = {Gicc.CTLR: 4, Gicc.PMR: 4, Gicc.BPR: 4, Gicc.ABPR: 4, Gicc.APR0: 16, Gicc.IIDR: 4}
        return [Region(offset, length, self._read_cpu, self._write_cpu) for offset, length in lengths.items()]

    def _read_control(self, _cpu: GicCpu, offset: int, _size: int) -> int:
        """CTLR, TYPER and IIDR. KVM: vgic_mmio_read_v2_misc."""
        if offset == Gicd.CTLR:
            return ENABLE if self.enabled else 0
        if offset == Gicd.TYPER:
            return (self.interrupts >> 5) - 1 | len(self.cpus) - 1 << 5
        return IIDR | self.revision << REVISION_SHIFT

    def _write_control(self, _cpu: GicCpu, offset: int, _size: int, value: int) -> None:
        """CTLR. KVM: vgic_mmio_write_v2_misc. Enabling does not queue interrupts that are pending already."""
        if offset == Gicd.CTLR:
            was_enabled = self.enabled
            self.enabled = value & ENABLE != 0
            if self.enabled and not was_enabled:
                self.kick_all()

    def _user_write_control(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """CTLR, and the revision in IIDR. KVM: vgic_mmio_uaccess_write_v2_misc."""
        if offset != Gicd.IIDR:
            self._write_control(cpu, offset, size, value)
            return
        revision = (value & REVISION_MASK) >> REVISION_SHIFT
        if value & ~REVISION_MASK != IIDR or revision not in REVISIONS:
            allowed = " or ".join(f"{IIDR | r << REVISION_SHIFT:#x}" for r in REVISIONS)
            message = f"GICD_IIDR cannot be {value:#x}; {allowed} is allowed"
            raise AccessRefused(EINVAL, message)
        self.revision = revision
        self.groups_writable = True

    def _user_write_group(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """IGROUPR. User space from before the groups must not write it. KVM: vgic_mmio_uaccess_write_v2_group."""
        if self.groups_writable:
            InterruptRegisters(self).write_group(cpu, first, count, value)

    def _read_targets(self, cpu: GicCpu, first: int, count: int) -> int:
        """ITARGETSR. KVM: vgic_mmio_read_target."""
        value = 0
        for n in range(count):
            value |= self.interrupt(cpu, first + n).targets << 8 * n
        return value

    def _write_targets(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ITARGETSR, read-only for private interrupts. KVM: vgic_mmio_write_target: the lowest CPU gets them."""
        if first < PRIVATE:
            return
        for n in range(count):
            interrupt = self.interrupt(cpu, first + n)
            interrupt.targets = value >> 8 * n & (1 << len(self.cpus)) - 1 & 0xFF
            interrupt.target = _lowest(interrupt.targets)

    def _generate(self, cpu: GicCpu, _offset: int, _size: int, value: int) -> None:
        """SGIR: send an SGI. KVM: vgic_mmio_write_sgir. NSATT is ignored."""
        which = value >> 24 & 3
        if which == Filter.LISTED:
            targets = value >> 16 & 0xFF
        elif which == Filter.OTHERS:
            targets = (1 << len(self.cpus)) - 1 & ~(1 << cpu.id)
        elif which == Filter.SELF:
            targets = 1 << cpu.id
        else:
            return
        for target in self.cpus:
            if targets >> target.index & 1:
                interrupt = target.private[value & 0xF]
                interrupt.pending_latch = True
                interrupt.source |= 1 << cpu.id & 0xFF
                self.queue(interrupt)

    def _read_sources(self, cpu: GicCpu, offset: int, size: int) -> int:
        """CPENDSGIR and SPENDSGIR. KVM: vgic_mmio_read_sgipend."""
        value = 0
        for n in range(size):
            value |= cpu.private[(offset & 0xF) + n].source << 8 * n
        return value

    def _clear_sources(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """CPENDSGIR. KVM: vgic_mmio_write_sgipendc."""
        for n in range(size):
            interrupt = cpu.private[(offset & 0xF) + n]
            interrupt.source &= ~(value >> 8 * n)
            if not interrupt.source:
                interrupt.pending_latch = False

    def _set_sources(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """SPENDSGIR. KVM: vgic_mmio_write_sgipends."""
        for n in range(size):
            interrupt = cpu.private[(offset & 0xF) + n]
            interrupt.source |= value >> 8 * n & 0xFF
            if interrupt.source:
                interrupt.pending_latch = True
                self.queue(interrupt)

    def _read_cpu(self, cpu: GicCpu, offset: int, _size: int) -> int:
        """User space's read of a CPU interface. KVM: vgic_mmio_read_vcpuif, vgic_mmio_read_apr."""
        vmcr = cpu.interface.vmcr
        if offset == Gicc.CTLR:
            return self.frames[cpu.index].control()
        if offset == Gicc.PMR:
            return vmcr.pmr >> PMR_SHIFT
        if offset == Gicc.BPR:
            return vmcr.bpr
        if offset == Gicc.ABPR:
            return vmcr.abpr
        if offset == Gicc.APR0:
            return cpu.interface.ap0r[0]
        return CPU_IIDR if offset == Gicc.IIDR else 0

    def _write_cpu(self, cpu: GicCpu, offset: int, _size: int, value: int) -> None:
        """KVM: vgic_mmio_write_vcpuif, vgic_mmio_write_apr."""
        vmcr = cpu.interface.vmcr
        if offset == Gicc.CTLR:
            self.frames[cpu.index].set_control(value)
        elif offset == Gicc.PMR:
            vmcr.pmr = value << PMR_SHIFT & 0xFF
        elif offset == Gicc.BPR:
            vmcr.bpr = value & BINARY_POINT
        elif offset == Gicc.ABPR:
            vmcr.abpr = value & BINARY_POINT
        elif offset == Gicc.APR0:
            cpu.interface.ap0r[0] = value


def _lowest(targets: int) -> int:
    """The CPU that gets an SPI: the lowest target, or CPU 0. KVM: vgic_mmio_write_target."""
    return (targets & -targets).bit_length() - 1 if targets else 0
