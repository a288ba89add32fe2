"""User space's accesses to the ICC_ system registers: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS.

KVM: arch/arm64/kvm/vgic-sys-reg-v3.c. The kernel keeps these values while the vCPU does not run, so a binary point
below the minimum stays until the vCPU enters its guest.
"""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.chips.gic.icc import ID_BITS, MASK32, SYSTEM_REGISTERS_ONLY, Ctlr, Icc
from irqchipd.chips.gic.list_register import PRIORITY_BITS, CpuInterfaceState
from irqchipd.chips.gic.refused import AccessRefused

SRE_ENABLE: Final = 1  # ICC_SRE_EL1.SRE

_REGISTERS: Final = frozenset(
    {
        Icc.PMR,
        Icc.BPR0,
        Icc.BPR1,
        *range(Icc.AP0R0, Icc.AP0R3 + 1),
        *range(Icc.AP1R0, Icc.AP1R3 + 1),
        Icc.CTLR,
        Icc.SRE,
        Icc.IGRPEN0,
        Icc.IGRPEN1,
    }
)


class SystemRegisters:
    """The registers of one vCPU."""

    def __init__(self, state: CpuInterfaceState, priority_bits: int = PRIORITY_BITS) -> None:
        self._state = state
        # Fields of ICC_CTLR_EL1; user space can lower the two numbers, but never raise them.
        self.priority_bits = priority_bits
        self.id_bits = ID_BITS

    def has(self, register: int) -> bool:
        """Whether user space can name a register. A register that needs more priority bits refuses accesses."""
        return register in _REGISTERS

    def get(self, register: int) -> int:
        """A register's value."""
        vmcr = self._state.vmcr
        if register == Icc.PMR:
            value = vmcr.pmr
        elif register == Icc.BPR0:
            value = vmcr.bpr
        elif register == Icc.BPR1:
            value = min(vmcr.bpr + 1, 7) if vmcr.cbpr else vmcr.abpr
        elif register == Icc.CTLR:
            value = Ctlr.A3V | self.id_bits << Ctlr.ID_BITS_SHIFT | self.priority_bits - 1 << Ctlr.PRIORITY_BITS_SHIFT
            value |= vmcr.cbpr * Ctlr.CBPR | vmcr.eoim * Ctlr.EOI_MODE
        elif register == Icc.SRE:
            value = SYSTEM_REGISTERS_ONLY
        elif register == Icc.IGRPEN0:
            value = vmcr.grpen0
        elif register == Icc.IGRPEN1:
            value = vmcr.grpen1
        else:
            value = self._active_priorities(register)[register & 3]
        return value

    def set(self, register: int, value: int) -> None:
        """Write a register."""
        vmcr = self._state.vmcr
        if register == Icc.PMR:
            vmcr.pmr = value & 0xFF
        elif register == Icc.BPR0:
            vmcr.bpr = value & 7
        elif register == Icc.BPR1:
            if not vmcr.cbpr:
                vmcr.abpr = value & 7
        elif register == Icc.CTLR:
            self._set_control(value)
        elif register == Icc.SRE:
            if not value & SRE_ENABLE:
                raise AccessRefused(errno.EINVAL, f"ICC_SRE_EL1 is {value:#x}; bit 0 must be set")
        elif register == Icc.IGRPEN0:
            vmcr.grpen0 = value & 1
        elif register == Icc.IGRPEN1:
            vmcr.grpen1 = value & 1
        else:
            self._active_priorities(register)[register & 3] = value & MASK32

    def _set_control(self, value: int) -> None:
        """KVM: set_gic_ctlr. A number that was lowered before a check failed stays lowered."""
        vmcr = self._state.vmcr
        priority_bits = (value >> Ctlr.PRIORITY_BITS_SHIFT & 7) + 1
        if priority_bits > self.priority_bits:
            raise AccessRefused(
                errno.EINVAL,
                f"ICC_CTLR_EL1 has {priority_bits} priority bits; at most {self.priority_bits} are allowed",
            )
        self.priority_bits = priority_bits
        id_bits = value >> Ctlr.ID_BITS_SHIFT & 7
        if id_bits > self.id_bits:
            raise AccessRefused(errno.EINVAL, f"ICC_CTLR_EL1.IDbits is {id_bits}; use {self.id_bits} at most")
        self.id_bits = id_bits
        if value & (Ctlr.SEIS | Ctlr.A3V) != Ctlr.A3V:
            raise AccessRefused(errno.EINVAL, f"ICC_CTLR_EL1 is {value:#x}; SEIS must be 0 and A3V 1")
        vmcr.cbpr = int(value & Ctlr.CBPR != 0)
        vmcr.eoim = int(value & Ctlr.EOI_MODE != 0)

    def _active_priorities(self, register: int) -> list[int]:
        if register not in _REGISTERS:
            raise AccessRefused(errno.ENOENT, f"the CPU interface has no register {register:#x} for user space")
        # KVM: vgic_v3_max_apr_idx.
        most = {7: 3, 6: 1}.get(self.priority_bits, 0)
        if register & 3 > most:
            raise AccessRefused(
                errno.EINVAL, f"ICC_AP0R and AP1R have registers 0 to {most} with {self.priority_bits} priority bits"
            )
        return self._state.ap1r if register >= Icc.AP1R0 else self._state.ap0r
