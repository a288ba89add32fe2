"""Observers of a VM: one interface, named after the kernel's tracepoints, that does nothing unless overridden."""

from __future__ import annotations

import inspect

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class Observer:
    """Called for what happens in a VM, in order, by the thread that does it, under the VM's lock: be quick, don't wait.

    The methods are tracepoints of include/trace/events/kvm.h, of arch/x86/kvm/trace.h, and of arch/arm64/kvm's
    trace_arm.h and vgic/trace.h, with their fields. A vcpu that the kernel has no field for is the task's. The last
    methods are not the kernel's.
    """

    @property
    def sees_everything(self) -> bool:
        """Whether this is to see each access of a local APIC's registers, and each tick of a timer, also one that
        changes nothing: a vCPU's process then asks the daemon instead of its own memory, and no timer sleeps.
        """
        return True

    @property
    def sees_accesses(self) -> bool:
        """Whether kvm_pio and kvm_mmio are to be called: calls that do nothing take time, too."""
        return True

    def kvm_pio(self, write: bool, port: int, size: int, value: int, vcpu: int) -> None:
        """A vCPU accessed a port."""

    def kvm_mmio(self, write: bool, address: int, size: int, value: int, vcpu: int) -> None:
        """A vCPU accessed a device's memory."""

    def kvm_msr(self, write: bool, ecx: int, data: int, exception: bool, vcpu: int) -> None:
        """A vCPU accessed a local APIC's model-specific register; an exception is a general protection fault."""

    def kvm_cr(self, write: bool, cr: int, val: int, vcpu: int) -> None:
        """A vCPU accessed CR8."""

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:
        """A line source drove a GSI."""

    def kvm_pic_set_irq(self, chip: int, pin: int, elcr: int, imr: int, coalesced: bool) -> None:
        """A PIC's input was driven."""

    def kvm_ioapic_set_irq(self, entry: int, pin: int, coalesced: bool) -> None:
        """An IOAPIC's input was driven; entry is its redirection entry."""

    def kvm_ioapic_delayed_eoi_inj(self, entry: int) -> None:
        """A level interrupt that comes again at each EOI was put off; entry is its redirection entry."""

    def kvm_msi_set_irq(self, address: int, data: int) -> None:
        """An MSI was sent."""

    def kvm_apic_ipi(self, icr: int, destination: int, vcpu: int) -> None:
        """A vCPU sent an interprocessor interrupt; icr is the register's low half."""

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:
        """A local APIC was offered a message."""

    def kvm_inj_virq(self, vcpu: int, vector: int) -> None:
        """A vCPU took an interrupt."""

    def kvm_eoi(self, vcpu: int, vector: int) -> None:
        """A vCPU wrote its local APIC's EOI register; vector is -1 where nothing was in service."""

    def kvm_ack_irq(self, chip: int, pin: int) -> None:
        """An interrupt of a chip was acknowledged: 0 and 1 the PICs, whose pins are 0 to 15, 2 the IOAPIC.

        Of an arm64 VM, chip 0 is the GIC, and pin an SPI's number from 0.
        """

    def kvm_irq_line(self, kind: int, vcpu: int, number: int, level: int) -> None:
        """A line of an arm64 VM was driven: KVM_ARM_IRQ_TYPE_*, the vCPU of a private one, and its number."""

    def vgic_update_irq_pending(self, vcpu: int, intid: int, level: bool) -> None:
        """An interrupt's line at a GIC was driven."""

    def kvm_timer_update_irq(self, vcpu: int, intid: int, level: bool) -> None:
        """An arm64 vCPU's timer drove its interrupt's line."""

    def kvm_s390_inject_vm(self, type: int, parm: int, parm64: int) -> None:  # noqa: A002 - the kernel's name
        """An s390 VM got a floating interrupt."""

    def kvm_s390_inject_vcpu(self, vcpu: int, type: int, parm: int, parm64: int) -> None:  # noqa: A002
        """An s390 vCPU got an interrupt of its own."""

    def kvm_s390_deliver_interrupt(self, vcpu: int, type: int, data0: int, data1: int) -> None:  # noqa: A002
        """An s390 vCPU took an interrupt."""

    # What the kernel has no tracepoint for.

    def halt_ended(self, vcpu: int, nanoseconds: int) -> None:
        """A vCPU's halt ended, after this time of the host."""

    def pic_spurious(self, vcpu: int) -> None:
        """A vCPU took an interrupt of the PICs that none of their lines asked for."""

    def pic_ended(self, line: int) -> None:
        """An interrupt of the PICs ended: its line, 0 to 15."""

    def line_raised(self, coalesced: bool, masked: bool) -> None:
        """A line source drove a chip's input, or a GSI that leads to an s390 adapter, high: whether that added no
        interrupt, and whether the interrupt was masked. The call may be left out for an unmasked one that was added.
        """

    def gic_acknowledged(self, vcpu: int, intid: int) -> None:
        """A guest acknowledged an interrupt at its GIC's CPU interface; INTIDs from 1020 are special."""

    def gic_ended(self, vcpu: int, intid: int) -> None:
        """A guest wrote an end-of-interrupt register of its GIC's CPU interface."""


TRACEPOINTS = tuple(name for name in vars(Observer) if name.startswith(("kvm_", "vgic_")))
# The fields of each, in the kernel's order.
FIELDS = {name: tuple(inspect.signature(getattr(Observer, name)).parameters)[1:] for name in TRACEPOINTS}
