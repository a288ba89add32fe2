"""Counters of what happens to a VM's interrupts, for metrics."""

from __future__ import annotations

from irqchipd.observe.histogram import Histogram
from irqchipd.observe.observer import Observer

_IOAPIC = 2  # KVM_IRQCHIP_IOAPIC
_SPECIAL = 1020  # the first INTID that stands for no interrupt

# The counters: the metric, the chip where that is its label, and what they count.
COUNTED = {
    "raised": ("lines_raised", "", "Lines driven high, also lines that were high"),
    "lowered": ("lines_lowered", "", "Lines driven low, also lines that were low"),
    "msis": ("msis", "", "MSIs sent"),
    "ipis": ("ipis", "", "Interprocessor interrupts that local APICs sent"),
    "accepted": ("interrupts_accepted", "", "Messages that local APICs were offered"),
    "delivered": ("interrupts_delivered", "", "Interrupts that vCPUs took"),
    "coalesced": ("interrupts_coalesced", "", "Rises at a chip's input that added no interrupt"),
    "masked": ("interrupts_masked", "", "Rises at a chip's input that were masked"),
    "spurious": ("interrupts_spurious", "", "Interrupts taken that nothing asked for any more"),
    "lapic_eois": ("eois", "lapic", "Ends of interrupts"),
    "pic_eois": ("eois", "pic", "Ends of interrupts"),
    "ioapic_eois": ("eois", "ioapic", "Ends of interrupts"),
    "gic_eois": ("eois", "gic", "Ends of interrupts"),
}


class Counters(Observer):
    """What happened in a VM since it was made. The VM's lock guards this."""

    @property
    def sees_everything(self) -> bool:
        return False

    @property
    def sees_accesses(self) -> bool:
        return False

    def __init__(self) -> None:
        self.raised = 0
        self.lowered = 0
        self.msis = 0
        self.ipis = 0
        self.accepted = 0
        self.delivered = 0
        self.coalesced = 0
        self.masked = 0
        self.spurious = 0
        self.lapic_eois = 0
        self.pic_eois = 0
        self.ioapic_eois = 0
        self.gic_eois = 0
        self.halts = Histogram()

    def include(self, other: Counters) -> None:
        """Count what another has counted as well."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.halts.include(other.halts)

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:  # noqa: ARG002
        if level:
            self.raised += 1
        else:
            self.lowered += 1

    def kvm_irq_line(self, kind: int, vcpu: int, number: int, level: int) -> None:  # noqa: ARG002
        if level:
            self.raised += 1
        else:
            self.lowered += 1

    def kvm_msi_set_irq(self, address: int, data: int) -> None:  # noqa: ARG002
        self.msis += 1

    def kvm_apic_ipi(self, icr: int, destination: int, vcpu: int = 0) -> None:  # noqa: ARG002
        self.ipis += 1

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:  # noqa: ARG002
        self.accepted += 1

    def kvm_inj_virq(self, vcpu: int, vector: int) -> None:  # noqa: ARG002
        self.delivered += 1

    def kvm_eoi(self, vcpu: int, vector: int) -> None:  # noqa: ARG002
        if vector >= 0:
            self.lapic_eois += 1

    def kvm_ack_irq(self, chip: int, pin: int) -> None:  # noqa: ARG002
        if chip == _IOAPIC:
            self.ioapic_eois += 1

    def pic_ended(self, line: int) -> None:  # noqa: ARG002
        self.pic_eois += 1

    def kvm_s390_deliver_interrupt(self, vcpu: int, type: int, data0: int, data1: int) -> None:  # noqa: A002, ARG002
        self.delivered += 1

    def halt_ended(self, vcpu: int, nanoseconds: int) -> None:  # noqa: ARG002
        self.halts.add(nanoseconds)

    def pic_spurious(self, vcpu: int) -> None:  # noqa: ARG002
        self.spurious += 1

    def line_raised(self, coalesced: bool, masked: bool) -> None:
        if masked:
            self.masked += 1
        elif coalesced:
            self.coalesced += 1

    def gic_acknowledged(self, vcpu: int, intid: int) -> None:  # noqa: ARG002
        if intid < _SPECIAL:
            self.delivered += 1
        else:
            self.spurious += 1

    def gic_ended(self, vcpu: int, intid: int) -> None:  # noqa: ARG002
        if intid < _SPECIAL:
            self.gic_eois += 1
