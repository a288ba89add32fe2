"""Alarms, and a VM's clock."""

from __future__ import annotations

import gc
from queue import SimpleQueue

from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.chips.lapic_registers import Reg
from irqchipd.observe.observer import Observer
from irqchipd.timers import Timers
from irqchipd.vm.architectures import Properties
from irqchipd.vm.clock import Alarm, Alarms, Deadlines, RealClock, VirtualClock
from irqchipd.vm.events import InterruptPending
from irqchipd.vm.registry import Registry
from irqchipd.vm.turns import MAX_EXPIRATIONS, MAX_TIME
from irqchipd.vm.vcpu_state import Outcome
from irqchipd.vm.x86.board import PcBoard
from irqchipd.vm.x86.machine import X86Vm
from tests.builds import exists
from tests.vm.pc import LEVEL, Ear, Pc, refused
from tests.waiting import PATIENCE

MS = 1_000_000
SECOND = 1_000_000_000
SOON, LATER = 5 * MS, 3600 * SECOND


def silent(rank: int = 0) -> Alarm:
    return Alarm(rank, lambda: None)


def pop_all(alarms: Alarms, now: int) -> list[Alarm]:
    popped = []
    while (alarm := alarms.pop_due(now)) is not None:
        popped.append(alarm)
    return popped


# Alarms.


def test_alarms_are_due_in_the_order_of_their_times_and_then_of_their_ranks() -> None:
    alarms, all_of_them = Alarms(), [silent(rank) for rank in range(4)]
    for alarm, deadline in zip(all_of_them, (20, 10, 20, 10), strict=True):
        alarms.set(alarm, deadline)
    assert alarms.earliest() == 10
    assert [alarm.rank for alarm in pop_all(alarms, 20)] == [1, 3, 0, 2]
    assert alarms.earliest() is None


def test_an_alarm_that_is_due_later_is_not_due() -> None:
    alarms, alarm = Alarms(), silent()
    alarms.set(alarm, 10)
    assert alarms.pop_due(9) is None
    assert alarms.pop_due(10) is alarm
    assert alarm.deadline is None
    assert alarms.pop_due(1 << 70) is None


def test_a_moved_alarm_is_due_at_its_last_time_alone_and_a_cancelled_one_never() -> None:
    alarms, moved, cancelled, back = Alarms(), silent(0), silent(1), silent(2)
    times: dict[Alarm, list[int | None]] = {moved: [10, 30, 20], cancelled: [5, None], back: [15, 25, 15, None, 15]}
    for alarm, deadlines in times.items():
        for deadline in deadlines:
            alarms.set(alarm, deadline)
    assert alarms.earliest() == 15
    assert alarms.pop_due(14) is None
    assert pop_all(alarms, 15) == [back]
    assert pop_all(alarms, 100) == [moved]


moves = st.tuples(st.integers(0, 4), st.none() | st.integers(0, 12))


@settings(max_examples=200)
@given(st.lists(moves | st.integers(0, 12), max_size=80))
def test_alarms_behave_like_a_table_of_their_times(script: list[tuple[int, int | None] | int]) -> None:
    alarms, all_of_them = Alarms(), [silent(rank) for rank in range(5)]
    table: dict[int, int] = {}
    for step in script:
        if isinstance(step, int):
            expected = min(((deadline, rank) for rank, deadline in table.items() if deadline <= step), default=None)
            popped = alarms.pop_due(step)
            assert (popped.rank if popped else None) == (expected[1] if expected else None)
            if popped:
                del table[popped.rank]
        else:
            rank, deadline = step
            alarms.set(all_of_them[rank], deadline)
            table.pop(rank, None)
            if deadline is not None:
                table[rank] = deadline
        assert alarms.earliest() == min(table.values(), default=None)
        assert {alarm.rank: alarm.deadline for alarm in all_of_them if alarm.deadline is not None} == table


def test_a_million_moves_do_not_grow_the_heap() -> None:
    alarms, few, largest = Alarms(), [silent(rank) for rank in range(10)], 0
    for turn in range(100_000):
        for alarm in few:
            alarms.set(alarm, turn + 1 + (alarm.rank * 7 + turn) % 50)
        largest = max(largest, len(alarms._heap))
    assert largest <= 2 * len(few) + 16
    assert len(pop_all(alarms, 1 << 40)) == len(few)
    for turn in range(1000):
        alarms.set(few[0], turn)
        alarms.set(few[0], None)
    assert len(alarms._heap) <= 16


# The clock of a VM.


def test_a_real_clock_goes_and_a_virtual_one_stands() -> None:
    deadlines = Deadlines()
    real, virtual = X86Vm("real", deadlines=deadlines), X86Vm("virtual", clock=VirtualClock(), deadlines=deadlines)
    deadlines.move(2 * MS)
    assert real.describe().now == 2 * MS
    assert virtual.describe().now == 0
    assert (real.describe().virtual, virtual.describe().virtual) == (False, True)
    virtual.advance(123)
    assert virtual.describe().now == 123


def test_the_registry_makes_either_and_a_tsc_of_any_frequency() -> None:
    registry = Registry(max_vms=5)
    assert not registry.create("real").describe().virtual
    assert registry.create("virtual", virtual=True).describe().virtual
    assert registry.create(properties=Properties(tsc_khz=2_400_000)).describe().tsc_khz == 2_400_000
    assert registry.get("real").describe().tsc_khz == 1_000_000
    for tsc_khz in (-1, 100_000_001):
        with refused("EINVAL"):
            registry.create(properties=Properties(tsc_khz=tsc_khz))
    assert len(registry.after("", 5)) == 3


def test_a_clock_can_start_anywhere() -> None:
    deadlines = Deadlines()
    deadlines.move(3 * SECOND)
    assert RealClock(deadlines, 7 * SECOND).now() == 7 * SECOND
    assert VirtualClock(7).now() == 7


def test_a_real_clock_s_timers_interrupt_by_themselves() -> None:
    pc = Pc(real=True)
    ear = Ear(pc.vm, [0])
    pc.count_apic(0, 0x31, 5 * MS)
    assert pc.vm.describe().next_timer == 5 * MS
    pc.deadlines.move(5 * MS - 1)
    assert ear.heard() == []
    pc.deadlines.move(1)
    assert ear.heard() == [InterruptPending(0)]
    assert pc.take() == 0x31
    assert pc.vm.describe().next_timer is None


def test_a_real_clock_s_periodic_timer_loses_no_tick() -> None:
    pc = Pc(real=True)
    ear = Ear(pc.vm, [0])
    pc.count_apic(0, 0x31, 2 * MS, periodic=True)
    for _ in range(10):
        pc.deadlines.move(2 * MS)
        assert ear.heard() == [InterruptPending(0)]
        assert pc.take() == 0x31
        pc.eoi()
    pc.lapic_write(0, Reg.TIMER_INITIAL_COUNT, 0)
    assert pc.vm.describe().next_timer is None


def test_a_real_clock_s_timer_ends_a_halt() -> None:
    pc = Pc(deadlines=Timers(), real=True)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    pc.count_apic(0, 0x31, 2 * MS)
    pc.vm.halt(0, outcomes.put)
    assert outcomes.get(timeout=PATIENCE) == (0x31, False)


def test_a_deleted_vm_s_timers_are_silent() -> None:
    pc = Pc(real=True)
    ear = Ear(pc.vm, [0])
    pc.count_apic(0, 0x31, 5 * MS)
    pc.vm.delete()
    pc.deadlines.move(20 * MS)
    assert ear.heard() == []


def test_a_deleted_vm_is_not_kept_for_a_timer_that_is_far_away() -> None:
    pc = Pc(real=True)
    pc.lapic_write(0, Reg.TIMER_DIVIDE, 0xA)  # by 128
    pc.lapic_write(0, Reg.LVT_TIMER, 0x31)
    pc.lapic_write(0, Reg.TIMER_INITIAL_COUNT, 0xFFFF_FFFF)
    board, deadlines = id(pc.vm._board), pc.deadlines
    pc.vm.delete()
    del pc
    gc.collect()
    assert not exists(PcBoard, board)
    assert deadlines.alarms.earliest() is None


# Advancing.


def test_only_a_virtual_clock_can_be_advanced() -> None:
    vm = X86Vm("real")
    for nanoseconds in (0, 1):
        with refused("EINVAL"):
            vm.advance(nanoseconds)


def test_a_clock_goes_to_2_to_the_62_and_no_further() -> None:
    vm = X86Vm("virtual", clock=VirtualClock())
    for nanoseconds in (-1, MAX_TIME + 1, 1 << 64):
        with refused("EINVAL"):
            vm.advance(nanoseconds)
    assert vm.describe().now == 0
    assert vm.advance(0).now == 0
    assert vm.advance(MAX_TIME - 5).now == MAX_TIME - 5
    with refused("EINVAL"):
        vm.advance(6)
    assert vm.advance(5).now == MAX_TIME
    with refused("EINVAL"):
        vm.advance(1)


def test_it_reports_the_time_and_the_next_timer() -> None:
    pc = Pc()
    pc.elapse(100)
    pc.count_apic(0, 0x31, 500)
    assert pc.vm.describe().next_timer == 600
    advanced = pc.vm.advance(499)
    assert (advanced.now, advanced.remaining, advanced.next_timer) == (599, 0, 600)
    assert pc.take() is None
    advanced = pc.vm.advance(1)
    assert (advanced.now, advanced.remaining, advanced.next_timer) == (600, 0, None)
    assert pc.take() == 0x31


def test_it_stops_after_10000_expirations_and_continues_at_the_next_call() -> None:
    pc = Pc()
    pc.count_apic(0, 0x31, MS, periodic=True)
    advanced = pc.vm.advance(25_000 * MS + 7)
    assert MAX_EXPIRATIONS == 10_000
    assert (advanced.now, advanced.remaining, advanced.next_timer) == (10_000 * MS, 15_000 * MS + 7, 10_001 * MS)
    advanced = pc.vm.advance(advanced.remaining)
    assert (advanced.now, advanced.remaining) == (20_000 * MS, 5_000 * MS + 7)
    advanced = pc.vm.advance(advanced.remaining)
    assert (advanced.now, advanced.remaining, advanced.next_timer) == (25_000 * MS + 7, 0, 25_001 * MS)


class Diary(Observer):
    """Records what was delivered, and when."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        self.entries: list[tuple[int, str, int]] = []
        pc.vm.attach(self)

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:  # noqa: ARG002
        self.entries.append((self._pc.clock.now(), f"gsi {gsi}", level))

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:  # noqa: ARG002
        self.entries.append((self._pc.clock.now(), f"apic {vcpu}", vector))


def test_timers_expire_in_order_and_each_at_its_time() -> None:
    """At one time: the PIT first, then the local APICs in order of creation, whatever order they were started in."""
    pc = Pc(3, pit=True)
    pc.vm.set_pit_reinject(False)
    diary = Diary(pc)
    pc.count_apic(2, 0x52, MS)
    pc.count_apic(1, 0x51, 999_847)
    pc.count_apic(0, 0x50, 999_847)
    pc.count_pit(1193, mode=0)  # 999,847 ns
    pc.vm.advance(10 * MS)
    assert diary.entries == [
        (999_847, "gsi 0", 1),
        (999_847, "gsi 0", 0),
        (999_847, "apic 0", 0x50),
        (999_847, "apic 1", 0x51),
        (MS, "apic 2", 0x52),
    ]
    assert pc.vm.describe().now == 10 * MS


def test_delayed_pins_are_served_before_the_local_apics() -> None:
    pc = Pc(2)
    pc.program(16, LEVEL | 0x41)
    pc.line(16, 1)
    for _ in range(10_000):
        assert pc.take() == 0x41
        pc.eoi()
    assert pc.take() is None
    assert pc.vm.describe().next_timer == 10 * MS
    pc.count_apic(0, 0x31, 10 * MS)
    pc.count_apic(1, 0x31, 10 * MS - 1)
    diary = Diary(pc)
    pc.vm.advance(20 * MS)
    assert diary.entries == [
        (10 * MS - 1, "apic 1", 0x31),
        (10 * MS, "apic 0", 0x41),
        (10 * MS, "apic 0", 0x31),
    ]


def test_a_timer_that_is_set_while_the_clock_moves_is_due_as_well() -> None:
    """This includes every expiry of a periodic timer."""
    pc = Pc()
    diary = Diary(pc)
    pc.count_apic(0, 0x31, MS, periodic=True)
    pc.vm.advance(3 * MS)
    assert diary.entries == [(turn * MS, "apic 0", 0x31) for turn in (1, 2, 3)]


def test_a_halt_that_a_timer_ends_takes_its_vector_at_that_time() -> None:
    """The vector is taken then, not when the clock has stopped and a higher one is pending."""
    pc = Pc(pit=True)
    pc.mask_pics()
    pc.program(0, 0x81)
    outcomes: list[Outcome] = []
    pc.vm.halt(0, outcomes.append)
    pc.count_apic(0, 0x31, MS)
    pc.count_pit(2387, mode=0)  # 2 ms
    pc.vm.advance(MS - 1)
    assert outcomes == []
    pc.vm.advance(5 * MS)
    assert outcomes == [(0x31, False)]
    assert pc.take() == 0x81
