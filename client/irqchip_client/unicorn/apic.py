"""The local APIC where no access to memory reaches it: by MSRs and CR8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .exceptions import Fault, Vector
from .features import (
    APIC_ENABLED,
    IA32_APIC_BASE,
    PHYSICAL_BITS,
    X2APIC_ENABLED,
    X2APIC_TPR,
    is_irqchip_msr,
)

if TYPE_CHECKING:
    from irqchip_client import Vcpu

BASE_ADDRESS = 0xF_FFFF_FFFF_F000  # of IA32_APIC_BASE
TPR = 0x80


class Apic:
    """Of one vCPU. What the guest may not do raises Fault."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._cr8 = 0  # While there is no APIC.

    def read_msr(self, msr: int) -> int:
        """RDMSR, also of what nobody has."""
        access = self._vcpu.msr_read(msr) if is_irqchip_msr(msr) else None
        if access is None or access.fault or not access.claimed:
            raise Fault(Vector.GP, 0)
        return access.data

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR, also of what nobody has."""
        if not is_irqchip_msr(msr) or (msr == IA32_APIC_BASE and value >> PHYSICAL_BITS):
            raise Fault(Vector.GP, 0)
        access = self._vcpu.msr_write(msr, value)
        if access.fault or not access.claimed:
            raise Fault(Vector.GP, 0)

    def read_cr8(self) -> int:
        """TPR's upper half: the SDM vol. 3 section 11.8.6.1."""
        base = self.base
        if not base & APIC_ENABLED:
            return self._cr8
        if base & X2APIC_ENABLED:
            return self.read_msr(X2APIC_TPR) >> 4
        return self._vcpu.mmio_read((base & BASE_ADDRESS) + TPR).data >> 4

    def write_cr8(self, cr8: int) -> None:
        """Its lower half gets 0."""
        if cr8 > 0xF:
            raise Fault(Vector.GP, 0)
        self._cr8 = cr8
        base = self.base
        if base & X2APIC_ENABLED:
            self.write_msr(X2APIC_TPR, cr8 << 4)
        elif base & APIC_ENABLED:
            self._vcpu.mmio_write((base & BASE_ADDRESS) + TPR, cr8 << 4)

    @property
    def base(self) -> int:
        """IA32_APIC_BASE"""
        return self._vcpu.msr_read(IA32_APIC_BASE).data
