"""Accesses to the local APIC that are not to memory: by MSRs and CR8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchip_client.vmm.local_apic import LocalApic

from .exceptions import Fault, Vector
from .features import (
    IA32_APIC_BASE,
    is_irqchip_msr,
)

if TYPE_CHECKING:
    from irqchip_client import Vcpu


class Apic:
    """The local APIC of a vCPU. Raises Fault for an access that the guest may not make."""

    def __init__(self, vcpu: Vcpu, local: LocalApic) -> None:
        self._vcpu = vcpu
        self._local = local

    def read_msr(self, msr: int) -> int:
        """RDMSR, also of an MSR that neither Unicorn nor the daemon has."""
        if (value := self._local.read_msr(msr)) is not None:
            return value
        access = self._vcpu.msr_read(msr) if is_irqchip_msr(msr) else None
        if access is None or access.fault or not access.claimed:
            raise Fault(Vector.GP, 0)
        return access.data

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR, also of an MSR that neither Unicorn nor the daemon has."""
        if not is_irqchip_msr(msr):
            raise Fault(Vector.GP, 0)
        access = self._vcpu.msr_write(msr, value)
        if access.fault or not access.claimed:
            raise Fault(Vector.GP, 0)

    def read_cr8(self) -> int:
        """TPR's upper half: the SDM vol. 3 section 11.8.6.1."""
        cr8 = self._local.read_cr8()
        return self._vcpu.cr8_read() if cr8 is None else cr8

    def write_cr8(self, cr8: int) -> None:
        """Sets TPR's upper half, and its lower half to 0."""
        if cr8 > 0xF:
            raise Fault(Vector.GP, 0)
        self._vcpu.cr8_write(cr8)

    @property
    def base(self) -> int:
        """IA32_APIC_BASE"""
        return self.read_msr(IA32_APIC_BASE)
