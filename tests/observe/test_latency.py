"""Counts and times of interrupts, on a VM whose time is the test's."""

from __future__ import annotations

import pytest

from irqchipd.chips.s390.irq import Kind as S390Kind
from irqchipd.observe.histogram import BUCKETS, Histogram
from irqchipd.observe.latency import Kind
from irqchipd.vm.clock import Deadlines
from irqchipd.vm.counting import KEPT_NS, InterruptInfo
from irqchipd.vm.routing import MsiRoute, PinRoute
from tests.vm.arm64.machine import SPURIOUS, Arm, ppi, spi
from tests.vm.pc import EOI, LEVEL, PRIMARY, Pc
from tests.vm.s390.machine import ALL, Machine

VECTOR = 0x41


def counted(vcpus: int = 1) -> Pc:
    pc = Pc(vcpus)
    pc.vm.interrupts()
    return pc


def wait(pc: Pc, nanoseconds: int) -> None:
    pc.vm.agenda.deadlines.move(nanoseconds)


def only(pc: Pc) -> InterruptInfo:
    (one,) = pc.vm.interrupts().interrupts
    return one


def times(histogram: Histogram) -> dict[int, int]:
    return {number: count for number, count in enumerate(histogram.buckets) if count}


def test_a_gsi_through_the_ioapic() -> None:
    pc = counted(2)
    source = pc.vm.open_source("nic")
    pc.program(16, LEVEL | VECTOR)
    pc.line(16, 1, source=source)
    wait(pc, 1000)
    assert pc.take() == VECTOR
    pc.line(16, 0, source=source)
    wait(pc, 4096)
    pc.eoi()
    one = only(pc)
    assert (one.kind, one.gsi, one.number, one.level, one.sources) == (Kind.IOAPIC, 16, VECTOR, True, ["nic"])
    assert one.counts == {0: 1}
    assert (times(one.accept), one.accept.sum) == ({10: 1}, 1000)
    assert (times(one.eoi), one.eoi.sum) == ({12: 1}, 4096)


def test_a_line_through_a_pic() -> None:
    pc = counted()
    pc.initialise_pics()
    pc.line(3, 1, 0)
    wait(pc, 100)
    assert pc.take() == PRIMARY + 3
    wait(pc, 50)
    pc.out(0x20, EOI)
    one = only(pc)
    assert (one.kind, one.gsi, one.number, one.level) == (Kind.PIC, 3, PRIMARY + 3, False)
    assert (one.accept.sum, one.eoi.sum) == (100, 50)


def test_an_interrupt_that_waited_behind_a_mask_has_waited_since_the_rise() -> None:
    pc = counted()
    pc.line(16, 1)
    wait(pc, 500)
    pc.program(16, LEVEL | VECTOR)
    assert pc.take() == VECTOR
    assert (only(pc).kind, only(pc).gsi, only(pc).accept.sum) == (Kind.IOAPIC, 16, 500)


def test_a_masked_pulse_that_is_lost_has_no_time() -> None:
    pc = counted()
    pc.line(16, 1, 0)
    wait(pc, 500)
    pc.program(16, VECTOR)
    pc.line(16, 1, 0)
    wait(pc, 7)
    assert pc.take() == VECTOR
    assert only(pc).accept.sum == 7


def test_msis_ipis_and_a_local_apics_own_are_told_apart() -> None:
    pc = counted(2)
    pc.vm.set_routing([MsiRoute(20, 0xFEE0_0000, 0x52)])
    pc.vm.signal_msi(0xFEE0_0000, 0x41)
    pc.line(20, 1)
    pc.ipi(0, 0x4043, 1)
    assert (pc.take(0), pc.take(1)) == (0x52, 0x43)
    pc.eoi()
    assert pc.take(0) == 0x41
    found = {(one.kind, one.gsi, one.number): one.counts for one in pc.vm.interrupts().interrupts}
    assert found == {(Kind.MSI, 20, 0x52): {0: 1}, (Kind.MSI, -1, 0x41): {0: 1}, (Kind.IPI, -1, 0x43): {1: 1}}


def test_nothing_is_counted_or_observed_before_the_first_question_and_long_after_the_last() -> None:
    pc = Pc()
    board = pc.vm._board
    assert board.observer is None
    pc.vm.interrupts()
    assert board.observer is not None
    wait(pc, KEPT_NS - 1)
    pc.vm.interrupts()
    wait(pc, KEPT_NS - 1)
    assert board.observer is not None
    assert pc.vm.interrupts().nanoseconds == 2 * (KEPT_NS - 1)
    wait(pc, KEPT_NS)
    assert board.observer is None
    assert pc.vm.interrupts().nanoseconds == 0


def test_a_deleted_vm_keeps_no_alarm() -> None:
    pc = counted()
    pc.vm.delete()
    assert pc.vm.agenda.deadlines.alarms.earliest() is None


def test_counting_leaves_the_vcpus_copies_and_sleeping_timers_alone() -> None:
    pc = counted()
    observer = pc.vm._board.observer
    assert observer is not None
    assert not observer.sees_everything


def test_a_histogram_is_bounded_and_its_buckets_are_powers_of_two() -> None:
    histogram = Histogram()
    for time in (0, 1, 2, 3, 4, 5, 1 << 60):
        histogram.add(time)
    assert times(histogram) == {0: 2, 1: 1, 2: 2, 3: 1, BUCKETS - 1: 1}
    assert histogram.sum == 15 + (1 << 60)


# The other architectures.


@pytest.mark.parametrize("gic", [2, 3])
def test_an_spi_from_the_line_through_the_acknowledgement_to_its_end(gic: int) -> None:
    time = Deadlines()
    arm = Arm(gic, deadlines=time)
    arm.vm.set_routing([PinRoute(7, 0, 8)])
    arm.configure(40, level=True)
    arm.vm.interrupts()
    source = arm.vm.open_source("nic")
    arm.vm.irq_line(spi(40), True, source)
    time.move(300)
    assert arm.acknowledge() == 40
    time.move(20)
    arm.vm.irq_line(spi(40), False, source)
    arm.end(40)
    (one,) = arm.vm.interrupts().interrupts
    assert (one.kind, one.gsi, one.number, one.level, one.counts) == (Kind.GIC, 7, 40, True, {0: 1})
    assert (one.accept.sum, one.eoi.sum) == (300, 20)


@pytest.mark.parametrize("gic", [2, 3])
def test_each_vcpus_private_interrupt_has_its_own_time_and_what_is_special_is_not_counted(gic: int) -> None:
    time = Deadlines()
    arm = Arm(gic, 2, deadlines=time)
    arm.vm.interrupts()
    for vcpu in (0, 1):
        arm.configure(20, vcpu=vcpu)
    for vcpu in (0, 1):
        arm.line(ppi(vcpu, 20), 1)
        time.move(100)
    assert [arm.take(vcpu) for vcpu in (0, 1, 0)] == [20, 20, 20]  # its line is still high
    arm.line(ppi(0, 20), 0)
    assert arm.acknowledge() == SPURIOUS
    (one,) = arm.vm.interrupts().interrupts
    assert (one.counts, one.accept.sum, sum(one.accept.buckets)) == ({0: 2, 1: 1}, 300, 2)


def test_s390_interrupts_from_the_injection_to_the_delivery() -> None:
    time = Deadlines()
    machine = Machine(deadlines=time)
    machine.add_vcpus(ALL, ALL)
    machine.vm.interrupts()
    machine.vm.s390_interrupt(S390Kind.SERVICE, 0x100, 0)
    machine.vm.s390_interrupt(S390Kind.EMERGENCY, 1, 0, 1)
    time.move(50)
    assert machine.vm.take_irq(1) is not None
    time.move(50)
    assert machine.vm.take_irq(0 if machine.vm.get_irq_state(1, 4096) else 1) is not None
    found = {one.number: (one.counts, one.accept.sum) for one in machine.vm.interrupts().interrupts}
    assert set(found) == {S390Kind.SERVICE, S390Kind.EMERGENCY}
    assert sum(total for _, total in found.values()) == 150
