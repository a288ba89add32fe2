"""Interrupts from the line to the EOI, as a guest sees them."""

from __future__ import annotations

import pytest

from irqchipd.chips.ioapic import IoapicState
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.x86.routing import ChipId
from tests.vm.pc import LEVEL, LOGICAL, LOWEST_PRIORITY, MASKED, PRIMARY, REMOTE_IRR, Pc, to

RTC = 8


@pytest.fixture
def pc() -> Pc:
    return Pc(2)


# From the line to the EOI.


def test_a_level_interrupts_until_its_line_drops(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    for _ in range(3):
        assert pc.take() == 0x31
        assert pc.take() is None
        pc.eoi()
    pc.line(16, 0)
    assert pc.serve_all() == [0x31]  # that interrupt had already been delivered


def test_an_edge_interrupts_once(pc: Pc) -> None:
    pc.program(16, 0x31)
    pc.line(16, 1)
    assert pc.serve_all() == [0x31]
    pc.line(16, 0, 1)
    assert pc.serve_all() == [0x31]


def test_one_gsi_can_arrive_through_the_pic_and_the_ioapic(pc: Pc) -> None:
    pc.initialise_pics()
    pc.program(4, to(1) | 0x34)
    assert pc.line(4, 1) == [2]
    assert pc.takers() == {0: PRIMARY + 4, 1: 0x34}


def test_a_level_vector_that_two_pins_share_is_ended_on_both(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.program(17, LEVEL | 0x31)
    pc.line(16, 1)
    pc.line(17, 1, 0)
    assert pc.take() == 0x31
    pc.eoi()
    assert not pc.entry(17) & REMOTE_IRR
    assert pc.take() == 0x31  # pin 16 is still high


def test_a_vector_changed_in_service_leaves_its_pin_stuck(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take() == 0x31
    pc.program(16, LEVEL | 0x46)
    pc.eoi()
    assert pc.entry(16) == 0xC046
    assert pc.take() is None


def test_the_eoi_goes_by_how_the_local_apic_accepted_the_vector_last(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take() == 0x31
    pc.vm.signal_msi(0xFEE0_0000, 0x31)  # the same vector, as an edge
    pc.eoi()
    assert pc.entry(16) & REMOTE_IRR


def test_a_level_msi_ends_a_pin_that_has_its_vector(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1, 0)
    assert pc.serve_all() == [0x31]
    pc.line(16, 1)
    assert pc.vm.signal_msi(0xFEE0_0000, 0x8031) == 1
    assert pc.take() == 0x31
    pc.eoi()
    assert pc.take() == 0x31


# Which EOIs reach the IOAPIC.


def test_an_eoi_of_a_cpu_that_is_no_destination_does_not_reach_the_ioapic(pc: Pc) -> None:
    pc.program(16, to(1) | LEVEL | 0x31)
    pc.line(16, 1, 0)
    assert pc.take(1) == 0x31
    assert pc.vm.signal_msi(0xFEE0_0000, 0x8031) == 1
    assert pc.serve_all(0) == [0x31]
    assert pc.entry(16) & REMOTE_IRR
    pc.eoi(1)
    assert not pc.entry(16) & REMOTE_IRR


def test_an_entry_redirected_in_service_still_gets_the_eoi(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take(0) == 0x31
    pc.program(16, to(1) | LEVEL | 0x31, vcpu=1)
    pc.eoi(0)
    assert pc.takers() == {1: 0x31}


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0)])
def test_a_redirected_entry_is_forgotten_after_its_last_reported_eoi(pc: Pc, old: int, new: int) -> None:
    pc.program(16, to(old) | LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take(old) == 0x31
    pc.program(16, to(new) | LEVEL | 0x31, vcpu=new)
    pc.eoi(old)
    assert pc.takers() == {new: 0x31}  # remote IRR is set again, and the old CPU has been in its guest
    pc.line(16, 0)
    pc.vm.signal_msi(0xFEE0_0000 | old << 12, 0x8031)
    assert pc.serve_all(old) == [0x31]
    assert pc.entry(16) & REMOTE_IRR


@pytest.mark.parametrize(("mode", "reported"), [(0, False), (LOWEST_PRIORITY, True)], ids=["fixed", "lowest priority"])
def test_writing_an_entry_makes_its_destinations_rescan_and_all_cpus_unless_it_is_fixed(
    pc: Pc, mode: int, reported: bool
) -> None:
    pc.program(16, to(1) | LEVEL | mode | 0x31, vcpu=1)
    pc.line(16, 1, 0)
    assert pc.take(1) == 0x31
    assert pc.take(0) is None
    pc.vm.signal_msi(0xFEE0_0000, 0x8031)
    pc.program(16, to(1) | LEVEL | mode | 0x31, vcpu=1)  # CPU 0 has the vector now
    assert pc.serve_all(0) == [0x31]
    assert bool(pc.entry(16) & REMOTE_IRR) != reported


@pytest.mark.parametrize("register", [Reg.ID, Reg.LDR])
def test_a_cpu_that_becomes_an_entrys_destination_reports_its_eois(pc: Pc, register: int) -> None:
    logical = LOGICAL if register == Reg.LDR else 0
    pc.program(16, to(0x80) | logical | LEVEL | 0x31)
    pc.lapic_write(1, register, 0x8000_0000)
    pc.line(16, 1)
    for _ in range(2):
        assert pc.take(1) == 0x31
        pc.eoi(1)


def test_a_restored_interrupt_in_service_is_ended_at_the_ioapic(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take() == 0x31
    lapic, ioapic = pc.vm.get_lapic(0), pc.vm.get_irqchip(ChipId.IOAPIC)
    other = Pc()
    other.vm.set_irqchip(ChipId.IOAPIC, ioapic)
    other.vm.set_lapic(0, lapic)
    assert other.take() is None
    other.eoi()
    assert other.take() == 0x31


def test_a_guest_cannot_keep_its_eois_from_the_ioapic_but_a_restored_state_can(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.lapic_write(0, Reg.SVR, 0x11FF)
    pc.line(16, 1, 0)
    assert pc.serve_all() == [0x31]
    assert not pc.entry(16) & REMOTE_IRR
    pc.vm.set_lapic(0, LapicRegisters(svr=0x11FF))
    pc.line(16, 1, 0)
    assert pc.serve_all() == [0x31]
    assert pc.entry(16) & REMOTE_IRR


# The RTC's ticks over a restore.


def rtc_in_service(pc: Pc, vcpu: int) -> None:
    pc.vm.set_routing([PinRoute(RTC, ChipId.IOAPIC, RTC)])
    pc.program(RTC, to(vcpu) | 0x38)
    pc.line(RTC, 1, 0)
    assert pc.takers() == {vcpu: 0x38}


@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_restored_local_apic_with_the_tick_is_waited_for(pc: Pc, vcpu: int) -> None:
    rtc_in_service(pc, vcpu)
    other = Pc(2)
    other.vm.set_routing([PinRoute(RTC, ChipId.IOAPIC, RTC)])
    other.program(RTC, to(vcpu) | 0x38)
    other.vm.set_lapic(vcpu, pc.vm.get_lapic(vcpu))
    assert other.line(RTC, 1, 0) == [0, 1]
    other.eoi(vcpu)
    assert other.line(RTC, 1) == [1]


@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_restored_local_apic_without_the_tick_is_not_waited_for(pc: Pc, vcpu: int) -> None:
    rtc_in_service(pc, vcpu)
    pc.vm.set_lapic(vcpu, LapicRegisters(id=vcpu << 24, svr=0x1FF))
    assert pc.line(RTC, 1) == [1]
    assert pc.take(vcpu) == 0x38


@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_restored_ioapic_waits_for_the_tick_that_a_cpu_has_in_service(pc: Pc, vcpu: int) -> None:
    rtc_in_service(pc, vcpu)
    pc.vm.set_irqchip(ChipId.IOAPIC, pc.vm.get_irqchip(ChipId.IOAPIC))
    assert pc.line(RTC, 1, 0) == [0, 1]
    pc.eoi(vcpu)
    assert pc.line(RTC, 1) == [1]


def test_a_restored_ioapic_delivers_the_tick_first_and_then_waits_for_it(pc: Pc) -> None:
    pc.vm.set_routing([PinRoute(RTC, ChipId.IOAPIC, RTC)])
    entries = [MASKED] * 24
    entries[RTC] = 0x38
    pc.vm.set_irqchip(ChipId.IOAPIC, IoapicState(irr=1 << RTC, redirection=tuple(entries)))
    assert pc.line(RTC, 0, 1) == [1, 0]
    assert pc.serve_all() == [0x38]
    assert pc.line(RTC, 0, 1) == [1, 1]


# Restored chips.


def test_a_restored_pic_interrupts(pc: Pc) -> None:
    pc.initialise_pics()
    pc.line(12, 1, 0)
    states = {chip: pc.vm.get_irqchip(chip).pack() for chip in ChipId}
    other = Pc()
    for chip, state in states.items():
        other.vm.set_irqchip(chip, state)
    assert other.take() == 0x2C


def test_the_lines_are_not_part_of_a_state(pc: Pc) -> None:
    source = pc.vm.open_source("device")
    pc.line(16, 1, source=source)
    pc.vm.set_irqchip(ChipId.IOAPIC, IoapicState())
    pc.program(16, LEVEL | 0x31)
    assert pc.take() is None  # in the restored state the pin is low
    pc.line(16, 0)  # yet the source drives it high
    assert pc.take() == 0x31


def test_restoring_the_ioapic_updates_the_pics_output(pc: Pc) -> None:
    pc.initialise_pics()
    pc.line(3, 1)
    pc.out(0x20, 0x11)  # the request is gone, and the output still high
    pc.vm.set_irqchip(ChipId.IOAPIC, pc.vm.get_irqchip(ChipId.IOAPIC))
    assert pc.take() is None


def test_a_moved_ioapic_is_at_neither_its_old_nor_its_new_address(pc: Pc) -> None:
    pc.vm.set_irqchip(ChipId.IOAPIC, IoapicState(base_address=0xFED0_0000))
    assert pc.vm.mmio_read(0, 0xFEC0_0000, 4) is None
    assert pc.vm.mmio_read(0, 0xFED0_0000, 4) is None
    pc.vm.set_irqchip(ChipId.IOAPIC, IoapicState())
    assert pc.vm.mmio_read(0, 0xFEC0_0000, 4) == 0


# Interprocessor interrupts.


@pytest.mark.parametrize(
    ("low", "destination", "takers"),
    [
        (0x0_4031, 1, {1: 0x31}),
        (0x0_4031, 9, {}),
        (0x0_4031, 0xFF, {0: 0x31, 1: 0x31, 2: 0x31}),
        (0x4_0031, 9, {0: 0x31}),  # self
        (0x8_0031, 9, {0: 0x31, 1: 0x31, 2: 0x31}),  # all
        (0xC_0031, 9, {1: 0x31, 2: 0x31}),  # all but self
        (0x4_8031, 9, {}),  # a level to itself that is not asserted
    ],
)
def test_an_ipi_arrives_at_its_destinations(low: int, destination: int, takers: dict[int, int]) -> None:
    pc = Pc(3)
    pc.ipi(0, low, destination)
    assert pc.takers() == takers


def test_a_guest_can_renumber_its_local_apics(pc: Pc) -> None:
    pc.lapic_write(1, Reg.ID, 0x4200_0000)
    pc.ipi(0, 0x4031, 1)
    assert pc.takers() == {}
    pc.ipi(0, 0x4031, 0x42)
    assert pc.takers() == {1: 0x31}
