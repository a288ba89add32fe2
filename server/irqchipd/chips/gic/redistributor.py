"""The redistributors of a GICv3: each vCPU has one, with the registers of its SGIs and PPIs. Arm IHI 0069, 12.11.

KVM: vgic-mmio-v3.c vgic_v3_rd_registers. The VM knows a redistributor's address.
"""

from __future__ import annotations

from typing import Final, Protocol

from irqchipd.chips.gic.interrupt import PRIVATE
from irqchipd.chips.gic.interrupt_registers import InterruptRegisters
from irqchipd.chips.gic.registers import Region, Registers, read_as_zero, write_ignored
from irqchipd.chips.gic.vgic import GicCpu, Vgic

FRAME_SIZE: Final = 0x20000  # RD_base, and SGI_base at 64 KiB
SGI_BASE: Final = 0x10000
WORDS: Final = (4, 8)  # sizes of accesses to registers of 64 bits

IIDR: Final = 0x4B00043B  # product K for KVM, implementer Arm
PIDR2: Final = 0x3B  # architecture version 3
PIDR2_OFFSET: Final = 0xFFE8
ID_REGISTERS: Final = 48  # bytes

CTLR_ENABLE_LPIS: Final = 1 << 0
CTLR_CES: Final = 1 << 1  # enabling LPIs can be undone
CTLR_IR: Final = 1 << 2  # GICR_INVLPIR and GICR_INVALLR exist
TYPER_PLPIS: Final = 1 << 0
TYPER_LAST: Final = 1 << 4

# GICR_PROPBASER and GICR_PENDBASER: memory attributes, and bits that are always 0.
INNER_CACHEABILITY_SHIFT: Final = 7
SHAREABILITY_SHIFT: Final = 10
OUTER_CACHEABILITY_SHIFT: Final = 56
NON_CACHEABLE: Final = 1
READ_ALLOCATE_WRITE_BACK: Final = 3
INNER_SHAREABLE: Final = 1
OUTER_SHAREABLE: Final = 2
PENDBASER_PTZ: Final = 1 << 62  # the pending table is zero; reads as 0
TABLE_RESET: Final = READ_ALLOCATE_WRITE_BACK << INNER_CACHEABILITY_SHIFT | INNER_SHAREABLE << SHAREABILITY_SHIFT
PROPBASER_BITS: Final = (1 << 64) - 1 & ~(0x1F << 59 | 0xF << 52 | 0x3 << 5)
PENDBASER_BITS: Final = (1 << 64) - 1 & ~(1 << 63 | 0x7 << 59 | 0xF << 52 | 0xF << 12 | 0x7F)


class RedistributorWires(Protocol):
    """The calls of the redistributors to their VM."""

    def is_last(self, cpu: int) -> bool:
        """Whether a CPU's redistributor is the last of its region: GICR_TYPER.Last."""


class Redistributor:
    """A GICv3's state of a vCPU besides its interrupts."""

    __slots__ = ("lpis_enabled", "pendbaser")

    def __init__(self) -> None:
        self.lpis_enabled = False
        # The address of the pending table of LPIs.
        self.pendbaser = TABLE_RESET


class Redistributors:
    """All redistributors, whose frames have the same registers."""

    def __init__(self, vgic: Vgic, wires: RedistributorWires) -> None:
        self._wires: Final = wires
        # By the CPU's index.
        self.each: Final[list[Redistributor]] = []
        # The address of the configuration table of LPIs, which all redistributors share.
        self.propbaser = 0
        # Whether the VM has an interrupt translation service, and with it LPIs.
        self.has_its = False
        # GICD_IIDR.Revision, on which some registers depend.
        self.revision = 3
        self.registers: Final = Registers(vgic, self._regions(InterruptRegisters(vgic)))

    def add_cpu(self) -> None:
        """Add the next vCPU's redistributor."""
        self.each.append(Redistributor())

    def add_its(self) -> None:
        """The VM gets an interrupt translation service. KVM: vgic_its_create."""
        self.has_its = True
        self.propbaser = TABLE_RESET

    def _regions(self, i: InterruptRegisters) -> list[Region]:
        sgi = SGI_BASE
        zero, ignored = read_as_zero, write_ignored
        return [
            Region(0x00, 4, self._read_ctlr, self._write_ctlr),
            Region(0x04, 4, _read_iidr, ignored),
            Region(0x08, 8, self._read_typer, ignored, sizes=WORDS),
            # GICR_STATUSR (0x10) is out of order in KVM's table, where a binary search does not find it.
            Region(0x14, 4, zero, ignored),  # GICR_WAKER: a redistributor never sleeps
            Region(0x70, 8, self._read_propbaser, self._write_propbaser, sizes=WORDS),
            Region(0x78, 8, self._read_pendbaser, self._write_pendbaser, sizes=WORDS),
            Region(0xA0, 8, zero, ignored, sizes=WORDS),  # GICR_INVLPIR
            Region(0xB0, 8, zero, ignored, sizes=WORDS),  # GICR_INVALLR
            Region(0xC0, 4, zero, ignored),  # GICR_SYNCR: never busy
            Region(0xFFD0, ID_REGISTERS, read_id, ignored),
            Region(sgi + 0x80, 4, i.read_group, i.write_group, bits=1),
            Region(sgi + 0x100, 4, i.read_enabled, i.enable, user_write=i.user_enable, bits=1),
            Region(sgi + 0x180, 4, i.read_enabled, i.disable, bits=1),
            Region(
                sgi + 0x200,
                4,
                i.read_pending,
                i.set_pending,
                user_read=i.user_read_pending,
                user_write=i.user_write_pending,
                bits=1,
            ),
            Region(sgi + 0x280, 4, i.read_pending, i.clear_pending, user_read=zero, user_write=ignored, bits=1),
            Region(sgi + 0x300, 4, i.read_active, i.set_active, user_write=i.user_set_active, bits=1),
            Region(sgi + 0x380, 4, i.read_active, i.clear_active, user_write=i.user_clear_active, bits=1),
            Region(sgi + 0x400, PRIVATE, i.read_priority, i.write_priority, bits=8, sizes=(1, 4)),
            Region(sgi + 0xC00, 8, i.read_config, i.write_config, bits=2),
            Region(sgi + 0xD00, 4, zero, ignored),  # GICR_IGRPMODR0
            Region(sgi + 0xE00, 4, zero, ignored),  # GICR_NSACR
        ]

    def _read_ctlr(self, cpu: GicCpu, _offset: int, _size: int) -> int:
        """KVM: vgic_mmio_read_v3r_ctlr."""
        value = CTLR_ENABLE_LPIS if self.each[cpu.index].lpis_enabled else 0
        return value | CTLR_CES | CTLR_IR if self.revision >= 3 else value

    def _write_ctlr(self, cpu: GicCpu, _offset: int, _size: int, value: int) -> None:
        """KVM: vgic_mmio_write_v3r_ctlr."""
        if self.has_its:
            self.each[cpu.index].lpis_enabled = bool(value & CTLR_ENABLE_LPIS)

    def _read_typer(self, cpu: GicCpu, offset: int, _size: int) -> int:
        """KVM: vgic_mmio_read_v3r_typer."""
        value = (cpu.affinity & 0xFFFFFF) << 32 | (cpu.id & 0xFFFF) << 8
        if self.has_its:
            value |= TYPER_PLPIS
        if self._wires.is_last(cpu.index):
            value |= TYPER_LAST
        return value >> 8 * (offset & 7)

    def _read_propbaser(self, _cpu: GicCpu, offset: int, _size: int) -> int:
        """KVM: vgic_mmio_read_propbase."""
        return self.propbaser >> 8 * (offset & 7)

    def _write_propbaser(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """KVM: vgic_mmio_write_propbase."""
        if not self.each[cpu.index].lpis_enabled:
            self.propbaser = allowed_table(merged(self.propbaser, offset, size, value), PROPBASER_BITS)

    def _read_pendbaser(self, cpu: GicCpu, offset: int, _size: int) -> int:
        """KVM: vgic_mmio_read_pendbase."""
        return (self.each[cpu.index].pendbaser & ~PENDBASER_PTZ) >> 8 * (offset & 7)

    def _write_pendbaser(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """KVM: vgic_mmio_write_pendbase."""
        redistributor = self.each[cpu.index]
        if not redistributor.lpis_enabled:
            value = merged(redistributor.pendbaser, offset, size, value)
            redistributor.pendbaser = allowed_table(value, PENDBASER_BITS)


def read_id(_cpu: GicCpu, offset: int, _size: int) -> int:
    """The ID registers of a distributor or redistributor. KVM: vgic_mmio_read_v3_idregs."""
    return PIDR2 if offset & 0xFFFF == PIDR2_OFFSET else 0


def _read_iidr(_cpu: GicCpu, _offset: int, _size: int) -> int:
    """KVM: vgic_mmio_read_v3r_iidr."""
    return IIDR


def merged(register: int, offset: int, size: int, value: int) -> int:
    """A register of 64 bits after a write of some of its bytes. KVM: update_64bit_reg."""
    shift = 8 * (offset & 7)
    mask = (1 << 8 * size) - 1 << shift
    return register & ~mask | value << shift & mask


def allowed_table(value: int, bits: int) -> int:
    """A table's register with only the given bits, and with allowed memory attributes.

    KVM: vgic_sanitise_propbaser, vgic_sanitise_pendbaser.
    """
    return allowed_attributes(value, INNER_CACHEABILITY_SHIFT, OUTER_CACHEABILITY_SHIFT) & bits


def allowed_attributes(value: int, inner: int, outer: int) -> int:
    """A register with allowed memory attributes; inner and outer are the positions of the cacheabilities.

    KVM: vgic_sanitise_shareability, vgic_sanitise_inner_cacheability, vgic_sanitise_outer_cacheability.
    """
    if value >> SHAREABILITY_SHIFT & 3 == OUTER_SHAREABLE:
        value = value & ~(3 << SHAREABILITY_SHIFT) | INNER_SHAREABLE << SHAREABILITY_SHIFT
    if value >> inner & 7 <= NON_CACHEABLE:
        value = value & ~(7 << inner) | READ_ALLOCATE_WRITE_BACK << inner
    if value >> outer & 7 > NON_CACHEABLE:
        value &= ~(7 << outer)
    return value
