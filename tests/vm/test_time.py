"""A guest's timers on a virtual clock: every tick is counted, in order, and two runs are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest

from irqchipd.chips.lapic_registers import Reg
from irqchipd.chips.lapic_timer import TSC_DEADLINE
from irqchipd.chips.message import DeliveryMode
from irqchipd.timers import Timers
from irqchipd.vm.clock import RealClock, VirtualClock
from irqchipd.vm.events import GsiAcknowledged
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.vcpu_state import Signal
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from tests.builds import needs_sources
from tests.vm.pc import EOI, LEVEL, MASKED, PRIMARY, Ear, Pc, refused, to

MS = 1_000_000
SECOND = 1_000_000_000
PIT_FREQUENCY = 1_193_182
HZ_100 = 11_932  # the usual count of a guest
TSC_DEADLINE_MSR, TSC_MSR = 0x6E0, 0x10
NMI = Signal(DeliveryMode.NMI)


def pit_period(count: int) -> int:
    """A PIT period in whole nanoseconds."""
    return int(Fraction(count * SECOND, PIT_FREQUENCY))


# Ten minutes.

TEN_MINUTES = 600 * SECOND
APIC_PERIODS = {0: 57_000_001, 1: 80_000_000}  # nanoseconds, by vCPU
PIT_VECTOR, APIC_VECTOR = 0x30, 0xE0


def run_ten_minutes(through: str) -> tuple[Counter[tuple[int, int]], list[tuple[int, int, int]], VmState]:
    """How often each vCPU took each vector, the first and last vectors with their times, and the state at the end."""
    pc = Pc(2, pit=True)
    pc.start(1)
    if through == "PIC":
        pc.initialise_pics()
    else:
        pc.mask_pics()
        pc.program(0, to(0) | PIT_VECTOR)
    for vcpu, period in APIC_PERIODS.items():
        pc.count_apic(vcpu, APIC_VECTOR + vcpu, period, periodic=True)
    pc.count_pit(HZ_100)
    vm = pc.vm
    counts: Counter[tuple[int, int]] = Counter()
    log: list[tuple[int, int, int]] = []
    now, due = 0, vm.describe().next_timer
    while due is not None and due <= TEN_MINUTES:
        advanced = vm.advance(due - now)
        now, due = advanced.now, advanced.next_timer
        for vcpu in (0, 1):
            while (taken := vm.ack_interrupt(vcpu)) is not None:
                vector, from_pic = taken
                counts[vcpu, vector] += 1
                if now < SECOND or now > TEN_MINUTES - SECOND:
                    log.append((now, vcpu, vector))
                if from_pic:
                    pc.out(0x20, EOI)
                else:
                    pc.eoi(vcpu)
    vm.advance(TEN_MINUTES - now)
    return counts, log, vm.save()


@pytest.mark.parametrize("through", ["PIC", "IOAPIC"])
def test_ten_minutes_have_every_tick_once_at_its_time_and_twice_the_same(through: str) -> None:
    counts, log, end = run_ten_minutes(through)
    periods = {(0, PRIMARY if through == "PIC" else PIT_VECTOR): pit_period(HZ_100)}
    periods |= {(vcpu, APIC_VECTOR + vcpu): period for vcpu, period in APIC_PERIODS.items()}
    assert counts == {source: TEN_MINUTES // period for source, period in periods.items()}
    assert counts[0, PRIMARY if through == "PIC" else PIT_VECTOR] == 59_999
    expected = [
        (tick * period, *source)
        for source, period in periods.items()
        for tick in range(1, TEN_MINUTES // period + 1)
        if tick * period < SECOND or tick * period > TEN_MINUTES - SECOND
    ]
    assert sorted(log) == sorted(expected)
    assert end.now_ns == TEN_MINUTES
    if through == "PIC":  # a run is slow, so only one of the two is repeated
        assert run_ten_minutes(through) == (counts, log, end)


# The PIT's ticks.


@pytest.fixture
def pc() -> Pc:
    """A PC whose PIT ticks through the PIC 100 times a second."""
    pc = Pc(pit=True)
    pc.initialise_pics()
    return pc


PERIOD = pit_period(HZ_100)


def serve_pic(pc: Pc) -> int:
    """Take the PIC's interrupts one after the other; returns their number."""
    served = 0
    while (vector := pc.take()) is not None:
        assert vector == PRIMARY
        pc.out(0x20, EOI)
        served += 1
    return served


def test_missed_ticks_are_reinjected_one_after_the_other(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.vm.advance(7 * PERIOD)
    assert serve_pic(pc) == 7
    pc.vm.advance(PERIOD - 1)
    assert serve_pic(pc) == 0
    pc.vm.advance(1)
    assert serve_pic(pc) == 1


def test_each_tick_waits_for_the_acknowledgement_of_the_last(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.vm.advance(3 * PERIOD)
    assert pc.take() == PRIMARY
    assert pc.take() is None
    pc.vm.advance(PERIOD)
    assert pc.take() is None
    pc.out(0x20, EOI)
    assert serve_pic(pc) == 3


def test_without_reinjection_missed_ticks_are_lost(pc: Pc) -> None:
    pc.vm.set_pit_reinject(False)
    pc.count_pit(HZ_100)
    pc.vm.advance(7 * PERIOD)
    assert serve_pic(pc) == 1
    pc.vm.advance(PERIOD)
    assert pc.take() == PRIMARY
    pc.vm.advance(PERIOD)  # an edge while one is in service
    pc.out(0x20, EOI)
    assert serve_pic(pc) == 1


def test_turning_reinjection_on_or_off_drops_waiting_ticks(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.vm.advance(5 * PERIOD)
    pc.vm.set_pit_reinject(False)
    assert serve_pic(pc) == 1
    pc.vm.set_pit_reinject(True)
    assert serve_pic(pc) == 0
    pc.vm.advance(2 * PERIOD)
    assert serve_pic(pc) == 2


def test_unmasking_the_pics_line_drops_waiting_ticks(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.out(0x21, 0x01)
    pc.vm.advance(5 * PERIOD)
    assert serve_pic(pc) == 0
    pc.out(0x21, 0x00)
    assert serve_pic(pc) == 1  # the edge that the PIC has latched
    pc.vm.advance(PERIOD)
    assert serve_pic(pc) == 1


def test_masking_it_or_changing_another_line_drops_no_tick(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.vm.advance(5 * PERIOD)
    pc.out(0x21, 0x02)
    pc.out(0x21, 0x00)
    assert serve_pic(pc) == 5
    pc.vm.advance(2 * PERIOD)
    assert pc.take() == PRIMARY
    pc.out(0x21, 0x01)
    pc.out(0x20, EOI)
    pc.out(0x21, 0x00)
    assert serve_pic(pc) == 1


def test_unmasking_the_ioapics_pin_drops_waiting_ticks() -> None:
    pc = Pc(pit=True)
    pc.mask_pics()
    pc.program(0, 0x30)
    pc.count_pit(HZ_100)
    pc.vm.advance(5 * PERIOD)
    pc.program(0, MASKED | 0x30)
    pc.program(0, 0x30)
    assert pc.serve_all() == [0x30]
    pc.vm.advance(3 * PERIOD)
    assert pc.serve_all() == [0x30] * 3


def test_the_acknowledgement_is_that_of_the_gsi_routed_to_the_pin_last() -> None:
    """The PIT's ticks wait for the acknowledgement of GSI 0, wherever GSI 0 is routed."""
    pc = Pc(pit=True)
    pc.mask_pics()
    pc.vm.set_routing([route for route in pc.vm.routing() if route.gsi != 0])
    pc.count_pit(HZ_100)
    pc.vm.advance(3 * PERIOD)
    pc.vm.set_routing([PinRoute(0, ChipId.IOAPIC, 2)])
    pc.program(2, 0x32)  # this unmasks the pin
    pc.vm.advance(2 * PERIOD)
    assert pc.serve_all() == [0x32, 0x32]


def test_a_new_count_drops_waiting_ticks(pc: Pc) -> None:
    pc.count_pit(HZ_100)
    pc.vm.advance(5 * PERIOD)
    pc.count_pit(HZ_100)
    assert serve_pic(pc) == 1
    pc.vm.advance(PERIOD)
    assert serve_pic(pc) == 1


def test_a_one_shot_ticks_once(pc: Pc) -> None:
    pc.count_pit(HZ_100, mode=0)
    pc.vm.advance(5 * PERIOD)
    assert serve_pic(pc) == 1
    assert pc.vm.describe().next_timer is None


def test_a_ticks_acknowledgement_is_reported(pc: Pc) -> None:
    ear = Ear(pc.vm, gsis=[0])
    pc.count_pit(HZ_100)
    pc.vm.advance(2 * PERIOD)
    assert serve_pic(pc) == 2
    assert ear.heard() == [GsiAcknowledged(0)] * 2


def test_a_pit_needs_an_irqchip_and_is_created_once() -> None:
    vm = X86Vm("bare")
    with refused("ENOENT"):
        vm.create_pit()
    for operation in (vm.get_pit, lambda: vm.set_pit(bytes(112)), lambda: vm.set_pit_reinject(True)):
        with refused("ENXIO"):
            operation()
    vm.create_irqchip()
    vm.create_pit(0)
    with refused("EEXIST"):
        vm.create_pit()
    with refused("EINVAL"):
        vm.set_pit(bytes(111))
    vm.create_vcpu(0)
    assert vm.pio_read(0, 0x61, 1) is None
    assert vm.pio_read(0, 0x43, 1) == 0


# NMIs.


def signals(pc: Pc, vcpu: int) -> list[Signal]:
    taken = []
    while (signal := pc.vm.take_signal(vcpu)) is not None:
        taken.append(signal)
    return taken


def test_lint0_can_make_each_tick_an_nmi() -> None:
    pc = Pc(3, pit=True)
    pc.start(1, 2)
    pc.initialise_pics()
    pc.lapic_write(1, Reg.LVT_LINT0, 0x400)
    pc.count_pit(HZ_100)
    for _ in range(3):
        pc.vm.advance(PERIOD)
        assert serve_pic(pc) == 1
        assert [signals(pc, vcpu) for vcpu in range(3)] == [[], [NMI], []]
    pc.lapic_write(1, Reg.LVT_LINT0, MASKED | 0x400)
    pc.vm.advance(PERIOD)
    assert [signals(pc, vcpu) for vcpu in range(3)] == [[], [], []]


def test_each_delivered_tick_is_an_nmi() -> None:
    """A tick that waits for an acknowledgement is no NMI; without reinjection every tick is one."""
    pc = Pc(pit=True)
    pc.mask_pics()
    pc.lapic_write(0, Reg.LVT_LINT0, 0x400)
    pc.count_pit(HZ_100)
    pc.vm.advance(PERIOD)
    assert signals(pc, 0) == [NMI]
    pc.vm.advance(5 * PERIOD)
    assert signals(pc, 0) == []
    pc.vm.set_pit_reinject(False)
    for _ in range(3):
        pc.vm.advance(PERIOD)
        assert signals(pc, 0) == [NMI]


# The APIC timer.


def test_a_one_shot_interrupts_once_and_counts_down_to_0() -> None:
    pc = Pc()
    pc.count_apic(0, 0x31, 1000)
    pc.vm.advance(400)
    assert pc.lapic_read(0, Reg.TIMER_CURRENT_COUNT) == 600
    assert pc.take() is None
    pc.vm.advance(600)
    assert pc.serve_all() == [0x31]
    assert pc.lapic_read(0, Reg.TIMER_CURRENT_COUNT) == 0
    pc.vm.advance(10 * SECOND)
    assert pc.serve_all() == []


def test_periodic_ticks_that_are_not_taken_merge_into_one() -> None:
    pc = Pc()
    pc.count_apic(0, 0x31, MS, periodic=True)
    pc.vm.advance(5 * MS)
    assert pc.serve_all() == [0x31]
    pc.vm.advance(MS - 1)
    assert pc.serve_all() == []
    pc.vm.advance(1)
    assert pc.serve_all() == [0x31]


@pytest.mark.parametrize("tsc_khz", [1, 1_000_000, 2_400_000, 100_000_000])
def test_a_tsc_deadline_is_met_to_the_nanosecond(tsc_khz: int) -> None:
    pc = Pc()
    pc.vm = X86Vm("tsc", clock=VirtualClock(5 * SECOND), tsc_khz=tsc_khz)
    pc.vm.create_irqchip()
    pc.vm.create_vcpu(0)
    pc.lapic_write(0, Reg.SVR, 0x1FF)
    pc.lapic_write(0, Reg.LVT_TIMER, TSC_DEADLINE | 0x31)
    tsc = pc.vm.msr_read(0, TSC_MSR)
    assert tsc == 5 * 1000 * tsc_khz
    ticks = tsc_khz // 10 + 7  # 0.1 ms and a little
    assert pc.vm.msr_write(0, TSC_DEADLINE_MSR, tsc + ticks) == 0
    due = pc.vm.describe().next_timer
    assert due is not None
    exact = Fraction(ticks * MS, tsc_khz)
    assert abs(due - 5 * SECOND - exact) < 1
    pc.vm.advance(due - 5 * SECOND - 1)
    assert pc.serve_all() == []
    pc.vm.advance(1)
    assert pc.serve_all() == [0x31]
    assert pc.vm.msr_read(0, TSC_DEADLINE_MSR) == 0


# Order.


def run_in_lockstep() -> tuple[list[tuple[int, int]], VmState]:
    """Two guests' timers and the PIT, all due at the same times; every pending interrupt is served."""
    pc = Pc(3, pit=True)
    pc.start(1, 2)
    pc.mask_pics()
    pc.program(0, to(1) | 0x50)
    pc.program(20, to(2) | LEVEL | 0x60)
    for vcpu in (2, 0, 1):
        pc.count_apic(vcpu, 0x70 + vcpu, PERIOD, periodic=True)
    pc.count_pit(HZ_100)
    pc.line(20, 1)
    taken: list[tuple[int, int]] = []
    for _ in range(200):
        pc.vm.advance(PERIOD)
        for vcpu, vector in pc.takers().items():
            taken.append((vcpu, vector))
            pc.eoi(vcpu)
    return taken, pc.vm.save()


def test_timers_due_at_one_time_expire_in_the_same_order_in_each_run() -> None:
    assert run_in_lockstep() == run_in_lockstep()


@needs_sources
def test_no_operation_sees_an_expired_timer_that_has_not_interrupted() -> None:
    """The thread that rings alarms may be late, here for ever; each operation first handles the timers that are due."""

    class NeverRings(RealClock):
        def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
            pass

    deadlines = Timers()
    vm = X86Vm("test", clock=NeverRings(deadlines), deadlines=deadlines)
    vm.create_irqchip()
    vm.create_vcpu(0)
    lapic = 0xFEE0_0000
    for register, value in ((0xF0, 0x1FF), (0x3E0, 0xB), (0x320, 0x31), (0x380, 1000)):
        vm.mmio_write(0, lapic + register, 4, value)
    while vm.mmio_read(0, lapic + 0x390, 4):
        pass
    irr = vm.mmio_read(0, lapic + 0x200 + 0x10 * (0x31 // 32), 4)
    assert irr == 1 << 0x31 % 32
    vm.mmio_write(0, lapic + 0x320, 4, 0x31 | 1 << 17)  # periodic, now: no write restarts it
    assert vm.mmio_read(0, lapic + 0x390, 4) == 0
