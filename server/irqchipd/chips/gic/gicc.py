"""The CPU interface of a GICv2 that a guest sees at its GICC address: a GICV frame. Arm IHI 0048B, 4.4 and 5.5."""

from __future__ import annotations

from typing import Final

from irqchipd.chips.gic.cpu_interface import SPECIAL, SPURIOUS, CpuInterface
from irqchipd.chips.gic.list_register import IDLE_PRIORITY, ListRegister

FRAME_SIZE: Final = 0x2000
HIDDEN: Final = 1022  # the pending interrupt is in group 1, and AckCtl is clear

# GICH_LR and GICH_VMCR have five bits of priority, so a binary point below 2 would have no further effect.
PRIORITY_MASK: Final = 0xF8
MIN_BPR: Final = 2
MIN_ABPR: Final = 3
# The minimum for a guest's own write. Loading GICH_VMCR raises the field to MIN_ABPR the next time the vCPU runs.
MIN_WRITTEN_ABPR: Final = 1


class Gicc:
    """Offsets in the frame."""

    CTLR: Final = 0x00
    PMR: Final = 0x04
    BPR: Final = 0x08
    IAR: Final = 0x0C
    EOIR: Final = 0x10
    RPR: Final = 0x14
    HPPIR: Final = 0x18
    ABPR: Final = 0x1C
    APR0: Final = 0xD0
    IIDR: Final = 0xFC
    DIR: Final = 0x1000


class Ctlr:
    """Bits of GICC_CTLR."""

    ENABLE_GROUP_0: Final = 1 << 0
    ENABLE_GROUP_1: Final = 1 << 1
    ACK_CTL: Final = 1 << 2
    FIQ_EN: Final = 1 << 3
    CBPR: Final = 1 << 4
    EOI_MODE: Final = 1 << 9


IIDR: Final = 0x0002043B  # architecture version 2, implementer Arm


class GiccFrame(CpuInterface):
    """The frame; QEMU: arm_gic.c gic_cpu_read, gic_cpu_write of a vCPU. GICC_AIAR, AEOIR and AHPPIR do not exist."""

    def load(self) -> None:
        """QEMU: arm_gic.c gic_vmcr_write."""
        vmcr = self.state.vmcr
        vmcr.bpr = max(vmcr.bpr, MIN_BPR)
        vmcr.abpr = max(vmcr.abpr, MIN_ABPR)
        vmcr.pmr &= PRIORITY_MASK

    def outputs(self) -> tuple[bool, bool]:
        """IRQ and FIQ: group 0 drives FIQ if FIQEn is set, everything else drives IRQ."""
        vmcr = self.state.vmcr
        best = self._highest_pending()
        if best is None or best.priority >= self._running_priority():
            return False, False
        if not (vmcr.grpen1 if best.group else vmcr.grpen0):
            return False, False
        fiq = bool(best.group == 0 and vmcr.fiqen)
        return not fiq, fiq

    def read(self, offset: int, size: int = 4) -> int:
        """A guest's read. Narrow reads give the low bytes of a register, a wide one two registers."""
        if size == 8:
            return self._read(offset) | self._read(offset + 4) << 32
        return self._read(offset) & ((1 << 8 * size) - 1)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """A guest's write. A narrow write is a write of the whole register."""
        if size == 8:
            self._write(offset, value & 0xFFFFFFFF)
            self._write(offset + 4, value >> 32)
        else:
            self._write(offset, value & ((1 << 8 * size) - 1))

    def _read(self, offset: int) -> int:
        vmcr = self.state.vmcr
        if offset == Gicc.CTLR:
            value = self.control()
        elif offset == Gicc.PMR:
            value = vmcr.pmr
        elif offset == Gicc.BPR:
            value = vmcr.bpr
        elif offset == Gicc.IAR:
            value = self._acknowledge()
        elif offset == Gicc.RPR:
            value = min(self._running_priority(), IDLE_PRIORITY)
        elif offset == Gicc.HPPIR:
            value = self._visible(self._highest_pending())
        elif offset == Gicc.ABPR:
            value = vmcr.abpr
        elif offset == Gicc.APR0:
            value = self.state.ap0r[0]
        elif offset == Gicc.IIDR:
            value = IIDR
        else:
            value = 0
        return value

    def _write(self, offset: int, value: int) -> None:
        vmcr = self.state.vmcr
        if offset == Gicc.CTLR:
            self.set_control(value)
        elif offset == Gicc.PMR:
            vmcr.pmr = value & PRIORITY_MASK
        elif offset == Gicc.BPR:
            vmcr.bpr = max(value & 7, MIN_BPR)
        elif offset == Gicc.EOIR:
            self._end(value & 0x3FF)
        elif offset == Gicc.ABPR:
            vmcr.abpr = max(value & 7, MIN_WRITTEN_ABPR)
        elif offset == Gicc.APR0:
            self.state.ap0r[0] = value
        elif offset == Gicc.DIR:
            self._deactivate(value & 0x3FF)

    def control(self) -> int:
        """GICC_CTLR's value."""
        vmcr = self.state.vmcr
        value = vmcr.grpen0 * Ctlr.ENABLE_GROUP_0 | vmcr.grpen1 * Ctlr.ENABLE_GROUP_1
        value |= vmcr.ackctl * Ctlr.ACK_CTL | vmcr.fiqen * Ctlr.FIQ_EN
        return value | vmcr.cbpr * Ctlr.CBPR | vmcr.eoim * Ctlr.EOI_MODE

    def set_control(self, value: int) -> None:
        """GICC_CTLR."""
        vmcr = self.state.vmcr
        vmcr.grpen0 = int(value & Ctlr.ENABLE_GROUP_0 != 0)
        vmcr.grpen1 = int(value & Ctlr.ENABLE_GROUP_1 != 0)
        vmcr.ackctl = int(value & Ctlr.ACK_CTL != 0)
        vmcr.fiqen = int(value & Ctlr.FIQ_EN != 0)
        vmcr.cbpr = int(value & Ctlr.CBPR != 0)
        vmcr.eoim = int(value & Ctlr.EOI_MODE != 0)

    def _highest_pending(self) -> ListRegister | None:
        """QEMU: arm_gic.c gic_update_internal: one enabled group suffices to see the interrupts of both."""
        vmcr = self.state.vmcr
        best: ListRegister | None = None
        if vmcr.grpen0 or vmcr.grpen1:
            for register in self.state.list_registers:
                if register.pending and not register.active and (best is None or register.priority < best.priority):
                    best = register
        return best if best is not None and best.priority < vmcr.pmr else None

    def _visible(self, register: ListRegister | None) -> int:
        """The INTID that GICC_HPPIR shows and GICC_IAR acknowledges."""
        if register is None:
            return SPURIOUS
        return HIDDEN if register.group and not self.state.vmcr.ackctl else register.intid

    def _running_priority(self) -> int:
        """The priority of the active interrupt with the highest priority; IDLE_PRIORITY if none is active."""
        active = self.state.ap0r[0]
        return ((active & -active).bit_length() - 1) << MIN_BPR + 1 if active else IDLE_PRIORITY + 1

    def _acknowledge(self) -> int:
        register = self._highest_pending()
        intid = self._visible(register)
        if register is None or intid == HIDDEN:
            return intid
        # The whole priority is compared with the running group priority.
        if register.priority >= self._running_priority():
            return SPURIOUS
        self.state.ap0r[0] |= 1 << (self._group_priority(register) >> MIN_BPR + 1)
        register.pending, register.active = False, True
        # GICC_IAR bits 12:10: the CPU that sent a software-generated interrupt.
        return intid | (register.physical & 7) << 10 if intid < 16 else intid

    def _group_priority(self, register: ListRegister) -> int:
        vmcr = self.state.vmcr
        point = vmcr.abpr - 1 if register.group and not vmcr.cbpr else vmcr.bpr
        return register.priority & (0xFF << point + 1) & 0xFF

    def _end(self, intid: int) -> None:
        """GICC_EOIR. QEMU: arm_gic.c gic_complete_irq: the highest active priority drops, whatever the INTID is."""
        if intid >= SPECIAL:
            return
        active = self.state.ap0r[0]
        self.state.ap0r[0] = active & active - 1 if active else 0
        if not self.state.vmcr.eoim:
            self._end_active(intid)

    def _deactivate(self, intid: int) -> None:
        """GICC_DIR, which does something only if EOI mode is split."""
        if intid < SPECIAL and self.state.vmcr.eoim:
            self._end_active(intid)

    def _end_active(self, intid: int) -> None:
        register = self.find_active(intid)
        if register is not None:
            self.deactivate(register)
