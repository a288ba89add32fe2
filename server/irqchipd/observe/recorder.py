"""Observers that do the same for every tracepoint."""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from irqchipd.observe.observer import Observer


class Room:
    """The number of written events, the number at which the room ends, and the number of lost events."""

    __slots__ = ("lost", "room", "written")

    def __init__(self, room: int) -> None:
        self.written = 0
        self.room = room
        self.lost = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Recorder(Observer):
    """Has one method that is called for everything.

    While `only`, the one place to which all tracepoints are written, has no room, the frequent ones are only counted.
    """

    only: Room | None = None

    def record(self, name: str, values: tuple[int, ...]) -> None:
        """The method of this name was called with these values."""
        raise NotImplementedError

    def kvm_pio(self, write: bool, port: int, size: int, value: int, vcpu: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_pio", (write, port, size, value, vcpu))

    def kvm_mmio(self, write: bool, address: int, size: int, value: int, vcpu: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_mmio", (write, address, size, value, vcpu))

    def kvm_msr(self, write: bool, ecx: int, data: int, exception: bool, vcpu: int) -> None:
        self.record("kvm_msr", (write, ecx, data, exception, vcpu))

    def kvm_cr(self, write: bool, cr: int, val: int, vcpu: int) -> None:
        self.record("kvm_cr", (write, cr, val, vcpu))

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_set_irq", (gsi, level, source))

    def kvm_pic_set_irq(self, chip: int, pin: int, elcr: int, imr: int, coalesced: bool) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_pic_set_irq", (chip, pin, elcr, imr, coalesced))

    def kvm_ioapic_set_irq(self, entry: int, pin: int, coalesced: bool) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_ioapic_set_irq", (entry, pin, coalesced))

    def kvm_ioapic_delayed_eoi_inj(self, entry: int) -> None:
        self.record("kvm_ioapic_delayed_eoi_inj", (entry,))

    def kvm_msi_set_irq(self, address: int, data: int) -> None:
        self.record("kvm_msi_set_irq", (address, data))

    def kvm_apic_ipi(self, icr: int, destination: int, vcpu: int) -> None:
        self.record("kvm_apic_ipi", (icr, destination, vcpu))

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_apic_accept_irq", (vcpu, delivery_mode, level_triggered, vector))

    def kvm_inj_virq(self, vcpu: int, vector: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_inj_virq", (vcpu, vector))

    def kvm_eoi(self, vcpu: int, vector: int) -> None:
        if self.only is not None and self.only.written >= self.only.room:
            self.only.lost += 1
        else:
            self.record("kvm_eoi", (vcpu, vector))

    def kvm_ack_irq(self, chip: int, pin: int) -> None:
        self.record("kvm_ack_irq", (chip, pin))

    def kvm_irq_line(self, kind: int, vcpu: int, number: int, level: int) -> None:
        self.record("kvm_irq_line", (kind, vcpu, number, level))

    def vgic_update_irq_pending(self, vcpu: int, intid: int, level: bool) -> None:
        self.record("vgic_update_irq_pending", (vcpu, intid, level))

    def kvm_timer_update_irq(self, vcpu: int, intid: int, level: bool) -> None:
        self.record("kvm_timer_update_irq", (vcpu, intid, level))

    def kvm_s390_inject_vm(self, type: int, parm: int, parm64: int) -> None:  # noqa: A002
        self.record("kvm_s390_inject_vm", (type, parm, parm64))

    def kvm_s390_inject_vcpu(self, vcpu: int, type: int, parm: int, parm64: int) -> None:  # noqa: A002
        self.record("kvm_s390_inject_vcpu", (vcpu, type, parm, parm64))

    def kvm_s390_deliver_interrupt(self, vcpu: int, type: int, data0: int, data1: int) -> None:  # noqa: A002
        self.record("kvm_s390_deliver_interrupt", (vcpu, type, data0, data1))

    def halt_ended(self, vcpu: int, nanoseconds: int) -> None:
        self.record("halt_ended", (vcpu, nanoseconds))

    def pic_spurious(self, vcpu: int) -> None:
        self.record("pic_spurious", (vcpu,))

    def pic_ended(self, line: int) -> None:
        self.record("pic_ended", (line,))

    def line_raised(self, coalesced: bool, masked: bool) -> None:
        self.record("line_raised", (coalesced, masked))

    def gic_acknowledged(self, vcpu: int, intid: int) -> None:
        self.record("gic_acknowledged", (vcpu, intid))

    def gic_ended(self, vcpu: int, intid: int) -> None:
        self.record("gic_ended", (vcpu, intid))


class _Several(Recorder):
    """Passes everything on to several observers, whose methods may change while they observe."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    @property
    def sees_everything(self) -> bool:
        return any(observer.sees_everything for observer in self._observers)

    @property
    def sees_accesses(self) -> bool:
        return any(observer.sees_accesses for observer in self._observers)

    def record(self, name: str, values: tuple[int, ...]) -> None:
        for observer in self._observers:
            getattr(observer, name)(*values)


def combine(observers: Sequence[Observer]) -> Observer | None:
    """One observer that stands for several; None for none, which costs nothing."""
    if not observers:
        return None
    return observers[0] if len(observers) == 1 else _Several(observers)
