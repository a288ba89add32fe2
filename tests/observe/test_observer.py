"""Observers: the tracepoints of a VM, their fields, and that observing changes nothing."""

from __future__ import annotations

import inspect

import pytest

from irqchipd.chips.fault import FAULT
from irqchipd.chips.ioapic import MAX_SUCCESSIVE_EOIS
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import Reg
from irqchipd.observe import recorder
from irqchipd.observe.counters import Counters
from irqchipd.observe.observer import TRACEPOINTS, Observer
from irqchipd.observe.recorder import combine
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from tests.vm.pc import EOI, LEVEL, PRIMARY, SECONDARY, Pc, state_of, to

Trace = list[tuple[object, ...]]


class Recorder(Observer):
    """Records every tracepoint with its fields."""

    def __init__(self) -> None:
        self.trace: Trace = []
        for name in TRACEPOINTS:
            setattr(self, name, self._noting(name))

    def _noting(self, name: str) -> object:
        return lambda *fields: self.trace.append((name, *fields))

    def noted(self) -> Trace:
        trace = list(self.trace)
        self.trace.clear()
        return trace


def watched(vcpus: int = 1) -> tuple[Pc, Recorder]:
    pc, recorder = Pc(vcpus), Recorder()
    pc.vm.attach(recorder)
    return pc, recorder


# The tracepoints.


def test_a_line_through_both_chips_to_the_eoi() -> None:
    pc, recorder = watched()
    pc.vm.detach(recorder)
    pc.initialise_pics()
    pc.program(4, LEVEL | 0x34)
    pc.vm.attach(recorder)
    pc.line(4, 1)
    assert recorder.noted() == [
        ("kvm_set_irq", 4, 1, 0),
        ("kvm_apic_accept_irq", 0, 0, True, 0x34),
        ("kvm_ioapic_set_irq", LEVEL | 0x34, 4, False),
        ("kvm_pic_set_irq", 0, 4, 0, 0, False),
    ]
    assert [pc.take(), pc.take()] == [PRIMARY + 4, 0x34]
    assert recorder.noted() == [("kvm_inj_virq", 0, PRIMARY + 4), ("kvm_inj_virq", 0, 0x34)]
    pc.line(4, 0)
    recorder.noted()
    pc.eoi()
    pc.out(0x20, EOI)
    assert recorder.noted() == [
        ("kvm_mmio", True, 0xFEE0_00B0, 4, 0, 0),
        ("kvm_eoi", 0, 0x34),
        ("kvm_ack_irq", ChipId.IOAPIC, 4),
        ("kvm_pio", True, 0x20, 1, EOI, 0),
        ("kvm_ack_irq", ChipId.PIC_PRIMARY, 4),
    ]


def test_an_acknowledge_of_the_secondary_pic_names_it() -> None:
    pc, recorder = watched()
    pc.out(0xA0, 0x64)  # the specific EOI of its line 4
    assert ("kvm_ack_irq", ChipId.PIC_SECONDARY) in [fields[:2] for fields in recorder.noted()]


@pytest.mark.parametrize("line", range(16))
def test_a_pics_input_is_traced_with_the_mask_of_its_own_pic(line: int) -> None:
    pc = Pc()
    pc.out(0x21, 0xA1)
    pc.out(0xA1, 0xB2)
    recorder = Recorder()
    pc.vm.attach(recorder)
    pc.line(line, 0)
    assert recorder.noted()[-1] == ("kvm_pic_set_irq", line >> 3, line & 7, 0, 0xB2 if line >= 8 else 0xA1, False)


def test_coalesced_edges_are_traced_as_coalesced() -> None:
    pc, recorder = watched()
    pc.out(0x4D1, 1 << 4)
    pc.mask_pics()
    recorder.noted()
    pc.vm.set_routing([PinRoute(1, ChipId.IOAPIC, 16), PinRoute(2, ChipId.PIC_SECONDARY, 4)])
    pc.line(1, 1, 1)
    pc.out(0xA1, 0x00)
    pc.line(2, 1, 1)
    assert [fields for fields in recorder.noted() if fields[0] != "kvm_pio"] == [
        ("kvm_set_irq", 1, 1, 0),
        ("kvm_ioapic_set_irq", 1 << 16, 16, False),
        ("kvm_set_irq", 1, 1, 0),
        ("kvm_ioapic_set_irq", 1 << 16, 16, True),
        ("kvm_set_irq", 2, 1, 0),
        ("kvm_pic_set_irq", 1, 4, 1 << 4, 0, False),
        ("kvm_set_irq", 2, 1, 0),
        ("kvm_pic_set_irq", 1, 4, 1 << 4, 0, True),
    ]


def test_a_line_is_traced_with_the_number_of_its_source() -> None:
    pc, recorder = watched()
    source = pc.vm.open_source("device")
    pc.line(100, 1, source=source)
    assert recorder.noted() == [("kvm_set_irq", 100, 1, source.number)]


def test_reads_are_traced_with_their_data_and_unclaimed_accesses_are_not_traced() -> None:
    pc, recorder = watched()
    assert pc.vm.pio_read(0, 0x4D0, 1) == 0
    assert pc.vm.mmio_read(0, 0xFEE0_0030, 4) == 0x0005_0014
    pc.vm.pio_read(0, 0x80, 1)
    pc.vm.pio_write(0, 0x80, 1, 0)
    pc.vm.mmio_read(0, 0x1000, 4)
    pc.vm.mmio_write(0, 0x1000, 4, 0)
    assert recorder.noted() == [("kvm_pio", False, 0x4D0, 1, 0, 0), ("kvm_mmio", False, 0xFEE0_0030, 4, 0x0005_0014, 0)]


def test_an_msi_is_traced_with_the_vcpus_it_was_offered_to() -> None:
    pc, recorder = watched(2)
    pc.vm.signal_msi(0xFEEF_F000, 0x4431)
    assert recorder.noted() == [
        ("kvm_msi_set_irq", 0xFEEF_F000, 0x4431),
        ("kvm_apic_accept_irq", 0, 4, False, 0x31),
        ("kvm_apic_accept_irq", 1, 4, False, 0x31),
    ]


def test_an_ipi_is_traced_with_the_vcpus_it_was_offered_to() -> None:
    pc, recorder = watched(2)
    pc.ipi(0, 0x4031, 1)
    assert recorder.noted()[2:] == [("kvm_apic_ipi", 0x4031, 1, 0), ("kvm_apic_accept_irq", 1, 0, False, 0x31)]


def test_a_self_ipi_is_traced_like_any_other() -> None:
    pc, recorder = watched()
    pc.ipi(0, 0x4_0031)
    assert recorder.noted()[2:] == [("kvm_apic_ipi", 0x4_0031, 0, 0), ("kvm_apic_accept_irq", 0, 0, False, 0x31)]


def test_a_vcpu_is_traced_by_its_id_and_not_by_its_index() -> None:
    vm, recorder = X86Vm("sparse"), Recorder()
    vm.create_irqchip()
    vm.create_vcpu(9)
    vm.mmio_write(9, 0xFEE0_0000 + Reg.SVR, 4, 0x1FF)
    vm.attach(recorder)
    vm.signal_msi(0xFEE0_9000, 0x31)
    vm.ack_interrupt(9)
    vm.mmio_write(9, 0xFEE0_0000 + Reg.EOI, 4, 0)
    assert [fields[:2] for fields in recorder.noted() if fields[0] not in ("kvm_mmio", "kvm_msi_set_irq")] == [
        ("kvm_apic_accept_irq", 9),
        ("kvm_inj_virq", 9),
        ("kvm_eoi", 9),
    ]


def test_an_eoi_without_an_interrupt_is_traced_and_an_acknowledge_is_not() -> None:
    pc, recorder = watched()
    pc.take()
    pc.eoi()
    assert recorder.noted() == [("kvm_mmio", True, 0xFEE0_00B0, 4, 0, 0), ("kvm_eoi", 0, -1)]


def test_accesses_to_the_local_apics_registers_by_msr_are_traced() -> None:
    pc, recorder = watched()
    assert pc.vm.msr_write(0, Msr.APIC_BASE, 0xFEE0_0D00) == 0
    assert pc.vm.msr_read(0, Msr.X2APIC + 8) == 0
    assert pc.vm.msr_read(0, Msr.X2APIC + 1) == FAULT
    assert pc.vm.msr_read(0, 0x10_0000) is None
    pc.vm.msr_read(0, Msr.APIC_BASE, host=True)
    assert recorder.noted() == [
        ("kvm_msr", True, Msr.APIC_BASE, 0xFEE0_0D00, False, 0),
        ("kvm_msr", False, Msr.X2APIC + 8, 0, False, 0),
        ("kvm_msr", False, Msr.X2APIC + 1, 0, True, 0),
    ]


def test_the_delay_of_an_interrupt_that_storms_is_traced() -> None:
    pc, recorder = watched()
    pc.program(4, LEVEL | 0x34)
    pc.line(4, 1)
    pc.mask_pics()
    for _ in range(MAX_SUCCESSIVE_EOIS):
        assert pc.take() == 0x34
        pc.eoi()
    delays = [fields for fields in recorder.noted() if fields[0] == "kvm_ioapic_delayed_eoi_inj"]
    assert delays == [("kvm_ioapic_delayed_eoi_inj", LEVEL | 0x34)]


# Several observers, and none.


def test_an_observer_is_called_while_it_is_attached() -> None:
    pc, first = watched()
    second = Recorder()
    pc.line(100, 1)
    pc.vm.attach(second)
    pc.line(101, 1)
    pc.vm.detach(first)
    pc.line(102, 1)
    pc.vm.detach(second)
    pc.line(103, 1)
    assert [fields[1] for fields in first.trace] == [100, 101]
    assert [fields[1] for fields in second.trace] == [101, 102]


def test_no_observer_is_none_and_a_single_one_is_itself() -> None:
    recorder = Recorder()
    assert combine([]) is None
    assert combine([recorder]) is recorder


def test_several_observers_get_every_tracepoint_with_its_fields() -> None:
    recorders = [Recorder(), Recorder(), Recorder()]
    both = combine(recorders)
    assert both is not None
    for number, name in enumerate(TRACEPOINTS):
        count = len(inspect.signature(getattr(Observer, name)).parameters) - 1
        getattr(both, name)(*(bool(number >> bit & 1) for bit in range(count)))  # which are integers, too
    assert recorders[0].trace == recorders[1].trace == recorders[2].trace
    assert [fields[0] for fields in recorders[0].trace] == list(TRACEPOINTS)


def test_everything_is_passed_to_several_observers() -> None:
    for name, method in vars(Observer).items():
        if inspect.isroutine(method) and not name.startswith("_"):
            assert getattr(recorder.Recorder, name) is not method, name


class OfInterruptsAlone(Observer):
    sees_everything = False  # also in a class that is not compiled, as the page's is not


@pytest.mark.parametrize("observers", [[OfInterruptsAlone()], [OfInterruptsAlone(), Counters()]], ids=["one", "two"])
def test_timers_sleep_unless_an_observer_is_to_see_everything(observers: list[Observer]) -> None:
    pc = Pc(1, real=True)
    for observer in observers:
        pc.vm.attach(observer)
    (cpu,) = pc.vm._pc.cpus
    assert cpu.lazy
    pc.vm.attach(Recorder())
    assert not cpu.lazy


def test_an_observer_may_override_nothing() -> None:
    pc = Pc()
    pc.vm.attach(Observer())
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1, 0)
    pc.vm.signal_msi(0xFEE0_0000, 0x41)
    assert pc.serve_all() == [0x41, 0x31]


def test_an_observer_is_notified_of_the_vms_deletion_on_request() -> None:
    told: list[str] = []
    pc, _ = watched()
    gone = Recorder()
    pc.vm.attach(Recorder(), lambda: told.append("watcher"))
    pc.vm.attach(gone, lambda: told.append("gone"))
    pc.vm.detach(gone)
    pc.vm.delete()
    assert told == ["watcher"]


def test_observing_changes_nothing() -> None:
    plain = Pc(2)
    watching, _ = watched(2)
    for pc in (plain, watching):
        pc.initialise_pics()
        pc.program(4, to(1) | LEVEL | 0x34)
        pc.line(4, 1)
        pc.line(8, 1, 0, 1)
        assert pc.take(0) == SECONDARY
        pc.ipi(1, 0xC_4055)
    assert state_of(plain.vm) == state_of(watching.vm)
