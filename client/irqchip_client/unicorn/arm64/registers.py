"""System registers, and the fields that the adapter needs: Arm ARM (DDI 0487), chapter D19."""

from __future__ import annotations

from typing import Final

from irqchip_client.arm64 import SYSREGS, sysreg

_NAMES: Final = {number: name for name, number in SYSREGS.items()}


def name(register: int) -> str:
    """A register's name, or what an assembler writes for a register without one."""
    parts = f"S{register >> 14}_{register >> 11 & 7}_C{register >> 7 & 15}_C{register >> 3 & 15}_{register & 7}"
    return _NAMES.get(register, parts)


MPIDR_EL1: Final = sysreg(3, 0, 0, 0, 5)
ID_AA64PFR0_EL1: Final = sysreg(3, 0, 0, 4, 0)
SPSR_EL1: Final = sysreg(3, 0, 4, 0, 0)
ELR_EL1: Final = sysreg(3, 0, 4, 0, 1)
SP_EL0: Final = sysreg(3, 0, 4, 1, 0)
SP_EL1: Final = sysreg(3, 4, 4, 1, 0)
ESR_EL1: Final = sysreg(3, 0, 5, 2, 0)
FAR_EL1: Final = sysreg(3, 0, 6, 0, 0)
VBAR_EL1: Final = sysreg(3, 0, 12, 0, 0)
ISR_EL1: Final = SYSREGS["ISR_EL1"]
ICC_SRE_EL1: Final = SYSREGS["ICC_SRE_EL1"]
HCR_EL2: Final = sysreg(3, 4, 1, 1, 0)
SCR_EL3: Final = sysreg(3, 6, 1, 1, 0)

# Of PSTATE and SPSR_EL1; I and F have the same places in ISR_EL1.
FIQ: Final = 1 << 6
IRQ: Final = 1 << 7
EXCEPTION_LEVEL: Final = 3 << 2
EL1: Final = 1 << 2
SPSEL: Final = 1
AARCH32: Final = 1 << 4
MASKED_EL1: Final = 0x3C0 | EL1 | SPSEL  # D, A, I and F set, at EL1 with its own stack pointer
FLAGS: Final = 0xF << 28

MPIDR_RES1: Final = 1 << 31
# Of ID_AA64PFR0_EL1.
LEVELS_OF_EL2_AND_EL3: Final = 0xFF << 8
SYSTEM_REGISTER_GIC: Final = 1 << 24

# The counters and the virtual and the physical timer. Unicorn has its own, by the host's clock.
TIMERS: Final = frozenset(number for name, number in SYSREGS.items() if name.startswith("CNT"))
# Registers that Unicorn has, and for which the daemon answers.
REPLACED: Final = TIMERS | {ISR_EL1}


def is_icc(register: int) -> bool:
    """Whether it is a register of a GICv3's CPU interface: ICC_PMR_EL1, and those of CRn 12 and CRm 8 to 12."""
    return register == SYSREGS["ICC_PMR_EL1"] or (
        register >> 7 == sysreg(3, 0, 12, 0, 0) >> 7 and 8 <= register >> 3 & 15 <= 12
    )
