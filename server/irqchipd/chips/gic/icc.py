"""The CPU interface of a GICv3 as a guest's ICC_ system registers reach it: ICV_ registers. Arm IHI 0069, 12.3.

The registers that generate SGIs are elsewhere: writing them traps to the hypervisor, and reading them is undefined.
"""

from __future__ import annotations

from typing import Final

from irqchipd.chips.gic.cpu_interface import SPECIAL, SPURIOUS, CpuInterface, CpuInterfaceWires
from irqchipd.chips.gic.list_register import (
    ACTIVE_PRIORITY_REGISTERS,
    IDLE_PRIORITY,
    PRIORITY_BITS,
    CpuInterfaceState,
    ListRegister,
)

MASK32: Final = 0xFFFFFFFF
INTID_MASK: Final = 0xFFFFFF


class Icc:
    """Encodings of the system registers: op0 in bits 15:14, op1 13:11, CRn 10:7, CRm 6:3, op2 2:0, as KVM has them."""

    PMR: Final = 0xC230
    IAR0: Final = 0xC640
    EOIR0: Final = 0xC641
    HPPIR0: Final = 0xC642
    BPR0: Final = 0xC643
    AP0R0: Final = 0xC644
    AP0R1: Final = 0xC645
    AP0R2: Final = 0xC646
    AP0R3: Final = 0xC647
    AP1R0: Final = 0xC648
    AP1R1: Final = 0xC649
    AP1R2: Final = 0xC64A
    AP1R3: Final = 0xC64B
    DIR: Final = 0xC659
    RPR: Final = 0xC65B
    SGI1R: Final = 0xC65D
    ASGI1R: Final = 0xC65E
    SGI0R: Final = 0xC65F
    IAR1: Final = 0xC660
    EOIR1: Final = 0xC661
    HPPIR1: Final = 0xC662
    BPR1: Final = 0xC663
    CTLR: Final = 0xC664
    SRE: Final = 0xC665
    IGRPEN0: Final = 0xC666
    IGRPEN1: Final = 0xC667


class Ctlr:
    """Fields of ICC_CTLR_EL1."""

    CBPR: Final = 1 << 0
    EOI_MODE: Final = 1 << 1
    PRIORITY_BITS_SHIFT: Final = 8
    ID_BITS_SHIFT: Final = 11
    SEIS: Final = 1 << 14
    A3V: Final = 1 << 15


ID_BITS: Final = 1  # ICC_CTLR_EL1.IDbits: INTIDs have 24 bits
SYSTEM_REGISTERS_ONLY: Final = 7  # ICC_SRE_EL1: system registers are enabled, and bypass is disabled, for good


def active_priority_registers(priority_bits: int) -> int:
    """The number of ICV_AP0R<n>: 1 with five priority bits, 2 with six, 4 with seven."""
    return min(1 << priority_bits - 5, ACTIVE_PRIORITY_REGISTERS)


class IccRegisters(CpuInterface):
    """The registers; QEMU: arm_gicv3_cpuif.c icv_*. Other registers are undefined for the guest."""

    def __init__(self, state: CpuInterfaceState, wires: CpuInterfaceWires, priority_bits: int = PRIORITY_BITS) -> None:
        super().__init__(state, wires)
        self.priority_bits = priority_bits
        self.min_bpr = 7 - priority_bits
        self.active_priority_registers = active_priority_registers(priority_bits)

    def load(self) -> None:
        """QEMU: arm_gicv3_cpuif.c ich_vmcr_write. The priority mask keeps the bits that user space set."""
        vmcr = self.state.vmcr
        vmcr.bpr = max(vmcr.bpr, self.min_bpr)
        vmcr.abpr = max(vmcr.abpr, self.min_bpr + 1)

    def outputs(self) -> tuple[bool, bool]:
        """IRQ and FIQ: group 0 drives FIQ, group 1 drives IRQ."""
        best = self._highest_pending()
        if best is None or not self._can_preempt(best):
            return False, False
        return best.group == 1, best.group == 0

    def read(self, register: int) -> int | None:
        """The value for MRS; None if the register is undefined."""
        vmcr = self.state.vmcr
        value: int | None = None
        if register == Icc.IAR1 or register == Icc.IAR0:
            value = self._acknowledge(group=int(register == Icc.IAR1))
        elif register == Icc.HPPIR1 or register == Icc.HPPIR0:
            best = self._highest_pending()
            value = best.intid if best is not None and best.group == int(register == Icc.HPPIR1) else SPURIOUS
        elif register == Icc.RPR:
            value = self._running_priority()
        elif register == Icc.PMR:
            value = vmcr.pmr
        elif register == Icc.BPR0:
            value = vmcr.bpr
        elif register == Icc.BPR1:
            value = min(vmcr.bpr + 1, 7) if vmcr.cbpr else vmcr.abpr
        elif register == Icc.CTLR:
            value = self._control()
        elif register == Icc.IGRPEN0:
            value = vmcr.grpen0
        elif register == Icc.IGRPEN1:
            value = vmcr.grpen1
        elif register == Icc.SRE:
            value = SYSTEM_REGISTERS_ONLY
        elif self._is_active_priorities(register):
            value = self._active_priorities(register)[register & 3]
        return value

    def write(self, register: int, value: int) -> bool:
        """MSR. Returns whether the register is defined."""
        vmcr = self.state.vmcr
        defined = True
        if register == Icc.EOIR1 or register == Icc.EOIR0:
            self._end(value & INTID_MASK, group=int(register == Icc.EOIR1))
        elif register == Icc.DIR:
            self._deactivate(value & INTID_MASK)
        elif register == Icc.PMR:
            vmcr.pmr = value & 0xFF & (0xFF << 8 - self.priority_bits)
        elif register == Icc.BPR0:
            vmcr.bpr = self._binary_point(value, self.min_bpr)
        elif register == Icc.BPR1:
            if not vmcr.cbpr:
                vmcr.abpr = self._binary_point(value, self.min_bpr + 1)
        elif register == Icc.CTLR:
            vmcr.cbpr = int(value & Ctlr.CBPR != 0)
            vmcr.eoim = int(value & Ctlr.EOI_MODE != 0)
        elif register == Icc.IGRPEN0:
            vmcr.grpen0 = value & 1
        elif register == Icc.IGRPEN1:
            vmcr.grpen1 = value & 1
        elif self._is_active_priorities(register):
            self._active_priorities(register)[register & 3] = value & MASK32
        else:
            defined = register == Icc.SRE
        return defined

    def _control(self) -> int:
        vmcr = self.state.vmcr
        value = Ctlr.A3V | ID_BITS << Ctlr.ID_BITS_SHIFT | self.priority_bits - 1 << Ctlr.PRIORITY_BITS_SHIFT
        return value | vmcr.cbpr * Ctlr.CBPR | vmcr.eoim * Ctlr.EOI_MODE

    def _is_active_priorities(self, register: int) -> bool:
        return Icc.AP0R0 <= register <= Icc.AP1R3 and register & 3 < self.active_priority_registers

    def _active_priorities(self, register: int) -> list[int]:
        return self.state.ap1r if register >= Icc.AP1R0 else self.state.ap0r

    @staticmethod
    def _binary_point(value: int, least: int) -> int:
        """QEMU: arm_gicv3_cpuif.c write_vbpr: compared as a signed 32-bit number, then cut to the field."""
        value &= MASK32
        return least if value >> 31 else max(value, least) & 7

    def _highest_pending(self) -> ListRegister | None:
        """HighestPriorityVirtualInterrupt(): the first interrupt of the highest priority in an enabled group."""
        vmcr = self.state.vmcr
        best: ListRegister | None = None
        priority = IDLE_PRIORITY
        for register in self.state.list_registers:
            if not register.pending or register.active or not (vmcr.grpen1 if register.group else vmcr.grpen0):
                continue
            if register.priority < priority:
                best, priority = register, register.priority
        return best

    def _can_preempt(self, register: ListRegister) -> bool:
        """CanSignalVirtualInterrupt()."""
        if register.priority >= self.state.vmcr.pmr:
            return False
        running = self._running_priority()
        if running == IDLE_PRIORITY:
            return True
        mask = self._group_mask(register.group)
        return register.priority & mask < running & mask

    def _group_mask(self, group: int) -> int:
        """The bits of a priority that preempt: VGroupBits()."""
        vmcr = self.state.vmcr
        point = vmcr.abpr - 1 if group and not vmcr.cbpr else vmcr.bpr
        return 0xFF << point + 1 & 0xFF

    def _running_priority(self) -> int:
        """The highest active priority: ICV_RPR_EL1."""
        for index in range(self.active_priority_registers):
            active = self.state.ap0r[index] | self.state.ap1r[index]
            if active:
                return self._priority(index, active)
        return IDLE_PRIORITY

    def _priority(self, index: int, active: int) -> int:
        """The priority that the lowest bit of an active priorities register stands for."""
        return 32 * index + (active & -active).bit_length() - 1 << self.min_bpr + 1

    def _acknowledge(self, group: int) -> int:
        """ICV_IAR0_EL1 or ICV_IAR1_EL1."""
        register = self._highest_pending()
        if register is None or register.group != group or not self._can_preempt(register):
            return SPURIOUS
        register.pending = False
        if SPECIAL <= register.intid <= SPURIOUS:
            return register.intid
        register.active = True
        bit = (register.priority & self._group_mask(group)) >> 8 - self.priority_bits
        priorities = self.state.ap1r if group else self.state.ap0r
        priorities[bit >> 5] |= 1 << (bit & 31)
        return register.intid

    def _drop_priority(self) -> int:
        """Drop the highest active priority, group 0's first, and return it; QEMU: arm_gicv3_cpuif.c icv_drop_prio."""
        ap0r, ap1r = self.state.ap0r, self.state.ap1r
        for index in range(self.active_priority_registers):
            active0, active1 = ap0r[index], ap1r[index]
            if not active0 and not active1:
                continue
            if active0 and (not active1 or active0 & -active0 <= active1 & -active1):
                ap0r[index] = active0 & active0 - 1
                return self._priority(index, active0)
            ap1r[index] = active1 & active1 - 1
            return self._priority(index, active1)
        return IDLE_PRIORITY

    def _end(self, intid: int, group: int) -> None:
        """ICV_EOIR0_EL1 or ICV_EOIR1_EL1. The priority drops before any check of the interrupt."""
        if SPECIAL <= intid <= SPURIOUS:
            return
        dropped = self._drop_priority()
        if dropped == IDLE_PRIORITY:
            return
        register = self.find_active(intid)
        if register is None or register.group != group or register.priority & self._group_mask(group) != dropped:
            return
        if not self.state.vmcr.eoim:
            self.deactivate(register)

    def _deactivate(self, intid: int) -> None:
        """ICV_DIR_EL1, which does something only if EOI mode is split."""
        if intid < SPECIAL and self.state.vmcr.eoim:
            register = self.find_active(intid)
            if register is not None:
                self.deactivate(register)
