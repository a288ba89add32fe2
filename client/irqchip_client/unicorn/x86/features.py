"""The processor as a guest sees it: leaves 1 and 7 of CPUID, and the MSRs."""

from __future__ import annotations

from typing import NamedTuple

IA32_TSC, IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_MSRS = 0x10, 0x1B, 0x6E0, range(0x800, 0x900)
X2APIC_ICR = 0x830
APIC_ENABLED, BOOT_CPU = 1 << 11, 1 << 8  # of IA32_APIC_BASE

PHYSICAL_BITS = 40  # As in leaf 80000008h

# MSRs that Unicorn has. Any other reads 0 and takes any value; a processor would raise #GP.
_EMULATED = frozenset(
    (
        *(0x34, 0x8B, 0xFE, *range(0x174, 0x177), *range(0x179, 0x17C), 0x198, 0x1A0),
        *(*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x277, 0x2FF, *range(0x400, 0x428)),
        *(*range(0xC000_0080, 0xC000_0085), *range(0xC000_0100, 0xC000_0104)),
    )
)

X2APIC, TSC_DEADLINE, APIC = 1 << 21, 1 << 24, 1 << 9  # of leaf 1's ECX, ECX and EDX
BMI2 = 1 << 8  # of leaf 7's EBX


class Cpuid(NamedTuple):
    """A leaf."""

    eax: int
    ebx: int
    ecx: int
    edx: int

    def with_apic(self, apic_id: int, apic_base: int) -> Cpuid:
        """Leaf 1 for irqchipd's local APIC: its id, its features, and whether it is enabled."""
        ebx = self.ebx & 0x00FF_FFFF | (apic_id & 0xFF) << 24
        edx = self.edx | APIC if apic_base & APIC_ENABLED else self.edx & ~APIC
        return self._replace(ebx=ebx, ecx=self.ecx | X2APIC | TSC_DEADLINE, edx=edx)

    def without_bmi2(self) -> Cpuid:
        """Leaf 7 without BMI2: while CR4.OSFXSR is 0, Unicorn raises #UD for SHLX."""
        return self._replace(ebx=self.ebx & ~BMI2)


def is_irqchip_msr(msr: int) -> bool:
    """Whether the daemon has the MSR."""
    return msr in (IA32_TSC, IA32_APIC_BASE, IA32_TSC_DEADLINE) or msr in X2APIC_MSRS


def is_emulated_msr(msr: int) -> bool:
    """Whether Unicorn has the MSR."""
    return msr in _EMULATED
