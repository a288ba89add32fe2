"""The firmware calls of a guest: Power State Coordination Interface 1.1 (DEN0022), by HVC or SMC, as KVM answers them.

KVM: arch/arm64/kvm/psci.c, hypercalls.c
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol

from irqchip_client.vmm.start import Arm64Start

if TYPE_CHECKING:
    from collections.abc import Sequence

SMC64: Final = 1 << 30  # of a function's number: its arguments have 64 bits
SMCCC_VERSION: Final = 0x8000_0000
PSCI_VERSION, CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO = (0x8400_0000 + number for number in range(5))
MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, PSCI_FEATURES = 0x8400_0006, 0x8400_0008, 0x8400_0009, 0x8400_000A
WITH_64_BITS: Final = frozenset((CPU_SUSPEND, CPU_ON, AFFINITY_INFO))
KNOWN: Final = WITH_64_BITS | {
    *(SMCCC_VERSION, PSCI_VERSION, CPU_OFF, MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, PSCI_FEATURES),
}

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON = 0, -1, -2, -3, -4
VERSION_1_1, SMCCC_1_1 = 0x1_0001, 0x1_0001
NO_TRUSTED_OS: Final = 2
ON, OFF = 0, 1


class Power(Protocol):
    """What turns a machine and its vCPUs on and off. A guest names a vCPU by its affinity, the fields of MPIDR_EL1."""

    def is_on(self, affinity: int) -> bool | None:
        """Whether a vCPU is on. None if there is no such vCPU."""

    def turn_on(self, affinity: int, start: Arm64Start) -> bool:
        """Starts a vCPU that is off. Returns False if that can't be done."""

    def turn_off(self, *, reset: bool) -> None:
        """The guest has turned the machine off, or asks for a reset."""


class Next(Enum):
    """What the vCPU does after a call."""

    GO_ON = auto()
    SLEEP = auto()  # until an interrupt
    OFF = auto()


def call(arguments: Sequence[int], power: Power) -> tuple[int, Next]:
    """Executes a call with x0 to x3. Returns what x0 gets."""
    function, *values = arguments
    function &= 0xFFFF_FFFF
    if function & SMC64:
        function &= ~SMC64
        if function not in WITH_64_BITS:
            return NOT_SUPPORTED, Next.GO_ON
    else:
        values = [value & 0xFFFF_FFFF for value in values]
    result, then = SUCCESS, Next.GO_ON
    match function:
        case 0x8000_0000:
            result = SMCCC_1_1
        case 0x8400_0000:
            result = VERSION_1_1
        case 0x8400_0001:
            then = Next.SLEEP
        case 0x8400_0002:
            then = Next.OFF
        case 0x8400_0003:
            result = _turn_on(values, power)
        case 0x8400_0004:
            on = power.is_on(values[0]) if values[1] == 0 else None
            result = INVALID_PARAMETERS if on is None else ON if on else OFF
        case 0x8400_0006:
            result = NO_TRUSTED_OS
        case 0x8400_0008 | 0x8400_0009:
            power.turn_off(reset=function == SYSTEM_RESET)
            then = Next.OFF
        case 0x8400_000A:
            asked = values[0]
            known = asked in KNOWN or (asked & SMC64 and asked & ~SMC64 in WITH_64_BITS)
            result = SUCCESS if known else NOT_SUPPORTED
        case _:
            result = NOT_SUPPORTED
    return result, then


def _turn_on(values: Sequence[int], power: Power) -> int:
    affinity, entry, context = values
    on = power.is_on(affinity)
    if on is None:
        return INVALID_PARAMETERS
    if on:
        return ALREADY_ON
    return SUCCESS if power.turn_on(affinity, Arm64Start(entry, x0=context)) else DENIED
