"""The GICv3 of an arm64 VM: distributor, SGIs by affinity, and user space's accesses. Arm IHI 0069.

KVM: vgic-mmio-v3.c. Affinity routing is always on, and there is one security state. The redistributors are in
redistributor.py, the CPU interfaces in icc.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from typing import Any, Final, Protocol

from irqchipd.chips.gic.icc import ID_BITS as ICC_ID_BITS
from irqchipd.chips.gic.icc import Icc, IccRegisters, active_priority_registers
from irqchipd.chips.gic.interrupt import NOBODY, PRIVATE, SGIS
from irqchipd.chips.gic.interrupt_registers import InterruptRegisters
from irqchipd.chips.gic.list_register import LIST_REGISTERS, PRIORITY_BITS
from irqchipd.chips.gic.redistributor import (
    ID_REGISTERS,
    PENDBASER_BITS,
    PROPBASER_BITS,
    Redistributors,
    allowed_table,
    read_id,
)
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.registers import Read, Region, Registers, Write, read_as_zero, write_ignored
from irqchipd.chips.gic.saving import SavedGic, resume_gic, save_gic
from irqchipd.chips.gic.sysregs import SystemRegisters
from irqchipd.chips.gic.vgic import Deactivation, GicCpu, GicWires, Vgic
from irqchipd.chips.saved import check, in_range

DISTRIBUTOR_SIZE: Final = 0x10000
LINES_PER_WORD: Final = 32

CTLR, TYPER, IIDR, TYPER2, IROUTER = 0, 4, 8, 12, 0x6000  # offsets
CTLR_ENABLE: Final = 1 << 1  # EnableGrp1 enables both groups
CTLR_ARE: Final = 1 << 4  # affinity routing is enabled
CTLR_DS: Final = 1 << 6  # there is one security state
TYPER_LPIS: Final = 1 << 17
TYPER_ID_BITS_SHIFT: Final = 19
ID_BITS: Final = 10
ID_BITS_WITH_LPIS: Final = 16
IDENTITY: Final = 0x4B00043B  # GICD_IIDR: product K for KVM, implementer Arm
REVISION_SHIFT: Final = 12
REVISION_MASK: Final = 0xF << REVISION_SHIFT
REVISIONS: Final = (2, 3)  # KVM_VGIC_IMP_REV_2, _3
ROUTED: Final = 0xFFFFFF  # the bits that GICD_IROUTER keeps: Aff2, Aff1, Aff0
AFFINITY: Final = 0xFF << 32 | ROUTED

# System registers whose writes exit to the hypervisor.
SGI_REGISTERS: Final = frozenset({Icc.SGI0R, Icc.SGI1R, Icc.ASGI1R})
SGI_OTHERS: Final = 1 << 40  # ICC_SGI1R_EL1.IRM: all CPUs but the one that writes


class GicV3Wires(GicWires, Protocol):
    """The calls of a GICv3 to its VM."""

    def is_last(self, cpu: int) -> bool:
        """Whether a CPU's redistributor is the last of its region: GICR_TYPER.Last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRedistributor:
    """A GICv3's state of a vCPU besides SavedGicCpu: the fields of Redistributor, and two of ICC_CTLR_EL1."""

    affinity: int
    lpis_enabled: bool
    pendbaser: int
    priority_bits: int
    id_bits: int

    def check(self, has_its: bool, priority_bits: int) -> None:
        """Refuse a state that no vCPU with this many priority bits can have."""
        check(not self.affinity & ~AFFINITY, f"the affinity of a CPU is {self.affinity:#x}")
        check(has_its or not self.lpis_enabled, "LPIs are enabled without an interrupt translation service")
        check(self.pendbaser == allowed_table(self.pendbaser, PENDBASER_BITS), f"pendbaser {self.pendbaser:#x}")
        in_range(self.priority_bits, 1, priority_bits, "the number of priority bits of a CPU")
        in_range(self.id_bits, 0, ICC_ID_BITS, "id_bits of a CPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGicV3(SavedGic):
    """A GICv3 in a snapshot."""

    revision: int
    has_its: bool
    propbaser: int
    zero_affinity: int | None
    redistributors: tuple[SavedRedistributor, ...]

    def check(self, cpus: int, list_registers: int, priority_bits: int) -> None:
        """Refuse a state that no GICv3 with this many CPUs can have."""
        self.check_heart(3, cpus, list_registers)
        check(self.revision in REVISIONS, f"revision {self.revision}; use {REVISIONS[0]} or {REVISIONS[1]}")
        propbasers = (0, allowed_table(self.propbaser, PROPBASER_BITS))
        check(self.propbaser in propbasers, f"propbaser {self.propbaser:#x}")
        in_range(self.zero_affinity, 0, cpus - 1, "zero_affinity")
        check(len(self.redistributors) == cpus, f"{len(self.redistributors)} redistributors for {cpus} CPUs")
        for redistributor in self.redistributors:
            redistributor.check(self.has_its, priority_bits)
        # An SPI keeps its target when affinities of CPUs change, so any affinity can go with any target.
        for interrupt in self.spis:
            check(not interrupt.affinity & ~ROUTED, "an SPI has an affinity of more than three levels")
        used = active_priority_registers(priority_bits)
        for cpu in self.cpus:
            check(not any(i.affinity for i in cpu.private), "a private interrupt is routed by affinity")
            check(not (cpu.ackctl or cpu.fiqen), "a GICv3's CPU interface has neither AckCtl nor FIQEn")
            check(not any((*cpu.ap0r[used:], *cpu.ap1r[used:])), f"there are {used} active priorities registers")
        for interrupt in (*self.spis, *(i for cpu in self.cpus for i in cpu.private)):
            check(not interrupt.targets, "a GICv3's interrupt has targets of a GICv2")


class GicV3(Vgic):
    """A GICv3: distributor, redistributors, CPU interfaces, and their state for user space."""

    def __init__(
        self, wires: GicV3Wires, list_registers: int = LIST_REGISTERS, priority_bits: int = PRIORITY_BITS
    ) -> None:
        super().__init__(3, wires, list_registers)
        self._priority_bits: Final = priority_bits
        # The CPU with affinity 0, of several that had no affinity yet when a CPU first ran.
        self.zero_affinity: int | None = None
        self._interrupt_registers: Final = InterruptRegisters(self)
        self.distributor: Final = Registers(self, self._regions(self._interrupt_registers))
        self.redistributors: Final = Redistributors(self, wires)
        # By a CPU's index: the guest's ICC_ registers, and user space's.
        self.interfaces: Final[list[IccRegisters]] = []
        self.system_registers: Final[list[SystemRegisters]] = []

    def add_cpu(self, cpu_id: int, affinity: int) -> GicCpu:
        """Add a vCPU, its redistributor and its CPU interface."""
        cpu = super().add_cpu(cpu_id, affinity)
        self.redistributors.add_cpu()
        self.interfaces.append(IccRegisters(cpu.interface, Deactivation(self, cpu), self._priority_bits))
        self.system_registers.append(SystemRegisters(cpu.interface, self._priority_bits))
        return cpu

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedGicV3."""
        redistributors = self.redistributors
        return {
            **save_gic(self),
            "revision": redistributors.revision,
            "has_its": redistributors.has_its,
            "propbaser": redistributors.propbaser,
            "zero_affinity": self.zero_affinity,
            "redistributors": tuple(
                SavedRedistributor(
                    affinity=cpu.affinity,
                    lpis_enabled=redistributor.lpis_enabled,
                    pendbaser=redistributor.pendbaser,
                    priority_bits=registers.priority_bits,
                    id_bits=registers.id_bits,
                )
                for cpu, redistributor, registers in zip(
                    self.cpus, redistributors.each, self.system_registers, strict=True
                )
            ),
        }

    def resume(self, saved: SavedGicV3) -> None:
        """Go on from a snapshot, which has been checked; the GIC has its CPUs already. Nothing is delivered."""
        redistributors = self.redistributors
        redistributors.revision, redistributors.has_its = saved.revision, saved.has_its
        redistributors.propbaser = saved.propbaser
        self.zero_affinity = saved.zero_affinity
        for index, part in enumerate(saved.redistributors):
            self.cpus[index].affinity = part.affinity
            redistributors.each[index].lpis_enabled = part.lpis_enabled
            redistributors.each[index].pendbaser = part.pendbaser
            self.system_registers[index].priority_bits = part.priority_bits
            self.system_registers[index].id_bits = part.id_bits
        resume_gic(self, saved)

    def settle_affinities(self) -> None:
        """A CPU is to run for the first time: of several without an affinity, the last has 0. KVM: kvm_init_mpidr_data.

        While none has run, it is the first of them.
        """
        alike = [cpu.index for cpu in self.cpus if cpu.affinity == 0]
        if self.zero_affinity is None and len(alike) > 1:
            self.zero_affinity = alike[-1]

    def find_cpu(self, affinity: int) -> GicCpu | None:
        """The CPU with an affinity. KVM: kvm_mpidr_to_vcpu."""
        zero = self.zero_affinity
        if affinity == 0 and zero is not None and self.cpus[zero].affinity == 0:
            return self.cpus[zero]
        for cpu in self.cpus:
            if cpu.affinity == affinity:
                return cpu
        return None

    def generate_sgi(self, cpu: GicCpu, register: int, value: int) -> None:
        """A CPU writes ICC_SGI1R_EL1, ICC_SGI0R_EL1 or ICC_ASGI1R_EL1. KVM: vgic_v3_dispatch_sgi.

        The range selector is ignored. Only ICC_SGI1R_EL1 generates SGIs of group 1, and those of group 0, too.
        """
        sgi = value >> 24 & 0xF
        group1 = register == Icc.SGI1R
        if value & SGI_OTHERS:
            for target in self.cpus:
                if target is not cpu:
                    self._send_sgi(target, sgi, group1)
            return
        # Aff3, Aff2 and Aff1 are in bits 55:48, 39:32 and 23:16.
        affinity = (value >> 48 & 0xFF) << 32 | (value >> 32 & 0xFF) << 16 | (value >> 16 & 0xFF) << 8
        for aff0 in range(16):
            if value >> aff0 & 1:
                found = self.find_cpu(affinity | aff0)
                if found is not None:
                    self._send_sgi(found, sgi, group1)

    def _send_sgi(self, cpu: GicCpu, sgi: int, group1: bool) -> None:
        """KVM: vgic_v3_queue_sgi."""
        interrupt = cpu.private[sgi]
        if group1 or not interrupt.group:
            interrupt.pending_latch = True
            self.queue(interrupt)

    def read_lines(self, cpu: GicCpu, first: int) -> int:
        """The lines of 32 interrupts: KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO. KVM: vgic_read_irq_line_level_info."""
        _check_first_line(first)
        value = 0
        for n in range(LINES_PER_WORD):
            if SGIS <= first + n < self.interrupts:
                interrupt = self.interrupt(cpu, first + n)
                value |= (interrupt.level and interrupt.line) << n
        return value

    def write_lines(self, cpu: GicCpu, first: int, value: int) -> None:
        """Set the lines of 32 interrupts, edge-triggered ones, too. KVM: vgic_write_irq_line_level_info."""
        _check_first_line(first)
        for n in range(LINES_PER_WORD):
            if SGIS <= first + n < self.interrupts:
                interrupt = self.interrupt(cpu, first + n)
                interrupt.line = bool(value >> n & 1)
                if interrupt.line:
                    self.queue(interrupt)

    def _regions(self, i: InterruptRegisters) -> list[Region]:
        """KVM: vgic_v3_dist_registers."""
        bytes_too = (1, 4)
        return [
            Region(0x0000, 16, self._read_control, self._write_control, user_write=self._user_write_control),
            Region(0x0010, 4, _read_as_one, write_ignored),  # GICD_STATUSR
            _shared(0x0080, i.read_group, i.write_group),
            _shared(0x0100, i.read_enabled, i.enable, user_write=i.user_enable),
            _shared(0x0180, i.read_enabled, i.disable),
            _shared(
                0x0200,
                i.read_pending,
                i.set_pending,
                user_read=i.user_read_pending,
                user_write=i.user_write_pending,
            ),
            _shared(0x0280, i.read_pending, i.clear_pending, user_read=read_as_zero, user_write=write_ignored),
            _shared(0x0300, i.read_active, i.set_active, user_write=i.user_set_active),
            _shared(0x0380, i.read_active, i.clear_active, user_write=i.user_clear_active),
            _shared(0x0400, i.read_priority, i.write_priority, bits=8, sizes=bytes_too),
            Region(0x0800, 0, read_as_zero, write_ignored, bits=8, sizes=bytes_too),  # GICD_ITARGETSR
            _shared(0x0C00, i.read_config, i.write_config, bits=2),
            Region(0x0D00, 0, read_as_zero, write_ignored, bits=1),  # GICD_IGRPMODR
            Region(IROUTER, 0, self._read_router, self._write_router, bits=64, sizes=(4, 8)),
            Region(0xFFD0, ID_REGISTERS, read_id, write_ignored),
        ]

    def _read_control(self, _cpu: GicCpu, offset: int, _size: int) -> int:
        """CTLR, TYPER, IIDR, TYPER2. KVM: vgic_mmio_read_v3_misc."""
        if offset == CTLR:
            return CTLR_DS | CTLR_ARE | (CTLR_ENABLE if self.enabled else 0)
        if offset == TYPER:
            value = (self.interrupts >> 5) - 1
            if self.redistributors.has_its:
                return value | TYPER_LPIS | ID_BITS_WITH_LPIS - 1 << TYPER_ID_BITS_SHIFT
            return value | ID_BITS - 1 << TYPER_ID_BITS_SHIFT
        return IDENTITY | self.redistributors.revision << REVISION_SHIFT if offset == IIDR else 0

    def _write_control(self, _cpu: GicCpu, offset: int, _size: int, value: int) -> None:
        """CTLR. KVM: vgic_mmio_write_v3_misc. Enabling does not queue interrupts that are pending already."""
        if offset == CTLR:
            was_enabled = self.enabled
            self.enabled = value & CTLR_ENABLE != 0
            if self.enabled and not was_enabled:
                self.kick_all()

    def _user_write_control(self, _cpu: GicCpu, offset: int, _size: int, value: int) -> None:
        """CTLR, and the revision in IIDR. KVM: vgic_mmio_uaccess_write_v3_misc."""
        if offset == CTLR:
            self.enabled = value & CTLR_ENABLE != 0
        elif offset == IIDR:
            revision = (value & REVISION_MASK) >> REVISION_SHIFT
            if value & ~REVISION_MASK != IDENTITY or revision not in REVISIONS:
                allowed = " or ".join(f"{IDENTITY | r << REVISION_SHIFT:#x}" for r in REVISIONS)
                raise AccessRefused(EINVAL, f"GICD_IIDR cannot be {value:#x}; {allowed} is allowed")
            self.redistributors.revision = revision
        elif offset == TYPER2 and value:
            raise AccessRefused(EINVAL, f"GICD_TYPER2 cannot be {value:#x}; use 0")

    def _read_router(self, cpu: GicCpu, offset: int, _size: int) -> int:
        """IROUTER. KVM: vgic_mmio_read_irouter. The upper word, with Aff3, is read-as-zero, write-ignored."""
        intid = offset - IROUTER >> 3
        return 0 if offset & 4 or intid < PRIVATE else self.interrupt(cpu, intid).affinity

    def _write_router(self, cpu: GicCpu, offset: int, _size: int, value: int) -> None:
        """IROUTER. KVM: vgic_mmio_write_irouter. An interrupt for an affinity without a CPU goes nowhere."""
        intid = offset - IROUTER >> 3
        if offset & 4 or intid < PRIVATE:
            return
        interrupt = self.interrupt(cpu, intid)
        interrupt.affinity = value & ROUTED
        target = self.find_cpu(interrupt.affinity)
        interrupt.target = NOBODY if target is None else target.index


def _check_first_line(first: int) -> None:
    if first % LINES_PER_WORD:
        raise AccessRefused(EINVAL, f"interrupt {first} is not the first of a word of lines; use a multiple of 32")


def _read_as_one(_cpu: GicCpu, _first: int, _count: int) -> int:
    """KVM: vgic_mmio_read_rao."""
    return 0xFFFF_FFFF


def _shared(
    start: int,
    read: Read,
    write: Write,
    *,
    user_read: Read | None = None,
    user_write: Write | None = None,
    bits: int = 1,
    sizes: tuple[int, ...] = (4,),
) -> Region:
    """Registers for SPIs; the redistributors have those of SGIs and PPIs.

    KVM: REGISTER_DESC_WITH_BITS_PER_IRQ_SHARED.
    """
    return Region(
        start,
        0,
        _shared_read(read),
        _shared_write(write),
        user_read=_shared_read(user_read or read),
        user_write=_shared_write(user_write or write),
        bits=bits,
        sizes=sizes,
    )


def _shared_read(read: Read) -> Read:
    def shared(cpu: GicCpu, first: int, count: int) -> int:
        return read(cpu, first, count) if first >= PRIVATE else 0

    return shared


def _shared_write(write: Write) -> Write:
    def shared(cpu: GicCpu, first: int, count: int, value: int) -> None:
        if first >= PRIVATE:
            write(cpu, first, count, value)

    return shared
