"""The interrupts that a vCPU may take, and their order. KVM: enum irq_types, interrupt.c deliverable_irqs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class Pend:
    """IRQ_PEND_*: the numbers of the bits, in ascending order of priority. Bits that KVM never sets are left out."""

    SET_PREFIX: Final = 0
    RESTART: Final = 1
    SIGP_STOP: Final = 2
    IO_ISC_7: Final = 3
    IO_ISC_0: Final = 10
    VIRTIO: Final = 11
    PFAULT_DONE: Final = 12
    PFAULT_INIT: Final = 13
    SERVICE: Final = 15
    SERVICE_EVENT: Final = 16
    CPU_TIMER: Final = 18
    CLOCK_COMPARATOR: Final = 19
    EXTERNAL_CALL: Final = 20
    EMERGENCY: Final = 21
    REPRESSIBLE: Final = 24  # a machine check
    PROGRAM: Final = 25
    EXIGENT: Final = 27  # a machine check


IO_MASK: Final = 0xFF << Pend.IO_ISC_7
MACHINE_CHECK_MASK: Final = 1 << Pend.REPRESSIBLE | 1 << Pend.EXIGENT
EXTERNAL_MASK: Final = (
    1 << Pend.VIRTIO
    | 1 << Pend.PFAULT_DONE
    | 1 << Pend.PFAULT_INIT
    | 1 << Pend.SERVICE
    | 1 << Pend.SERVICE_EVENT
    | 1 << Pend.CPU_TIMER
    | 1 << Pend.CLOCK_COMPARATOR
    | 1 << Pend.EXTERNAL_CALL
    | 1 << Pend.EMERGENCY
)

# The bits of a PSW's first half that enable classes of interrupts, and the wait state's bit.
PSW_IO: Final = 1 << 57
PSW_EXTERNAL: Final = 1 << 56
PSW_MACHINE_CHECK: Final = 1 << 50
PSW_WAIT: Final = 1 << 49

# The bits of control register 0 that enable external interrupts. KVM: asm/ctlreg.h.
CR0_EMERGENCY: Final = 1 << 14
CR0_EXTERNAL_CALL: Final = 1 << 13
CR0_CLOCK_COMPARATOR: Final = 1 << 11
CR0_CPU_TIMER: Final = 1 << 10
CR0_SERVICE: Final = 1 << 9
CR0_INITIAL: Final = 0xE0  # KVM: CR0_INITIAL_MASK
CR14_INITIAL: Final = 0xC200_0000  # KVM: CR14_INITIAL_MASK
CR14_CHANNEL_REPORT: Final = 1 << 28

_CR0: Final = (
    (CR0_EXTERNAL_CALL, 1 << Pend.EXTERNAL_CALL),
    (CR0_EMERGENCY, 1 << Pend.EMERGENCY),
    (CR0_CLOCK_COMPARATOR, 1 << Pend.CLOCK_COMPARATOR),
    (CR0_CPU_TIMER, 1 << Pend.CPU_TIMER),
    (CR0_SERVICE, 1 << Pend.SERVICE | 1 << Pend.SERVICE_EVENT),
)


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks in a vCPU's registers of the interrupts that it takes: the PSW's mask and control registers.

    The defaults are those of an initial reset.
    """

    psw: int = 0
    cr0: int = CR0_INITIAL
    cr6: int = 0
    cr14: int = CR14_INITIAL


def of_isc(isc: int) -> int:
    """The number of the bit of an interruption subclass. KVM: isc_to_irq_type."""
    return Pend.IO_ISC_0 - isc


def iscs_of(cr6: int) -> int:
    """The bits of the interruption subclasses that control register 6 enables. KVM: disable_iscs."""
    # Bit 32 of the register, counted from its left, enables ISC 0, bit 39 ISC 7: the order of the pending bits.
    return (cr6 >> 24 & 0xFF) << Pend.IO_ISC_7


def deliverable(pending: int, masks: Masks, machine_check_cr14: int) -> int:
    """The pending interrupts that a vCPU may take. KVM: deliverable_irqs.

    machine_check_cr14 has the subclasses of the pending machine checks, floating and local ones together, as in KVM.
    The result never includes a stop, which a vCPU obeys after all other interrupts.
    """
    if not masks.psw & PSW_EXTERNAL:
        pending &= ~EXTERNAL_MASK
    pending &= ~IO_MASK | iscs_of(masks.cr6) if masks.psw & PSW_IO else ~IO_MASK
    for enable, bits in _CR0:
        if not masks.cr0 & enable:
            pending &= ~bits
    if not masks.psw & PSW_MACHINE_CHECK:
        pending &= ~MACHINE_CHECK_MASK
    if not masks.cr14 & machine_check_cr14:
        pending &= ~(1 << Pend.REPRESSIBLE)
    return pending & ~(1 << Pend.SIGP_STOP)
