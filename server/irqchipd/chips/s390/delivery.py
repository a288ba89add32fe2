"""A vCPU takes an interrupt. KVM: interrupt.c kvm_s390_deliver_pending_interrupts.

KVM delivers in a loop: each interrupt exchanges the PSW, and the new PSW's mask decides about the next. Here a vCPU's
process takes one interrupt, exchanges the PSW, and sets the new masks before it takes the next.
"""

from __future__ import annotations

from typing import Final

from irqchipd.chips.s390.floating import FloatingInterrupts
from irqchipd.chips.s390.irq import Irq, Kind, MachineCheck
from irqchipd.chips.s390.local import LocalInterrupts
from irqchipd.chips.s390.pending import Masks, Pend, deliverable

_STOP: Final = 1 << Pend.SIGP_STOP


def deliverable_of(floating: FloatingInterrupts, local: LocalInterrupts, masks: Masks) -> int:
    """The interrupts that a vCPU may take, one bit each. KVM: deliverable_irqs."""
    return deliverable(floating.pending | local.pending, masks, floating.cr14 | local.cr14)


def has_interrupt(floating: FloatingInterrupts, local: LocalInterrupts, masks: Masks) -> bool:
    """Whether a vCPU's wait ends: it may take an interrupt, or must stop. KVM: kvm_s390_vcpu_has_irq."""
    return bool(local.pending & _STOP or deliverable_of(floating, local, masks))


def take(floating: FloatingInterrupts, local: LocalInterrupts, masks: Masks) -> Irq | None:
    """Take the interrupt of the highest priority; a stop comes last of all. KVM: intercept.c handle_stop."""
    allowed = deliverable_of(floating, local, masks)
    if not allowed:
        return local.take(Pend.SIGP_STOP) if local.pending & _STOP else None
    bit = allowed.bit_length() - 1
    if Pend.IO_ISC_7 <= bit <= Pend.IO_ISC_0:
        return floating.take_io(Pend.IO_ISC_0 - bit)
    if bit in (Pend.EXIGENT, Pend.REPRESSIBLE):
        return _take_machine_check(floating, local)
    if bit == Pend.VIRTIO:
        return floating.take_virtio()
    if bit == Pend.PFAULT_DONE:
        return floating.take_pfault_done()
    if bit == Pend.SERVICE:
        return floating.take_service()
    if bit == Pend.SERVICE_EVENT:
        return floating.take_service_event()
    if bit == Pend.EMERGENCY:
        return local.take_emergency()
    return local.take(bit)


def _take_machine_check(floating: FloatingInterrupts, local: LocalInterrupts) -> Irq:
    """KVM: __deliver_machine_check; the vCPU's own is combined with a floating one, whatever CR14 allows."""
    own, other = local.take_machine_check(), floating.take_machine_check()
    return Irq(
        Kind.MACHINE_CHECK,
        MachineCheck(
            cr14=own.cr14 | other.cr14,
            mcic=own.mcic | other.mcic,
            failing_storage_address=own.failing_storage_address,
            ext_damage_code=own.ext_damage_code,
            fixed_logout=own.fixed_logout,
        ),
    )
