"""Counts and times of interrupts, on a VM whose time is the test's."""

from __future__ import annotations

from irqchipd.observe.histogram import BUCKETS, Histogram
from irqchipd.observe.latency import Kind
from irqchipd.vm.counting import KEPT_NS, InterruptInfo
from irqchipd.vm.routing import MsiRoute
from tests.vm.pc import EOI, LEVEL, PRIMARY, Pc

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
