"""The firmware calls of a guest: Power State Coordination Interface 1.1 (DEN0022), by HVC or SMC, as KVM answers them.

KVM: arch/arm64/kvm/psci.c, hypercalls.c
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Final, Protocol

from irqchip_client.vmm.start import Arm64Start

if TYPE_CHECKING:
    from collections.abc import Sequence

SMC64: Final = 1 << 30  # of a function's number: its arguments have 64 bits


class Function(IntEnum):
    """Calls, by their numbers without SMC64."""

    SMCCC_VERSION = 0x8000_0000
    PSCI_VERSION = 0x8400_0000
    CPU_SUSPEND = 0x8400_0001
    CPU_OFF = 0x8400_0002
    CPU_ON = 0x8400_0003
    AFFINITY_INFO = 0x8400_0004
    MIGRATE_INFO_TYPE = 0x8400_0006
    SYSTEM_OFF = 0x8400_0008
    SYSTEM_RESET = 0x8400_0009
    PSCI_FEATURES = 0x8400_000A


WITH_64_BITS: Final = frozenset((Function.CPU_SUSPEND, Function.CPU_ON, Function.AFFINITY_INFO))

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON = 0, -1, -2, -3, -4
VERSION_1_1, SMCCC_1_1 = 0x1_0001, 0x1_0001
NO_TRUSTED_OS: Final = 2
ON, OFF = 0, 1


class Power(Protocol):
    """The power switches of a machine and its vCPUs. A guest names a vCPU by its affinity, the fields of MPIDR_EL1."""

    def is_on(self, affinity: int) -> bool | None:
        """Whether a vCPU is on. None if there is no such vCPU."""

    def turn_on(self, affinity: int, start: Arm64Start) -> bool:
        """Starts a vCPU that is off. Returns False if that can't be done."""

    def turn_off(self, *, reset: bool) -> None:
        """The guest has turned the machine off, or asks for a reset."""


class Next(Enum):
    """The vCPU's action after a call."""

    GO_ON = auto()
    SLEEP = auto()  # until an interrupt
    OFF = auto()
    MACHINE_OFF = auto()


def call(arguments: Sequence[int], power: Power) -> tuple[int, Next]:
    """Executes a call with x0 to x3. Returns x0's new value, and what the vCPU does next."""
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
        case Function.SMCCC_VERSION:
            result = SMCCC_1_1
        case Function.PSCI_VERSION:
            result = VERSION_1_1
        case Function.CPU_SUSPEND:
            then = Next.SLEEP
        case Function.CPU_OFF:
            then = Next.OFF
        case Function.CPU_ON:
            result = _turn_on(values, power)
        case Function.AFFINITY_INFO:
            on = power.is_on(values[0]) if values[1] == 0 else None
            result = INVALID_PARAMETERS if on is None else ON if on else OFF
        case Function.MIGRATE_INFO_TYPE:
            result = NO_TRUSTED_OS
        case Function.SYSTEM_OFF | Function.SYSTEM_RESET:
            power.turn_off(reset=function == Function.SYSTEM_RESET)
            then = Next.MACHINE_OFF
        case Function.PSCI_FEATURES:
            asked = values[0]
            known = asked in set(Function) or (asked & SMC64 and asked & ~SMC64 in WITH_64_BITS)
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
